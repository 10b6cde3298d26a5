"""Values of a row that are kept: which ones, and the same bits as without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import stmt_interpreter as interpreter
from kernel_cases import run_on

from mygrad import codegen
from mygrad import dtype as dt
from mygrad.codegen import prepare, stmt
from mygrad.codegen.actions import (
    Action,
    Keep,
    Parallel,
    Reorder,
    ScheduleError,
    Split,
    Unroll,
    Vectorize,
    apply,
    start,
)
from mygrad.codegen.keeping import keeps, repeats
from mygrad.dtype import DType
from mygrad.errors import MygradError
from mygrad.expr import Expr, alu, axis, const, load, reduce, where
from mygrad.kernel import BufferInfo, Kernel, Store, verify
from mygrad.ops import Op
from mygrad.program import Target
from mygrad.runtime import device, reference

TARGET = Target("llvm", "test", vector_bytes=64, vector_registers=32, threads=2)
NARROW = Target("opencl", "test", vector_bytes=16, vector_registers=16)
DTYPES = [dt.float32, dt.float64, dt.float16, dt.bfloat16]
SHAPES = [(1, 1), (3, 1), (5, 7), (2, 97), (3, 0), (0, 5)]


def add(a: Expr, b: Expr) -> Expr:
    return alu(Op.ADD, a, b)


def kernel_of(
    axes: tuple[Expr, ...], stores: tuple[Store, ...], *sizes: int, dtype: DType
) -> Kernel:
    infos = tuple(BufferInfo(dtype, n, slot < len(stores)) for slot, n in enumerate(sizes))
    kernel = Kernel("rows", axes, stores, infos)
    verify(kernel)
    return kernel


def softmax(rows: int, columns: int, dtype: DType = dt.float32) -> Kernel:
    """exp(x - high) / sum(exp(x - high)), the largest of a row being `high`."""
    i, j, a, b = (axis(n, e) for n, e in enumerate((rows, columns, columns, columns)))
    high = reduce(Op.MAX, load(1, dtype, i * columns + a), (a,))

    def e(at: Expr) -> Expr:
        return alu(Op.EXP, add(load(1, dtype, i * columns + at), alu(Op.NEG, high)))

    value = alu(Op.DIV, e(j), reduce(Op.ADD, e(b), (b,)))
    n = rows * columns
    return kernel_of((i, j), (Store(0, i * columns + j, value),), n, n, dtype=dtype)


def softmax_of_columns(rows: int, columns: int, dtype: DType = dt.float32) -> Kernel:
    """The same down the columns: the lanes of a vector are columns next to each other."""
    i, j, b = axis(0, columns), axis(1, rows), axis(2, rows)

    def e(at: Expr) -> Expr:
        return alu(Op.EXP, load(1, dtype, at * columns + i))

    value = alu(Op.DIV, e(j), reduce(Op.ADD, e(b), (b,)))
    n = rows * columns
    return kernel_of((i, j), (Store(0, j * columns + i, value),), n, n, dtype=dtype)


def three_nests(rows: int, columns: int, dtype: DType = dt.float32) -> Kernel:
    """Two sums and a store need exp(x), the second sum and the store exp(x) / sum in addition."""
    i, j, a, b = (axis(n, e) for n, e in enumerate((rows, columns, columns, columns)))

    def e(at: Expr) -> Expr:
        return alu(Op.EXP, load(2, dtype, i * columns + at))

    total = reduce(Op.ADD, e(a), (a,))

    def p(at: Expr) -> Expr:
        return alu(Op.SQRT, alu(Op.DIV, e(at), total))

    second = reduce(Op.ADD, p(b), (b,))
    stores = (Store(0, i * columns + j, add(p(j), e(j))), Store(1, i, second))
    n = rows * columns
    return kernel_of((i, j), stores, n, rows, n, dtype=dtype)


def two_axes(rows: int, columns: int, dtype: DType = dt.float32) -> Kernel:
    """A row is a matrix of 3 x columns, and one value of three depends on a condition."""
    i = axis(0, rows)
    inner, reduced = (axis(1, 3), axis(2, columns)), (axis(3, 3), axis(4, columns))

    def e(k: Expr, at: Expr) -> Expr:
        x = load(1, dtype, i * (3 * columns) + k * columns + at)
        return alu(Op.EXP, where(alu(Op.LT, k, const(2), dtype=dt.bool_), x, const(0.5, dtype)))

    value = alu(Op.DIV, e(*inner), reduce(Op.ADD, e(*reduced), reduced))
    n = rows * 3 * columns
    index = i * (3 * columns) + inner[0] * columns + inner[1]
    return kernel_of((i, *inner), (Store(0, index, value),), n, n, dtype=dtype)


FAMILIES: dict[str, Callable[..., Kernel]] = {
    "softmax": softmax,
    "columns": softmax_of_columns,
    "three nests": three_nests,
    "two axes": two_axes,
}


def values(kernel: Kernel, seed: int = 0) -> list[np.ndarray]:
    """Random rows, of which some have inf, -inf or nan in them."""
    rng = np.random.default_rng(seed)
    arrays = []
    for info in kernel.buffers:
        x = rng.standard_normal(info.size) * 3
        for special in (np.inf, -np.inf, np.nan):
            x[rng.random(info.size) < 0.5 / max(info.size, 1)] = special
        arrays.append(dt.to_storage(x, info.dtype))
    return arrays


def without(actions: tuple[Action, ...]) -> tuple[Action, ...]:
    return tuple(a for a in actions if not isinstance(a, Keep))


def interpreted(kernel: Kernel, actions: tuple[Action, ...]) -> tuple[str, list[bytes]]:
    """The statements, and the bytes that they leave in the buffers."""
    function = codegen.lower(apply(start(kernel), actions))
    stmt.verify(function)
    arrays = values(kernel)
    with np.errstate(all="ignore"):
        interpreter.run(function, arrays)
    return stmt.text(function), [a.tobytes() for a in arrays]


def test_the_repeats_of_a_softmax() -> None:
    (found,) = repeats(softmax(4, 9))
    assert str(found) == "exp over i3, float32[9]"
    assert [str(axes[0]) for _, axes in found.reads] == ["i1"]
    assert repeats(softmax(4, 1)) == ()  # nothing to run over


def test_larger_values_first_and_each_in_the_first_nest_that_needs_it() -> None:
    found = repeats(three_nests(4, 9))
    assert [str(r) for r in found] == ["exp over i2, float32[9]", "sqrt over i3, float32[9]"]
    assert [len(r.reads) for r in found] == [2, 1]


def test_what_is_cheap_is_computed_again() -> None:
    i, j, k = axis(0, 5), axis(1, 9), axis(2, 9)
    x = [load(1, dt.float32, i * 9 + at) for at in (j, k)]
    square = [alu(Op.MUL, v, v) for v in x]
    value = alu(Op.DIV, square[0], reduce(Op.ADD, square[1], (k,)))
    assert repeats(kernel_of((i, j), (Store(0, i * 9 + j, value),), 45, 45, dtype=dt.float32)) == ()


def test_a_value_that_the_reduction_repeats_itself_is_not_kept() -> None:
    """exp(x[k]) inside of a product of matrices is computed for every column: no row of it."""
    i, j, k, b = axis(0, 4), axis(1, 6), axis(2, 5), axis(3, 5)
    e = [alu(Op.EXP, load(1, dt.float32, i * 5 + at)) for at in (k, b)]
    product = reduce(Op.ADD, alu(Op.MUL, e[0], load(2, dt.float32, k * 6 + j)), (k,))
    value = alu(Op.DIV, product, reduce(Op.ADD, e[1], (b,)))
    kernel = kernel_of((i, j), (Store(0, i * 6 + j, value),), 24, 20, 30, dtype=dt.float32)
    assert repeats(kernel) == ()


def test_only_rows_that_fit_are_kept() -> None:
    assert keeps(softmax(4, 1000), TARGET) == (0,)
    assert keeps(softmax(4, 1_000_000), TARGET) == ()
    small = replace(TARGET, l2_bytes=4 * 4 * 9)  # one row of two
    assert keeps(three_nests(4, 9), small) == (0,)


def test_rows_in_lockstep_must_fit_together() -> None:
    """Columns next to each other are the lanes of a vector: sixteen rows at least are kept."""
    kernel = softmax_of_columns(100, 64)
    for l2_bytes, kept in ((1 << 20, True), (2 * 100 * 4 * 15, False)):
        target = replace(TARGET, l2_bytes=l2_bytes)
        assert keeps(kernel, target) == (0,)  # one row alone fits
        assert (Keep(0) in codegen.default_actions(kernel, target)) == kept


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_as_without(family: str, dtype: DType) -> None:
    for shape in SHAPES:
        kernel = FAMILIES[family](*shape, dtype=dtype)
        for target in (TARGET, NARROW):
            actions = codegen.default_actions(kernel, target)
            text, kept = interpreted(kernel, actions)
            assert kept == interpreted(kernel, without(actions))[1], (shape, target.language)
            keep = any(isinstance(a, Keep) for a in actions)
            assert ("scratch k0" in text) == (keep and 0 not in shape)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_means_what_the_kernel_means(family: str) -> None:
    for shape in SHAPES:
        kernel = FAMILIES[family](*shape)
        keep = tuple(Keep(n) for n in range(len(repeats(kernel))))
        arrays, expected = values(kernel), values(kernel)
        with np.errstate(all="ignore"):
            interpreter.run(codegen.lower(apply(start(kernel), keep)), arrays)
            reference.run(kernel, expected, {})
        for got, want in zip(arrays, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


ROWS = {
    "rows in lockstep": (Split("i0", 4), Unroll("i0i"), Keep(0)),
    "rows as lanes": (Split("i0", 4), Vectorize("i0i"), Keep(0)),
    "rows and lanes": (
        *(Split("i0", 2), Unroll("i0i"), Split("i1", 8), Vectorize("i1i")),
        *(Split("i3", 16), Split("i3i", 4), Vectorize("i3ii"), Unroll("i3io"), Keep(0)),
    ),
    "columns in blocks": (Split("i3", 8), Split("i3i", 4), Split("i1", 4), Keep(0)),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_in_lockstep_have_cells_of_their_own(name: str) -> None:
    for shape in ((9, 13), (4, 8), (3, 37)):
        kernel = softmax(*shape)
        try:
            apply(start(kernel), ROWS[name])
        except ScheduleError:
            continue
        text, kept = interpreted(kernel, ROWS[name])
        assert "put k0" in text
        assert kept == interpreted(kernel, without(ROWS[name]))[1]


def test_what_is_refused() -> None:
    kernel = softmax(4, 9)
    for actions in ((Keep(1),), (Keep(-1),), (Keep(0), Keep(0))):
        with pytest.raises(ScheduleError, match="Keep"):
            apply(start(kernel), actions)
    inner = Reorder(("i1", "i2", "i3", "i0"))
    for actions in ((Reorder(("i1", "i0")), Keep(0)), (Unroll("i1"), Unroll("i0"), inner, Keep(0))):
        with pytest.raises(ScheduleError, match="outermost"):
            codegen.lower(apply(start(kernel), actions))


def test_a_sum_in_blocks_fills_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "BLOCK", 4)
    kernel = softmax(3, 19)
    for actions in ((Split("i3", 4), Keep(0)), (Unroll("i0"), Split("i3", 4), Keep(0))):
        shown, kept = interpreted(kernel, actions)
        assert shown.count("scratch") == 1
        assert kept == interpreted(kernel, without(actions))[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_machine_code_gives_the_same_bits(family: str) -> None:
    target = device.get("cpu").target
    for shape, dtype in (((9, 133), dt.float32), ((3, 37), dt.float64), ((5, 64), dt.bfloat16)):
        kernel = FAMILIES[family](*shape, dtype=dtype)
        actions = codegen.default_actions(kernel, target)
        kept = run_on("cpu", kernel, values(kernel), actions=actions)
        plain = run_on("cpu", kernel, values(kernel), actions=without(actions))
        for a, b in zip(kept, plain, strict=True):
            np.testing.assert_array_equal(dt.from_storage(a, dtype), dt.from_storage(b, dtype))


@pytest.mark.parametrize("family", ["softmax", "columns"])
def test_opencl(family: str) -> None:
    """There exp may depend on the width of the vector in the last bit."""
    try:
        target = device.get("opencl").target
    except MygradError as error:
        pytest.skip(str(error))
    kernel = FAMILIES[family](5, 37)
    actions = codegen.default_actions(kernel, target)
    assert Keep(0) in actions
    arrays = values(kernel)
    expected = [a.copy() for a in arrays]
    with np.errstate(all="ignore"):
        reference.run(kernel, expected, {})
    for got, want in zip(run_on("opencl", kernel, arrays), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_rows_of_both_branches_of_a_parallel_loop_are_one() -> None:
    """The last iteration of the loop is shorter: a branch of its own, with addresses of its own
    row, which must be those of the other branch's."""
    i, j, k, r = axis(0, 3), axis(1, 19), axis(2, 19), axis(3, 19)
    top = reduce(Op.MAX, load(0, dt.float32, i * 19 + k), (k,))

    def value(along: Expr) -> Expr:
        return alu(Op.EXP, alu(Op.ADD, load(0, dt.float32, i * 19 + along), alu(Op.NEG, top)))

    total = alu(Op.ADD, value(j), reduce(Op.ADD, value(r), (r,)))
    buffers = (BufferInfo(dt.float32, 57), BufferInfo(dt.float32, 57, True))
    kernel = Kernel("rows", (i, j), (Store(1, i + j * 3, total),), buffers)
    actions = (Split("i1", 4), Vectorize("i1i"), Parallel("i1o"), Keep(0))
    arrays = [
        np.random.default_rng(0).standard_normal(57).astype(np.float32),
        np.zeros(57, np.float32),
    ]
    expected = run_on("reference", kernel, arrays)[1]
    found = run_on("cpu", kernel, arrays, actions=actions)[1]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
