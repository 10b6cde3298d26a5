"""Activations as Modules, for Sequential; each is the Tensor method of the same meaning."""

from __future__ import annotations

from mygrad.errors import ConfigError, message
from mygrad.nn.module import Module
from mygrad.tensor import Tensor


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu()


class LeakyReLU(Module):
    """x where positive, else negative_slope * x."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        return x.leaky_relu(self.negative_slope)

    def extra_repr(self) -> str:
        return f"{self.negative_slope}"


class Sigmoid(Module):
    """1 / (1 + exp(-x))."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sigmoid()


class Tanh(Module):
    """Hyperbolic tangent."""

    def forward(self, x: Tensor) -> Tensor:
        return x.tanh()


class SiLU(Module):
    """x * sigmoid(x). Elfwing et al. 2017, 1702.03118."""

    def forward(self, x: Tensor) -> Tensor:
        return x.silu()


class GELU(Module):
    """x * P(standard normal < x). Hendrycks and Gimpel 2016, 1606.08415.

    `approximate` is "none" (by erf) or "tanh", as in PyTorch.
    """

    def __init__(self, approximate: str = "none") -> None:
        if approximate not in ("none", "tanh"):
            raise ConfigError(message("GELU", f"approximate={approximate!r}", "'none' or 'tanh'"))
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return x.gelu(approximate=self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class Softmax(Module):
    """exp(x) / sum(exp(x)) along an axis."""

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(axis=self.axis)

    def extra_repr(self) -> str:
        return f"axis={self.axis}"


class LogSoftmax(Softmax):
    """x - log(sum(exp(x))) along an axis."""

    def forward(self, x: Tensor) -> Tensor:
        return x.log_softmax(axis=self.axis)
