"""The NumPy meaning of operations and kernels, against Python numbers, PyTorch and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import arrays_for, brute_force, kernels, run_on, wrap
from peers import torch

from mygrad import dtype as dt
from mygrad import numeric, ops
from mygrad.dtype import DType
from mygrad.errors import InternalError
from mygrad.expr import alu, axis, both, const, load, param, reduce, scan
from mygrad.kernel import BufferInfo, Kernel, Store
from mygrad.ops import Op
from mygrad.program import Launch, Program
from mygrad.runtime import reference
from mygrad.runtime.reference import Reference

F = dt.float32


# --- operations ---------------------------------------------------------------------------------


def test_every_operation_has_one_row() -> None:
    assert set(numeric.ALU) | set(numeric.CONVERT) == ops.ALU
    assert not set(numeric.ALU) & set(numeric.CONVERT)
    assert set(numeric.COMBINE) == ops.COMBINE
    assert set(numeric.SCATTER) == set(ops.SCATTER_MODES)


def interesting(dtype: DType) -> list[int]:
    """Integers at which something changes."""
    low, high = int(dtype.min), int(dtype.max)
    values = {
        0,
        1,
        2,
        3,
        7,
        8,
        9,
        15,
        16,
        31,
        32,
        63,
        64,
        low,
        low + 1,
        high,
        high - 1,
        high // 2,
        -1,
        -2,
        -7,
        -8,
    }
    return sorted(v for v in values if low <= v <= high)


def shift(a: int, count: int, dtype: DType, left: bool) -> int:
    far = not 0 <= count < dtype.bits
    if left:
        return 0 if far else a << count
    return (-1 if a < 0 else 0) if far else a >> count


PYTHON = {
    Op.ADD: lambda a, b, d: a + b,
    Op.MUL: lambda a, b, d: a * b,
    Op.MAX: lambda a, b, d: max(a, b),
    Op.IDIV: lambda a, b, d: a // b if b else 0,
    Op.MOD: lambda a, b, d: a % b if b else 0,
    Op.AND: lambda a, b, d: a & b,
    Op.OR: lambda a, b, d: a | b,
    Op.XOR: lambda a, b, d: a ^ b,
    Op.SHL: lambda a, b, d: shift(a, b, d, True),
    Op.SHR: lambda a, b, d: shift(a, b, d, False),
}


@pytest.mark.parametrize("dtype", dt.INTS, ids=lambda d: d.name)
@pytest.mark.parametrize("op", list(PYTHON), ids=lambda o: o.name)
def test_integer_operations_against_python(op: Op, dtype: DType) -> None:
    values = interesting(dtype)
    a = np.array(values, dtype.storage)[:, None]
    got = numeric.evaluate_alu(op, [a, a.T], dtype)
    assert got.dtype == dtype.storage
    expected = [[wrap(PYTHON[op](x, y, dtype), dtype) for y in values] for x in values]
    assert got.tolist() == expected


@pytest.mark.parametrize("dtype", dt.INTS, ids=lambda d: d.name)
def test_integer_negation_and_comparisons(dtype: DType) -> None:
    values = interesting(dtype)
    a = np.array(values, dtype.storage)
    assert numeric.evaluate_alu(Op.NEG, [a], dtype).tolist() == [wrap(-x, dtype) for x in values]
    less = numeric.evaluate_alu(Op.LT, [a[:, None], a], dt.bool_)
    assert less.tolist() == [[x < y for y in values] for x in values]


@pytest.mark.parametrize("op", [Op.ADD, Op.MUL, Op.MAX, Op.AND, Op.OR, Op.XOR, Op.EQ, Op.LT])
def test_bool_operations(op: Op) -> None:
    python = {
        Op.ADD: lambda a, b: a or b,
        Op.MUL: lambda a, b: a and b,
        Op.MAX: max,
        Op.AND: lambda a, b: a and b,
        Op.OR: lambda a, b: a or b,
        Op.XOR: lambda a, b: a != b,
        Op.EQ: lambda a, b: a == b,
        Op.LT: lambda a, b: a < b,
    }[op]
    for a in (False, True):
        for b in (False, True):
            got = numeric.evaluate_alu(op, [np.array(a), np.array(b)], dt.bool_)
            assert got.dtype == bool
            assert bool(got) == python(a, b)


FLOAT_VALUES = [
    0.0,
    -0.0,
    1.0,
    -1.5,
    3.14159,
    1e-40,
    -2.7e4,
    65504.0,
    7e4,
    3e38,
    math.inf,
    -math.inf,
    math.nan,
]
TORCH = {
    dt.float16: torch.float16,
    dt.bfloat16: torch.bfloat16,
    dt.float32: torch.float32,
    dt.float64: torch.float64,
}


@pytest.mark.parametrize("dtype", dt.FLOATS, ids=lambda d: d.name)
@pytest.mark.parametrize(
    "op", [Op.ADD, Op.MUL, Op.DIV, Op.MAX, Op.NEG, Op.TRUNC], ids=lambda o: o.name
)
def test_float_operations_round_like_pytorch(
    op: Op, dtype: DType, rng: np.random.Generator
) -> None:
    function = {
        Op.ADD: torch.add,
        Op.MUL: torch.mul,
        Op.DIV: torch.div,
        Op.MAX: torch.maximum,
        Op.NEG: torch.neg,
        Op.TRUNC: torch.trunc,
    }[op]
    numbers = np.array([*FLOAT_VALUES, *rng.standard_normal(60)])
    a = torch.tensor(numbers).to(TORCH[dtype])
    operands = [a] if ops.ARITY[op] == 1 else [a[:, None], a[None, :]]
    wide = torch.float32 if dtype is dt.bfloat16 else TORCH[dtype]
    expected = function(*operands).to(wide).numpy()
    got = numeric.evaluate_alu(op, [x.to(wide).numpy() for x in operands], dtype)
    assert got.dtype == numeric.value_dtype(dtype)
    np.testing.assert_array_equal(got, expected)
    if op is not Op.MAX:  # which zero is the larger one is not defined
        number = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(got)[number], np.signbit(expected)[number])


@pytest.mark.parametrize("dtype", dt.FLOATS, ids=lambda d: d.name)
def test_square_roots_are_correctly_rounded(dtype: DType, rng: np.random.Generator) -> None:
    # the root of a double, rounded again, is that of every narrower type; PyTorch's depends on the
    # processor
    numbers = torch.tensor(np.array([*FLOAT_VALUES, *rng.standard_normal(60)])).to(TORCH[dtype])
    roots = [math.nan if x < 0 else math.sqrt(x) for x in numbers.tolist()]
    expected = torch.tensor(roots, dtype=torch.float64).to(TORCH[dtype])
    wide = torch.float32 if dtype is dt.bfloat16 else TORCH[dtype]
    got = numeric.evaluate_alu(Op.SQRT, [numbers.to(wide).numpy()], dtype)
    assert got.dtype == numeric.value_dtype(dtype)
    np.testing.assert_array_equal(got, expected.to(wide).numpy())
    np.testing.assert_array_equal(np.signbit(got[:2]), [False, True])  # of zeros


@pytest.mark.parametrize("source", dt.FLOATS, ids=lambda d: d.name)
@pytest.mark.parametrize("target", [dt.bool_, *dt.INTS], ids=lambda d: d.name)
def test_cast_of_floats_saturates(source: DType, target: DType) -> None:
    numbers = [
        *FLOAT_VALUES,
        2.0**31,
        2.0**63,
        2.0**64,
        -(2.0**63),
        -(2.0**31),
        127.9,
        -128.9,
        255.5,
        1e300,
    ]
    with np.errstate(over="ignore"):
        values = dt.from_storage(dt.to_storage(np.array(numbers), source), source)
    got = numeric.evaluate_alu(Op.CAST, [values], target)
    assert got.dtype == target.storage

    def python(x: float) -> int:
        if target is dt.bool_:
            return int(x != 0)
        if math.isnan(x):
            return 0
        return int(min(max(math.trunc(x) if math.isfinite(x) else x, target.min), target.max))

    assert [int(v) for v in got] == [python(float(x)) for x in values]


@pytest.mark.parametrize("source", [dt.bool_, *dt.INTS], ids=lambda d: d.name)
@pytest.mark.parametrize("target", dt.ALL, ids=lambda d: d.name)
def test_cast_of_integers(source: DType, target: DType) -> None:
    values = [0, 1] if source is dt.bool_ else interesting(source)
    got = numeric.evaluate_alu(Op.CAST, [np.array(values, source.storage)], target)
    if target.is_float:
        expected = torch.tensor([float(v) for v in values], dtype=torch.float64)
        if target is not dt.float64:
            expected = torch.tensor(np.array(values, source.storage).astype(np.float32))
        expected = expected.to(TORCH[target]).to(torch.float64).numpy()
        np.testing.assert_array_equal(got.astype(np.float64), expected)
    else:
        assert got.tolist() == [bool(v) if target is dt.bool_ else wrap(v, target) for v in values]


def test_bitcast_keeps_the_bytes() -> None:
    for source in dt.ALL:
        for target in dt.ALL:
            if source.itemsize != target.itemsize or dt.bool_ in (source, target):
                continue
            stored = np.arange(1, 60, dtype=f"u{source.itemsize}").view(source.storage)
            there = numeric.evaluate_alu(Op.BITCAST, [dt.from_storage(stored, source)], target)
            assert dt.to_storage(there, target).tobytes() == stored.tobytes()


def test_operations_are_silent(recwarn: pytest.WarningsRecorder) -> None:
    one, zero = np.float32(1), np.float32(0)
    numeric.evaluate_alu(Op.DIV, [one, zero], F)
    numeric.evaluate_alu(Op.ADD, [np.int8(127), np.int8(1)], dt.int8)
    numeric.evaluate_alu(Op.IDIV, [np.int64(-(2**63)), np.int64(-1)], dt.int64)
    numeric.evaluate_alu(Op.CAST, [np.float64(1e300)], dt.float16)
    numeric.reduce(Op.ADD, np.full(9, 6e4, np.float16), (0,), dt.float16)
    assert not recwarn.list


# --- combining ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", dt.ALL, ids=lambda d: d.name)
@pytest.mark.parametrize("op", list(numeric.COMBINE), ids=lambda o: o.name)
def test_reduction_of_nothing_is_the_identity(op: Op, dtype: DType) -> None:
    empty = np.zeros((3, 0), numeric.value_dtype(dtype))
    got = numeric.reduce(op, empty, (1,), dtype)
    assert got.dtype == empty.dtype
    assert got.tolist() == [numeric.identity(op, dtype)] * 3
    ones = np.ones((2, 3), numeric.value_dtype(dtype))
    start = np.full((2, 1), numeric.identity(op, dtype), ones.dtype)
    np.testing.assert_array_equal(
        numeric.reduce(op, np.concatenate([start, ones], 1), (1,), dtype),
        numeric.reduce(op, ones, (1,), dtype),
    )


def test_integer_reductions_wrap_in_their_type() -> None:
    x = np.array([100, 100, 100], np.int8)
    assert numeric.reduce(Op.ADD, x, (0,), dt.int8).tolist() == wrap(300, dt.int8)
    assert numeric.scan(Op.MUL, x, 0, dt.int8).tolist() == [
        wrap(100**n, dt.int8) for n in (1, 2, 3)
    ]


def test_maximum_propagates_nan() -> None:
    x = np.array([1, np.nan, 3], np.float32)
    assert np.isnan(numeric.reduce(Op.MAX, x, (0,), F))
    np.testing.assert_array_equal(numeric.scan(Op.MAX, x, 0, F), [1, np.nan, np.nan])


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(-9, 9)), max_size=30),
    st.sampled_from(ops.SCATTER_MODES),
)
def test_scatter_visits_updates_in_order(updates: list[tuple[int, int]], mode: str) -> None:
    cells, expected = np.arange(5, dtype=np.int64), list(range(5))
    combine = {
        "set": lambda a, b: b,
        "add": lambda a, b: a + b,
        "mul": lambda a, b: a * b,
        "max": max,
        "min": min,
    }
    for index, value in updates:
        expected[index] = wrap(combine[mode](expected[index], value), dt.int64)
    numeric.scatter(
        cells,
        np.array([u[0] for u in updates], np.int64),
        np.array([u[1] for u in updates], np.int64),
        mode,
        dt.int64,
    )
    assert cells.tolist() == expected


def test_scatter_rounds_every_update() -> None:
    cells = np.array([256.0], np.float32)
    numeric.scatter(cells, np.zeros(8, np.int64), np.ones(8, np.float32), "add", dt.bfloat16)
    assert cells.tolist() == [256.0]  # 257 is no bfloat16


# --- kernels ------------------------------------------------------------------------------------


@settings(max_examples=80)
@given(kernels(), st.integers(0, 2))
def test_random_kernels_against_brute_force(kernel: Kernel, seed: int) -> None:
    arrays = arrays_for(kernel, seed)
    expected = [a.copy() for a in arrays]
    brute_force(kernel, expected)
    got = run_on("reference", kernel, arrays)
    for want, have in zip(expected, got, strict=True):
        np.testing.assert_array_equal(have, want)


@settings(max_examples=40)
@given(kernels(), st.integers(1, 40))
def test_chunks_change_nothing(kernel: Kernel, points: int) -> None:
    whole, chunked = arrays_for(kernel), arrays_for(kernel)
    reference.run(kernel, whole, {})
    before, reference.CHUNK_POINTS = reference.CHUNK_POINTS, points
    try:
        reference.run(kernel, chunked, {})
    finally:
        reference.CHUNK_POINTS = before
    for want, have in zip(whole, chunked, strict=True):
        np.testing.assert_array_equal(have, want)


def test_a_fused_softmax() -> None:
    i, j, k, k2 = axis(0, 5), axis(1, 7), axis(2, 7), axis(3, 7)

    def top(column):
        return load(1, F, i * 7 + column)

    def exponential(column):
        return alu(Op.EXP, alu(Op.ADD, top(column), alu(Op.NEG, reduce(Op.MAX, top(k2), [k2]))))

    value = alu(Op.DIV, exponential(j), reduce(Op.ADD, exponential(k), [k]))
    kernel = Kernel(
        "softmax",
        (i, j),
        (Store(0, i * 7 + j, value),),
        (BufferInfo(F, 35, True), BufferInfo(F, 35)),
    )
    x = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    out = np.zeros(35, np.float32)
    reference.run(kernel, [out, x.reshape(-1)], {})
    expected = torch.softmax(torch.tensor(x), 1).numpy()
    np.testing.assert_allclose(out.reshape(5, 7), expected, rtol=1e-6)


def test_a_scan_whose_body_uses_its_own_axis() -> None:
    i, k = axis(0, 6), axis(1, 6)
    body = alu(Op.CAST, i * 10 + k, dtype=F)
    out = np.zeros(6, np.float32)
    reference.run(
        Kernel("scan", (i,), (Store(0, i, scan(Op.ADD, body, i, k)),), (BufferInfo(F, 6, True),)),
        [out],
        {},
    )
    assert out.tolist() == [sum(10 * n + m for m in range(n + 1)) for n in range(6)]


def test_a_reduction_over_an_axis_its_body_does_not_use() -> None:
    k, out = axis(0, 9), np.zeros(1, np.float32)
    kernel = Kernel(
        "nine",
        (),
        (Store(0, const(0), reduce(Op.ADD, const(2.0, F), [k])),),
        (BufferInfo(F, 1, True),),
    )
    reference.run(kernel, [out], {})
    assert out.tolist() == [18]


def test_scatter_keeps_row_major_order_of_its_ordered_axes() -> None:
    """Rows are independent; in a row the last of two equal indices wins, chunked or not."""
    i, j = axis(0, 3), axis(1, 50)
    index = load(1, dt.int64, i * 50 + j)
    store = Store(
        0, i * 4 + index, load(2, F, i * 50 + j), both(index >= 0, index < 4), "set", (j,)
    )
    kernel = Kernel(
        "scatter",
        (i, j),
        (store,),
        (BufferInfo(F, 12, True), BufferInfo(dt.int64, 150), BufferInfo(F, 150)),
    )
    rng = np.random.default_rng(1)
    indices, values = rng.integers(-1, 6, (3, 50)), rng.standard_normal((3, 50)).astype(np.float32)
    expected = np.zeros((3, 4), np.float32)
    for row in range(3):
        for column in range(50):
            if 0 <= indices[row, column] < 4:
                expected[row, indices[row, column]] = values[row, column]
    out = np.zeros(12, np.float32)
    reference.run(kernel, [out, indices.reshape(-1), values.reshape(-1)], {})
    np.testing.assert_array_equal(out.reshape(3, 4), expected)


def test_stores_see_the_contents_from_before_the_kernel() -> None:
    i = axis(0, 4)
    old = load(0, F, i)
    stores = (
        Store(0, i, alu(Op.ADD, old, const(1.0, F))),
        Store(1, i, alu(Op.MUL, old, const(2.0, F))),
    )
    kernel = Kernel("in_place", (i,), stores, (BufferInfo(F, 4, True), BufferInfo(F, 4, True)))
    a, b = np.arange(4, dtype=np.float32), np.zeros(4, np.float32)
    reference.run(kernel, [a, b], {})
    assert (a.tolist(), b.tolist()) == ([1, 2, 3, 4], [0, 2, 4, 6])


def test_parameters() -> None:
    i, n = axis(0, 5), param("n", 0, 3)
    kernel = Kernel(
        "shift",
        (i,),
        (Store(0, i, load(1, F, i + n)),),
        (BufferInfo(F, 5, True), BufferInfo(F, 8)),
        (("n", 0, 3),),
    )
    out = np.zeros(5, np.float32)
    reference.run(kernel, [out, np.arange(8, dtype=np.float32)], {"n": 2})
    assert out.tolist() == [2, 3, 4, 5, 6]
    with pytest.raises(InternalError, match="parameter n is 4"):
        reference.run(kernel, [out, np.arange(8, dtype=np.float32)], {"n": 4})


# --- the sanitiser ------------------------------------------------------------------------------


def one_store(store: Store, size: int = 4) -> None:
    kernel = Kernel(
        "broken", (axis(0, 5),), (store,), (BufferInfo(F, size, True), BufferInfo(F, 4))
    )
    reference.run(kernel, [np.zeros(size, np.float32), np.ones(4, np.float32)], {})


def test_a_load_outside_of_its_buffer_is_found() -> None:
    i = axis(0, 5)
    with pytest.raises(InternalError, match=r"loads outside.*i0=4"):
        one_store(Store(0, i, load(1, F, i)), 5)
    hidden = alu(Op.WHERE, i < 4, load(1, F, i), const(0.0, F))  # WHERE does not excuse a load
    with pytest.raises(InternalError, match="loads outside"):
        one_store(Store(0, i, hidden), 5)
    with pytest.raises(InternalError, match="loads outside"):
        one_store(Store(0, i, reduce(Op.ADD, load(1, F, axis(3, 6) - 1), [axis(3, 6)])), 5)
    one_store(Store(0, i, load(1, F, i, i < 4)), 5)


def test_a_masked_load_excuses_its_index() -> None:
    i = axis(0, 5)
    inner = alu(Op.CAST, load(1, F, i), dtype=dt.index)
    one_store(Store(0, i, load(1, F, inner, i < 4)), 5)
    with pytest.raises(InternalError, match="loads outside"):
        one_store(Store(0, i, load(1, F, inner)), 5)


def test_a_store_outside_of_its_buffer_is_found() -> None:
    i = axis(0, 5)
    with pytest.raises(InternalError, match=r"stores outside of b0 \(size 4\) at \(i0=4\)"):
        one_store(Store(0, i, const(1.0, F)))
    with pytest.raises(InternalError, match=r"i0=0"):
        one_store(Store(0, i - 1, const(1.0, F)))
    one_store(Store(0, i, const(1.0, F), i < 4))


def test_two_writes_without_an_order_are_found() -> None:
    i = axis(0, 5)
    with pytest.raises(InternalError, match=r"writes b0\[0\] from two points"):
        one_store(Store(0, i // 2, alu(Op.CAST, i, dtype=F)))
    one_store(Store(0, i // 2, alu(Op.CAST, i, dtype=F), None, "set", (i,)))


def test_an_axis_that_is_not_the_kernels_is_found() -> None:
    with pytest.raises(InternalError, match="not its axes"):
        one_store(Store(0, axis(7, 2), const(1.0, F)))


# --- the device ---------------------------------------------------------------------------------


def test_launches_at_byte_offsets() -> None:
    runtime = Reference()
    i = axis(0, 3)
    kernel = Kernel(
        "copy",
        (i,),
        (Store(1, i, load(0, dt.bfloat16, i)),),
        (BufferInfo(dt.bfloat16, 3), BufferInfo(dt.bfloat16, 3, True)),
    )
    program = Program("copy", "numpy", "", (0, 1), kernel=kernel)
    executable = runtime.load([(program, runtime.compile(program))])[0]
    memory = runtime.allocate(256)
    runtime.write(memory, np.zeros(256, np.uint8))
    runtime.write(memory, np.array([1, 2, 3], np.uint16))
    sequence = runtime.sequence(
        [Launch(executable, ((0, 0), (0, 64))), Launch(executable, ((0, 2), (0, 128)))]
    )
    sequence.run([memory], {})
    result = np.empty(128, np.uint16)
    runtime.read(memory, result)
    assert result[32:35].tolist() == [1, 2, 3]
    assert result[64:67].tolist() == [2, 3, 0]
    assert len(sequence.time([memory], {})) == 2
    with pytest.raises(InternalError, match="do not fit"):
        runtime.sequence([Launch(executable, ((0, 0), (0, 254)))]).run([memory], {})


def test_memory_may_have_any_shape_and_no_elements() -> None:
    runtime = Reference()
    memory = runtime.allocate(24)
    runtime.write(memory, np.arange(6, dtype=np.int32).reshape(2, 3))
    out = np.empty((3, 2), np.int32)
    runtime.read(memory, out)
    assert out.tolist() == [[0, 1], [2, 3], [4, 5]]
    runtime.write(memory, np.zeros((0, 3), np.float32))
    runtime.read(memory, np.empty((0,), np.float32))
    runtime.synchronize()
