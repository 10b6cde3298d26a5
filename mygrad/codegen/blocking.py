"""How a sum of products is divided so that its operands stay in the caches.

The operands of such a nest are *columns*, which depend on the vector axis, and *rows*, which are
spread over the lanes. A register tile reads all of its columns and all of its rows for every step
of the sum. It costs least where the rows of one tile stay in the first cache while tiles move along
the vector axis, and the columns of all those tiles stay in the second one:

    for block of columns: for block of rows: for tile of rows: for tile of columns: sum

Columns are divided into blocks of half of the second cache. Rows are divided where they are copied:
where the sum runs across lines of memory, a copy of few rows would read parts of lines.
"""

from __future__ import annotations

from mygrad.codegen.actions import Split
from mygrad.codegen.tiling import Access, Nest, Tile
from mygrad.expr import Expr
from mygrad.helpers import ceildiv, prod
from mygrad.program import Target

LINE = 64  # bytes of a line of a cache


def blocks_of(
    nest: Nest, tile: Tile, names: dict[Expr, str], depth: int, target: Target
) -> list[Split]:
    """The divisions of a nest, outermost first; `names` are the loops around its register tile, and
    `depth` the steps of its innermost loop."""
    vector = next((a for a in nest.axes if a in tile.lanes and a not in nest.reduced), None)
    if vector is None or len(nest.reduced) != 1 or tile.size(nest.reduced[0]) > 1:
        return []
    columns = [x for x in nest.accesses if not x.stores and x.strides.get(vector, 0) != 0]
    rows = [x for x in nest.accesses if not x.stores and x not in columns]
    again = _reused(nest, columns, tile)
    if not rows or again is None:
        return []
    found = [(vector, _per_point(nest, columns, depth), target.l2_bytes // 2)]
    if any(across(nest, x, target) for x in rows):
        found.append((again, _per_point(nest, rows, depth), target.l2_bytes // 8))
    made = []
    for axis, nbytes, room in found:
        size = _block(axis.arg[1], tile.size(axis), nbytes, room)
        if axis in names and tile.size(axis) < size < axis.arg[1]:
            made.append(Split(names[axis], size // tile.size(axis)))
    return made


def across(nest: Nest, access: Access, target: Target) -> bool:
    """Whether a sum over this operand runs across lines, so many that they do not stay in reach."""
    steps = [abs(access.strides.get(a) or 0) * access.itemsize for a in nest.reduced]
    lines = prod(a.arg[1] for a in nest.reduced)
    return all(step >= LINE for step in steps) and lines * LINE > target.l1_bytes // 2


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


def _block(points: int, step: int, nbytes: int, room: int) -> int:
    """Points of a block of whole tiles of `step` points: as many as there is room for, and all
    blocks about equal."""
    most = max(room // (nbytes * step), 1) * step
    blocks = ceildiv(points, most)
    return ceildiv(ceildiv(points, blocks), step) * step
