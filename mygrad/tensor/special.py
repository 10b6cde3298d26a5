"""erf and the inverse trigonometric functions, from polynomials.

Coefficients are Chebyshev interpolants, computed with 60 digits; the comment beside each gives the
greatest relative error on its interval. Two sets each: for float32 (and halves, which are computed
in it) and for float64.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mygrad import dtype as dt
from mygrad.dtype import DType
from mygrad.tensor.functions import Functions

if TYPE_CHECKING:
    from typing_extensions import Self

Coefficients = tuple[float, ...]

# erf(x) / x in z = x^2, 0 <= z <= 1
_ERF: dict[DType, Coefficients] = {
    dt.float32: (
        1.1283791658483509,
        -0.37612626666720334,
        0.11283594715160218,
        -0.026854212010626412,
        0.005189087423433974,
        -0.000801686428716587,
        7.875875062685488e-05,
    ),  # 1.3e-9
    dt.float64: (
        1.1283791670955126,
        -0.3761263890318375,
        0.11283791670954879,
        -0.026866170645076792,
        0.0052239776248180145,
        -0.000854832698083379,
        0.0001205533111164271,
        -1.4925595266831182e-05,
        1.6461000484121368e-06,
        -1.6350312701054695e-07,
        1.4659775274047436e-08,
        -1.1372848856791674e-09,
        5.957176147748911e-11,
    ),  # 1.5e-19
}
# e^(x^2) erfc(x) in u = 1 / (1 + x), from x = 1 to where erfc(x) is nothing beside 1
_ERFC: dict[DType, Coefficients] = {
    dt.float32: (
        -0.00037933407735159713,
        0.5728703042795839,
        0.48132213594768897,
        0.7038832286125938,
        -1.4696944936431025,
        0.8834816734311367,
        -0.1626278778583427,
    ),  # 1.9e-7
    dt.float64: (
        7.269234930558634e-08,
        0.5641849946252234,
        0.5643231101213178,
        0.2797232793396246,
        -0.2534267970062708,
        -0.9538495546361616,
        1.4427034530279914,
        -5.799905707163587,
        26.958209784229567,
        -58.41229808997053,
        41.47342756277677,
        92.04359430499882,
        -301.58360109042457,
        419.80677970157075,
        -338.5011589526191,
        154.61397155017454,
        -31.28278535627562,
    ),  # 3.8e-15
}
# atan(t) / t in z = t^2, 0 <= t <= tan(pi / 8)
_ATAN: dict[DType, Coefficients] = {
    dt.float32: (
        0.9999999993712282,
        -0.33333306893048514,
        0.19998183041083206,
        -0.14239532669648974,
        0.10569828806414448,
        -0.06026305227658459,
    ),  # 6.3e-10
    dt.float64: (
        1.0,
        -0.3333333333333312,
        0.19999999999940893,
        -0.14285714279250245,
        0.11111110744919658,
        -0.09090896809064027,
        0.07692045330902225,
        -0.06662951813629191,
        0.05846878297330872,
        -0.05035102456601552,
        0.03796525745386593,
        -0.017805397205419446,
    ),  # 1.3e-18
}


class Special(Functions):
    """erf, asin, acos, atan, atan2."""

    __slots__ = ()

    def erf(self) -> Self:
        """The error function: x P(x^2) up to |x| = 1, then 1 - e^(-x^2) Q(1 / (1 + |x|))."""
        x = self._as_float()
        if x.dtype.itemsize < 4:
            return x._through_float32(Special.erf)
        magnitude = x.abs()
        near = magnitude < 1
        small = near.where(x, 0.0)
        series = small * (small * small).polynomial(_ERF[x.dtype])
        far = near.where(1.0, magnitude).minimum(30.0)  # no infinities into the gradient
        tail = 1 - (-(far * far)).exp() * (far + 1).reciprocal().polynomial(_ERFC[x.dtype])
        return near.where(series, (x < 0).where(-tail, tail))

    def erfc(self) -> Self:
        """1 - erf(x)."""
        return 1 - self.erf()

    def atan(self) -> Self:
        """The inverse tangent in radians."""
        x = self._as_float()
        if x.dtype.itemsize < 4:
            return x._through_float32(Special.atan)
        negative = x < 0
        magnitude = negative.where(-x, x)  # not abs, whose gradient at 0 is 0
        large = magnitude > 1
        t = large.where(large.where(magnitude, 1.0).reciprocal(), magnitude)._atan_unit()
        t = large.where(math.pi / 2 - t, t)
        return negative.where(-t, t)

    def _atan_unit(self) -> Self:
        """atan(t) for 0 <= t <= 1; above tan(pi / 8) as pi / 4 + atan((t - 1) / (t + 1))."""
        upper = self > math.tan(math.pi / 8)
        t = upper.where((self - 1) / (self + 1), self)
        result = t * (t * t).polynomial(_ATAN[self.dtype])
        return upper.where(result + math.pi / 4, result)

    def asin(self) -> Self:
        """The inverse sine in radians, 2 atan(x / (1 + sqrt(1 - x^2))); NaN outside of [-1, 1]."""
        x = self._as_float()
        return (x / (((1 - x) * (x + 1)).sqrt() + 1)).atan() * 2

    def acos(self) -> Self:
        """The inverse cosine in radians, 2 atan(sqrt((1 - x) / (1 + x))); NaN outside of [-1,
        1]."""
        x = self._as_float()
        return ((1 - x) / (x + 1)).sqrt().atan() * 2

    def atan2(self, other: Any) -> Self:
        """The angle of the point (other, x) in radians, in [-pi, pi]."""
        a, b, carries = self._pair("atan2", other, floats=True)
        y, x = self._wrap(a, carries), self._wrap(b, carries)
        if y.dtype.itemsize < 4:
            return y.float().atan2(x.float()).cast(y.dtype)
        below, behind = y._has_minus(), x._has_minus()
        up, across = below.where(-y, y), behind.where(-x, x)
        steep = up > across
        low, high = steep.where(across, up), steep.where(up, across)
        undefined = (high == 0) | (
            (low == high) & low.isinf()
        )  # 0 / 0 is taken as 0, inf / inf as 1
        ratio = undefined.where(low.clamp(0.0, 1.0), low / undefined.where(1.0, high))
        angle = ratio._atan_unit()
        angle = steep.where(math.pi / 2 - angle, angle)
        angle = behind.where(math.pi - angle, angle)
        return below.where(-angle, angle)

    arcsin, arccos, arctan, arctan2 = asin, acos, atan, atan2
    arcsinh, arccosh, arctanh = Functions.asinh, Functions.acosh, Functions.atanh
