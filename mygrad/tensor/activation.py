"""Activation functions. They decide the speed of networks, so each is a few primitives on e^-|x|,
which cannot overflow; the same expression serves the gradient. Half types are computed in float32
and rounded once, in both directions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mygrad.errors import DTypeError, message
from mygrad.tensor.special import Special

if TYPE_CHECKING:
    from typing_extensions import Self


class Activation(Special):
    """relu, sigmoid, gelu, silu, softplus and relatives."""

    __slots__ = ()

    def relu(self) -> Self:
        """max(x, 0); the gradient at 0 is 0."""
        return self.maximum(0)

    def relu6(self) -> Self:
        """min(max(x, 0), 6)."""
        return self.maximum(0).minimum(6)

    def leaky_relu(self, negative_slope: float = 0.01) -> Self:
        """x where positive, negative_slope * x elsewhere."""
        return (self > 0).where(self, self * negative_slope)

    def elu(self, alpha: float = 1.0) -> Self:
        """x where positive, alpha (e^x - 1) elsewhere."""
        x = self._as_float()
        positive = x > 0
        return positive.where(x, positive.where(0.0, x).expm1() * alpha)

    def selu(self) -> Self:
        """Scaled elu with a fixed point at mean 0 and variance 1 (Klambauer et al. 2017)."""
        return self.elu(1.6732632423543772848170429916717) * 1.0507009873554804934193349852946

    def celu(self, alpha: float = 1.0) -> Self:
        """max(x, 0) + min(0, alpha (e^(x / alpha) - 1))."""
        return (self / alpha).elu() * alpha

    def sigmoid(self) -> Self:
        """1 / (1 + e^-x), for negative x as e^x / (1 + e^x)."""
        x = self._as_float()
        if x.dtype.itemsize < 4:
            return x._through_float32(Activation.sigmoid)
        negative = x < 0
        e = negative.where(x, -x).exp()
        return negative.where(e, 1.0) / (e + 1)

    def logsigmoid(self) -> Self:
        """log sigmoid(x) = -softplus(-x)."""
        return -(-self).softplus()

    def softplus(self, beta: float = 1.0) -> Self:
        """log(1 + e^(beta x)) / beta = max(x, 0) + log(1 + e^-|beta x|) / beta."""
        x = self._as_float()
        if x.dtype.itemsize < 4:
            return x._through_float32(lambda wide: wide.softplus(beta))
        scaled = x if beta == 1 else x * beta
        negative = scaled < 0
        tail = negative.where(scaled, -scaled).exp()._log1p_near()
        result = negative.where(0.0, scaled) + tail
        return result if beta == 1 else result / beta

    def silu(self) -> Self:
        """x sigmoid(x)."""
        x = self._as_float()
        if x.dtype.itemsize < 4:
            return x._through_float32(Activation.silu)
        return x * x.sigmoid()

    swish = silu

    def gelu(self, approximate: str = "none") -> Self:
        """x Phi(x) with the normal distribution function Phi (Hendrycks and Gimpel 2016).

        approximate="tanh": 0.5 x (1 + tanh(z)) with z = sqrt(2 / pi) (x + 0.044715 x^3), which is x
        sigmoid(2 z).

        Raises:
            DTypeError: another word for `approximate`.
        """
        x = self._as_float()
        if x.dtype.itemsize < 4:
            return x._through_float32(lambda wide: wide.gelu(approximate))
        if approximate == "tanh":
            scale = 2 * math.sqrt(2 / math.pi)
            return x * (x * (x * x * (0.044715 * scale) + scale)).sigmoid()
        if approximate != "none":
            raise DTypeError(message("gelu", f"approximate {approximate!r}", "'none' or 'tanh'"))
        return x * 0.5 * ((x * math.sqrt(0.5)).erf() + 1)

    def quick_gelu(self) -> Self:
        """x sigmoid(1.702 x)."""
        x = self._as_float()
        if x.dtype.itemsize < 4:
            return x._through_float32(Activation.quick_gelu)
        return x * (x * 1.702).sigmoid()

    def mish(self) -> Self:
        """x tanh(softplus(x)) (Misra 2019): with n = e^x that is x (n^2 + 2 n) / (n^2 + 2 n +
        2)."""
        x = self._as_float()
        if x.dtype.itemsize < 4:
            return x._through_float32(Activation.mish)
        negative = x < 0
        e = negative.where(x, -x).exp()
        square = e * e
        numerator = negative.where(square + e * 2, e * 2 + 1)
        return x * (numerator / (numerator + negative.where(2.0, square * 2)))

    def softsign(self) -> Self:
        """x / (1 + |x|)."""
        return self / (self.abs() + 1)

    def hardtanh(self, min_value: float = -1.0, max_value: float = 1.0) -> Self:
        """x limited to [min_value, max_value]; the gradient at the limits is 0."""
        return self.maximum(min_value).minimum(max_value)

    def hardsigmoid(self) -> Self:
        """x / 6 + 1 / 2, limited to [0, 1]."""
        return (self + 3).relu6() / 6

    def hardswish(self) -> Self:
        """x hardsigmoid(x)."""
        return self * self.hardsigmoid()

    def tanhshrink(self) -> Self:
        """x - tanh(x)."""
        return self - self.tanh()

    def softshrink(self, lambd: float = 0.5) -> Self:
        """x moved toward 0 by lambd, 0 in between."""
        return (self > lambd).where(self - lambd, (self < -lambd).where(self + lambd, self * 0))

    def glu(self, axis: int = -1) -> Self:
        """a sigmoid(b) for the two halves of an axis (Dauphin et al. 2016)."""
        a, b = self.chunk(2, axis)  # type: ignore[attr-defined]
        return a * b.sigmoid()
