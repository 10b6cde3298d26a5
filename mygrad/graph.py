"""The tensor graph: whole-array primitives, interned and immutable.

    Node = (op, src: (Node, ...), arg, shape, dtype)      identity is equality

    op          src            arg                     shape and dtype
    BUFFER      ()             Buffer                  given; contiguous row-major
    CONST       ()             Python value            given; the value everywhere
    IOTA        ()             None                    (n,), 0 .. n-1, an integer dtype
    VARIABLE    ()             (name, low, high)       (), int64; bound to a value at run time
    alu         operands       CAST, BITCAST: DType    operands agree in shape and dtype
    REDUCE      (x,)           (op, axes)              axes removed; axes sorted, distinct
    SCAN        (x,)           (op, axis)              same
    movement    (x,)           see movement.py         see movement.py
    GATHER      (x, index)     axis                    index's shape, x's dtype
    SCATTER     (x, index, y)  (axis, mode)            x's shape and dtype; y like index
    SORT        (x,)           (axis, descending,      x's shape; the sorted values, or int64: a
                                values)                 stable argsort
    CONTIGUOUS  (x,)           None or a reason        same, but in memory of its own
    STORE       (buffer, x)    None                    x written into that BUFFER
    COPY        (x,)           device name             same, on another device
    JOIN        parts          None                    parts of one shape, side by side along a new
                                                       first axis; made by the scheduler only
    HOST        operands       HostCall                as the HostCall declares
    DETACH      (x,)           None or a label         same; no gradient flows through

GATHER reads x at index's own position with the coordinate along `axis` replaced by the index: all
other extents of x and index agree. SCATTER is its transpose. The meaning of every op stands in
ops.py. DETACH is no work and no memory: the scheduler drops it before it looks at structure. With a
label it marks the value of a gradient leaf, so that two leaves of equal value stay two nodes; that
is where reverse mode collects.

Interning: the key carries dtype, shape and the exact bits of constants, so `0.0`, `-0.0`, `0` and
`False` are four nodes. A node keeps the first user line that made it (`location`), which is no part
of its identity.

Invariants, held from construction on: operands agree as the table says; all operands live on one
device (a node without buffers has device None and runs anywhere); graphs may be 10^5 deep, so
nothing recurses over them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mygrad import dtype as dt
from mygrad import movement
from mygrad.dtype import DType
from mygrad.errors import (
    DeviceError,
    DTypeError,
    IndexRangeError,
    InternalError,
    ShapeError,
    message,
)
from mygrad.helpers import (
    UNKNOWN,
    KeyedRef,
    Location,
    Place,
    Shape,
    located,
    operands_first,
    prod,
    user_place,
)
from mygrad.ops import ALU, ARITY, COMBINE, MOVEMENT, SCATTER_MODES, SOURCE, Op
from mygrad.program import Buffer


@dataclass(frozen=True)
class HostCall:
    """A function of NumPy arrays with a declared result: what a HOST node runs.

    `function` gets one array per operand and returns an array of `shape` and `dtype`. `vjp(node,
    g)` gives the gradient of each operand as a node, or None, as the rules of autograd/vjp.py do.
    """

    function: Callable[..., Any]
    name: str
    shape: Shape
    dtype: DType
    vjp: Callable[..., Any] | None = None


class Node:
    """One primitive of the lazy graph. Build them with the functions of this module."""

    __slots__ = (
        *("__weakref__", "about", "arg", "device", "dtype", "op", "shape", "size", "src"),
        "where",
    )

    op: Op
    src: tuple[Node, ...]
    arg: Any
    shape: Shape
    size: int  # number of elements; the scheduler asks for it all the time
    dtype: DType
    device: str | None
    where: Location | Place  # the location, or what it can be found from
    about: tuple[Shape, DType, str | None]

    def __getattr__(self, name: str) -> Any:
        """`about`, made when it is first asked for: each call of a jitted function compares it,
        and one object is equal to itself at once."""
        if name != "about":
            raise AttributeError(f"a Node has no {name!r}")
        self.about = self.shape, self.dtype, self.device
        return self.about

    @property
    def location(self) -> Location:
        """The user's line that made the node first."""
        if not isinstance(self.where, Location):
            self.where = located(self.where)
        return self.where

    @location.setter
    def location(self, location: Location) -> None:
        self.where = location

    def __repr__(self) -> str:
        arg = "" if self.arg is None else f" {_arg_text(self.arg)}"
        return f"<{self.op.name}{arg} {self.shape} {self.dtype.name}>"


_interned: dict[tuple[Any, ...], KeyedRef[Node]] = {}
_attributed: Location | Place | None = None


def _forget(entry: KeyedRef[Node]) -> None:
    if _interned.get(entry.key) is entry:
        del _interned[entry.key]


def _intern(
    op: Op,
    src: tuple[Node, ...],
    arg: Any,
    shape: Shape,
    dtype: DType,
    device: str | None,
    arg_key: Any = None,
) -> Node:
    key = (op, src, arg if arg_key is None else arg_key, shape, dtype)
    entry = _interned.get(key)
    if entry is not None:
        found = entry()
        if found is not None:
            return found
    return _make(key, arg, device, _attributed or user_place())


def _make(key: tuple[Any, ...], arg: Any, device: str | None, where: Location | Place) -> Node:
    node = Node()
    node.op, node.src, _, node.shape, node.dtype = key
    node.arg, node.device, node.where = arg, device, where
    node.size = prod(node.shape)
    entry = KeyedRef(node, _forget)
    entry.key = key
    _interned[key] = entry
    return node


def attribute_to(where: Location | Place | None) -> None:
    """Give the nodes made from now on this place; None: the user's line again.

    For passes that make nodes on behalf of others: what a gradient computes belongs to the line of
    the operation that is differentiated, not to the line that asked for gradients.
    """
    global _attributed
    _attributed = where


def _common_device(op: Op, src: tuple[Node, ...]) -> str | None:
    device = src[0].device if src else None
    for s in src:
        if s.device is not None and s.device != device:
            if device is not None:
                raise DeviceError(
                    message(
                        op.name.lower(),
                        f"operands on {device} and {s.device}",
                        "all operands on one device",
                        "move one with .to(...)",
                    )
                )
            device = s.device
    return device


# --- sources --------------------------------------------------------------------------------------


def buffer(memory: Buffer, shape: Shape) -> Node:
    """The contents of a buffer, row-major in `shape`. It has no location: nothing computes it."""
    key = (Op.BUFFER, (), memory, shape, memory.dtype)
    entry = _interned.get(key)
    if entry is not None:
        found = entry()
        if found is not None:
            return found
    if prod(shape) > memory.size:
        raise InternalError(f"buffer: shape {shape} does not fit {memory!r}")
    return _make(key, memory, memory.device, UNKNOWN)


def const(value: bool | int | float, dtype: DType, shape: Shape = ()) -> Node:
    """`value`, converted to `dtype`, everywhere in `shape`.

    Raises:
        DTypeError: an integer type cannot hold the value.
    """
    if dtype.kind == "b":
        value, key = bool(value), ("b", bool(value))
    elif dtype.is_float:
        value = float(value)
        key = ("f", struct.pack("<d", value))  # type: ignore[assignment]
    else:
        if (
            value != value
            or value in (float("inf"), float("-inf"))
            or not dtype.min <= value <= dtype.max
        ):
            raise DTypeError(
                message(
                    "constant",
                    value,
                    f"a value of {dtype.name}",
                    "cast the tensor to a wider type first",
                )
            )
        value = int(value)
        key = ("i", value)  # type: ignore[assignment]
    return _intern(Op.CONST, (), value, shape, dtype, None, key)


def iota(n: int, dtype: DType = dt.index) -> Node:
    """0, 1, .. n-1.

    Raises:
        DTypeError: `dtype` is no integer type.
    """
    if not dtype.is_int:
        raise DTypeError(message("iota", dtype.name, "an integer type", "cast the result"))
    return _intern(Op.IOTA, (), None, (n,), dtype, None)


def variable(name: str, low: int, high: int) -> Node:
    """A run-time integer, low <= value <= high.

    Raises:
        ShapeError: low > high.
    """
    if low > high:
        raise ShapeError(message("variable", f"{name} from {low} to {high}", "low <= high"))
    return _intern(Op.VARIABLE, (), (name, low, high), (), dt.int64, None)


# --- alu ------------------------------------------------------------------------------------------

# what operations take, where that is not every type: (kinds, as told to the user, remedy)
_TAKES: dict[Op, tuple[str, str, str]] = {
    **dict.fromkeys(
        (Op.SQRT, Op.EXP, Op.LOG, Op.SIN, Op.TRUNC, Op.DIV),
        ("f", "a float type", "cast with .float()"),
    ),
    **dict.fromkeys((Op.IDIV, Op.MOD, Op.SHL, Op.SHR), ("iu", "an integer type", "cast first")),
    **dict.fromkeys((Op.AND, Op.OR, Op.XOR), ("biu", "an integer type or bool", "cast first")),
    Op.NEG: ("iuf", "a number", "use logical_not"),
}


def alu(op: Op, *src: Node) -> Node:
    """An elementwise operation (not a cast) on operands of one shape and dtype.

    Raises:
        ShapeError, DTypeError, DeviceError: operands do not agree, or op does not take the type.
    """
    first, last = src[0], src[-1]
    dtype, shape = last.dtype, last.shape
    if len(src) != 1 and (op is Op.WHERE or first.shape != shape or first.dtype is not dtype):
        _check_agreement(op, src)
    if len(src) != ARITY[op]:
        raise InternalError(f"{op.name.lower()}: {len(src)} operands")
    takes = _TAKES.get(op)
    if takes is not None and dtype.kind not in takes[0]:
        raise DTypeError(message(op.name.lower(), dtype.name, *takes[1:]))
    result = dt.bool_ if op in (Op.LT, Op.EQ) else dtype
    return _intern(op, src, None, shape, result, _common_device(op, src))


def _check_agreement(op: Op, src: tuple[Node, ...]) -> None:
    if any(s.shape != src[0].shape for s in src):
        shapes = " and ".join(str(s.shape) for s in src)
        raise ShapeError(
            message(op.name.lower(), f"shapes {shapes}", "equal shapes", "broadcast first")
        )
    where = op is Op.WHERE
    values = src[1:] if where else src
    if any(v.dtype is not values[0].dtype for v in values) or (
        where and src[0].dtype is not dt.bool_
    ):
        expected = "a bool condition and equal types" if where else "equal types"
        types = " and ".join(s.dtype.name for s in src)
        raise DTypeError(message(op.name.lower(), types, expected, "cast one side"))


def cast(x: Node, dtype: DType) -> Node:
    """Convert values to `dtype`."""
    if x.dtype is dtype:
        return x
    return _intern(Op.CAST, (x,), dtype, x.shape, dtype, x.device)


def bitcast(x: Node, dtype: DType) -> Node:
    """Reinterpret the bits of each element as a `dtype` of the same size.

    Raises:
        DTypeError: the sizes differ, or one type is bool.
    """
    if x.dtype is dtype:
        return x
    if x.dtype.itemsize != dtype.itemsize or "b" in (x.dtype.kind, dtype.kind):
        raise DTypeError(
            message(
                "bitcast", f"{x.dtype.name} to {dtype.name}", "two types of the same size, not bool"
            )
        )
    return _intern(Op.BITCAST, (x,), dtype, x.shape, dtype, x.device)


# --- combine --------------------------------------------------------------------------------------


def reduce(op: Op, x: Node, axes: Iterable[int]) -> Node:
    """Combine over `axes` with ADD, MUL or MAX; the axes disappear. No axes: x itself.

    Over an empty axis the result is the identity: 0, 1, or the smallest value.
    """
    axes = tuple(sorted(axes))
    _check_combine("reduce", op, x, axes)
    if not axes:
        return x
    shape = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    return _intern(Op.REDUCE, (x,), (op, axes), shape, x.dtype, x.device)


def scan(op: Op, x: Node, axis: int) -> Node:
    """Inclusive prefix combination along `axis`."""
    _check_combine("scan", op, x, (axis,))
    return _intern(Op.SCAN, (x,), (op, axis), x.shape, x.dtype, x.device)


def _check_combine(name: str, op: Op, x: Node, axes: tuple[int, ...]) -> None:
    if op not in COMBINE:
        raise InternalError(f"{name}: {op} is no combining operator")
    if len(set(axes)) != len(axes):
        raise ShapeError(message(name, f"axes {axes}", "distinct axes"))
    for axis in axes:
        _check_axis(name, axis, x.shape)


def _check_axis(name: str, axis: int, shape: Shape) -> None:
    if not 0 <= axis < len(shape):
        raise IndexRangeError(
            message(name, f"axis {axis}", f"0 <= axis < {len(shape)} for shape {shape}")
        )


# --- movement -------------------------------------------------------------------------------------


def move(op: Op, x: Node, arg: Any) -> Node:
    """A movement operation; see movement.py for the eight arguments. Moves that change nothing
    vanish."""
    shape = movement.out_shape(op, x.shape, arg)
    if movement.is_noop(op, x.shape, arg):
        return x
    return _intern(op, (x,), arg, shape, x.dtype, x.device)


# --- index ----------------------------------------------------------------------------------------


def gather(x: Node, index: Node, axis: int) -> Node:
    """x at index's positions with coordinate `axis` replaced by the index; 0 where that is out of
    range.

    Raises:
        ShapeError: x and the index differ on another axis.
        DTypeError: the index has no integer type.
        IndexRangeError: there is no such axis.
        DeviceError: operands on different devices.
    """
    _check_index("gather", x.shape, index, axis)
    return _intern(
        Op.GATHER, (x, index), axis, index.shape, x.dtype, _common_device(Op.GATHER, (x, index))
    )


def scatter(x: Node, index: Node, y: Node, axis: int, mode: str) -> Node:
    """x with y written (or combined, by mode) at positions with coordinate `axis` replaced by the
    index.

    Raises:
        ShapeError: x and the index differ on another axis; y has another shape than the index, or
            another type than x.
        DTypeError: the index has no integer type.
        IndexRangeError: there is no such axis.
        DeviceError: operands on different devices.
    """
    _check_index("scatter", x.shape, index, axis)
    if mode not in SCATTER_MODES:
        raise InternalError(f"scatter: mode {mode}")
    if y.shape != index.shape or y.dtype is not x.dtype:
        raise ShapeError(
            message(
                "scatter",
                f"updates {y.shape} {y.dtype.name}",
                f"index's shape {index.shape} and type {x.dtype.name}",
            )
        )
    src = (x, index, y)
    return _intern(Op.SCATTER, src, (axis, mode), x.shape, x.dtype, _common_device(Op.SCATTER, src))


def _check_index(name: str, shape: Shape, index: Node, axis: int) -> None:
    _check_axis(name, axis, shape)
    if not index.dtype.is_int:
        raise DTypeError(message(name, f"index of type {index.dtype.name}", "an integer type"))
    others = [(a, b) for i, (a, b) in enumerate(zip(shape, index.shape, strict=False)) if i != axis]
    if len(shape) != len(index.shape) or any(a != b for a, b in others):
        raise ShapeError(
            message(
                name,
                f"x {shape} and index {index.shape}",
                f"equal extents on all axes but {axis}",
                "expand one of them",
            )
        )


def sort(x: Node, axis: int, descending: bool = False, values: bool = False) -> Node:
    """The stable argsort along `axis`, int64, or the sorted values; NaN sorts last (first when
    descending)."""
    _check_axis("sort", axis, x.shape)
    dtype = x.dtype if values else dt.int64
    return _intern(Op.SORT, (x,), (axis, descending, values), x.shape, dtype, x.device)


# --- memory and calls -----------------------------------------------------------------------------


def contiguous(x: Node, reason: str | None = None) -> Node:
    """x in memory of its own: a kernel boundary on request, for a `reason` that plans show."""
    if x.op in (Op.BUFFER, Op.CONTIGUOUS):
        return x
    return _intern(Op.CONTIGUOUS, (x,), reason, x.shape, x.dtype, x.device)


def store(target: Node, x: Node) -> Node:
    """x written into the memory of the BUFFER node `target`; the value is x."""
    if target.op is not Op.BUFFER or (target.shape, target.dtype) != (x.shape, x.dtype):
        raise InternalError(f"store: {x!r} into {target!r}")
    return _intern(Op.STORE, (target, x), None, x.shape, x.dtype, target.device)


def copy(x: Node, device: str) -> Node:
    """x on another device."""
    if x.device == device:
        return x
    return _intern(Op.COPY, (x,), device, x.shape, x.dtype, device)


def join(parts: Sequence[Node]) -> Node:
    """Nodes of one shape and type side by side, along a new first axis."""
    first = parts[0]
    if any((p.shape, p.dtype) != (first.shape, first.dtype) for p in parts):
        raise InternalError(f"join: {parts!r}")
    device = _common_device(Op.JOIN, tuple(parts))
    return _intern(Op.JOIN, tuple(parts), None, (len(parts), *first.shape), first.dtype, device)


def host(call: HostCall, *src: Node) -> Node:
    """The result of a NumPy-level function of the operands."""
    return _intern(Op.HOST, src, call, call.shape, call.dtype, _common_device(Op.HOST, src))


def detach(x: Node, label: object = None) -> Node:
    """x for the eyes, a constant for derivatives. With a label (any object, by identity) a node of
    that label's own, e.g. the value of a gradient leaf."""
    if label is None:
        if x.op is Op.DETACH:
            return detach(x.src[0])
        if x.op in SOURCE or not x.dtype.is_float:  # nothing flows through these anyway
            return x
    return _intern(Op.DETACH, (x,), label, x.shape, x.dtype, x.device)


# --- walking --------------------------------------------------------------------------------------


def toposort(roots: Iterable[Node]) -> list[Node]:
    """Every node reachable from the roots, operands first; without recursion."""
    return operands_first(roots)


_BY_TYPE = ALU | MOVEMENT | {Op.REDUCE}  # operations that are what they are by shapes and types


def rebuild(node: Node, src: tuple[Node, ...]) -> Node:
    """The same operation on other operands."""
    op, arg = node.op, node.arg
    if op in _BY_TYPE:
        for new, old in zip(src, node.src, strict=True):
            if new.shape != old.shape or new.dtype is not old.dtype:
                break
        else:  # as a rule: then nothing that was checked can have changed
            return _intern(op, src, arg, node.shape, node.dtype, _common_device(op, src))
    if op in (Op.CAST, Op.BITCAST):
        return (cast if op is Op.CAST else bitcast)(src[0], arg)
    if op in ALU:
        return alu(op, *src)
    if op in MOVEMENT:
        return move(op, src[0], arg)
    return _REBUILD[op](arg, *src) if op in _REBUILD else node


_REBUILD: dict[Op, Callable[..., Node]] = {
    Op.REDUCE: lambda arg, x: reduce(arg[0], x, arg[1]),
    Op.SCAN: lambda arg, x: scan(arg[0], x, arg[1]),
    Op.GATHER: lambda arg, x, index: gather(x, index, arg),
    Op.SCATTER: lambda arg, x, index, y: scatter(x, index, y, *arg),
    Op.SORT: lambda arg, x: sort(x, *arg),
    Op.CONTIGUOUS: lambda arg, x: contiguous(x, arg),
    Op.STORE: lambda arg, target, x: store(target, x),
    Op.COPY: lambda arg, x: copy(x, arg),
    Op.JOIN: lambda arg, *src: join(src),
    Op.HOST: lambda arg, *src: host(arg, *src),
    Op.DETACH: lambda arg, x: detach(x, arg),
}


def rewrite(roots: Sequence[Node], new: Callable[[Node, dict[Node, Node]], Node]) -> list[Node]:
    """The roots with every node replaced by `new(node, done)`, operands first; `done` has what
    takes the place of the nodes before. What is made has the location of the node it is made for.
    """
    done: dict[Node, Node] = {}
    before = _attributed
    try:
        for node in toposort(roots):
            attribute_to(node.where)
            done[node] = new(node, done)
    finally:
        attribute_to(before)
    return [done[root] for root in roots]


def on_operands(node: Node, done: dict[Node, Node]) -> Node:
    """The same operation on what takes the place of its operands."""
    src = tuple([done[s] for s in node.src])
    return node if src == node.src else rebuild(node, src)


def restore(op: Op, arg: Any, src: tuple[Node, ...], shape: Shape, dtype: DType) -> Node:
    """The node of these fields, which are those of a node that once was made."""
    if op is Op.CONST:
        return const(arg, dtype, shape)
    device = arg if op is Op.COPY else _common_device(op, src)
    return _intern(op, src, arg, shape, dtype, device)


def substitute(roots: Iterable[Node], mapping: dict[Node, Node]) -> list[Node]:
    """The roots with nodes replaced, wherever they occur."""
    roots = list(roots)
    done = dict(mapping)
    for node in toposort(roots):
        if node not in done:
            done[node] = on_operands(node, done)
    return [done[root] for root in roots]


def text(roots: Iterable[Node]) -> str:
    """The graph, one node a line, operands by number."""
    number: dict[Node, int] = {}
    lines = []
    for node in toposort(roots):
        number[node] = len(number)
        arg = "" if node.arg is None else f" {_arg_text(node.arg)}"
        src = "".join(f" %{number[s]}" for s in node.src)
        lines.append(f"%{number[node]} = {node.op.name}{src}{arg} : {node.shape} {node.dtype.name}")
    return "\n".join(lines)


def _arg_text(arg: Any) -> str:
    if isinstance(arg, HostCall):
        return arg.name
    return arg.name if isinstance(arg, DType) else repr(arg)
