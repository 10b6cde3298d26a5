"""Indexing against NumPy, by Hypothesis; gather, scatter, sort and search against PyTorch and
NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from checks import check_op, random_array
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted import interpreted  # noqa: F401
from peers import torch

from mygrad import Tensor, context
from mygrad.capture import Capture
from mygrad.errors import CaptureError, DTypeError, IndexRangeError, ShapeError

pytestmark = pytest.mark.usefixtures("interpreted")

Array = np.ndarray[Any, Any]


def numbered(shape: tuple[int, ...]) -> Array:
    return np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape) + 1


@st.composite
def slices(draw: st.DrawFn, n: int) -> slice:
    bound = st.none() | st.integers(-n - 2, n + 2)
    step = st.none() | st.integers(-3, 3).filter(lambda s: s != 0)
    return slice(draw(bound), draw(bound), draw(step))


@st.composite
def indexed(draw: st.DrawFn) -> tuple[tuple[int, ...], Any]:
    """A shape and an index that NumPy takes: integers, slices, None, Ellipsis, index arrays."""
    shape = tuple(draw(st.lists(st.integers(0, 4), min_size=1, max_size=4)))
    broadcast = draw(st.sampled_from([(), (2,), (3,), (2, 3), (1,)]))
    items: list[Any] = []
    for n in shape[: draw(st.integers(0, len(shape)))]:
        kinds = ["slice"] if n == 0 else ["slice", "int", "array", "tensor"]
        kind = draw(st.sampled_from(kinds))
        if kind == "slice":
            items.append(draw(slices(n)))
        elif kind == "int":
            items.append(draw(st.integers(-n, n - 1)))
        else:
            size = int(np.prod(broadcast))
            values = draw(st.lists(st.integers(-n, n - 1), min_size=size, max_size=size))
            array = np.array(values, np.int64).reshape(broadcast)
            items.append(array if kind == "array" else Tensor(array))
    for _ in range(draw(st.integers(0, 2))):
        items.insert(draw(st.integers(0, len(items))), None)
    if draw(st.booleans()):
        items.append(Ellipsis)
    return shape, tuple(items)


def plain(index: Any) -> Any:
    """The index for NumPy."""
    return tuple(i.numpy() if isinstance(i, Tensor) else i for i in index)


@given(indexed())
@settings(max_examples=150)
def test_getitem_is_numpys(case: tuple[tuple[int, ...], Any]) -> None:
    shape, index = case
    x = numbered(shape)
    expected = x[plain(index)]
    got = Tensor(x)[index]
    assert got.shape == expected.shape
    np.testing.assert_array_equal(got.numpy(), expected)


@given(indexed())
@settings(max_examples=100)
def test_setitem_is_numpys(case: tuple[tuple[int, ...], Any]) -> None:
    shape, index = case
    expected = numbered(shape)
    value = -numbered(expected[plain(index)].shape)
    x = Tensor(expected)
    x[index] = Tensor(value)
    expected[plain(index)] = value
    np.testing.assert_array_equal(x.numpy(), expected)


@given(indexed())
@settings(max_examples=40)
def test_gradient_of_getitem_counts_reads(case: tuple[tuple[int, ...], Any]) -> None:
    shape, index = case
    x = Tensor(numbered(shape), requires_grad=True)
    picked = x[index]
    weights = numbered(picked.shape)
    (picked * Tensor(weights)).sum().backward()
    expected = np.zeros(shape, np.float32)
    np.add.at(expected, plain(index), weights)
    np.testing.assert_array_equal(x.grad.numpy(), expected)


def test_separated_index_arrays_go_to_the_front() -> None:
    x = numbered((2, 3, 4))
    for index in ((0, slice(None), [1, 2]), ([0, 1], slice(None), [1, 2]), ([0, 1], None, [1, 2])):
        np.testing.assert_array_equal(Tensor(x)[index].numpy(), x[index])


def test_masks() -> None:
    x, mask = numbered((3, 4)), numbered((3, 4)) % 3 == 0
    rows = np.array([True, False, True])
    np.testing.assert_array_equal(Tensor(x)[Tensor(mask)].numpy(), x[mask])
    np.testing.assert_array_equal(Tensor(x)[mask].numpy(), x[mask])
    np.testing.assert_array_equal(Tensor(x)[Tensor(rows)].numpy(), x[rows])
    np.testing.assert_array_equal(Tensor(x)[rows, 1:].numpy(), x[rows, 1:])
    np.testing.assert_array_equal(Tensor(x)[:, [True, False, True, True]].numpy(), x[:, [0, 2, 3]])
    np.testing.assert_array_equal(Tensor(x).masked_select(Tensor(mask)).numpy(), x[mask])
    assert Tensor(x)[Tensor(x) > 100].shape == (0,)


def test_mask_assignment() -> None:
    for value in (0.0, numbered((4,)), np.float32(5)):
        expected, rows = numbered((3, 4)), np.array([True, False, True])
        x = Tensor(expected)
        x[Tensor(rows)] = value if np.ndim(value) == 0 else Tensor(value)
        expected[rows] = value
        np.testing.assert_array_equal(x.numpy(), expected)
    expected = numbered((3, 4))
    x, mask = Tensor(expected), expected % 3 == 0
    x[Tensor(mask)] = Tensor(numbered((4,)))
    expected[mask] = numbered((4,))
    np.testing.assert_array_equal(x.numpy(), expected)


def test_assignment_changes_no_other_tensor() -> None:
    x = Tensor([1.0, 2.0, 3.0])
    view, double = x[:2], x * 2
    x[0] = 9
    assert view.tolist() == [1, 2]
    assert double.tolist() == [2, 4, 6]
    assert x.tolist() == [9, 2, 3]


def test_assignment_carries_gradients() -> None:
    value, x = Tensor([5.0], requires_grad=True), Tensor([1.0, 2.0, 3.0]) * 1
    x[1] = value[0]
    (x * Tensor([1.0, 10.0, 100.0])).sum().backward()
    assert value.grad.tolist() == [10]


def test_last_of_equal_indices_wins() -> None:
    x = Tensor.zeros(3)
    x[Tensor([1, 1, 1])] = Tensor([1.0, 2.0, 3.0])
    assert x.tolist() == [0, 3, 0]


def test_tensor_index_out_of_range_reads_zero_and_writes_nothing() -> None:
    x, index = Tensor(numbered((2, 3))), Tensor([0, 5])
    assert x[index].tolist() == [[1, 2, 3], [0, 0, 0]]
    assert x[index, Tensor([1, 1])].tolist() == [2, 0]
    assert x[Tensor([0, 0]), Tensor([1, 3])].tolist() == [2, 0]  # not the next row
    x[index] = 0.0
    assert x.tolist() == [[0, 0, 0], [4, 5, 6]]


def test_checked_mode_refuses_out_of_range_tensors() -> None:
    x = Tensor(numbered((2, 3)))
    with context(CHECK=True):
        assert x[Tensor([1, -2])].shape == (2, 3)
        with pytest.raises(IndexRangeError, match="5 on axis 0"):
            x[Tensor([0, 5])]
        with pytest.raises(IndexRangeError):
            x.gather(1, Tensor([[3], [0]]))


@pytest.mark.parametrize(
    ("index", "error"),
    [
        (2, IndexRangeError),
        (-3, IndexRangeError),
        ((0, 0, 0), IndexRangeError),
        ([0, 2], IndexRangeError),
        ((Ellipsis, Ellipsis), IndexRangeError),
        (slice(None, None, 0), IndexRangeError),
        (1.5, DTypeError),
        (True, DTypeError),
        (np.array([True]), IndexRangeError),
    ],
)
def test_bad_indices(index: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Tensor(numbered((2, 3)))[index]


def test_bad_assignments() -> None:
    x = Tensor([1, 2, 3])
    with pytest.raises(DTypeError):
        x[0] = 1.5
    with pytest.raises(DTypeError):
        x[0] = Tensor(1.5)
    with pytest.raises(ShapeError):
        x[:2] = Tensor([1, 2, 3])


def test_masks_are_refused_during_capture() -> None:
    x = Tensor([1.0, 2.0])
    with Capture(lambda lazy: lazy._node), pytest.raises(CaptureError, match="where"):
        x[x > 1]


# --- gather and scatter --------------------------------------------------------------------------

INDEX = np.array([[0, 1, 1, 0], [2, 0, 1, 2]])


def test_gather() -> None:
    index = torch.tensor(INDEX)
    check_op(
        lambda x: x.gather(0, Tensor(INDEX)), (3, 4), torch_fn=lambda x: x.gather(0, index), low=0
    )
    check_op(
        lambda x: x.gather(1, Tensor(INDEX[:, :2])),
        (3, 4),
        torch_fn=lambda x: x.gather(1, index[:, :2]),
    )


@pytest.mark.parametrize("mode", ["set", "add", "mul"])
@pytest.mark.filterwarnings("ignore:The reduce argument")
def test_scatter(mode: str) -> None:
    index = np.array(
        [[0, 2, 1, 0], [2, 0, 0, 1]]
    )  # distinct in each column: PyTorch's order is open
    at = torch.tensor(index)
    kwargs = {"set": {}, "add": {"reduce": "add"}, "mul": {"reduce": "multiply"}}[mode]
    x, y = random_array((3, 5)), random_array((2, 6), 1)
    got = Tensor(x).scatter(0, Tensor(index), Tensor(y), **kwargs)
    expected = torch.tensor(x).scatter(0, at, torch.tensor(y), **kwargs)
    np.testing.assert_allclose(got.numpy(), expected.numpy(), 1e-12)


def test_scatter_add_and_its_gradient() -> None:
    at = torch.tensor(INDEX)
    check_op(
        lambda x, y: x.scatter_add(0, Tensor(INDEX), y),
        (3, 4),
        (2, 4),
        torch_fn=lambda x, y: x.scatter_add(0, at, y),
    )


@pytest.mark.parametrize("reduce", ["sum", "prod", "amax", "amin", "mean"])
@pytest.mark.parametrize("include_self", [True, False])
def test_scatter_reduce(reduce: str, include_self: bool) -> None:
    x, y = random_array((3, 4)), random_array((2, 4), 1)
    got = Tensor(x).scatter_reduce(0, Tensor(INDEX), Tensor(y), reduce, include_self)
    expected = torch.tensor(x).scatter_reduce(
        0, torch.tensor(INDEX), torch.tensor(y), reduce, include_self=include_self
    )
    np.testing.assert_allclose(got.numpy(), expected.numpy(), 1e-12)


def test_take_along_axis_and_index_add() -> None:
    x = random_array((3, 4))
    index = np.array([[0, -1]])
    np.testing.assert_array_equal(
        Tensor(x).take_along_axis(Tensor(index), 1).numpy(),
        np.take_along_axis(x, np.repeat(index, 3, 0), 1),
    )
    rows = torch.tensor([0, 2, 0])
    check_op(
        lambda a, b: a.index_add(0, Tensor([0, 2, 0]), b),
        (3, 4),
        (3, 4),
        torch_fn=lambda a, b: a.index_add(0, rows, b),
    )


def test_index_put_accumulates_all() -> None:
    x = Tensor.zeros(3).index_put((Tensor([1, 1, 2]),), Tensor([1.0, 2.0, 3.0]), accumulate=True)
    assert x.tolist() == [0, 3, 3]


# --- order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 0), (2, 3, 4)])
@pytest.mark.parametrize("descending", [False, True])
def test_sort(shape: tuple[int, ...], descending: bool) -> None:
    x = (random_array(shape) * 2).round()  # with equal elements
    values, order = Tensor(x).sort(-1, descending)
    expected, places = torch.tensor(x).sort(dim=-1, descending=descending, stable=True)
    np.testing.assert_array_equal(values.numpy(), expected.numpy())
    np.testing.assert_array_equal(order.numpy(), places.numpy())


def test_sort_puts_nan_last() -> None:
    assert Tensor([2.0, float("nan"), -float("inf")]).argsort().tolist() == [2, 0, 1]


def test_topk_and_kthvalue_with_gradients() -> None:
    for largest in (True, False):
        check_op(
            lambda x, largest=largest: x.topk(2, 1, largest)[0],
            (3, 5),
            torch_fn=lambda x, largest=largest: x.topk(2, 1, largest)[0],
        )
    check_op(lambda x: x.kthvalue(2, 1)[0], (3, 5))
    assert Tensor([3.0, 1.0, 2.0, 9.0]).median().item() == 2
    with pytest.raises(ShapeError):
        Tensor([1.0]).topk(2)


@given(st.lists(st.integers(-5, 5), max_size=9), st.booleans())
def test_searchsorted(values: list[int], right: bool) -> None:
    wanted = np.arange(-6, 7)
    got = Tensor(np.sort(np.array(values, np.int64))).searchsorted(Tensor(wanted), right)
    expected = np.searchsorted(np.sort(values), wanted, "right" if right else "left")
    np.testing.assert_array_equal(got.numpy(), expected)


def test_what_reads_values() -> None:
    x = np.array([[3, 1, 0], [1, 3, 3]])
    np.testing.assert_array_equal(Tensor(x).nonzero().numpy(), np.argwhere(x))
    values, inverse, counts = Tensor(x).unique(return_inverse=True, return_counts=True)
    assert values.tolist() == [0, 1, 3]
    assert counts.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(values.numpy()[inverse.numpy()], x)
