"""exp, log and sin as LLVM text: polynomials over primitives, for scalars and vectors of any width.

Largest errors over the whole range, denormals included, in units in the last place (test_vmath.py
measures them against exact values):

             float    double
    exp      1.1      1.2
    log      1.1      0.9
    sin      2.1      2.1

float16 and bfloat16 go through float. Each is a template for `Emitter.apply`: the argument is
{a}, the result {r}, and other names start with {r}. Infinities, NaN and signed zeros come out as
IEEE 754 says.

Method: reduce the argument to a small interval (Cody and Waite, "Software Manual for the Elementary
Functions", 1980, with fused multiply-add), where a polynomial through the Chebyshev nodes is as
good as the best one to less than a bit. Integers are taken from the low bits of a float to which
1.5 * 2^23 (or 2^52) was added, which rounds to nearest and has no undefined cases. Arguments of
sin beyond the range of the reduction, which are rare, go to the C library, lane by lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mygrad.codegen.llvm_types import float_literal, mangled, splat, vector


class _Format(NamedTuple):
    """What the expansions must know of a binary floating-point type."""

    ints: str  # the integer type of the same width
    mantissa: int  # bits of the fraction
    bias: int
    smallest: float  # normal number
    exp_low: float  # exp is 0 below
    exp_high: float  # exp is infinite above
    sin_limit: float  # the largest argument that is reduced here


_FORMATS = {
    "float": _Format("i32", 23, 127, 2.0**-126, -104.0, 89.0, 65536.0),
    "double": _Format("i64", 52, 1023, 2.0**-1022, -746.0, 710.0, 2.0**24),
}
# log 2 and pi in pieces that are exact in the type, largest first
_LN2 = {
    "float": (0.6931471228599548, 5.769998878690785e-08),
    "double": (0.6931471805599453, 2.3190468138462996e-17),
}
_PI = {
    "float": (3.141592502593994, 1.5099578831723193e-07, 1.078060505991553e-14),
    "double": (3.141592653589793, 1.224646799147353e-16, 2.1657133478438278e-32),
}
# (exp(r) - 1 - r) / r^2 for |r| <= log(2) / 2, highest power first
_EXP = {
    "float": (
        0.0013926250831497611,
        0.008363232883682618,
        0.04166655421298415,
        0.16666576666119928,
        0.5,
    ),
    "double": (
        2.5100472505694996e-08,
        2.7620201591031547e-07,
        2.7557268276905696e-06,
        2.4801521057868204e-05,
        0.00019841269863171557,
        0.0013888888917367081,
        0.008333333333330039,
        0.041666666666623824,
        0.16666666666666669,
        0.5,
    ),
}
# (sin(r) - r) / r^3 in powers of r^2, for |r| <= pi / 2
_SIN = {
    "float": (
        -2.407828263191349e-08,
        2.7536381067442063e-06,
        -0.00019841085469334525,
        0.008333332764254275,
        -0.16666666663853422,
    ),
    "double": (
        -8.005646027219286e-18,
        2.810464851599201e-15,
        -7.647138974898878e-13,
        1.605904347656436e-10,
        -2.5052108382360896e-08,
        2.7557319223971086e-06,
        -0.00019841269841269806,
        0.008333333333333333,
        -0.16666666666666666,
    ),
}
# (log(1 + f) - f + f^2 / 2) / f^3 for |f| <= 1 / 3
_LOG_FLOAT = (
    -0.12125580650711652,
    0.13425749011418575,
    -0.1234619024512849,
    0.1411830990265524,
    -0.16670140691401691,
    0.20003780322455603,
    -0.24999987901255855,
    0.33333320168349617,
)
# (2 atanh(s) / s - 2) / s^2 in powers of s^2, for |s| <= (sqrt(2) - 1) / (sqrt(2) + 1)
_LOG_DOUBLE = (
    0.14617807153417325,
    0.15331611722055008,
    0.1818289243253687,
    0.22222211089379496,
    0.28571428626253836,
    0.3999999999989889,
    0.666666666666667,
)


class _Text:
    """Writes instructions on one type; every method returns the name, or constant, of its
    result."""

    def __init__(self, element: str, lanes: int) -> None:
        self.element, self.lanes, self.format = element, lanes, _FORMATS[element]
        self.floats, self.bits = vector(element, lanes), vector("i1", lanes)
        self.ints = vector(self.format.ints, lanes)
        self.lines: list[str] = []
        self._names = 0

    def _name(self) -> str:
        self._names += 1
        return f"{{r}}.{self._names}"

    def put(self, right: str) -> str:
        """A new name for the value of an instruction."""
        name = self._name()
        self.lines.append(f"  {name} = {right}\n")
        return name

    def const(self, value: float) -> str:
        return splat(float_literal(value, self.element), self.element, self.lanes)

    def int_const(self, value: int) -> str:
        return splat(str(value), self.format.ints, self.lanes)

    def op(self, instruction: str, a: str, b: str) -> str:
        return self.put(f"{instruction} {self.floats} {a}, {b}")

    def int_op(self, instruction: str, a: str, b: str) -> str:
        return self.put(f"{instruction} {self.ints} {a}, {b}")

    def fma(self, a: str, b: str, c: str) -> str:
        kind = mangled(self.element, self.lanes)
        ty = self.floats
        return self.put(f"call {ty} @llvm.fma.{kind}({ty} {a}, {ty} {b}, {ty} {c})")

    def polynomial(self, x: str, coefficients: Sequence[float]) -> str:
        """By Horner's rule, highest power first."""
        result = self.const(coefficients[0])
        for c in coefficients[1:]:
            result = self.fma(result, x, self.const(c))
        return result

    def to_bits(self, x: str) -> str:
        return self.put(f"bitcast {self.floats} {x} to {self.ints}")

    def from_bits(self, x: str) -> str:
        return self.put(f"bitcast {self.ints} {x} to {self.floats}")

    def scaled(self, x: str, n: str, some: str) -> str:
        """x * 2^n, rounded once, for some of the lanes, and 0 for the others."""
        kind, mask = _SCALE[self.element, self.lanes]
        ty, zero = self.floats, self.const(0.0)
        where = self.put(f"bitcast {self.bits} {some} to {mask}")
        return self.put(
            f"call {ty} @llvm.x86.avx512.mask.scalef.{kind}.512"
            f"({ty} {x}, {ty} {n}, {ty} {zero}, {mask} {where}, i32 4)"
        )

    def select(self, compare: str, a: str, b: str, yes: str, no: str) -> str:
        """`yes` where `a compare b`, else `no`; ordered comparisons are false for NaN."""
        where = self.put(f"fcmp {compare} {self.floats} {a}, {b}")
        return self.put(f"select {self.bits} {where}, {self.floats} {yes}, {self.floats} {no}")

    def rounded(self, x: str, factor: float, offset: int) -> tuple[str, str]:
        """n = the integer nearest to x * factor, as a float, and the bits of a float whose low
        bits are n + offset."""
        magic = self.const(1.5 * 2.0**self.format.mantissa + offset)
        shifted = self.fma(x, self.const(factor), magic)
        return self.op("fsub", shifted, magic), self.to_bits(shifted)

    def text(self, result: str) -> str:
        """All instructions, the last one naming {r}."""
        end = f"  {{r}} = select i1 true, {self.floats} {result}, {self.floats} {result}\n"
        return "".join(self.lines) + end


# scaling of a whole register by powers of two, where a processor has an instruction for it
_SCALE = {("float", 16): ("ps", "i16"), ("double", 8): ("pd", "i8")}


def exp(element: str, lanes: int, features: frozenset[str] = frozenset()) -> str:
    """exp(x) = 2^n * exp(r) with r = x - n log 2; 2^n as a product of two powers, which covers
    denormal and infinite results, or by the instruction that does the same. Zeros, as for what a
    mask hides, are not products that underflow: those take a processor twenty times as long."""
    t = _Text(element, lanes)
    f = t.format
    scales = (element, lanes) in _SCALE and "+avx512f" in features
    x = t.select("ogt", "{a}", t.const(f.exp_high), t.const(f.exp_high), "{a}")
    some = t.put(f"fcmp uge {t.floats} {{a}}, {t.const(f.exp_low)}")
    if not scales:
        x = t.put(f"select {t.bits} {some}, {t.floats} {x}, {t.floats} {t.const(0.0)}")
    n, bits = t.rounded(x, 1.4426950408889634, 2 * f.bias)
    r = x
    for piece in _LN2[element]:
        r = t.fma(n, t.const(-piece), r)
    p = t.fma(t.op("fmul", r, r), t.polynomial(r, _EXP[element]), r)
    p = t.op("fadd", p, t.const(1.0))
    if scales:
        return t.text(t.scaled(p, n, some))
    half = t.int_op("lshr", bits, t.int_const(1))
    for part in (half, t.int_op("sub", bits, half)):
        p = t.op("fmul", p, t.from_bits(t.int_op("shl", part, t.int_const(f.mantissa))))
    zero = t.const(0.0)
    return t.text(t.put(f"select {t.bits} {some}, {t.floats} {p}, {t.floats} {zero}"))


def log(element: str, lanes: int) -> str:
    """log(x) = e log 2 + log(1 + f), with x = 2^e (1 + f)."""
    t = _Text(element, lanes)
    f = t.format
    scale = 2.0**f.mantissa
    up = t.op("fmul", "{a}", t.const(scale))
    x = t.select("olt", "{a}", t.const(f.smallest), up, "{a}")
    shift = t.select("olt", "{a}", t.const(f.smallest), t.const(-f.mantissa), t.const(0.0))
    # the fraction starts at 2/3 for the polynomial, at sqrt(1/2) for the quotient
    start = 0x3F2AAAAB if element == "float" else 0x3FE6A09E667F3BCD
    bits = t.to_bits(x)
    power = t.int_op("ashr", t.int_op("sub", bits, t.int_const(start)), t.int_const(f.mantissa))
    m = t.from_bits(t.int_op("sub", bits, t.int_op("shl", power, t.int_const(f.mantissa))))
    e = t.op("fadd", t.put(f"sitofp {t.ints} {power} to {t.floats}"), shift)
    result = (_log_float if element == "float" else _log_double)(
        t, t.op("fsub", m, t.const(1.0)), e
    )
    infinite = t.const(float("inf"))
    result = t.select("oeq", "{a}", infinite, infinite, result)
    other = t.select("oeq", "{a}", t.const(0.0), t.const(float("-inf")), t.const(float("nan")))
    return t.text(t.select("ogt", "{a}", t.const(0.0), result, other))


def _log_float(t: _Text, f: str, e: str) -> str:
    square = t.op("fmul", f, f)
    p = t.fma(t.polynomial(f, _LOG_FLOAT), f, t.const(-0.5))
    p = t.fma(e, t.const(_LN2["float"][1]), t.op("fmul", p, square))
    return t.fma(e, t.const(_LN2["float"][0]), t.op("fadd", f, p))


def _log_double(t: _Text, f: str, e: str) -> str:
    """log(1 + f) = f - (f^2/2 - s (f^2/2 + R)), s = f / (2 + f), R = 2 atanh(s) / s - 2 (as in
    fdlibm)."""
    high, low = (t.const(piece) for piece in _LN2["double"])
    s = t.op("fdiv", f, t.op("fadd", f, t.const(2.0)))
    z = t.op("fmul", s, s)
    rest = t.op("fmul", z, t.polynomial(z, _LOG_DOUBLE))
    half = t.op("fmul", t.op("fmul", f, t.const(0.5)), f)
    inner = t.fma(s, t.op("fadd", half, rest), t.op("fmul", e, low))
    return t.fma(e, high, t.op("fsub", f, t.op("fsub", half, inner)))


def sin(element: str, lanes: int) -> str:
    """sin(x) = (-1)^n sin(r) with r = x - n pi."""
    t = _Text(element, lanes)
    f = t.format
    kind = mangled(element, lanes)
    magnitude = t.put(f"call {t.floats} @llvm.fabs.{kind}({t.floats} {{a}})")
    n, bits = t.rounded("{a}", 0.3183098861837907, 0)
    r = "{a}"
    for piece in _PI[element]:
        r = t.fma(n, t.const(-piece), r)
    square = t.op("fmul", r, r)
    y = t.fma(t.op("fmul", t.polynomial(square, _SIN[element]), square), r, r)
    sign = t.int_op("shl", bits, t.int_const(f.mantissa + (8 if element == "float" else 11)))
    y = t.from_bits(t.int_op("xor", t.to_bits(y), sign))
    y = t.select("oeq", "{a}", t.const(0.0), "{a}", y)  # keeps the sign of zero
    far = t.put(f"fcmp ogt {t.floats} {magnitude}, {t.const(f.sin_limit)}")
    some = far if not lanes else t.put(f"call i1 @llvm.vector.reduce.or.v{lanes}i1({t.bits} {far})")
    start, slow, done = ('%"{r}.' + part + '"' for part in ("start", "slow", "done"))
    t.lines.append(
        f"  br label {start}\n{start[1:]}:\n  br i1 {some}, label {slow}, label {done}\n"
        f"{slow[1:]}:\n"
    )
    exact = t.put(f"call {t.floats} @far_sin.{kind}({t.floats} {{a}})")
    mixed = t.put(f"select {t.bits} {far}, {t.floats} {exact}, {t.floats} {y}")
    t.lines.append(f"  br label {done}\n{done[1:]}:\n")
    return t.text(t.put(f"phi {t.floats} [ {y}, {start} ], [ {mixed}, {slow} ]"))


def helpers(body: str) -> str:
    """The functions that expansions in `body` call."""
    text = []
    for (element, lanes), (kind, mask) in _SCALE.items():
        name, ty = f"@llvm.x86.avx512.mask.scalef.{kind}.512", vector(element, lanes)
        if name in body:
            text.append(f"declare {ty} {name}({ty}, {ty}, {ty}, {mask}, i32)\n")
    for element in _FORMATS:
        for lanes in (0, *(1 << n for n in range(8))):
            kind, ty = mangled(element, lanes), vector(element, lanes)
            if f"@far_sin.{kind}(" in body:
                text.append(
                    f"define internal {ty} @far_sin.{kind}({ty} %x) cold noinline nounwind "
                    f'"prefer-vector-width"="512" {{\n'
                    f"  %y = call {ty} @llvm.sin.{kind}({ty} %x)\n  ret {ty} %y\n}}\n"
                )
    return "".join(text)
