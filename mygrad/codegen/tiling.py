"""Stride and reuse analysis of one nest of a kernel: its vector axis and its register tile."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from mygrad import dtype as dt
from mygrad.codegen.keeping import own_nodes, repeats
from mygrad.codegen.stmt import SHORT, is_straight
from mygrad.expr import Expr, free_axes, stride, toposort
from mygrad.helpers import ceildiv, power_of_two, prod, strides_of
from mygrad.kernel import Kernel, Store, roots_of, store_axes
from mygrad.ops import ALU, TRANSCENDENTAL, Op
from mygrad.program import Target

PANEL = 512  # steps of a sum, at most, that are done for all results before the next ones
SPLAT = 0.3  # loading a scalar and spreading it, where loading a vector costs 1
SKIPPED = 3.0  # loading every other element: two vectors and a shuffle
LINE = 64  # bytes of a line of a cache
AGAIN = 4.0  # times that, what a line costs that is never there when it is needed
LENIENT = 2  # lines more than have a place, of which most are there all the same
FETCHED = 0.25  # what a line costs a tile that comes from the second cache
MANY = 8  # vectors along an axis, from which on the one with a mask does not count
TURN = 2.0  # what a turn of the loop around a tile costs
LATER = 0.99  # a store that is far away waits for nothing: of two such orders, loads go on
RIVAL = 2.0  # times the cost of the best vector axis, up to which tiles of others are looked at
STRIDED_STORE = (
    1.2  # parts of lines are written many times, where a gather reads them from the cache
)
PAGE = 4096  # bytes; lanes on pages of their own cost an address translation each
COPIES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14)
VECTORS = (1, 2, 3, 4)
SECOND = (1, 2, 4)
LOADS = 0.25  # what a load costs beside a multiply-add, of which a cycle does as many
LOADED = 0.05  # the same in a register tile,
LOADED_LINE = 0.15  # and where a vector is a whole line of the cache
SQUARE = 2.0  # what a vector of a square costs that is turned in registers, beside its turns
FIRST = 3  # axes of which there may be many copies in a tile
TURNED = 2.0  # times its share that a vector costs which is stored as a part of rows
COPY = 0.5  # what it costs to load and place an element of a copy, many of which overlap
SPARE = 2  # registers for a spread scalar and a constant
ROOM = 8  # registers beside the sums of a whole row
SIMPLE = 4  # operations of which these are enough for
ENOUGH = 8  # accumulators that hide the latency of a fused multiply-add
PLENTY = 12  # and that still do where loads come late
CROWD = 0.02  # what a copy costs, as a share, where all read rows of their own
MAX_SQUARE = 16  # lanes of a square that is turned
MAX_LANES = {"opencl": 16}
SCRATCH = -1  # the slot of accesses to scratch memory


@dataclass
class Access:
    """A load or store: how far it moves along each axis of its nest; None where that is no
    constant."""

    strides: dict[Expr, int | None]
    itemsize: int
    stores: bool
    slot: int
    nbytes: int = 0  # of the whole buffer
    guarded: bool = False  # whether a condition says where it may be read
    can_stage: bool = False  # read in this nest alone, at indices that nothing else decides
    near: bool = False  # a constant number of elements from another access, on its pages

    def cost(self, axis: Expr, lanes: int) -> float:
        """Of one vector along `axis`."""
        step = self.strides.get(axis, 0)
        if step == 0:
            return SPLAT
        if step == 1:
            return 1.0
        if step == 2 and not self.stores:
            return min(float(lanes), SKIPPED)
        far = 1.0 + (not self.near) * min(abs(step or PAGE) * self.itemsize, PAGE) / PAGE
        return lanes * far * (STRIDED_STORE if self.stores else 1.0)

    def packed_cost(
        self, nest: Nest, axis: Expr, lanes: int, target: Target, vectors: int = 1
    ) -> tuple[float, float]:
        """Of one of `vectors` along `axis`, if the operand may be staged; and for each operation
        the share of the copy, which all that read it have in common."""
        cost = self.cost(axis, lanes)
        if beside(nest, self, axis, lanes, target) is not None:
            return min(cost, SQUARE + lanes.bit_length()), 0.0
        if self.strides.get(axis, 0) == 1 and any(slides(self, axis, r) for r in nest.reduced):
            # it begins anywhere: as a part of two lines, the more often the longer it is
            crossing = (lanes - 1) * self.itemsize / LINE
            return (1.0 + min(crossing, 1.0) if axis not in nest.reduced else cost), 0.0
        # a window that slides is copied once for every place it is at in the tile
        windows = [
            a for a in nest.axes if any(slides(self, a, r) for r in nest.reduced if r is not a)
        ]
        copied = prod(
            a.arg[1] if a in nest.reduced else min(a.arg[1], ENOUGH)
            for a in nest.axes
            if (a in nest.reduced and self.strides.get(a, 0) != 0)
            or (a in windows and a is not axis)
        )
        fits = copied * lanes * vectors * self.itemsize <= room_of(target)
        if cost <= 1.0 or not self.can_stage or not fits:
            return cost, 0.0
        uses = prod(
            a.arg[1] for a in nest.axes if a not in nest.reduced and self.strides.get(a, 0) == 0
        )
        copy = COPY * (cost + lanes) / uses  # each element is loaded and put in its lane
        return min((cost, 0.0), (1.0, copy), key=lambda c: c[0] / nest.shared(self) + c[1])


@dataclass
class Nest:
    """A store or a reduction: the axes in scope, those it reduces, and what it reads and writes."""

    axes: tuple[Expr, ...]
    reduced: tuple[Expr, ...]
    accesses: list[Access]
    results: list[Access]  # of a reduction: those of the stores that it may reach
    itemsize: int
    operations: int
    heavy: bool  # whether there are transcendentals
    scanned: frozenset[Expr]  # axes along which scans run
    alone: bool = False  # whether the kernel is this nest, and stores what it computes as it is
    known: dict[tuple[int, Expr, int, int], tuple[float, float]] = field(default_factory=dict)

    def packed_cost(
        self, access: Access, axis: Expr, lanes: int, target: Target, vectors: int
    ) -> tuple[float, float]:
        """`Access.packed_cost`, computed once."""
        key = id(access), axis, lanes, vectors
        if key not in self.known:
            self.known[key] = access.packed_cost(self, axis, lanes, target, vectors)
        return self.known[key]

    @property
    def work(self) -> int:
        """Operations of the whole nest."""
        return prod(a.arg[1] for a in self.axes) * max(self.operations, 1)

    def shared(self, access: Access) -> int:
        """Points of a register tile that a load is shared by: copies along axes it does not depend
        on."""
        if not self.reduced or access.stores:
            return 1
        free = [a for a in self.axes if a not in self.reduced and access.strides.get(a, 0) == 0]
        return min(prod(a.arg[1] for a in free), ENOUGH)

    def moved(self, axis: Expr, tile: Tile, target: Target) -> float:
        """Bytes that a step along `axis` has to fetch anew: also those that are the same in every
        step, where they do not stay in the first cache. For a nest without a reduction, how many
        bytes away, on pages that are far in any case, so that contiguous axes are innermost."""
        if not self.reduced:
            far = [(min(_step(a, axis) * tile.size(axis), PAGE), a.stores) for a in self.accesses]
            return sum(n * (LATER if stores else 1.0) for n, stores in far)
        if axis in self.reduced:
            steps = [_step(a, axis) * tile.size(axis) for a in self.accesses if not a.stores]
            return float(sum(min(s, PAGE) for s in steps))
        fetched, kept = 0.0, 0.0
        for access in self.accesses:
            if access.stores:
                continue
            own = [a for a in self.axes if access.strides.get(a, 0) != 0]
            size = prod(a.arg[1] if a in self.reduced else tile.size(a) for a in own)
            if axis in own:
                fetched += size * access.itemsize
            else:
                kept += size * access.itemsize
        return fetched if kept <= target.l1_bytes // 2 else fetched + kept


def room_of(target: Target) -> int:
    """Bytes that a copy of an operand may have: it stays in the second cache while others pass."""
    return target.l2_bytes * 3 // 4


def _step(access: Access, axis: Expr) -> int:
    """Bytes from one element to the next along an axis; a page where that is not known."""
    step = access.strides.get(axis, 0)
    return PAGE if step is None else abs(step) * access.itemsize


@dataclass
class Tile:
    """Lanes and copies of each axis that has some; `runs` of a reduction that are written out. With
    lanes of another axis, those `across` make squares of operands that are turned in registers."""

    lanes: dict[Expr, int] = field(default_factory=dict)
    copies: dict[Expr, int] = field(default_factory=dict)
    runs: dict[Expr, int] = field(default_factory=dict)
    across: Expr | None = None

    def size(self, axis: Expr) -> int:
        """Points of the axis that one tile covers."""
        return self.lanes.get(axis, 1) * self.copies.get(axis, 1)


# --- nests ----------------------------------------------------------------------------------------


def nests_of(kernel: Kernel, kept: Iterable[int] = ()) -> list[Nest]:
    """The stores, those over the same axes together, then the reductions; of the repeats that are
    `kept`, later nests read rows."""
    nests: list[Nest] = []
    rows = {value: axes for n in kept for value, axes in repeats(kernel)[n].reads}
    together: dict[tuple[Expr, ...], list[Store]] = {}
    for store in kernel.stores:
        own = store_axes(store)
        together.setdefault(tuple(a for a in kernel.axes if a in own), []).append(store)
    for axes, stores in together.items():
        widest = max((s.value.dtype for s in stores), key=lambda t: t.itemsize)
        roots = [e for s in stores for e in roots_of(s)]
        nest = _nest(kernel, roots, axes, (), widest, rows)
        for s in stores:
            along = {a: stride(s.index, a) for a in axes}
            nest.accesses.append(Access(along, s.value.dtype.itemsize, True, s.slot))
        _note_near(nest.accesses)
        nests.append(nest)
    for e in toposort([e for store in kernel.stores for e in roots_of(store)]):
        if e.op is Op.REDUCE:
            order = sorted(free_axes(e.src[0]) | set(e.arg[1]), key=lambda a: a.arg[0])
            nest = _nest(kernel, [e.src[0]], tuple(order), e.arg[1], e.dtype, rows)
            nest.results = [
                x
                for n in nests
                if not n.reduced and free_axes(e) <= frozenset(n.axes)
                for x in n.accesses
                if any(x.strides.values())
            ]
            nests.append(nest)
    reads: dict[int, int] = {}
    for access in (x for n in nests for x in n.accesses):
        reads[access.slot] = reads.get(access.slot, 0) + 1
    for access in (x for n in nests for x in n.accesses):
        access.can_stage = access.can_stage and reads[access.slot] == 1
    plain = all(s.mode == "set" and not s.ordered_axes for s in kernel.stores)
    if len(nests) == 1 and plain:
        nests[0].alone = not nests[0].reduced and not nests[0].scanned
    return [n for n in nests if all(a.arg[1] > 0 for a in n.axes)]


def _note_near(accesses: Iterable[Access]) -> None:
    """Of accesses that move alike in one array, only the first one is far from all others."""
    met: set[tuple[object, ...]] = set()
    for x in accesses:
        like = x.slot, x.stores, *((a, n) for a, n in x.strides.items())
        x.near = like in met and None not in x.strides.values()
        met.add(like)


def _nest(
    kernel: Kernel,
    roots: list[Expr],
    axes: tuple[Expr, ...],
    reduced: tuple[Expr, ...],
    dtype: dt.DType,
    rows: dict[Expr, tuple[Expr, ...]],
) -> Nest:
    accesses: list[Access] = []
    operations, size, heavy = 0, dtype.itemsize, False
    scanned: set[Expr] = set()
    for e in own_nodes(roots, rows):
        if e in rows:
            accesses.append(_row_load(e, axes, rows[e]))
            continue
        if e.op is Op.LOAD:
            accesses.append(_load(kernel, e, axes))
        elif e.op is Op.SCAN:
            scanned.add(e.arg[1])
        if e.op in ALU and (e.dtype is not dt.index or size == 8):
            operations += 1
            heavy = heavy or e.op in TRANSCENDENTAL
            if e.dtype.is_float:
                size = max(size, e.dtype.itemsize)
    axes = tuple(a for a in axes if a.arg[1] != 1)
    return Nest(
        axes,
        tuple(a for a in reduced if a.arg[1] != 1),
        accesses,
        [],
        max(size, 1),
        operations,
        heavy,
        frozenset(scanned),
    )


def _load(kernel: Kernel, e: Expr, axes: tuple[Expr, ...]) -> Access:
    along = {a: stride(e.src[0], a) for a in axes}
    plain = all(n.op not in (Op.LOAD, Op.REDUCE, Op.SCAN) for n in toposort(e.src))
    # a copy has one cell for each index: a guard that looks at further axes would need more
    plain = plain and all(along.get(a, 0) != 0 for a in free_axes(e) if a.arg[1] != 1)
    info = kernel.buffers[e.arg]
    return Access(
        along,
        e.dtype.itemsize,
        False,
        e.arg,
        info.size * e.dtype.itemsize,
        len(e.src) > 1,
        plain and not info.written,
    )


def _row_load(e: Expr, axes: tuple[Expr, ...], row: tuple[Expr, ...]) -> Access:
    """Of a scratch row (`Keep`), laid out over the axes `row`; further axes number rows, of which
    those that are lanes lie side by side."""
    along: dict[Expr, int | None] = dict.fromkeys(free_axes(e) - set(row), 1)
    along |= zip(row, strides_of(tuple(a.arg[1] for a in row)), strict=True)
    size = prod(a.arg[1] for a in row)
    return Access({a: along.get(a, 0) for a in axes}, e.dtype.itemsize, False, SCRATCH, size)


# --- the vector axis ------------------------------------------------------------------------------


def tile_of(
    nest: Nest, tile: Tile, fixed: frozenset[Expr], scalar: frozenset[Expr], target: Target
) -> None:
    """Choose what is not chosen yet about the axes of a nest; writes it into `tile`. Axes that are
    `fixed` run in order, those that are `scalar` have no lanes."""
    known = next((a for a in nest.axes if a in tile.lanes), None)
    vectors = [known] if known is not None else _vector_axes(nest, scalar, target)
    trials = [_with_lanes(nest, tile, a, target) for a in vectors]
    best, first = trials[0], vectors[0]
    copied = any(tile.copies.get(a, 1) > 1 for a in nest.axes)
    free = not copied and not nest.scanned and first not in fixed
    if free and nest.reduced:
        pairs = [(a, t) for a, t in zip(vectors, trials, strict=True) if a not in fixed]
        costs = [_register_tile(nest, t, a, fixed, target) for a, t in pairs]
        best = pairs[costs.index(min(costs))][1]
    elif free and first is not None:
        lanes = best.lanes[first]
        squares = [beside(nest, x, first, lanes, target) for x in nest.accesses]
        best.across = next((a for a in squares if a is not None and a not in fixed | scalar), None)
        turned = best.across
        best.copies[turned or first] = lanes if turned else _copies(nest, first, lanes, 4)
    tile.lanes, tile.copies, tile.runs = best.lanes, best.copies, best.runs
    tile.across = tile.across or best.across


def _with_lanes(nest: Nest, tile: Tile, axis: Expr | None, target: Target) -> Tile:
    """A copy of a tile in which an axis has lanes."""
    lanes = dict(tile.lanes)
    if axis is not None:
        lanes.setdefault(axis, _width(nest, axis, target))
    return Tile(lanes, dict(tile.copies), dict(tile.runs))


def _lanes(nest: Nest, target: Target) -> int:
    """Elements of the widest type of the nest in a vector register."""
    lanes = target.vector_bytes // max(nest.itemsize, 2)
    return max(min(lanes, MAX_LANES.get(target.language, 64)), 1)


def _width(nest: Nest, axis: Expr, target: Target) -> int:
    """Lanes along an axis. Lines that are whole pages apart have one place in the first cache: of
    more than it holds there none stays until the next access to it."""
    lanes = min(_lanes(nest, target), power_of_two(axis.arg[1]))
    steps = (_step(x, axis) for x in nest.accesses if x.near)
    crowded = any(step and step % PAGE == 0 for step in steps)
    return min(lanes, power_of_two(ways(target) // 2 + 1)) if crowded else lanes


def ways(target: Target) -> int:
    """How many lines the first cache holds of those that are a multiple of a page apart: a way of
    it is as large as a page, so that it can be asked while addresses are translated."""
    return max(target.l1_bytes // PAGE, 1)


def beside(nest: Nest, access: Access, vector: Expr, lanes: int, target: Target) -> Expr | None:
    """The axis along which lies side by side what lanes read apart, if a square of both can be
    turned in registers."""
    apart = not access.stores and access.strides.get(vector, 0) not in (0, 1)
    if not nest.alone or not apart or not access.can_stage:
        return None
    if target.language != "llvm" or not 4 <= lanes <= MAX_SQUARE:
        return None
    found = (a for a in nest.axes if a is not vector and access.strides.get(a, 0) == 1)
    return next((a for a in found if a.arg[1] >= lanes), None)


def _vector_axes(nest: Nest, scalar: frozenset[Expr], target: Target) -> list[Expr | None]:
    """The axis along which a point costs least, None where scalars are as good; then, for a
    reduction, those beside it whose register tile may be better."""
    lanes = _lanes(nest, target)
    shared = [nest.shared(x) for x in nest.accesses]
    least = 0.95 * _cycles(nest, sum(1.0 / s for s in shared))
    found: list[tuple[float, Expr]] = []
    for a in nest.axes:
        if a in scalar or lanes < 2:
            continue
        width = _width(nest, a, target)
        points = a.arg[1] / ceildiv(a.arg[1], width)  # of the axis in one vector, on average
        wide = 2 if nest.reduced and a.arg[1] > width else 1  # vectors of a good tile
        costs = [nest.packed_cost(x, a, width, target, wide) for x in nest.accesses]
        loads = sum(c / s for (c, _), s in zip(costs, shared, strict=True))
        # no scalar is spread over lanes along a sum: its tiles load more
        cost = 1.0 + loads if a in nest.reduced else _cycles(nest, loads)
        cost += sum(copy for _, copy in costs)
        once = prod(r.arg[1] for r in nest.reduced)  # iterations that share one result
        if a in nest.scanned:
            cost += width.bit_length()  # running values within a vector
        if a in nest.reduced:
            cost += width * width.bit_length() / once
        else:
            cost += sum(x.cost(a, width) for x in nest.results) / once
        found.append((cost / points, a))
    found = sorted((f for f in found if f[0] < least - 1e-9), key=lambda f: f[0])
    if not found:
        return [None]
    if not nest.reduced or found[0][1] in nest.reduced:
        return [found[0][1]]
    return [a for cost, a in found if a not in nest.reduced and cost <= RIVAL * found[0][0]]


def _cycles(nest: Nest, loads: float) -> float:
    """What a vector of operations and so many loads and stores take: those of a reduction with a
    register tile run beside each other, and the more of either decide."""
    return max(1.0, loads) + LOADS * loads if nest.reduced else 1.0 + loads


# --- the register tile ----------------------------------------------------------------------------


def _copies(nest: Nest, axis: Expr, lanes: int, wanted: int) -> int:
    """Vectors in flight along one axis: a number that leaves no remainder, if there is one."""
    vectors = ceildiv(axis.arg[1], lanes)
    if any(a.cost(axis, lanes) > 1.0 for a in nest.accesses):
        return 1
    if nest.heavy or nest.operations > 24:
        wanted = min(wanted, 2 if nest.operations < 60 else 1)
    if axis.arg[1] % lanes == 0:
        for copies in (wanted, 3, 2):
            if copies <= wanted and vectors % copies == 0:
                return copies
    return min(wanted, vectors) if vectors >= 4 * wanted or vectors <= wanted else 1


def _register_tile(
    nest: Nest, tile: Tile, vector: Expr | None, fixed: frozenset[Expr], target: Target
) -> float:
    """Copies of output axes that share loads, as many as there are registers; without any, several
    accumulators along the vector. Writes them into `tile`; what a point costs then."""
    spatial = [a for a in nest.axes if a not in nest.reduced and a not in fixed and a is not vector]
    loads = [a for a in nest.accesses if not a.stores]
    if vector is not None and sums_rows(nest, vector, target):
        whole = ceildiv(vector.arg[1], tile.lanes[vector])
        fits = whole + ROOM <= target.vector_registers and nest.operations <= SIMPLE
        tile.copies[vector] = whole if fits else _copies(nest, vector, tile.lanes[vector], 4)
        return 1.0 / tile.lanes[vector]
    shared = [a for a in spatial if any(x.strides.get(a, 0) == 0 for x in loads) and len(loads) > 1]
    vectors = [x for x in loads if vector is not None and x.strides.get(vector, 0) != 0]
    # copies that are near each other in memory share cache lines and pages
    far = {a: max((abs(x.strides.get(a) or 0) for x in loads), default=0) for a in shared}
    needed = {a: sum(x.strides.get(a, 0) != 0 for x in vectors) for a in shared}
    shared.sort(key=lambda a: (needed[a], -min(a.arg[1], ENOUGH), far[a]))
    order = sorted(nest.reduced, key=lambda a: nest.moved(a, tile, target))
    sliding = [a for a in shared if any(slides(x, a, order[0]) for x in loads)]
    outer = vector is not None and vector not in nest.reduced
    candidates = _candidates(vector if outer else None, shared, sliding, tile)
    costs = {t: _tile_cost(nest, tile, vector, t, order, target) for t in candidates}
    best = min(costs, key=lambda t: costs[t])
    tile.copies.update({a: c for a, c in best if c > 1})
    size = _registers(nest, tile, vector, best, target)
    run = max((_met_again(x, order[0], best, size, target) for x in loads), default=1)
    if 1 < run < order[0].arg[1]:
        tile.runs[order[0]] = run
    if vector is not None and not outer and prod(c for _, c in best) < 4:
        row = next((a for a in spatial if _from_memory(nest, a, target)), None)
        if row is not None and not best:
            tile.copies[row] = target.streams
        else:
            tile.copies[vector] = _copies(nest, vector, tile.lanes[vector], 4)
    return costs[best] / (tile.lanes[vector] if vector is not None else 1)


def sums_rows(nest: Nest, vector: Expr, target: Target) -> bool:
    """Whether rows in memory are added up, each of which is read once: whole rows, or a few of them
    from one end to the other, are fetched ahead, a strip of columns is not."""
    large, once = _from_afar(nest, target)
    return (
        vector not in nest.reduced
        and len(nest.reduced) == 1
        and bool(large)
        and all(x.strides.get(vector, 0) == 1 for x in large)
        and len(once) == len(large)
    )


def _from_afar(nest: Nest, target: Target) -> tuple[list[Access], list[Access]]:
    """The loads from further away than the second cache, and those of them that are read once."""
    points = prod(a.arg[1] for a in nest.axes)
    large = [x for x in nest.accesses if not x.stores and x.nbytes > target.l2_bytes]
    return large, [x for x in large if points < 2 * x.nbytes // x.itemsize]


def _candidates(
    vector: Expr | None, shared: list[Expr], sliding: list[Expr], tile: Tile
) -> list[tuple[tuple[Expr, int], ...]]:
    """Copies along an axis, and vectors along theirs; or one vector, and copies along two axes."""
    vectors: list[tuple[tuple[Expr, int], ...]] = [()]
    if vector is not None:
        most = ceildiv(vector.arg[1], tile.lanes[vector])
        vectors = [((vector, c),) for c in VECTORS if c <= most]
    found = vectors[:] if not shared else []
    for first in dict.fromkeys([*shared[:FIRST], *sliding[:1]]):
        second = next((a for a in shared if a is not first), first)
        for c, d in itertools.product(COPIES, SECOND if second is not first else (1,)):
            if c <= first.arg[1] and d <= second.arg[1]:
                copies = ((first, c), (second, d)) if d > 1 else ((first, c),)
                few = d == 1 or first.arg[1] < ENOUGH
                found += [(*copies, *v) for v in vectors if few or not v or v[0][1] == 1]
    return found


def _outside(
    nest: Nest, vector: Expr, width: int, chosen: tuple[tuple[Expr, int], ...], target: Target
) -> float:
    """What an operation costs outside of the sum: its share of copies, and of the results."""
    wide = prod(c for a, c in chosen if a is vector)
    copies = [nest.packed_cost(x, vector, width, target, wide)[1] for x in nest.accesses]
    for x in nest.accesses:
        if x.strides.get(vector, 0) == 0 and pages_apart(nest, x, target):
            uses = prod(a.arg[1] for a in nest.axes if a not in nest.reduced and not _step(x, a))
            copies.append(COPY * width / uses)
    parts = max(LINE // (width * wide * nest.itemsize), 1)  # of a line that are written apart
    results = parts * sum(_stored(x, vector, width, chosen) for x in nest.results)
    steps = prod(a.arg[1] for a in nest.reduced)
    if steps > PANEL and len(nest.reduced) == 1:  # panels, of half as many steps or more, add up
        results, steps = 2 * results, PANEL // 2
    return sum(copies) + results / steps


def _stored(store: Access, vector: Expr, width: int, chosen: tuple[tuple[Expr, int], ...]) -> float:
    """What a vector of results costs. Copies that lie side by side in memory are turned in
    registers, and written as parts of rows."""
    alone = store.cost(vector, width)
    beside = prod(c for a, c in chosen if a is not vector and store.strides.get(a, 0) == 1)
    return min(alone, max(TURNED * alone / beside, float(width.bit_length())))


def _from_memory(nest: Nest, axis: Expr, target: Target) -> bool:
    """Whether all is read once, from memory, and `axis` numbers rows that are whole pages. Where a
    processor fetches ahead within a page, several rows at a time keep more lines on the way."""
    rows = [x for x in nest.accesses if not x.stores]
    others = [x.strides[a] for x in nest.results for a in x.strides if a not in nest.axes]
    far = all(x.nbytes > target.l2_bytes and _step(x, axis) >= PAGE for x in rows)
    several = target.streams > 1 and axis.arg[1] % target.streams == 0
    return several and far and not any(others)


def _out_of_turn(nest: Nest, chosen: tuple[tuple[Expr, int], ...], target: Target) -> float:
    """What it costs that rows of a tile, which are read once, come from memory in turn, where a
    processor fetches ahead in one row only."""
    _, once = _from_afar(nest, target)
    rows = max((prod(c for a, c in chosen if x.strides.get(a, 0) != 0) for x in once), default=1)
    return 1e9 if rows > target.streams == 1 else 0.0


def _tile_cost(
    nest: Nest,
    tile: Tile,
    vector: Expr | None,
    chosen: tuple[tuple[Expr, int], ...],
    order: list[Expr],
    target: Target,
) -> float:
    """What a multiply-add costs in a tile, with what is lost in remainders and to latency. `order`
    are the axes of the sum, innermost first."""
    cells = prod(c for _, c in chosen)
    width = tile.lanes[vector] if vector is not None else 1
    taken = _registers(nest, tile, vector, chosen, target)
    if taken + SPARE > target.vector_registers:
        return 1e9 + cells
    wide = prod(c for a, c in chosen if a is vector)
    trips = ceildiv(order[0].arg[1], tile.lanes.get(order[0], 1))
    loads, live, spare = 0.0, 0, SPARE
    for access in nest.accesses:
        if access.stores:
            continue
        made = prod(c for a, c in chosen if access.strides.get(a, 0) != 0)
        along = 1.0
        if vector is not None:
            along, _ = nest.packed_cost(access, vector, width, target, wide)
        again = _met_again(access, order[0], chosen, taken, target) if along == SPLAT else 1
        if again > 1:
            spare = max(spare, made - 1)  # the register of the first one takes the next
            window = prod(c for a, c in chosen if slides(access, a, order[0]))
            loads += made / window * (window + again - 1) / again
            continue
        stays = access.strides.get(order[0], 0) == 0 and along == SPLAT  # in a register
        loads += made * max(along, 1.0) / (trips if stays else 1)
        if along != SPLAT:
            live = max(live, made)
    if vector is not None and vector.arg[1] % width and vector.arg[1] < MANY * width:
        spare += 1  # the mask of the last vector, where that is not one of many
    if taken + min(live, 4) * (taken // cells) + spare > target.vector_registers:
        return 1e9 + cells
    waste = _waste(tile, vector, chosen)
    if vector in nest.reduced:  # several vectors are in flight anyway; copies must spare loads
        cost = (0.5 + loads / cells) * waste * (1.0 + CROWD * cells)
        return cost + _out_of_turn(nest, chosen, target)
    reads = [x for x in nest.accesses if not x.stores]
    lines = sum(_lines(nest, tile, x, vector, chosen, target) for x in reads)
    latency = 0.02 * max(0, ENOUGH - cells) + 0.005 * max(0, PLENTY - cells)
    loaded = LOADED if target.vector_bytes < LINE else LOADED_LINE
    cycles = max(1.0, loads / cells) + (loaded * loads + FETCHED * lines) / cells
    cycles = cycles * waste + TURN / _straight(nest, vector, chosen, order, taken, target)
    outside = _outside(nest, vector, width, chosen, target) if vector is not None else 0.0
    return cycles + latency + outside


def _waste(tile: Tile, vector: Expr | None, chosen: tuple[tuple[Expr, int], ...]) -> float:
    """How much longer ragged axes take: the last vector as long as the others, and a last tile of
    fewer copies as long as half of it and half of a whole one."""
    counts = [(ceildiv(a.arg[1], tile.lanes.get(a, 1)), c) for a, c in chosen]
    waste = math.prod((1.0 + ceildiv(n, c) * c / n) / 2 for n, c in counts)
    if vector is None:
        return waste
    return waste * ceildiv(vector.arg[1], tile.lanes[vector]) * tile.lanes[vector] / vector.arg[1]


def _straight(
    nest: Nest,
    vector: Expr | None,
    chosen: tuple[tuple[Expr, int], ...],
    order: list[Expr],
    registers: int,
    target: Target,
) -> int:
    """Updates of accumulators that are written out one after the other: those of a step, and of
    the innermost loops that are short."""
    updates = prod(c for _, c in chosen)
    loads = [x for x in nest.accesses if not x.stores]
    copied = [a for a, c in chosen if c > 1 and a is not vector]
    for axis in order:
        trips = axis.arg[1]
        if not is_straight(trips, trips * updates, 0, target.vector_registers):
            break
        shares = any(slides(x, a, axis) for x in loads for a in copied)
        if shares and not is_straight(trips, trips * updates, registers, target.vector_registers):
            break
        updates *= trips
    return updates


def _lines(
    nest: Nest,
    tile: Tile,
    access: Access,
    vector: Expr | None,
    chosen: tuple[tuple[Expr, int], ...],
    target: Target,
) -> float:
    """Lines that come from the second cache in each step of a sum: those of a whole sum, if the
    first one does not hold them. Where copies have one place there, it holds none."""
    copies = dict(chosen)
    points: dict[int, int] = {}  # by distance
    near = 0  # axes along which elements share lines
    for a in nest.axes:
        step = _step(access, a)
        if step:
            n = a.arg[1] if a in nest.reduced else copies.get(a, 1) * tile.lanes.get(a, 1)
            points[step] = points.get(step, 0) + n - 1
            near += step < LINE
    if access.can_stage and _is_copied(nest, tile, access, vector, target):
        lines = prod(n + 1 for n in points.values()) * access.itemsize / LINE
    else:
        lines = float(prod(n + 1 for step, n in points.items() if step >= LINE))
        span = access.itemsize + sum(step * n for step, n in points.items() if step < LINE)
        # windows begin anywhere
        lines *= max(span / LINE, 1.0) if near < 2 else 1.0 + (span - access.itemsize) / LINE
    alike = [c for a, c in chosen if _step(access, a) >= PAGE and _step(access, a) % PAGE == 0]
    rows, place = max(alike, default=0), ways(target)
    steps = prod(a.arg[1] for a in nest.reduced)
    again = AGAIN * max(rows - place - LENIENT, 0)  # they are fetched for each of their elements
    return again + (lines / steps if rows > place or lines * LINE > target.l1_bytes // 2 else 0.0)


def _is_copied(nest: Nest, tile: Tile, access: Access, vector: Expr | None, target: Target) -> bool:
    """Whether an operand lies in such a way that a copy of it is read."""
    if vector is None or access.strides.get(vector, 0) == 0:
        return across(nest, access, target)
    return access.cost(vector, tile.lanes[vector]) > 1.0


def across(nest: Nest, access: Access, target: Target) -> bool:
    """Whether a sum over this operand runs across lines, so many that they do not stay in reach:
    where the steps share a power of two, the lines fall on few places of the first cache."""
    far = _jumps(nest, access)
    lines = prod(count for _, count in far)
    apart = max((math.gcd(step, PAGE) for step, _ in far), default=LINE)
    room = target.l1_bytes * LINE // max(apart, LINE)
    return all(step >= LINE for step, _ in far) and lines * LINE > room // 2


def _jumps(nest: Nest, access: Access) -> list[tuple[int, int]]:
    """(distance in bytes, number of steps) of the axes of a sum, the nearest first. Left out are
    the first ones as long as they run through neighbours, together through one line at most. Where
    a further axis moves as far as one of these, a window slides: that one stays, and all behind
    it."""
    steps = sorted((_step(access, a), a.arg[1]) for a in nest.reduced)
    others = {_step(access, a) for a in nest.axes if a not in nest.reduced}
    run = access.itemsize
    for n, (step, count) in enumerate(steps):
        if step in others or step != run or step * count > LINE:
            return steps[n:]
        run *= count
    return []


def pages_apart(nest: Nest, access: Access, target: Target) -> bool:
    """Whether an operand should rather be copied as a whole: every step of a sum is on another
    page, and the next tile finds none of the lines in the first cache."""
    whole = access.can_stage and not access.guarded
    far = all(step >= PAGE for step, _ in _jumps(nest, access))
    return whole and far and across(nest, access, target)


def slides(access: Access, axis: Expr, inner: Expr) -> bool:
    """Whether a step of the reduction over `inner` moves as far as one from copy to copy."""
    step = abs(access.strides.get(inner) or 0)
    return step > 0 and abs(access.strides.get(axis) or 0) == step


def _registers(
    nest: Nest,
    tile: Tile,
    vector: Expr | None,
    chosen: tuple[tuple[Expr, int], ...],
    target: Target,
) -> int:
    """Vector registers that the accumulators of a register tile take up."""
    width = tile.lanes[vector] if vector is not None else 1
    return prod(c for _, c in chosen) * ceildiv(width * nest.itemsize, target.vector_bytes)


def _met_again(
    access: Access,
    inner: Expr,
    chosen: tuple[tuple[Expr, int], ...],
    registers: int,
    target: Target,
) -> int:
    """The iterations of the innermost reduction that are written out to share the loads of a window
    that slides; 1 where there are none. `registers` hold the accumulators."""
    if target.language != "llvm" or not any(c > 1 and slides(access, a, inner) for a, c in chosen):
        return 1
    cells = prod(c for _, c in chosen)
    runs = [
        n
        for n in range(3, min(SHORT, inner.arg[1]) + 1)
        if inner.arg[1] % n == 0 and is_straight(n, n * cells, registers, target.vector_registers)
    ]
    return runs[-1] if runs else 1
