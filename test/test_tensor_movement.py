"""Shapes, orders, joining and padding against PyTorch and NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from checks import awkward_shapes, check_op, random_array
from hypothesis import given
from hypothesis import strategies as st
from interpreted import interpreted  # noqa: F401
from peers import F, torch

from mygrad import Tensor
from mygrad.errors import IndexRangeError, ShapeError

pytestmark = pytest.mark.usefixtures("interpreted")

SAME = {  # the same call on both sides
    "reshape": lambda x: x.reshape(4, -1),
    "view": lambda x: x.view(2, 20),
    "flatten": lambda x: x.flatten(1),
    "flatten all": lambda x: x.flatten(),
    "unflatten": lambda x: x.unflatten(1, (2, -1)),
    "permute": lambda x: x.permute(2, 0, 1),
    "permute negative": lambda x: x.permute((-1, 0, 1)),
    "transpose": lambda x: x.transpose(0, 2),
    "mT": lambda x: x.mT,
    "swapaxes": lambda x: x.swapaxes(1, 2),
    "movedim": lambda x: x.movedim((0, 1), (-1, 0)),
    "unsqueeze": lambda x: x.unsqueeze(-1).unsqueeze(0),
    "squeeze": lambda x: x.unsqueeze(1).squeeze(1).squeeze(0),
    "expand": lambda x: x[:, :1].expand(-1, 3, -1),
    "expand new axes": lambda x: x.expand(3, 1, 2, 4, 5),
    "flip": lambda x: x.flip((0, 2)),
    "roll": lambda x: x.roll((1, -7), (0, 2)),
    "roll flat": lambda x: x.roll(3),
    "narrow": lambda x: x.narrow(2, 1, 3),
    "diagonal": lambda x: x.diagonal(1, 1, 2),
    "diagonal below": lambda x: x.diagonal(-2, 2, 1),
    "diagonal outside": lambda x: x.diagonal(7, 1, 2),
    "unfold": lambda x: x.unfold(2, 3, 2),
    "repeat": lambda x: x.repeat(2, 1, 3, 1),
    "tile": lambda x: x.tile(2, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(3, 1),
    "chunk": lambda x: x.chunk(3, 2)[1],
    "split": lambda x: x.split([1, 4], 2)[1],
    "split last": lambda x: x.split(3, 2)[-1],
    "unbind": lambda x: x.unbind(1)[2],
}


@pytest.mark.parametrize("name", SAME)
def test_like_pytorch(name: str) -> None:
    check_op(SAME[name], (2, 4, 5))


JOINS: dict[str, Callable[..., Any]] = {
    "cat": lambda m, a, b, c: m.cat([a, b, c], dim=1),
    "cat positional": lambda m, a, b, c: m.cat([a, b, c], 1),
    "cat -1": lambda m, a, b, c: m.cat([a, a, a], dim=-1),
    "stack": lambda m, a, b, c: m.stack([a, a * 2], dim=1),
    "stack end": lambda m, a, b, c: m.stack([b, b], dim=-1),
}


@pytest.mark.parametrize("name", JOINS)
def test_joining(name: str) -> None:
    join = JOINS[name]
    check_op(
        lambda *x: join(Tensor, *x), (2, 3), (2, 1), (2, 0), torch_fn=lambda *x: join(torch, *x)
    )


@given(st.lists(st.integers(0, 3), min_size=1, max_size=7))
def test_cat_of_many(extents: list[int]) -> None:
    arrays = [random_array((n, 2), i) for i, n in enumerate(extents)]
    np.testing.assert_array_equal(
        Tensor.cat([Tensor(a) for a in arrays]).numpy(), np.concatenate(arrays)
    )


def test_cat_keeps_signs_of_zeros_and_promotes() -> None:
    assert np.signbit(Tensor([-0.0]).cat(Tensor([1.0])).numpy()).tolist() == [True, False]
    assert Tensor([1]).cat(Tensor([1.5])).tolist() == [1, 1.5]


def test_meshgrid() -> None:
    for indexing in ("ij", "xy"):
        got = Tensor.meshgrid(Tensor([1, 2]), Tensor([3, 4, 5]), indexing=indexing)
        for a, b in zip(got, np.meshgrid([1, 2], [3, 4, 5], indexing=indexing), strict=True):
            np.testing.assert_array_equal(a.numpy(), b)


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [(1, 2, 2, 1), (0, 3), (2, 0, 0, 0)])
def test_pad(mode: str, padding: tuple[int, ...]) -> None:
    shape = (1, 2, 4, 5) if len(padding) == 4 else (2, 4, 5)
    check_op(lambda x: x.pad(padding, mode), shape, torch_fn=lambda x: F.pad(x, padding, mode))


def test_pad_with_value_and_cropping() -> None:
    check_op(
        lambda x: x.pad((1, -1, -2, 1), value=3.0),
        (4, 5),
        torch_fn=lambda x: F.pad(x, (1, -1, -2, 1), value=3.0),
    )
    assert Tensor([1, 2]).pad([(1, 2)], value=9).tolist() == [9, 1, 2, 9, 9]
    assert Tensor([[1]]).pad((None, (1, 0))).tolist() == [[0, 1]]


@pytest.mark.parametrize("shape", awkward_shapes())
def test_awkward_shapes(shape: tuple[int, ...]) -> None:
    x = random_array(shape)
    t = Tensor(x)
    np.testing.assert_array_equal(t.T.numpy(), x.T)
    np.testing.assert_array_equal(t.flatten().numpy(), x.ravel())
    np.testing.assert_array_equal(t.flip().numpy(), np.flip(x))
    np.testing.assert_array_equal(t.unsqueeze(0).squeeze().numpy(), x.squeeze())
    np.testing.assert_array_equal(t.repeat((2,) * t.ndim).numpy(), np.tile(x, (2,) * t.ndim))
    np.testing.assert_array_equal(t.expand(3, *shape).numpy(), np.broadcast_to(x, (3, *shape)))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda x: x.reshape(4), ShapeError),
        (lambda x: x.reshape(-1, -1), ShapeError),
        (lambda x: x.reshape(4, -1), ShapeError),
        (lambda x: x.permute(0, 0), ShapeError),
        (lambda x: x.permute(0), ShapeError),
        (lambda x: x.expand(3, 3), ShapeError),
        (lambda x: x.unsqueeze(5), IndexRangeError),
        (lambda x: x.flip(2), IndexRangeError),
        (lambda x: x.cat(Tensor.zeros(3, 3), axis=1), ShapeError),
        (lambda x: Tensor.stack([x, Tensor.zeros(3)]), ShapeError),
        (lambda x: Tensor.cat([]), ShapeError),
        (lambda x: x.split([1, 1], 1), ShapeError),
        (lambda x: x.pad((9, 9), "reflect"), ShapeError),
        (lambda x: x.pad((1,)), ShapeError),
        (lambda x: x.repeat(2), ShapeError),
        (lambda x: x.unfold(1, 9, 1), ShapeError),
    ],
)
def test_errors(call: Callable[[Tensor], Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        call(Tensor.zeros(2, 3))
