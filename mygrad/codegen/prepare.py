"""The first pass of lowering: a scheduled kernel in terms of its loops.

    kernel.axes, REDUCE(op, axes), SCAN(op, axis, bound)  ->  the same, over the schedule's loops

Afterwards no axis of extent 0 or 1 is left, every root axis is written as the sum of its loops, a
REDUCE lists loops, every load is safe to execute wherever its axes are bound, and the only SCANs
are those that a single accumulator can carry along the innermost loops of their store (others
became reductions with a condition); their axis is the last of these loops.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace

from mygrad import dtype as dt
from mygrad.codegen.actions import LoopAxis, Schedule, definition
from mygrad.codegen.keeping import Repeat, repeats
from mygrad.codegen.stmt import Scratch
from mygrad.expr import (
    Expr,
    alu,
    axis,
    both,
    conjuncts,
    const,
    free_axes,
    from_linear,
    less,
    linear,
    load,
    rebuild,
    reduce,
    scan,
    substitute,
    toposort,
    where,
)
from mygrad.helpers import ceildiv, prod, strides_of
from mygrad.kernel import BufferInfo, Store, roots_of, store_axes
from mygrad.numeric import identity
from mygrad.ops import ALU, Op

BLOCK = 4096  # terms of a sum that one accumulator adds up, where the loops allow it


def prepare(schedule: Schedule) -> tuple[list[Store], list[Kept]]:
    """The stores of the kernel over the loops of the schedule; those that run over an empty axis
    are gone. And the values that are kept: what reads them does so already."""
    alive = [s for s in schedule.kernel.stores if all(a.arg[1] > 0 for a in store_axes(s))]
    carried = _carried_scans(alive)
    mapping = _axis_values(schedule, carried)
    nodes = toposort([e for store in alive for e in roots_of(store)])
    for n, number in enumerate(schedule.kept if alive else ()):
        mapping |= _reads_of(schedule, repeats(schedule.kernel)[number], f"k{n}")
    for e in nodes:
        if e not in mapping:
            mapping[e] = _convert(schedule, e, mapping, carried)
    kept = [
        _kept(schedule, repeats(schedule.kernel)[number], f"k{n}", mapping)
        for n, number in enumerate(schedule.kept if alive else ())
    ]
    return [
        replace(
            store,
            index=mapping[store.index],
            value=mapping[store.value],
            valid=None if store.valid is None else mapping[store.valid],
            ordered_axes=_loop_axes(schedule, store.ordered_axes),
        )
        for store in alive
    ], kept


def _axis_values(schedule: Schedule, carried: dict[Expr, Expr]) -> dict[Expr, Expr]:
    """Every root axis as the sum of its loops; the bound of a carried scan is the axis it runs
    along."""
    mapping: dict[Expr, Expr] = {}
    roots = {p.root for p in schedule.loops}
    for root in roots:
        mapping[root] = definition(schedule, root)
    for bound, along in carried.items():
        mapping[bound] = mapping.get(along, const(0))
    return mapping


def _carried_scans(stores: list[Store]) -> dict[Expr, Expr]:
    """bound -> axis for the scans that one accumulator can carry: those of a store that scans along
    a single axis, outside of every other scan and reduction."""
    along: dict[Expr, Expr] = {}
    refused: set[Expr] = set()
    for store in stores:
        scans = [e for e in toposort(roots_of(store)) if e.op is Op.SCAN]
        if len({e.arg[1] for e in scans}) > 1 or _nested(store) or store.ordered_axes:
            refused |= {e.arg[2] for e in scans}
        for e in scans:
            if along.setdefault(e.arg[2], e.arg[1]) is not e.arg[1]:
                refused.add(e.arg[2])
    return {bound: axis for bound, axis in along.items() if bound not in refused}


def _nested(store: Store) -> bool:
    inside = toposort(
        [s for e in toposort(roots_of(store)) if e.op in (Op.REDUCE, Op.SCAN) for s in e.src]
    )
    return any(e.op is Op.SCAN for e in inside)


def _loop_axes(schedule: Schedule, roots: tuple[Expr, ...]) -> tuple[Expr, ...]:
    return tuple(p.axis for p in schedule.loops if p.root in roots)


def _convert(
    schedule: Schedule, e: Expr, done: dict[Expr, Expr], carried: dict[Expr, Expr]
) -> Expr:
    if e.op is Op.AXIS:  # no loop: extent 1, or the bound axis of a scan that becomes a reduction
        return const(0) if e.arg[1] <= 1 else e
    src = tuple(done[s] for s in e.src)
    if e.op is Op.REDUCE:
        return _convert_reduce(schedule, e, src[0])
    if e.op is Op.SCAN:
        return _convert_scan(schedule, e, src[0], done, carried)
    if e.op is Op.LOAD:
        return guarded_load(e, src, schedule.kernel.buffers)
    return e if all(a is b for a, b in zip(src, e.src, strict=True)) else rebuild(e, src)


def _convert_reduce(schedule: Schedule, e: Expr, body: Expr) -> Expr:
    op, roots = e.arg
    if any(a.arg[1] == 0 for a in roots):
        return const(identity(op, e.dtype), e.dtype)
    axes = _loop_axes(schedule, roots)
    if op is Op.ADD and e.dtype.is_float and e.dtype is not dt.float64:
        outer = _outer_loops(schedule, axes)
        inner = tuple(a for a in axes if a not in outer)
        # a sum inside that does not change from block to block would be done once, for all of them
        if inner and outer and frozenset(outer) <= free_axes(body):
            return reduce(op, reduce(op, body, inner), outer)
    return reduce(op, body, axes) if axes else body


def _outer_loops(schedule: Schedule, axes: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """The loops of a long sum that add up sums of their own. Adding term after term to one number
    loses a bit with every doubling of their count; blocks lose as much as the longer of the two
    sums."""
    last = max(
        (n for n, p in enumerate(schedule.loops) if p.root in schedule.kernel.axes), default=-1
    )
    loops = [
        p for n, p in enumerate(schedule.loops) if p.axis in axes and not p.is_tile and n > last
    ]
    trips, inner = 1, 0
    for p in reversed(loops):
        if inner and trips * p.extent > BLOCK:
            break
        trips, inner = trips * p.extent, inner + 1
    outer = loops[: len(loops) - inner]
    long = trips * prod(p.extent for p in outer) > 2 * BLOCK
    return tuple(p.axis for p in outer) if long else ()


def _convert_scan(
    schedule: Schedule, e: Expr, body: Expr, done: dict[Expr, Expr], carried: dict[Expr, Expr]
) -> Expr:
    op, along, bound = e.arg
    if along.arg[1] == 1:
        return body
    if bound in carried:
        return scan(op, body, schedule.parts(along)[-1].axis, bound)
    here = done.get(along, along)
    keep = less(bound, here + 1)
    return reduce(op, where(keep, body, const(identity(op, e.dtype), e.dtype)), (bound,))


def guarded_load(e: Expr, src: tuple[Expr, ...], buffers: tuple[BufferInfo, ...]) -> Expr:
    """The load with loads inside of its index made safe: they may be out of bounds where it is not
    valid."""
    if len(src) == 1 or not any(_may_leave(n, buffers) for n in toposort([src[0]])):
        return load(e.arg, e.dtype, *src)
    valid = src[1]
    safe: dict[Expr, Expr] = {}
    reduced = {x for n in toposort([src[0]]) if n.op in _LOOPS for x in toposort(n.src)}
    for n in toposort([src[0]]):
        inner = tuple(safe[s] for s in n.src)
        guard = _without_reads(valid) if n in reduced else valid
        if _may_leave(n, buffers) and guard is not None:
            own = both(inner[1], guard) if len(inner) == 2 else guard
            safe[n] = load(n.arg, n.dtype, inner[0], own)
        else:
            safe[n] = (
                n if all(a is b for a, b in zip(inner, n.src, strict=True)) else rebuild(n, inner)
            )
    return load(e.arg, e.dtype, safe[src[0]], valid)


_LOOPS = frozenset({Op.REDUCE, Op.SCAN})


def _without_reads(valid: Expr) -> Expr | None:
    """The part of a condition that can be asked inside of a reduction in the index that it guards:
    what the reduction gives is not known there, and what it reads is valid by itself."""
    known = [
        c
        for c in conjuncts(valid)
        if not any(x.op in _LOOPS or x.op is Op.LOAD for x in toposort([c]))
    ]
    return functools.reduce(both, known) if known else None


def _may_leave(e: Expr, buffers: tuple[BufferInfo, ...]) -> bool:
    if e.op is not Op.LOAD or not isinstance(e.arg, int):
        return False
    where_ = e.src[0]
    known = where_.low is not None and where_.high is not None
    return not (known and where_.low >= 0 and where_.high < buffers[e.arg].size)  # type: ignore[operator]


def combine(op: Op, a: Expr, b: Expr) -> Expr:
    """a `op` b, for the operator of a reduction."""
    if a.dtype is dt.bool_ and op in (Op.ADD, Op.MAX, Op.MUL):
        return alu(Op.AND if op is Op.MUL else Op.OR, a, b)
    return alu(op, a, b)


# --- kept values ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """A value that the reduction `filled`, where it computes `body`, puts into scratch memory."""

    scratch: Scratch
    index: Expr
    value: Expr
    body: Expr
    filled: Expr


def _cells(schedule: Schedule, repeat: Repeat, axes: tuple[Expr, ...]) -> tuple[Expr, int]:
    """Which cell of the scratch row holds the value at a point of `axes`, and the number of cells:
    rows that run in lockstep have some each, those that are lanes next to each other."""
    rows = [p for p in schedule.loops if p.is_tile and p.root in free_axes(repeat.filled)]
    loops = [p for p in rows if p.kind == "unroll"]
    index, size = row_major(loops), prod(p.extent for p in loops)
    lanes = [p for p in rows if p.kind == "vector"]
    for a in axes:
        index, size = index * a.arg[1] + definition(schedule, a), size * a.arg[1]
    for p in lanes:
        index, size = index * p.extent + p.axis, size * p.extent
    return index, size


def _reads_of(schedule: Schedule, repeat: Repeat, name: str) -> dict[Expr, Expr]:
    """What later nests compute again, as loads of the scratch row."""
    return {
        value: load(name, value.dtype, _cells(schedule, repeat, axes)[0])
        for value, axes in repeat.reads
    }


def _kept(schedule: Schedule, repeat: Repeat, name: str, mapping: dict[Expr, Expr]) -> Kept:
    index, size = _cells(schedule, repeat, repeat.axes)
    body, filled = mapping[repeat.filled.src[0]], mapping[repeat.filled]
    return Kept(Scratch(name, repeat.value.dtype, size), index, mapping[repeat.value], body, filled)


# --- staged operands ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Staged:
    """A value that is put into scratch memory: where, and which cell holds it. It is the load of a
    staged buffer with all that is computed from it for the same loops."""

    at: LoopAxis | None  # None: outside of all loops
    layout: tuple[LoopAxis, ...]
    scratch: Scratch
    index: Expr
    load: Expr
    value: Expr
    transposed: bool

    @property
    def read(self) -> Expr:
        """The cell instead of the value."""
        return load(self.scratch.name, self.value.dtype, self.index)


def staged_values(schedule: Schedule, roots: Iterable[Expr]) -> dict[Expr, Staged]:
    """What is staged in these expressions, by the value that the copy takes the place of."""
    staged: dict[Expr, Staged] = {}
    if not schedule.stages:
        return staged
    order = toposort(list(roots))
    for e in order:
        stage = next((t for t in schedule.stages if e.op is Op.LOAD and t.slot == e.arg), None)
        if stage is None:
            continue
        layout = tuple(schedule.loop(name) for name in stage.layout)
        at = schedule.loop(stage.at) if stage.at else None
        value = _prologue(schedule, e, at, order)
        scratch = Scratch(f"s{len(staged)}", value.dtype, prod(p.extent for p in layout))
        staged[value] = Staged(at, layout, scratch, row_major(layout), e, value, stage.transposed)
    return staged


def _prologue(schedule: Schedule, e: Expr, at: LoopAxis | None, order: list[Expr]) -> Expr:
    """The last value through which all uses of a staged load go, of the values that depend on no
    further loop inside of the copy's place. It is computed once, as it is copied.

    sum over k of exp(A[i, k]) * B[k, j], A staged  ->  S = exp(A) in the copy; S[i, k] * B[k, j]
    """
    outside = schedule.loops[: schedule.loops.index(at) + 1] if at else ()
    axes = free_axes(e) | {p.axis for p in outside}
    slots = {t.slot for t in schedule.stages}
    uses: dict[Expr, int] = {}
    for n in order:
        for src in set(n.src):
            uses[src] = uses.get(src, 0) + 1
    best, waiting = e, {e: uses.get(e, 0)}
    for n in order[order.index(e) + 1 :]:
        met = [src for src in set(n.src) if src in waiting]
        if not met:
            continue
        if n.op not in ALU or not free_axes(n) <= axes:
            break
        for src in met:
            waiting[src] -= 1
            if not waiting[src]:
                del waiting[src]
        waiting[n] = uses.get(n, 0)
        if len(waiting) == 1 and not _is_busy(n, e, slots):
            best = n
    return best


def _is_busy(e: Expr, own: Expr, slots: set[int]) -> bool:
    """Whether a value has loops of its own, or reads another element than its own of one of these
    buffers, or scratch memory, which holds something else in every iteration of loops that its
    index does not name."""
    return any(
        n.op in _LOOPS
        or (n.op is Op.LOAD and n is not own and (n.arg in slots or isinstance(n.arg, str)))
        for n in toposort([e])
    )


def in_lanes(
    staged: Staged, loops: list[LoopAxis], next_id: int
) -> tuple[list[LoopAxis], Expr, Expr]:
    """The loops, index and value of a copy without lanes. Copies that are next to each other in
    memory and in scratch become lanes, all or as many as share a power of two; the new axes are
    numbered from `next_id`.

    for mo: for k: unroll mi: S[mo, k, mi] = A[k, m]  ->  for mo: for k: vector mi: ..."""
    index, value = staged.index, staged.value
    (read, _), (written, _) = linear(staged.load.src[0]), linear(index)
    near = [p for p in loops if p.kind == "unroll" and read.get(p.axis) == written.get(p.axis) == 1]
    whole = next((p for p in near if p.stride == 1 and p.extent % 2 == 0), None)
    if whole is None or any(p.kind == "vector" for p in loops):
        return loops, index, value
    width = min(whole.extent & -whole.extent, 16)
    if width < 4 and value is staged.load:  # single elements move as fast, but compute more slowly
        return loops, index, value
    lanes = LoopAxis("", axis(next_id, width), whole.root, 1, "vector")
    parts, place = [lanes], lanes.axis
    if width < whole.extent:
        outer = axis(next_id + 1, whole.extent // width)
        parts.insert(0, LoopAxis("", outer, whole.root, width, "unroll"))
        place = outer * width + place
    renamed = {whole.axis: place}
    others = [p for p in loops if p is not whole]
    return [*others, *parts], substitute(index, renamed), substitute(value, renamed)


def in_blocks(
    schedule: Schedule, staged: Staged, loops: list[LoopAxis], next_id: int
) -> tuple[list[LoopAxis], Expr, Expr]:
    """The loops, index and value of a copy. Where its lanes are far apart and another axis is
    contiguous, it goes by square blocks, which a renderer transposes in registers; their two axes
    are numbered from `next_id`.

    for k: for jo: vector ji: S[k, jo, ji] = B[j, k]
    ->  for ko: for jo: unroll ki: vector ji: S[k, jo, ji] = B[j, k]
    """
    index, value, source = staged.index, staged.value, staged.load.src[0]
    (read, start), (written, offset) = linear(source), linear(index)
    lanes = next((p for p in loops if p.kind == "vector"), None)
    far = lanes is not None and abs(read.get(lanes.axis, 0)) >= lanes.extent
    root = next((p.root for p in loops if read.get(p.axis) == p.stride and p is not lanes), None)
    if lanes is None:
        return in_lanes(staged, loops, next_id)
    if root is None or not staged.transposed or not far or len(staged.load.src) > 1:
        return loops, index, value
    parts = schedule.parts(root)
    own, step = frozenset(p.axis for p in parts), written.get(parts[-1].axis, 0)
    if (
        not all(p.kind == "seq" and p in loops for p in parts)
        or any(read.get(p.axis) != p.stride for p in parts)
        or any(written.get(p.axis) != step * p.stride for p in parts)
        or any(free_axes(t) & own for t in (*read, *written) if t.op is not Op.AXIS)
        or (value is not staged.load and len(parts) > 1)
    ):
        return loops, index, value
    size = lanes.extent
    outer = LoopAxis("", axis(next_id, ceildiv(root.arg[1], size)), root, size)
    inner = LoopAxis("", axis(next_id + 1, size), root, 1, "unroll")
    for terms, factor in ((read, 1), (written, step)):
        for p in parts:
            terms.pop(p.axis)
        terms[outer.axis], terms[inner.axis] = factor * size, factor
    # everything else runs in order: one block is as much as there are registers for
    others = [replace(p, kind="seq") for p in loops if p not in parts and p is not lanes]
    others.insert(loops.index(parts[0]), outer)
    if value is staged.load:
        value = load(value.arg, value.dtype, from_linear(read, start))
    else:
        value = substitute(value, {parts[0].axis: outer.axis * size + inner.axis})
    return [*others, inner, lanes], from_linear(written, offset), value


# --- deferred stores ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Handover:
    """A reduction whose result is put into scratch memory inside of its tile, and read after it."""

    scratch: Scratch
    index: Expr
    value: Expr


def defer_stores(schedule: Schedule, stores: list[Store]) -> tuple[list[Store], list[Handover]]:
    """The stores that can wait for the end of their tile, reading scratch memory instead of
    reductions."""
    loops = [schedule.loop(name) for name in schedule.deferred]
    handovers: dict[Expr, Handover] = {}
    changed = []
    for store in stores:
        axes = axes_of(store)
        found = [e for e in toposort(roots_of(store)) if e.op is Op.REDUCE and free_axes(e) == axes]
        if not found or not _can_wait(schedule, loops, axes) or store.ordered_axes:
            changed.append(store)
            continue
        cells = [p for p in schedule.loops if p.is_tile and p.axis in axes]
        for e in found:
            if e not in handovers:
                index = row_major(cells)
                size = prod(p.extent for p in cells)
                handovers[e] = Handover(Scratch(f"t{len(handovers)}", e.dtype, size), index, e)
        cell = {e: load(handovers[e].scratch.name, e.dtype, handovers[e].index) for e in found}
        changed.append(replace(store, value=substitute(store.value, cell)))
    return changed, list(handovers.values())


def _can_wait(schedule: Schedule, loops: list[LoopAxis], axes: frozenset[Expr]) -> bool:
    """Whether from the first deferred loop inwards there is nothing but the tile."""
    order = [p for p in schedule.loops if p.axis in axes]
    first = min((order.index(p) for p in loops if p in order), default=-1)
    known = all(p in order for p in loops)
    return bool(loops) and known and all(p.is_tile for p in order[first:])


def row_major(loops: Iterable[LoopAxis]) -> Expr:
    """The number of a point in an array over these loops."""
    found = list(loops)
    index = const(0)
    for p, step in zip(found, strides_of(tuple(p.extent for p in found)), strict=True):
        index = index + p.axis * step
    return index


def axes_of(store: Store) -> frozenset[Expr]:
    """The loops a prepared store runs over."""
    return frozenset().union(*(free_axes(e) for e in roots_of(store)))
