"""Choosing the axes of a kernel: split those that indices divide, merge those that indices never
part.

split   i < 12 used as i // 4 and i % 4      ->  i = a * 4 + b, a < 3, b < 4; the divisions vanish
merge   i < 3, j < 4 used only as i * 4 + j  ->  k < 12; an elementwise kernel gets one long loop
"""

from __future__ import annotations

from collections.abc import Iterable

from mygrad import expr
from mygrad.expr import Expr
from mygrad.kernel import Store, roots_of
from mygrad.ops import Op

Axes = tuple[Expr, ...]


def simplify(axes: Axes, stores: tuple[Store, ...]) -> tuple[Axes, tuple[Store, ...]]:
    """Split, then merge, as often as it changes something."""
    fixed = _fixed(stores)
    while True:
        found = _find_split(axes, stores, fixed)
        if found is None:
            break
        axes, stores = replace_axes(axes, stores, *found)
    return _merge_all(axes, stores, fixed)


def _fixed(stores: tuple[Store, ...]) -> frozenset[Expr]:
    """Axes whose order or identity matters: those of scans and scatters."""
    fixed: set[Expr] = set()
    for s in stores:
        fixed |= set(s.ordered_axes)
        fixed |= {a for e in expr.toposort(roots_of(s)) if e.op is Op.SCAN for a in e.arg[1:]}
    return frozenset(fixed)


def new_ids(axes: Axes, stores: tuple[Store, ...]) -> int:
    """The first axis id that is not in use."""
    used = [a.arg[0] for a in axes]
    for e in expr.toposort(r for s in stores for r in roots_of(s)):
        if e.op is Op.AXIS:
            used.append(e.arg[0])
        elif e.op is Op.REDUCE:
            used += [a.arg[0] for a in e.arg[1]]
    return max(used, default=-1) + 1


def _find_split(
    axes: Axes, stores: tuple[Store, ...], fixed: frozenset[Expr]
) -> tuple[dict[Expr, Expr], dict[Expr, Axes]] | None:
    for e in expr.toposort(r for s in stores for r in roots_of(s)):
        if e.op in (Op.IDIV, Op.MOD) and e.src[0].op is Op.AXIS and e.src[1].op is Op.CONST:
            axis, factor = e.src[0], e.src[1].arg
            if axis not in fixed and factor > 1 and axis.arg[1] % factor == 0:
                first = new_ids(axes, stores)
                high, low = expr.axis(first, axis.arg[1] // factor), expr.axis(first + 1, factor)
                return {axis: high * factor + low}, {axis: (high, low)}
    return None


def replace_axes(
    axes: Axes, stores: tuple[Store, ...], mapping: dict[Expr, Expr], instead: dict[Expr, Axes]
) -> tuple[Axes, tuple[Store, ...]]:
    """Substitute axes by expressions everywhere; in lists of axes, by the axes of `instead`."""
    done: dict[Expr, Expr] = dict(mapping)
    for e in expr.toposort(r for s in stores for r in roots_of(s)):
        if e in done:
            continue
        src = tuple(done[x] for x in e.src)
        if e.op is Op.REDUCE and any(a in instead for a in e.arg[1]):
            done[e] = expr.reduce(e.arg[0], src[0], _listed(e.arg[1], instead))
        else:
            done[e] = e if src == e.src else expr.rebuild(e, src)
    changed = tuple(
        Store(
            s.slot, done[s.index], done[s.value], s.valid and done[s.valid], s.mode, s.ordered_axes
        )
        for s in stores
    )
    return _listed(axes, instead), changed


def _listed(axes: Iterable[Expr], instead: dict[Expr, Axes]) -> Axes:
    return tuple(dict.fromkeys(new for a in axes for new in instead.get(a, (a,))))


# --- merging --------------------------------------------------------------------------------------


def _merge_all(
    axes: Axes, stores: tuple[Store, ...], fixed: frozenset[Expr]
) -> tuple[Axes, tuple[Store, ...]]:
    while True:
        pair = _find_pair(axes, stores, fixed)
        if pair is None:
            return axes, stores
        outer, inner = pair
        merged = expr.axis(new_ids(axes, stores), outer.arg[1] * inner.arg[1])
        # i * extent + j becomes k: put j = k and i = 0
        axes, stores = replace_axes(
            axes, stores, {outer: expr.const(0), inner: merged}, {outer: (), inner: (merged,)}
        )


def _find_pair(
    axes: Axes, stores: tuple[Store, ...], fixed: frozenset[Expr]
) -> tuple[Expr, Expr] | None:
    lists = [axes]
    for e in expr.toposort(r for s in stores for r in roots_of(s)):
        if e.op is Op.REDUCE and e.arg[1] not in lists:
            lists.append(e.arg[1])
    uses, elsewhere = _uses(stores)
    strides: dict[tuple[Expr, Expr], int | None] = {}
    for members in lists:
        for outer in members:
            for inner in members:
                if (
                    outer is not inner
                    and not {outer, inner} & (fixed | elsewhere)
                    and all((outer in other) == (inner in other) for other in lists)
                    and _only_together(uses, outer, inner, strides)
                ):
                    return outer, inner
    return None


def _only_together(
    uses: list[Expr], outer: Expr, inner: Expr, strides: dict[tuple[Expr, Expr], int | None]
) -> bool:
    for use in uses:
        pair = []
        for axis in (outer, inner):
            if (use, axis) not in strides:
                strides[use, axis] = expr.stride(use, axis)
            pair.append(strides[use, axis])
        if pair[0] is None or pair[1] is None or pair[0] != pair[1] * inner.arg[1]:
            return False
    return True


def _uses(stores: tuple[Store, ...]) -> tuple[list[Expr], set[Expr]]:
    """The index expressions, each as a whole; and the axes that occur outside of them, as
    values."""
    uses: dict[Expr, None] = {}
    elsewhere: set[Expr] = set()
    seen: set[Expr] = set()
    work: list[tuple[Expr, bool]] = []
    for s in stores:
        work += [(s.index, True), (s.value, False)] + (
            [(s.valid, False)] if s.valid is not None else []
        )
    while work:
        e, is_index = work.pop()
        if is_index and e.dtype is expr.dt.index:
            uses[e] = None
            work += [(x, False) for x in _inner_loads(e)]
        elif e not in seen:
            seen.add(e)
            if e.op is Op.AXIS:
                elsewhere.add(e)
            work += [(x, e.op in (Op.LOAD, Op.LT, Op.EQ)) for x in e.src]
    return list(uses), elsewhere


def _inner_loads(index: Expr) -> list[Expr]:
    """Loads inside an index (a gather); their own indices are uses too."""
    return [e for e in expr.toposort([index]) if e.op is Op.LOAD]
