"""The OpenCL device and the code it gets, against the interpreter of kernels.

Everything here is skipped where there is no OpenCL device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import stmt_interpreter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import arrays_for, kernels, run_on

from mygrad import codegen, ops
from mygrad import dtype as dt
from mygrad.codegen import cstyle, dialects
from mygrad.codegen import stmt as s
from mygrad.dtype import DType
from mygrad.errors import CompileError, DeviceError
from mygrad.expr import Expr, alu, axis, both, const, load, param, reduce, scan, var
from mygrad.kernel import BufferInfo, Kernel, Store
from mygrad.ops import Op
from mygrad.program import Launch, Program
from mygrad.runtime import device as devices

if reason := devices.available()["opencl"]:
    pytest.skip(reason, allow_module_level=True)

Array = np.ndarray[Any, Any]
F = dt.float32
N = 37  # ragged for every vector length


def compare(kernel: Kernel, arrays: Sequence[Array], rtol: float = 0, **options: Any) -> None:
    """The kernel does on OpenCL what it means."""
    expected, got = run_on("reference", kernel, arrays), run_on("opencl", kernel, arrays, **options)
    for slot, info in enumerate(kernel.buffers):
        want, have = (dt.from_storage(r[slot], info.dtype) for r in (expected, got))
        if rtol and info.dtype.is_float:
            np.testing.assert_allclose(have, want, rtol=rtol, atol=rtol, err_msg=f"b{slot}")
        else:
            np.testing.assert_array_equal(have, want, err_msg=f"b{slot}")


# --- every operation on every type --------------------------------------------------------------

INTEGER = [
    Op.ADD,
    Op.MUL,
    Op.MAX,
    Op.IDIV,
    Op.MOD,
    Op.LT,
    Op.EQ,
    Op.AND,
    Op.OR,
    Op.XOR,
    Op.SHL,
    Op.SHR,
    Op.NEG,
]
OPERATIONS = {
    "b": [Op.ADD, Op.MUL, Op.MAX, Op.AND, Op.OR, Op.XOR, Op.EQ, Op.LT],
    "i": INTEGER,
    "u": INTEGER,
    "f": [
        Op.ADD,
        Op.MUL,
        Op.DIV,
        Op.MAX,
        Op.LT,
        Op.EQ,
        Op.NEG,
        Op.SQRT,
        Op.TRUNC,
        Op.EXP,
        Op.LOG,
        Op.SIN,
    ],
}


def awkward(dtype: DType, seed: int) -> Array:
    """Values at which something changes, in random order, among random ones."""
    rng = np.random.default_rng(seed)
    if dtype is dt.bool_:
        return rng.integers(0, 2, N).astype(bool)
    if dtype.is_int:
        low, high = int(dtype.min), int(dtype.max)
        special = [
            v
            for v in (0, 1, 2, 7, dtype.bits, dtype.bits - 1, high, high - 1, low, -1, -2, -7)
            if low <= v <= high
        ]
        numbers = rng.integers(low, high, N, dtype=dtype.storage, endpoint=True)
        numbers[: len(special)] = special
        return rng.permutation(numbers)
    special = [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        np.nan,
        1,
        -1,
        0.5,
        1e-7,
        1e-40,
        6e4,
        7e4,
        2.0**31,
        2.0**63,
        -1e30,
    ]
    numbers = rng.standard_normal(N) * rng.choice([1e-3, 1, 10, 1e3], N)
    numbers[: len(special)] = special
    with np.errstate(over="ignore"):
        return dt.to_storage(rng.permutation(numbers), dtype)


def every_operation(dtype: DType) -> list[Expr]:
    i = axis(0, N)
    x, y, c = load(0, dtype, i), load(1, dtype, i), load(2, dt.bool_, i)
    values = [alu(op, *(x, y)[: ops.ARITY[op]]) for op in OPERATIONS[dtype.kind]]
    values.append(alu(Op.WHERE, c, x, y))
    values += [alu(Op.CAST, x, dtype=d) for d in dt.ALL if d is not dtype]
    values += [
        alu(Op.BITCAST, x, dtype=d)
        for d in dt.ALL
        if d is not dtype and d.itemsize == dtype.itemsize
    ]
    return values


def check_operations(dtype: DType, actions: Sequence[Any] | None) -> None:
    i, values = axis(0, N), every_operation(dtype)
    infos = [BufferInfo(dtype, N), BufferInfo(dtype, N), BufferInfo(dt.bool_, N)]
    infos += [BufferInfo(v.dtype, N, True) for v in values]
    kernel = Kernel(
        f"ops_{dtype.name}",
        (i,),
        tuple(Store(n + 3, i, v) for n, v in enumerate(values)),
        tuple(infos),
    )
    arrays = [awkward(dtype, 0), awkward(dtype, 1), awkward(dt.bool_, 2)]
    arrays += [np.zeros(N, v.dtype.storage) for v in values]
    expected, got = (
        run_on("reference", kernel, arrays),
        run_on("opencl", kernel, arrays, actions=actions),
    )
    for n, value in enumerate(values, 3):
        want, have = (dt.from_storage(r[n], value.dtype) for r in (expected, got))
        if value.op in ops.TRANSCENDENTAL:
            np.testing.assert_allclose(
                have, want, rtol=4 * np.finfo(want.dtype).eps, atol=1e-44, err_msg=repr(value)
            )
        else:
            np.testing.assert_array_equal(have, want, err_msg=repr(value))
        if value.dtype.is_float and value.op is not Op.MAX:
            signs = [np.signbit(a)[~np.isnan(want)] for a in (have, want)]
            np.testing.assert_array_equal(*signs, err_msg=repr(value))


@pytest.mark.parametrize("dtype", dt.ALL, ids=lambda d: d.name)
def test_every_operation(dtype: DType) -> None:
    check_operations(dtype, None)


@pytest.mark.parametrize("dtype", [dt.int8, dt.uint64, dt.bfloat16, F], ids=lambda d: d.name)
def test_every_operation_on_scalars(dtype: DType) -> None:
    check_operations(dtype, ())


def test_constants_keep_their_bits() -> None:
    values = {
        F: [0.1, -0.0, float("inf"), float("-inf"), float("nan"), 3.4028235e38, 1e-45, 16777217.0],
        dt.float64: [0.1, -0.0, float("inf"), float("nan"), 5e-324, 1.7976931348623157e308],
        dt.float16: [0.1, 65504.0, 1e9, 6e-8],
        dt.bfloat16: [0.1, 3.0e38, -1e-40],
        dt.int64: [2**63 - 1, -(2**63), -1],
        dt.uint64: [2**64 - 1],
        dt.int32: [-(2**31), 2**31 - 1],
        dt.int8: [-128, 127],
        dt.uint8: [255],
        dt.bool_: [True, False],
    }
    constants = [const(v, d) for d, some in values.items() for v in some]
    kernel = Kernel(
        "constants",
        (),
        tuple(Store(n, const(0), c) for n, c in enumerate(constants)),
        tuple(BufferInfo(c.dtype, 1, True) for c in constants),
    )
    arrays = [np.ones(1, c.dtype.storage) for c in constants]
    compare(kernel, arrays)
    signs = run_on("opencl", kernel, arrays)
    assert np.signbit(signs[1])
    assert np.signbit(signs[9])


# --- kernels ------------------------------------------------------------------------------------


@settings(max_examples=10, suppress_health_check=list(HealthCheck))
@given(kernels(), st.integers(0, 2))
def test_random_kernels(kernel: Kernel, seed: int) -> None:
    compare(kernel, arrays_for(kernel, seed))


def matmul(m: int, n: int, k: int, dtype: DType = F) -> Kernel:
    i, j, p = axis(0, m), axis(1, n), axis(2, k)
    product = alu(Op.MUL, load(1, dtype, i * k + p), load(2, dtype, p * n + j))
    infos = (BufferInfo(dtype, m * n, True), BufferInfo(dtype, m * k), BufferInfo(dtype, k * n))
    return Kernel("matmul", (i, j), (Store(0, i * n + j, reduce(Op.ADD, product, [p])),), infos)


@pytest.mark.parametrize("shape", [(1, 1, 1), (19, 70, 33), (64, 64, 64), (5, 3, 0)])
def test_matmul(shape: tuple[int, int, int], rng: np.random.Generator) -> None:
    kernel = matmul(*shape)
    compare(kernel, [rng.standard_normal(b.size).astype(np.float32) for b in kernel.buffers], 1e-5)


@pytest.mark.parametrize("mode", ops.SCATTER_MODES)
@pytest.mark.parametrize("dtype", [F, dt.bfloat16, dt.int8], ids=lambda d: d.name)
def test_scatter(mode: str, dtype: DType, rng: np.random.Generator) -> None:
    i, j = axis(0, 6), axis(1, 30)
    index = load(1, dt.int64, i * 30 + j)
    store = Store(
        0, i * 4 + index, load(2, dtype, i * 30 + j), both(index >= 0, index < 4), mode, (j,)
    )
    kernel = Kernel(
        "scatter",
        (i, j),
        (store,),
        (BufferInfo(dtype, 24, True), BufferInfo(dt.int64, 180), BufferInfo(dtype, 180)),
    )
    cells, updates = (dt.to_storage(rng.integers(-3, 4, n), dtype) for n in (24, 180))
    compare(kernel, [cells, rng.integers(-1, 6, 180), updates])


def test_scan_of_halves_rounds_every_step() -> None:
    i, j, k = axis(0, 3), axis(1, 20), axis(2, 20)
    value = scan(Op.MAX, load(1, dt.float16, i * 20 + k), j, k)
    kernel = Kernel(
        "scan",
        (i, j),
        (Store(0, i * 20 + j, value),),
        (BufferInfo(dt.float16, 60, True), BufferInfo(dt.float16, 60)),
    )
    compare(
        kernel,
        [np.zeros(60, np.float16), np.random.default_rng(0).standard_normal(60).astype(np.float16)],
    )


def test_parameters() -> None:
    i, n = axis(0, 21), param("n", 0, 5)
    kernel = Kernel(
        "shift",
        (i,),
        (Store(0, i, load(1, F, i + n * 2)),),
        (BufferInfo(F, 21, True), BufferInfo(F, 31)),
        (("n", 0, 5),),
    )
    arrays = [np.zeros(21, np.float32), np.arange(31, dtype=np.float32)]
    for value in (0, 3, 5):
        got = run_on("opencl", kernel, arrays, {"n": value})
        assert got[0].tolist() == list(range(2 * value, 2 * value + 21))


# --- statements that the default schedules do not reach -----------------------------------------


def run_function(
    function: s.Function, arrays: Sequence[Array], parallel: bool = False
) -> list[Array]:
    runtime = devices.get("opencl")
    source = cstyle.render(function, runtime.target)
    program = Program(
        function.name, "opencl", source, tuple(range(len(arrays))), parallel=parallel, grid=(64,)
    )
    memories = [runtime.allocate(max(a.nbytes, 1)) for a in arrays]
    for memory, array in zip(memories, arrays, strict=True):
        runtime.write(memory, array)
    executable = runtime.load([(program, b"")])[0]
    runtime.sequence([Launch(executable, tuple((n, 0) for n in range(len(arrays))))]).run(
        memories, {}
    )
    results = [np.empty_like(a) for a in arrays]
    for memory, result in zip(memories, results, strict=True):
        runtime.read(memory, result)
    return results


def check_function(function: s.Function, arrays: Sequence[Array]) -> None:
    """The text does what the statements mean."""
    s.verify(function)
    expected = [a.copy() for a in arrays]
    stmt_interpreter.run(function, expected)
    for want, have in zip(expected, run_function(function, arrays), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-6)


@pytest.mark.parametrize("active", [1, 3, 7, 8])
@pytest.mark.parametrize("stride", [1, 3, -1])
@pytest.mark.parametrize("masked", [False, True])
def test_lanes_that_do_not_exist_are_left_alone(active: int, stride: int, masked: bool) -> None:
    lane = axis(0, 8)
    index = lane * stride + (0 if stride > 0 else 7)
    value = load(1, F, index, lane < 5 if masked else None)
    body = (
        s.Tile(
            (s.TileAxis(lane, 8, active, "vector"),),
            (s.Put(0, index, alu(Op.ADD, value, const(1.0, F)), lane >= 1 if masked else None),),
        ),
    )
    function = s.Function("lanes", ((F, 22, True), (F, 22, False)), (), body)
    check_function(function, [np.full(22, 7, np.float32), np.arange(22, dtype=np.float32)])


@pytest.mark.parametrize("op", [Op.ADD, Op.MUL, Op.MAX])
@pytest.mark.parametrize("lanes", [4, 16, 32])
def test_combine_over_lanes_and_copies(op: Op, lanes: int) -> None:
    row, lane, step = axis(0, 3), axis(1, lanes), axis(2, 2)
    tile = (s.TileAxis(row, 3, 3, "unroll"), s.TileAxis(lane, lanes, lanes, "vector"))
    ragged = (s.TileAxis(row, 3, 3, "unroll"), s.TileAxis(lane, lanes, 3, "vector"))
    value = load(1, F, row * 100 + step * lanes + lane)
    rest = load(1, F, row * 100 + const(2 * lanes) + lane)
    body = (
        s.Accumulator("sum", F, op, (row, lane)),
        s.Loop(step, const(0), const(2), "seq", (s.Tile(tile, (s.Update("sum", value),)),)),
        s.Tile(ragged, (s.Update("sum", rest),)),
        s.Combine("total", "sum", (lane,)),
        s.Combine("all", "sum", (row, lane)),
        s.Tile((s.TileAxis(row, 3, 3, "unroll"),), (s.Put(0, row, var("total", F)),)),
        s.Put(0, const(3), var("all", F)),
    )
    function = s.Function("combine", ((F, 4, True), (F, 300, False)), (), body)
    numbers = np.random.default_rng(0).uniform(0.9, 1.1, 300).astype(np.float32)
    got = run_function(function, [np.zeros(4, np.float32), numbers])[0]
    rows = numbers.reshape(3, 100)[:, : 2 * lanes + 3].astype(np.float64)
    combine = {Op.ADD: np.sum, Op.MUL: np.prod, Op.MAX: np.max}[op]
    np.testing.assert_allclose(got, [*(combine(r) for r in rows), combine(rows)], rtol=1e-5)


def test_conditions_on_unrolled_axes_and_scratch() -> None:
    row, lane, step = axis(0, 3), axis(1, 4), axis(2, 5)
    tile = (s.TileAxis(row, 3, 3, "unroll"), s.TileAxis(lane, 4, 4, "vector"))
    copied = load("window", F, row * 4 + lane)
    body = (
        s.Loop(
            step,
            const(0),
            const(5),
            "parallel",
            (
                s.Scratch("window", F, 12),
                s.Tile(
                    tile, (s.Put("window", row * 4 + lane, load(1, F, step * 12 + row * 4 + lane)),)
                ),
                s.Tile(
                    tile,
                    (
                        s.Let("twice", alu(Op.ADD, copied, copied)),
                        s.If(
                            row < 2,
                            (s.Put(0, step * 12 + row * 4 + lane, var("twice", F)),),
                            (s.Put(0, step * 12 + row * 4 + lane, alu(Op.NEG, var("twice", F))),),
                        ),
                    ),
                ),
            ),
        ),
    )
    function = s.Function("condition", ((F, 60, True), (F, 60, False)), (), body)
    numbers = np.arange(60, dtype=np.float32)
    got = run_function(function, [np.zeros(60, np.float32), numbers], parallel=True)[0]
    sign = np.where(np.arange(60) // 4 % 3 < 2, 1, -1)
    np.testing.assert_array_equal(got, numbers * 2 * sign)


@pytest.mark.parametrize(
    "dtype", [dt.float16, dt.bfloat16, dt.bool_, dt.int8, dt.float64], ids=lambda d: d.name
)
@pytest.mark.parametrize("size", [16, 40000])
def test_scratch_of_every_kind(dtype: DType, size: int) -> None:
    """Small arrays lie in private memory, large ones do not."""
    lane, step = axis(0, 8), axis(1, 2)
    tile = (s.TileAxis(lane, 8, 8, "vector"),)
    body = (
        s.Scratch("kept", dtype, size),
        s.Loop(
            step,
            const(0),
            const(2),
            "seq",
            (s.Tile(tile, (s.Put("kept", step * 8 + lane, load(1, dtype, step * 8 + lane)),)),),
        ),
        s.Loop(
            step,
            const(0),
            const(2),
            "seq",
            (
                s.Tile(
                    tile, (s.Put(0, step * 8 + lane, load("kept", dtype, 15 - step * 8 - lane)),)
                ),
            ),
        ),
    )
    function = s.Function("scratch", ((dtype, 16, True), (dtype, 16, False)), (), body)
    numbers = dt.to_storage(np.arange(16) % 3, dtype)
    got = run_function(function, [np.zeros(16, dtype.storage), numbers])[0]
    np.testing.assert_array_equal(got, numbers[::-1])


def test_a_dialect_without_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a language without vector types gets: copies of scalar text with the same meaning."""
    plain = dataclasses.replace(dialects.OPENCL, lanes=(), vector={})
    monkeypatch.setitem(dialects.DIALECTS, "opencl", plain)
    runtime = devices.get("opencl")
    kernel = matmul(7, 37, 5)
    source = codegen.compile(kernel, runtime.target).source
    assert "packed" not in source
    assert "float4" not in source
    compare(kernel, [np.arange(b.size, dtype=np.float32) % 5 for b in kernel.buffers], 1e-6)


# --- the runtime --------------------------------------------------------------------------------


def add_one(n: int) -> Program:
    i = axis(0, n)
    kernel = Kernel(
        "add_one",
        (i,),
        (Store(0, i, alu(Op.ADD, load(1, F, i), const(1.0, F))),),
        (BufferInfo(F, n, True), BufferInfo(F, n)),
    )
    return codegen.compile(kernel, devices.get("opencl").target)


def test_launches_at_byte_offsets_in_one_memory() -> None:
    runtime = devices.get("opencl")
    executable = runtime.load([(add_one(5), b"")])[0]
    step = runtime.alignment
    memory = runtime.allocate(3 * step)
    runtime.write(memory, np.zeros(3 * step, np.uint8))
    runtime.write(memory, np.arange(5, dtype=np.float32))
    launches = [
        Launch(executable, ((0, step), (0, 0))),
        Launch(executable, ((0, 2 * step), (0, step))),
    ]
    runtime.sequence(launches).run([memory], {})
    out = np.empty(3 * step // 4, np.float32)
    runtime.read(memory, out)
    assert out[step // 4 :][:5].tolist() == [1, 2, 3, 4, 5]
    assert out[step // 2 :][:5].tolist() == [2, 3, 4, 5, 6]


def test_a_sequence_serves_any_memory() -> None:
    runtime = devices.get("opencl")
    sequence = runtime.sequence([Launch(runtime.load([(add_one(4), b"")])[0], ((0, 0), (1, 0)))])
    for start in (0, 10, 20):
        memories = [runtime.allocate(16), runtime.allocate(16)]
        runtime.write(memories[1], np.arange(start, start + 4, dtype=np.float32))
        sequence.run(memories, {})
        out = np.empty(4, np.float32)
        runtime.read(memories[0], out)
        assert out.tolist() == [start + n for n in (1, 2, 3, 4)]
    seconds = sequence.time(memories, {})
    assert len(seconds) == 1
    assert 0 <= seconds[0] < 10
    runtime.synchronize()


def test_released_memory_is_used_again() -> None:
    runtime = devices.get("opencl")
    first = runtime.allocate(12345)
    runtime.release(first)
    assert runtime.allocate(12345) is first
    assert runtime.allocate(12345) is not first


def test_a_broken_source_is_a_compile_error() -> None:
    program = Program(
        "broken", "opencl", "__kernel void broken(__global float *b0) { b0[0] = nothing; }", (0,)
    )
    with pytest.raises(CompileError, match="broken"):
        devices.get("opencl").load([(program, b"")])


def test_too_much_memory_is_a_device_error() -> None:
    with pytest.raises(DeviceError, match="allocation"):
        devices.get("opencl").allocate(1 << 50)
