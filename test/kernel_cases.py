"""Random kernels, their meaning point by point in plain Python, and running them on a device."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
from hypothesis import strategies as st

from mygrad import codegen
from mygrad import dtype as dt
from mygrad import expr as ex
from mygrad.codegen.actions import Action
from mygrad.dtype import DType
from mygrad.expr import Expr, alu, axis, const, load
from mygrad.kernel import BufferInfo, Kernel, Store
from mygrad.ops import Op
from mygrad.program import Launch, Program
from mygrad.runtime import device as devices
from mygrad.runtime.base import Runtime

Array = np.ndarray[Any, Any]
EXTENTS = (0, 1, 2, 3, 5, 17, 33)


# --- random kernels -----------------------------------------------------------------------------


class _Maker:
    """Draws one kernel. Data are small integers, so that float sums are exact in any order."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.dtype = rng.choice((dt.int32, dt.float32, dt.int8, dt.uint16))
        extents = [rng.choice(EXTENTS) for _ in range(rng.randint(0, 3))]
        self.axes = [axis(n, extent) for n, extent in enumerate(extents)]
        self.buffers: list[BufferInfo] = []
        self.bound = itertools.count(len(extents))

    def choose(self, *options: Any) -> Any:
        return self.rng.choice(options)

    def buffer(self, dtype: DType, size: int, written: bool = False) -> int:
        self.buffers.append(BufferInfo(dtype, size, written))
        return len(self.buffers) - 1

    def index(self, axes: Sequence[Expr]) -> Expr:
        """An affine index that starts at 0."""
        total = const(0)
        for a in axes:
            step = self.choose(-2, -1, 0, 1, 1, 1, 3, a.arg[1])
            total = total + a * step + (0 if step >= 0 else -step * max(a.arg[1] - 1, 0))
        return total

    def load(self, axes: Sequence[Expr]) -> Expr:
        index = self.index(axes)
        high = 0 if index.high is None else index.high
        if not self.choose(True, False, False):
            return load(self.buffer(self.dtype, high + 1), self.dtype, index)
        shift = self.choose(-1, 1, 2)  # read outside of the buffer, where it is not valid
        size = high + 1
        slot, moved = self.buffer(self.dtype, size), index + shift
        return load(slot, self.dtype, moved, ex.both(moved >= 0, moved < size))

    def gather(self, axes: Sequence[Expr]) -> Expr:
        index, size = self.index(axes), 4
        where = load(self.buffer(dt.int64, (index.high or 0) + 1), dt.int64, index)
        slot = self.buffer(self.dtype, size)
        return load(slot, self.dtype, where, ex.both(where >= 0, where < size))

    def value(self, axes: Sequence[Expr], depth: int) -> Expr:
        kinds = (
            ["load", "const"]
            if depth == 0
            else ["load", "alu", "alu", "where", "reduce", "scan", "gather"]
        )
        kind = self.choose(*kinds)
        if kind == "const":
            return const(self.choose(0, 1, 2, 3), self.dtype)
        if kind == "load":
            return self.load(axes)
        if kind == "gather":
            return self.gather(axes)
        if kind == "reduce":
            inner = [
                axis(next(self.bound), self.choose(*EXTENTS)) for _ in range(self.choose(1, 1, 2))
            ]
            return ex.reduce(
                self.choose(Op.ADD, Op.MAX), self.value([*axes, *inner], depth - 1), inner
            )
        if kind == "scan" and axes and axes == self.axes:
            along = axes[-1]
            bound = axis(next(self.bound), along.arg[1])
            inner = [bound if a is along else a for a in axes]
            return ex.scan(self.choose(Op.ADD, Op.MAX), self.value(inner, depth - 1), along, bound)
        a, b = self.value(axes, depth - 1), self.value(axes, depth - 1)
        if kind == "where":
            return alu(Op.WHERE, alu(self.choose(Op.LT, Op.EQ), a, b), b, self.value(axes, 0))
        return alu(self.choose(Op.ADD, Op.MUL if self.dtype.is_int else Op.ADD, Op.MAX), a, b)

    def kernel(self) -> Kernel:
        value = self.value(self.axes, self.choose(0, 1, 2, 3))
        index = const(0)
        for a in self.axes:
            index = index * a.arg[1] + a
        size = max((index.high or 0) + 1, 1)
        slot = self.buffer(self.dtype, size, written=True)
        return Kernel("random", tuple(self.axes), (Store(slot, index, value),), tuple(self.buffers))


def random_kernel(rng: Random) -> Kernel:
    """A kernel of loads, gathers, arithmetic, reductions and scans over awkward extents."""
    return _Maker(rng).kernel()


def kernels() -> st.SearchStrategy[Kernel]:
    """Such kernels."""
    return st.randoms(use_true_random=False).map(random_kernel)


def arrays_for(kernel: Kernel, seed: int = 0) -> list[Array]:
    """Contents: small integers; of int64 buffers (indices), some of them outside of any buffer."""
    rng = np.random.default_rng(seed)
    made = []
    for info in kernel.buffers:
        low = 0 if info.dtype.kind in "ub" else -2
        numbers = rng.integers(low, 2 if info.dtype is dt.bool_ else 6, info.size)
        made.append(dt.to_storage(numbers, info.dtype))
    return made


# --- the meaning, point by point ----------------------------------------------------------------


def wrap(value: Any, dtype: DType) -> Any:
    """A Python number in the range of the type."""
    if not dtype.is_int:
        return value
    return (int(value) - int(dtype.min)) % (1 << dtype.bits) + int(dtype.min)


def brute_force(kernel: Kernel, arrays: Sequence[Array]) -> None:
    """Run the kernel in place with one Python number at a time."""
    old = [a.copy() for a in arrays]
    for store in kernel.stores:
        for point in itertools.product(*(range(a.arg[1]) for a in kernel.axes)):
            at = dict(zip(kernel.axes, point, strict=True))
            arrays[store.slot][evaluate(store.index, at, old)] = evaluate(store.value, at, old)


def evaluate(e: Expr, at: Mapping[Expr, int], arrays: Sequence[Array]) -> Any:
    """One expression at one point."""
    if e.op is Op.CONST:
        return e.arg
    if e.op is Op.AXIS:
        return at[e]
    if e.op is Op.LOAD:
        if len(e.src) == 2 and not evaluate(e.src[1], at, arrays):
            return 0
        index = evaluate(e.src[0], at, arrays)
        assert 0 <= index < len(arrays[e.arg])
        return arrays[e.arg][index].item()
    if e.op is Op.REDUCE:
        op, axes = e.arg
        points = itertools.product(*(range(a.arg[1]) for a in axes))
        return _combine(
            op,
            [evaluate(e.src[0], {**at, **dict(zip(axes, p, strict=True))}, arrays) for p in points],
            e.dtype,
        )
    if e.op is Op.SCAN:
        op, along, bound = e.arg
        return _combine(
            op,
            [evaluate(e.src[0], {**at, bound: n}, arrays) for n in range(at[along] + 1)],
            e.dtype,
        )
    return wrap(_PYTHON[e.op](*(evaluate(s, at, arrays) for s in e.src)), e.dtype)


def _combine(op: Op, values: list[Any], dtype: DType) -> Any:
    if op is Op.MAX:
        return max(values, default=dtype.min)
    return wrap(sum(values), dtype)


_PYTHON = {
    Op.ADD: lambda a, b: a + b,
    Op.MUL: lambda a, b: a * b,
    Op.MAX: max,
    Op.LT: lambda a, b: a < b,
    Op.EQ: lambda a, b: a == b,
    Op.AND: lambda a, b: a and b,
    Op.OR: lambda a, b: a or b,
    Op.WHERE: lambda c, a, b: a if c else b,
    Op.IDIV: lambda a, b: a // b if b else 0,
    Op.MOD: lambda a, b: a % b if b else 0,
    Op.NEG: lambda a: -a,
}


# --- devices ------------------------------------------------------------------------------------


def run_on(
    device: str,
    kernel: Kernel,
    arrays: Sequence[Array],
    params: Mapping[str, int] | None = None,
    actions: Sequence[Action] | None = None,
) -> list[Array]:
    """The contents of all buffers after the kernel ran on a device; `arrays` stay as they are."""
    runtime = devices.get(device)
    program = codegen.compile(kernel, runtime.target, actions)
    executable = runtime.load([(program, runtime.compile(program))])[0]
    return run_program(runtime, program, executable, arrays, params)


def run_program(
    runtime: Runtime,
    program: Program,
    executable: Any,
    arrays: Sequence[Array],
    params: Mapping[str, int] | None = None,
) -> list[Array]:
    """The same of a loaded program. Buffers have exactly the bytes of the arrays."""
    memories = [runtime.allocate(max(a.nbytes, 1)) for a in arrays]
    for memory, array in zip(memories, arrays, strict=True):
        runtime.write(memory, array)
    arguments = tuple((slot, 0) for slot in program.buffers)
    launch = Launch(executable, arguments, program.params, program.parallel, program.entry)
    runtime.sequence([launch]).run(memories, params or {})
    results = [np.empty_like(a) for a in arrays]
    for memory, result in zip(memories, results, strict=True):
        runtime.read(memory, result)
        runtime.release(memory)
    return results
