"""Reductions and running combinations against PyTorch and NumPy."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from checks import assert_close, check_op, random_array
from hypothesis import given
from hypothesis import strategies as st
from interpreted import interpreted  # noqa: F401
from peers import torch

from mygrad import Tensor, dtypes
from mygrad.errors import IndexRangeError, ShapeError

pytestmark = pytest.mark.usefixtures("interpreted")
INF, NAN = math.inf, math.nan

SAME = {
    "sum": lambda x: x.sum(),
    "sum 1": lambda x: x.sum(1),
    "sum keep": lambda x: x.sum((0, 2), keepdim=True),
    "sum dim": lambda x: x.sum(dim=-1),
    "mean": lambda x: x.mean((0, 1)),
    "amax": lambda x: x.amax(1),
    "amin": lambda x: x.amin((0, 1), keepdim=True),
    "prod": lambda x: x.prod(1),
    "var": lambda x: x.var(1),
    "var 0": lambda x: x.var((0, 2), correction=0, keepdim=True),
    "std": lambda x: x.std(2),
    "norm": lambda x: x.norm(),
    "norm 3": lambda x: x.norm(3, 1),
    "norm 1": lambda x: x.norm(1, (0, 2), keepdim=True),
    "norm inf": lambda x: x.norm(INF, 1),
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "logsumexp": lambda x: x.logsumexp((1, 2)),
    "cumsum": lambda x: x.cumsum(1),
    "cumprod": lambda x: x.cumprod(-1),
    "cummax": lambda x: x.cummax(1)[0],
    "cummin": lambda x: x.cummin(0)[0],
}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.filterwarnings("ignore:var")
def test_like_pytorch(name: str) -> None:
    check_op(SAME[name], (2, 4, 5))
    check_op(SAME[name], (3, 1, 7), dtype="float64")


@pytest.mark.parametrize(
    "name", ["sum", "mean", "var", "softmax", "logsumexp", "prod", "norm", "cumsum"]
)
def test_half_types_accumulate_in_float32(name: str) -> None:
    x = random_array((3, 3000), low=0.5, high=1.0)
    for dtype in ("float16", "bfloat16"):
        t = Tensor(x, dtype=dtype)
        got = getattr(t, name)(*((1,) if name != "norm" else (2, 1)))
        exact = getattr(torch.tensor(t.numpy(), dtype=torch.float64), name)
        expected = exact(*((1,) if name != "norm" else (2, 1))).numpy()
        assert got.dtype.name == dtype
        keep = expected < 60000
        assert_close(
            got.numpy()[keep].astype(float),
            expected[keep],
            1e-3 if dtype == "float16" else 8e-3,
            1e-6,
        )


@pytest.mark.parametrize("name", ["bool", "uint8", "int8", "int32", "int64"])
def test_integer_sums_are_int64(name: str) -> None:
    x = np.array([[100, 100, 1], [100, 0, 5]]).astype(name)
    assert Tensor(x).sum(1).dtype is dtypes.int64
    assert Tensor(x).sum(1).tolist() == x.sum(1, dtype=np.int64).tolist()
    assert Tensor(x).prod().tolist() == x.prod(dtype=np.int64).item()
    assert Tensor(x).cumsum(1).tolist() == x.cumsum(1, dtype=np.int64).tolist()
    assert Tensor(x).max(1).tolist() == x.max(1).tolist()
    assert Tensor(x).min().dtype.name == name
    assert Tensor(x).mean().dtype is dtypes.float32


def test_smallest_integers() -> None:
    assert Tensor(np.array([-128, 127], np.int8)).min().item() == -128
    assert Tensor(np.array([0, 255], np.uint8)).min().item() == 0
    assert Tensor([False, True]).min().item() is False


def test_any_and_all() -> None:
    x = np.array([[0.0, NAN, 1], [0, 0, 0]])
    assert Tensor(x).any(1).tolist() == x.any(1).tolist()
    assert Tensor(x).all(0).tolist() == x.all(0).tolist()
    assert Tensor.zeros(0).all().item() is True
    assert Tensor.zeros(0).any().item() is False
    assert Tensor(x).count_nonzero().item() == 2


ROWS = np.array(
    [[1, 3, 3, -INF], [NAN, 1, NAN, 0], [-INF] * 4, [INF, INF, 1, 1], [-0.0, 0.0, -0.0, -1]]
)


@pytest.mark.parametrize("n", [8191, 8192, 8193, 12289, 3 * 4096, 50257])
@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_argmax_of_many(name: str, n: int) -> None:
    """In blocks of 4096: the first of equals, in whichever block, and NaN before all."""
    rng = np.random.default_rng(n)
    plain = rng.integers(-9, 9, n).astype(np.float32)
    nan = plain.copy()
    nan[[n // 2, n - 1]] = NAN
    worst = np.full(n, -INF if name == "argmax" else INF, np.float32)
    best = worst.copy()
    best[[n - 1, n // 2 + 1]] = 1
    ends = np.iinfo(np.int32)
    integers = np.full(n, ends.min if name == "argmax" else ends.max, np.int32)
    for x in (plain, nan, worst, best, integers, integers.astype(bool), plain.astype(np.int8)):
        assert getattr(Tensor(x), name)().item() == getattr(np, name)(x)
    wide = rng.integers(-99, 99, (2, n, 3)).astype(np.int16)
    got = getattr(Tensor(wide), name)(1, keepdim=True)
    np.testing.assert_array_equal(got.numpy(), getattr(np, name)(wide, 1, keepdims=True))


@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_first_extreme(name: str) -> None:
    assert getattr(Tensor(ROWS), name)(1).tolist() == getattr(np, name)(ROWS, 1).tolist()
    assert (
        getattr(Tensor(ROWS), name)(0, keepdim=True).tolist()
        == getattr(np, name)(ROWS, 0, keepdims=True).tolist()
    )
    assert getattr(Tensor(ROWS), name)().item() == getattr(np, name)(ROWS)
    whole = np.array([[3, -128, 3], [127, 127, -128]], np.int8)
    assert getattr(Tensor(whole), name)(1).tolist() == getattr(np, name)(whole, 1).tolist()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_argmax_of_ties(values: list[int]) -> None:
    assert Tensor(values).argmax().item() == np.argmax(values)
    assert Tensor(values).argmin().item() == np.argmin(values)


def test_special_rows() -> None:
    t = torch.tensor(ROWS)
    for name in ("softmax", "log_softmax", "logsumexp", "amax", "amin", "mean", "sum"):
        assert_close(
            getattr(Tensor(ROWS), name)(1).numpy(), getattr(t, name)(1).numpy(), 1e-9, 0, name
        )
    values, places = Tensor(ROWS).cummax(1)
    expected = t.cummax(1)
    assert_close(values.numpy(), expected.values.numpy(), 0, 0)
    assert places.tolist() == expected.indices.tolist()


def test_large_logits() -> None:
    x = np.array([[1e4, -1e4, 0], [80, 90, 100]], np.float32)
    assert np.isfinite(Tensor(x).log_softmax(1).numpy()).all()
    check_op(lambda x: x.softmax(1), x)
    check_op(lambda x: x.logsumexp(1), x)


def test_nothing_to_reduce() -> None:
    empty = Tensor.zeros(0, 3)
    assert empty.sum(0).tolist() == [0, 0, 0]
    assert empty.prod().item() == 1
    assert math.isnan(empty.mean().item())
    assert empty.softmax(0).shape == (0, 3)
    assert empty.sum(1).shape == (0,)
    assert empty.max(1).shape == (0,)
    for name in ("max", "min", "argmax"):
        with pytest.raises(ShapeError):
            getattr(empty, name)(0)
    assert Tensor(3.0).sum().item() == 3
    assert Tensor(3.0).cumsum().item() == 3


def test_variance_of_one_element() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert math.isnan(Tensor([1.0]).var().item())
    assert Tensor([1.0]).var(correction=0).item() == 0
    shifted = 1e4 + random_array((1000,))
    np.testing.assert_allclose(
        Tensor(shifted, dtype="float32").var().item(), shifted.var(ddof=1), 1e-2
    )


def test_gradient_of_ties_is_shared() -> None:
    check_op(lambda x: x.amax(1), np.array([[1.0, 3, 3], [2, 2, 2]]))
    check_op(lambda x: x.amin(), np.array([[1.0, 3, 1], [2, 2, 2]]))


def test_gradient_of_products_with_zeros() -> None:
    check_op(lambda x: x.prod(1), np.array([[1.0, 0, 3], [0, 2, 0]]))
    check_op(lambda x: x.cumprod(1), np.array([[1.0, 0, 3], [0, 2, 0]]))


def test_errors() -> None:
    x = Tensor.zeros(2, 3)
    with pytest.raises(IndexRangeError):
        x.sum(2)
    with pytest.raises(ShapeError, match="distinct"):
        x.sum((0, 0))
    with pytest.raises(IndexRangeError):
        x.softmax(-3)
