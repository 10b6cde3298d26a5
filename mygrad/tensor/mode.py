"""What is switched on around a block of code (gradients, training), and the marks that gradients go
by."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from contextlib import ContextDecorator
from typing import Any

from mygrad.graph import Node


class Mode:
    """Whether results carry gradients. Read by every operation, so a plain attribute."""

    gradients: bool = True


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

    def __init__(self, owner: Any, name: str, value: bool) -> None:
        self.owner, self.name, self.value = owner, name, value
        self.before: list[bool] = []

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
