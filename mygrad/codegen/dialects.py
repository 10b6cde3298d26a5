"""Languages of the C family, as data for the renderer in `cstyle.py`.

A dialect says how types, arguments, loads, stores and operations are written. Its templates have

    $a $b $c   operands                      $T   type of the result
    $p $i $v   pointer, index, value         $U   its unsigned type, at least 32 bits for scalars,
    $q         address space of a pointer         for C would promote to int
    $A         scalar type of a cast's       $M   type of a vector mask for values of its width
               operand                       $n   number of lanes, nothing for scalars
    @name      the helper function or typedef `name` for the type of the result; its definition is
               written in front of the kernel when it is used

Values are computed in `types`: bool as 0 or 1 in a byte; float16 and bfloat16 in float, rounded
after every operation. A dialect without vector `lanes` gets every vector axis as copies of scalars.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mygrad import dtype as dt
from mygrad.dtype import DType
from mygrad.ops import Op

Row = tuple[
    Op, str
]  # operation and kind of its operands: b, i, u, f; rows of "u" default to those of "i"


@dataclass(frozen=True)
class Helper:
    """A function that templates may call: its scalar and its vector definition. Without a vector
    definition the scalar function is applied lane by lane."""

    parameters: int
    scalar: str
    vector: str = ""
    parameter_type: str = "$T"
    result_type: str = "$T"


@dataclass(frozen=True)
class Dialect:
    """One language of the C family."""

    name: str
    kernel: str  # what stands before the name of a kernel
    global_space: (
        str  # qualifiers of pointers to global memory and of arrays shared by a work-group
    )
    shared_space: str
    prologue: str
    double_prologue: str  # in front of kernels that use float64
    lanes: tuple[int, ...]  # vector types there are
    thread: str  # number of this thread, and number of threads, in the sharing of a parallel loop
    threads: str
    barrier: str
    types: Mapping[DType, str]
    unsigned: Mapping[DType, str]
    memory_types: Mapping[DType, str]  # what a pointer argument points to
    array_types: Mapping[DType, str]  # what a scratch array holds, where that differs
    loads: Mapping[tuple[str, bool], str]  # (name of dtype or "", vector?)
    stores: Mapping[tuple[str, bool], str]
    scalar: Mapping[Row, str]
    vector: Mapping[Row, str]
    casts: Mapping[tuple[str, str, bool], str]  # (kind from, kind to, vector?)
    bits: str  # the bytes of a value as the type $T of the same size
    helpers: Mapping[str, Helper]
    typedefs: Mapping[str, str]  # types that templates name with `@name`
    reserved: frozenset[str] = frozenset()


# --- operations on scalars, in any C ------------------------------------------------------------

SCALAR: dict[Row, str] = {
    (Op.NEG, "f"): "-$a",
    (Op.NEG, "i"): "($T)(0 - ($U)$a)",  # unsigned arithmetic wraps, signed overflow is undefined
    (Op.SQRT, "f"): "sqrt($a)",
    (Op.EXP, "f"): "exp($a)",
    (Op.LOG, "f"): "log($a)",
    (Op.SIN, "f"): "sin($a)",
    (Op.TRUNC, "f"): "trunc($a)",
    (Op.TRUNC, "i"): "$a",
    (Op.ADD, "f"): "$a + $b",
    (Op.ADD, "i"): "($T)(($U)$a + ($U)$b)",
    (Op.ADD, "b"): "$a | $b",
    (Op.MUL, "f"): "$a * $b",
    (Op.MUL, "i"): "($T)(($U)$a * ($U)$b)",
    (Op.MUL, "b"): "$a & $b",
    (Op.DIV, "f"): "$a / $b",
    (Op.MAX, "f"): "@maximum($a, $b)",
    (Op.MAX, "i"): "@larger($a, $b)",
    (Op.MAX, "b"): "$a | $b",
    (Op.IDIV, "i"): "@floordiv($a, $b)",
    (Op.IDIV, "u"): "@quotient($a, $b)",
    (Op.MOD, "i"): "@modulo($a, $b)",
    (Op.MOD, "u"): "@remainder($a, $b)",
    (Op.AND, "i"): "($T)($a & $b)",
    (Op.OR, "i"): "($T)($a | $b)",
    (Op.XOR, "i"): "($T)($a ^ $b)",
    (Op.SHL, "i"): "@shift_left($a, $b)",
    (Op.SHR, "i"): "@shift_right($a, $b)",
    **{(Op.LT, kind): "$a < $b" for kind in "bif"},
    **{(Op.EQ, kind): "$a == $b" for kind in "bif"},
    **{(Op.WHERE, kind): "($T)($a ? $b : $c)" for kind in "bif"},
    **{(op, "b"): f"$a {sign} $b" for op, sign in ((Op.AND, "&"), (Op.OR, "|"), (Op.XOR, "^"))},
}

HELPERS: dict[str, Helper] = {
    "multiply_add": Helper(3, "return fma(a, b, c);"),
    "larger": Helper(2, "return a > b ? a : b;"),
    "maximum": Helper(2, "return a > b || a != a ? a : b;"),  # NaN if either side is
    "minimum": Helper(2, "return a < b || a != a ? a : b;"),
    "quotient": Helper(2, "return b == 0 ? 0 : a / b;"),
    "remainder": Helper(2, "return b == 0 ? 0 : a % b;"),
    # INT_MIN / -1 traps on some machines
    "floordiv": Helper(
        2,
        "if (b == 0) return 0;\n"
        "    if (b == -1) return ($T)(0 - ($U)a);\n"
        "    return a / b - (a % b != 0 && (a < 0) != (b < 0));",
    ),
    "modulo": Helper(
        2,
        "if (b == 0 || b == -1) return 0;\n"
        "    const $T r = a % b;\n"
        "    return r != 0 && (r < 0) != (b < 0) ? r + b : r;",
    ),
    "shift_left": Helper(2, "return b < 0 || b >= $bits ? 0 : ($T)(($U)a << b);"),
    "shift_right": Helper(2, "return b < 0 || b >= $bits ? (a < 0 ? -1 : 0) : a >> b;"),
}


# --- OpenCL C 1.2 -------------------------------------------------------------------------------

_OPENCL_NAMES = {
    dt.bool_: "uchar",
    dt.int8: "char",
    dt.int16: "short",
    dt.int32: "int",
    dt.int64: "long",
    dt.uint8: "uchar",
    dt.uint16: "ushort",
    dt.uint32: "uint",
    dt.uint64: "ulong",
    dt.float16: "float",
    dt.bfloat16: "float",
    dt.float32: "float",
    dt.float64: "double",
}

# PoCL calls convert_ functions, vloadn, vstoren and fma out of line, which costs registers and time
_OPENCL_PROLOGUE = """\
#pragma OPENCL FP_CONTRACT OFF
#ifdef __clang__
#define CONVERT(type, value) __builtin_convertvector(value, type)
#else
#define CONVERT(type, value) convert_##type(value)
#endif
"""

# A vector comparison gives integers as wide as its operands, -1 where it holds; bools are 0 or 1.
_OPENCL_VECTOR: dict[Row, str] = {
    (Op.NEG, "f"): "-$a",
    (Op.NEG, "i"): "as_$T(-as_$U($a))",
    (Op.SQRT, "f"): "sqrt($a)",
    (Op.EXP, "f"): "exp($a)",
    (Op.LOG, "f"): "log($a)",
    (Op.SIN, "f"): "@sine($a)",
    (Op.TRUNC, "f"): "trunc($a)",
    (Op.TRUNC, "i"): "$a",
    (Op.ADD, "f"): "$a + $b",
    (Op.ADD, "i"): "as_$T(as_$U($a) + as_$U($b))",
    (Op.MUL, "f"): "$a * $b",
    (Op.MUL, "i"): "as_$T(as_$U($a) * as_$U($b))",
    (Op.DIV, "f"): "$a / $b",
    (Op.MAX, "f"): "@maximum($a, $b)",
    (Op.MAX, "i"): "@larger($a, $b)",
    (Op.IDIV, "i"): "@floordiv($a, $b)",
    (Op.IDIV, "u"): "@quotient($a, $b)",
    (Op.MOD, "i"): "@modulo($a, $b)",
    (Op.MOD, "u"): "@remainder($a, $b)",
    (Op.AND, "i"): "$a & $b",
    (Op.OR, "i"): "$a | $b",
    (Op.XOR, "i"): "$a ^ $b",
    (Op.SHL, "i"): "@shift_left($a, $b)",
    (Op.SHR, "i"): "@shift_right($a, $b)",
    **{(Op.LT, kind): "CONVERT($T, -($a < $b))" for kind in "bif"},
    **{(Op.EQ, kind): "CONVERT($T, -($a == $b))" for kind in "bif"},
    **{(Op.WHERE, kind): "CONVERT($M, $a) != ($M)(0) ? $b : $c" for kind in "bif"},
    **{
        (op, "b"): f"$a {sign} $b"
        for op, sign in (
            (Op.ADD, "|"),
            (Op.MUL, "&"),
            (Op.MAX, "|"),
            (Op.AND, "&"),
            (Op.OR, "|"),
            (Op.XOR, "^"),
        )
    },
}


def _generic(parameters: int, text: str, takes: str = "$T", gives: str = "$T") -> Helper:
    """A helper whose text is the same for scalars and vectors."""
    return Helper(parameters, text, text, takes, gives)


_TO_HALF = "ushort$n h;\n    vstore_half${n}_rte(a, 0, (half *)&h);\n"
_FROM_HALF = "    return vload_half$n(0, (const half *)&h);"

_OPENCL_HELPERS: dict[str, Helper] = {
    **HELPERS,
    "maximum": Helper(2, HELPERS["maximum"].scalar, "return ((a > b) | (a != a)) ? a : b;"),
    "larger": _generic(2, "return a > b ? a : b;"),
    # fused where the machine can; a call of fma() is slow on PoCL
    "multiply_add": _generic(3, "#pragma OPENCL FP_CONTRACT ON\n    return a * b + c;"),
    "round_float16": _generic(1, _TO_HALF + _FROM_HALF),
    "double_to_float16": _generic(1, _TO_HALF + _FROM_HALF, "double$n"),
    "float16_bits": _generic(1, _TO_HALF + "    return h;", "float$n", "ushort$n"),
    "float16_value": _generic(1, "return vload_half$n(0, (const half *)&a);", "ushort$n"),
    # to nearest even; NaN stays NaN, which the carry could turn into infinity
    "round_bfloat16": _generic(
        1,
        "const uint$n u = as_uint$n(a);\n"
        "    const uint$n r = (u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u;\n"
        "    const uint$n nan = u | 0x400000u;\n"
        "    return (u & 0x7fffffffu) > 0x7f800000u ? as_float$n(nan) : as_float$n(r);",
    ),
    # PoCL saturates NaN to the smallest value instead of 0
    **{
        f"saturate_{t}": Helper(
            1,
            "return a != a ? 0 : convert_${T}_sat(a);",
            "return CONVERT($M, a != a) ? ($T)(0) : convert_${T}_sat(a);",
            parameter_type=f"{t}$n",
        )
        for t in ("float", "double")
    },
    # PoCL's sine of a vector is wrong in all lanes when one of them is large
    "sine": Helper(1, "return sin(a);"),
    "bfloat16_bits": Helper(
        1,
        "return as_uint(@round_bfloat16(a)) >> 16;",
        "return CONVERT(ushort$n, as_uint$n(@round_bfloat16(a)) >> 16);",
        parameter_type="float$n",
        result_type="ushort$n",
    ),
    "bfloat16_value": Helper(
        1,
        "return as_float((uint)a << 16);",
        "return as_float$n(CONVERT(uint$n, a) << 16);",
        parameter_type="ushort$n",
    ),
}

OPENCL = Dialect(
    name="opencl",
    kernel="__kernel void",
    global_space="__global",
    shared_space="__local",
    prologue=_OPENCL_PROLOGUE,
    double_prologue="#pragma OPENCL EXTENSION cl_khr_fp64 : enable\n",
    lanes=(2, 4, 8, 16),
    thread="(long)get_global_id(0)",
    threads="(long)get_global_size(0)",
    barrier="barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);",
    types=_OPENCL_NAMES,
    unsigned={d: {1: "uchar", 2: "ushort", 4: "uint", 8: "ulong"}[d.itemsize] for d in dt.ALL},
    memory_types=_OPENCL_NAMES | {dt.float16: "half", dt.bfloat16: "ushort"},
    array_types={dt.float16: "ushort"},
    loads={
        ("", False): "$p[$i]",
        ("", True): "((${q}const @packed *)($p + $i))->v",
        ("float16", False): "vload_half($i, $p)",
        ("float16", True): "vload_half$n(0, $p + $i)",
        ("bfloat16", False): "@bfloat16_value($p[$i])",
        ("bfloat16", True): "@bfloat16_value(((${q}const @packed_bits *)($p + $i))->v)",
    },
    stores={
        ("", False): "$p[$i] = $v",
        ("", True): "((${q}@packed *)($p + $i))->v = $v",
        ("float16", False): "vstore_half_rte($v, $i, $p)",
        ("float16", True): "vstore_half${n}_rte($v, 0, $p + $i)",
        ("bfloat16", False): "$p[$i] = @bfloat16_bits($v)",
        ("bfloat16", True): "((${q}@packed_bits *)($p + $i))->v = @bfloat16_bits($v)",
    },
    scalar=SCALAR,
    vector=_OPENCL_VECTOR,
    casts={
        **{(kind, "b", False): "$a != 0" for kind in "if"},
        **{(kind, "b", True): "CONVERT($T, -($a != ($A$n)(0)))" for kind in "if"},
        **{(a, b, False): "($T)$a" for a, b in ("if", "ff", "ii", "bi", "bf")},
        **{(a, b, True): "CONVERT($T, $a)" for a, b in ("if", "ff", "ii", "bi", "bf")},
        **{("f", "i", vector): "@saturate_$A($a)" for vector in (False, True)},
    },
    bits="as_$T($a)",
    helpers=_OPENCL_HELPERS,
    # vectors at addresses that are only aligned to their elements
    typedefs={
        "packed": "typedef struct __attribute__((packed)) { $T v; }",
        "packed_bits": "typedef struct __attribute__((packed)) { ushort$n v; }",
    },
    reserved=frozenset(
        ["max", "min", "exp", "log", "sin", "sqrt", "trunc", "select", "half", "fma"]
    ),
)

DIALECTS: dict[str, Dialect] = {"opencl": OPENCL}
