"""What a tensor is to the compiler (`Lazy`: something with a node), and how `jit` watches it.

While a function is captured, every `Lazy` that was made before the capture began and is read or
assigned is *touched*: the capture remembers it with the node it had. What changed at the end is
mutated state; what did not is captured input. Nothing else in mygrad knows about captures, except
for the few operations that cannot be captured, which call `forbid`. A capture watches the thread
that began it; another thread that reads captured state meanwhile finds stand-ins without values.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Hashable
from typing import Any

from mygrad.errors import CaptureError, message
from mygrad.graph import Node

_epochs = itertools.count(1)
_current: Capture | None = None

# Switches around a call that change what it computes (training, gradients, autocast,
# MYGRAD_WINOGRAD): part of the key of a capture.
switches: list[Callable[[], Hashable]] = []


class Capture:
    """One capture in progress.

    `touched` maps each older `Lazy` that was used to the node it had before; `fresh` lists host
    inputs that must be made anew for each replay (random keys): (BUFFER node, function that returns
    the array). `conditions` are values outside of the function that its capture depends on: (how to
    read one, the value).
    """

    def __init__(self, settle: Callable[[Lazy], Node]) -> None:
        self.epoch = next(_epochs)
        self.touched: dict[int, tuple[Lazy, Node]] = {}
        self.fresh: list[tuple[Node, Callable[[], Any]]] = []
        self.conditions: list[tuple[Callable[[], Hashable], Hashable]] = []
        self.thread = threading.get_ident()
        self._settle = settle

    def touch(self, lazy: Lazy) -> None:
        """Remember an older Lazy with its node, before the capture changes it. `settle` computes it
        if that was not done yet, and gives the node that stands for it during the capture."""
        lazy._epoch = self.epoch
        stand_in = self._settle(lazy)
        self.touched[id(lazy)] = (lazy, lazy._node)
        lazy._node = stand_in

    def __enter__(self) -> Capture:
        global _current
        if _current is not None:
            raise CaptureError(
                message(
                    "jit",
                    "a captured function that calls another one",
                    "one capture at a time",
                    "remove the inner jit",
                )
            )
        _current = self
        return self

    def __exit__(self, *_: object) -> None:
        global _current
        _current = None


class Lazy:
    """A value that is computed when it is needed: the base of Tensor."""

    __slots__ = ("__weakref__", "_epoch", "_node")

    def __init__(self, node: Node) -> None:
        self._node = node
        self._epoch = epoch()

    @classmethod
    def _wrap(cls, node: Node) -> Lazy:
        """A new value of this class."""
        made = cls.__new__(cls)
        Lazy.__init__(made, node)
        return made

    @property
    def node(self) -> Node:
        """The graph node of the value now."""
        if _current is not None and self._epoch != _current.epoch:
            _touch(self)
        return self._node

    @node.setter
    def node(self, node: Node) -> None:
        if _current is not None and self._epoch != _current.epoch:
            _touch(self)
        self._node = node


def epoch() -> int:
    """The number of the capture in progress, 0 if there is none."""
    return 0 if _current is None or _current.thread != threading.get_ident() else _current.epoch


def current() -> Capture | None:
    """The capture in progress in this thread, if any."""
    return _current if epoch() else None


def _touch(lazy: Lazy) -> None:
    making = current()
    if making is not None:
        making.touch(lazy)


def depends_on(read: Callable[[], Hashable]) -> None:
    """Say that what is being captured, if anything, holds only while `read()` gives what it gives
    now."""
    making = current()
    if making is not None:
        making.conditions.append((read, read()))


def forbid(operation: str, remedy: str) -> None:
    """Refuse what needs the values themselves, the `operation`, while a function is captured.

    Raises:
        CaptureError: a function is being captured.
    """
    if current() is not None:
        raise CaptureError(
            message(
                operation,
                "a call inside a jitted function",
                "values, which do not exist during capture",
                remedy,
            )
        )
