"""Every alu operation as LLVM text, one row per operation: the rules of `ops.py`, spelled out.

A template is text with the holes {r} (the result's name, also the prefix of temporary names) and
{a}, {b}, {c} (operands). One template serves scalars and vectors of any width, and is built once
per (operation, types, lanes). Guards (division by zero, shifts too far) are left out where `safe`
says
that the operands cannot need them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial

from mygrad import dtype as dt
from mygrad.codegen import vmath
from mygrad.codegen.llvm_types import (
    float_literal,
    mangled,
    memory,
    register,
    scalar,
    splat,
    vector,
)
from mygrad.dtype import DType
from mygrad.errors import InternalError
from mygrad.ops import Op


@cache
def template(
    op: Op,
    source: DType,
    result: DType,
    lanes: int,
    safe: bool = False,
    features: frozenset[str] = frozenset(),
) -> str:
    """The text of `op` on operands of type `source` (of the value operands for WHERE).

    `safe` means: for IDIV and MOD, the dividend is not negative and the divisor positive; for SHL
    and SHR, the count is in range; for ADD, MUL and NEG of integers, the result does not wrap
    around; for MAX of floats, the first operand is not NaN. `features` are those of the target
    that the text may count on.
    """
    if op is Op.CAST:
        return _cast(source, result, lanes)
    if op is Op.BITCAST:
        return _bitcast(source, result, lanes)
    if op in (Op.EXP, Op.LOG, Op.SIN):
        return _transcendental(op, source, lanes, features)
    rows = _FLOAT if source.is_float else _BOOL if source.kind == "b" else _INT
    row = rows.get(op) or _ANY.get(op)
    if row is None:
        raise InternalError(f"llvm: {op} of {source.name} has no meaning")
    text = row(source, lanes, safe)
    return _rounded(text, lanes) if source is dt.bfloat16 and op in _ROUNDING else text


# --- rows ----------------------------------------------------------------------------------------

Row = Callable[[DType, int, bool], str]


def _plain(instruction: str) -> Row:
    def row(dtype: DType, lanes: int, safe: bool) -> str:
        return f"  {{r}} = {instruction} {register(dtype, lanes)} {{a}}, {{b}}\n"

    return row


def _wrapping(instruction: str) -> Row:
    def row(dtype: DType, lanes: int, safe: bool) -> str:
        flag = " nsw" if safe and dtype.kind == "i" else ""
        return f"  {{r}} = {instruction}{flag} {register(dtype, lanes)} {{a}}, {{b}}\n"

    return row


def _negate(dtype: DType, lanes: int, safe: bool) -> str:
    ty = register(dtype, lanes)
    if dtype.is_float:
        return f"  {{r}} = fneg {ty} {{a}}\n"
    return f"  {{r}} = sub {ty} {splat('0', scalar(dtype), lanes)}, {{a}}\n"


def _intrinsic(name: str) -> Row:
    def row(dtype: DType, lanes: int, safe: bool) -> str:
        ty = register(dtype, lanes)
        return f"  {{r}} = call {ty} @llvm.{name}.{mangled(scalar(dtype), lanes)}({ty} {{a}})\n"

    return row


def _max_float(dtype: DType, lanes: int, safe: bool) -> str:
    # select(a > b, a, b) gives b when either is NaN, which is one instruction; only a NaN `a`
    # needs more
    ty, bit = register(dtype, lanes), vector("i1", lanes)
    name = "{r}" if safe else "{r}.m"
    text = (
        f"  {{r}}.g = fcmp ogt {ty} {{a}}, {{b}}\n"
        f"  {name} = select {bit} {{r}}.g, {ty} {{a}}, {ty} {{b}}\n"
    )
    if safe:
        return text
    return text + (
        f"  {{r}}.u = fcmp uno {ty} {{a}}, {{a}}\n"
        f"  {{r}} = select {bit} {{r}}.u, {ty} {{a}}, {ty} {{r}}.m\n"
    )


def _max_int(dtype: DType, lanes: int, safe: bool) -> str:
    ty, name = register(dtype, lanes), "smax" if dtype.kind == "i" else "umax"
    kind = mangled(scalar(dtype), lanes)
    return f"  {{r}} = call {ty} @llvm.{name}.{kind}({ty} {{a}}, {ty} {{b}})\n"


def _compare(floating: str, signed: str, unsigned: str) -> Row:
    def row(dtype: DType, lanes: int, safe: bool) -> str:
        instruction = (
            f"fcmp {floating}"
            if dtype.is_float
            else (f"icmp {signed if dtype.kind == 'i' else unsigned}")
        )
        return f"  {{r}} = {instruction} {register(dtype, lanes)} {{a}}, {{b}}\n"

    return row


def _divide(modulo: bool) -> Row:
    def row(dtype: DType, lanes: int, safe: bool) -> str:
        ty, bit = register(dtype, lanes), vector("i1", lanes)
        zero, one = (splat(n, scalar(dtype), lanes) for n in "01")
        if safe:
            return f"  {{r}} = {'urem' if modulo else 'udiv'} {ty} {{a}}, {{b}}\n"
        text = f"  {{r}}.z = icmp eq {ty} {{b}}, {zero}\n"
        if dtype.kind == "u":
            text += (
                f"  {{r}}.b = select {bit} {{r}}.z, {ty} {one}, {ty} {{b}}\n"
                f"  {{r}}.q = {'urem' if modulo else 'udiv'} {ty} {{a}}, {{r}}.b\n"
            )
        else:
            text += _floor(dtype, lanes, modulo)
        return text + f"  {{r}} = select {bit} {{r}}.z, {ty} {zero}, {ty} {{r}}.q\n"

    return row


def _floor(dtype: DType, lanes: int, modulo: bool) -> str:
    """Signed floor division of {a} by a {b} that may be 0, into {r}.q. Dividing by 1 instead of 0
    and instead of INT_MIN / -1 avoids the traps; the latter gives INT_MIN, as it should."""
    ty, bit = register(dtype, lanes), vector("i1", lanes)
    zero, one, minus, low = (
        splat(n, scalar(dtype), lanes) for n in ("0", "1", "-1", str(dtype.min))
    )
    text = (
        f"  {{r}}.o = icmp eq {ty} {{b}}, {minus}\n"
        f"  {{r}}.w = icmp eq {ty} {{a}}, {low}\n"
        f"  {{r}}.v = and {bit} {{r}}.o, {{r}}.w\n"
        f"  {{r}}.i = or {bit} {{r}}.v, {{r}}.z\n"
        f"  {{r}}.b = select {bit} {{r}}.i, {ty} {one}, {ty} {{b}}\n"
        f"  {{r}}.r = srem {ty} {{a}}, {{r}}.b\n"
        f"  {{r}}.n = icmp ne {ty} {{r}}.r, {zero}\n"
        f"  {{r}}.x = xor {ty} {{r}}.r, {{r}}.b\n"
        f"  {{r}}.s = icmp slt {ty} {{r}}.x, {zero}\n"
        f"  {{r}}.d = and {bit} {{r}}.n, {{r}}.s\n"
    )
    if modulo:
        return text + (
            f"  {{r}}.c = select {bit} {{r}}.d, {ty} {{r}}.b, {ty} {zero}\n"
            f"  {{r}}.q = add {ty} {{r}}.r, {{r}}.c\n"
        )
    return text + (
        f"  {{r}}.t = sdiv {ty} {{a}}, {{r}}.b\n"
        f"  {{r}}.c = sext {bit} {{r}}.d to {ty}\n"
        f"  {{r}}.q = add {ty} {{r}}.t, {{r}}.c\n"
    )


def _shift_left(dtype: DType, lanes: int, safe: bool) -> str:
    return _logical_shift("shl", dtype, lanes, safe)


def _shift_right(dtype: DType, lanes: int, safe: bool) -> str:
    ty = register(dtype, lanes)
    if dtype.kind == "u":
        return _logical_shift("lshr", dtype, lanes, safe)
    if safe:
        return f"  {{r}} = ashr {ty} {{a}}, {{b}}\n"
    # shifting by width - 1 leaves only the sign, which is what going further gives
    last, kind = splat(str(dtype.bits - 1), scalar(dtype), lanes), mangled(scalar(dtype), lanes)
    return (
        f"  {{r}}.n = call {ty} @llvm.umin.{kind}({ty} {{b}}, {ty} {last})\n"
        f"  {{r}} = ashr {ty} {{a}}, {{r}}.n\n"
    )


def _logical_shift(instruction: str, dtype: DType, lanes: int, safe: bool) -> str:
    ty, bit = register(dtype, lanes), vector("i1", lanes)
    if safe:
        return f"  {{r}} = {instruction} {ty} {{a}}, {{b}}\n"
    bits, zero = (splat(n, scalar(dtype), lanes) for n in (str(dtype.bits), "0"))
    # the shift is poison where it is too far, but a select does not look at what it does not take
    return (
        f"  {{r}}.k = icmp ult {ty} {{b}}, {bits}\n"
        f"  {{r}}.s = {instruction} {ty} {{a}}, {{b}}\n"
        f"  {{r}} = select {bit} {{r}}.k, {ty} {{r}}.s, {ty} {zero}\n"
    )


def _where(dtype: DType, lanes: int, safe: bool) -> str:
    # `safe` says that the condition is one for all lanes
    bit, ty = "i1" if safe else vector("i1", lanes), register(dtype, lanes)
    return f"  {{r}} = select {bit} {{a}}, {ty} {{b}}, {ty} {{c}}\n"


def _same(dtype: DType, lanes: int, safe: bool) -> str:
    ty = register(dtype, lanes)
    return f"  {{r}} = select i1 true, {ty} {{a}}, {ty} {{a}}\n"


_FLOAT: dict[Op, Row] = {
    Op.NEG: _negate,
    Op.SQRT: _intrinsic("sqrt"),
    Op.TRUNC: _intrinsic("trunc"),
    Op.ADD: _plain("fadd"),
    Op.MUL: _plain("fmul"),
    Op.DIV: _plain("fdiv"),
    Op.MAX: _max_float,
}
_INT: dict[Op, Row] = {
    Op.NEG: _negate,
    Op.TRUNC: _same,
    Op.ADD: _wrapping("add"),
    Op.MUL: _wrapping("mul"),
    Op.MAX: _max_int,
    Op.IDIV: _divide(False),
    Op.MOD: _divide(True),
    Op.AND: _plain("and"),
    Op.OR: _plain("or"),
    Op.XOR: _plain("xor"),
    Op.SHL: _shift_left,
    Op.SHR: _shift_right,
}
_BOOL: dict[Op, Row] = {
    Op.ADD: _plain("or"),
    Op.MUL: _plain("and"),
    Op.MAX: _plain("or"),
    Op.AND: _plain("and"),
    Op.OR: _plain("or"),
    Op.XOR: _plain("xor"),
    Op.TRUNC: _same,
}
_ANY: dict[Op, Row] = {
    Op.LT: _compare("olt", "slt", "ult"),
    Op.EQ: _compare("oeq", "eq", "eq"),
    Op.WHERE: _where,
}
_ROUNDING = frozenset({Op.SQRT, Op.ADD, Op.MUL, Op.DIV})


# --- bfloat16, casts, transcendentals ------------------------------------------------------------


def _rounded(text: str, lanes: int) -> str:
    """A float32 result {r} rounded to the nearest bfloat16, ties to even; NaN stays NaN. Done on
    the bits: the conversion instruction of AVX-512 flushes denormals."""
    return text.replace("{r} =", "{r}.w =") + _round_bfloat16("{r}.w", lanes)


def _round_bfloat16(value: str, lanes: int) -> str:
    ints, floats, bit = vector("i32", lanes), vector("float", lanes), vector("i1", lanes)
    sixteen, one, half, mask, quiet = (
        splat(n, "i32", lanes) for n in ("16", "1", "32767", "-65536", "4194304")
    )
    return (
        f"  {{r}}.bi = bitcast {floats} {value} to {ints}\n"
        f"  {{r}}.bh = lshr {ints} {{r}}.bi, {sixteen}\n"
        f"  {{r}}.bl = and {ints} {{r}}.bh, {one}\n"
        f"  {{r}}.ba = add {ints} {{r}}.bi, {half}\n"
        f"  {{r}}.bb = add {ints} {{r}}.ba, {{r}}.bl\n"
        f"  {{r}}.bq = or {ints} {{r}}.bi, {quiet}\n"
        f"  {{r}}.bn = fcmp uno {floats} {value}, {value}\n"
        f"  {{r}}.bs = select {bit} {{r}}.bn, {ints} {{r}}.bq, {ints} {{r}}.bb\n"
        f"  {{r}}.bm = and {ints} {{r}}.bs, {mask}\n"
        f"  {{r}} = bitcast {ints} {{r}}.bm to {floats}\n"
    )


def _transcendental(op: Op, dtype: DType, lanes: int, features: frozenset[str]) -> str:
    expansions: dict[Op, Callable[[str, int], str]] = {
        Op.EXP: partial(vmath.exp, features=features),
        Op.LOG: vmath.log,
        Op.SIN: vmath.sin,
    }
    expand = expansions[op]
    if dtype is dt.float64:
        return expand("double", lanes)
    text = expand("float", lanes)
    if dtype is dt.bfloat16:
        return _rounded(text, lanes)
    if dtype is dt.float16:
        half, floats = vector("half", lanes), vector("float", lanes)
        inner = text.replace("{r} =", "{r}.w =").replace("{a}", "{r}.e")
        return (
            f"  {{r}}.e = fpext {half} {{a}} to {floats}\n{inner}"
            f"  {{r}} = fptrunc {floats} {{r}}.w to {half}\n"
        )
    return text


def _cast(source: DType, result: DType, lanes: int) -> str:
    old, new = register(source, lanes), register(result, lanes)
    if result.kind == "b":
        zero = float_literal(0.0, scalar(source)) if source.is_float else "0"
        compare = "fcmp une" if source.is_float else "icmp ne"
        return f"  {{r}} = {compare} {old} {{a}}, {splat(zero, scalar(source), lanes)}\n"
    if source.is_float:
        return (
            _float_to_float(source, result, lanes)
            if result.is_float
            else (_float_to_int(source, result, lanes))
        )
    if result.is_float:
        return _int_to_float(source, result, lanes)
    if result.bits == source.bits:
        return _same(result, lanes, False)
    step = "trunc" if result.bits < source.bits else "sext" if source.kind == "i" else "zext"
    return f"  {{r}} = {step} {old} {{a}} to {new}\n"


def _float_to_int(source: DType, result: DType, lanes: int) -> str:
    text, value, element = "", "{a}", scalar(source)
    if element == "half":
        element, value = "float", "{r}.e"
        text = f"  {{r}}.e = fpext {register(source, lanes)} {{a}} to {vector('float', lanes)}\n"
    new, name = register(result, lanes), "fptosi" if result.kind == "i" else "fptoui"
    kinds = f"{mangled(scalar(result), lanes)}.{mangled(element, lanes)}"
    return text + (
        f"  {{r}} = call {new} @llvm.{name}.sat.{kinds}({vector(element, lanes)} {value})\n"
    )


def _int_to_float(source: DType, result: DType, lanes: int) -> str:
    step, old = "sitofp" if source.kind == "i" else "uitofp", register(source, lanes)
    if result in (dt.float32, dt.float64):
        return f"  {{r}} = {step} {old} {{a}} to {register(result, lanes)}\n"
    floats = vector("float", lanes)
    text = f"  {{r}}.w = {step} {old} {{a}} to {floats}\n"
    if result is dt.bfloat16:
        return text + _round_bfloat16("{r}.w", lanes)
    return text + f"  {{r}} = fptrunc {floats} {{r}}.w to {vector('half', lanes)}\n"


def _float_to_float(source: DType, result: DType, lanes: int) -> str:
    old, new, floats = register(source, lanes), register(result, lanes), vector("float", lanes)
    if result is dt.bfloat16:  # by way of float32
        if source is dt.float32:
            return _round_bfloat16("{a}", lanes)
        step = "fptrunc" if source is dt.float64 else "fpext"
        return f"  {{r}}.w = {step} {old} {{a}} to {floats}\n" + _round_bfloat16("{r}.w", lanes)
    if scalar(source) == scalar(result):
        return _same(result, lanes, False)
    if source is dt.float64 and result is dt.float16:
        return _double_to_half(lanes)
    if source is dt.float16 and result is dt.float64:
        return (
            f"  {{r}}.w = fpext {old} {{a}} to {floats}\n"
            f"  {{r}} = fpext {floats} {{r}}.w to {new}\n"
        )
    step = "fptrunc" if result.itemsize < source.itemsize or result is dt.float16 else "fpext"
    return f"  {{r}} = {step} {old} {{a}} to {new}\n"


def _double_to_half(lanes: int) -> str:
    """float64 to float16 with a single rounding, by way of a float32 rounded to odd (Boldo and
    Melquiond, 2008): most processors have no direct conversion."""
    doubles, floats, ints = (vector(t, lanes) for t in ("double", "float", "i32"))
    bit = vector("i1", lanes)
    return (
        f"  {{r}}.f = fptrunc {doubles} {{a}} to {floats}\n"
        f"  {{r}}.d = fpext {floats} {{r}}.f to {doubles}\n"
        f"  {{r}}.x = fcmp one {doubles} {{r}}.d, {{a}}\n"
        f"  {{r}}.p = call {doubles} @llvm.fabs.{mangled('double', lanes)}({doubles} {{r}}.d)\n"
        f"  {{r}}.q = call {doubles} @llvm.fabs.{mangled('double', lanes)}({doubles} {{a}})\n"
        f"  {{r}}.g = fcmp ogt {doubles} {{r}}.p, {{r}}.q\n"
        f"  {{r}}.i = bitcast {floats} {{r}}.f to {ints}\n"
        f"  {{r}}.s = sext {bit} {{r}}.g to {ints}\n"
        f"  {{r}}.t = add {ints} {{r}}.i, {{r}}.s\n"
        f"  {{r}}.z = zext {bit} {{r}}.x to {ints}\n"
        f"  {{r}}.o = or {ints} {{r}}.t, {{r}}.z\n"
        f"  {{r}}.h = bitcast {ints} {{r}}.o to {floats}\n"
        f"  {{r}} = fptrunc {floats} {{r}}.h to {vector('half', lanes)}\n"
    )


def _bitcast(source: DType, result: DType, lanes: int) -> str:
    stored = vector(memory(source), lanes)
    first = to_memory(source, lanes).replace("{r}", "{r}.s") or ""
    name = "{r}.s" if first else "{a}"
    target = vector(memory(result), lanes)
    last = from_memory(result, lanes).replace("{a}", "{r}.t")
    final = "{r}.t" if last else "{r}"
    return first + f"  {final} = bitcast {stored} {name} to {target}\n" + last


def to_memory(dtype: DType, lanes: int) -> str:
    """Register form to memory form; empty where they are the same."""
    if dtype.kind == "b":
        return f"  {{r}} = zext {vector('i1', lanes)} {{a}} to {vector('i8', lanes)}\n"
    if dtype is not dt.bfloat16:
        return ""
    ints = vector("i32", lanes)
    return (
        f"  {{r}}.i = bitcast {vector('float', lanes)} {{a}} to {ints}\n"
        f"  {{r}}.h = lshr {ints} {{r}}.i, {splat('16', 'i32', lanes)}\n"
        f"  {{r}} = trunc {ints} {{r}}.h to {vector('i16', lanes)}\n"
    )


def from_memory(dtype: DType, lanes: int) -> str:
    """Memory form to register form; empty where they are the same."""
    if dtype.kind == "b":
        return f"  {{r}} = icmp ne {vector('i8', lanes)} {{a}}, {splat('0', 'i8', lanes)}\n"
    if dtype is not dt.bfloat16:
        return ""
    ints = vector("i32", lanes)
    return (
        f"  {{r}}.z = zext {vector('i16', lanes)} {{a}} to {ints}\n"
        f"  {{r}}.i = shl {ints} {{r}}.z, {splat('16', 'i32', lanes)}\n"
        f"  {{r}} = bitcast {ints} {{r}}.i to {vector('float', lanes)}\n"
    )


# --- combining -----------------------------------------------------------------------------------

_HOLE = re.compile(r"\{([abr])\}")


def fill(text: str, r: str, a: str, b: str = "") -> str:
    """A template with other holes, or names, in its holes."""
    return _HOLE.sub(lambda hole: {"a": a, "b": b, "r": r}[hole[1]], text)  # all at once


@cache
def combine(mode: str, dtype: DType, lanes: int) -> str:
    """The template of a cell {a} combined with {b} by one of `ops.SCATTER_MODES` other than
    "set"."""
    if mode != "min":
        return template({"add": Op.ADD, "max": Op.MAX, "mul": Op.MUL}[mode], dtype, dtype, lanes)
    ty = register(dtype, lanes)
    if dtype.kind == "b":
        return f"  {{r}} = and {ty} {{a}}, {{b}}\n"
    if dtype.is_float:  # min(a, b) = -max(-a, -b), NaN included
        return (
            f"  {{r}}.na = fneg {ty} {{a}}\n  {{r}}.nb = fneg {ty} {{b}}\n"
            + fill(_max_float(dtype, lanes, False), "{r}.mx", "{r}.na", "{r}.nb")
            + f"  {{r}} = fneg {ty} {{r}}.mx\n"
        )
    name = "smin" if dtype.kind == "i" else "umin"
    kind = mangled(scalar(dtype), lanes)
    return f"  {{r}} = call {ty} @llvm.{name}.{kind}({ty} {{a}}, {ty} {{b}})\n"
