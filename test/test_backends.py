"""What every compiling device must do: kernels like their interpreter, on every type and op.

A device that this machine lacks is skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import arrays_for, kernels, run_on

from mygrad import dtype as dt
from mygrad import ops
from mygrad.dtype import DType
from mygrad.expr import Expr, alu, axis, both, const, load, param, reduce, scan
from mygrad.kernel import BufferInfo, Kernel, Store
from mygrad.ops import Op
from mygrad.runtime import device as devices

Array = np.ndarray[Any, Any]
F = dt.float32
N = 37  # ragged for every vector length


@pytest.fixture(params=["cpu", "opencl"], scope="module")
def device(request: pytest.FixtureRequest) -> str:
    """The name of a device that can be used here."""
    if reason := devices.available()[request.param]:
        pytest.skip(reason)
    return request.param


def compare(device: str, kernel: Kernel, arrays: Sequence[Array], rtol: float = 0) -> None:
    """The kernel does on the device what it means."""
    expected, got = run_on("reference", kernel, arrays), run_on(device, kernel, arrays)
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


def check_operations(device: str, dtype: DType, actions: Sequence[Any] | None) -> None:
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
        run_on(device, kernel, arrays, actions=actions),
    )
    for n, value in enumerate(values, 3):
        want, have = (dt.from_storage(r[n], value.dtype) for r in (expected, got))
        if value.op is Op.BITCAST:  # NaN has many bit patterns
            known = ~np.isnan(dt.from_storage(arrays[0], dtype))
            want, have = want[known], have[known]
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
def test_every_operation(device: str, dtype: DType) -> None:
    check_operations(device, dtype, None)


@pytest.mark.parametrize("dtype", [dt.int8, dt.uint64, dt.bfloat16, F], ids=lambda d: d.name)
def test_every_operation_on_scalars(device: str, dtype: DType) -> None:
    check_operations(device, dtype, ())


def test_constants_keep_their_bits(device: str) -> None:
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
    compare(device, kernel, arrays)
    signs = run_on(device, kernel, arrays)
    assert np.signbit(signs[1])
    assert np.signbit(signs[9])


# --- kernels ------------------------------------------------------------------------------------


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(kernel=kernels(), seed=st.integers(0, 2))
def test_random_kernels(device: str, kernel: Kernel, seed: int) -> None:
    compare(device, kernel, arrays_for(kernel, seed))


def matmul(m: int, n: int, k: int, dtype: DType = F) -> Kernel:
    i, j, p = axis(0, m), axis(1, n), axis(2, k)
    product = alu(Op.MUL, load(1, dtype, i * k + p), load(2, dtype, p * n + j))
    infos = (BufferInfo(dtype, m * n, True), BufferInfo(dtype, m * k), BufferInfo(dtype, k * n))
    return Kernel("matmul", (i, j), (Store(0, i * n + j, reduce(Op.ADD, product, [p])),), infos)


@pytest.mark.parametrize("shape", [(1, 1, 1), (19, 70, 33), (64, 64, 64), (5, 3, 0)])
def test_matmul(device: str, shape: tuple[int, int, int], rng: np.random.Generator) -> None:
    kernel = matmul(*shape)
    compare(
        device,
        kernel,
        [rng.standard_normal(b.size).astype(np.float32) for b in kernel.buffers],
        1e-5,
    )


@pytest.mark.parametrize("mode", ops.SCATTER_MODES)
@pytest.mark.parametrize("dtype", [F, dt.bfloat16, dt.int8], ids=lambda d: d.name)
def test_scatter(device: str, mode: str, dtype: DType, rng: np.random.Generator) -> None:
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
    compare(device, kernel, [cells, rng.integers(-1, 6, 180), updates])


def test_scan_of_halves_rounds_every_step(device: str) -> None:
    i, j, k = axis(0, 3), axis(1, 20), axis(2, 20)
    value = scan(Op.MAX, load(1, dt.float16, i * 20 + k), j, k)
    kernel = Kernel(
        "scan",
        (i, j),
        (Store(0, i * 20 + j, value),),
        (BufferInfo(dt.float16, 60, True), BufferInfo(dt.float16, 60)),
    )
    compare(
        device,
        kernel,
        [np.zeros(60, np.float16), np.random.default_rng(0).standard_normal(60).astype(np.float16)],
    )


def test_parameters(device: str) -> None:
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
        got = run_on(device, kernel, arrays, {"n": value})
        assert got[0].tolist() == list(range(2 * value, 2 * value + 21))
