"""Scalar expressions of kernels, and the index algebra.

    Expr = CONST(value)                 arg = Python value
         | AXIS(id, extent)             a loop index, 0 <= index < extent; id is unique in a kernel
         | PARAM(name, low, high)       a run-time integer, low <= value <= high
         | LOAD(slot)(index[, valid])   element `index` of buffer `slot`; 0 where valid is false
         | alu(Expr, ...)               the operations of ops.ALU, with their meaning
         | REDUCE(op, axes)(body)       combine the body over all values of `axes` (AXIS nodes)
         | SCAN(op, axis, bound)(body)  combine the body over bound = 0 .. axis inclusive;
                                        `bound` is an AXIS of axis's extent in the body only

Invariants: expressions are interned, so `is` is equality; index expressions have dtype
`dtype.index`; a bound axis (of REDUCE, SCAN) does not occur outside of its body; `low` and `high`
of an integer expression bound its value for all values of its axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from mygrad import dtype as dt
from mygrad.algebra import add, floordiv, form_of, from_linear, linear, modulo, mul
from mygrad.dtype import DType
from mygrad.errors import InternalError
from mygrad.fold import simplify
from mygrad.helpers import operands_first
from mygrad.logic import both, bound_on, conjuncts, either, equal, invert, less, ranges_of, where
from mygrad.numeric import evaluate_alu, value_dtype
from mygrad.ops import ALU, Op
from mygrad.scalar import (
    PRINTER,
    Bounds,
    Expr,
    axis,
    bounds_of,
    const,
    digest,
    free_axes,
    is_false,
    is_true,
    make,
    order,
    param,
    plain,
    var,
    wrap,
)

__all__ = [
    "Expr",
    "add",
    "alu",
    "axis",
    "both",
    "bound_on",
    "bounds_with",
    "conjuncts",
    "const",
    "describe",
    "digest",
    "either",
    "equal",
    "evaluate",
    "floordiv",
    "free_axes",
    "from_linear",
    "given",
    "invert",
    "is_false",
    "is_true",
    "less",
    "linear",
    "load",
    "modulo",
    "mul",
    "order",
    "param",
    "plain",
    "ranges_of",
    "rebuild",
    "reduce",
    "scan",
    "stride",
    "substitute",
    "text",
    "toposort",
    "var",
    "where",
    "wrap",
]


# --- construction ---------------------------------------------------------------------------------


def load(slot: int | str, dtype: DType, index: Expr, valid: Expr | None = None) -> Expr:
    """Element `index` of buffer `slot`, or of the scratch array of that name; 0 where `valid` is
    false.
    """
    if valid is not None and is_false(valid):
        return const(0, dtype)
    src = (index,) if valid is None or is_true(valid) else (index, valid)
    return make(Op.LOAD, src, slot, dtype, (0, 1) if dtype.kind == "b" else (None, None))


def reduce(op: Op, body: Expr, axes: Iterable[Expr]) -> Expr:
    """Combine `body` over all values of `axes` with ADD, MUL or MAX."""
    return make(Op.REDUCE, (body,), (op, tuple(axes)), body.dtype, _bool_bounds(body))


def scan(op: Op, body: Expr, axis: Expr, bound: Expr) -> Expr:
    """Combine `body` over bound = 0 .. axis inclusive."""
    return make(Op.SCAN, (body,), (op, axis, bound), body.dtype, _bool_bounds(body))


def _bool_bounds(body: Expr) -> Bounds:
    return (0, 1) if body.dtype.kind == "b" else (None, None)


def alu(op: Op, *src: Expr, dtype: DType | None = None) -> Expr:
    """An operation of ops.ALU on operands that already agree in dtype; `dtype` is the target of
    casts.

    Integer and bool operations are simplified through the index algebra; float operations only
    where the value is unchanged bit for bit.
    """
    return simplify(op, src, dtype)


# --- questions and substitution -------------------------------------------------------------------


def toposort(roots: Iterable[Expr]) -> list[Expr]:
    """Every expression reachable from the roots, operands first; without recursion."""
    return operands_first(roots)


def rebuild(e: Expr, src: tuple[Expr, ...], rename: Callable[[Expr], Expr] = lambda a: a) -> Expr:
    """The same operation on other operands, simplified again; `rename` maps the axes in arg."""
    if e.op in ALU:
        return simplify(e.op, src, e.dtype)
    if e.op is Op.LOAD:
        return load(e.arg, e.dtype, *src)
    if e.op is Op.REDUCE:
        return reduce(e.arg[0], src[0], tuple(rename(a) for a in e.arg[1]))
    if e.op is Op.SCAN:
        return scan(e.arg[0], src[0], rename(e.arg[1]), rename(e.arg[2]))
    raise InternalError(f"rebuild: {e.op} has no operands")


def substitute(e: Expr, mapping: Mapping[Expr, Expr]) -> Expr:
    """Replace expressions everywhere (also in the axis lists of REDUCE and SCAN, where the
    replacement must be an AXIS again) and simplify what changes.
    """
    done: dict[Expr, Expr] = dict(mapping)
    only_axes = all(key.op is Op.AXIS for key in mapping)
    in_sums = any(
        _is_sum(key) for key in mapping
    )  # then partial sums must be looked at, one by one
    work = [e]
    while work:
        node = work[-1]
        if node in done:
            work.pop()
            continue
        if only_axes and not node.binds and free_axes(node).isdisjoint(mapping):
            done[work.pop()] = node
            continue
        sum_of = form_of(node)[0] if _is_sum(node) and not in_sums else None
        operands = node.src if sum_of is None else tuple(sum_of)
        pending = [s for s in operands if s not in done]
        if pending:
            work += pending
            continue
        work.pop()
        done[node] = _substituted(node, done, mapping) if sum_of is None else _resum(node, done)
    return done[e]


def _is_sum(e: Expr) -> bool:
    return e.dtype is dt.index and (e.op is Op.ADD or (e.op is Op.MUL and e.src[1].op is Op.CONST))


def _resum(e: Expr, done: dict[Expr, Expr]) -> Expr:
    """The sum `e` with its terms replaced, put together once and not term by term."""
    terms, constant = form_of(e)
    if all(done[t] is t for t in terms):
        return e
    total: dict[Expr, int] = {}
    for t, coefficient in terms.items():
        inner, extra = form_of(done[t])
        constant += coefficient * extra
        for u, k in inner.items():
            total[u] = total.get(u, 0) + coefficient * k
    return from_linear(total, constant)


def _substituted(node: Expr, done: dict[Expr, Expr], mapping: Mapping[Expr, Expr]) -> Expr:
    src = tuple(done[s] for s in node.src)
    renamed = (node.op is Op.REDUCE or node.op is Op.SCAN) and any(
        a in mapping for a in _bound_axes(node)
    )
    if renamed or any(new is not old for new, old in zip(src, node.src, strict=True)):
        return rebuild(node, src, lambda a: mapping.get(a, a))
    return node


def _bound_axes(e: Expr) -> tuple[Expr, ...]:
    return tuple(e.arg[1] if e.op is Op.REDUCE else e.arg[1:])


def stride(e: Expr, axis: Expr) -> int | None:
    """How far an index moves when `axis` advances by one: its coefficient; None where that is no
    constant.
    """
    if axis not in free_axes(e):
        return 0
    terms, _ = form_of(e)
    if any(axis in free_axes(t) for t in terms if t is not axis):
        return None
    return terms.get(axis, 0)


def bounds_with(e: Expr, ranges: Mapping[Expr, tuple[int, int]]) -> Bounds:
    """(low, high) of an index expression where some of its parts, axes as a rule, stay in narrower
    ranges.
    """
    known: dict[Expr, Bounds] = dict(ranges)
    for node in toposort([e]):
        if node in known:
            continue
        found: Bounds = (node.low, node.high)
        if node.op in ALU and node.dtype is dt.index:
            low, high = bounds_of(node.op, node.src, [known[s] for s in node.src])
            if low is not None and high is not None:
                found = low, high
        known[node] = found
    return known[e]


def given(e: Expr, condition: Expr | None) -> Expr:
    """An expression that is equal to `e` wherever the condition holds, and often simpler.

    Conditions low <= sum <= high narrow one term of the sum, which may decide divisions:
    with 1 <= i < 9, (i - 1) // 8 is 0.
    """
    if condition is not None:
        for total, (low, high) in ranges_of(conjuncts(condition)).items():
            e = _within(e, total, low, high)
    return e


def _within(e: Expr, total: Expr, low: int, high: int) -> Expr:
    axes = free_axes(e)
    terms, _ = form_of(total)
    usable = (t for t, c in terms.items() if abs(c) == 1 and (t.op is not Op.AXIS or t in axes))
    term = min(usable, key=order, default=None)
    if term is None or low > high:
        return e
    # total = sign*term + others, so term = sign*(narrow - others) with low <= narrow <= high
    narrow = param(f"within {low} {high}", low, high)
    others = total - term * terms[term]
    changed = substitute(e, {term: (narrow - others) * terms[term]})
    changed = substitute(changed, {narrow: total})
    return changed if _divisions(changed) < _divisions(e) else e


def _divisions(e: Expr) -> int:
    return sum(node.op is Op.IDIV or node.op is Op.MOD for node in toposort([e]))


# --- evaluation -----------------------------------------------------------------------------------


def evaluate(
    e: Expr,
    env: Mapping[Expr, Any],
    loads: Mapping[int | str, np.ndarray[Any, Any]] | None = None,
) -> np.ndarray[Any, Any]:
    """The value of an expression without REDUCE and SCAN, by NumPy broadcasting.

    `env` gives the value, a number or an array, of every AXIS, PARAM and VAR; `loads` the flat
    value arrays of the slots.

    >>> i, j = axis(0, 2), axis(1, 3)
    >>> evaluate(i * 3 + j, {i: np.arange(2)[:, None], j: np.arange(3)})
    array([[0, 1, 2],
           [3, 4, 5]])
    """
    values: dict[Expr, np.ndarray[Any, Any]] = {}
    for node in toposort([e]):
        operands = [values[s] for s in node.src]
        if node.op is Op.CONST:
            values[node] = np.asarray(node.arg, value_dtype(node.dtype))
        elif node.op is Op.LOAD:
            values[node] = _read((loads or {})[node.arg], operands)
        elif node.op in ALU:
            values[node] = evaluate_alu(node.op, operands, node.dtype)
        elif node in env:
            values[node] = np.asarray(env[node], value_dtype(node.dtype))
        else:
            raise InternalError(f"evaluate: no value for {node.op} {node.arg}")
    return values[e]


def _read(
    array: np.ndarray[Any, Any], operands: list[np.ndarray[Any, Any]]
) -> np.ndarray[Any, Any]:
    index, valid = operands if len(operands) == 2 else (operands[0], np.True_)
    inside = np.where(valid, index, 0)
    return np.where(
        valid, array[inside] if array.size else array.dtype.type(0), array.dtype.type(0)
    )


# --- printing -------------------------------------------------------------------------------------

_INFIX = {
    Op.ADD: "+",
    Op.MUL: "*",
    Op.DIV: "/",
    Op.IDIV: "//",
    Op.MOD: "%",
    Op.LT: "<",
    Op.EQ: "==",
    Op.AND: "&",
    Op.OR: "|",
    Op.XOR: "^",
    Op.SHL: "<<",
    Op.SHR: ">>",
}


def text(e: Expr) -> str:
    """The expression on one line. Shared parts are repeated, so this is for small expressions and
    indices; `kernel.text` names shared parts.
    """
    done: dict[Expr, str] = {}
    for node in toposort([e]):
        done[node] = describe(node, [done[s] for s in node.src])
    return done[e]


def describe(e: Expr, src: list[str]) -> str:
    """One node given the texts of its operands."""
    if e.op is Op.CONST:
        return repr(e.arg) if e.dtype is dt.index else f"{e.arg!r}:{e.dtype.name}"
    if e.op is Op.AXIS:
        return f"i{e.arg[0]}"
    if e.op in (Op.PARAM, Op.VAR):
        return str(e.arg[0] if e.op is Op.PARAM else e.arg)
    if e.op is Op.LOAD:
        name = e.arg if isinstance(e.arg, str) else f"b{e.arg}"
        return f"{name}[{src[0]}]" if len(src) == 1 else f"{name}[{src[0]} if {src[1]}]"
    if e.op is Op.REDUCE:
        axes = ", ".join(f"i{a.arg[0]}<{a.arg[1]}" for a in e.arg[1])
        return f"{e.arg[0].name.lower()}[{axes}]({src[0]})"
    if e.op is Op.SCAN:
        return f"scan_{e.arg[0].name.lower()}[i{e.arg[2].arg[0]}<=i{e.arg[1].arg[0]}]({src[0]})"
    if e.op in _INFIX:
        return f"({src[0]} {_INFIX[e.op]} {src[1]})"
    name = e.dtype.name if e.op is Op.CAST else e.op.name.lower()
    if e.op is Op.BITCAST:
        name += f"_{e.dtype.name}"
    return f"{name}({', '.join(src)})"


PRINTER[0] = text
