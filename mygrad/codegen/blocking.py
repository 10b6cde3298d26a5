"""How a sum of products is divided so that its operands stay in the caches.

The operands of such a nest are *columns*, which depend on the vector axis, and *rows*, which are
spread over the lanes. A register tile reads all of its columns and all of its rows for every step
of the sum. It costs least where the rows of one tile stay in the first cache while tiles move along
the vector axis, and the columns of all those tiles stay in the second one:

    for block of columns: for block of rows: for tile of rows: for tile of columns: sum

Columns are divided into blocks of half of the second cache. Rows are divided where they are copied:
where the sum runs across lines of memory, a copy of few rows would read parts of lines.

Threads share the blocks of columns: each copies its own, and only the rows are read by all of them.
Where these blocks do not keep all threads busy, or rows must be copied because they fall on each
other in the cache, there is a block of rows for each thread, and more of them if a copy would not
fit.
"""

from __future__ import annotations

from mygrad.codegen.staging import ROWS, aliased, is_awkward, often
from mygrad.codegen.tiling import Access, Nest, Tile, across
from mygrad.expr import Expr
from mygrad.helpers import BUSY, busy, ceildiv, prod
from mygrad.program import Target


def blocks_of(
    nest: Nest, tile: Tile, names: dict[Expr, str], depth: int, target: Target
) -> dict[str, int]:
    """How many iterations of which loops make a block, the outermost first; `names` are the loops
    around the register tile of a nest, and `depth` the steps of its innermost loop."""
    vector = next((a for a in nest.axes if a in tile.lanes and a not in nest.reduced), None)
    if vector is None or len(nest.reduced) != 1 or tile.size(nest.reduced[0]) > 1:
        return {}
    columns = [x for x in nest.accesses if not x.stores and x.strides.get(vector, 0) != 0]
    rows = [x for x in nest.accesses if not x.stores and x not in columns]
    again = _reused(nest, columns, tile)
    if not rows or not columns or again is None:
        return {}
    copied = any(is_awkward(nest, tile, x, target) for x in columns)
    threads = target.threads if copied and not _separate(nest, target) else 1
    tiles = {a: ceildiv(a.arg[1], tile.size(a)) for a in (vector, again)}
    most = target.l2_bytes // 2 // (_per_point(nest, columns, depth) * tile.size(vector))
    block = _block(tiles[vector], most, threads)
    found = {vector: block}
    uses = prod(a.arg[1] for a in nest.axes if a not in nest.reduced and a is not again)
    strip = tile.size(again) * _per_point(nest, rows, nest.reduced[0].arg[1])
    fitting = max(ROWS * target.l2_bytes // strip, 1)  # tiles of which the rows can be copied
    parts = max(threads, ceildiv(tiles[again], fitting))
    if parts > 1 and uses >= often(target) and any(aliased(tile, x) for x in rows):
        # each thread copies its rows, once, and the columns of a block after the other
        found = {again: ceildiv(tiles[again], parts), vector: block}
    else:
        if busy(tiles[vector], threads, block) >= BUSY:
            threads = 1
        if any(across(nest, x, target) for x in rows):
            most = target.l2_bytes // 8 // (_per_point(nest, rows, depth) * tile.size(again))
            found[again] = _block(tiles[again], most, threads)
        elif block < tiles[vector]:
            found[again] = _block(tiles[again], tiles[again], threads)
    return {names[a]: n for a, n in found.items() if a in names and n < tiles[a]}


def _reused(nest: Nest, columns: list[Access], tile: Tile) -> Expr | None:
    """The longest axis with copies on which no column depends."""
    free = [
        a
        for a in nest.axes
        if a not in nest.reduced
        and tile.copies.get(a, 1) > 1
        and all(x.strides.get(a, 0) == 0 for x in columns)
    ]
    return max(free, key=lambda a: a.arg[1], default=None)


def _per_point(nest: Nest, accesses: list[Access], depth: int) -> int:
    """Bytes that `depth` steps of the sum read for one point of the output."""
    return sum(
        x.itemsize * (depth if x.strides.get(nest.reduced[0], 0) != 0 else 1) for x in accesses
    )


def _separate(nest: Nest, target: Target) -> bool:
    """Whether there are products enough for all threads that share no operand."""
    loads = [x for x in nest.accesses if not x.stores]
    own = [a for a in nest.axes if all(x.strides.get(a, 0) != 0 for x in loads)]
    return any(busy(a.arg[1], target.threads) >= BUSY for a in own if a not in nest.reduced)


def _block(tiles: int, most: int, threads: int) -> int:
    """Tiles of a block: of sizes up to `most` for which the blocks are equal, or keep the threads
    busy as well as any do, the largest. Where not all fit, no less than half of what does: rows
    are read again for each block."""
    blocks = range(ceildiv(tiles, max(most, 1)), tiles + 1)
    sizes = list(dict.fromkeys(ceildiv(tiles, n) for n in blocks))
    large = [n for n in sizes if 2 * n >= sizes[0] or sizes[0] == tiles]
    return max(large, key=lambda n: (min(busy(tiles, threads, n), BUSY), n))
