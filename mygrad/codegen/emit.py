"""From the tree of scopes (lower.py) to loops and tiles, with ragged tails peeled off.

A root axis is divided among its loops, and only its last tile may be short. Walking inwards, `left`
is how many elements of the root the loops further in still have to cover: the extent of the root at
first, later a number or, inside of a ragged outer loop, an expression.

    for io in range(13): tile ii < 8          of an axis with 100 elements becomes
    for io in range(12): tile ii < 8;  for io in range(12, 13): tile ii < 4

Inside of a short tile an unrolled loop may be short itself, then its last, partial step is an
ordinary (one-trip) loop; lanes of a vector that do not exist are inactive. Inner loops therefore
have no conditions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mygrad.codegen.actions import LoopAxis, Schedule, ScheduleError
from mygrad.codegen.bounds import assume, spans
from mygrad.codegen.scope import Pending, Scope
from mygrad.codegen.stmt import Accumulator, Block, If, Loop, Put, Stmt, Tile, TileAxis, inside
from mygrad.errors import message
from mygrad.expr import Expr, axis, const, floordiv, less, wrap
from mygrad.helpers import ceildiv
from mygrad.logic import minimum


@dataclass(frozen=True)
class Region:
    """Where the walk is: the rest of every root axis that was divided, and the tile axes around."""

    left: dict[Expr, int | Expr]
    tiles: tuple[Expr, ...] = ()

    def rest(self, loop: LoopAxis) -> int | Expr:
        """How many elements of the loop's root are left."""
        found = self.left.get(loop.root)
        return loop.root.arg[1] if found is None else found

    def inside(self, loop: LoopAxis, left: int | Expr, tile: bool = False) -> Region:
        """The region in one iteration of the loop."""
        tiles = (*self.tiles, loop.axis) if tile else self.tiles
        return Region({**self.left, loop.root: left}, tiles)


class Emitter:
    """Statements for a tree of scopes."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        # the loops that have a sequential loop over parts of their step
        self.nested = {
            p
            for p in schedule.loops
            for q in schedule.loops
            if q.root is p.root and q.stride < p.stride and not q.is_tile
        }

    def function(self, root: Scope) -> Block:
        """The body of the function; what only one thread may do is in a parallel loop of one
        iteration."""
        body = self.block(root, Region({}))
        if not any(isinstance(s, Loop) and s.kind == "parallel" for s in body):
            return body
        alone = axis(self.schedule.next_id, 1)
        return tuple(
            Loop(alone, const(0), const(1), "parallel", (s,)) if stores(s) else s for s in body
        )

    def block(self, scope: Scope, region: Region) -> Block:
        """The inside of a scope."""
        block: list[Stmt] = []
        for number, phase in enumerate(scope.phases):
            block += phase.lets
            if number == 0:
                for scratch, nests in scope.copies:
                    block.append(scratch)
                    for nest in nests.values():
                        block += self.loop(nest, region)
            block += [_declare(a, region) for a in phase.accumulators]
            for nest in phase.nests.values():
                block += self.loop(nest, region)
            block += phase.combines
        for nest in scope.nests.values():
            block += self.loop(nest, region)
        return (*block, *scope.leaves)

    def loop(self, scope: Scope, region: Region) -> list[Stmt]:
        """The loop of a scope in a region: a few loops or tiles, one after the other.

        Raises:
            ScheduleError: loops over one axis are not in the order of their steps.
        """
        loop = scope.loop
        assert loop is not None
        left = region.rest(loop)
        if isinstance(left, int) and left > loop.stride * loop.extent:
            raise ScheduleError(
                message(
                    "lower",
                    f"{loop.name} around a loop whose step it is a part of",
                    "loops over one axis in the order of their steps",
                )
            )
        if loop.kind == "parallel":
            return self.parallel(scope, loop, region)
        if loop.is_tile:
            assert isinstance(left, int)
            return self.tile(scope, loop, region, left)
        if loop.stride == 1:
            return self.run(scope, loop, const(0), wrap(left), region.inside(loop, 1))
        if loop in self.nested:
            return self.outer(scope, loop, region, left)
        return self.peeled(scope, loop, region, left)

    def run(
        self, scope: Scope, loop: LoopAxis, low: Expr, high: Expr, inside: Region
    ) -> list[Stmt]:
        """One sequential loop, or its parts that have something to do."""
        block = self.block(scope, inside)
        return [
            Loop(loop.axis, s.low, s.high, "seq", assume(block, s.holds))
            for s in spans(scope, low, high)
        ]

    def tile(self, scope: Scope, loop: LoopAxis, region: Region, left: int) -> list[Stmt]:
        """Lockstep: whole steps as one tile, the partial step of an unrolled loop on its own."""
        if loop.kind == "vector":
            inner = self.block(scope, region.inside(loop, 1, tile=True))
            return [
                _tile(TileAxis(loop.axis, loop.extent, min(left, loop.extent), "vector"), inner)
            ]
        full, rest = divmod(left, loop.stride)
        made: list[Stmt] = []
        if full:
            inner = self.block(scope, region.inside(loop, loop.stride, tile=True))
            made.append(_tile(TileAxis(loop.axis, full, full, "unroll"), inner))
        if rest:
            made += self.run(scope, loop, const(full), const(full + 1), region.inside(loop, rest))
        return made

    def outer(self, scope: Scope, loop: LoopAxis, region: Region, left: int | Expr) -> list[Stmt]:
        """A loop with a sequential loop inside over the same root: that one gets a smaller
        bound."""
        step = loop.stride
        if isinstance(left, int) and left % step == 0:
            return self.run(scope, loop, const(0), const(left // step), region.inside(loop, step))
        trips = floordiv(wrap(left) + (step - 1), const(step))
        rest = wrap(left) - loop.axis * step
        here = minimum(rest, const(step))
        return self.run(scope, loop, const(0), trips, region.inside(loop, here))

    def peeled(self, scope: Scope, loop: LoopAxis, region: Region, left: int | Expr) -> list[Stmt]:
        """A loop around tiles: the whole ones, then what remains."""
        step = loop.stride
        rest = loop.root.arg[1] % step if isinstance(left, Expr) else left % step
        full = floordiv(wrap(left), const(step))
        made: list[Stmt] = []
        if not (isinstance(left, int) and left < step):
            made += self.run(scope, loop, const(0), full, region.inside(loop, step))
        if rest:
            trips = floordiv(wrap(left) + (step - 1), const(step))
            made += self.run(scope, loop, full, trips, region.inside(loop, rest))
        return made

    def parallel(self, scope: Scope, loop: LoopAxis, region: Region) -> list[Stmt]:
        """A loop that threads share; its last iteration may be a short one."""
        size, step = loop.root.arg[1], loop.stride
        full, rest = divmod(size, step)
        body = self.block(scope, region.inside(loop, step if full else rest))
        if rest and full:
            if loop in self.nested:
                remaining = wrap(size) - loop.axis * step
                here = minimum(remaining, const(step))
                body = self.block(scope, region.inside(loop, here))
            else:
                short = self.block(scope, region.inside(loop, rest))
                body = (If(less(loop.axis, const(full)), body, short),)
        return [Loop(loop.axis, const(0), const(ceildiv(size, step)), "parallel", body)]


def _declare(pending: Pending, region: Region) -> Accumulator:
    return Accumulator(pending.name, pending.dtype, pending.op, region.tiles + pending.own)


def _tile(axis: TileAxis, inner: Block) -> Tile:
    """A tile around a block; tiles directly inside of each other are one."""
    if len(inner) == 1 and isinstance(inner[0], Tile):
        return replace(inner[0], axes=(axis, *inner[0].axes))
    return Tile((axis,), inner)


def stores(statement: Stmt) -> bool:
    """Whether a statement outside of parallel loops changes a buffer."""
    work = [statement]
    while work:
        s = work.pop()
        if isinstance(s, Put) and not isinstance(s.target, str):
            return True
        if not (isinstance(s, Loop) and s.kind == "parallel"):
            work += inside(s)
    return False
