"""What is switched on around a block of code (gradients, training, autocast), and the marks that
gradients go by."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from contextlib import ContextDecorator
from typing import Any

from mygrad import dtype as dt
from mygrad.dtype import DType
from mygrad.errors import DTypeError, message
from mygrad.graph import Node


class Mode:
    """Whether results carry gradients, and the type that products are computed in. Read by every
    operation, so plain attributes."""

    gradients: bool = True
    autocast: DType | None = None


mode = Mode()

# The last tensors that `backward` was called on. An optimiser computes those that still live
# together with the new parameters: a loss that is read after the step then needs no forward pass of
# its own.
differentiated: deque[weakref.ref[Any]] = deque(maxlen=8)


class Mark:
    """What an operation reads instead of a bare value: `DETACH(value, mark)`, a node of this mark
    alone.

    `tensor` refers to the leaf that `backward` gives the gradient to. `origin` is the expression
    that the value was computed from, through which gradients flow on; a leaf has none. A mark lives
    as long as a tensor or a graph that was built on it.
    """

    __slots__ = ("__weakref__", "origin", "tensor")

    def __init__(self, tensor: Any = None, origin: Node | None = None) -> None:
        self.tensor: Callable[[], Any] = (lambda: None) if tensor is None else weakref.ref(tensor)
        self.origin = origin

    def __repr__(self) -> str:
        return "leaf" if self.origin is None else "computed"


class Switch(ContextDecorator):
    """Sets an attribute for a block or for the calls of a function; can be nested and shared."""

    def __init__(self, owner: Any, name: str, value: Any) -> None:
        self.owner, self.name, self.value = owner, name, value
        self.before: list[Any] = []

    def __enter__(self) -> Switch:
        self.before.append(getattr(self.owner, self.name))
        setattr(self.owner, self.name, self.value)
        return self

    def __exit__(self, *_: object) -> None:
        setattr(self.owner, self.name, self.before.pop())


def no_grad() -> Switch:
    """`with no_grad():` or `@no_grad()`: results made inside carry no gradient."""
    return Switch(mode, "gradients", False)


def enable_grad() -> Switch:
    """`with enable_grad():` inside of no_grad: gradients again."""
    return Switch(mode, "gradients", True)


def autocast(dtype: DType | str = dt.bfloat16, enabled: bool = True) -> Switch:
    """`with autocast("bfloat16"):` or `@autocast("bfloat16")`: mixed precision.

    Inside, products (matmul, linear, einsum, convolutions, attention) of floats of up to 32 bits
    round their operands to `dtype`, add up in float32, and have results of type `dtype`. Sums,
    means, norms, softmax and losses of 16 bits are float32. Everything else has the type of its
    operands. Parameters stay float32, and so do their gradients.

    Raises:
        DTypeError: the type is neither bfloat16 nor float16.
    """
    chosen = dt.parse(dtype)
    if chosen not in (dt.bfloat16, dt.float16):
        raise DTypeError(message("autocast", chosen.name, "bfloat16 or float16"))
    return Switch(mode, "autocast", chosen if enabled else None)


def product_type(dtype: DType) -> DType:
    """The type of a product of operands that meet in `dtype`."""
    if mode.autocast is None or not dtype.is_float or dtype.itemsize > 4:
        return dtype
    return mode.autocast


def precise_type(dtype: DType) -> DType:
    """The type in which what needs more precision than a product has its result."""
    return (
        dt.float32 if mode.autocast is not None and dtype.is_float and dtype.itemsize < 4 else dtype
    )
