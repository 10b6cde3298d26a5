"""Reverse derivatives: one row per primitive, one rule per operand.

    VJP[op] = (rule or None, ...)        rule(node, g) -> the gradient of that operand

`g` is the gradient of the node: same shape, same dtype. Rules build ordinary graph nodes, so a
gradient can be differentiated again. They reuse `node` (the output) where that saves work or
memory; what two rules of a row have in common is built once, because nodes are interned. None: the
operand has no gradient.

A HOST node brings its own rule in its HostCall.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from mygrad import dtype as dt
from mygrad import graph, movement
from mygrad.errors import GradientError, message
from mygrad.graph import Node
from mygrad.helpers import Shape
from mygrad.ops import MOVEMENT, SOURCE, Op

Rule = Callable[[Node, Node], Node]

# sources have no operands; the others do not give numbers, or are constant almost everywhere
NOT_DIFFERENTIABLE = SOURCE | {
    Op.JOIN,  # the scheduler makes it, of graphs that have their derivatives
    Op.LT,
    Op.EQ,
    Op.IDIV,
    Op.MOD,
    Op.AND,
    Op.OR,
    Op.XOR,
    Op.SHL,
    Op.SHR,
    Op.TRUNC,
    Op.BITCAST,
    Op.DETACH,
}


def has_rule(node: Node) -> tuple[bool, ...]:
    """For each operand whether it can have a gradient, if it is a float."""
    row = VJP.get(node.op)
    if row is None:
        return (node.op is Op.HOST,) * len(node.src)
    return tuple(rule is not None for rule in row)


def pull_back(node: Node, g: Node, wanted: Sequence[bool]) -> list[Node | None]:
    """The gradient of each wanted operand, given the gradient of the node.

    Raises:
        GradientError: a HOST function without a gradient.
    """
    if node.op is Op.HOST:
        if node.arg.vjp is None:
            raise GradientError(
                message(
                    node.arg.name,
                    f"a gradient to carry back (made at {node.location})",
                    "a function with a gradient rule",
                    "give its HostCall a vjp, or detach its operands",
                )
            )
        found = node.arg.vjp(node, g)
        return [gradient if want else None for gradient, want in zip(found, wanted, strict=True)]
    return [
        rule(node, g) if rule is not None and want else None
        for rule, want in zip(VJP[node.op], wanted, strict=True)
    ]


# --- building blocks -----------------------------------------------------------------------------

_add, _div = (partial(graph.alu, op) for op in (Op.ADD, Op.DIV))
_less, _equal, _where = (partial(graph.alu, op) for op in (Op.LT, Op.EQ, Op.WHERE))


def _mul(a: Node, b: Node) -> Node:
    if _is_one(a) or _is_one(b):  # the seed of most gradients
        return b if _is_one(a) else a
    return graph.alu(Op.MUL, a, b)


def _is_one(x: Node) -> bool:
    return x.op is Op.CONST and x.arg == 1


def _neg(x: Node) -> Node:
    return graph.const(-x.arg, x.dtype, x.shape) if x.op is Op.CONST else graph.alu(Op.NEG, x)


def _like(x: Node, value: float) -> Node:
    return graph.const(value, x.dtype, x.shape)


def _scale(x: Node, factor: float) -> Node:
    return _mul(x, _like(x, factor))


def _move(op: Op, x: Node, arg: object) -> Node:
    if x.op is Op.CONST and op not in (Op.PAD, Op.UNWINDOW):
        return graph.const(x.arg, x.dtype, movement.out_shape(op, x.shape, arg))
    return graph.move(op, x, arg)


def _is_constant(x: Node) -> bool:
    while x.op in (Op.RESHAPE, Op.EXPAND):
        x = x.src[0]
    return x.op is Op.CONST


def _spread(x: Node, shape: Shape, axes: tuple[int, ...]) -> Node:
    """The reverse of a reduction: `x` repeated along `axes`, so that it has `shape`."""
    kept = tuple(1 if axis in axes else extent for axis, extent in enumerate(shape))
    return _move(Op.EXPAND, _move(Op.RESHAPE, x, kept), shape)


def _coordinate(shape: Shape, axis: int) -> Node:
    """The position along `axis`, int64, in `shape`."""
    others = tuple(a for a in range(len(shape)) if a != axis)
    return _spread(graph.iota(shape[axis]), shape, others)


def _shift(x: Node, axis: int, by: int) -> Node:
    """out[k] = x[k - by] along `axis`, 0 where that is outside."""
    extent = x.shape[axis]
    keep = max(extent - abs(by), 0)
    start, before = (0, extent - keep) if by > 0 else (extent - keep, 0)
    shrink = tuple((start, start + keep) if a == axis else (0, n) for a, n in enumerate(x.shape))
    pad = tuple(
        (before, extent - keep - before) if a == axis else (0, 0) for a in range(len(x.shape))
    )
    return _move(Op.PAD, _move(Op.SHRINK, x, shrink), pad)


def _inside(x: Node, axis: int, by: int) -> Node:
    """Where `_shift` finds an element."""
    return _shift(graph.const(True, dt.bool_, x.shape), axis, by)


def _reversed_scan(op: Op, x: Node, axis: int) -> Node:
    return _move(Op.FLIP, graph.scan(op, _move(Op.FLIP, x, (axis,)), axis), (axis,))


def _product_before(x: Node, axis: int, reverse: bool = False) -> Node:
    """The product of all elements before each one along `axis` (after it, if `reverse`)."""
    scanned = _reversed_scan(Op.MUL, x, axis) if reverse else graph.scan(Op.MUL, x, axis)
    by = -1 if reverse else 1
    return _where(_inside(x, axis, by), _shift(scanned, axis, by), _like(x, 1))


# --- alu -----------------------------------------------------------------------------------------


def _pass(node: Node, g: Node) -> Node:
    return g


def _divisor(node: Node, g: Node) -> Node:
    if _is_one(node.src[0]):
        return _neg(_mul(_mul(g, node), node))  # without another division
    return _neg(_mul(_div(g, node.src[1]), node))  # d(a/b)/db = -(1/b) * (a/b)


def _sin(node: Node, g: Node) -> Node:
    # cos x = 1 - 2 sin(x/2)^2: halving is exact; x + pi/2 loses the low digits of a large x
    x = node.src[0]
    half = graph.alu(Op.SIN, _scale(x, 0.5))
    return _mul(g, _add(_like(x, 1), _scale(_mul(half, half), -2)))


def _maximum(side: int, node: Node, g: Node) -> Node:
    """The greater side takes the gradient, equal sides half of it each.

    Against a constant (relu, clamp) an equal value takes nothing, and the mask comes from the
    output, so that the input need not be kept.
    """
    mine, other = node.src[side], node.src[1 - side]
    if _is_constant(other):
        return _where(_less(other, node), g, _like(g, 0))
    halved = _where(_equal(*node.src), _scale(g, 0.5), g)
    return _where(_less(mine, other), _like(g, 0), halved)


# --- combine -------------------------------------------------------------------------------------


def _reduce(node: Node, g: Node) -> Node:
    return _REDUCE[node.arg[0]](node, g)


def _reduce_max(node: Node, g: Node) -> Node:
    """Equal shares for all elements that attain the maximum."""
    x, axes = node.src[0], node.arg[1]
    attains = _equal(x, _spread(node, x.shape, axes))
    count = graph.reduce(
        Op.ADD, graph.cast(attains, dt.int32), axes
    )  # float16 cannot count past 2048
    share = _div(g, graph.cast(count, g.dtype))
    return _where(attains, _spread(share, x.shape, axes), _like(x, 0))


def _reduce_product(node: Node, g: Node) -> Node:
    """The product of all others, as (those before) * (those after): without division zeros are
    no special case."""
    x, axes = node.src[0], node.arg[1]
    if x.size == 0:
        return _like(x, 0)
    kept = tuple(a for a in range(len(x.shape)) if a not in axes)
    order = kept + axes
    arranged = tuple(x.shape[a] for a in order)
    flat = (*node.shape, x.size // node.size)
    row, last = _move(Op.RESHAPE, _move(Op.PERMUTE, x, order), flat), len(kept)
    others = _mul(_product_before(row, last), _product_before(row, last, reverse=True))
    result = _mul(others, _spread(g, flat, (last,)))
    return _move(
        Op.PERMUTE, _move(Op.RESHAPE, result, arranged), tuple(map(order.index, range(len(order))))
    )


_REDUCE: dict[Op, Rule] = {
    Op.ADD: lambda node, g: _spread(g, node.src[0].shape, node.arg[1]),
    Op.MUL: _reduce_product,
    Op.MAX: _reduce_max,
}


def _scan(node: Node, g: Node) -> Node:
    return _SCAN[node.arg[0]](node, g)


def _scan_product(node: Node, g: Node) -> Node:
    """y[i] = x[0] * .. * x[i]: the gradient of x[k] is (product before k) * r[k], where

        r[k] = g[k] + x[k+1] * r[k+1]

    is a linear recurrence, solved in log2(n) doubling steps. Without division zeros are no special
    case.
    """
    x, axis = node.src[0], node.arg[1]
    if x.size == 0:
        return g
    factor, total, step = _shift(x, axis, -1), g, 1
    while step < x.shape[axis]:
        # in memory: each step reads the one before twice; inlined, the work would double each time
        total = graph.contiguous(_add(total, _mul(factor, _shift(total, axis, -step))))
        if 2 * step < x.shape[axis]:
            factor = graph.contiguous(_mul(factor, _shift(factor, axis, -step)))
        step *= 2
    return _mul(_product_before(x, axis), total)


def _scan_max(node: Node, g: Node) -> Node:
    """Each output sends its gradient to the last element so far that attains its maximum."""
    x, axis = node.src[0], node.arg[1]
    place = _coordinate(x.shape, axis)
    attains = _where(_equal(x, node), place, _like(place, 0))
    return graph.scatter(_like(x, 0), graph.scan(Op.MAX, attains, axis), g, axis, "add")


_SCAN: dict[Op, Rule] = {
    Op.ADD: lambda node, g: _reversed_scan(Op.ADD, g, node.arg[1]),
    Op.MUL: _scan_product,
    Op.MAX: _scan_max,
}


# --- movement and index --------------------------------------------------------------------------


def _movement(node: Node, g: Node) -> Node:
    for op, arg in movement.adjoint(node.op, node.src[0].shape, node.arg):
        g = graph.reduce(arg[0], g, arg[1]) if op is Op.REDUCE else _move(op, g, arg)
    return g


def _gather(node: Node, g: Node) -> Node:
    return graph.scatter(_like(node.src[0], 0), node.src[1], g, node.arg, "add")


def _sort(node: Node, g: Node) -> Node:
    axis, descending, _ = node.arg
    order = graph.sort(node.src[0], axis, descending)
    return graph.scatter(_like(node.src[0], 0), order, g, axis, "add")


def _scatter(operand: int, node: Node, g: Node) -> Node:
    return _SCATTER[node.arg[1]][operand](node, g)


def _scatter_read(node: Node, g: Node) -> Node:
    return graph.gather(g, node.src[1], node.arg[0])


def _scatter_set_kept(node: Node, g: Node) -> Node:
    _, index, y = node.src
    return graph.scatter(g, index, _like(y, 0), node.arg[0], "set")


def _scatter_set_written(node: Node, g: Node) -> Node:
    """Of several updates of one element only the last has an effect."""
    (x, index, _), axis = node.src, node.arg[0]
    place = _coordinate(index.shape, axis)
    winner = graph.scatter(graph.const(0, dt.index, x.shape), index, place, axis, "set")
    wins = _equal(graph.gather(winner, index, axis), place)
    read = _scatter_read(node, g)
    return _where(wins, read, _like(read, 0))


def _scatter_extreme(operand: int, node: Node, g: Node) -> Node:
    """Equal shares for the old value and all updates that attain the result."""
    (x, index, y), axis = node.src, node.arg[0]
    kept, wins = _equal(x, node), _equal(y, graph.gather(node, index, axis))
    count = graph.scatter(
        graph.cast(kept, dt.int32), index, graph.cast(wins, dt.int32), axis, "add"
    )
    share = _div(g, graph.cast(count, g.dtype))
    if operand == 0:
        return _where(kept, share, _like(x, 0))
    return _where(wins, graph.gather(share, index, axis), _like(y, 0))


def _scatter_product_old(node: Node, g: Node) -> Node:
    x, index, y = node.src
    return _mul(g, graph.scatter(_like(x, 1), index, y, node.arg[0], "mul"))


def _scatter_product_update(node: Node, g: Node) -> Node:
    """The product of the old value and of all other updates of the same element, without division:
    updates are sorted by element, and multiplied up before and after each one within its run of
    equal indices."""
    (x, index, y), axis = node.src, node.arg[0]
    if index.size == 0:
        return _like(y, 0)
    order = graph.sort(index, axis)
    runs, factors = graph.gather(index, order, axis), graph.gather(y, order, axis)
    others = _mul(_run_product(factors, runs, axis, 1), _run_product(factors, runs, axis, -1))
    result = _mul(others, graph.gather(_mul(g, x), runs, axis))
    return graph.scatter(_like(y, 0), order, result, axis, "add")


def _run_product(x: Node, runs: Node, axis: int, side: int) -> Node:
    """The product of the elements before (side 1) or after (side -1) each one within its run of
    equal `runs`, in log2(n) doubling steps."""

    def from_run(values: Node, distance: int) -> Node:
        by = side * distance
        same = graph.alu(Op.AND, _equal(runs, _shift(runs, axis, by)), _inside(values, axis, by))
        return _where(same, _shift(values, axis, by), _like(values, 1))

    total, step = from_run(x, 1), 1
    while step < x.shape[axis]:
        total = graph.contiguous(_mul(total, from_run(total, step)))  # as in _scan_product
        step *= 2
    return total


_SCATTER: dict[str, dict[int, Rule]] = {
    "add": {0: _pass, 2: _scatter_read},
    "set": {0: _scatter_set_kept, 2: _scatter_set_written},
    "max": {0: partial(_scatter_extreme, 0), 2: partial(_scatter_extreme, 2)},
    "min": {0: partial(_scatter_extreme, 0), 2: partial(_scatter_extreme, 2)},
    "mul": {0: _scatter_product_old, 2: _scatter_product_update},
}


def _copy(node: Node, g: Node) -> Node:
    device = node.src[0].device
    return g if device is None else graph.copy(g, device)


# --- the table -----------------------------------------------------------------------------------

VJP: dict[Op, tuple[Rule | None, ...]] = {
    Op.NEG: (lambda node, g: _neg(g),),
    Op.SQRT: (lambda node, g: _div(g, _scale(node, 2)),),
    Op.EXP: (lambda node, g: _mul(g, node),),
    Op.LOG: (lambda node, g: _div(g, node.src[0]),),
    Op.SIN: (_sin,),
    Op.CAST: (lambda node, g: graph.cast(g, node.src[0].dtype),),
    Op.ADD: (_pass, _pass),
    Op.MUL: (lambda node, g: _mul(g, node.src[1]), lambda node, g: _mul(g, node.src[0])),
    Op.DIV: (lambda node, g: _div(g, node.src[1]), _divisor),
    Op.MAX: (partial(_maximum, 0), partial(_maximum, 1)),
    Op.WHERE: (
        None,
        lambda node, g: _where(node.src[0], g, _like(g, 0)),
        lambda node, g: _where(node.src[0], _like(g, 0), g),
    ),
    Op.REDUCE: (_reduce,),
    Op.SCAN: (_scan,),
    **dict.fromkeys(MOVEMENT, (_movement,)),
    Op.GATHER: (_gather, None),
    Op.SORT: (_sort,),
    Op.SCATTER: (partial(_scatter, 0), None, partial(_scatter, 2)),
    Op.CONTIGUOUS: (_pass,),
    Op.STORE: (None, _pass),
    Op.COPY: (_copy,),
}
