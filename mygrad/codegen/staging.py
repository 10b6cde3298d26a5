"""Which operands the default schedule copies into scratch memory, and where.

A copy pays where it is read many times, and where the operand is hard to read in place: it does not
fit in the cache, its rows are a large power of two apart (then they fall on each other in the
cache) or begin within lines (then most vectors are parts of two), its lanes are not contiguous, or
a condition guards it. The copy has the order in which the tiles read it, and no conditions.

How many times are enough depends on what a load in place costs. A copy is written and read besides,
so the less is wrong with an operand where it lies, the more often must its copy be read.
"""

from __future__ import annotations

from collections.abc import Sequence

from mygrad.codegen.actions import LoopAxis, Schedule, Stage
from mygrad.codegen.tiling import (
    LINE,
    MAX_SQUARE,
    Access,
    Nest,
    Tile,
    across,
    beside,
    pages_apart,
    room_of,
    slides,
)
from mygrad.expr import Expr
from mygrad.helpers import ceildiv, prod
from mygrad.program import Target

COPIED = 8.0  # bytes of a copy in a cycle
LATE = 16.0  # cycles for a line that nothing fetched ahead
ALIASED = 2048  # bytes; rows that are a multiple of this apart share few places of the first cache
NEARLY = 1.1  # of the least that is copied: rather a copy further in, which takes up less cache
ROWS = 16  # second caches that a copy of rows may take up
OFTEN = 32  # times for each byte of a vector that rows must be read if they only fall on each other
NEVER = 1 << 62
USES = 16  # times that a copied element must be read at least, to pay for being written
# tiles that must read columns whose lines only fall on each other: they are whole vectors in place
CROWDED = 32
# tiles that must read a copy of rows, since in place they find lines in the first cache; where each
# step of the sum is on a page of its own they find none, and two are enough
VISITS = 4


def stages_of(nest: Nest, tile: Tile, scheduled: Schedule, target: Target) -> list[Stage]:
    """The copies for the loads of one nest."""
    loops = [p for p in scheduled.loops if p.root in nest.axes]
    return [
        stage
        for access in nest.accesses
        if is_awkward(nest, tile, access, target)
        for stage in _stage(nest, access, loops, target)[1]
    ]


def squares_of(nest: Nest, tile: Tile, scheduled: Schedule, target: Target) -> list[Stage]:
    """The copies, one tile at a time, of what lanes would read apart: so it is turned."""
    vector = next((a for a in nest.axes if a in tile.lanes), None)
    outer = [p for p in scheduled.loops if not p.is_tile]
    inner = {p.root: p.name for p in scheduled.loops if p.is_tile}
    if vector is None or tile.across not in inner or not outer:
        return []
    layout, at = (inner[tile.across], inner[vector]), outer[-1].name
    return [
        Stage(x.slot, at, layout, True)
        for x in nest.accesses
        if beside(nest, x, vector, tile.lanes[vector], target) is tile.across
    ]


def copying(nest: Nest, tile: Tile, loops: list[LoopAxis], target: Target) -> float:
    """Cycles to copy operands whose lanes are far apart in memory, or to gather them where there is
    no place for a copy in this order of the loops."""
    vector = next((a for a in nest.axes if a in tile.lanes), None)
    cycles = 0.0
    for access in nest.accesses:
        if access.stores or vector is None or access.strides.get(vector, 0) in (0, 1):
            continue
        copied, stages = 0.0, list[Stage]()
        if is_awkward(nest, tile, access, target):
            copied, stages = _stage(nest, access, loops, target)
        shared = [a for a in nest.axes if access.strides.get(a, 0) == 0]
        gathered = prod(
            ceildiv(a.arg[1], tile.size(a)) if a in shared else a.arg[1] for a in nest.axes
        )
        cycles += copied / COPIED if stages else gathered
    return cycles


def scattered(nest: Nest, tile: Tile, loops: Sequence[LoopAxis]) -> float:
    """Cycles to wait for the results of tiles of which the next one, in this order of the loops,
    does not go on where the last one ended: nothing fetches their lines ahead."""
    lines = 0.0
    for x in nest.results:
        if x.strides.get(loops[-1].root, 0) not in (0, 1):
            own = [a for a in nest.axes if x.strides.get(a, 0) != 0]
            whole = prod(tile.size(a) for a in own if x.strides[a] != 1)
            run = prod(tile.size(a) for a in own if x.strides[a] == 1) * x.itemsize
            lines += whole * max(run / LINE, 1.0)
    return lines * LATE * prod(p.extent for p in loops)


def is_awkward(nest: Nest, tile: Tile, access: Access, target: Target) -> bool:
    """Whether loads of this operand in the inner loops are worse than those of a packed copy."""
    vector = next((a for a in nest.axes if a in tile.lanes), None)
    if vector is None or not access.can_stage:
        return False
    if vector in nest.reduced:
        return access.strides.get(vector, 0) not in (0, 1)
    if access.strides.get(vector, 0) == 0:
        return across(nest, access, target) or aliased(tile, access)
    if is_panel(nest, tile, vector, access):
        return access.guarded
    if access.strides[vector] == 1 and any(slides(access, vector, r) for r in nest.reduced):
        return access.guarded  # a copy would hold every element once for each place of the window
    steps = [abs(access.strides.get(a) or 0) * access.itemsize for a in nest.reduced]
    steps = [step for step in steps if step]
    return (
        access.strides[vector] != 1
        or access.guarded
        or access.nbytes > target.l2_bytes // 2
        or (min(steps, default=0) > LINE and any(step % LINE for step in steps))
        or (_visits(nest, tile, access) >= CROWDED and across(nest, access, target))
    )


def _visits(nest: Nest, tile: Tile, access: Access) -> int:
    """How many tiles read the same elements of an operand."""
    shared = [a for a in nest.axes if access.strides.get(a, 0) == 0 and a not in nest.reduced]
    return prod(ceildiv(a.arg[1], tile.size(a)) for a in shared)


def is_panel(nest: Nest, tile: Tile, vector: Expr, access: Access) -> bool:
    """Whether tiles read the operand from one end to the other, as they would read a copy."""
    place = tile.size(vector)
    if access.strides[vector] != 1 or place != vector.arg[1]:
        return False
    steps = [(access.strides.get(a), a.arg[1]) for a in nest.reduced]
    for step, extent in sorted((step, extent) for step, extent in steps if step):
        if step != place:
            return False
        place *= extent
    return place > tile.size(vector)


def often(target: Target) -> int:
    """Times that an element of rows must be read for a copy to pay, where the rows are only hard to
    read because they fall on each other: the longer the vectors, the less a load costs in place,
    beside the memory that a copy is written to and read from. With vectors of a line it did not
    pay for products of 2048, 3072 and 4096 columns, which took 5 to 20 % longer."""
    return OFTEN * target.vector_bytes if target.vector_bytes < LINE else NEVER


def aliased(tile: Tile, access: Access) -> bool:
    """Whether the rows of a tile fall on each other in the cache."""
    steps = [abs(access.strides.get(a) or 0) * access.itemsize for a in tile.copies]
    return any(step and step % ALIASED == 0 for step in steps)


def _stage(
    nest: Nest, access: Access, loops: list[LoopAxis], target: Target
) -> tuple[float, list[Stage]]:
    """Where the copy fits in the second cache and is used again: the place where about the
    least is copied in all, and among those the innermost. Rows, of which all columns of a block
    read one element after the other, may come from further away. Also the bytes that are copied;
    each run of neighbours counts for a line more, which is fetched in part or while nothing else
    is."""
    lanes = max((p.extent for p in loops if p.kind == "vector"), default=0)
    spread = all(access.strides.get(p.root, 0) == 0 for p in loops if p.kind == "vector")
    room = ROWS * target.l2_bytes if spread else room_of(target)
    least_uses = USES
    least_trips = VISITS if spread and not pages_apart(nest, access, target) else 2
    if spread and not across(nest, access, target):
        least_uses = often(target)
        if any(p.kind == "parallel" and access.strides.get(p.root, 0) == 0 for p in loops):
            return 0.0, []  # every thread would copy all rows for itself
    squares = target.language == "llvm" and 4 <= lanes <= MAX_SQUARE
    found: list[tuple[float, Stage]] = []
    for n, at in enumerate([None, *loops]):
        inner = loops[n:]
        if at is not None and (
            at.is_tile or all(p.root in nest.reduced or p.is_tile for p in inner)
        ):
            break
        layout = [p for p in inner if access.strides.get(p.root, 0) != 0]
        again = [p for p in inner if p.root not in nest.reduced and p not in layout]
        size = prod(p.extent for p in layout) * access.itemsize
        uses = prod(p.extent for p in again)
        trips = prod(p.extent for p in again if not p.is_tile)
        run = prod(p.extent for p in layout if access.strides.get(p.root) == 1) * access.itemsize
        copied = size * (1.0 + LINE / max(run, 1)) * prod(p.extent for p in loops[:n])
        if not layout or trips < least_trips or uses < least_uses or size > room:
            continue
        layout.sort(key=lambda p: p.is_tile)
        names = tuple(p.name for p in layout)
        found.append((copied, Stage(access.slot, at.name if at else "", names, squares)))
    least = min((copied for copied, _ in found), default=0.0)
    return least, [stage for copied, stage in found if copied <= NEARLY * least][-1:]
