"""The executable meaning of the tensor graph: NumPy, op by op, slow and obvious.

    evaluate(node, read)        the values of one node
    evaluate_all(nodes, read)   of several, sharing what they have in common

One table row per primitive, nothing fused. This is what every compiled result is compared with.
Values are NumPy arrays as `dtype.from_storage` gives them: bfloat16 is float32 rounded to bfloat16
after every operation.

Memory is seen as it was before the evaluation began: a STORE has the value that it would write, and
writing it is the caller's business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from mygrad import dtype as dt
from mygrad import movement, numeric
from mygrad.errors import InternalError, ShapeError, message
from mygrad.graph import HostCall, Node, toposort
from mygrad.ops import ALU, MOVEMENT, Op
from mygrad.program import Buffer

Array = np.ndarray[Any, Any]
Reader = Callable[[Buffer], Array]  # the stored elements of a buffer, one-dimensional
Rule = Callable[..., Array]  # (node, *values of its operands)


def evaluate(
    node: Node, read: Reader | None = None, variables: Mapping[str, int] | None = None
) -> Array:
    """The values of `node` as a new array of its shape (bfloat16 as float32).

    >>> evaluate(graph.alu(Op.MUL, graph.iota(4), graph.iota(4)))
    array([0, 1, 4, 9])
    """
    return evaluate_all([node], read, variables)[0]


def evaluate_all(
    nodes: Iterable[Node], read: Reader | None = None, variables: Mapping[str, int] | None = None
) -> list[Array]:
    """The values of `nodes`. `read` gives the stored elements of BUFFER nodes, `variables` the
    values of VARIABLE nodes by name.

    Raises:
        ShapeError: a HOST function broke its declaration, or a variable is outside of its range.
    """
    nodes = list(nodes)
    order = toposort(nodes)
    uses = Counter(s for node in order for s in node.src)
    uses.update(nodes)
    values: dict[Node, Array] = {}
    for node in order:
        values[node] = _evaluate_one(node, [values[s] for s in node.src], read, variables or {})
        for s in node.src:  # a deep graph must not keep an array for each of its nodes
            uses[s] -= 1
            if not uses[s]:
                values.pop(s, None)
    return [np.array(values[node]) for node in nodes]


def _evaluate_one(
    node: Node, operands: list[Array], read: Reader | None, variables: Mapping[str, int]
) -> Array:
    op = node.op
    if op in ALU:
        value = numeric.evaluate_alu(op, operands, node.dtype)
    elif op in MOVEMENT:
        value = movement.apply(op, operands[0], node.arg)
    elif op is Op.BUFFER:
        value = _buffer(node, read)
    elif op is Op.VARIABLE:
        value = _variable(node, variables)
    else:
        value = RULES[op](node, *operands)
    if value.shape != node.shape or value.dtype != numeric.value_dtype(node.dtype):
        raise InternalError(f"interpret: {node!r} came out as {value.shape} {value.dtype}")
    return value


# --- sources -------------------------------------------------------------------------------------


def _buffer(node: Node, read: Reader | None) -> Array:
    if read is None:
        raise InternalError(f"interpret: {node!r} needs a reader")
    return dt.from_storage(read(node.arg)[: node.size].reshape(node.shape), node.dtype)


def _variable(node: Node, variables: Mapping[str, int]) -> Array:
    name, low, high = node.arg
    if name not in variables:
        raise ShapeError(
            message("variable", f"no value of {name}", "a value for each variable", "bind it")
        )
    if not low <= variables[name] <= high:
        raise ShapeError(
            message("variable", f"{name} = {variables[name]}", f"{low} <= {name} <= {high}")
        )
    return np.array(variables[name], np.int64)


def _const(node: Node) -> Array:
    with np.errstate(over="ignore"):  # a float too large for its type is infinite
        value = np.array(node.arg, np.float64 if node.dtype.is_float else node.dtype.storage)
        return np.broadcast_to(numeric.cast(value, node.dtype), node.shape)


def _iota(node: Node) -> Array:
    return np.arange(node.size).astype(node.dtype.storage)


# --- index ---------------------------------------------------------------------------------------


def _gather(node: Node, x: Array, index: Array) -> Array:
    axis, at = node.arg, index.astype(np.int64)
    inside = _inside(index, x.shape[axis])
    if not inside.any():
        return np.zeros(index.shape, x.dtype)
    found = np.take_along_axis(x, np.where(inside, at, 0), axis)
    return np.where(inside, found, np.zeros((), x.dtype))


def _inside(index: Array, extent: int) -> Array:
    return (index >= 0) & (index < extent)


def _scatter(node: Node, x: Array, index: Array, y: Array) -> Array:
    axis, mode = node.arg
    places: list[Array] = list(np.indices(index.shape, np.int64))
    places[axis] = index.astype(np.int64)
    inside = _inside(index, x.shape[axis])
    cells = np.array(x, order="C")  # so that reshape(-1) is the same memory
    if inside.any():
        flat = np.ravel_multi_index([place[inside] for place in places], x.shape)
        numeric.scatter(cells.reshape(-1), flat, y[inside], mode, node.dtype)
    return cells


def argsort(x: Array, axis: int, descending: bool) -> Array:
    """A stable argsort; NaN counts as the greatest value."""
    if not descending:
        return np.argsort(x, axis, kind="stable").astype(np.int64)
    # twice reversed: greatest first, and equal keys in their first order again
    backwards = np.argsort(np.flip(x, axis), axis, kind="stable")
    return np.flip(x.shape[axis] - 1 - backwards, axis).astype(np.int64)


def _sort(x: Array, axis: int, descending: bool, values: bool) -> Array:
    order = argsort(x, axis, descending)
    return np.take_along_axis(x, order, axis) if values else order


# --- calls ---------------------------------------------------------------------------------------


def call_host(call: HostCall, operands: Iterable[Array]) -> Array:
    """The value of a HOST node.

    Raises:
        ShapeError: the function's result has not the declared shape.
    """
    value = np.asarray(call.function(*operands))
    if value.shape != call.shape:
        raise ShapeError(
            message(
                call.name,
                f"a result of shape {value.shape}",
                f"the declared shape {call.shape}",
                "correct the declaration",
            )
        )
    return numeric.cast(value, call.dtype)


RULES: dict[Op, Rule] = {
    Op.CONST: _const,
    Op.IOTA: _iota,
    Op.REDUCE: lambda node, x: numeric.reduce(node.arg[0], x, node.arg[1], node.dtype),
    Op.SCAN: lambda node, x: numeric.scan(node.arg[0], x, node.arg[1], node.dtype),
    Op.GATHER: _gather,
    Op.SCATTER: _scatter,
    Op.SORT: lambda node, x: _sort(x, *node.arg),
    Op.CONTIGUOUS: lambda node, x: x,
    Op.STORE: lambda node, target, x: x,
    Op.COPY: lambda node, x: x,
    Op.JOIN: lambda node, *parts: np.stack(parts),
    Op.DETACH: lambda node, x: x,
    Op.HOST: lambda node, *operands: call_host(node.arg, operands),
}
