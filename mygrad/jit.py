"""`jit`: a function of tensors, captured once, then replayed as one prepared program.

    @jit
    def step(x, y):
        loss = model(x).cross_entropy(y)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        return loss

The first call with given shapes, dtypes and static arguments *captures*: the function runs on
stand-ins for its tensor arguments and for every older tensor that it reads, so that only the graph
is built. What it returns and what it changed become the results of a `Prepared` program. Each call,
the first included, then binds buffers and runs that program.

- Results are new tensors each time. State (parameters, moments, running statistics, anything
  assigned inside) is found by itself, read where it is at the time of the call and updated by it:
  in place, where the order of the kernels allows it (`schedule/overwrite.py`). Whoever else holds
  the values keeps them: state that is not alone in its memory gets memory of its own first.
- Random numbers are fresh in each call. Other data made inside from Python numbers is part of the
  program, and so are Python numbers that the function closes over: pass what changes as an
  argument, or keep it in a tensor.
- New shapes, dtypes, devices, static arguments or modes capture again. Modes are training,
  gradients, autocast and MYGRAD_WINOGRAD.
- What needs values during capture (`item`, `numpy`, `bool`, a boolean mask as an index) is a
  CaptureError at the user's line. A tensor that escapes from the function without being returned
  cannot be read afterwards.
- A call inside of another capture runs the plain function.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from sys import getrefcount
from typing import Any, Generic, ParamSpec, TypeVar

from mygrad import capture, graph, realize
from mygrad import dtype as dt
from mygrad.capture import Capture, Lazy
from mygrad.config import config
from mygrad.errors import CaptureError, message
from mygrad.graph import Node
from mygrad.helpers import picker, without_collections
from mygrad.program import Buffer
from mygrad.realize import Prepared
from mygrad.runtime import device as devices

P = ParamSpec("P")
R = TypeVar("R")

_ESCAPED = (
    "it was made inside a jitted function and not returned from it; return it, or, for a .grad "
    "that backward() left behind, call zero_grad() before the next backward()"
)

_capturing = threading.RLock()  # captures of other threads wait
capture.switches.append(lambda: config.MYGRAD_WINOGRAD)  # what `realize.prepare` depends on, too


class Leaves:
    """The different Lazys of flattened trees, numbered in the order in which they were met."""

    __slots__ = ("found", "number")

    def __init__(self) -> None:
        self.found: list[Lazy] = []
        self.number: dict[int, int] = {}

    def add(self, lazy: Lazy) -> int:
        """The number of a Lazy; the same Lazy twice has one number."""
        number = self.number.setdefault(id(lazy), len(self.found))
        if number == len(self.found):
            self.found.append(lazy)
        return number


def flatten(tree: Any, leaves: Leaves) -> Any:
    """The tree with every Lazy replaced by its number. Lists, tuples (named ones too) and dicts are
    trees; everything else is static."""
    if isinstance(tree, Lazy):
        return leaves.add(tree)
    if isinstance(tree, dict):
        return dict, tuple([(k, flatten(v, leaves)) for k, v in tree.items()])
    if isinstance(tree, (list, tuple)):
        return type(tree), tuple([flatten(v, leaves) for v in tree])
    return "static", (type(tree), tree)  # the type, because 1 == True == 1.0


_plain: dict[int, Any] = {}  # the trees of calls with so many different Lazys and nothing else


def _call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Sequence[Lazy], list[Node]]:
    """The flattened arguments of a call, the Lazys among them and their nodes. Calls with tensors
    alone, all different, are made without looking into each; equal ones have one tree."""
    if not kwargs and all(map(_is_lazy, set(map(type, args)))):
        nodes = list(map(_node, args))
        if len(set(nodes)) == len(nodes):
            if len(args) not in _plain:
                _plain[len(args)] = flatten((args, kwargs), Leaves())
            return _plain[len(args)], args, nodes
    leaves = Leaves()
    tree = flatten((args, kwargs), leaves)
    return tree, leaves.found, list(map(_node, leaves.found))


def _is_lazy(kind: type) -> bool:
    return issubclass(kind, Lazy)


def unflatten(shape: Any, leaves: Sequence[Any]) -> Any:
    """The inverse of `flatten`, with other leaves."""
    if isinstance(shape, int):
        return leaves[shape]
    kind, content = shape
    if kind == "static":
        return content[1]
    if kind is dict:
        return {k: unflatten(v, leaves) for k, v in content}
    parts = [unflatten(v, leaves) for v in content]
    return kind(*parts) if hasattr(kind, "_fields") else kind(parts)


@dataclass
class Captured:
    """One capture: the prepared program and where its inputs come from and its results go.

    `pick` takes the inputs, in the order of their slots, out of a list of the buffers of all
    arguments, of the `state` and of what is `fixed`. A state is a Lazy with its shape, and whether
    it is updated in place. `updates` pairs a Lazy, or the number of an argument, with the index of
    its new value among the roots.
    """

    prepared: Prepared
    read: frozenset[int]  # the places in that list that are picked
    pick: Callable[[Sequence[Any]], Sequence[Buffer]]
    state: list[tuple[Lazy, tuple[int, ...], bool]]
    fixed: list[Buffer]
    fresh: list[tuple[Buffer, Callable[[], Any]]]
    updates: list[tuple[Lazy | int, int, tuple[int, ...]]]
    outputs: list[tuple[type[Lazy], int, tuple[int, ...]]]
    tree: Any
    conditions: list[tuple[Callable[[], Hashable], Hashable]]

    def holds(self) -> bool:
        """Whether what the capture depended on outside of the function is as it was."""
        return not self.conditions or all(read() == value for read, value in self.conditions)

    def run(self, arguments: Sequence[Lazy], nodes: Sequence[Node]) -> Any:
        """Bind, run, and hand out the results; `nodes` are those of the arguments.

        Raises:
            CaptureError: captured state has another shape than at the capture.
        """
        if _BUFFERS.issuperset(map(_op, nodes)):
            found = list(map(_arg, nodes))
        else:
            found = [current_buffer(a) if n in self.read else None for n, a in enumerate(arguments)]
        for lazy, shape, in_place in self.state:
            if in_place:
                hold_alone(lazy)
            if lazy._node.shape != shape:
                raise CaptureError(
                    message(
                        "jit",
                        f"captured state of shape {lazy._node.shape}",
                        f"shape {shape}, as at the capture",
                        "jit the function again",
                    )
                )
            found.append(current_buffer(lazy))
        found += self.fixed
        for buffer, make in self.fresh:
            devices.get(buffer.device).write(buffer.memory, dt.to_storage(make(), buffer.dtype))
        made = self.prepared.run(self.pick(found), {})
        for target, root, shape in self.updates:
            lazy = arguments[target] if isinstance(target, int) else target
            lazy._node = graph.buffer(made[root], shape)
        results = [cls._wrap(graph.buffer(made[root], shape)) for cls, root, shape in self.outputs]
        return unflatten(self.tree, results)


# asking many at once, without a step of Python for each
_node, _op, _arg, _about = map(attrgetter, ("_node", "op", "arg", "about"))
_BUFFERS = frozenset({graph.Op.BUFFER})


def current_buffer(lazy: Lazy) -> Buffer:
    """The buffer with the values of a Lazy, computed now if it was not."""
    node = lazy._node
    if node.op is not graph.Op.BUFFER:
        resident = realize.resident(node)
        if resident is None:
            resident = realize.realize([node])[0]
            lazy._node = resident
        node = resident
    return node.arg  # type: ignore[no-any-return]


def _references(lazy: Lazy) -> tuple[int, int]:
    """To the node of a Lazy, and to its buffer."""
    node = lazy._node
    return getrefcount(node), getrefcount(node.arg)


_ALONE = _references(Lazy(graph.buffer(Buffer("", dt.uint8, 1), (1,))))


def hold_alone(lazy: Lazy) -> None:
    """Give a Lazy a copy of its values, in a buffer of its own, if anything else refers to the one
    it has: another tensor, or a graph that is not computed yet. Then it can be overwritten."""
    current_buffer(lazy)
    if _references(lazy) != _ALONE:
        lazy._node = graph.buffer(realize.copy(lazy._node.arg), lazy._node.shape)


class jit(Generic[P, R]):
    """Capture `function` and replay it; see the module's docstring.

    >>> double = jit(lambda x: x * 2)      # doctest: +SKIP
    >>> double(Tensor([1.0, 2.0])).tolist()
    [2.0, 4.0]

    Args:
        memory_budget: bytes that a call may need beside what exists before it: intermediates and
            results. Where they are not enough, some arrays are computed twice instead of kept
            (`schedule/remat.py`). `peak_bytes` says what was needed.

    Raises:
        CaptureError: the function does something that cannot be captured, a static argument cannot
            be hashed, or captured state has another shape than at the capture.
        DeviceError: the memory budget cannot be met.
    """

    def __init__(self, function: Callable[P, R], memory_budget: int | None = None) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.memory_budget = memory_budget
        self.captured: dict[Hashable, list[Captured]] = {}
        # the call before: its tree, what its arguments were like, the modes, and its captures
        self._before: tuple[Any, list[Any], list[Hashable], list[Captured]] | None = None

    @property
    def peak_bytes(self) -> int:
        """Bytes that a call needs beside what exists before it, the largest of all captures; known
        after the first call."""
        found = [c.prepared.peak_bytes for known in self.captured.values() for c in known]
        return max(found, default=0)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if capture.current() is not None:  # inside of another capture it is an ordinary function
            return self.function(*args, **kwargs)
        tree, arguments, nodes = _call(args, kwargs)
        about = list(map(_about, nodes))
        modes = [switch() for switch in capture.switches]
        before = self._before
        # a training loop asks the same again: comparing is cheaper than hashing
        if before is not None and before[0] is tree and before[1] == about and before[2] == modes:
            known = before[3]
        else:
            known = self._known((tree, tuple(about), tuple(modes)))
            self._before = tree, about, modes, known
        found = next(filter(Captured.holds, known), None)
        if found is None:
            with _capturing, without_collections():
                found = self._capture(tree, arguments)
            known.append(found)
            nodes = list(map(_node, arguments))
        return found.run(arguments, nodes)  # type: ignore[no-any-return]

    def _known(self, key: Hashable) -> list[Captured]:
        """The captures for such arguments."""
        try:
            return self.captured.setdefault(key, [])
        except TypeError as error:
            raise CaptureError(
                message(
                    "jit",
                    f"a static argument that cannot be hashed ({error})",
                    "tensors, numbers, strings and lists or dicts of them",
                    "wrap arrays in Tensor(...)",
                )
            ) from None

    def _capture(self, tree: Any, arguments: Sequence[Lazy]) -> Captured:
        realize.realize([a._node for a in arguments])
        stand_ins: dict[int, Node] = {}

        def settle(lazy: Lazy) -> Node:
            buffer = current_buffer(lazy)
            stand_in = Buffer(buffer.device, buffer.dtype, buffer.size)
            stand_in.why_unreadable = _ESCAPED
            stand_ins[id(lazy)] = graph.buffer(stand_in, lazy._node.shape)
            return stand_ins[id(lazy)]

        watch = Capture(settle)
        try:
            with watch:
                for a in arguments:
                    watch.touch(a)
                args, kwargs = unflatten(tree, arguments)
                result = self.function(*args, **kwargs)
            return _assemble(watch, stand_ins, arguments, result, self.memory_budget)
        finally:
            for lazy, before in watch.touched.values():
                lazy._node = before


def _assemble(
    watch: Capture,
    stand_ins: dict[int, Node],
    arguments: Sequence[Lazy],
    result: Any,
    budget: int | None,
) -> Captured:
    leaves = Leaves()
    tree = flatten(result, leaves)
    returned = leaves.found
    changed = [lazy for lazy, _ in watch.touched.values() if lazy._node is not stand_ins[id(lazy)]]
    unique = list(dict.fromkeys(lazy._node for lazy in returned + changed))
    place = {n: i for i, n in enumerate(unique)}
    number = {id(a): i for i, a in enumerate(arguments)}
    own = [
        (place[lazy._node], stand_ins[id(lazy)].arg) for lazy in changed if id(lazy) not in number
    ]
    prepared, buffers = realize.prepare(unique, budget, own)
    slot = {id(b): i for i, b in enumerate(buffers)}

    def slot_of(lazy: Lazy) -> int | None:
        return slot.get(id(stand_ins[id(lazy)].arg))

    source = {s: i for i, a in enumerate(arguments) if (s := slot_of(a)) is not None}
    state: list[tuple[Lazy, tuple[int, ...], bool]] = []
    for lazy, _ in watch.touched.values():
        if id(lazy) not in number and (s := slot_of(lazy)) is not None:
            source[s] = len(arguments) + len(state)
            state.append((lazy, stand_ins[id(lazy)].shape, s in prepared.overwrites))
    fixed = [i for i in range(len(buffers)) if i not in source]
    source |= {s: len(arguments) + len(state) + n for n, s in enumerate(fixed)}
    updates: list[tuple[Lazy | int, int, tuple[int, ...]]] = [
        (number.get(id(lazy), lazy), place[lazy._node], lazy._node.shape) for lazy in changed
    ]
    return Captured(
        prepared,
        frozenset(source.values()),
        picker([source[s] for s in range(len(buffers))]),
        state,
        [buffers[s] for s in fixed],
        [(node.arg, make) for node, make in watch.fresh if id(node.arg) in slot],
        updates,
        [(type(lazy), place[lazy._node], lazy._node.shape) for lazy in returned],
        tree,
        watch.conditions,
    )
