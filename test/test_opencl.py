"""The OpenCL device and the code it gets, against the interpreter of kernels.

Everything here is skipped where there is no OpenCL device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import stmt_interpreter
from kernel_cases import run_on

from mygrad import codegen
from mygrad import dtype as dt
from mygrad.codegen import cstyle, dialects
from mygrad.codegen import stmt as s
from mygrad.dtype import DType
from mygrad.errors import CompileError, DeviceError
from mygrad.expr import alu, axis, const, load, reduce, var
from mygrad.kernel import BufferInfo, Kernel, Store
from mygrad.ops import Op
from mygrad.program import Launch, Program
from mygrad.runtime import device as devices
from mygrad.runtime import opencl

if reason := devices.available()["opencl"]:
    pytest.skip(reason, allow_module_level=True)

Array = np.ndarray[Any, Any]
F = dt.float32


def matmul(m: int, n: int, k: int, dtype: DType = F) -> Kernel:
    i, j, p = axis(0, m), axis(1, n), axis(2, k)
    product = alu(Op.MUL, load(1, dtype, i * k + p), load(2, dtype, p * n + j))
    infos = (BufferInfo(dtype, m * n, True), BufferInfo(dtype, m * k), BufferInfo(dtype, k * n))
    return Kernel("matmul", (i, j), (Store(0, i * n + j, reduce(Op.ADD, product, [p])),), infos)


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


@pytest.mark.parametrize("op", [Op.ADD, Op.MUL, Op.MAX])
def test_running_values_of_lanes(op: Op) -> None:
    row, lane, step = axis(0, 2), axis(1, 8), axis(2, 3)
    rows = s.TileAxis(row, 2, 2, "unroll")
    place = row * 21 + step * 8 + lane

    def tile(active: int) -> s.Tile:
        body = (s.Running("sums", "sum", load(1, F, place)), s.Put(0, place, var("sums", F)))
        return s.Tile((s.TileAxis(lane, 8, active, "vector"),), body)

    loops = (
        s.Loop(step, const(0), const(2), "seq", (tile(8),)),
        s.Loop(step, const(2), const(3), "seq", (tile(5),)),
    )
    body = (s.Tile((rows,), (s.Accumulator("sum", F, op, (row,)), *loops)),)
    function = s.Function("running", ((F, 42, True), (F, 42, False)), (), body)
    numbers = np.random.default_rng(0).uniform(0.9, 1.1, 42).astype(np.float32)
    check_function(function, [np.zeros(42, np.float32), numbers])


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
    arrays = [np.arange(b.size, dtype=np.float32) % 5 for b in kernel.buffers]
    expected, got = run_on("reference", kernel, arrays), run_on("opencl", kernel, arrays)
    np.testing.assert_array_equal(got[0], expected[0])


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


@pytest.mark.parametrize(
    ("processor", "width", "nbytes"),
    [("znver3", 16, 4), ("znver3", 8, 32), ("znver4", 16, 64), ("skylake-avx512", 16, 64)],
)
def test_vectors_that_the_driver_cannot_compile(processor: str, width: int, nbytes: int) -> None:
    """A processor with AVX-512 that PoCL takes for one without."""
    device = SimpleNamespace(
        platform=SimpleNamespace(version="OpenCL 3.0 PoCL"),
        name="cpu",
        version=f"OpenCL 3.0 PoCL HSTR: pthread-x86_64-unknown-linux-gnu-{processor}",
        native_vector_width_float=width,
        max_compute_units=2,
    )
    assert opencl._target(device).vector_bytes == nbytes
