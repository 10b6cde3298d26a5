"""Movement operations: index maps against NumPy, adjoints by inner products, golden indices."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mygrad import expr as ex
from mygrad import movement as mv
from mygrad.errors import IndexRangeError, ShapeError
from mygrad.ops import MOVEMENT, Op

LARGEST = 600


@st.composite
def shapes(draw):
    return tuple(draw(st.lists(st.sampled_from([0, 1, 1, 2, 3, 4, 5, 6, 7]), max_size=4)))


def _factors(draw, total):
    """A random shape with `total` elements."""
    shape = []
    while total > 1:
        shape.append(draw(st.sampled_from([d for d in range(2, total + 1) if total % d == 0])))
        total //= shape[-1]
    for _ in range(draw(st.integers(0, 2))):
        shape.insert(draw(st.integers(0, len(shape))), 1)
    return tuple(shape)


def _reshape(draw, shape):
    if math.prod(shape) == 0:
        return tuple(draw(st.permutations(shape)))
    return _factors(draw, math.prod(shape))


def _expand(draw, shape):
    lead = tuple(draw(st.lists(st.integers(0, 3), max_size=1)))
    return lead + tuple(draw(st.integers(0, 4)) if extent == 1 else extent for extent in shape)


def _shrink(draw, shape):
    starts = [draw(st.integers(0, min(extent, 2))) for extent in shape]
    return tuple(
        (start, draw(st.integers(max(start, extent - 2), extent)))
        for start, extent in zip(starts, shape, strict=True)
    )


def _window(draw, shape):
    fitting = [axis for axis, extent in enumerate(shape) if extent]
    if not fitting:
        return None
    axis = draw(st.sampled_from(fitting))
    size = draw(st.integers(1, min(shape[axis], 4)))
    most = (shape[axis] - 1) // (size - 1) if size > 1 else 3
    return axis, size, draw(st.integers(1, 3)), draw(st.integers(1, min(most, 3)))


def _unwindow(draw, shape):
    if len(shape) < 2:
        return None
    return (
        draw(st.integers(0, len(shape) - 2)),
        draw(st.integers(0, 9)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 3)),
    )


DRAW = {
    Op.RESHAPE: _reshape,
    Op.PERMUTE: lambda draw, shape: tuple(draw(st.permutations(range(len(shape))))),
    Op.EXPAND: _expand,
    Op.PAD: lambda draw, shape: tuple(
        (draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in shape
    ),
    Op.SHRINK: _shrink,
    Op.FLIP: lambda draw, shape: tuple(axis for axis in range(len(shape)) if draw(st.booleans())),
    Op.WINDOW: _window,
    Op.UNWINDOW: _unwindow,
}


@st.composite
def steps_on(draw, shape, most=6):
    steps = []
    for _ in range(draw(st.integers(1, most))):
        op = draw(st.sampled_from(list(DRAW)))
        arg = DRAW[op](draw, shape)
        if arg is None:
            continue
        new = mv.out_shape(op, shape, arg)
        if math.prod(new) > LARGEST or len(new) > 6:
            continue
        steps.append((op, arg))
        shape = new
    return steps


@st.composite
def chains(draw, most=6):
    shape = draw(shapes())
    if math.prod(shape) > LARGEST:
        shape = shape[:2]
    return shape, draw(steps_on(shape, most))


def numbers(shape, start=1):
    return np.arange(start, start + math.prod(shape), dtype=np.int64).reshape(shape)


def gather(array, axes, index, valid):
    """What reading `array` through an index map gives on the whole grid of `axes`."""
    shape = tuple(a.arg[1] for a in axes)
    grid = np.meshgrid(*(np.arange(extent) for extent in shape), indexing="ij", sparse=True)
    env = dict(zip(axes, grid, strict=True))
    inside = np.broadcast_to(True if valid is None else ex.evaluate(valid, env), shape)
    if array.size == 0:
        assert not inside.any()
        return np.zeros(shape, array.dtype)
    places = tuple(np.broadcast_to(ex.evaluate(at, env), shape) for at in index)
    for at, extent in zip(places, array.shape, strict=True):
        assert ((at >= 0) & (at < extent))[inside].all()
    found = (
        array[tuple(np.where(inside, at, 0) for at in places)]
        if places
        else np.broadcast_to(array, shape)
    )
    return np.where(inside, found, 0)


@settings(max_examples=180, deadline=None)
@given(chains())
def test_chains_of_index_maps_read_what_numpy_moves(case):
    shape, steps = case
    array = want = numbers(shape)
    for op, arg in steps:
        want = mv.apply(op, want, arg)
    axes = tuple(ex.axis(n, extent) for n, extent in enumerate(want.shape))
    index, valid = mv.chain(shape, steps, axes)
    np.testing.assert_array_equal(gather(array, axes, index, valid), want)


@settings(max_examples=120, deadline=None)
@given(chains(most=1), st.data())
def test_adjoints_satisfy_the_inner_product_test(case, data):
    shape, steps = case
    for op, arg in steps:
        x = numbers(shape) * 7 % 19 - 9
        y = mv.apply(op, x, arg)
        cotangent = numbers(y.shape) * 5 % 23 - 11
        back = cotangent
        for step, step_arg in mv.adjoint(op, shape, arg):
            if step is Op.REDUCE:
                assert step_arg[0] is Op.ADD
                back = back.sum(step_arg[1])
            else:
                back = mv.apply(step, back, step_arg)
        assert back.shape == shape
        assert int((y * cotangent).sum()) == int((x * back).sum())


@settings(max_examples=180, deadline=None)
@given(chains(most=2))
def test_merged_movements_are_the_two_in_sequence(case):
    shape, steps = case
    x = numbers(shape)
    for op, arg in steps:
        if mv.is_noop(op, x.shape, arg):
            np.testing.assert_array_equal(mv.apply(op, x, arg), x)
        x = mv.apply(op, x, arg)
    if len(steps) == 2:
        merged = mv.merge(*steps[0], *steps[1], shape)
        if merged is not None:
            np.testing.assert_array_equal(mv.apply(merged[0], numbers(shape), merged[1]), x)


@pytest.mark.parametrize(
    ("first", "second", "shape", "want"),
    [
        ((Op.RESHAPE, (6, 4)), (Op.RESHAPE, (2, 12)), (24,), (Op.RESHAPE, (2, 12))),
        ((Op.PERMUTE, (1, 2, 0)), (Op.PERMUTE, (1, 2, 0)), (2, 3, 4), (Op.PERMUTE, (2, 0, 1))),
        ((Op.SHRINK, ((1, 6),)), (Op.SHRINK, ((1, 3),)), (7,), (Op.SHRINK, ((2, 4),))),
        ((Op.PAD, ((1, 2),)), (Op.PAD, ((3, 0),)), (7,), (Op.PAD, ((4, 2),))),
        ((Op.PAD, ((1, 2),)), (Op.SHRINK, ((1, 8),)), (7,), (Op.SHRINK, ((0, 7),))),
        ((Op.PAD, ((1, 2),)), (Op.SHRINK, ((0, 8),)), (7,), (Op.PAD, ((1, 0),))),
        ((Op.PAD, ((1, 2),)), (Op.SHRINK, ((0, 5),)), (7,), None),
        ((Op.FLIP, (0, 1)), (Op.FLIP, (1,)), (2, 3), (Op.FLIP, (0,))),
        ((Op.EXPAND, (3, 4)), (Op.EXPAND, (2, 3, 4)), (4,), (Op.EXPAND, (2, 3, 4))),
        ((Op.PERMUTE, (1, 0)), (Op.RESHAPE, (5,)), (5, 1), (Op.RESHAPE, (5,))),
        ((Op.PERMUTE, (1, 0)), (Op.RESHAPE, (6,)), (2, 3), None),
        ((Op.WINDOW, (0, 3, 1, 1)), (Op.FLIP, (0,)), (7,), None),
    ],
)
def test_merge(first, second, shape, want):
    assert mv.merge(*first, *second, shape) == want


# --- typical chains leave nothing behind ----------------------------------------------------------


def indices(shape, steps):
    out = shape
    for op, arg in steps:
        out = mv.out_shape(op, out, arg)
    index, valid = mv.chain(shape, steps, tuple(ex.axis(n, extent) for n, extent in enumerate(out)))
    bare = str.maketrans("", "", "()")
    return [str(at).translate(bare) for at in index], None if valid is None else str(
        valid
    ).translate(bare)


GOLDEN = {
    "merge axes": (
        (2, 3, 4),
        [(Op.RESHAPE, (2, 12)), (Op.RESHAPE, (2, 3, 4))],
        ["i0", "i1", "i2"],
        None,
    ),
    "split an axis": ((24,), [(Op.RESHAPE, (2, 3, 4))], ["i0 * 12 + i1 * 4 + i2"], None),
    "unit axes": ((1, 5, 1, 3), [(Op.RESHAPE, (5, 1, 3, 1))], ["0", "i0", "0", "i2"], None),
    "regroup by a common factor": (
        (8, 3),
        [(Op.RESHAPE, (2, 12)), (Op.RESHAPE, (2, 4, 3))],
        ["i0 * 4 + i1", "i2"],
        None,
    ),
    "heads of attention": (
        (4, 7, 24),
        [
            (Op.RESHAPE, (4, 7, 3, 8)),
            (Op.PERMUTE, (0, 2, 1, 3)),
            (Op.RESHAPE, (12, 7, 8)),
            (Op.RESHAPE, (4, 3, 7, 8)),
            (Op.PERMUTE, (0, 2, 1, 3)),
            (Op.RESHAPE, (4, 7, 24)),
        ],
        ["i0", "i1", "i2"],
        None,
    ),
    "transposed reshape": (
        (6, 4),
        [(Op.PERMUTE, (1, 0)), (Op.RESHAPE, (2, 2, 6)), (Op.RESHAPE, (4, 6))],
        ["i1", "i0"],
        None,
    ),
    "windows of an image": (
        (2, 3, 8, 8),
        [(Op.WINDOW, (2, 3, 1, 1)), (Op.WINDOW, (4, 3, 1, 1))],
        ["i0", "i1", "i2 + i3", "i4 + i5"],
        None,
    ),
    "windows flattened and split": (
        (2, 8),
        [(Op.WINDOW, (1, 3, 2, 1)), (Op.RESHAPE, (2, 9)), (Op.RESHAPE, (2, 3, 3))],
        ["i0", "i1 * 2 + i2"],
        None,
    ),
    "padded image": (
        (8,),
        [(Op.PAD, ((1, 1),)), (Op.WINDOW, (0, 3, 1, 1))],
        ["i0 + i1 + -1"],
        "0 < i0 + i1 & i0 + i1 < 9",
    ),
    "pad that is cut away": ((8,), [(Op.PAD, ((1, 3),)), (Op.SHRINK, ((1, 9),))], ["i0"], None),
    "diagonal": (
        (5, 5),
        [
            (Op.RESHAPE, (25,)),
            (Op.PAD, ((0, 5),)),
            (Op.RESHAPE, (5, 6)),
            (Op.SHRINK, ((0, 5), (0, 1))),
            (Op.RESHAPE, (5,)),
        ],
        ["i0", "i0"],
        None,
    ),
    "repeat": (
        (5,),
        [(Op.RESHAPE, (5, 1)), (Op.EXPAND, (5, 3)), (Op.RESHAPE, (15,)), (Op.RESHAPE, (5, 3))],
        ["i0"],
        None,
    ),
    "pixel shuffle": (
        (12, 5, 7),
        [
            (Op.RESHAPE, (3, 2, 2, 5, 7)),
            (Op.PERMUTE, (0, 3, 1, 4, 2)),
            (Op.RESHAPE, (3, 10, 14)),
            (Op.RESHAPE, (3, 5, 2, 7, 2)),
        ],
        ["i0 * 4 + i2 * 2 + i4", "i1", "i3"],
        None,
    ),
    "unwindow of one": (
        (7, 1, 3),
        [(Op.UNWINDOW, (0, 7, 1, 2)), (Op.RESHAPE, (7, 3))],
        ["i0", "0", "i1"],
        None,
    ),
    "gradient of a window": (
        (3, 3),
        [(Op.UNWINDOW, (0, 7, 2, 2)), (Op.SHRINK, ((4, 5), (0, 3)))],
        ["i1 * -1 + 2", "i1"],
        None,
    ),
    "flip twice": ((7,), [(Op.FLIP, (0,)), (Op.FLIP, (0,))], ["i0"], None),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_indices(name):
    shape, steps, want, valid = GOLDEN[name]
    found, condition = indices(shape, steps)
    assert found == want
    assert condition == valid


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_adjoint_of_unwindow_reads_without_division(stride, dilation):
    shape, arg = (2, 5, 3, 4), (1, 5 * stride + 3 * dilation, stride, dilation)
    steps = mv.adjoint(Op.UNWINDOW, shape, arg)
    out = mv.out_shape(Op.UNWINDOW, shape, arg)
    axes = tuple(ex.axis(n, extent) for n, extent in enumerate(shape))
    index, valid = mv.chain(out, steps, axes)
    n, o, k, c = axes
    assert index == (n, o * stride + k * dilation, k, c)
    assert valid is None


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "shape", "arg", "error", "words"),
    [
        (Op.RESHAPE, (2, 3), (4,), ShapeError, "6 elements"),
        (Op.RESHAPE, (2, 3), (-1, 6), ShapeError, "0 or more"),
        (Op.RESHAPE, (0, 3), (1,), ShapeError, "0 elements"),
        (Op.PERMUTE, (2, 3), (0, 0), ShapeError, "exactly once"),
        (Op.PERMUTE, (2, 3), (0,), ShapeError, "exactly once"),
        (Op.PERMUTE, (2, 3), (0, 2), IndexRangeError, "axis 2"),
        (Op.EXPAND, (2, 3), (4, 3), ShapeError, "equal or 1"),
        (Op.EXPAND, (2, 3), (3,), ShapeError, "equal or 1"),
        (Op.EXPAND, (0,), (1,), ShapeError, "equal or 1"),
        (Op.PAD, (2, 3), ((0, 1),), ShapeError, "2 pairs"),
        (Op.PAD, (2,), ((-1, 1),), ShapeError, "shrink"),
        (Op.SHRINK, (2,), ((0, 3),), IndexRangeError, "0 <= start"),
        (Op.SHRINK, (2,), ((2, 1),), IndexRangeError, "0 <= start"),
        (Op.SHRINK, (2,), ((0, 1), (0, 1)), ShapeError, "1 pairs"),
        (Op.FLIP, (2,), (1,), IndexRangeError, "axis 1"),
        (Op.FLIP, (2,), (-1,), IndexRangeError, "axis -1"),
        (Op.FLIP, (2,), (0, 0), ShapeError, "at most once"),
        (Op.WINDOW, (4,), (0, 5, 1, 1), ShapeError, "fits the axis"),
        (Op.WINDOW, (4,), (0, 3, 1, 2), ShapeError, "fits the axis"),
        (Op.WINDOW, (4,), (0, 0, 1, 1), ShapeError, "at least 1"),
        (Op.WINDOW, (4,), (0, 2, 0, 1), ShapeError, "stride 0"),
        (Op.WINDOW, (), (0, 1, 1, 1), IndexRangeError, "axis 0"),
        (Op.UNWINDOW, (4,), (0, 5, 1, 1), IndexRangeError, "axis 1"),
        (Op.UNWINDOW, (4, 2), (0, -1, 1, 1), ShapeError, "0 or more"),
        (Op.UNWINDOW, (4, 2), (0, 5, 1, 0), ShapeError, "dilation 0"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(op, shape, arg, error, words):
    with pytest.raises(error, match=words) as caught:
        mv.out_shape(op, shape, arg)
    assert str(caught.value).startswith(op.name.lower() + ": got ")


def test_the_table_is_total():
    assert set(mv.TABLE) == MOVEMENT == set(DRAW)
