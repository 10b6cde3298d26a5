"""The default schedule of a kernel, from the kernel and the target alone.

A kernel is seen as nests: one for each store and each reduction, with the axes in scope and the
memory accesses made there. For each nest, the heaviest first:

- stride analysis picks the vector axis: the one whose lanes cost least to load and store;
- reuse analysis picks the register tile: copies of axes on which some operand does not depend
  share its loads (both in `tiling.py`).

The nests then agree on one order of loops. Output axes on which more reductions depend go outside,
so that no reduction is repeated; around the heaviest reduction, they take the order that moves the
fewest bytes into the caches (`traffic.py`). Threads share the outermost axis that keeps all of them
busy. Where a kernel is one reduction and what uses it, its loops are divided into blocks for the
caches first (`blocking.py`).

To the loops of the heaviest reduction come copies of the operands that are hard to read
(`staging.py`, `Stage`), and stores with long expressions that wait for the end of the tile
(`Defer`). What several nests compute is kept in rows (`keeping.py`, `Keep`), and outputs that no
cache would keep are written past the caches (`Stream`). Sums of products for a matrix unit have
another schedule (`tensorize.py`).

Nothing here knows what a kernel computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mygrad.codegen import tensorize
from mygrad.codegen.actions import (
    Action,
    Defer,
    Keep,
    LoopAxis,
    Parallel,
    Reorder,
    Schedule,
    Split,
    Stream,
    Unroll,
    Vectorize,
    apply,
    start,
)
from mygrad.codegen.blocking import blocks_of
from mygrad.codegen.keeping import keeps, repeats
from mygrad.codegen.prepare import BLOCK
from mygrad.codegen.staging import copying, scattered, squares_of, stages_of
from mygrad.codegen.tiling import (
    LINE,
    PANEL,
    Access,
    Nest,
    Tile,
    across,
    nests_of,
    sums_rows,
    tile_of,
)
from mygrad.codegen.traffic import cheapest_order
from mygrad.expr import Expr, free_axes, toposort
from mygrad.helpers import busy, ceildiv, prod
from mygrad.kernel import Kernel, ordered_axes, scan_axes
from mygrad.ops import Op
from mygrad.program import Target

SMALL = 10_000  # operations below which one thread is faster than several
LONG = 6  # operations after a reduction that are not repeated for every copy of a tile
FEW = 4  # copies up to which they are
NEAR = 5  # times the rows of a tile that the first cache holds
STREAMED = 4  # second caches that an output must be larger than to be written past them
STRIP = 16  # rows that are read side by side
KEPT = 8 << 20  # bytes that some cache keeps on any machine
FIRST = 4  # times its work that a reduction counts for: what ends in it takes over its tile
REPEATED = 0.1  # share of the work that every thread may repeat


def default_actions(kernel: Kernel, target: Target) -> tuple[Action, ...]:
    """A good schedule, at once and without measuring."""
    return tensorize.default_actions(kernel, target) or Plan(kernel, target).actions()


@dataclass
class Plan:
    """The decisions about one kernel: how each axis is divided, and the order of the loops."""

    kernel: Kernel
    target: Target
    nests: list[Nest] = field(init=False)
    tile: Tile = field(default_factory=Tile)

    def __post_init__(self) -> None:
        self.fixed = scan_axes(self.kernel) | ordered_axes(self.kernel)
        self.kept = keeps(self.kernel, self.target)
        self.nests = sorted(
            nests_of(self.kernel, self.kept), key=lambda n: -n.work * (FIRST if n.reduced else 1)
        )
        for nest in self.nests:
            taken = [n.axes for n in self.nests if any(a in self.tile.lanes for a in n.axes)]
            # one vector axis in each scope
            scalar = ordered_axes(self.kernel) | {a for axes in taken for a in axes}
            tile_of(nest, self.tile, self.fixed, scalar, self.target)

    def actions(self) -> tuple[Action, ...]:
        """Splits, kinds, blocks, order and threads; then copies, deferred stores, kept rows and
        outputs past the caches."""
        taken: list[Action] = []
        roots = {p.root: p.name for p in start(self.kernel).loops}
        divided = [a for root, name in roots.items() for a in self.divide(root, name)]
        outermost = self.panels(apply(start(self.kernel), divided))
        for root, name in roots.items():
            taken += self.divide(root, name)
            if name != outermost:
                taken += self.block(root, apply(start(self.kernel), taken))
        scheduled = apply(start(self.kernel), taken)
        if outermost:
            extent = scheduled.loop(outermost).extent
            taken.append(Split(outermost, _part(extent, self.panel_steps())))
            scheduled = taken[-1].apply(scheduled)
        blocks = self.blocks(scheduled)
        divisions = [Split(name, n) for name, n in blocks.items() if n > 1]
        taken += divisions
        scheduled = apply(scheduled, divisions)
        order = self.blocked([p.name for p in self.order(scheduled)], blocks, scheduled)
        order = self.cheapest(order, bool(blocks), scheduled)
        if outermost:  # partial results wait in the output
            order = (outermost + "o", *(n for n in order if n != outermost + "o"))
        if order != tuple(p.name for p in scheduled.loops):
            taken.append(Reorder(order))
            scheduled = Reorder(order).apply(scheduled)
        shared = self.shared(scheduled)
        if shared:
            taken.append(Parallel(shared))
            scheduled = Parallel(shared).apply(scheduled)
        heaviest = next((n for n in self.nests if n.reduced), None)
        if heaviest is not None and heaviest is self.nests[0]:
            taken += stages_of(heaviest, self.tile, scheduled, self.target)
            taken += self.deferred(scheduled)
        elif self.tile.across is not None:
            taken += squares_of(self.nests[0], self.tile, scheduled, self.target)
        return (*taken, *self.keeps(), *self.streams())

    def keeps(self) -> list[Keep]:
        """Values whose rows, as many as run in lockstep, fit in half of the second cache."""
        found = repeats(self.kernel)
        room, taken = self.target.l2_bytes // 2, []
        for n in self.kept:
            rows = prod(self.tile.size(a) for a in free_axes(found[n].filled))
            if found[n].nbytes * rows <= room:
                room -= found[n].nbytes * rows
                taken.append(Keep(n))
        return taken

    def streams(self) -> list[Stream]:
        """Outputs that no cache would keep until they are read, and that are written line by
        line."""
        read = {x.slot for n in self.nests for x in n.accesses if not x.stores}
        plain = {s.slot for s in self.kernel.stores} - {
            s.slot for s in self.kernel.stores if s.mode != "set" or s.slot in read
        }
        stores = [x for n in self.nests for x in n.accesses if x.stores]
        whole = {x.slot for x in stores} - {x.slot for x in stores if not self.in_lines(x)}
        sizes = {slot: self.kernel.buffers[slot] for slot in sorted(plain & whole)}
        limit = max(STREAMED * self.target.l2_bytes, KEPT)
        return [Stream(n) for n, b in sizes.items() if b.size * b.dtype.itemsize >= limit]

    def in_lines(self, store: Access) -> bool:
        """Whether a tile writes whole lines, one after the other: parts of lines, and lines of
        several rows in turn, do not go past the caches at once. Rows of squares are whole lines."""
        along = [a for a, step in store.strides.items() if step == 1]
        apart = [a for a, step in store.strides.items() if step not in (0, 1)]
        run = prod(self.tile.size(a) for a in along) * store.itemsize
        rows = [a for a in apart if self.tile.size(a) > 1]
        lanes = max(self.tile.lanes.values(), default=1) * store.itemsize
        return run >= LINE and (not rows or (rows == [self.tile.across] and lanes >= LINE))

    def deferred(self, scheduled: Schedule) -> list[Action]:
        """Stores with long expressions wait until the end of the register tile. A few vectors next
        to each other stay together: their chains of operations overlap."""
        copies = [p for p in scheduled.loops if p.kind == "unroll" and p.root in self.kernel.axes]
        long = any(n.operations > LONG or n.heavy for n in self.nests if not n.reduced)
        waiting = [p for p in copies if p.root not in self.tile.lanes or p.extent > FEW]
        if not long or prod(p.extent for p in waiting) < FEW:
            return []
        return [Defer(tuple(p.name for p in waiting))]

    def divide(self, root: Expr, name: str) -> list[Action]:
        """Split off the vector and the copies of an axis."""
        lanes, copies = self.tile.lanes.get(root, 1), self.tile.copies.get(root, 1)
        taken: list[Action] = []
        if lanes * copies == 1:
            run = self.tile.runs.get(root, 1)
            return [Split(name, run)] if run > 1 else taken
        taken.append(Split(name, lanes * copies))
        if lanes == 1:
            return [*taken, Unroll(name + "i")]
        if copies == 1:
            return [*taken, Vectorize(name + "i")]
        return [*taken, Split(name + "i", lanes), Vectorize(name + "ii"), Unroll(name + "io")]

    def block(self, root: Expr, scheduled: Schedule) -> list[Action]:
        """Divide the loop of a very long reduction, so that sums are added up in blocks."""
        long = [p for p in scheduled.loops if p.root is root and p.extent > 2 * BLOCK]
        if root in self.kernel.axes or not long:
            return []
        return [Split(long[0].name, BLOCK // 4)]

    def blocks(self, scheduled: Schedule) -> dict[str, int]:
        """Iterations of loops that are blocks for the caches, if all of the kernel is one reduction
        and what uses it."""
        reductions = [n for n in self.nests if n.reduced]
        if len(reductions) != 1 or self.nests[0] is not reductions[0] or self.fixed:
            return {}
        seq = [p for p in scheduled.loops if p.kind == "seq" and p.root in self.kernel.axes]
        names = {p.root: p.name for p in seq if scheduled.parts(p.root)[0] is p}
        inner = [scheduled.parts(a)[-1].extent for a in reductions[0].reduced]
        return blocks_of(self.nests[0], self.tile, names, inner[-1], self.target)

    def blocked(
        self, order: list[str], blocks: dict[str, int], scheduled: Schedule
    ) -> tuple[str, ...]:
        """The order of loops with the blocks outside of all loops that share an operand."""
        outer = [name + "o" if n > 1 else name for name, n in blocks.items()]
        loads = [x for x in self.nests[0].accesses if not x.stores] if blocks else []
        order = [name for name in order if name not in outer]
        roots = [scheduled.loop(name).root for name in order]
        shared = (n for n, a in enumerate(roots) if any(x.strides.get(a, 0) == 0 for x in loads))
        first = next(shared, 0)
        return (*order[:first], *outer, *order[first:])

    def cheapest(
        self, order: tuple[str, ...], in_blocks: bool, scheduled: Schedule
    ) -> tuple[str, ...]:
        """The order in which the loops around the heaviest reduction move fewest bytes. The order
        of blocks of rows and of columns stays as it is, where there are no further axes."""
        if not self.nests or not self.nests[0].reduced:
            return order
        nest, loops = self.nests[0], [scheduled.loop(name) for name in order]
        needed = {a: sum(a in n.axes for n in self.nests if n.reduced) for a in nest.axes}
        around = [
            n
            for n, p in enumerate(loops)
            if p.kind == "seq" and p.root in self.kernel.axes and p.root in nest.axes
            if needed[p.root] == max(needed.values()) and p.root not in self.fixed
        ]
        if len(around) < 2 or (in_blocks and len(nest.axes) <= 2 + len(nest.reduced)):
            return order
        body = {a: self.tile.size(a) for a in nest.axes}
        for p in loops[around[-1] + 1 :]:
            if p.root in nest.reduced:
                body[p.root] = min(p.root.arg[1], max(body[p.root], p.extent * p.stride))

        def copied(taken: Sequence[LoopAxis]) -> float:
            own = dict(zip(around, taken, strict=True))
            inner = [own.get(n, p) for n, p in enumerate(loops) if p.root in nest.axes]
            return copying(nest, self.tile, inner, self.target) + scattered(nest, self.tile, taken)

        best = cheapest_order(nest, [loops[n] for n in around], body, self.target, copied)
        names = dict(zip(around, (p.name for p in best), strict=True))
        return tuple(names.get(n, name) for n, name in enumerate(order))

    def panels(self, scheduled: Schedule) -> str:
        """A long reduction of which every step reads from other rows, far apart, or whose columns
        do not fit in the second cache: it is divided outside of all loops, so that the operands of
        a part stay in reach. The partial results live in the output, which must be a plain sum."""
        nest, store = self.nests[0] if self.nests else None, self.kernel.stores[0]
        plain = len(self.kernel.stores) == 1 and store.mode == "set" and store.valid is None
        if nest is None or not plain or store.value.op is not Op.REDUCE or len(nest.reduced) != 1:
            return ""
        inner = [p for p in scheduled.loops if p.root is nest.reduced[0]]
        whole = len(inner) == 1 and inner[0].kind == "seq" and inner[0].extent > PANEL
        if not whole or free_axes(store.value) != free_axes(store.index) or self.fixed:
            return ""
        if any(n.op is Op.LOAD and n.arg == store.slot for n in toposort([store.value])):
            return ""
        far = (self.is_far(nest, x) for x in nest.accesses if not x.stores)
        return inner[0].name if self.sums_rows(nest) or any(far) else ""

    def sums_rows(self, nest: Nest) -> bool:
        """Whether strips of rows in memory are added up."""
        return any(
            sums_rows(nest, a, self.target) and n * self.tile.copies.get(a, 1) < a.arg[1]
            for a, n in self.tile.lanes.items()
            if a in nest.axes
        )

    def panel_steps(self) -> int:
        """Steps of a panel, so that the rows of a tile stay in the first cache beside columns."""
        nest = self.nests[0]
        if self.sums_rows(nest):
            return min(STRIP, PANEL)
        copies = (c for a, c in self.tile.copies.items() if a not in self.tile.lanes)
        near = self.target.l1_bytes // (NEAR * prod(copies) * nest.itemsize)
        return min(max(near, PANEL // 2), PANEL)

    def is_far(self, nest: Nest, access: Access) -> bool:
        """Whether what one tile reads of an operand for the whole sum is out of reach."""
        if not any(access.strides.get(a, 0) for a in self.tile.lanes):
            return across(nest, access, self.target)
        read = [a for a in nest.axes if access.strides.get(a, 0) != 0]
        points = prod(a.arg[1] if a in nest.reduced else self.tile.size(a) for a in read)
        return points * access.itemsize > self.target.l2_bytes // 2

    def order(self, scheduled: Schedule) -> list[LoopAxis]:
        """Loops by: outputs before reductions; how many reductions need the axis; sequential loops
        before tiles; bytes moved from one iteration to the next; operands that stay the same.
        Copies of the vector axis are the innermost of a tile: a scalar is spread, meets all
        vectors, and its register is free."""
        needed = {a: sum(a in n.axes for n in self.nests if n.reduced) for a in self.kernel.axes}
        moved = {a: self.moved(a) for a in {p.root for p in scheduled.loops}}
        loads = [x for x in self.nests[0].accesses if not x.stores] if self.nests else []

        def key(p: LoopAxis) -> tuple[float, ...]:
            output = p.root in needed
            kind = {"seq": 0, "unroll": 1, "vector": 2}[p.kind]
            inner = -moved[p.root] if kind == 0 else float(p.root in self.tile.lanes)
            same = sum(x.strides.get(p.root, 0) == 0 for x in loads) if kind == 0 else 0
            return (not output, -needed.get(p.root, 0), kind, inner, same)

        return sorted(scheduled.loops, key=key)

    def moved(self, axis: Expr) -> float:
        """What an iteration over `axis` has to fetch anew, in the heaviest nest that has it."""
        for nest in self.nests:
            if axis in nest.axes:
                return nest.moved(axis, self.tile, self.target)
        return 0.0

    def shared(self, scheduled: Schedule) -> str:
        """The loop that threads share, or "" where one thread is enough."""
        threads = self.target.threads
        total = sum(n.work for n in self.nests)
        if threads < 2 or total < SMALL:
            return ""
        reductions = [n for n in self.nests if n.reduced and n.work > REPEATED * total]
        best, best_share = "", 1.0 / threads
        for p in scheduled.loops:
            coarse = all(q.stride <= p.stride for q in scheduled.loops if q.root is p.root)
            if (
                p.kind != "seq"
                or p.root not in self.kernel.axes
                or p.root in self.fixed
                or not coarse
            ):
                continue
            if any(p.root not in n.axes for n in reductions) or p.root not in self.nests[0].axes:
                continue
            share = busy(p.root.arg[1], threads, p.stride)
            if share > best_share + 0.05:
                best, best_share = p.name, share
        return best


def _part(extent: int, most: int) -> int:
    """The steps of about equal parts of at most `most` steps."""
    return ceildiv(extent, ceildiv(extent, most))


def work_of(kernel: Kernel) -> int:
    """Points of all nests together."""
    return sum(prod(a.arg[1] for a in n.axes) for n in nests_of(kernel))
