"""The `reference` device: an interpreter of kernels in NumPy, slow and obvious.

It gives kernels their executable meaning (kernel.py) and is the oracle of the code generators.
Every axis of a store, free or bound, is one dimension of a grid; every expression is evaluated over
the dimensions it depends on; REDUCE reduces dimensions, SCAN accumulates along one. Loops appear
only in chunks of the outermost axes, so that a large grid does not exhaust memory.

It is also the sanitiser of the scheduler. These are `InternalError`s: a LOAD or store outside of
its buffer where it is valid (even if a WHERE would discard the value), and two points that write
one element without `ordered_axes` to say in which order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mygrad import dtype as dt
from mygrad import numeric
from mygrad.errors import InternalError
from mygrad.expr import Expr, free_axes, text, toposort
from mygrad.kernel import BufferInfo, Kernel, Store
from mygrad.numeric import Array
from mygrad.ops import ALU, Op
from mygrad.program import Launch, Program, Target
from mygrad.runtime.base import LaunchSequence, Runtime

CHUNK_POINTS = 1 << 22  # of the largest expression that is evaluated at once


# --- evaluation of expressions ------------------------------------------------------------------


class Value(NamedTuple):
    """An expression over the grid: one dimension per free axis, in order of axis id.

    `bad` marks the points where a load outside of its buffer was needed; None where there is none.
    """

    array: Array
    bad: Array | None = None


class Grid:
    """One chunk of a store's grid: ranges of the axes, contents of the buffers, and parameters."""

    def __init__(
        self,
        kernel: Kernel,
        ranges: Mapping[Expr, range],
        contents: Sequence[Array],
        params: Mapping[str, int],
    ) -> None:
        self.kernel = kernel
        self.ranges = ranges
        self.contents = contents
        self.params = params
        self.values: dict[Expr, Value] = {}

    def dims(self, e: Expr) -> list[Expr]:
        """The dimensions of the value of `e`."""
        return _by_id(free_axes(e))

    def extent(self, axis: Expr) -> int:
        """Points of an axis in this chunk; bound axes are never chunked."""
        return len(self.ranges.get(axis, range(axis.arg[1])))

    def spread(self, e: Expr, dims: Sequence[Expr], full: bool = False) -> Value:
        """The value of `e` with dimensions `dims`; those it lacks get extent 1, or their points if
        `full`."""
        value, own = self.values[e], self.dims(e)
        shape = [self.extent(a) if a in own else 1 for a in dims]
        target = [self.extent(a) for a in dims]

        def reshape(array: Array) -> Array:
            in_order = array.transpose([own.index(a) for a in dims if a in own]).reshape(shape)
            return np.broadcast_to(in_order, target) if full else in_order

        return Value(reshape(value.array), None if value.bad is None else reshape(value.bad))

    def evaluate(self, roots: Sequence[Expr]) -> None:
        """Fill `values` for the roots; intermediate values are dropped after their last use."""
        order = toposort(roots)
        uses: dict[Expr, int] = dict.fromkeys(roots, 1)
        for e in order:
            for s in e.src:
                uses[s] = uses.get(s, 0) + 1
        for e in order:
            self.values[e] = self._one(e)
            for s in e.src:
                uses[s] -= 1
                if uses[s] == 0:
                    self.values.pop(s, None)

    def _one(self, e: Expr) -> Value:
        if e.op in ALU:
            return _alu(self, e)
        if e.op not in _ROWS:
            raise InternalError(f"reference: {e.op} cannot occur in a kernel ({self.kernel.name})")
        return _ROWS[e.op](self, e)


def _by_id(axes: frozenset[Expr] | set[Expr]) -> list[Expr]:
    return sorted(axes, key=lambda a: a.arg[0])


def _any_bad(values: Sequence[Value]) -> Array | None:
    bad: Array | None = None
    for value in values:
        if value.bad is not None:
            bad = value.bad if bad is None else bad | value.bad
    return bad


def _alu(grid: Grid, e: Expr) -> Value:
    dims = grid.dims(e)
    operands = [grid.spread(s, dims) for s in e.src]
    bad = _any_bad(operands)
    result = numeric.evaluate_alu(e.op, [v.array for v in operands], e.dtype)
    return Value(result, None if bad is None else np.broadcast_to(bad, result.shape))


def _const(grid: Grid, e: Expr) -> Value:
    with np.errstate(all="ignore"):  # a float16 constant may be too large: it is infinite
        return Value(numeric.cast(np.asarray(e.arg, numeric.value_dtype(e.dtype)), e.dtype))


def _axis(grid: Grid, e: Expr) -> Value:
    points = grid.ranges.get(e, range(e.arg[1]))
    return Value(np.arange(points.start, points.stop, dtype=np.int64))


def _param(grid: Grid, e: Expr) -> Value:
    name, low, high = e.arg
    value = grid.params[name]
    if not low <= value <= high:
        raise InternalError(f"reference: parameter {name} is {value}, outside of [{low}, {high}]")
    return Value(np.asarray(value, np.int64))


def _load(grid: Grid, e: Expr) -> Value:
    content = grid.contents[e.arg]
    dims = grid.dims(e)
    index, bad_index = grid.spread(e.src[0], dims)
    outside = (index < 0) | (index >= content.size)
    if len(e.src) == 1:
        valid, bad = np.asarray(True), None
    else:
        valid, bad = grid.spread(e.src[1], dims)
    wrong = outside if bad_index is None else outside | bad_index
    wrong = wrong & valid if bad is None else (wrong & valid) | bad
    if content.size == 0:
        loaded = np.zeros(index.shape, content.dtype)
    else:
        loaded = content[np.where(outside, 0, index)]
    loaded = np.where(valid, loaded, loaded.dtype.type(0))
    shape = [grid.extent(a) for a in dims]
    return Value(loaded.reshape(shape), np.broadcast_to(wrong, shape) if wrong.any() else None)


def _reduce(grid: Grid, e: Expr) -> Value:
    op, axes = e.arg
    dims = _by_id(free_axes(e.src[0]) | set(axes))
    array, bad = grid.spread(e.src[0], dims, full=True)
    positions = tuple(dims.index(a) for a in axes)
    return Value(
        numeric.reduce(op, array, positions, e.dtype),
        None if bad is None else np.asarray(bad.any(axis=positions)),
    )


def _scan(grid: Grid, e: Expr) -> Value:
    op, axis, bound = e.arg
    dims = _by_id(free_axes(e.src[0]) | {axis, bound})
    array, bad = grid.spread(e.src[0], dims, full=True)
    along = dims.index(bound)
    prefix = numeric.scan(op, array, along, e.dtype)
    # the point (axis = i) is the prefix that ends at (bound = i)
    points = grid.ranges.get(axis, range(axis.arg[1]))
    at = np.asarray(points, np.int64).reshape([-1 if a is axis else 1 for a in dims])
    picked = np.take_along_axis(prefix, at, along).squeeze(along)
    if bad is None:
        return Value(picked)
    bad = np.logical_or.accumulate(bad, axis=along)
    return Value(picked, np.take_along_axis(bad, at, along).squeeze(along))


_ROWS: dict[Op, Callable[[Grid, Expr], Value]] = {
    Op.CONST: _const,
    Op.AXIS: _axis,
    Op.PARAM: _param,
    Op.LOAD: _load,
    Op.REDUCE: _reduce,
    Op.SCAN: _scan,
}


# --- evaluation of stores -----------------------------------------------------------------------


class Writes(NamedTuple):
    """What one store does: its valid points in row-major order with `ordered_axes` innermost.

    `point` numbers the points of the other axes: equal elements must have equal points.
    """

    element: Array
    value: Array
    point: Array


def run(kernel: Kernel, arrays: Sequence[Array], params: Mapping[str, int]) -> None:
    """Run a kernel on one flat storage array per buffer slot, in place.

    All loads see the contents from before the kernel, whatever the order of the stores.

    Raises:
        InternalError: an index outside of its buffer, or two writes of an element in no order.
    """
    contents = [
        dt.from_storage(array, info.dtype)
        for array, info in zip(arrays, kernel.buffers, strict=True)
    ]
    writes = [_evaluate_store(kernel, store, contents, params) for store in kernel.stores]
    for store, write in zip(kernel.stores, writes, strict=True):
        _check_order(kernel, store, write)
        dtype = kernel.buffers[store.slot].dtype
        cells = dt.from_storage(arrays[store.slot], dtype).copy()
        numeric.scatter(cells, write.element, write.value, store.mode, dtype)
        arrays[store.slot][...] = dt.to_storage(cells, dtype)


def _evaluate_store(
    kernel: Kernel, store: Store, contents: Sequence[Array], params: Mapping[str, int]
) -> Writes:
    roots = [store.index, store.value] + ([] if store.valid is None else [store.valid])
    free: frozenset[Expr] = frozenset().union(*(free_axes(r) for r in roots))
    ordered = [a for a in store.ordered_axes if a in free]
    unordered = [a for a in kernel.axes if a in free and a not in ordered]
    if stray := free - {*ordered, *unordered}:
        raise InternalError(f"reference: {kernel.name} stores over {_by_id(stray)}, not its axes")
    axes = unordered + ordered
    chunks = [
        _evaluate_chunk(Grid(kernel, ranges, contents, params), store, axes, len(unordered))
        for ranges in _chunks(axes, toposort(roots))
    ]
    if not chunks:
        empty = np.zeros(0, np.int64)
        return Writes(empty, contents[store.slot][:0], empty)
    return Writes(*(np.concatenate(parts) for parts in zip(*chunks, strict=True)))


def _evaluate_chunk(grid: Grid, store: Store, axes: list[Expr], unordered: int) -> Writes:
    roots = [store.index, store.value] + ([] if store.valid is None else [store.valid])
    grid.evaluate(roots)
    index, value, *maybe_valid = [grid.spread(r, axes, full=True) for r in roots]
    size = grid.contents[store.slot].size
    valid = maybe_valid[0].array if maybe_valid else np.broadcast_to(True, index.array.shape)
    outside = (index.array < 0) | (index.array >= size)
    if index.bad is not None:
        outside = outside | index.bad
    for what, wrong in (
        ("stores outside of", outside & valid),
        ("loads outside of a buffer for", value.bad),
        ("decides from outside of a buffer about", _any_bad(maybe_valid)),
    ):
        if wrong is not None and wrong.any():
            raise InternalError(_where(grid, store, axes, what, np.argwhere(wrong)[0]))
    numbers = [np.asarray(grid.ranges[a], np.int64) for a in axes[:unordered]]
    extents = [a.arg[1] for a in axes[:unordered]]
    point = np.zeros((), np.int64)
    for number, extent in zip(numbers, extents, strict=True):
        point = point[..., None] * extent + number
    point = point.reshape(point.shape + (1,) * (len(axes) - unordered))
    point = np.broadcast_to(point, valid.shape)
    return Writes(index.array[valid], value.array[valid], point[valid])


def _where(grid: Grid, store: Store, axes: Sequence[Expr], what: str, position: Array) -> str:
    at = ", ".join(
        f"i{a.arg[0]}={grid.ranges[a][int(p)]}" for a, p in zip(axes, position, strict=True)
    )
    size = grid.contents[store.slot].size
    return (
        f"reference: kernel {grid.kernel.name} {what} b{store.slot} (size {size}) at ({at}): "
        f"b{store.slot}[{_short(store.index)}] = {_short(store.value)}"
    )


def _short(e: Expr) -> str:
    return text(e) if len(toposort([e])) < 100 else "..."


def _chunks(axes: Sequence[Expr], nodes: Sequence[Expr]) -> Iterator[dict[Expr, range]]:
    """Ranges of the axes, row-major, with at most CHUNK_POINTS points of any expression."""
    steps = {a: a.arg[1] for a in axes}

    def largest() -> int:
        return max(math.prod(steps.get(a, a.arg[1]) for a in free_axes(e)) for e in nodes)

    for a in axes:
        points = largest()
        if points <= CHUNK_POINTS:
            break
        steps[a] = max(1, steps[a] // -(-points // CHUNK_POINTS))
        if largest() > CHUNK_POINTS:
            steps[a] = 1
    pieces = [
        [range(low, min(low + steps[a], a.arg[1])) for low in range(0, a.arg[1], max(steps[a], 1))]
        for a in axes
    ]
    for number in range(math.prod(len(p) for p in pieces)):
        chosen = {}
        for a, options in zip(reversed(axes), reversed(pieces), strict=True):
            number, which = divmod(number, len(options))
            chosen[a] = options[which]
        yield chosen


def _check_order(kernel: Kernel, store: Store, write: Writes) -> None:
    order = np.argsort(write.element, kind="stable")
    index, point = write.element[order], write.point[order]
    clash = (index[1:] == index[:-1]) & (point[1:] != point[:-1])
    if clash.any():
        element = index[1:][clash][0]
        raise InternalError(
            f"reference: kernel {kernel.name} writes b{store.slot}[{element}] from "
            f"two points in no order: b{store.slot}[{_short(store.index)}]"
        )


# --- the device ---------------------------------------------------------------------------------


def _view(memory: Array, offset: int, info: BufferInfo) -> Array:
    nbytes = info.size * info.dtype.itemsize
    if offset + nbytes > memory.nbytes:
        raise InternalError(
            f"reference: {nbytes} bytes at {offset} do not fit into a memory of {memory.nbytes}"
        )
    return memory[offset : offset + nbytes].view(info.dtype.storage)


class ReferenceSequence(LaunchSequence):
    """Launches whose executables are kernels."""

    def __init__(self, launches: Sequence[Launch]) -> None:
        self.launches = launches

    def run(self, memories: Sequence[Any], params: Mapping[str, int]) -> None:
        for launch in self.launches:
            _launch(launch, memories, params)

    def time(self, memories: Sequence[Any], params: Mapping[str, int]) -> list[float]:
        seconds = []
        for launch in self.launches:
            start = time.perf_counter()
            _launch(launch, memories, params)
            seconds.append(time.perf_counter() - start)
        return seconds


def _launch(launch: Launch, memories: Sequence[Array], params: Mapping[str, int]) -> None:
    program: Program = launch.executable
    kernel: Kernel = program.kernel
    arrays: list[Array] = [np.zeros(0, info.dtype.storage) for info in kernel.buffers]
    for slot, (memory, offset) in zip(program.buffers, launch.arguments, strict=True):
        arrays[slot] = _view(memories[memory], offset, kernel.buffers[slot])
    values = launch.values(params) if launch.params else map(params.__getitem__, program.params)
    run(kernel, arrays, dict(zip(program.params, values, strict=True)))


class Reference(Runtime):
    """The device `reference`. A program needs no text: its kernel is interpreted."""

    name = "reference"
    target = Target("numpy", "numpy", vector_bytes=4)
    caches_binaries = False

    def allocate(self, nbytes: int) -> Array:
        return np.empty(nbytes, np.uint8)

    def release(self, memory: Any) -> None:
        """Nothing to do: NumPy frees the memory with its last reference."""

    def write(self, memory: Any, data: Array) -> None:
        memory[: data.nbytes] = np.ascontiguousarray(data).reshape(-1).view(np.uint8)

    def read(self, memory: Any, out: Array) -> None:
        out[...] = memory[: out.nbytes].view(out.dtype).reshape(out.shape)

    def compile(self, program: Program) -> bytes:
        return b""

    def load(self, programs: Sequence[tuple[Program, bytes]]) -> list[Any]:
        return [program for program, _ in programs]

    def sequence(self, launches: Sequence[Launch]) -> LaunchSequence:
        return ReferenceSequence(launches)

    def synchronize(self) -> None:
        """Launches have always finished when `run` returns."""
