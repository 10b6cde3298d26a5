"""Statements executed exactly as `codegen/stmt.py` describes them, slowly and with every rule
checked.

A value inside of tiles is an array with one dimension for each tile axis in scope (extent 1 where
it does not depend on it). Lanes that are not active hold poison. Reading or writing outside of an
array, two iterations of a parallel loop that write one element, and two points of a tile that do
are errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mygrad import dtype as dt
from mygrad import numeric
from mygrad.codegen.stmt import (
    Accumulator,
    Barrier,
    Block,
    Combine,
    Function,
    If,
    Let,
    Loop,
    Product,
    Put,
    Running,
    Scratch,
    Tile,
    TileAxis,
    Update,
)
from mygrad.expr import Expr, toposort
from mygrad.ops import ALU, Op

Array = np.ndarray[Any, Any]
POISON = 77


class StatementError(Exception):
    """A rule of the statements is broken."""


class Cells:
    """An accumulator: cells over the full extents of its axes."""

    def __init__(self, s: Accumulator) -> None:
        self.axes, self.op = s.axes, s.op
        shape = [a.arg[1] for a in s.axes]
        start = numeric.identity(s.op, s.dtype)
        self.values = np.full(shape, start, numeric.value_dtype(s.dtype))


class Interpreter:
    """Runs one function on one flat array of values per buffer slot."""

    def __init__(
        self, function: Function, arrays: Sequence[Array], params: Mapping[str, int]
    ) -> None:
        self.function = function
        self.memory: dict[int | str, Array] = dict(enumerate(arrays))
        self.dtypes: dict[int | str, dt.DType] = {n: b[0] for n, b in enumerate(function.buffers)}
        self.params = params
        self.names: dict[str, Any] = {}
        self.loops: dict[Expr, int] = {}
        self.tiles: list[TileAxis] = []
        self.iteration: tuple[int, int] | None = None
        self.parallel_loops = 0
        self.orders: dict[Expr, list[Expr]] = {}
        self.writer: dict[tuple[int, int], tuple[int, int] | None] = {}

    def run(self) -> None:
        """Execute the whole function."""
        with np.errstate(all="ignore"):
            self.block(self.function.body)

    # --- statements -------------------------------------------------------------------------------

    def block(self, body: Block) -> None:
        """Execute statements; what they bind ends with the block."""
        names = dict(self.names)
        for s in body:
            getattr(self, type(s).__name__.lower())(s)
        self.names = names

    def loop(self, s: Loop) -> None:
        low, high = self.scalar(s.low), self.scalar(s.high)
        if s.kind == "parallel" and (self.loops or self.tiles):
            raise StatementError("a parallel loop inside of another loop")
        number = self.parallel_loops
        self.parallel_loops += s.kind == "parallel"
        for i in range(low, high):
            self.loops[s.axis] = i
            if s.kind == "parallel":
                self.iteration = number, i
            self.block(s.body)
        self.loops.pop(s.axis, None)
        if s.kind == "parallel":
            self.iteration = None

    def tile(self, s: Tile) -> None:
        before = list(self.tiles)
        self.tiles += s.axes
        if sum(t.kind == "vector" for t in self.tiles) > 1:
            raise StatementError("two vector axes in scope")
        self.block(s.body)
        self.tiles = before

    def let(self, s: Let) -> None:
        self.names[s.name] = self.evaluate(s.value)

    def accumulator(self, s: Accumulator) -> None:
        self.names[s.name] = Cells(s)

    def scratch(self, s: Scratch) -> None:
        self.memory[s.name] = np.full(s.size, POISON, numeric.value_dtype(s.dtype))
        self.dtypes[s.name] = s.dtype
        self.names[s.name] = s

    def update(self, s: Update) -> None:
        cells: Cells = self.names[s.name]
        if any(t.kind == "vector" and t.axis not in cells.axes for t in self.tiles):
            raise StatementError(f"{s.name} has no vector axis")
        value = self.full(self.evaluate(s.value))
        exists = self.active()
        where = np.nonzero(exists) if self.tiles else ()
        self.combine_at(cells, where, value[exists])

    def combine_at(self, cells: Cells, points: tuple[Array, ...], values: Array) -> None:
        position = {t.axis: n for n, t in enumerate(self.tiles)}
        count = len(values)
        at = tuple(
            points[position[a]] if a in position else np.zeros(count, np.int64) for a in cells.axes
        )
        if not at:
            for value in values:
                cells.values[...] = numeric.COMBINE[cells.op](cells.values, value)
        else:
            numeric.COMBINE[cells.op].at(cells.values, at, values)

    def combine(self, s: Combine) -> None:
        cells: Cells = self.names[s.accumulator]
        gone = tuple(cells.axes.index(a) for a in s.axes)
        rest = [a for a in cells.axes if a not in s.axes]
        # of its own type: numpy adds up narrow integers in wide ones, where they would not wrap
        values = numeric.COMBINE[cells.op].reduce(cells.values, axis=gone, dtype=cells.values.dtype)
        self.names[s.name] = self.by_tile(values, rest)

    def running(self, s: Running) -> None:
        cells: Cells = self.names[s.accumulator]
        lanes = next(n for n, t in enumerate(self.tiles) if t.kind == "vector")
        start = np.asarray(numeric.identity(cells.op, s.value.dtype), cells.values.dtype)
        value = np.where(self.active(), self.full(self.evaluate(s.value)), start)
        before = self.by_tile(cells.values, cells.axes)
        shape = [1 if n == lanes else t.extent for n, t in enumerate(self.tiles)]
        both = np.concatenate([np.broadcast_to(before, shape), value], axis=lanes)
        both = both.astype(cells.values.dtype)
        after = numeric.COMBINE[cells.op].accumulate(both, axis=lanes, dtype=both.dtype)
        self.names[s.name] = np.delete(after, 0, axis=lanes)
        position = {t.axis: n for n, t in enumerate(self.tiles)}
        for point in np.ndindex(*shape):
            at = tuple(point[position[a]] if a in position else 0 for a in cells.axes)
            cells.values[at] = np.take(after, -1, axis=lanes)[
                tuple(i for n, i in enumerate(point) if n != lanes)
            ]

    def put(self, s: Put) -> None:
        parts = [
            self.evaluate(e)
            for e in (s.index, s.value) + ((s.valid,) if s.valid is not None else ())
        ]
        used = np.broadcast_shapes(*(p.shape for p in parts))
        mask = np.broadcast_to(self.active(), np.broadcast_shapes(self.active().shape, used))
        mask = mask[tuple(slice(0, n) for n in used)] & np.ones(used, bool)
        index, value = np.broadcast_to(parts[0], used), np.broadcast_to(parts[1], used)
        if s.valid is not None:
            mask = mask & np.broadcast_to(parts[2], used)
        self.check(s.target, index[mask])
        element, values = index[mask], value[mask]
        if len(np.unique(element)) != len(element):
            raise StatementError(f"two points of a tile write one element: {s}")
        self.check_race(s.target, element)
        dtype = self.dtypes[s.target]
        if s.mode == "set":
            self.memory[s.target][element] = values
        else:
            numeric.scatter(self.memory[s.target], element, values, s.mode, dtype)

    def check_race(self, target: int | str, element: Array) -> None:
        if isinstance(target, str):
            return
        if self.parallel_loops and self.iteration is None:
            raise StatementError("every thread stores")
        for i in element.tolist():
            if self.writer.setdefault((target, i), self.iteration) != self.iteration:
                raise StatementError(f"two iterations of parallel loops write b{target}[{i}]")

    def product(self, s: Product) -> None:
        """Sums of products of packed operands, point by point."""
        if self.tiles:
            raise StatementError("a product inside of a tile")
        steps = 64 // self.dtypes[s.left[0]].itemsize
        side, target = steps // 16, self.memory[s.target[0]]
        i, j, k = np.ogrid[: s.rows, : s.columns, : s.depth]

        def block(n: Array) -> Array:
            return (n // 16 * (s.depth // steps) + k // steps) * 16 * steps

        within = k % steps

        def in_pairs(n: Array) -> Array:
            return block(n) + within // side * 16 * side + n % 16 * side + k % side

        in_rows = block(i) + i % 16 * steps + within
        left = self.scalar(s.left[1]) + (in_pairs(i) if s.pairs else in_rows)
        right = self.scalar(s.right[1]) + in_pairs(j)
        cells = self.scalar(s.target[1]) + (i * s.columns + j)[:, :, 0]
        for name, index in ((s.left[0], left), (s.right[0], right), (s.target[0], cells)):
            self.check(name, index)
        wide = target.dtype
        products = self.memory[s.left[0]][left].astype(wide) * self.memory[s.right[0]][right]
        before = 0 if s.fresh else target[cells]
        target[cells] = products.sum(-1, dtype=wide) + before

    def barrier(self, s: Barrier) -> None:
        """One thread is always there alone."""

    # --- values -----------------------------------------------------------------------------------

    def scalar(self, e: Expr) -> int:
        value = self.evaluate(e)
        if value.size != 1:
            raise StatementError(f"{e} depends on a tile axis")
        return int(value.reshape(()))

    def full(self, value: Array) -> Array:
        return np.broadcast_to(value, [t.extent for t in self.tiles])

    def active(self) -> Array:
        """Which points of the tile axes in scope exist."""
        mask = np.ones([1] * len(self.tiles), bool)
        for n, t in enumerate(self.tiles):
            shape = [1] * len(self.tiles)
            shape[n] = t.extent
            mask = mask & (np.arange(t.extent) < t.active).reshape(shape)
        return mask

    def by_tile(self, values: Array, axes: Sequence[Expr]) -> Array:
        """Cells over `axes` as a value over the tile axes in scope; cell 0 along axes that are
        not."""
        result = values
        for n in reversed(range(len(axes))):
            tile = next((t for t in self.tiles if t.axis is axes[n]), None)
            result = (
                np.take(result, 0, axis=n)
                if tile is None
                else np.take(result, range(tile.extent), n)
            )
        kept = [a for a in axes if any(t.axis is a for t in self.tiles)]
        order = [kept.index(t.axis) for t in self.tiles if t.axis in kept]
        shape = [t.extent if t.axis in kept else 1 for t in self.tiles]
        return np.asarray(result).transpose(order).reshape(shape)

    def evaluate(self, root: Expr) -> Array:
        """The value with one dimension per tile axis in scope."""
        done: dict[Expr, Array] = {}
        order = self.orders.get(root)
        if order is None:
            order = self.orders[root] = toposort([root])
        for e in order:
            done[e] = self.node(e, [done[s] for s in e.src])
        return done[root]

    def node(self, e: Expr, src: list[Array]) -> Array:
        rank = len(self.tiles)
        if e.op in ALU:
            return np.asarray(numeric.evaluate_alu(e.op, src, e.dtype))
        if e.op is Op.CONST:
            value = numeric.cast(np.asarray(e.arg, numeric.value_dtype(e.dtype)), e.dtype)
            return np.asarray(value).reshape([1] * rank)
        if e.op is Op.PARAM:
            return np.full([1] * rank, self.params[e.arg[0]], np.int64)
        if e.op is Op.AXIS:
            return self.axis(e)
        if e.op is Op.LOAD:
            return self.load(e, src)
        if e.op is Op.VAR:
            return self.variable(e)
        raise StatementError(f"{e.op} in a statement")

    def axis(self, e: Expr) -> Array:
        shape = [1] * len(self.tiles)
        for n, t in enumerate(self.tiles):
            if t.axis is e:
                shape[n] = t.extent
                return np.arange(t.extent).reshape(shape)
        return np.full(shape, self.loops[e], np.int64)

    def variable(self, e: Expr) -> Array:
        held = self.names[e.arg]
        if isinstance(held, Cells):
            return self.by_tile(held.values, held.axes)
        return held.reshape(held.shape + (1,) * (len(self.tiles) - held.ndim))

    def load(self, e: Expr, src: list[Array]) -> Array:
        shape = np.broadcast_shapes(*(s.shape for s in src))
        index = np.broadcast_to(src[0], shape)
        lanes = self.active()
        lanes = np.broadcast_to(lanes, np.broadcast_shapes(lanes.shape, shape))
        exists = lanes[tuple(slice(0, n) for n in shape)]
        valid = exists if len(src) == 1 else exists & src[1]
        self.check(e.arg, index[np.broadcast_to(valid, shape)])
        memory = self.memory[e.arg]
        if memory.size == 0:
            return np.zeros(shape, memory.dtype)
        found = memory[np.where(valid, index, 0)]
        if len(src) == 2:
            found = np.where(src[1], found, memory.dtype.type(0))
        poison = numeric.cast(np.asarray(POISON), e.dtype)
        return np.where(exists, found, poison).astype(found.dtype)

    def check(self, target: int | str, index: Array) -> None:
        size = self.memory[target].size
        wrong = (index < 0) | (index >= size)
        if wrong.any():
            raise StatementError(
                f"element {index[wrong][0]} of {target}, which has {size}, at {self.loops}"
            )

    def if_(self, s: If) -> None:
        self.block(s.body if self.scalar(s.condition) else s.otherwise)


setattr(Interpreter, "if", Interpreter.if_)


def run(
    function: Function, arrays: Sequence[Array], params: Mapping[str, int] | None = None
) -> None:
    """Execute a function on storage arrays, in place."""
    values = [
        dt.from_storage(a, b[0]).copy() for a, b in zip(arrays, function.buffers, strict=True)
    ]
    Interpreter(function, values, params or {}).run()
    for array, value, buffer in zip(arrays, values, function.buffers, strict=True):
        array[...] = dt.to_storage(value, buffer[0])
