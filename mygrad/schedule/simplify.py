"""Graph to smaller graph, before homes are chosen: every rule keeps the value bit for bit.

constants are folded:              CONST + CONST, CAST(CONST), movement of a CONST
operations that do nothing vanish: x * 1, x / 1, -(-x), where(True, a, b), no-op movement
movement after movement merges:    RESHAPE(RESHAPE(x)), PERMUTE(PERMUTE(x)) ...
permuted sums are computed so:     PERMUTE(REDUCE(x)) -> REDUCE(PERMUTE(x)), if nothing else reads
                                   it; so it is stored in the order in which it is read; but
                                   windows that are spread again stay as they lie
and of sums only what is read:     SHRINK(REDUCE(x)) -> REDUCE(SHRINK(x)), likewise; but a sum over
                                   strided windows starts where their phases are told apart
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mygrad import graph, movement, numeric
from mygrad.graph import Node
from mygrad.ops import ALU, MOVEMENT, Op

Rule = Callable[[Node], "Node | None"]


def simplify(roots: Sequence[Node]) -> list[Node]:
    """The roots with every rule applied everywhere; new nodes keep the user's line of the old
    ones."""
    order = graph.toposort(roots)
    readers = Counter([s for node in order for s in node.src])
    readers.update(roots)
    spread = _spread(order)

    def simpler(node: Node, done: dict[Node, Node]) -> Node:
        result = _settled(graph.on_operands(node, done))
        inward = node.op is result.op in _INWARD and node not in spread
        return move_operand(result) if inward and _is_read_once(node.src[0], readers) else result

    return graph.rewrite(roots, simpler)


def _settled(node: Node) -> Node:
    """The node after all rules for it, until none changes anything."""
    while True:
        before = node
        for rule in _rules(node.op):
            changed = rule(node)
            if changed is not None:
                node = changed
                break
        if node is before:
            return node


_INWARD = frozenset({Op.PERMUTE, Op.SHRINK})


def move_operand(node: Node) -> Node:
    """A permuted or shrunk reduction, which may be cast, as the reduction of something permuted or
    shrunk."""
    reduced, casts = node.src[0], []
    while reduced.op is Op.CAST:
        casts.append(reduced.dtype)
        reduced = reduced.src[0]
    if reduced.op is not Op.REDUCE or (node.op is Op.SHRINK and _has_stride(reduced.src[0])):
        return node
    x, (op, axes) = reduced.src[0], reduced.arg
    kept = [a for a in range(len(x.shape)) if a not in axes]
    if node.op is Op.PERMUTE:
        arg: list[Any] = list(range(len(x.shape)))
        for place, a in zip(kept, node.arg, strict=True):
            arg[place] = kept[a]
    else:
        arg = [(0, n) for n in x.shape]
        for place, window in zip(kept, node.arg, strict=True):
            arg[place] = window
    moved = _settled(graph.move(node.op, x, tuple(arg)))
    result = graph.reduce(op, moved, axes)
    for dtype in reversed(casts):
        result = graph.cast(result, dtype)
    return result


def _spread(order: Sequence[Node]) -> set[Node]:
    """What is read by UNWINDOW, with nothing but movement between."""
    found: set[Node] = set()
    for node in reversed(order):
        if node.op is Op.UNWINDOW or (node.op in MOVEMENT and node in found):
            found.add(node.src[0])
    return found


def _has_stride(x: Node) -> bool:
    """Whether a place of an array is divided by a stride to find its window."""
    return x.op is Op.UNWINDOW and x.arg[2] > 1


def _is_read_once(node: Node, readers: Counter[Node]) -> bool:
    """Whether nothing else reads a value, nor what it is cast from."""
    while node.op is Op.CAST and readers[node] == 1:
        node = node.src[0]
    return readers[node] == 1


def _rules(op: Op) -> tuple[Rule, ...]:
    if op in ALU:
        return _ALU_RULES.get(op, (_fold,))
    return _MOVEMENT_RULES if op in MOVEMENT else _OTHER_RULES.get(op, ())


def _is_const(node: Node, value: float) -> bool:
    return (
        node.op is Op.CONST
        and node.arg == value
        and (value != 0 or not np.signbit(float(node.arg)))
    )


def _fold(node: Node) -> Node | None:
    if node.src[0].op is not Op.CONST or node.op is Op.BITCAST:
        return None
    if any(s.op is not Op.CONST for s in node.src):
        return None
    operands = [np.asarray(s.arg, numeric.value_dtype(s.dtype)) for s in node.src]
    with np.errstate(all="ignore"):
        value = numeric.evaluate_alu(node.op, operands, node.dtype)
    return graph.const(value.item(), node.dtype, node.shape)


def _times_one(node: Node) -> Node | None:
    a, b = node.src
    return a if _is_const(b, 1) else b if _is_const(a, 1) else None


def _plus_zero(node: Node) -> Node | None:
    """x + 0 for integers; for floats only x + -0.0, because -0.0 + 0.0 is 0.0."""
    for x, zero in (node.src, node.src[::-1]):
        if (
            zero.op is Op.CONST
            and zero.arg == 0
            and (node.dtype.is_int or np.signbit(float(zero.arg)))
        ):
            return x
    return None


def _divide_by_one(node: Node) -> Node | None:
    return node.src[0] if _is_const(node.src[1], 1) else None


def _negate_twice(node: Node) -> Node | None:
    return node.src[0].src[0] if node.src[0].op is Op.NEG else None


def _known_condition(node: Node) -> Node | None:
    condition, a, b = node.src
    if condition.op is Op.CONST:
        return a if condition.arg else b
    return a if a is b else None


_ALU_RULES: dict[Op, tuple[Rule, ...]] = {
    Op.MUL: (_fold, _times_one),
    Op.ADD: (_fold, _plus_zero),
    Op.DIV: (_fold, _divide_by_one),
    Op.NEG: (_fold, _negate_twice),
    Op.WHERE: (_known_condition,),
}


def _move_constant(node: Node) -> Node | None:
    x = node.src[0]
    if x.op is not Op.CONST:
        return None
    if node.op in (Op.PAD, Op.UNWINDOW) and not _is_const(x, 0):
        return None
    return graph.const(x.arg, x.dtype, node.shape)


def _merge_moves(node: Node) -> Node | None:
    x = node.src[0]
    if x.op not in MOVEMENT:
        return None
    merged = movement.merge(x.op, x.arg, node.op, node.arg, x.src[0].shape)
    return None if merged is None else graph.move(merged[0], x.src[0], merged[1])


_MOVEMENT_RULES: tuple[Rule, ...] = (_move_constant, _merge_moves)


def _reduce_units(node: Node) -> Node | None:
    """A reduction over axes of extent 1 only reshapes."""
    x = node.src[0]
    if all(x.shape[a] == 1 for a in node.arg[1]):
        return graph.move(Op.RESHAPE, x, node.shape)
    return None


def _drop_mark(node: Node) -> Node | None:
    return node.src[0]


def _scatter_one(node: Node) -> Node | None:
    """One update for each row: every element asks whether it is the one. That fuses, a scatter does
    not.

    This is the gradient of picking a label's logit.
    """
    base, index, update = node.src
    axis, mode = node.arg
    if index.shape[axis] != 1 or base.shape[axis] <= 1:
        return None
    column = tuple(n if i == axis else 1 for i, n in enumerate(base.shape))
    place = graph.move(Op.RESHAPE, graph.iota(base.shape[axis]), column)
    wanted = graph.cast(graph.move(Op.EXPAND, index, base.shape), place.dtype)
    hit = graph.alu(Op.EQ, wanted, graph.move(Op.EXPAND, place, base.shape))
    new = graph.move(Op.EXPAND, update, base.shape)
    if mode in _COMBINED:
        new = simplify([graph.alu(_COMBINED[mode], base, new)])[0]
    elif mode != "set":
        return None
    return graph.alu(Op.WHERE, hit, new, base)


_COMBINED = {"add": Op.ADD, "mul": Op.MUL, "max": Op.MAX}

_OTHER_RULES: dict[Op, tuple[Rule, ...]] = {
    Op.REDUCE: (_reduce_units,),
    Op.DETACH: (_drop_mark,),
    Op.SCATTER: (_scatter_one,),
}
