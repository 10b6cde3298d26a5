"""Reductions in parts: which ones there are, that the values are those of the whole, and that the
number of threads changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from graphs import array, buffer
from test_threads import each_machine

from mygrad import Tensor, realize
from mygrad import dtype as dt
from mygrad import graph as g
from mygrad.config import context
from mygrad.dtype import DType
from mygrad.graph import Node
from mygrad.helpers import Shape, prod
from mygrad.ops import Op
from mygrad.program import Buffer
from mygrad.schedule import split
from mygrad.schedule.schedule import schedule

Array = np.ndarray[Any, Any]

NUMPY: dict[Op, Callable[..., Any]] = {Op.ADD: np.sum, Op.MUL: np.prod, Op.MAX: np.max}
TYPES = (dt.float32, dt.float64, dt.int32, dt.bool_)
PRIME = 104_729


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is meant for millions of elements happens from 64 on."""
    monkeypatch.setattr(split, "LONG_SUM", 64)
    monkeypatch.setattr(split, "PARTS", 8)
    monkeypatch.setattr(split, "FEW_RESULTS", 4)


@pytest.fixture
def uncached() -> Iterator[None]:
    """Nothing that was prepared with other limits, and nothing for later tests."""
    realize._prepared.clear()
    with context(MYGRAD_CACHE="off"):
        yield
    realize._prepared.clear()


def unmade(*shape: int, dtype: DType = dt.float32) -> Node:
    """An array without memory."""
    return g.buffer(Buffer("reference", dtype, prod(shape)), shape)


def partial(node: Node) -> list[int]:
    """How many partial results a plan has, in each of its steps that have some."""
    steps = schedule([node], "reference").steps
    return [int(s.reason.split()[0]) for s in steps if " partial " in s.reason]


def divided(op: Op, shape: Shape, axes: tuple[int, ...], dtype: DType = dt.float32) -> list[int]:
    return partial(g.reduce(op, unmade(*shape, dtype=dtype), axes))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("op", NUMPY, ids=str)
def test_every_operator_and_type_is_divided(op: Op, dtype: DType) -> None:
    for shape in ((1 << 24,), (4096, 4096)):
        assert divided(op, shape, tuple(range(len(shape))), dtype) == [split.PARTS]
    (step, _) = schedule([g.reduce(op, unmade(1 << 24, dtype=dtype), (0,))], "reference").steps
    assert {Op.ADD: "sum", Op.MUL: "product", Op.MAX: "maximum"}[op] in step.reason


@pytest.mark.parametrize("op", NUMPY, ids=str)
@pytest.mark.parametrize("length", [16_777_213, 2 * 8_388_593, 3 * PRIME, PRIME, 4 * PRIME])
def test_lengths_without_a_divisor(op: Op, length: int) -> None:
    (parts,) = divided(op, (length,), (0,))
    assert split.PARTS // 2 < parts <= split.PARTS


def test_equal_parts_come_first() -> None:
    assert divided(Op.ADD, (29 * 1733 * 8,), (0,)) == [116]
    assert divided(Op.ADD, (50_257, 4), (0,)) == [29]
    assert divided(Op.ADD, (PRIME,), (0,)) == [106]
    assert PRIME % 106 == min(PRIME % n for n in range(65, 129)) == 1


def test_a_short_axis_is_not_the_one_that_is_divided() -> None:
    """The first axis would give parts that lie together, but two of them."""
    assert divided(Op.ADD, (2, 1 << 22), (0, 1)) == [128]
    assert divided(Op.ADD, (24, 3, 224, 224), (0, 1, 2, 3)) == [24]
    assert divided(Op.ADD, (8, 8, 8, 8, 8, 8), tuple(range(6))) == [8]


@pytest.mark.parametrize(
    ("shape", "axes", "parts"),
    [
        ((1_000_000, 20), (0,), [125]),
        ((100_000, 64), (0,), [125]),
        ((100_003, 64), (0,), [125]),
        ((4096, 17), (0,), [128]),
        ((1000, 100, 20), (0, 1), [125]),
        ((2048, 64), (0,), []),  # so short that two kernels take longer
        ((40_000, 80), (0,), []),  # enough lines for some threads
        ((4096, 1000), (0,), []),
        ((20, 1_000_000), (1,), []),  # rows: threads share them as they are
        ((16, 1_000_000), (1,), [125]),
    ],
)
def test_columns_that_lie_side_by_side_count_as_one(
    shape: Shape, axes: tuple[int, ...], parts: list[int]
) -> None:
    assert divided(Op.ADD, shape, axes) == parts
    assert divided(Op.MAX, shape, axes) == parts


def test_columns_of_what_is_turned_are_rows() -> None:
    turned = g.move(Op.PERMUTE, unmade(20, 1_000_000), (1, 0))
    assert partial(g.reduce(Op.ADD, turned, (0,))) == []


def test_a_computed_operand_is_not_stored_for_what_is_left_over() -> None:
    x = unmade(PRIME * 8 + 1)
    exps = g.reduce(Op.ADD, g.alu(Op.EXP, x), (0,))
    plan = schedule([exps], "reference")
    assert len(plan.steps) == 2
    assert plan.peak_bytes < 4096


def test_long_maxima_with_reuse_are_left_alone() -> None:
    """Only sums come in products that read their operands again and again."""
    x, y = unmade(512, 64, 1), unmade(512, 1, 512)
    shape = (512, 64, 512)
    both = g.alu(Op.MUL, g.move(Op.EXPAND, x, shape), g.move(Op.EXPAND, y, shape))
    assert partial(g.reduce(Op.MAX, both, (0,))) == []


# --- values ---------------------------------------------------------------------------------------


def numbers(dtype: DType, *shape: int) -> Array:
    """Of which sums and products are exact, in any order; and not zero."""
    rng = np.random.default_rng(prod(shape))
    if dtype is dt.bool_:
        return rng.integers(0, 2, shape).astype(bool)
    values = rng.choice([-1, 1], shape)
    values[rng.random(shape) < 4 / prod(shape)] = 2
    return values.astype(dtype.storage)


def computed(op: Op, values: Array, axes: tuple[int, ...]) -> Array:
    node = g.reduce(op, realize.from_numpy(values, device="reference"), axes)
    return realize.to_numpy(realize.realize([node])[0])


def same(got: Array, want: Array) -> None:
    """Equal, with NaN where it is; zeros of the same sign."""
    np.testing.assert_array_equal(got, want)
    if got.dtype.kind == "f":
        number = ~np.isnan(want)
        np.testing.assert_array_equal(np.signbit(got)[number], np.signbit(want)[number])


@pytest.mark.usefixtures("small", "uncached")
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("op", NUMPY, ids=str)
def test_values_for_awkward_lengths(op: Op, dtype: DType) -> None:
    for length in (1, 2, 3, 63, 64, 65, 67, 71, 72, 73, 127, 128, 129, 134, 257, 1031):
        for shape, axes in (((length,), (0,)), ((length, 3), (0,)), ((2, length), (0, 1))):
            values = numbers(dtype, *shape)
            want = NUMPY[op](values, axis=axes, dtype=values.dtype) if op is not Op.MAX else None
            want = values.max(axes) if want is None else want
            if dtype is dt.bool_:
                want = (values.all if op is Op.MUL else values.any)(axes)
            same(computed(op, values, axes), np.asarray(want))


@pytest.mark.usefixtures("small")
def test_the_awkward_lengths_are_divided() -> None:
    assert divided(Op.MAX, (1031,), (0,)) == [5]
    assert divided(Op.ADD, (128,), (0,)) == [8]
    assert divided(Op.ADD, (129,), (0,)) == [8]
    assert divided(Op.MUL, (257, 3), (0,)) == [8]
    assert divided(Op.ADD, (2, 1031), (0, 1)) == [5]


@pytest.mark.usefixtures("small", "uncached")
@pytest.mark.parametrize("dtype", [dt.float32, dt.float64], ids=str)
@pytest.mark.parametrize("at", [0, 600, 1029, 1030])
def test_nan_and_infinities(dtype: DType, at: int) -> None:
    """In a part, and in what is left over."""
    for value in (np.nan, np.inf, -np.inf):
        values = numbers(dtype, 1031)
        values[at] = value
        for op, numpy in NUMPY.items():
            same(computed(op, values, (0,)), np.asarray(numpy(values)))
        values[3] = -value
        with np.errstate(invalid="ignore"):
            same(computed(Op.ADD, values, (0,)), np.asarray(values.sum()))
    for op in (Op.MAX, Op.ADD):
        low = np.full(1031, -np.inf, dtype.storage)
        same(computed(op, low, (0,)), low[0])


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize("op", NUMPY, ids=str)
@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_signs_of_zero_are_those_of_the_whole(
    op: Op, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = []
    for length in (1024, 1031):
        for zeros in ([-0.0], [0.0, -0.0]):
            values = np.resize(np.array(zeros, np.float32), length)
            nodes.append(g.reduce(op, realize.from_numpy(values, device=device), (0,)))
    found = []
    for long in (1 << 16, 64):
        monkeypatch.setattr(split, "LONG_SUM", long)
        realize._prepared.clear()
        found.append([realize.to_numpy(r).tobytes() for r in realize.realize(nodes)])
    # the maximum of both zeros may be either
    assert found[0][::2] == found[1][::2] if op is Op.MAX else found[0] == found[1]


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_positions_of_extremes(dtype: str) -> None:
    for shape, axis in (((PRIME,), 0), ((8191, 16), 0), ((3, 40_009), 1), ((PRIME,), None)):
        values = np.random.default_rng(0).integers(-90_000, 90_000, shape).astype(dtype)
        for name in ("argmax", "argmin"):
            got = getattr(Tensor(values), name)(axis).numpy()
            np.testing.assert_array_equal(got, getattr(np, name)(values, axis))
        if dtype == "float32":
            values[-1] = np.nan
            np.testing.assert_array_equal(
                Tensor(values).argmax(axis).numpy(), np.argmax(values, axis)
            )


def test_gradients_of_extremes_and_products() -> None:
    values = np.ones(PRIME, np.float32)
    values[[5, PRIME - 1]] = 2
    x = Tensor(values).requires_grad_()
    (of_max,) = x.max().gradient(x)
    np.testing.assert_array_equal(of_max.numpy(), np.where(values == 2, 0.5, 0))
    (of_prod,) = x.prod().gradient(x)
    np.testing.assert_allclose(of_prod.numpy(), 4 / values)


def test_threads_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    line, columns = array(PRIME), array(5003, 20)
    mixed = np.where(array(PRIME, seed=1) > 0, 0.0, -0.0).astype(np.float32)
    factors = (1 + 1e-3 * line).astype(np.float32)
    found = []
    for _ in each_machine(monkeypatch):
        x, made = Tensor(line), []
        made += [x.sum(), x.double().sum(), x.max(), x.min(), Tensor(mixed).max()]
        made += [Tensor(factors).prod(), x.exp().sum(), (x * 1000).int().sum()]
        made += [(x > 4).any(), (x > -9).all(), x[: PRIME - 1].sum()]
        made += [Tensor(columns).sum(0), Tensor(columns).max(0), x.argmax()]
        assert all(" partial " in schedule([t.node], "cpu").steps[0].reason for t in made[:-1])
        found.append([t.numpy().tobytes() for t in made])
    assert all(f == found[0] for f in found[1:])
    np.testing.assert_allclose(np.frombuffer(found[0][0], np.float32), line.sum(), rtol=1e-4)
    np.testing.assert_allclose(
        np.frombuffer(found[0][5], np.float32), factors.prod(dtype=float), rtol=1e-4
    )


def test_limits_of_narrow_reductions() -> None:
    """Around the lengths from which there are parts."""
    most = 8 * split.PARTS
    x = buffer(split.LONG_SUM - 1, device="reference")
    assert partial(g.reduce(Op.MAX, x, (0,))) == []
    assert divided(Op.MAX, (split.LONG_SUM,), (0,)) == [128]
    assert divided(Op.MAX, (most * 16 * 4, 16), (0,)) == [128]
    assert divided(Op.MAX, (most * 4, 64), (0,)) == [128]
    assert divided(Op.MAX, (most * 4 - 1, 64), (0,)) == []
    assert divided(Op.MAX, (most * 4, 65), (0,)) == []
    assert divided(Op.MAX, (16, most * 4), (1,)) == [128]
    assert divided(Op.MAX, (17, most * 4), (1,)) == []
