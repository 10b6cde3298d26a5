"""Where a value is nothing: conditions outside of which it is known without being computed.

    where(s <= t, p, 0) * v              is 0 unless s <= t
    exp(where(s <= t, x, -inf) - m)      is 0 unless s <= t

So a sum over s of the first has terms for s <= t alone, and nobody has to look at the others: half
of them in an attention that is causal, all but a few in one that sees a window.

Two rules are those of a mask, and not of IEEE 754: a zero that a condition puts into a product
makes it zero, and minus infinity stays what it is, whatever the other operand is. They differ where
that is infinite or not a number: what was masked out has no say.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache, reduce

import numpy as np

from mygrad.algebra import interval
from mygrad.dtype import bool_
from mygrad.expr import (
    Expr,
    both,
    const,
    free_axes,
    from_linear,
    less,
    linear,
    order,
    toposort,
    where,
)
from mygrad.logic import bound_on, conjuncts, invert
from mygrad.numeric import identity
from mygrad.ops import Op

Conditions = frozenset[Expr]
NONE: Conditions = frozenset()
ALWAYS = None  # as the conditions of a constant: it is nothing in any case
WORTH = 0.25  # of the points must lie outside, if a condition is to be looked at
SAMPLES = 40_000  # points at which a condition is tried


def conditions(e: Expr | None) -> Conditions:
    """Those of the conditions of which `e` is the conjunction that bound a sum of axes, and are
    worth it."""
    return NONE if e is None else frozenset(c for c in conjuncts(e) if _is_affine(c))


def _is_affine(condition: Expr) -> bool:
    bound = bound_on(condition)
    sums = bound is not None and all(t.op in (Op.AXIS, Op.PARAM) for t in linear(bound[0])[0])
    return sums and is_worth_it(condition)


def terms_of(roots: Iterable[Expr]) -> dict[Expr, Conditions]:
    """For every reduction the conditions outside of which it has nothing to combine."""
    found = nothing(roots)
    return {
        e: found[e.src[0]][e.arg[0] is Op.MAX] or NONE
        for e in found
        if e.op is Op.REDUCE and e.arg[0] in (Op.ADD, Op.MAX)
    }


def masked(e: Expr, needed: Conditions) -> Expr:
    """The body of a reduction, which is nothing outside of the conditions whatever its operands
    are: a zero times infinity would not be."""
    if e.src[0].op in (Op.LOAD, Op.WHERE):  # it is nothing by itself
        return e.src[0]
    mask = reduce(both, sorted(needed, key=order), const(True, bool_))
    return where(mask, e.src[0], const(identity(e.arg[0], e.dtype), e.dtype))


Nothing = tuple[Conditions | None, Conditions | None]


def nothing(roots: Iterable[Expr]) -> dict[Expr, Nothing]:
    """For every expression the conditions outside of which it is 0, and minus infinity."""
    found: dict[Expr, Nothing] = {}
    for e in toposort(roots):
        found[e] = _nothing(e, [found[s] for s in e.src])
    return found


def _nothing(e: Expr, src: list[Nothing]) -> Nothing:
    if e.op is Op.CONST:
        zero = e.arg == 0 and math.copysign(1, e.arg) > 0
        return (ALWAYS if zero else NONE), (ALWAYS if e.arg == -math.inf else NONE)
    if e.op is Op.LOAD:
        return (conditions(e.src[1]) if len(e.src) == 2 else NONE), NONE
    if e.op is Op.WHERE:
        # a branch is nothing, or is not taken
        yes, no = conditions(e.src[0]), conditions(invert(e.src[0]))
        a, b = (tuple(_either(x, c) for x in s) for s, c in ((src[1], yes), (src[2], no)))
        # outside of a condition in `yes` the second branch is taken
        return _both(a[0], b[0]), _both(a[1], b[1])
    if e.op is Op.REDUCE:
        own = {Op.ADD: (src[0][0], NONE), Op.MAX: (NONE, src[0][1])}.get(e.arg[0], (NONE, NONE))
        return _without(own[0], e.arg[1]), _without(own[1], e.arg[1])
    return _of_operation(e, src)


def _of_operation(e: Expr, src: list[Nothing]) -> Nothing:
    if e.op is Op.MUL:
        factors = [s for s in e.src if s.op is Op.CONST and s.arg > 0]
        return _either(src[0][0], src[1][0]), _either(src[0][1], src[1][1]) if factors else NONE
    if e.op is Op.DIV and e.src[1].op is Op.CONST and e.src[1].arg > 0:
        return src[0]
    if e.op is Op.ADD:
        return _both(src[0][0], src[1][0]), _either(src[0][1], src[1][1])
    if e.op is Op.MAX:
        return _both(src[0][0], src[1][0]), _both(src[0][1], src[1][1])
    if e.op is Op.NEG:
        return src[0][0], NONE
    if e.op is Op.CAST:
        return (src[0][0] if e.dtype.is_float else NONE), NONE
    return (src[0][1], NONE) if e.op is Op.EXP else (NONE, NONE)


def _either(a: Conditions | None, b: Conditions | None) -> Conditions | None:
    """Nothing where one of two is."""
    return ALWAYS if a is ALWAYS or b is ALWAYS else a | b


def _both(a: Conditions | None, b: Conditions | None) -> Conditions | None:
    """Nothing where two are."""
    return b if a is ALWAYS else a if b is ALWAYS else a & b


def _without(found: Conditions | None, axes: tuple[Expr, ...]) -> Conditions | None:
    """Conditions that do not depend on the axes of a reduction."""
    return found and frozenset(c for c in found if free_axes(c).isdisjoint(axes))


def somewhere(condition: Expr, axes: Iterable[Expr]) -> Expr:
    """A condition that holds wherever the given one does for some values of the axes."""
    bound = bound_on(condition)
    assert bound is not None
    total, low, high = bound
    terms, constant = linear(total)
    least, most = interval({t: terms.pop(t) for t in axes if t in terms}, 0)
    rest = from_linear(terms, constant)
    return both(less(const(low - most - 1), rest), less(rest, const(high - least + 1)))


def known(holds: Iterable[Expr]) -> dict[Expr, Expr]:
    """What conditions that hold are, and their opposites."""
    found = {invert(c): const(False, bool_) for c in holds}
    return found | dict.fromkeys(holds, const(True, bool_))


def is_worth_it(condition: Expr) -> bool:
    """Whether enough of all points lie outside of a condition on a sum of axes."""
    return outside(condition) >= WORTH


@lru_cache(maxsize=1024)
def outside(condition: Expr) -> float:
    """The share of all points at which a condition on a sum of axes does not hold."""
    bound = bound_on(condition)
    assert bound is not None
    total, low, high = bound
    terms, constant = linear(total)
    values = np.full((), constant, np.int64)
    each = max(int(SAMPLES ** (1 / len(terms))), 2)
    for term, step in terms.items():
        first, last = term.low or 0, term.high or 0
        points = np.linspace(first, last, min(last - first + 1, each)).astype(np.int64)
        values = values[..., None] + step * points
    return float(np.mean((values < low) | (values > high)))
