"""The interpreter of graphs against brute force, NumPy and PyTorch."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
from checks import leaf, random_array, value_of
from hypothesis import given
from hypothesis import strategies as st
from peers import needs_torch, torch

from mygrad import dtype as dt
from mygrad import graph, interpret, ops
from mygrad.errors import InternalError, ShapeError
from mygrad.graph import HostCall
from mygrad.ops import Op


def test_every_primitive_has_a_meaning():
    rows = set(interpret.RULES) | ops.ALU | ops.MOVEMENT | {Op.BUFFER, Op.VARIABLE}
    assert rows == set(ops.GRAPH)


# --- sources -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", dt.ALL, ids=lambda d: d.name)
def test_constants_of_every_type(dtype):
    values = {"b": [False, True], "f": [0.0, -0.0, 1.5, math.inf, -math.inf, math.nan]}
    for value in values.get(dtype.kind, [dtype.min, 0, 1, dtype.max]):
        got = value_of(graph.const(value, dtype, (2, 1)))
        assert got.shape == (2, 1)
        np.testing.assert_array_equal(got, np.full((2, 1), value, got.dtype))
        assert math.copysign(1, got[0, 0]) == math.copysign(1, value)


def test_constants_round_to_their_type():
    assert value_of(graph.const(0.1, dt.float32)) == np.float32(0.1)
    assert value_of(graph.const(1 + 2**-7 + 2**-9, dt.bfloat16)) == 1 + 2**-7
    assert value_of(graph.const(1e6, dt.float16)) == math.inf


@pytest.mark.parametrize("n", [0, 1, 7])
def test_iota(n):
    np.testing.assert_array_equal(value_of(graph.iota(n, dt.int32)), np.arange(n, dtype=np.int32))


def test_variables():
    x = graph.alu(Op.MUL, *[graph.variable("n", 1, 8)] * 2)
    assert value_of(x, n=5) == 25
    with pytest.raises(ShapeError, match=r"n = 9.*1 <= n <= 8"):
        value_of(x, n=9)
    with pytest.raises(ShapeError, match="no value of n"):
        value_of(x)


def test_buffers_are_read_and_never_written():
    x = leaf(np.arange(6.0).reshape(2, 3))
    value = value_of(x)
    value[:] = 7  # the caller's own copy
    np.testing.assert_array_equal(value_of(x), np.arange(6.0).reshape(2, 3))
    part = graph.buffer(x.arg, (2, 2))
    np.testing.assert_array_equal(value_of(part), [[0, 1], [2, 3]])
    with pytest.raises(InternalError, match="reader"):
        interpret.evaluate(x)


# --- alu ---------------------------------------------------------------------------------------


@needs_torch
@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_half_precision_rounds_after_every_operation(name):
    dtype, a, b = dt.parse(name), random_array((50,)), random_array((50,), 1, 0.5, 2)
    x, y = leaf(a, dtype), leaf(b, dtype)
    node = graph.alu(Op.ADD, graph.alu(Op.MUL, x, y), graph.alu(Op.DIV, graph.alu(Op.SQRT, y), x))
    tx, ty = (torch.tensor(v).to(torch.float32).to(getattr(torch, name)) for v in (a, b))
    expected = tx * ty + ty.sqrt() / tx
    np.testing.assert_array_equal(value_of(node), expected.float().numpy())


@needs_torch
def test_half_precision_sums_round_once():
    x = random_array((3, 1000))
    for op, fn in ((Op.ADD, torch.sum), (Op.MAX, torch.amax)):
        got = value_of(graph.reduce(op, leaf(x, dt.bfloat16), (1,)))
        expected = fn(torch.tensor(x).float().bfloat16().double(), 1).bfloat16()
        np.testing.assert_array_equal(got, expected.float().numpy())


# --- combine -----------------------------------------------------------------------------------

COMBINE = {Op.ADD: lambda a, b: a + b, Op.MUL: lambda a, b: a * b, Op.MAX: max}
IDENTITY = {Op.ADD: 0, Op.MUL: 1, Op.MAX: -math.inf}


@pytest.mark.parametrize("shape", [(), (1,), (0,), (7,), (2, 3), (3, 0, 2), (2, 3, 4)])
@pytest.mark.parametrize("op", COMBINE)
def test_reduce_over_every_choice_of_axes(op, shape):
    values = random_array(shape)
    for count in range(len(shape) + 1):
        for axes in itertools.combinations(range(len(shape)), count):
            got = value_of(graph.reduce(op, leaf(values), axes))
            kept = [n for i, n in enumerate(shape) if i not in axes]
            expected = np.full(kept, float(IDENTITY[op]))
            for place in np.ndindex(shape):
                at = tuple(p for i, p in enumerate(place) if i not in axes)
                expected[at] = COMBINE[op](expected[at], values[place])
            np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(1,), (0,), (7,), (2, 3), (3, 0, 2)])
@pytest.mark.parametrize("op", COMBINE)
def test_scan_along_every_axis(op, shape):
    values = random_array(shape)
    for axis in range(len(shape)):
        expected = np.array(values)
        rows = np.moveaxis(expected, axis, -1)
        for place in np.ndindex(rows.shape[:-1]):
            rows[place] = list(itertools.accumulate(rows[place], COMBINE[op]))
        got = value_of(graph.scan(op, leaf(values), axis))
        np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_combining_integers_and_bools():
    x = leaf(np.array([100, 100, -3], np.int8))
    assert value_of(graph.reduce(Op.ADD, x, (0,))) == 197 - 256
    assert value_of(graph.reduce(Op.MUL, x, (0,))) == np.int64(-30000).astype(np.int8)
    assert value_of(graph.reduce(Op.MAX, leaf(np.zeros(0, np.int8)), (0,))) == -128
    flags = leaf(np.array([[True, False], [True, True], [False, False]]))
    for op, fn in ((Op.ADD, np.any), (Op.MUL, np.all), (Op.MAX, np.any)):
        np.testing.assert_array_equal(
            value_of(graph.reduce(op, flags, (1,))), fn(value_of(flags), 1)
        )
    np.testing.assert_array_equal(value_of(graph.scan(Op.ADD, flags, 0))[:, 1], [False, True, True])


def test_maximum_passes_nan_on():
    x = leaf(np.array([1.0, math.nan, 3.0]))
    assert math.isnan(value_of(graph.reduce(Op.MAX, x, (0,))))
    np.testing.assert_array_equal(value_of(graph.scan(Op.MAX, x, 0)), [1, math.nan, math.nan])


# --- index -------------------------------------------------------------------------------------

COMBINE_UPDATE = {"set": lambda a, b: b, "add": COMBINE[Op.ADD], "mul": COMBINE[Op.MUL],
                  "max": max, "min": min}  # fmt: skip

shapes = st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple)


@given(shapes, st.data())
def test_gather_and_scatter_by_brute_force(shape, data):
    axis = data.draw(st.integers(0, len(shape) - 1))
    extent = data.draw(st.integers(0, 5))
    index_shape = (*shape[:axis], extent, *shape[axis + 1 :])
    cells = data.draw(st.lists(st.integers(-2, 6), min_size=60, max_size=60))
    index = np.resize(np.array(cells), index_shape).astype(np.int16)
    x, y = random_array(shape), random_array(index_shape, 1)
    read = np.zeros(index_shape)
    written = {mode: np.array(x) for mode in ops.SCATTER_MODES}
    for place in np.ndindex(index_shape):
        cell = (*place[:axis], int(index[place]), *place[axis + 1 :])
        if 0 <= index[place] < shape[axis]:
            read[place] = x[cell]
            for mode, result in written.items():
                result[cell] = COMBINE_UPDATE[mode](result[cell], y[place])
    np.testing.assert_array_equal(value_of(graph.gather(leaf(x), leaf(index), axis)), read)
    for mode, result in written.items():
        node = graph.scatter(leaf(x), leaf(index), leaf(y), axis, mode)
        np.testing.assert_array_equal(value_of(node), result, err_msg=mode)


def test_huge_unsigned_indices_are_out_of_range():
    index = leaf(np.array([2**64 - 1, 1, 2**63], np.uint64))
    x = leaf(np.array([5.0, 6.0]))
    np.testing.assert_array_equal(value_of(graph.gather(x, index, 0)), [0, 6, 0])
    y = leaf(np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(value_of(graph.scatter(x, index, y, 0, "add")), [5, 8])


def test_scatter_into_an_array_that_is_not_row_major():
    x = random_array((2, 3))
    index, y = np.array([[1, 1], [0, 5], [1, 0]]), random_array((3, 2), 1)
    turned = graph.move(Op.PERMUTE, leaf(x), (1, 0))
    got = value_of(graph.scatter(turned, leaf(index), leaf(y), 1, "add"))
    expected = value_of(graph.scatter(leaf(x.T.copy()), leaf(index), leaf(y), 1, "add"))
    np.testing.assert_array_equal(got, expected)
    assert (got != x.T).sum() == 4


def _before(a: float, b: float) -> bool:
    return not math.isnan(a) and (math.isnan(b) or a < b)


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.0, math.inf, -math.inf, math.nan]), max_size=9))
def test_sort_is_stable_with_nan_as_the_greatest(values):
    for descending in (False, True):

        def compare(i: int, j: int, descending: bool = descending) -> int:
            a, b = (values[j], values[i]) if descending else (values[i], values[j])
            return -1 if _before(a, b) else int(_before(b, a))

        expected = sorted(range(len(values)), key=functools.cmp_to_key(compare))
        got = value_of(graph.sort(leaf(np.array(values, np.float64)), 0, descending))
        assert got.tolist() == expected


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_sort_along_an_axis(axis):
    x = np.random.default_rng(0).integers(0, 3, (3, 5, 2)).astype(np.int8)
    order = value_of(graph.sort(leaf(x), axis))
    np.testing.assert_array_equal(np.take_along_axis(x, order, axis), np.sort(x, axis))
    down = value_of(graph.sort(leaf(x), axis, True))
    np.testing.assert_array_equal(np.take_along_axis(x, down, axis), -np.sort(-x, axis))


def test_sort_of_extreme_integers_and_bools():
    x = np.array([0, 255, 0, 7], np.uint8)  # negation would wrap
    assert value_of(graph.sort(leaf(x), 0, True)).tolist() == [1, 3, 0, 2]
    y = np.array([-(2**63), 2**63 - 1, 0])
    assert value_of(graph.sort(leaf(y), 0, True)).tolist() == [1, 2, 0]
    assert value_of(graph.sort(leaf(np.array([True, False, True])), 0, True)).tolist() == [0, 2, 1]


# --- memory and calls --------------------------------------------------------------------------


def test_memory_operations_and_marks_are_the_identity():
    x, target = leaf(random_array((3,))), leaf(np.zeros(3))
    twice = graph.alu(Op.ADD, x, x)
    marked = graph.detach(twice), graph.detach(twice, 3)
    copied = graph.copy(twice, "elsewhere")
    for node in (graph.contiguous(twice), graph.store(target, twice), copied, *marked):
        assert node is not twice
        np.testing.assert_array_equal(value_of(node), 2 * value_of(x))
    assert not value_of(target).any(), "evaluation does not write"


def test_host_calls():
    x, y = leaf(random_array((3,))), leaf(random_array((3,), 1), dt.bfloat16)
    call = HostCall(lambda a, b: np.outer(a, b), "outer", (3, 3), dt.float32)
    got = value_of(graph.host(call, x, y))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.outer(value_of(x), value_of(y)), rtol=1e-6)
    wrong = HostCall(lambda a: a[:2], "cut", (3,), dt.float64)
    with pytest.raises(ShapeError, match=r"cut: got .*\(2,\), expected .*\(3,\)"):
        value_of(graph.host(wrong, x))


def test_common_parts_are_computed_once():
    calls = []
    call = HostCall(lambda a: calls.append(1) or a + 1, "count", (3,), dt.float64)
    y = graph.host(call, leaf(np.zeros(3)))
    values = interpret.evaluate_all(
        [y, graph.alu(Op.ADD, y, y), y, graph.alu(Op.NEG, y)], lambda memory: memory.memory
    )
    assert len(calls) == 1
    assert [v[0] for v in values] == [1, 2, 1, -1]


def test_nothing_to_evaluate():
    assert interpret.evaluate_all([]) == []
