"""Statements: loops made explicit. What lowering produces and every renderer reads.

    Block = (Stmt, ...)
    Stmt  = Loop(axis, low, high, kind, body)      for axis in range(low, high); kind: seq | parallel
          | Tile(axes, body)                       run the body for all points of the tile axes in lockstep
          | Let(name, value)                       bind a value; scope: the rest of the block
          | Accumulator(name, dtype, op, axes)     cells for all points of these enclosing tile axes, set to
                                                   the identity of op (0, 1, or the smallest value)
          | Update(name, value)                    cell = cell op value, for every point of the tile
          | Combine(name, accumulator, axes)       bind name to the cells combined over some of their tile axes
          | Scratch(name, dtype, size, memory)     an array alive for the rest of the block; private | shared
          | Put(target, index, value, valid, mode) store to a buffer slot or a scratch name
          | If(condition, body, otherwise)         the condition depends on no vector axis
          | Barrier()                              all threads of the group arrive (GPU)
    TileAxis = (axis, extent, active, kind)        kind: unroll | vector

Values are `Expr` with these leaves in addition: VAR(name) for a Let, a Combine, or the current cell of an
accumulator; AXIS for loop and tile variables; LOAD may name a scratch array instead of a slot.

Meaning of Tile. Every value inside depends on a set of tile axes. A value has one copy for each combination
of the *unroll* axes it depends on; it is a vector if it depends on the *vector* axis (at most one is in scope),
and a scalar otherwise, splat where it meets a vector. Loads are therefore shared by index: in a matmul tile
(mi, nu, nv) the load of A[m, k] depends on mi alone and happens once per mi, that of B[k, n] once per (nu), as
a vector, and the product once per (mi, nu). Nothing in this language has an object per lane or per copy; the
renderer makes the copies, as text. Loops inside a tile have bounds that do not depend on tile axes. Tiles nest:
the inner one adds axes.

A vector axis has `extent` lanes of which the first `active` exist. Nothing is loaded or stored for the others;
an Update leaves their cells alone, and Combine ignores them because they still hold the identity. For an unroll
axis active = extent.

Extents. A tile axis has the same kind wherever it occurs in a function. Its AXIS carries the full extent; a
vector TileAxis always has that extent (a power of two), an unroll TileAxis in a remainder may have fewer copies.
In a remainder an unroll axis may also be the variable of an ordinary (one-trip) Loop, and not a tile axis.

Accumulators. The axes of an accumulator are tile axes around its declaration, or around its Updates (a vectorised
reduction is declared outside of the loop, updated in tiles inside of it, and combined after it). There is one
cell for each point of the full extents of its axes. An Update changes the cells of the current point; along an
axis of the accumulator that no tile around the Update has, the cell of index 0. A cell that a value does not
index by some tile axis of the Update is updated once for each point of those axes (so a scalar accumulator
inside a vector tile is an error: it must have the vector axis). VAR of an accumulator is the current cell.
A Combine binds one value for each point of the accumulator's other axes.

A VAR in an index may depend on tile axes (its Let's value says which): such an index has no known stride.
With a parallel loop in the function, every Put to a buffer is inside a parallel loop; what stands outside of
them is run by every thread. There may be several parallel loops, one after the other, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass

from mygrad.dtype import DType
from mygrad.expr import Expr
from mygrad.ops import Op

Block = tuple["Stmt", ...]


@dataclass(frozen=True)
class TileAxis:
    """A loop whose iterations run in lockstep: copies of text (unroll) or lanes of a vector."""

    axis: Expr
    extent: int
    active: int
    kind: str


@dataclass(frozen=True)
class Loop:
    """for axis in range(low, high). A parallel loop is outermost; threads share its range."""

    axis: Expr
    low: Expr
    high: Expr
    kind: str
    body: Block


@dataclass(frozen=True)
class Tile:
    """Run the body for all points of `axes` in lockstep."""

    axes: tuple[TileAxis, ...]
    body: Block


@dataclass(frozen=True)
class Let:
    """Bind a value."""

    name: str
    value: Expr


@dataclass(frozen=True)
class Accumulator:
    """Cells, one for each point of the tile `axes` (AXIS expressions), holding the identity of `op`."""

    name: str
    dtype: DType
    op: Op
    axes: tuple[Expr, ...]


@dataclass(frozen=True)
class Update:
    """cell = cell op value."""

    name: str
    value: Expr


@dataclass(frozen=True)
class Combine:
    """Bind `name` to the cells of `accumulator` combined over `axes`; the others stay."""

    name: str
    accumulator: str
    axes: tuple[Expr, ...]


@dataclass(frozen=True)
class Scratch:
    """A local array: private to the thread, or shared by its group."""

    name: str
    dtype: DType
    size: int
    memory: str = "private"


@dataclass(frozen=True)
class Put:
    """target[index] = value where valid; `mode` as in ops.SCATTER_MODES."""

    target: int | str
    index: Expr
    value: Expr
    valid: Expr | None = None
    mode: str = "set"


@dataclass(frozen=True)
class If:
    """Run `body` if the condition holds, else `otherwise`."""

    condition: Expr
    body: Block
    otherwise: Block = ()


@dataclass(frozen=True)
class Barrier:
    """All threads of the group arrive before one goes on."""


Stmt = Loop | Tile | Let | Accumulator | Update | Combine | Scratch | Put | If | Barrier


@dataclass(frozen=True)
class Function:
    """A whole generated kernel before rendering: arguments as in `Kernel`, and statements."""

    name: str
    buffers: tuple[tuple[DType, int, bool], ...]  # dtype, size, written
    params: tuple[str, ...]
    body: Block
