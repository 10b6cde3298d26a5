"""The LLVM renderer: every operation on every type, and every statement, against NumPy."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import stmt_interpreter
from cpu_tools import device, elementwise, elementwise_all, program, run
from hypothesis import given, settings
from hypothesis import strategies as st

from mygrad import Tensor, numeric
from mygrad import dtype as dt
from mygrad.codegen.stmt import (
    Accumulator,
    Block,
    Combine,
    Function,
    If,
    Let,
    Loop,
    Put,
    Scratch,
    Tile,
    TileAxis,
    Update,
)
from mygrad.dtype import DType
from mygrad.errors import InternalError
from mygrad.expr import Expr, alu, axis, both, const, less, load, param, var, where
from mygrad.ops import Op

F = dt.float32
WIDTHS = (0, 8)


# --- operations ----------------------------------------------------------------------------------


def special(dtype: DType) -> np.ndarray:
    """Stored values at which operations differ: ends of ranges, signed zeros, NaN, denormals,
    ties."""
    if dtype.kind == "b":
        return np.array([False, True])
    if dtype.is_int:
        low, high = int(dtype.min), int(dtype.max)
        values = {low, low + 1, high, high - 1, high // 2, 0, 1, 2, 3, 5, 7, 8, 31, 32, 63, 64}
        values |= {-v for v in (1, 2, 3, 7, 8, 64)} if low else set()
        return np.array(sorted(v for v in values if low <= v <= high), dtype.storage)
    values = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        1.5,
        2.5,
        -2.5,
        3.0,
        -7.3,
        127.5,
        128.0,
        -128.9,
        255.0,
        256.0,
        1e5,
        65504.0,
        65520.0,
        2147483648.0,
        -2147483904.0,
        1e19,
        -1e19,
        1e-8,
        6e-8,
        1e-40,
        3e38,
        1e300,
        1.00390625,
        1.01171875,
        np.inf,
        -np.inf,
        np.nan,
    ]
    with np.errstate(over="ignore"):
        return dt.to_storage(np.array(values), dtype)


def equal(got: np.ndarray, want: np.ndarray, dtype: DType) -> None:
    """The same values; NaN equals NaN; the sign of zero counts."""
    have, need = dt.from_storage(got, dtype), dt.from_storage(want, dtype)
    np.testing.assert_array_equal(have, need)
    if dtype.is_float:
        zero = need == 0
        np.testing.assert_array_equal(np.signbit(have[zero]), np.signbit(need[zero]))


def check_alu(op: Op, dtypes: tuple[DType, ...], result: DType, arrays: list[np.ndarray]) -> None:
    check_all([op], dtypes, [result], arrays)


def check_all(
    ops: list[Op], dtypes: tuple[DType, ...], results: list[DType], arrays: list[np.ndarray]
) -> None:
    """Operations on the same operands, as scalars and as vectors."""
    operands = [dt.from_storage(a, d) for a, d in zip(arrays, dtypes, strict=True)]
    values = [
        lambda i, op=op, r=r: alu(op, *(load(n, d, i) for n, d in enumerate(dtypes)), dtype=r)
        for op, r in zip(ops, results, strict=True)
    ]
    for lanes in WIDTHS:
        made = elementwise_all(values, arrays, dtypes, results, lanes)
        for op, result, got in zip(ops, results, made, strict=True):
            want = dt.to_storage(numeric.evaluate_alu(op, operands, result), result)
            if op is Op.MAX and result.is_float:  # max(0, -0) may be either
                got, want = (
                    np.where(dt.from_storage(x, result) == 0, x.dtype.type(0), x)
                    for x in (got, want)
                )
            equal(got, want, result)


def pairs(a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    left, right = np.meshgrid(a, b)
    return [left.ravel(), right.ravel()]


FLOAT_BINARY = (Op.ADD, Op.MUL, Op.DIV, Op.MAX, Op.LT, Op.EQ)
INT_BINARY = (
    Op.ADD,
    Op.MUL,
    Op.MAX,
    Op.LT,
    Op.EQ,
    Op.IDIV,
    Op.MOD,
    Op.AND,
    Op.OR,
    Op.XOR,
    Op.SHL,
    Op.SHR,
)
BOOL_BINARY = (Op.ADD, Op.MUL, Op.MAX, Op.LT, Op.EQ, Op.AND, Op.OR, Op.XOR)


@pytest.mark.parametrize("dtype", dt.ALL, ids=lambda d: d.name)
def test_binary_operations_on_special_values(dtype: DType) -> None:
    ops = FLOAT_BINARY if dtype.is_float else BOOL_BINARY if dtype.kind == "b" else INT_BINARY
    results = [dt.bool_ if op in (Op.LT, Op.EQ) else dtype for op in ops]
    check_all(list(ops), (dtype, dtype), results, pairs(special(dtype), special(dtype)))


@pytest.mark.parametrize("dtype", dt.INTS + dt.FLOATS, ids=lambda d: d.name)
def test_unary_operations_on_special_values(dtype: DType) -> None:
    ops = [Op.NEG, Op.SQRT, Op.TRUNC] if dtype.is_float else [Op.NEG]
    check_all(ops, (dtype,), [dtype] * len(ops), [special(dtype)])


@pytest.mark.parametrize("source", dt.ALL, ids=lambda d: d.name)
def test_casts_on_special_values(source: DType) -> None:
    results = [d for d in dt.ALL if d is not source]
    check_all([Op.CAST] * len(results), (source,), results, [special(source)])


@pytest.mark.parametrize("source", dt.ALL, ids=lambda d: d.name)
def test_bitcasts(source: DType) -> None:
    for result in dt.ALL:
        if result is not source and result.itemsize == source.itemsize:
            stored = special(source)
            want = stored.view(np.uint8) != 0 if result is dt.bool_ else stored.view(result.storage)
            for lanes in WIDTHS:
                got = elementwise(
                    lambda i, result=result: alu(Op.BITCAST, load(0, source, i), dtype=result),
                    [stored],
                    [source],
                    result,
                    lanes,
                )
                keep = ~np.isnan(dt.from_storage(want, result)) if result.is_float else ...
                np.testing.assert_array_equal(got[keep], want[keep])


@pytest.mark.parametrize("dtype", dt.ALL, ids=lambda d: d.name)
def test_where(dtype: DType) -> None:
    a = special(dtype)
    check_alu(
        Op.WHERE, (dt.bool_, dtype, dtype), dtype, [np.arange(a.size) % 2 == 0, a, a[::-1].copy()]
    )


@pytest.mark.parametrize("dtype", dt.INTS, ids=lambda d: d.name)
def test_operations_by_constants_need_no_guards(dtype: DType) -> None:
    x = special(dtype)
    cases = list(itertools.product((Op.IDIV, Op.MOD, Op.SHL, Op.SHR), (0, 1, 3, 4, 100)))
    values = [lambda i, op=op, c=c: alu(op, load(0, dtype, i), const(c, dtype)) for op, c in cases]
    for lanes in (0, 8):
        made = elementwise_all(values, [x], [dtype], [dtype] * len(cases), lanes)
        for (op, value), got in zip(cases, made, strict=True):
            want = numeric.evaluate_alu(op, [x, np.full_like(x, value)], dtype)
            np.testing.assert_array_equal(got, want, err_msg=f"{op} by {value}")


@settings(max_examples=10, deadline=None)
@given(
    st.sampled_from(dt.FLOATS), st.sampled_from((Op.ADD, Op.MUL, Op.DIV)), st.integers(0, 2**32 - 1)
)
def test_random_bits_round_as_they_should(dtype: DType, op: Op, seed: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 1 << dtype.bits, (2, 64), dtype=np.uint64)
    stored = bits.astype(f"u{dtype.itemsize}").view(dtype.storage)
    check_alu(op, (dtype, dtype), dtype, [stored[0], stored[1]])


def test_double_to_half_rounds_once() -> None:
    """1 + 2^-11 is a tie; a hair above it must go up, although float32 cannot see the hair."""
    x = np.array(
        [1 + 2.0**-11, 1 + 2.0**-11 + 2.0**-50, 1 + 2.0**-11 - 2.0**-50, 65520 - 1e-9, 2.0**-25]
    )
    check_alu(Op.CAST, (dt.float64,), dt.float16, [np.concatenate([x, -x])])


@pytest.mark.parametrize("dtype", dt.ALL, ids=lambda d: d.name)
def test_constants_keep_their_bits(dtype: DType) -> None:
    stored = special(dtype)
    values = [
        lambda i, c=c: where(less(i, const(5)), const(c, dtype), load(0, dtype, i))
        for c in dt.from_storage(stored, dtype).tolist()
    ]
    made = elementwise_all(values, [np.zeros(7, dtype.storage)], [dtype], [dtype] * len(values), 4)
    for one, got in zip(stored, made, strict=True):
        equal(got[:5], np.full(5, one, dtype.storage), dtype)


# --- statements ----------------------------------------------------------------------------------


def both_ways(
    function: Function,
    arrays: list[np.ndarray],
    params: dict[str, int] | None = None,
    tolerance: float = 0.0,
) -> list[np.ndarray]:
    """The arrays after the function, compiled; equal to those after the interpreter of
    statements."""
    want = [a.copy() for a in arrays]
    stmt_interpreter.run(function, want, params)
    got = run(function, arrays, params)
    for g, w, (dtype, _, _) in zip(got, want, function.buffers, strict=True):
        np.testing.assert_allclose(
            dt.from_storage(g, dtype), dt.from_storage(w, dtype), rtol=tolerance, atol=tolerance
        )
    return got


def floats(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def seq(index: Expr, high: int, *body: object, low: int = 0, kind: str = "seq") -> Loop:
    return Loop(index, const(low), const(high), kind, body)  # type: ignore[arg-type]


def vector(index: Expr, active: int | None = None) -> TileAxis:
    return TileAxis(index, index.arg[1], index.arg[1] if active is None else active, "vector")


def unroll(index: Expr) -> TileAxis:
    return TileAxis(index, index.arg[1], index.arg[1], "unroll")


def matmul_tile(m: int, n: int, k: int, kind: str = "seq") -> Function:
    """m in tiles of 4; n in tiles of 3 vectors of 8, the last one by columns of one masked
    vector."""
    mo, mi, no, nu, nv, kk = (
        axis(0, m // 4),
        axis(1, 4),
        axis(2, n // 24 + 1),
        axis(3, 3),
        axis(4, 8),
        axis(5, k),
    )

    def tile(column: Expr, axes: tuple[TileAxis, ...]) -> Tile:
        row = mo * 4 + mi
        product = alu(Op.MUL, load(0, F, row * k + kk), load(1, F, kk * n + column))
        return Tile(
            axes,
            (
                Accumulator("acc", F, Op.ADD, tuple(a.axis for a in axes)),
                seq(kk, k, Update("acc", product)),
                Put(2, row * n + column, alu(Op.ADD, var("acc", F), const(1.0, F))),
            ),
        )

    body: list = [
        seq(no, n // 24, tile(no * 24 + nu * 8 + nv, (unroll(mi), unroll(nu), vector(nv))))
    ]
    for start in range(n // 24 * 24, n, 8):
        body.append(tile(nv + start, (unroll(mi), vector(nv, min(8, n - start)))))
    return Function(
        "tile",
        ((F, m * k, False), (F, k * n, False), (F, m * n, True)),
        (),
        (seq(mo, m // 4, *body, kind=kind),),
    )


@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(4, 24, 1), (8, 48, 17), (12, 61, 5), (4, 7, 3), (4, 25, 0), (4, 24, 16), (4, 30, 67)],
)
def test_a_matmul_tile(m: int, n: int, k: int) -> None:
    a, b = floats(max(m * k, 1)), floats(max(k * n, 1), 1)
    got = run(matmul_tile(m, n, k), [a, b, np.full(m * n + 8, 7, np.float32)])[2]
    want = a[: m * k].reshape(m, k).astype(np.float64) @ b[: k * n].reshape(k, n) + 1
    np.testing.assert_allclose(got[: m * n].reshape(m, n), want, rtol=1e-5, atol=1e-5)
    assert (got[m * n :] == 7).all()  # nothing is stored for lanes that do not exist


def test_a_matmul_tile_is_one_load_per_operand_and_a_fused_multiply_add_per_cell() -> None:
    text = program(matmul_tile(4, 24, 9)).source
    bodies = 4 + 1  # two turns of four iterations, and the ninth
    assert text.count("@llvm.fmuladd.v8f32(") == bodies * 12
    cells = (bodies + 1) * 12  # are read
    assert text.count("load <8 x float>, ptr %v") - cells == bodies * 3  # rows of B
    assert text.count(" = load float, ptr") == bodies * 4


def test_operands_of_a_tile_are_loaded_when_they_are_needed() -> None:
    """Of a tile of 4 x 24, a step has the columns and one row at a time: with all rows at once,
    large tiles would not fit into registers."""
    text = program(matmul_tile(4, 24, 9)).source
    first, *rows = text.split(" = load float, ptr")
    assert [row.count("@llvm.fmuladd") for row in rows] == [3] * len(rows)
    assert "@llvm.fmuladd" not in first.split("define")[-1]


@pytest.mark.parametrize("columns_first", [True, False])
def test_the_longer_operand_of_a_tile_goes_through_one_register(columns_first: bool) -> None:
    """Two columns and seven rows: each row is met by both columns before the next one is loaded,
    in whatever order the axes of the tile are."""
    row, column, lane, k = axis(0, 7), axis(1, 2), axis(2, 8), axis(3, 50)
    outer = (unroll(column), unroll(row)) if columns_first else (unroll(row), unroll(column))
    product = load(0, F, k * 7 + row) * load(1, F, k * 16 + column * 8 + lane)
    body = (
        Accumulator("acc", F, Op.ADD, (row, column, lane)),
        seq(k, 50, Update("acc", product)),
        Put(2, row * 16 + column * 8 + lane, var("acc", F)),
    )
    buffers = ((F, 350, False), (F, 800, False), (F, 112, True))
    function = Function("f", buffers, (), (Tile((*outer, vector(lane)), body),))
    text = program(function).source
    _, *rows = text.split(" = load float, ptr")
    assert [one.count("@llvm.fmuladd") for one in rows] == [2] * len(rows)
    a, b = floats(350), floats(800, 1)
    got = run(function, [a, b, np.zeros(112, np.float32)])[2].reshape(7, 16)
    np.testing.assert_allclose(got, a.reshape(50, 7).T @ b.reshape(50, 16), rtol=1e-4, atol=1e-5)


def test_sums_of_lanes_that_nobody_reads_are_not_masked() -> None:
    """Only a sum over the lanes themselves has to leave out those that do not exist."""
    lane, k = axis(0, 8), axis(1, 9)
    for reduced, selects in ((False, 0), (True, 1)):
        out = var("all", F) if reduced else var("acc", F)
        body = (
            Accumulator("acc", F, Op.ADD, (lane,)),
            seq(k, 9, Update("acc", load(0, F, k * 5 + lane))),
            *((Combine("all", "acc", (lane,)),) if reduced else ()),
            Put(1, lane, out),
        )
        buffers = ((F, 45, False), (F, 5, True))
        function = Function("f", buffers, (), (Tile((vector(lane, 5),), body),))
        assert (" select " in program(function).source) == bool(selects)
        x = floats(45)
        got = run(function, [x, np.zeros(5, np.float32)])[1]
        want = x.reshape(9, 5).sum(0)
        np.testing.assert_allclose(got, want.sum() if reduced else want, rtol=1e-5)


def test_an_update_reads_its_own_cells_as_they_were() -> None:
    """Every cell takes the old value of the first one."""
    x = axis(0, 3)
    first = var("acc", F)
    function = Function(
        "f",
        ((F, 3, False), (F, 3, True)),
        (),
        (
            Accumulator("acc", F, Op.ADD, ()),
            Update("acc", const(2.0, F)),
            Tile((unroll(x),), (Update("acc", first + load(0, F, x)),)),
            Put(1, const(0), first),
        ),
    )
    got = run(function, [np.array([1, 10, 100], np.float32), np.zeros(3, np.float32)])[1]
    assert got[0] == 2 + 3 * 2 + 111


def test_iterations_that_share_loads_turn_one_by_one() -> None:
    """Twelve sums leave no room for what two iterations over a window have in common."""
    x, y, k = axis(0, 3), axis(1, 4), axis(2, 11)
    tile = Tile(
        (unroll(x), unroll(y)),
        (
            Accumulator("acc", F, Op.ADD, (x, y)),
            seq(k, 11, Update("acc", load(0, F, x + k) * load(1, F, y * 11 + k))),
            Put(2, x * 4 + y, var("acc", F)),
        ),
    )
    function = Function("f", ((F, 14, False), (F, 44, False), (F, 12, True)), (), (tile,))
    assert program(function).source.count("icmp slt") == 1
    assert program(function).source.count("@llvm.fmuladd.f32(") == 12


def softmax(rows: int, columns: int) -> Function:
    """Row by row: the maximum, the sum of exp(x - maximum), and the quotient, in vectors of 16."""
    r, c, v = axis(0, rows), axis(1, columns // 16 + 1), axis(2, 16)
    whole, rest = columns // 16, columns % 16
    at = r * columns + c * 16 + v
    x = load(0, F, at)
    highest = var("highest", F)
    shifted = alu(Op.EXP, alu(Op.ADD, x, alu(Op.NEG, highest)))

    def sweep(*body: object) -> list:
        parts: list = [seq(c, whole, Tile((vector(v),), body))]  # type: ignore[arg-type]
        if rest:
            parts.append(seq(c, whole + 1, Tile((vector(v, rest),), body), low=whole))
        return parts

    return Function(
        "softmax",
        ((F, rows * columns, False), (F, rows * columns, True)),
        (),
        (
            seq(
                r,
                rows,
                Accumulator("most", F, Op.MAX, (v,)),
                *sweep(Update("most", x)),
                Combine("highest", "most", (v,)),
                Accumulator("sum", F, Op.ADD, (v,)),
                *sweep(Update("sum", shifted)),
                Combine("total", "sum", (v,)),
                *sweep(Put(1, at, alu(Op.DIV, shifted, var("total", F)))),
            ),
        ),
    )


@pytest.mark.parametrize("columns", [1, 15, 16, 50])
def test_softmax_rows(columns: int) -> None:
    x = floats(3 * columns) * 20
    got = run(softmax(3, columns), [x, np.zeros_like(x)])[1].reshape(3, columns)
    e = np.exp(
        x.reshape(3, columns).astype(np.float64) - x.reshape(3, columns).max(1, keepdims=True)
    )
    np.testing.assert_allclose(got, e / e.sum(1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("op", [Op.ADD, Op.MUL, Op.MAX])
@pytest.mark.parametrize("dtype", dt.ALL, ids=lambda d: d.name)
def test_combine_over_lanes_and_copies(dtype: DType, op: Op) -> None:
    """cells over (u, v) combined over v, over u and over both; the missing lanes do not count."""
    u, v = axis(0, 3), axis(1, 8)
    x = load(0, dtype, u * 8 + v)
    function = Function(
        "combine",
        ((dtype, 24, False), (dtype, 3, True), (dtype, 8, True), (dtype, 1, True)),
        (),
        (
            Tile(
                (unroll(u), vector(v, 5)),
                (
                    Accumulator("a", dtype, op, (u, v)),
                    Update("a", x),
                    Combine("rows", "a", (v,)),
                    Combine("columns", "a", (u,)),
                    Combine("all", "a", (u, v)),
                    Put(1, u, var("rows", dtype)),
                    Put(2, v, var("columns", dtype)),
                    Put(3, const(0), var("all", dtype)),
                ),
            ),
        ),
    )
    values = np.random.default_rng(1).integers(0, 2 if dtype.kind == "b" else 4, 24)
    stored = dt.to_storage(values.astype(np.float64), dtype)
    arrays = [stored, *(np.zeros(n, dtype.storage) for n in (3, 8, 1))]
    got = run(function, arrays)
    x_values = dt.from_storage(stored, dtype).reshape(3, 8)[:, :5]
    for n, axes in ((1, (1,)), (2, (0,)), (3, (0, 1))):
        want = numeric.reduce(op, x_values, axes, dtype).ravel()
        have = dt.from_storage(got[n], dtype)
        np.testing.assert_array_equal(have[: want.size], want)
        assert not have[want.size :].any()


def test_maximum_of_nan_and_of_nothing() -> None:
    v, k = axis(0, 8), axis(1, 4)
    for high in (4, 0):
        function = Function(
            "most",
            ((F, 32, False), (F, 1, True)),
            (),
            (
                Accumulator("a", F, Op.MAX, (v,)),
                seq(k, high, Tile((vector(v),), (Update("a", load(0, F, k * 8 + v)),))),
                Combine("m", "a", (v,)),
                Put(1, const(0), var("m", F)),
            ),
        )
        x = floats(32)
        x[[3, 12]] = np.nan, np.inf
        got = run(function, [x, np.zeros(1, np.float32)])[1][0]
        assert np.isnan(got) if high else got == -np.inf


STRIDES = [0, 1, -1, 2, -3, 5]


@pytest.mark.parametrize("active", [8, 5])
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("dtype", [dt.float32, dt.bool_, dt.bfloat16], ids=lambda d: d.name)
def test_loads_and_stores_by_stride(dtype: DType, stride: int, active: int) -> None:
    """Also of a shape in which the elements of missing lanes would lie outside of the array."""
    v, u = axis(0, 8), axis(1, 2)
    size = 2 * (abs(stride) * (active - 1) + 1)
    start = abs(stride) * (active - 1) if stride < 0 else 0
    at = u * (size // 2) + v * stride + start
    x = dt.to_storage(np.random.default_rng(0).integers(0, 2, size).astype(np.float64), dtype)
    axes = (unroll(u), vector(v, active))
    gathered = Function(
        "loads",
        ((dtype, size, False), (dtype, 16, True)),
        (),
        (Tile(axes, (Put(1, u * 8 + v, load(0, dtype, at)),)),),
    )
    both_ways(gathered, [x, np.zeros(16, dtype.storage)])
    if stride:
        stored = Function(
            "stores",
            ((dtype, 16, False), (dtype, size, True)),
            (),
            (Tile(axes, (Put(1, at, load(0, dtype, u * 8 + v)),)),),
        )
        both_ways(stored, [np.resize(x, 16), np.ones(size, dtype.storage)])


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("lanes_decide", [False, True])
def test_loads_that_are_not_valid_read_zero_and_touch_nothing(
    stride: int, lanes_decide: bool
) -> None:
    """The array is tiny, and the indices that are not valid are far outside of it."""
    i, v = axis(0, 3), axis(1, 8)
    far = i * (1 << 40) + v * stride + 8 * abs(stride)
    limit = i * 8 + v if lanes_decide else i * 8
    valid = less(limit, const(5 if lanes_decide else 1))
    function = Function(
        "valid",
        ((F, 16 * abs(stride) + 1, False), (F, 24, True)),
        (),
        (seq(i, 3, Tile((vector(v),), (Put(1, i * 8 + v, load(0, F, far, valid)),))),),
    )
    both_ways(function, [floats(16 * abs(stride) + 1), np.full(24, 9, np.float32)])


def test_scalar_loads_with_a_condition_and_no_elements() -> None:
    i = axis(0, 4)
    function = Function(
        "nothing",
        ((dt.int32, 0, False), (dt.int32, 4, True)),
        (),
        (seq(i, 4, Put(1, i, load(0, dt.int32, i, less(i, load_index(1, i))))),),
    )
    got = run(function, [np.zeros(0, np.int32), np.zeros(4, np.int32)])[1]
    np.testing.assert_array_equal(got, 0)


def load_index(slot: int, i: Expr, dtype: DType = dt.int32) -> Expr:
    return alu(Op.CAST, load(slot, dtype, i), dtype=dt.index)


@pytest.mark.parametrize("conditions", ["none", "scalar", "vector"])
def test_gather_through_loaded_indices(conditions: str) -> None:
    i, v = axis(0, 3), axis(1, 8)
    at = i * 8 + v
    valid = {"none": None, "scalar": less(i, const(2)), "vector": less(at, const(11))}[conditions]
    function = Function(
        "gather",
        ((F, 50, False), (dt.int32, 24, False), (F, 24, True)),
        (),
        (seq(i, 3, Tile((vector(v, 7),), (Put(2, at, load(0, F, load_index(1, at), valid)),))),),
    )
    indices = np.random.default_rng(3).integers(0, 50, 24).astype(np.int32)
    if conditions == "vector":
        indices[11:] = 1 << 30
    both_ways(function, [floats(50), indices, np.full(24, 9, np.float32)])


@pytest.mark.parametrize("dtype", [dt.bool_, dt.int8, dt.int16, dt.bfloat16, dt.float16], ids=str)
@pytest.mark.parametrize("active", [3, 4])
def test_one_lane_of_narrow_numbers_leaves_its_neighbour_alone(dtype: DType, active: int) -> None:
    """The condition is known to hold for one lane; LLVM has stored four bytes there."""
    v = axis(0, 4)
    value = alu(Op.CAST, alu(Op.MUL, load(0, F, v), const(3.0, F)), dtype=dtype)
    put = Put(1, v, value, less(v, const(1)))
    one = Function(
        "narrow", ((F, 4, False), (dtype, 8, True)), (), (Tile((vector(v, active),), (put,)),)
    )
    both_ways(one, [np.arange(1, 5, dtype=np.float32), dt.to_storage(np.ones(8), dtype)])


@pytest.mark.parametrize("valid", [False, True])
@pytest.mark.parametrize("mode", ["set", "add", "max", "min", "mul"])
@pytest.mark.parametrize(
    "dtype", [dt.bool_, dt.int8, dt.uint32, dt.bfloat16, dt.float32], ids=lambda d: d.name
)
def test_scatter_modes(dtype: DType, mode: str, valid: bool) -> None:
    """Repeated indices, one by one in order; unique indices as a contiguous vector."""
    i, v = axis(0, 24), axis(1, 8)
    rng = np.random.default_rng(5)
    indices = rng.integers(0, 5, 24).astype(np.int32)
    values = dt.to_storage(
        rng.integers(0, 2 if dtype.kind == "b" else 5, 24).astype(np.float64), dtype
    )
    cells = dt.to_storage(np.ones(5), dtype)
    condition = less(const(3), i) if valid else None
    one = Function(
        "scatter",
        ((dtype, 24, False), (dt.int32, 24, False), (dtype, 5, True)),
        (),
        (seq(i, 24, Put(2, load_index(1, i), load(0, dtype, i), condition, mode)),),
    )
    both_ways(one, [values, indices, cells])
    condition = less(v, const(3)) if valid else None
    run_of = Function(
        "scatter",
        ((dtype, 24, False), (dtype, 8, True)),
        (),
        (Tile((vector(v, 6),), (Put(1, v, load(0, dtype, v * 3), condition, mode),)),),
    )
    both_ways(run_of, [values, dt.to_storage(np.ones(8) * 2, dtype)])


@pytest.mark.parametrize("mode", ["set", "add", "max"])
def test_scatter_of_lanes_with_equal_indices_goes_in_order(mode: str) -> None:
    """Stricter than the statements ask for: lanes are visited in order, so the last one wins."""
    v = axis(0, 8)
    function = Function(
        "lanes",
        ((F, 8, False), (dt.int32, 8, False), (F, 3, True)),
        (),
        (
            Tile(
                (vector(v, 7),), (Put(2, load_index(1, v), load(0, F, v), less(v, const(6)), mode),)
            ),
        ),
    )
    x, indices = floats(8), np.array([0, 1, 1, 2, 0, 1, 2, 2], np.int32)
    want = np.zeros(3, np.float32)
    numeric.scatter(want, indices[:6], x[:6], mode, F)
    np.testing.assert_array_equal(run(function, [x, indices, np.zeros(3, np.float32)])[2], want)


def test_a_store_is_seen_by_later_loads_and_not_by_earlier_ones() -> None:
    i, v = axis(0, 4), axis(1, 8)
    x = load("s", F, v)
    function = Function(
        "order",
        ((F, 8, False), (F, 32, True)),
        (),
        (
            Scratch("s", F, 8),
            Tile(
                (vector(v),),
                (
                    Put("s", v, load(0, F, v)),
                    Let("before", x),
                    seq(
                        i,
                        4,
                        Put("s", v, alu(Op.ADD, x, const(1.0, F))),
                        Put(1, i * 8 + v, alu(Op.ADD, x, var("before", F))),
                    ),
                ),
            ),
        ),
    )
    x0 = floats(8)
    got = both_ways(function, [x0, np.zeros(32, np.float32)])[1].reshape(4, 8)
    np.testing.assert_allclose(got, 2 * x0 + np.arange(1, 5)[:, None], rtol=1e-6)


def test_the_cell_of_an_accumulator_is_read_as_it_is_now() -> None:
    i = axis(0, 6)
    function = Function(
        "scan",
        ((F, 6, False), (F, 6, True)),
        (),
        (
            Accumulator("a", F, Op.ADD, ()),
            seq(i, 6, Update("a", load(0, F, i)), Put(1, i, var("a", F))),
        ),
    )
    x = floats(6)
    np.testing.assert_allclose(run(function, [x, x * 0])[1], np.cumsum(x), rtol=1e-6)


def test_in_place() -> None:
    i, v = axis(0, 4), axis(1, 8)
    at = i * 8 + v
    function = Function(
        "inplace",
        ((F, 32, True),),
        (),
        (
            seq(
                i, 4, Tile((vector(v),), (Put(0, at, alu(Op.MUL, load(0, F, at), load(0, F, at))),))
            ),
        ),
    )
    x = floats(32)
    np.testing.assert_array_equal(run(function, [x])[0], x * x)


def test_conditions_and_their_other_branch() -> None:
    i, u, v = axis(0, 5), axis(1, 2), axis(2, 8)
    at = i * 16 + u * 8 + v
    function = Function(
        "branch",
        ((F, 80, False), (F, 80, True)),
        (),
        (
            seq(
                i,
                5,
                Tile(
                    (unroll(u), vector(v)),
                    (
                        If(
                            less(i, const(2)),
                            (Put(1, at, load(0, F, at)),),
                            (
                                Let("t", alu(Op.MUL, load(0, F, at), const(2.0, F))),
                                Put(1, at, var("t", F)),
                            ),
                        ),
                        If(less(const(3), i), (Put(1, at, const(5.0, F)),)),
                    ),
                ),
            ),
        ),
    )
    both_ways(function, [floats(80), np.zeros(80, np.float32)])


def test_a_condition_on_an_unrolled_axis() -> None:
    """Not what the lowering writes, but the statements allow it: the body runs copy by copy."""
    u, v = axis(1, 4), axis(2, 8)
    at = u * 8 + v
    body: Block = (Update("a", load(0, F, at)), Put(1, at, var("a", F)))
    function = Function(
        "copies",
        ((F, 32, False), (F, 32, True)),
        (),
        (
            Tile(
                (unroll(u), vector(v)),
                (
                    Accumulator("a", F, Op.ADD, (u, v)),
                    Update("a", load(0, F, at)),
                    If(less(u, const(2)), body, (Put(1, at, const(1.0, F)),)),
                ),
            ),
        ),
    )
    x = floats(32)
    got = run(function, [x, x * 0])[1]
    np.testing.assert_array_equal(got, np.where(np.arange(32) < 16, x + x, 1))


def test_a_remainder_does_not_take_the_lanes_of_another_tile() -> None:
    """The same load in tiles with few lanes, with all, and nested: it must not be shared between
    them."""
    i, v = axis(0, 3), axis(1, 8)
    x = alu(Op.MUL, load(0, F, v), const(2.0, F))
    tiles = [Tile((vector(v, n),), (Put(1, i * 24 + v + 8 * k, x),)) for k, n in enumerate((5, 8))]
    nested = Tile(
        (vector(v),),
        (
            Tile((vector(v, 3),), (Put(1, i * 24 + v + 16, x),)),
            Put(1, i * 24 + v + 16, alu(Op.ADD, x, const(1.0, F))),
        ),
    )
    function = Function("share", ((F, 8, False), (F, 72, True)), (), (seq(i, 3, *tiles, nested),))
    got = run(function, [floats(8), np.zeros(72, np.float32)])[1].reshape(3, 3, 8)
    want = floats(8) * 2
    np.testing.assert_array_equal(
        got,
        np.broadcast_to(np.stack([np.where(np.arange(8) < 5, want, 0), want, want + 1]), (3, 3, 8)),
    )


def test_what_does_not_change_in_a_loop_is_computed_before_it() -> None:
    i, j = axis(0, 4), axis(1, 100)
    scale = alu(Op.EXP, load(0, F, i))
    inner = seq(j, 100, Put(1, i * 100 + j, alu(Op.MUL, scale, load(2, F, j))))
    function = Function(
        "hoist", ((F, 4, False), (F, 400, True), (F, 100, False)), (), (seq(i, 4, inner),)
    )
    lines = program(function).source.splitlines()
    loops = [n for n, line in enumerate(lines) if " = phi i64 " in line]
    assert loops[0] < next(n for n, line in enumerate(lines) if "@llvm.fma." in line) < loops[1]
    got = run(function, [floats(4), np.zeros(400, np.float32), floats(100)])[1]
    np.testing.assert_allclose(
        got.reshape(4, 100), np.exp(floats(4))[:, None] * floats(100), rtol=1e-6
    )


def test_a_load_is_not_moved_out_of_a_loop_that_may_not_run() -> None:
    i, j = axis(0, 4), axis(1, 100)
    perhaps = Loop(
        j, const(0), param("n", 0, 100), "seq", (Put(1, j, load(0, F, i * (1 << 40) + (1 << 41))),)
    )
    function = Function("never", ((F, 4, False), (F, 400, True)), ("n",), (seq(i, 4, perhaps),))
    run(function, [floats(4), np.zeros(400, np.float32)], {"n": 0})  # it would be far outside


def test_parameters_bound_loops_and_move_indices() -> None:
    i, n, shift = axis(0, 100), param("n", 0, 100), param("shift", -5, 5)
    function = Function(
        "dynamic",
        ((F, 110, False), (F, 100, True)),
        ("shift", "n"),
        (Loop(i, const(0), n, "seq", (Put(1, i, load(0, F, i + shift + 5)),)),),
    )
    x = floats(110)
    for count, offset in itertools.product((0, 1, 37), (-5, 0, 3)):
        got = run(function, [x, np.zeros(100, np.float32)], {"n": count, "shift": offset})[1]
        np.testing.assert_array_equal(got[:count], x[5 + offset : 5 + offset + count])
        assert not got[count:].any()


def test_divisions_in_indices() -> None:
    """A reshape that leaves div and mod behind, of lanes too, with negative dividends."""
    i, v = axis(0, 5), axis(1, 16)
    flat = i * 16 + v
    at = (flat // 7) * 7 + (flat % 7)
    shifted = (flat - 40) // 6 + 10
    masked = (flat - 40) % 8
    function = Function(
        "index",
        ((F, 80, False), (F, 80, True)),
        (),
        (
            seq(
                i,
                5,
                Tile(
                    (vector(v),),
                    (
                        Put(
                            1,
                            flat,
                            alu(
                                Op.ADD,
                                alu(Op.ADD, load(0, F, at), load(0, F, shifted)),
                                load(0, F, masked),
                            ),
                        ),
                    ),
                ),
            ),
        ),
    )
    both_ways(function, [floats(80), np.zeros(80, np.float32)])


def test_big_scratch_comes_from_the_heap() -> None:
    i, size = axis(0, 1 << 20), 1 << 20
    function = Function(
        "big",
        ((F, 1, True),),
        (),
        (
            Scratch("s", F, size),
            seq(i, size, Put("s", i, const(2.0, F))),
            Accumulator("a", F, Op.ADD, ()),
            seq(i, size, Update("a", load("s", F, i))),
            Put(0, const(0), var("a", F)),
        ),
    )
    assert "aligned_alloc" in program(function).source
    assert run(function, [np.zeros(1, np.float32)])[0][0] == 2 * size


def test_copies_are_text_alone() -> None:
    """Rendering a tile of 64 copies makes no more expressions than one of 2."""

    def tile(copies: int) -> Function:
        u, v = axis(0, copies), axis(1, 16)
        at = u * 16 + v
        return Function(
            "copies",
            ((F, copies * 16, False), (F, copies * 16, True)),
            (),
            (Tile((unroll(u), vector(v)), (Put(1, at, alu(Op.SQRT, load(0, F, at))),)),),
        )

    assert program(tile(64)).source.count("@llvm.sqrt.v16f32(") == 64
    both_ways(tile(64), [np.abs(floats(1024)), np.zeros(1024, np.float32)], tolerance=1e-6)


def test_condition_with_both_axes_pads() -> None:
    i, v = axis(0, 6), axis(1, 8)
    row, column = i - 1, v - 1
    valid = both(
        both(less(const(-1), row), less(row, const(4))),
        both(less(const(-1), column), less(column, const(6))),
    )
    function = Function(
        "pad",
        ((F, 24, False), (F, 48, True)),
        (),
        (seq(i, 6, Tile((vector(v),), (Put(1, i * 8 + v, load(0, F, row * 6 + column, valid)),))),),
    )
    x = floats(24)
    got = both_ways(function, [x, np.zeros(48, np.float32)])[1]
    np.testing.assert_array_equal(got.reshape(6, 8), np.pad(x.reshape(4, 6), 1))


# --- broken statements ---------------------------------------------------------------------------


def test_broken_statements_are_internal_errors() -> None:
    v, w = axis(0, 8), axis(1, 8)
    size = ((F, 8, True),)
    broken: list[Block] = [
        (Put(0, const(0), var("nobody", F)),),
        (Put(3, const(0), const(0.0, F)),),
        (Put(0, const(0), const(0, dt.int32)),),
        (Tile((vector(v),), (Tile((vector(w),), (Put(0, v, const(0.0, F)),)),)),),
        (Tile((vector(v),), (Accumulator("a", F, Op.ADD, ()), Update("a", const(0.0, F)))),),
        (Update("a", const(0.0, F)),),
        (Loop(axis(2, 4), const(0), param("unknown", 0, 4), "seq", ()),),
    ]
    for body in broken:
        with pytest.raises(InternalError):
            program(Function("broken", size, (), body))


@pytest.mark.parametrize("columns", range(1, 13))
def test_few_columns_of_a_transposed_product(columns: int) -> None:
    """Lanes along the rows, copies along the columns: what is stored is rows of copies."""
    rng = np.random.default_rng(columns)
    a, b = (rng.integers(-4, 5, (n, 64)).astype(np.float32) for n in (16, columns))
    got = Tensor(a, device="cpu").linear(Tensor(b, device="cpu"))
    np.testing.assert_array_equal(got.numpy(), a @ b.T)


def test_registers_that_are_spilled_are_aligned() -> None:
    """A slot of the stack that lies across two pages makes a loop six times slower, and where the
    stack begins is a matter of luck. 48 vectors of 16 are more than any processor has registers."""
    i, j, v, k = axis(0, 12), axis(1, 4), axis(2, 16), axis(3, 100)
    tile = (unroll(i), unroll(j), vector(v))
    product = alu(Op.MUL, load(0, F, i * 100 + k), load(1, F, k * 64 + j * 16 + v))
    body = Tile(
        tile,
        (
            Accumulator("acc", F, Op.ADD, tuple(a.axis for a in tile)),
            seq(k, 100, Update("acc", alu(Op.EXP, product))),
            Put(2, i * 64 + j * 16 + v, var("acc", F)),
        ),
    )
    buffers = ((F, 1200, False), (F, 6400, False), (F, 768, True))
    made = program(Function("spills", buffers, (), (body,)))
    assert not re.search(r"vmovup[sd]\t%[yz]mm\d+, -?\d*\(%r[sb]p\)", device().disassemble(made))
