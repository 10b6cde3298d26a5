"""Lowering of sums of products for matrix units: packed operands, products, results in scratch.

    outer loops
      pack the right operand                      where the action says
      S: scratch for the results of the loops inside
      loops of rows and blocks of the depth
        pack the left operand                     where the action says
        product S (+)= left * right
      loops of rows and columns: the stores of the kernel, which read S

Panels have whole blocks: what is beyond the end of an axis is zero where it would be added up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mygrad import dtype as dt
from mygrad.codegen.actions import LoopAxis, Schedule, ScheduleError, Tensorize
from mygrad.codegen.prepare import row_major
from mygrad.codegen.scope import Scope
from mygrad.codegen.stmt import If, Product, Put, Scratch
from mygrad.codegen.tensorize import BLOCK, KINDS, Contraction, contraction
from mygrad.expr import (
    Expr,
    axis,
    both,
    const,
    equal,
    floordiv,
    free_axes,
    is_true,
    less,
    load,
    modulo,
    rebuild,
    stride,
    substitute,
    toposort,
    where,
)
from mygrad.helpers import prod, round_up
from mygrad.ops import Op

if TYPE_CHECKING:
    from mygrad.codegen.lower import Placer

RESULT = "products"
_TRUE = const(True, dt.bool_)


@dataclass(frozen=True)
class Tensor:
    """The contraction of a schedule in terms of its loops: those outside of everything that waits
    for the sum, those around one product, and those inside of it."""

    c: Contraction
    outside: tuple[LoopAxis, ...]
    around: tuple[LoopAxis, ...]
    rows: tuple[LoopAxis, ...]
    columns: tuple[LoopAxis, ...]
    depth: tuple[LoopAxis, ...]
    pairs: bool

    @property
    def waiting(self) -> list[LoopAxis]:
        """The loops over results that wait together."""
        return [p for p in self.around if p.root not in self.c.sum.arg[1]]

    @property
    def height(self) -> int:
        """Rows of a product."""
        return round_up(prod(p.extent for p in self.rows), BLOCK)

    @property
    def width(self) -> int:
        """Columns of a product."""
        return round_up(prod(p.extent for p in self.columns), BLOCK)

    @property
    def steps(self) -> int:
        """Depth of one block."""
        return 64 // self.c.left.dtype.itemsize

    @property
    def deep(self) -> int:
        """Depth of a product."""
        return round_up(prod(p.extent for p in self.depth), self.steps)

    def cell(self) -> Expr:
        """Where the result of a point is."""
        inside = row_major(self.rows) * self.width + row_major(self.columns)
        return row_major(self.waiting) * (self.height * self.width) + inside


def tensor_of(s: Schedule) -> Tensor | None:
    """The contraction of a schedule that has the action Tensorize.

    Raises:
        ScheduleError: there is none, or loops are not where they must be.
    """
    action = s.tensor
    if action is None:
        return None
    c = contraction(s.kernel, tuple(unit for _, _, unit in KINDS))
    if c is None:
        raise ScheduleError(f"{action}: the kernel has no sum of products")
    tiles = [[s.loop(name) for name in names] for names in (action.rows, action.columns)]
    for loops, roots in zip((*tiles, [s.loop(n) for n in action.depth]), _roots(c), strict=True):
        if any(p.root not in roots for p in loops):
            raise ScheduleError(f"{action}: a loop is of another sort")
    inner = {*action.rows, *action.columns, *action.depth}
    own = free_axes(c.sum) | frozenset(c.sum.arg[1])
    loops = [p for p in s.loops if p.root in own and p.name not in inner]
    first = min((n for n, p in enumerate(loops) if p.root in c.depth), default=len(loops))
    _check_places(s, action, loops[:first], loops[first:])
    return Tensor(
        c,
        tuple(loops[:first]),
        tuple(loops[first:]),
        tuple(tiles[0]),
        tuple(tiles[1]),
        tuple(s.loop(name) for name in action.depth),
        action.pairs,
    )


def _check_places(
    s: Schedule, action: Tensorize, outside: list[LoopAxis], around: list[LoopAxis]
) -> None:
    """Refuse loops that are not where the statements put them: first those that stores and products
    share, which alone may be parallel; then those around products; then what a product covers."""

    def refuse(condition: bool, why: str) -> None:
        if condition:
            raise ScheduleError(f"{action}: {why}")

    own = [*outside, *around]
    inner = [*action.rows, *action.columns, *action.depth]
    refuse(len(set(inner)) != len(inner), "a loop is named twice")
    refuse(any(p.is_tile for p in own), "a loop around the product is part of a tile")
    steps = [(p.root, p.stride) for p in map(s.loop, inner)]
    finer = any(p.root is root and p.stride < step for p in own for root, step in steps)
    refuse(finer, "a loop around the product runs over parts of its steps")
    names = {"", *(p.name for p in own)}
    refuse(not {action.left, action.right} <= names, "operands are packed inside of the product")
    shared = [p for p in s.loops if p in outside or p.root in s.kernel.axes]
    refuse(shared[: len(outside)] != outside, "other loops are outside of those around it")
    late = [p for p in s.loops if p.kind == "parallel" and p not in outside[:1]]
    refuse(bool(late), "the parallel loop must be the outermost")


def _roots(c: Contraction) -> tuple[tuple[Expr, ...], ...]:
    return c.rows, c.columns, c.depth


def hand_over(s: Schedule, t: Tensor) -> Schedule:
    """The schedule whose stores read the result of the sum from scratch memory."""
    cell = load(RESULT, t.c.sum.dtype, t.cell())
    stores = tuple(replace(x, value=substitute(x.value, {t.c.sum: cell})) for x in s.kernel.stores)
    return replace(s, kernel=replace(s.kernel, stores=stores))


def place(placer: Placer, t: Tensor) -> None:
    """Put the packing and the products into the scopes of a kernel."""
    s = placer.schedule
    action = s.tensor
    assert action is not None
    scope = placer.store_scope((p.axis for p in t.outside), (), None)
    size = prod(p.extent for p in t.waiting) * t.height * t.width
    result = Scratch(RESULT, t.c.sum.dtype, size)
    packs = (_Pack(placer, t, action.left, True), _Pack(placer, t, action.right, False))
    for at in scope.path:
        for pack in packs:
            pack.enter(at)
    nests: dict[LoopAxis, Scope] = {}
    scope.copies.append((result, nests))
    inner = scope.inside(t.around, nests)
    if inner is scope:
        # a loop of one trip, as the scope itself puts its stores after its nests
        only = LoopAxis("once", axis(placer.number(), 1), axis(placer.number(), 1))
        inner = scope.inside([only], nests)
    for at in inner.path[scope.depth + 1 :]:
        for pack in packs:
            pack.enter(at)
    placer.affine |= set(toposort([t.cell()]))
    first = _TRUE
    for p in t.around:
        if p.root in t.c.depth:
            first = both(first, equal(p.axis, const(0)))
    starts = row_major(t.waiting) * (t.height * t.width)
    made = [
        Product(
            (RESULT, starts),
            (packs[0].name, packs[0].start()),
            (packs[1].name, packs[1].start()),
            t.height,
            t.width,
            t.deep,
            fresh,
            t.pairs,
        )
        for fresh in (True, False)
    ]
    inner.add(made[0] if is_true(first) else If(first, (made[0],), (made[1],)))


class _Pack:
    """One operand: where its panels begin, and the nest that fills them."""

    def __init__(self, placer: Placer, t: Tensor, at: str, is_left: bool) -> None:
        self.placer, self.t, self.at, self.is_left = placer, t, at, is_left
        self.in_rows = is_left and not t.pairs  # or in pairs of the depth
        self.operand = t.c.left if is_left else t.c.right
        self.name = "left" if is_left else "right"
        self.tile = t.rows if is_left else t.columns
        self.size = (t.height if is_left else t.width) * t.deep  # of one panel
        loops = [*t.outside, *t.around]
        after = next((n + 1 for n, p in enumerate(loops) if p.name == at), 0)
        self.inner = [p for p in loops[after:] if p.root in free_axes(self.operand)]

    def start(self) -> Expr:
        """Where the panel of a product begins."""
        return row_major(self.inner) * self.size

    def enter(self, scope: Scope) -> None:
        """Fill the panels if this is the place."""
        name = scope.loop.name if scope.loop else ""
        if name != self.at:
            return
        nests: dict[LoopAxis, Scope] = {}
        total = prod(p.extent for p in self.inner) * self.size
        scope.copies.append((Scratch(self.name, self.operand.dtype, total), nests))
        loops, point, depth, index = self.points()
        value, index = self.value(point, depth), self.start() + index
        placer = self.placer
        placer.tile_axes |= {p.axis for p in loops if p.is_tile}
        loads = [e for e in toposort([value]) if e.op is Op.LOAD]
        affine = toposort([index, *(e.src[0] for e in loads)])
        placer.affine |= {e for e in affine if e.op in (Op.ADD, Op.MUL)}
        inside = scope.inside(loops, nests)
        inside.add(Put(self.name, index, placer.place(value, inside)))

    # --- the points of a panel --------------------------------------------------------------------

    def loop(self, extent: int, kind: str = "seq") -> LoopAxis:
        """A loop that only this nest has."""
        made = axis(self.placer.number(), extent)
        return LoopAxis(f"i{made.arg[0]}", made, made, 1, kind)

    def points(self) -> tuple[list[LoopAxis], Expr, Expr, Expr]:
        """Loops over all panels; the row (or column), the depth, and the cell, over their axes.
        Lanes run along what is contiguous in memory, or else along what is contiguous in the panel.
        Where memory has rows of columns, whole rows are read before the next ones."""
        t, lanes = self.t, BLOCK
        blocks = (t.height if self.is_left else t.width) // BLOCK
        block, step = self.loop(blocks), self.loop(t.deep // t.steps)
        by_depth = self.is_near(t.depth) and self.run(t.depth) >= lanes
        by_row = self.is_near(self.tile) or not self.in_rows
        if self.in_rows and (by_depth or not by_row):
            lanes = min(t.steps, 2 * BLOCK, self.run(t.depth)) if by_depth else lanes
            row, far, near = (
                self.loop(BLOCK),
                self.loop(t.steps // lanes),
                self.loop(lanes, "vector"),
            )
            loops, within = [*self.inner, block, step, row, far, near], far.axis * lanes + near.axis
            rows = row.axis
        else:
            lanes = min(BLOCK, self.run(self.tile))
            some, row = self.loop(BLOCK // lanes), self.loop(lanes, "vector")
            rows = some.axis * lanes + row.axis
            copies = self.copies()
            outer = self.loop(t.steps // prod(p.extent for p in copies))
            within = row_major([outer, *copies])
            downward = [p for p in self.inner if p.root in t.c.depth]
            across = [p for p in self.inner if p not in downward]
            loops = [*across, block, *downward, step, some, outer, *copies, row]
            if self.is_near(self.tile):
                loops = [*downward, step, *across, block, some, outer, *copies, row]
        start = (block.axis * (t.deep // t.steps) + step.axis) * (BLOCK * t.steps)
        point, depth = block.axis * BLOCK + rows, step.axis * t.steps + within
        return loops, point, depth, start + self.cell(rows, within, loops)

    def copies(self) -> list[LoopAxis]:
        """Points of the depth that go together: neighbours in a row of the left panel; where a
        panel has pairs, those that lie side by side, and as many as lanes where memory has them in
        rows."""
        side = 4 // self.operand.dtype.itemsize
        if self.in_rows:
            return [self.loop(BLOCK, "unroll")]
        return [self.loop(BLOCK // side, "unroll"), self.loop(side, "unroll")]

    def cell(self, row: Expr, within: Expr, loops: list[LoopAxis]) -> Expr:
        """The place of a point in its block."""
        if self.in_rows:
            return row * self.t.steps + within
        side = 4 // self.operand.dtype.itemsize
        return (
            floordiv(within, const(side)) * (side * BLOCK)
            + row * side
            + modulo(within, const(side))
        )

    def is_near(self, loops: Iterable[LoopAxis]) -> bool:
        """Whether the innermost of these loops moves by one in what is read."""
        last = list(loops)[-1:]
        loads = [e for e in toposort([self.operand]) if e.op is Op.LOAD]
        return any(stride(e.src[0], p.root) == 1 for e in loads for p in last if p.stride == 1)

    def run(self, loops: Iterable[LoopAxis]) -> int:
        """Points of the innermost axis in a tile."""
        found = list(loops)
        return prod(p.extent for p in found if p.root is found[-1].root)

    # --- the values -------------------------------------------------------------------------------

    def value(self, point: Expr, depth: Expr) -> Expr:
        """The operand at a point of a panel, zero beyond the end of the depth."""
        t, placer = self.t, self.placer
        local = {**_digits(self.tile, point), **_digits(t.depth, depth)}
        mapping: dict[Expr, Expr] = {}
        ends, inside = _TRUE, _TRUE
        for root in free_axes(self.operand):
            at = const(0)
            for p in placer.schedule.parts(root):
                at = at + local.get(p.axis, p.axis) * p.stride
            mapping[root] = at
            fits = less(at, const(root.arg[1]))
            inside = both(inside, fits)
            ends = both(ends, fits) if root in t.c.depth else ends
        ends = both(ends, less(depth, const(prod(p.extent for p in t.depth))))
        found = _guarded(substitute(self.operand, mapping), both(inside, ends))
        if is_true(ends) or found.op is Op.LOAD:
            return found
        return where(ends, found, const(0, found.dtype))


def _digits(loops: tuple[LoopAxis, ...], number: Expr) -> dict[Expr, Expr]:
    """The values of loops at a position of the row-major order of all of them."""
    found: dict[Expr, Expr] = {}
    step = 1
    for p in reversed(loops):
        found[p.axis] = modulo(floordiv(number, const(step)), const(p.extent))
        step *= p.extent
    return found


def _guarded(root: Expr, inside: Expr) -> Expr:
    """The expression with a condition on everything that it reads."""
    if is_true(inside):
        return root
    done: dict[Expr, Expr] = {}
    for e in toposort([root]):
        src = tuple(done[s] for s in e.src)
        if e.op is Op.LOAD:
            valid = both(src[1], inside) if len(src) == 2 else inside
            done[e] = load(e.arg, e.dtype, src[0], valid)
        else:
            done[e] = rebuild(e, src) if e.src else e
    return done[root]
