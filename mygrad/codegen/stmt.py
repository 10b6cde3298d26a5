"""Statements: loops made explicit. What lowering produces and every renderer reads.

    Block = (Stmt, ...)
    Stmt  = Loop(axis, low, high, kind, body)      for axis in range(low, high); kind seq, parallel
          | Tile(axes, body)                       the body for all points of the axes in lockstep
          | Let(name, value)                       bind a value; scope: the rest of the block
          | Accumulator(name, dtype, op, axes)     cells for all points of the axes, set to the
                                                   identity of op (0, 1, or the smallest value)
          | Update(name, value)                    cell = cell op value, for every point of the tile
          | Combine(name, accumulator, axes)       bind name to the cells combined over axes
          | Running(name, accumulator, value)      bind name to cell op value, lane after lane
          | Scratch(name, dtype, size, memory)     an array until the block ends; private, shared
          | Put(target, index, value, valid, mode, stream)  store to a slot or a scratch name;
                                                   `stream`: past the caches, where a machine can
          | If(condition, body, otherwise)         the condition depends on no vector axis
          | Product(target, left, right, sizes)    a tile of sums of products, of packed operands
          | Barrier()                              all threads of the group arrive (GPU)
    TileAxis = (axis, extent, active, kind)        kind: unroll | vector

Values are `Expr` with these leaves in addition: VAR(name) for a Let, a Combine, or the current cell
of an accumulator; AXIS for loop and tile variables; LOAD may name a scratch array instead of a
slot.

Meaning of Tile. Every value inside depends on a set of tile axes. A value has one copy for each
combination of the *unroll* axes it depends on; it is a vector if it depends on the *vector* axis
(at most one is in scope), and a scalar otherwise, splat where it meets a vector. Loads are
therefore shared by index: in a matmul tile (mi, nu, nv) the load of A[m, k] depends on mi alone and
happens once per mi, that of B[k, n] once per (nu), as a vector, and the product once per (mi, nu).
Nothing in this language has an object per lane or per copy; the renderer makes the copies, as text.
Loops inside a tile have bounds that do not depend on tile axes. Tiles nest:
the inner one adds axes.

A vector axis has `extent` lanes of which the first `active` exist. Nothing is loaded or stored for
the others; an Update leaves their cells alone, and Combine ignores them because they still hold the
identity. For an unroll axis active = extent.

Extents. A tile axis has the same kind wherever it occurs in a function. Its AXIS carries the full
extent; a vector TileAxis always has that extent (a power of two), an unroll TileAxis in a remainder
may have fewer copies. In a remainder an unroll axis may also be the variable of an ordinary
Loop (often of one trip), and not a tile axis.

Accumulators. The axes of an accumulator are tile axes around its declaration, or around its Updates
(a vectorised reduction is declared outside of the loop, updated in tiles inside of it, and combined
after it). There is one cell for each point of the full extents of its axes. An Update changes the
cells of the current point; along an axis of the accumulator that no tile around the Update has, the
cell of index 0. A cell that a value does not index by some tile axis of the Update is updated once
for each point of those axes (so a scalar accumulator inside a vector tile is an error: it must have
the vector axis). VAR of an accumulator is the current cell. A Combine binds one value for each
point of the accumulator's other axes.

Products. `target`, `left` and `right` are scratch arrays; left and right hold numbers of one narrow
type, target wider ones (bfloat16 and float32, int8 and int32). Outside of all tiles, for every row
i, column j and depth l, in any order and in the precision of the target:

    target[i * columns + j] += left[i, l] * right[l, j]

starting from 0 where the product is `fresh`. The operands are packed as matrix units read them, in
blocks of 16 rows or columns and D = 64 / itemsize of depth, of which g = 4 / itemsize neighbours
lie side by side:

    left[i, l]    block (i // 16, l // D), then [i % 16][l % D]
    right[l, j]   block (j // 16, l // D), then [l % D // g][j % 16][l % g]

each from its index on. `rows` and `columns` are multiples of 16, `depth` of D. Subnormal numbers
may count as zero.

A VAR in an index may depend on tile axes (its Let's value says which): such an index has no known
stride. With a parallel loop in the function, every Put to a buffer is inside a parallel loop; what
stands outside of them is run by every thread. There may be several parallel loops, one after the
other, in any order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mygrad.dtype import DType
from mygrad.errors import InternalError
from mygrad.expr import Expr, toposort
from mygrad.expr import text as expr_text
from mygrad.ops import SCATTER_MODES, Op

Block = tuple["Stmt", ...]
SHORT, STRAIGHT = 8, 160  # iterations, and updates of accumulators, of a loop that is written out
ROOM = 6  # vector registers that must be left then for what its iterations share


def is_straight(trips: int, updates: int, cells: int, registers: int) -> bool:
    """Whether renderers write a loop out. If its iterations share loads, `cells` vector registers
    hold its accumulators; otherwise `cells` is 0."""
    return trips <= SHORT and updates <= STRAIGHT and cells + ROOM <= registers


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
    """Cells, one for each point of the tile `axes` (AXIS expressions), holding the identity of
    `op`."""

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
class Running:
    """Bind `name`, along the vector axis around, to the accumulator combined with the values of all
    lanes up to each; the accumulator, which lacks that axis, becomes the last of them."""

    name: str
    accumulator: str
    value: Expr


@dataclass(frozen=True)
class Scratch:
    """A local array: private to the thread, or shared by its group (no pass asks for that yet)."""

    name: str
    dtype: DType
    size: int
    memory: str = "private"


@dataclass(frozen=True)
class Put:
    """target[index] = value where valid; `mode` as in ops.SCATTER_MODES. `stream` hints that nobody
    reads it soon."""

    target: int | str
    index: Expr
    value: Expr
    valid: Expr | None = None
    mode: str = "set"
    stream: bool = False


@dataclass(frozen=True)
class If:
    """Run `body` if the condition holds, else `otherwise`."""

    condition: Expr
    body: Block
    otherwise: Block = ()


@dataclass(frozen=True)
class Product:
    """target[i, j] += left[i, l] * right[l, j]; arrays are given as (scratch name, first index).
    The left one is packed in rows, or in `pairs`, as the right one is."""

    target: tuple[str, Expr]
    left: tuple[str, Expr]
    right: tuple[str, Expr]
    rows: int
    columns: int
    depth: int
    fresh: bool
    pairs: bool = False


@dataclass(frozen=True)
class Barrier:
    """All threads of the group arrive before one goes on. Renderers know it; no pass makes one
    yet."""


Stmt = (
    Loop
    | Tile
    | Let
    | Accumulator
    | Update
    | Combine
    | Running
    | Scratch
    | Put
    | If
    | Product
    | Barrier
)


@dataclass(frozen=True)
class Function:
    """A whole generated kernel before rendering: arguments as in `Kernel`, and statements."""

    name: str
    buffers: tuple[tuple[DType, int, bool], ...]  # dtype, size, written
    params: tuple[str, ...]
    body: Block


def inside(statement: Stmt) -> Block:
    """The statements of its bodies."""
    if isinstance(statement, (Loop, Tile)):
        return statement.body
    return statement.body + statement.otherwise if isinstance(statement, If) else ()


# --- printing -------------------------------------------------------------------------------------


def text(function: Function) -> str:
    """The function as indented lines, one statement each.

    function add(b0: float32[6] out, b1: float32[6])
      for i0 in 0..6
        put b0[i0] = b1[i0] + b1[i0]
    """
    arguments = [
        f"b{slot}: {dtype.name}[{size}]{' out' if written else ''}"
        for slot, (dtype, size, written) in enumerate(function.buffers)
    ]
    lines = [f"function {function.name}({', '.join([*arguments, *function.params])})"]
    work: list[tuple[int, Stmt | str]] = [(1, s) for s in reversed(function.body)]
    while work:
        depth, s = work.pop()
        lines.append("  " * depth + (s if isinstance(s, str) else _line(s)))
        if isinstance(s, If) and s.otherwise:
            work += [(depth + 1, t) for t in reversed(s.otherwise)]
            work.append((depth, "else"))
        if isinstance(s, (Loop, Tile, If)):
            work += [(depth + 1, t) for t in reversed(s.body)]
    return "\n".join(lines)


def _line(s: Stmt) -> str:
    if isinstance(s, Loop):
        kind = "" if s.kind == "seq" else f"{s.kind} "
        return f"{kind}for {s.axis} in {s.low}..{s.high}"
    if isinstance(s, Tile):
        parts = [
            f"{t.kind} {t.axis} < {t.extent}"
            + ("" if t.active == t.extent else f" ({t.active} active)")
            for t in s.axes
        ]
        return f"tile {', '.join(parts)}"
    if isinstance(s, Put):
        name = s.target if isinstance(s.target, str) else f"b{s.target}"
        equals = "=" if s.mode == "set" else f"{s.mode}="
        condition = "" if s.valid is None else f" if {expr_text(s.valid)}"
        put = "stream" if s.stream else "put"
        return f"{put} {name}[{s.index}] {equals} {expr_text(s.value)}{condition}"
    return _simple_line(s)


def _simple_line(s: Stmt) -> str:
    if isinstance(s, Let):
        return f"let {s.name} = {expr_text(s.value)}"
    if isinstance(s, Accumulator):
        return f"accumulator {s.name}: {s.dtype.name} {s.op.name.lower()} {_list(s.axes)}"
    if isinstance(s, Update):
        return f"update {s.name} with {expr_text(s.value)}"
    if isinstance(s, Combine):
        return f"combine {s.name} = {s.accumulator} over {_list(s.axes)}"
    if isinstance(s, Running):
        return f"running {s.name} = {s.accumulator} with {expr_text(s.value)}"
    if isinstance(s, Scratch):
        return f"scratch {s.name}: {s.dtype.name}[{s.size}] {s.memory}"
    if isinstance(s, If):
        return f"if {expr_text(s.condition)}"
    if isinstance(s, Product):
        target, left, right = (f"{name}[{at}]" for name, at in (s.target, s.left, s.right))
        equals = "=" if s.fresh else "+="
        return f"product {target} {equals} {left} * {right} of {s.rows}x{s.columns}x{s.depth}"
    return "barrier"


def _list(axes: tuple[Expr, ...]) -> str:
    return "[" + ", ".join(map(str, axes)) + "]"


# --- verification ---------------------------------------------------------------------------------


@dataclass
class _Scope:
    """What is known where a block begins."""

    names: dict[str, Stmt]
    axes: frozenset[Expr]
    tiles: dict[Expr, TileAxis]
    parallel: bool = False
    top: bool = True


def verify(function: Function) -> None:
    """Check that every name and axis is bound where it is used, and the rules of tiles.

    Raises:
        InternalError: a rule is broken; the function's text is part of the message.
    """
    shared = any(isinstance(s, Loop) and s.kind == "parallel" for s in function.body)
    work: list[tuple[Block, _Scope]] = [(function.body, _Scope({}, frozenset(), {}))]
    while work:
        block, scope = work.pop()
        scope = _Scope(dict(scope.names), scope.axes, scope.tiles, scope.parallel, scope.top)
        for s in block:
            for problem in _problems(s, scope, shared):
                raise InternalError(
                    f"{function.name}: {problem}, in\n  {_line(s)}\nof\n{text(function)}"
                )
            work += _inner(s, scope)
            if isinstance(s, (Let, Accumulator, Combine, Running, Scratch)):
                scope.names[s.name] = s


def _values(s: Stmt) -> list[Expr]:
    if isinstance(s, Loop):
        return [s.low, s.high]
    if isinstance(s, (Let, Update, Running)):
        return [s.value]
    if isinstance(s, Put):
        return [s.index, s.value] + ([] if s.valid is None else [s.valid])
    if isinstance(s, Product):
        return [s.target[1], s.left[1], s.right[1]]
    return [s.condition] if isinstance(s, If) else []


def _problems(s: Stmt, scope: _Scope, shared: bool) -> Iterator[str]:
    for e in toposort(_values(s)):
        if _is_unbound(e, scope):
            yield f"{expr_text(e)} is not bound"
        elif e.op in (Op.REDUCE, Op.SCAN):
            yield f"{e.op} is left"
    if isinstance(s, Loop):
        yield from _loop_problems(s, scope)
    elif isinstance(s, Tile):
        yield from _tile_problems(s, scope)
    elif isinstance(s, (Update, Combine, Running)):
        yield from _accumulator_problems(s, scope)
    elif isinstance(s, Put):
        yield from _put_problems(s, shared and not scope.parallel)
    elif isinstance(s, Product):
        yield from _product_problems(s, scope)


def _is_unbound(e: Expr, scope: _Scope) -> bool:
    if e.op is Op.AXIS:
        return e not in scope.axes
    return (e.op is Op.VAR or isinstance(e.arg, str)) and e.arg not in scope.names


def _accumulator_problems(s: Update | Combine | Running, scope: _Scope) -> Iterator[str]:
    name = s.name if isinstance(s, Update) else s.accumulator
    declared = scope.names.get(name)
    vectors = [t.axis for t in scope.tiles.values() if t.kind == "vector"]
    if not isinstance(declared, Accumulator):
        yield f"{name} is no accumulator"
    elif isinstance(s, Update) and any(a not in declared.axes for a in vectors):
        yield f"{name} lacks the vector axis"
    elif isinstance(s, Running) and (not vectors or vectors[0] in declared.axes):
        yield f"{name} has the vector axis, or there is none"


def _put_problems(s: Put, repeated: bool) -> Iterator[str]:
    if s.mode not in SCATTER_MODES:
        yield f"mode {s.mode!r}"
    if repeated and isinstance(s.target, int):
        yield "every thread would store"


def _product_problems(s: Product, scope: _Scope) -> Iterator[str]:
    arrays = [scope.names.get(name) for name, _ in (s.target, s.left, s.right)]
    if scope.tiles:
        yield "a product inside of a tile"
    if not all(isinstance(a, Scratch) for a in arrays):
        yield "a product of something else than scratch arrays"
    elif s.rows % 16 or s.columns % 16 or s.depth % (64 // arrays[1].dtype.itemsize):  # type: ignore[union-attr]
        yield "a product of parts of blocks"


def _loop_problems(s: Loop, scope: _Scope) -> Iterator[str]:
    if s.kind not in ("seq", "parallel"):
        yield f"loop kind {s.kind!r}"
    if s.kind == "parallel" and not scope.top:
        yield "a parallel loop inside of another statement"
    if any(e in scope.tiles for e in toposort([s.low, s.high])):
        yield "the bounds depend on a tile axis"


def _tile_problems(s: Tile, scope: _Scope) -> Iterator[str]:
    vectors = [t for t in (*scope.tiles.values(), *s.axes) if t.kind == "vector"]
    if len(vectors) > 1:
        yield "two vector axes"
    for t in s.axes:
        if not 0 < t.active <= t.extent <= t.axis.arg[1]:
            yield f"{t.active} of {t.extent} of {t.axis.arg[1]} points"
        if t.kind == "vector" and t.extent != t.axis.arg[1]:
            yield "a vector of another width than its axis"
        if t.kind == "unroll" and t.active != t.extent:
            yield "inactive copies"


def _inner(s: Stmt, scope: _Scope) -> list[tuple[Block, _Scope]]:
    names = dict(scope.names)
    if isinstance(s, Loop):
        parallel = scope.parallel or s.kind == "parallel"
        return [(s.body, _Scope(names, scope.axes | {s.axis}, scope.tiles, parallel, False))]
    if isinstance(s, Tile):
        axes = scope.axes | {t.axis for t in s.axes}
        tiles = {**scope.tiles, **{t.axis: t for t in s.axes}}
        return [(s.body, _Scope(names, axes, tiles, scope.parallel, False))]
    if isinstance(s, If):
        return [
            (b, _Scope(names, scope.axes, scope.tiles, scope.parallel, False))
            for b in (s.body, s.otherwise)
        ]
    return []
