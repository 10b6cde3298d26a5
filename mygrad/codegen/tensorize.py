"""Sums of products by matrix units: which kernels have one, and their default schedule.

    sum over k of float32(a) * float32(b)     a, b: bfloat16 expressions
    sum over k of int32(a) * int32(b)         a, b: int8 expressions

The axes of such a sum are of four sorts: *rows* belong to one operand and the result, *columns* to
the other operand and the result, *batch* axes to all three, and *depth* is what is added up. Each
may be several axes of the kernel: in a convolution the columns are images and pixels, the depth
channels and window. Nothing here knows what a kernel computes.

A tile covers 32 rows and 32 columns, or 16 where there are no more, in parts of axes that are
powers of two. Operands are packed into panels, and whatever has to be computed for them on the way
is (`panels.py`). With AMX, the left panel of one tile stays in the first cache while it meets all
columns of a block, and the right panels of a block stay in half of the second cache. Dot products
of vectors read the same panels, from further away.
"""

from __future__ import annotations

from dataclasses import dataclass

from mygrad import dtype as dt
from mygrad.codegen.actions import (
    Action,
    Parallel,
    Reorder,
    Schedule,
    Split,
    Tensorize,
    Unroll,
    Vectorize,
    start,
)
from mygrad.dtype import DType
from mygrad.expr import Expr, const, free_axes, stride, toposort, where
from mygrad.helpers import BUSY, busy, ceildiv, power_of_two, prod, round_up
from mygrad.kernel import Kernel, Store, ordered_axes, roots_of, scan_axes, store_axes
from mygrad.ops import Op
from mygrad.program import Target

BLOCK = 16  # rows, and columns, of the blocks that matrix units work on
TILE = 32  # rows and columns of a tile: four blocks of results, two of each operand
SMALL = 32 * 32 * 32  # products below which packing does not pay
GATHERED = 4  # times as long as copying rows is gathering single elements
SHORT = 5  # an axis of so few points is no good for lanes
WASTE = 1.1  # what may be added to an axis to divide it evenly

DOT = "dot_bf16"  # dot products of pairs in vectors, twice as fast as float32

# (what is multiplied, what is added, the unit)
KINDS: tuple[tuple[DType, DType, str], ...] = (
    (dt.bfloat16, dt.float32, "amx_bf16"),
    (dt.int8, dt.int32, "amx_int8"),
    (dt.bfloat16, dt.float32, DOT),
)


@dataclass(frozen=True)
class Room:
    """What suits a unit: the share of the first cache for the left panel of a tile, at two bytes a
    number; that of the second one for the right panels of a block; and the share of its work that
    must be of use, since vectors are so fast."""

    left: float
    right: float
    used: float


# dot products take so long that they can wait for the third cache
ROOMS = {"amx_bf16": Room(0.84, 0.5, 0.15), "amx_int8": Room(0.84, 0.5, 0.15)}
ROOMS[DOT] = Room(1.7, 2.0, 0.6)


@dataclass(frozen=True)
class Contraction:
    """A sum of products: `sum` is the REDUCE, `left` and `right` are its factors in their narrow
    type; the axes of each sort, the innermost last."""

    sum: Expr
    left: Expr
    right: Expr
    rows: tuple[Expr, ...]
    columns: tuple[Expr, ...]
    batch: tuple[Expr, ...]
    depth: tuple[Expr, ...]


def unit_of(kind: DType, units: tuple[str, ...]) -> str:
    """Which of the units multiplies numbers of this type; "" if none does."""
    return next((unit for narrow, _, unit in KINDS if narrow is kind and unit in units), "")


def contraction(kernel: Kernel, units: tuple[str, ...]) -> Contraction | None:
    """The sum of products of a kernel, if one of the units can compute it and it is the only
    reduction."""
    sums = [e for e in kernel.nodes if e.op in (Op.REDUCE, Op.SCAN)]
    if not units or len(sums) != 1 or scan_axes(kernel) or ordered_axes(kernel):
        return None
    found = sums[0]
    if found.op is not Op.REDUCE or found.arg[0] is not Op.ADD or found.src[0].op is not Op.MUL:
        return None
    for kind, wide, unit in KINDS:
        if unit in units and found.dtype is wide:
            factors = [_narrow(s, kind) for s in found.src[0].src]
            if factors[0] is not None and factors[1] is not None:
                return _sorted(kernel, found, factors[0], factors[1])
    return None


def _narrow(e: Expr, kind: DType) -> Expr | None:
    """The same value in a narrower type, if it is widened from that."""
    if e.op is Op.CAST and e.src[0].dtype is kind:
        return e.src[0]
    if e.op is Op.CONST and e.arg == 0:
        return const(0, kind)
    if e.op is Op.WHERE:
        yes, no = (_narrow(s, kind) for s in e.src[1:])
        return None if yes is None or no is None else where(e.src[0], yes, no)
    return None


def _sorted(kernel: Kernel, found: Expr, a: Expr, b: Expr) -> Contraction | None:
    """The axes by sort; the columns are those along which results are next to each other."""
    stores = [s for s in kernel.stores if found in toposort(roots_of(s))]
    reduced = frozenset(found.arg[1])
    if not all(_fits(kernel, s, found) for s in stores) or not all(
        _is_plain(kernel, e) and reduced <= free_axes(e) for e in (a, b)
    ):
        return None
    near = {x for x in free_axes(found) if stride(stores[0].index, x) == 1}
    if near & free_axes(a) - free_axes(b):
        a, b = b, a

    def far(x: Expr) -> int:
        return -abs(stride(stores[0].index, x) or 0)

    output = sorted(free_axes(found), key=far)
    rows = tuple(x for x in output if x not in free_axes(b))
    columns = tuple(x for x in output if x not in free_axes(a))
    batch = tuple(x for x in output if x in free_axes(a) and x in free_axes(b))
    depth = tuple(sorted(found.arg[1], key=lambda x: _innermost(x, a, b)))
    return Contraction(found, a, b, rows, columns, batch, depth) if rows and columns else None


def _fits(kernel: Kernel, store: Store, found: Expr) -> bool:
    outside = [store.index] if store.valid is None else [store.index, store.valid]
    axes = {a for a in store_axes(store) if a.arg[1] != 1}
    return found not in toposort(outside) and axes == free_axes(found)


def _is_plain(kernel: Kernel, operand: Expr) -> bool:
    """Whether an operand can be computed anywhere: of arrays that nobody writes, at indices that no
    array decides."""
    loads = [e for e in toposort([operand]) if e.op is Op.LOAD]
    inside = toposort([s for e in loads for s in e.src])
    return all(e.op is not Op.LOAD for e in inside) and not any(
        kernel.buffers[e.arg].written for e in loads
    )


def _innermost(axis: Expr, a: Expr, b: Expr) -> tuple[bool, int]:
    """Last of the depth: what is contiguous in an operand, or else long."""
    loads = [e for e in toposort([a, b]) if e.op is Op.LOAD]
    near = any(stride(e.src[0], axis) == 1 for e in loads)
    return near and axis.arg[1] >= BLOCK, axis.arg[1]


# --- the default schedule -------------------------------------------------------------------------


def default_actions(kernel: Kernel, target: Target) -> tuple[Action, ...]:
    """The schedule that gives the sum of the kernel to a matrix unit; none where there is no unit
    for it, or too little to do."""
    found = contraction(kernel, target.units)
    if found is None or not _is_worth_it(found, target):
        return ()
    return _Plan(kernel, found, target).actions()


def _is_worth_it(c: Contraction, target: Target) -> bool:
    extents = [prod(a.arg[1] for a in axes) for axes in (c.rows, c.columns, c.depth)]
    blocks = (BLOCK, BLOCK, 64 // c.left.dtype.itemsize)
    work = prod(extents)
    share = work / max(prod(round_up(n, b) for n, b in zip(extents, blocks, strict=True)), 1)
    used = ROOMS[unit_of(c.left.dtype, target.units)].used
    return share >= used and work * prod(a.arg[1] for a in c.batch) >= SMALL


def _slots(axes: tuple[Expr, ...], size: int) -> dict[Expr, int]:
    """Parts of axes, powers of two, that have up to `size` points together, from the innermost on.
    The innermost is what lanes run along, if it is long enough; of others, what divides them."""
    parts: dict[Expr, int] = {}
    for a in reversed(axes):
        n = min(size, power_of_two(a.arg[1]))
        if n > a.arg[1] < SHORT or parts:
            while round_up(a.arg[1], n) > WASTE * a.arg[1]:
                n //= 2
        parts[a] = n
        size //= n
    for a in reversed(axes):  # rather waste some than most
        more = min(size, power_of_two(a.arg[1]) // parts[a])
        parts[a] *= max(more, 1)
        size //= max(more, 1)
    return parts


def _even(n: int, most: int, threads: int) -> int:
    """A share of n, up to `most`, of which few wholes are not much more than n: the largest that
    keeps the threads busy as well as any does."""
    shares = dict.fromkeys(ceildiv(n, parts) for parts in range(ceildiv(n, most), n + 1))
    even = [s for s in shares if ceildiv(n, s) * s <= WASTE * n and 2 * s >= min(most, n)]
    return max(even, key=lambda s: (min(busy(n, threads, s), BUSY), s), default=1)


def _steps(trips: dict[Expr, int], budget: int, threads: int = 1) -> dict[Expr, int]:
    """How many trips of each loop, the innermost last, are taken together: at most `budget`."""
    taken: dict[Expr, int] = {}
    for a, n in reversed(trips.items()):
        whole = n <= budget
        taken[a] = n if whole else _even(n, budget, threads)
        budget = budget // n if whole else 1
    return taken


class _Plan:
    """The schedule of one contraction, as actions taken one after the other."""

    def __init__(self, kernel: Kernel, c: Contraction, target: Target) -> None:
        self.c, self.target = c, target
        self.unit = unit_of(c.left.dtype, target.units)
        self.room = ROOMS[self.unit]
        self.schedule: Schedule = start(kernel)
        self.taken: list[Action] = []
        self.names = {p.root: p.name for p in self.schedule.loops}
        self.itemsize = c.left.dtype.itemsize
        self.outer: dict[Expr, list[str]] = {}  # loops around the panels of each axis
        self.between: dict[Expr, list[str]] = {}  # and inside of a block, around the tiles

    def take(self, action: Action) -> None:
        """One more action."""
        self.schedule = action.apply(self.schedule)
        self.taken.append(action)

    def has(self, name: str) -> bool:
        """Whether there is such a loop; one trip makes none."""
        return any(p.name == name for p in self.schedule.loops)

    def divide(self, a: Expr, slots: int, steps: int) -> list[str]:
        """Split an axis into loops outside of a block, `steps` trips inside of it, and `slots`; the
        names of the last two."""
        name, inner, step = self.names[a], self.names[a], ""
        if slots * steps < a.arg[1] or slots > 1:
            self.take(Split(name, slots * steps)) if slots * steps > 1 else None
            inner = name + "i" if slots * steps > 1 else ""
            self.outer[a] = [n for n in [name + "o" if inner else name] if self.has(n)]
        if slots > 1 and steps > 1:
            self.take(Split(inner, slots))
            step, inner = inner + "o", inner + "i"
        elif slots == 1:
            step, inner = inner, ""
        self.between[a] = [step] * bool(step)
        return [inner] * bool(inner)

    def actions(self) -> tuple[Action, ...]:
        """Everything."""
        c = self.c
        depth_block = 64 // self.itemsize
        slots = _slots(c.depth, depth_block)
        panels = {a: ceildiv(a.arg[1], slots[a]) for a in c.depth}
        most = int(self.room.left * self.target.l1_bytes) // (2 * TILE)
        steps = _steps(panels, most // depth_block)
        blocks = prod(ceildiv(n, steps[a]) for a, n in panels.items())
        deep = prod(steps.values()) * depth_block
        rows, columns = _slots(c.rows, TILE), _slots(c.columns, TILE)
        row_tiles = prod(ceildiv(a.arg[1], n) for a, n in rows.items())
        tiles = {a: ceildiv(a.arg[1], columns[a]) for a in c.columns}
        first = self.is_first(row_tiles, prod(tiles.values()), blocks, deep)
        most = self.block(prod(tiles.values()), deep * (1 if first else blocks))
        together = _steps(tiles, most, self.target.threads)
        depth = [n for a in c.depth for n in self.divide(a, slots[a], steps[a])]
        depth = [n for a in c.depth for n in self.between[a]] + depth
        row_loops = [n for a in c.rows for n in self.divide(a, rows[a], 1)]
        column_loops = [n for a in c.columns for n in self.divide(a, columns[a], together[a])]
        column_loops = self.vectorize(column_loops)
        around = [self.names[a] for a in c.batch] + self.around(c.columns)
        downward, across = self.around(c.depth), self.around(c.rows)
        outer = [*around, *downward] if first else around
        inner = across if first else [*across, *downward]
        tiles_inside = [n for a in c.columns for n in self.between[a]]
        names = (*outer, *inner, *tiles_inside, *row_loops, *column_loops, *depth)
        if names != tuple(p.name for p in self.schedule.loops):
            self.take(Reorder(names))
        self.share(around if outer else across)
        whole = row_tiles * TILE * blocks * deep * self.itemsize <= self.target.l2_bytes // 4
        again = bool(around) and not first and not c.batch  # it would be packed for each block
        at = [] if whole and again else [*outer, *inner]
        left, right = (loops[-1] if loops else "" for loops in (at, outer))
        tile = tuple(row_loops), tuple(column_loops), tuple(depth)
        self.take(Tensorize(*tile, left, right, self.in_pairs()))
        return tuple(self.taken)

    def around(self, axes: tuple[Expr, ...]) -> list[str]:
        """The loops outside of blocks."""
        return [n for a in axes for n in self.outer.get(a, [])]

    def block(self, tiles: int, deep: int) -> int:
        """How many tiles of columns are packed together."""
        room = int(self.room.right * self.target.l2_bytes)
        most = max(1, room // (TILE * deep * self.itemsize))
        blocks = ceildiv(tiles, most)
        if blocks > 1:
            blocks = round_up(blocks, self.target.threads)
        return ceildiv(tiles, blocks)

    def is_first(self, rows: int, columns: int, blocks: int, deep: int) -> bool:
        """Whether the blocks of the depth go outside of the rows: the results then wait in memory,
        but more columns fit in the cache, and the rows are packed less often."""
        alone = self.block(columns, deep) >= columns and not self.c.batch
        if blocks == 1 or (alone and self.target.threads > 1):  # threads share what is outermost
            return False
        near = self.is_near(self.c.rows[-1]) or self.is_near(self.c.depth[-1])
        copied = rows * blocks * deep * self.itemsize * (1 if near else GATHERED)
        inside = copied * ceildiv(columns, self.block(columns, deep * blocks))
        outside = copied * ceildiv(columns, self.block(columns, deep))
        return outside + 8 * rows * columns * TILE * blocks < inside

    def is_near(self, axis: Expr) -> bool:
        """Whether the left operand lies side by side along an axis."""
        loads = (e for e in toposort([self.c.left]) if e.op is Op.LOAD)
        return any(stride(e.src[0], axis) == 1 for e in loads)

    def in_pairs(self) -> bool:
        """Whether the left operand is packed in pairs: where rows lie side by side, they need not
        be turned for that."""
        return self.unit == DOT and self.is_near(self.c.rows[-1])

    def vectorize(self, columns: list[str]) -> list[str]:
        """The lanes of what is stored."""
        if not columns:
            return columns
        name = columns[-1]
        lanes = self.target.vector_bytes // 4
        if self.schedule.loop(name).extent <= lanes:
            self.take(Vectorize(name))
            return columns
        self.take(Split(name, lanes))
        self.take(Vectorize(name + "i"))
        self.take(Unroll(name + "o"))
        return [*columns[:-1], name + "o", name + "i"]

    def share(self, loops: list[str]) -> None:
        """Give the loop that divides best to the threads."""
        threads = self.target.threads
        best, most = "", 1.0 / max(threads, 1)
        for name in loops:
            loop = self.schedule.loop(name)
            even = busy(loop.root.arg[1], threads, loop.stride)
            if even > most + 0.05:
                best, most = name, even
        if threads > 1 and best:
            self.take(Parallel(best))
