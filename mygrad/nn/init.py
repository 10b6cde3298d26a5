"""Initial values of the layers' parameters, drawn from the generator that `Tensor.manual_seed`
seeds.

Others, by He et al. and Glorot and Bengio, are `Tensor.kaiming_uniform` and its neighbours: give
them to `parameter`, or pass them `requires_grad=True`.
"""

from __future__ import annotations

from mygrad.helpers import Shape
from mygrad.tensor import Tensor


def parameter(values: Tensor) -> Tensor:
    """The values as a parameter: a leaf that gradients are computed for."""
    return values.detach().requires_grad_(True)


def buffer(values: Tensor) -> Tensor:
    """The values as a part of the state that is no parameter."""
    return values.detach().requires_grad_(False)


def constant(shape: Shape, value: float) -> Tensor:
    """`value` everywhere."""
    return parameter(Tensor.full(shape, float(value)))


def normal(shape: Shape, std: float = 1.0) -> Tensor:
    """Normal with mean 0."""
    return parameter(Tensor.normal(shape, std=std))


def fan_in_uniform(shape: Shape, fan_in: int) -> Tensor:
    """Uniform in +-1 / sqrt(fan_in), where fan_in inputs are summed for an output: what PyTorch's
    layers start from. LeCun et al., Efficient BackProp, 1998; PyTorch writes it as
    kaiming_uniform(a=sqrt(5)).
    """
    bound = fan_in**-0.5 if fan_in else 0.0
    return parameter(Tensor.uniform(shape, low=-bound, high=bound))
