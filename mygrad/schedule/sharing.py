"""Kernels that differ only in where they read become one kernel, which is told where.

    y0[i] = x[i] * s[3]                             y[i] = x[i] * s[p]     p = 3
    y1[i] = x[i] * s[7]      a kernel each  ->      one for all            p = 7
    y2[i] = x[i] * s[9]                                                    p = 9

So an optimiser that keeps a number for each parameter in one array, or a loop over time that was
unrolled, is compiled once, and not once for each number. A place becomes a run-time integer
only where that spares kernels: as a constant, code generators know more about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from mygrad import expr
from mygrad.algebra import linear
from mygrad.expr import Expr
from mygrad.kernel import Kernel, Store, named, roots_of, stem_of
from mygrad.ops import Op
from mygrad.schedule.build import Built

LEAST = 3  # kernels that one must stand for


class _Bare(NamedTuple):
    """A kernel whose loads begin at element 0 of a slot, and where they began."""

    kernel: Kernel
    stores: tuple[Store, ...]
    places: dict[int, int]


def share(built: Sequence[Built]) -> list[Built]:
    """The same work by fewer kernels; `constants` of the results say where they read."""
    alike: dict[object, dict[Kernel, None]] = {}
    for kernel in {b.kernel: None for b in built}:
        extents = tuple(a.arg[1] for a in kernel.axes)
        look = (extents, kernel.buffers, len(kernel.stores), kernel.params)
        alike.setdefault(look, {})[kernel] = None
    shared: dict[Kernel, tuple[Kernel, tuple[tuple[str, int], ...]]] = {}
    for kernels in alike.values():
        if len(kernels) < LEAST:
            continue
        same: dict[tuple[Store, ...], list[_Bare]] = {}
        for bare in map(_bare, kernels):
            same.setdefault(bare.stores, []).append(bare)
        for found in same.values():
            if len(found) >= LEAST:
                shared.update(_unite(found))
    return [_replaced(b, *shared[b.kernel]) if b.kernel in shared else b for b in built]


def _replaced(b: Built, kernel: Kernel, constants: tuple[tuple[str, int], ...]) -> Built:
    reason, location = b.kernel.reason, b.kernel.location
    return replace(b, kernel=replace(kernel, reason=reason, location=location), constants=constants)


def _bare(kernel: Kernel) -> _Bare:
    loads: dict[int, list[Expr]] = {}
    for e in kernel.nodes:
        if e.op is Op.LOAD and not kernel.buffers[e.arg].written:
            loads.setdefault(e.arg, []).append(e)
    places: dict[int, int] = {}
    moved: dict[Expr, Expr] = {}
    for slot, here in loads.items():
        place = min(linear(e.src[0])[1] for e in here)
        if place > 0 and not any(_reads(e.src) for e in here):
            moved.update((e, _load_from(e, e.src[0] - place)) for e in here)
            places[slot] = place
    return _Bare(kernel, _with_loads(kernel.stores, moved), places)


def _reads(roots: Sequence[Expr]) -> bool:
    return any(e.op is Op.LOAD for e in expr.toposort(roots))


def _load_from(e: Expr, index: Expr) -> Expr:
    return expr.load(e.arg, e.dtype, index, *e.src[1:])


def _with_loads(stores: tuple[Store, ...], moved: dict[Expr, Expr]) -> tuple[Store, ...]:
    if not moved:
        return stores
    return tuple(
        replace(
            s,
            index=expr.substitute(s.index, moved),
            value=expr.substitute(s.value, moved),
            valid=None if s.valid is None else expr.substitute(s.valid, moved),
        )
        for s in stores
    )


def _unite(found: list[_Bare]) -> dict[Kernel, tuple[Kernel, tuple[tuple[str, int], ...]]]:
    first = found[0].kernel
    ranges: dict[int, tuple[int, int]] = {}
    for slot in sorted({slot for bare in found for slot in bare.places}):
        places = [bare.places.get(slot, 0) for bare in found]
        ranges[slot] = min(places), max(places)
    params = {slot: (f"place{slot}", *r) for slot, r in ranges.items() if r[0] < r[1]}
    moved: dict[Expr, Expr] = {}
    for e in expr.toposort([root for s in found[0].stores for root in roots_of(s)]):
        if e.op is Op.LOAD and e.arg in ranges:
            place = expr.param(*params[e.arg]) if e.arg in params else ranges[e.arg][0]
            moved[e] = _load_from(e, e.src[0] + place)
    stores = _with_loads(found[0].stores, moved)
    made = replace(first, stores=stores, params=tuple(sorted((*first.params, *params.values()))))
    made = named(made, stem_of(first))
    return {
        bare.kernel: (
            made,
            tuple((name, bare.places.get(slot, 0)) for slot, (name, _, _) in params.items()),
        )
        for bare in found
    }
