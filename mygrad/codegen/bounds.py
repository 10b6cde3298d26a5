"""Loops that run only where there is something to do.

    for s in 0..256: acc += where(s < t + 1, p[t, s], 0) * v[s]     6 rows t in a tile: t = 6 r + i
    ->  for s in 0..6 r + 1: acc += p[t, s] * v[s]                  the condition holds for all rows
        for s in 6 r + 1..6 r + 6: acc += where(..) * v[s]          for some
                                                                    and from there on for none

A condition (domain.py) is low <= sum of axes <= high. Loops around are known numbers when a loop
begins; what runs inside of it, or in lockstep around it, stays in a range. From these follow the
steps at which the condition can hold at all, and those at which it always does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from mygrad.algebra import interval, maximum
from mygrad.codegen.scope import Scope
from mygrad.codegen.stmt import Block, If, Let, Loop, Put, Running, Stmt, Tile, Update
from mygrad.domain import known
from mygrad.expr import (
    Expr,
    const,
    floordiv,
    free_axes,
    from_linear,
    is_true,
    less,
    linear,
    substitute,
)
from mygrad.logic import bound_on, minimum
from mygrad.ops import Op


@dataclass(frozen=True)
class Span:
    """The steps low .. high - 1 of a loop, at all of which some conditions hold."""

    low: Expr
    high: Expr
    holds: tuple[Expr, ...] = ()


def spans(scope: Scope, low: Expr, high: Expr) -> list[Span]:
    """What is left of the steps low .. high - 1 of the loop of a scope, in parts: a condition that
    no sequential loop further in looks at is decided here."""
    assert scope.loop is not None
    around = {s.loop.axis for s in scope.path[:-1] if s.loop and not s.loop.is_tile}
    inner = frozenset(_sequential(scope))
    parts = [Span(low, high)]
    for c in sorted(scope.conditions(), key=str):
        axes = free_axes(c)
        if scope.loop.axis not in axes:
            continue
        (first, end), (all_first, all_end) = _steps(c, scope.loop.axis, around)
        if axes.isdisjoint(inner):
            parts = [
                made
                for p in parts
                for made in _divided(p, c, all_first or p.low, all_end or p.high)
            ]
        parts = [
            replace(
                p,
                low=p.low if first is None else maximum(first, p.low),
                high=p.high if end is None else minimum(end, p.high),
            )
            for p in parts
        ]
    return [p for p in parts if not is_true(less(p.high, p.low + 1))]


def _divided(part: Span, condition: Expr, first: Expr, end: Expr) -> list[Span]:
    """The part before, in and after the steps at which a condition always holds."""
    first = minimum(maximum(first, part.low), part.high)
    end = minimum(maximum(end, first), part.high)
    holds = (*part.holds, condition)
    return [
        Span(part.low, first, part.holds),
        Span(first, end, holds),
        Span(end, part.high, part.holds),
    ]


def _sequential(scope: Scope) -> Iterator[Expr]:
    """The axes of the sequential loops inside of a scope."""
    nests = [scope.nests, *(phase.nests for phase in scope.phases)]
    for s in (s for found in nests for s in found.values()):
        if s.loop is not None and not s.loop.is_tile:
            yield s.loop.axis
        yield from _sequential(s)


Steps = tuple[Expr | None, Expr | None]  # the first of them, and one more than the last


def _steps(condition: Expr, axis: Expr, around: set[Expr]) -> tuple[Steps, Steps]:
    """The steps of a loop at which a condition can hold, and those at which it does for all that
    runs inside."""
    bound = bound_on(condition)
    assert bound is not None
    total, low, high = bound
    terms, constant = linear(total)
    by = terms.pop(axis)
    fixed = {t: c for t, c in terms.items() if t in around or t.op is Op.PARAM}
    least, most = interval({t: c for t, c in terms.items() if t not in fixed}, 0)
    # low <= by * step + outer + [least, most] <= high
    outer = from_linear(fixed, constant)
    at_least = low if total.low is None or low > total.low else None
    at_most = high if total.high is None or high < total.high else None
    ends = []
    for above, below in ((most, least), (least, most)):
        first = None if at_least is None else const(at_least - above) - outer
        last = None if at_most is None else const(at_most - below) - outer
        if by < 0:
            first, last = last and -last, first and -first
        step = const(abs(by))
        ends.append(
            (
                None if first is None else -floordiv(-first, step),
                None if last is None else floordiv(last, step) + 1,
            )
        )
    return ends[0], ends[1]


def assume(block: Block, holds: tuple[Expr, ...]) -> Block:
    """The statements where conditions hold."""
    return tuple(_assume(s, known(holds)) for s in block) if holds else block


def _assume(s: Stmt, values: Mapping[Expr, Expr]) -> Stmt:
    if isinstance(s, Loop | Tile):
        return replace(s, body=tuple(_assume(t, values) for t in s.body))
    if isinstance(s, If):
        body, otherwise = (tuple(_assume(t, values) for t in b) for b in (s.body, s.otherwise))
        return If(substitute(s.condition, values), body, otherwise)
    if isinstance(s, Let | Update | Running):
        return replace(s, value=substitute(s.value, values))
    if isinstance(s, Put):
        valid = s.valid and substitute(s.valid, values)
        whole = valid is None or is_true(valid)
        return replace(s, value=substitute(s.value, values), valid=None if whole else valid)
    return s
