"""Initial values of parameters.

Every function returns a new Tensor that requires gradients, drawn from the generator that
`Tensor.manual_seed` seeds. `fan_in` and `fan_out` are the numbers of inputs that one output sums,
and of outputs that one input reaches: for a weight (out, in, *kernel) they are in * kernel and out
* kernel.

    LeCun et al., Efficient BackProp, 1998                     bound 1 / sqrt(fan_in)
    Glorot and Bengio, AISTATS 2010                            xavier
    He et al., Delving deep into rectifiers, 2015, 1502.01852  kaiming
"""

from __future__ import annotations

import math

from mygrad.helpers import Shape, prod
from mygrad.tensor import Tensor


def parameter(values: Tensor) -> Tensor:
    """The values as a parameter: a leaf that gradients are computed for."""
    return values.detach().requires_grad_(True)


def buffer(values: Tensor) -> Tensor:
    """The values as a part of the state that is no parameter."""
    return values.detach().requires_grad_(False)


def fans(shape: Shape) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight (out, in, *kernel)."""
    kernel = prod(shape[2:])
    return shape[1] * kernel, shape[0] * kernel


def constant(shape: Shape, value: float) -> Tensor:
    """`value` everywhere."""
    return parameter(Tensor.full(shape, float(value)))


def uniform(shape: Shape, bound: float) -> Tensor:
    """Uniform in [-bound, bound)."""
    return parameter((Tensor.rand(*shape) * 2.0 - 1.0) * bound)


def normal(shape: Shape, std: float = 1.0, mean: float = 0.0) -> Tensor:
    """Normal."""
    return parameter(Tensor.randn(*shape) * std + mean)


def fan_in_uniform(shape: Shape, fan_in: int) -> Tensor:
    """Uniform with bound 1 / sqrt(fan_in): what PyTorch's layers start from.

    PyTorch writes it as kaiming_uniform with a = sqrt(5), whose bound is sqrt(6 / (1 + a^2) /
    fan_in).
    """
    return uniform(shape, 1.0 / math.sqrt(fan_in) if fan_in else 0.0)


def kaiming_uniform(shape: Shape, a: float = 0.0) -> Tensor:
    """Uniform, keeps the variance through layers with (leaky, slope `a`) rectifiers."""
    return uniform(shape, math.sqrt(6.0 / ((1.0 + a * a) * fans(shape)[0])))


def kaiming_normal(shape: Shape, a: float = 0.0) -> Tensor:
    """Normal, keeps the variance through layers with (leaky, slope `a`) rectifiers."""
    return normal(shape, math.sqrt(2.0 / ((1.0 + a * a) * fans(shape)[0])))


def xavier_uniform(shape: Shape, gain: float = 1.0) -> Tensor:
    """Uniform, a compromise between keeping the variance forward and backward."""
    return uniform(shape, gain * math.sqrt(6.0 / sum(fans(shape))))


def xavier_normal(shape: Shape, gain: float = 1.0) -> Tensor:
    """Normal, a compromise between keeping the variance forward and backward."""
    return normal(shape, gain * math.sqrt(2.0 / sum(fans(shape))))
