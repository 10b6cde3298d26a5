"""Which lines of memory to fetch while a sum runs: those that its results are combined with, and
those that they are stored to.

A register tile of results lies on as many lines as it has rows, often on pages of their own, and
nothing fetches them ahead: the processor would meet them after the sum, one tile after the other,
and wait. To ask for them before the sum costs an instruction for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import NamedTuple

from mygrad.codegen.stmt import (
    Accumulator,
    Block,
    Let,
    Loop,
    Put,
    Stmt,
    Tile,
    TileAxis,
    Update,
    inside,
)
from mygrad.expr import Expr, const, free_axes, stride, substitute, toposort
from mygrad.helpers import prod
from mygrad.ops import Op

LINE = 64  # bytes
MOST = 64  # lines of one access; what has more is no tile
UPDATES = 8  # of an accumulator, in vectors, that there must be for each line

Ranges = Mapping[Expr, range]


class Fetch(NamedTuple):
    """Lines of a buffer: those of the element at index `first`, and `places` bytes from there."""

    slot: int
    first: Expr
    places: list[int]
    written: bool


def fetches(
    block: Block, after: Block, around: Iterable[TileAxis], itemsizes: Mapping[int, int]
) -> list[Fetch]:
    """What to fetch before `block`, which begins with the accumulators of a sum and is followed by
    `after`, both in tiles of the axes `around`: what is accessed between this sum and the next one.
    Left out are indices that depend on loads or on names, and stores past the caches. Nothing is
    fetched where the sum has less than UPDATES updates for each line. `itemsizes` are those of the
    buffers."""
    tile = {t.axis: range(t.active) for t in around}
    found: dict[tuple[int, Expr], Fetch] = {}
    for slot, index, ranges, written in _touched((*block, *after), tile):
        if any(e.op in (Op.LOAD, Op.VAR) for e in toposort([index])):
            continue
        first = substitute(index, {a: const(r.start) for a, r in ranges.items()})
        known = found.get((slot, first))
        if known is None:
            found[slot, first] = Fetch(
                slot, first, _places(index, ranges, itemsizes[slot]), written
            )
        elif written:
            found[slot, first] = known._replace(written=True)
    lines = sum(len(f.places) for f in found.values())
    copies = prod(t.extent for t in around if t.kind == "unroll")
    return list(found.values()) if lines * UPDATES <= copies * _updates(block) else []


def _touched(block: Block, ranges: Ranges) -> Iterator[tuple[int, Expr, Ranges, bool]]:
    """What follows the sum that a block begins with, up to the next one, accesses: (slot, index,
    ranges of the axes around it, is written)."""
    summing = True
    for s in block:
        summing = summing and (isinstance(s, Accumulator) or _updates((s,)) > 0)
        if summing:
            continue
        if _has_sums(s):
            return
        yield from _accesses(s, ranges)


def _accesses(s: Stmt, ranges: Ranges) -> Iterator[tuple[int, Expr, Ranges, bool]]:
    values: list[Expr] = []
    if isinstance(s, Let):
        values = [s.value]
    elif isinstance(s, Put):
        values = [s.value] if s.valid is None else [s.value, s.valid]
        if isinstance(s.target, int) and not s.stream:
            yield s.target, s.index, ranges, True
    elif isinstance(s, Tile):
        inner = {**ranges, **{t.axis: range(t.active) for t in s.axes}}
        for one in s.body:
            yield from _accesses(one, inner)
    elif isinstance(s, Loop) and s.low.op is Op.CONST and s.high.op is Op.CONST:
        inner = {**ranges, s.axis: range(s.low.arg, s.high.arg)}
        for one in s.body:
            yield from _accesses(one, inner)
    for e in toposort(values):
        if e.op is Op.LOAD and isinstance(e.arg, int):
            yield e.arg, e.src[0], ranges, False


def _has_sums(s: Stmt) -> bool:
    return isinstance(s, Accumulator) or any(map(_has_sums, inside(s)))


def _updates(block: Block) -> int:
    """Updates of accumulators, each of a vector."""
    total = 0
    for s in block:
        if isinstance(s, Update):
            total += 1
        elif isinstance(s, Tile):
            total += prod(t.extent for t in s.axes if t.kind == "unroll") * _updates(s.body)
        elif isinstance(s, Loop):
            total += s.axis.arg[1] * _updates(s.body)
    return total


def _places(index: Expr, ranges: Ranges, itemsize: int) -> list[int]:
    """Distances in bytes, one for each line; none where they are not known, or too many."""
    steps = {a: stride(index, a) for a in ranges if a in free_axes(index)}
    if None in steps.values() or prod(len(ranges[a]) for a in steps) > MOST * LINE:
        return []
    moves = [
        [(step or 0) * itemsize * n for n in range(len(ranges[a]))] for a, step in steps.items()
    ]
    places: list[int] = []
    for place in sorted({sum(point) for point in product(*moves)}):
        if not places or place >= places[-1] + LINE:
            places.append(place)
    return places if len(places) <= MOST else []
