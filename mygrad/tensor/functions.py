"""Elementary functions, each derived from the few primitives NEG SQRT EXP LOG SIN TRUNC and
arithmetic.

The formulas are chosen so that values *and* the gradients that follow from them stay accurate for
small, large and infinite arguments: no branch that is not taken may produce an infinity (0 * inf
would poison its gradient), so e^x is taken of -|x|, and series replace differences of nearly equal
numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mygrad import dtype as dt
from mygrad.errors import DTypeError, message
from mygrad.ops import Op
from mygrad.tensor.base import Base
from mygrad.tensor.elementwise import Elementwise
from mygrad.tensor.nodes import Scalar, is_scalar

if TYPE_CHECKING:
    from typing_extensions import Self

LN2, LN10 = math.log(2), math.log(10)
SEEN = 1e-18  # its square is no denormal number of float32
_SMALL_POWER = 32  # whole exponents up to this are multiplied out

# tanh x = x - x^3/3 + 2x^5/15 - ...: coefficients of x^(2k) in tanh(x)/x
TANH = (
    1.0,
    -1 / 3,
    2 / 15,
    -17 / 315,
    62 / 2835,
    -1382 / 155925,
    21844 / 6081075,
    -929569 / 638512875,
    6404582 / 10854718875,
    -443861162 / 1856156927625,
    18888466084 / 194896477400625,
    -113927491862 / 2900518163668125,
    58870668456604 / 3698160658676859375,
)
EXPM1 = tuple(1 / math.factorial(k + 1) for k in range(16))
SINH = tuple(1 / math.factorial(2 * k + 1) for k in range(12))


class Functions(Elementwise):
    """exp, log, powers, trigonometric and hyperbolic functions."""

    __slots__ = ()

    def _float_unary(self, op: Op) -> Self:
        return self._as_float()._unary(op)

    def polynomial(self, coefficients: Sequence[float]) -> Self:
        """c[0] + c[1] x + c[2] x^2 + ..., by Horner's rule."""
        result = self * coefficients[-1] + coefficients[-2]
        for c in reversed(coefficients[:-2]):
            result = result * self + c
        return result

    def _terms(self, narrow: int, wide: int) -> int:
        """How many terms of a series this type needs."""
        return wide if self.dtype is dt.float64 else narrow

    # --- exponentials and logarithms ---

    def sqrt(self) -> Self:
        """The square root; NaN below 0."""
        return self._float_unary(Op.SQRT)

    def rsqrt(self) -> Self:
        """1 / sqrt(x)."""
        return self.sqrt().reciprocal()

    def exp(self) -> Self:
        """e^x."""
        return self._float_unary(Op.EXP)

    def exp2(self) -> Self:
        """2^x.

        2^n e^(f ln 2) with n whole and |f| <= 1/2: e^(x ln 2) alone would lose the digits of x ln
        2.
        """
        if self.dtype not in (dt.float32, dt.float64):
            return self._through_float32(Functions.exp2)
        limit = 1100.0 if self.dtype is dt.float64 else 160.0
        x = self.clamp(-limit, limit)
        n = x.round()
        half = (n * 0.5).trunc()
        scale = (
            half._power_of_two() * (n - half)._power_of_two()
        )  # in two steps: 2^n may leave the range
        return ((x - n) * LN2).exp() * scale

    def _power_of_two(self) -> Self:
        """2^n for a whole n within the normal range, by its exponent bits."""
        kind, bias, shift = (
            (dt.int64, 1023, 52) if self.dtype is dt.float64 else (dt.int32, 127, 23)
        )
        return ((self.detach().cast(kind) + bias) << shift).bitcast(self.dtype)

    def _through_float32(self, function: Any) -> Self:
        """A function computed in float32 and rounded back to a half type."""
        x = self._as_float()
        return function(x.float()).cast(x.dtype) if x.dtype.itemsize < 4 else function(x)

    def expm1(self) -> Self:
        """e^x - 1, accurate near 0: the power series for |x| < 0.5."""
        x = self._as_float()
        near = x.abs() < 0.5
        small = near.where(x, 0.0)
        series = small * small.polynomial(EXPM1[: x._terms(8, 14)])
        return near.where(series, x.exp() - 1)

    def log(self) -> Self:
        """The natural logarithm; -inf at 0, NaN below."""
        return self._float_unary(Op.LOG)

    def log2(self) -> Self:
        """log(x) / ln 2."""
        return self.log() / LN2

    def log10(self) -> Self:
        """log(x) / ln 10."""
        return self.log() / LN10

    def log1p(self) -> Self:
        """log(1 + x), accurate near 0."""
        x = self._as_float()
        near = x.abs() < 0.5
        return near.where(near.where(x, 0.0)._log1p_near(), (x + 1).log())

    def _log1p_near(self) -> Self:
        """log(1 + x) for -0.5 <= x <= 1: log u + (x - (u - 1)) / u repairs the rounding of u = 1 +
        x."""
        u = self + 1
        return u.log() + (self - (u - 1)) / u

    def logaddexp(self, other: Any) -> Self:
        """log(e^x + e^other) = max + log(1 + e^-|x - other|)."""
        a, b, carries = self._pair("logaddexp", other, floats=True)
        x, y = self._wrap(a, carries), self._wrap(b, carries)
        distance = (x == y).where(0.0, x - y)  # equal infinities have none
        return x.maximum(y) + (-distance.abs()).exp()._log1p_near()

    # --- powers ---

    def pow(self, exponent: Any) -> Self:
        """x ** exponent.

        Whole Python exponents of small size are multiplied out (any base, any type); others are
        e^(y log |x|) with the sign of an odd power, NaN for a negative base to a power that is not
        whole.

        Raises:
            DTypeError: an integer to a negative integer power.
        """
        if is_scalar(exponent):
            return self._pow_scalar(exponent.item() if hasattr(exponent, "item") else exponent)
        a, b, carries = self._pair("pow", exponent)
        x, y = self._wrap(a, carries), self._wrap(b, carries)
        return x._pow_float(y) if a.dtype.is_float else x._pow_integers(y)

    def _pow_scalar(self, exponent: Scalar) -> Self:
        if self.dtype.is_int and isinstance(exponent, int) and exponent < 0:
            raise DTypeError(
                message(
                    "pow",
                    f"{self.dtype.name} to the power {exponent}",
                    "a float base for a negative exponent",
                    "cast with .float()",
                )
            )
        x = self if isinstance(exponent, int) else self._as_float()
        if exponent in (0.5, -0.5):
            return x.sqrt() if exponent > 0 else x.rsqrt()
        if float(exponent).is_integer() and (abs(exponent) <= _SMALL_POWER or not x.dtype.is_float):
            return x._power(int(exponent))
        if float(exponent).is_integer():
            result = x._magnitude_power(exponent)
            return ((x < 0) if exponent % 2 else (x < float("-inf"))).where(-result, result)
        return x._magnitude_power(exponent).masked_fill(x < 0, float("nan"))

    def _magnitude_power(self, exponent: Scalar) -> Self:
        """|x| ** exponent for a float x and a number; at 0 exact, with a gradient of 0."""
        zero = self == 0
        result = (zero.where(1.0, self.abs()).log() * exponent).exp()
        return zero.where(0.0 if exponent > 0 else float("inf"), result)

    def _power(self, n: int) -> Self:
        """x ** n by squaring."""
        if n == 0:
            return self._map(self.ones_like().node)
        base, result = self, None
        left = abs(n)
        while left:
            if left & 1:
                result = base if result is None else result * base
            left >>= 1
            base = base * base if left else base
        assert result is not None
        return result if n > 0 else result.reciprocal()

    def _pow_float(self, y: Self) -> Self:
        zero, magnitude = self == 0, self.abs()
        result = (zero.where(1.0, magnitude).log() * y).exp()
        result = ((magnitude == 1) & ~y.isfinite()).where(1.0, result)
        at_zero = (y < 0).where(float("inf"), (y == 0).where(1.0, 0.0)).cast(self.dtype)
        result = zero.where(at_zero, result)
        whole, odd = y.trunc() == y, ((y * 0.5).trunc() * 2 != y) & (y.abs() < 2.0**53)
        negative = (odd & whole).where(-result, (whole | zero).where(result, float("nan")))
        return self._has_minus().where(negative, result)

    def _pow_integers(self, y: Self) -> Self:
        """By squaring, one step for each bit of the exponent; negative exponents give 0."""
        result, base = self.ones_like(), self
        for bit in range(y.dtype.bits - (y.dtype.kind == "i")):
            result = ((y >> bit) & 1 != 0).where(result * base, result)
            base = base * base
        return (y < 0).where(0, result)

    def rpow(self, base: Any) -> Self:
        """base ** x."""
        return self._lift(base).pow(self)

    __pow__, __rpow__ = pow, rpow

    def hypot(self, other: Any) -> Self:
        """sqrt(x^2 + other^2), scaled by the greater so that it does not overflow."""
        a, b, carries = self._pair("hypot", other, floats=True)
        x, y = self._wrap(a, carries).abs(), self._wrap(b, carries).abs()
        scale = x.maximum(y).detach()
        safe = ((scale > 0) & scale.isfinite()).where(scale, 1.0)
        return safe * ((x / safe).square() + (y / safe).square()).sqrt()

    # --- trigonometry ---

    def sin(self) -> Self:
        """The sine of x radians."""
        return self._float_unary(Op.SIN)

    def cos(self) -> Self:
        """1 - 2 sin(x/2)^2: halving is exact, where x + pi/2 would lose the low digits of a large
        x."""
        x = self._as_float()
        return 1 - (x * 0.5).sin().square() * 2

    def tan(self) -> Self:
        """sin x / cos x."""
        return self.sin() / self.cos()

    # --- hyperbolic functions ---

    def tanh(self) -> Self:
        """The hyperbolic tangent: (1 - e) / (1 + e) with e = e^(-2|x|), and its power series near
        0."""
        x = self._as_float()
        if x.dtype.itemsize < 4:
            return x._through_float32(Functions.tanh)
        negative = x < 0
        away = negative.where(x, -x)  # -|x|
        e = (away * 2).exp()
        tail = (1 - e) / (e + 1)
        near = away > -0.1732  # the series' remainder and the cancellation in 1 - e are below 4 ulp
        series = x._odd_series(near, away, TANH[: x._terms(4, 9)])
        return near.where(series, negative.where(-tail, tail))

    def _odd_series(self, near: Self, away: Self, coefficients: Sequence[float]) -> Self:
        """Where `near`, the series x (1 + c x^2 + ...) of an odd function; `away` is -|x|. The
        square of an x that is too small to be seen beside 1 is not taken: it is a denormal number,
        for which processors need a hundred cycles."""
        small = near.where(self, 0.0)
        seen = (near & (away < -SEEN)).where(away, 0.0)
        return small * (seen * seen).polynomial(coefficients)

    def sinh(self) -> Self:
        """(e^x - e^-x) / 2, and its power series for |x| < 1."""
        x = self._as_float()
        away = -x.abs()
        near = away > -1
        series = x._odd_series(near, away, SINH[: x._terms(5, 9)])
        return near.where(series, (x.exp() - (-x).exp()) * 0.5)

    def cosh(self) -> Self:
        """(e^x + e^-x) / 2."""
        x = self._as_float()
        return (x.exp() + (-x).exp()) * 0.5

    def asinh(self) -> Self:
        """sign(x) log(1 + |x| + x^2 / (1 + sqrt(1 + x^2))); log(2|x|) for large x, where x^2 would
        overflow."""
        x = self._as_float()
        negative = x < 0
        magnitude = negative.where(-x, x)  # not abs, whose gradient at 0 is 0
        large = magnitude > _large(x)
        m = large.where(1.0, magnitude)
        result = (m + m * m / ((m * m + 1).sqrt() + 1)).log1p()
        far = large.where(magnitude, 1.0).log() + LN2
        result = large.where(far, result)
        return negative.where(-result, result)

    def acosh(self) -> Self:
        """log(x + sqrt(x^2 - 1)) with t = x - 1 for accuracy near 1; NaN below 1."""
        x = self._as_float()
        large = x > _large(x)
        t = large.where(1.0, x) - 1
        return large.where(large.where(x, 1.0).log() + LN2, (t + (t * t + t * 2).sqrt()).log1p())

    def atanh(self) -> Self:
        """(log(1 + x) - log(1 - x)) / 2."""
        x = self._as_float()
        return (x.log1p() - (-x).log1p()) * 0.5


def _large(x: Base) -> float:
    """From here on 1 is nothing to x^2."""
    return {dt.float16: 100.0, dt.bfloat16: 1e4, dt.float32: 1e4, dt.float64: 1e8}[x.dtype]
