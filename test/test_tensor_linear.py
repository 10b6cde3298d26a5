"""Matrix products, einsum, convolution, pooling and interpolation against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from checks import assert_close, check_op, random_array
from interpreted import interpreted  # noqa: F401
from peers import F, torch

from mygrad import Tensor
from mygrad.errors import ShapeError

pytestmark = pytest.mark.usefixtures("interpreted")
Function = Callable[..., Any]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 5), (5, 7)),
        ((4,), (4,)),
        ((4,), (4, 3)),
        ((2, 3, 4), (4,)),
        ((2, 3, 4), (4, 5)),
        ((4,), (2, 4, 3)),
        ((2, 1, 3, 4), (5, 4, 2)),
        ((0, 3), (3, 2)),
        ((2, 0), (0, 3)),
        ((1, 1), (1, 1)),
        ((13, 17), (17, 11)),
    ],
)
def test_matmul(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    check_op(lambda x, y: x @ y, a, b)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_matmul_of_other_types(dtype: str) -> None:
    check_op(
        lambda x, y: x @ y, (3, 70), (70, 4), dtype=dtype, atol=0.05 if dtype != "float64" else None
    )


def test_integer_matmul_wraps() -> None:
    a, b = np.full((2, 3), 100, np.int8), np.full((3, 2), 2, np.int8)
    np.testing.assert_array_equal(
        (Tensor(a) @ Tensor(b)).numpy(), (torch.tensor(a) @ torch.tensor(b)).numpy()
    )


def test_matmul_errors() -> None:
    with pytest.raises(ShapeError, match="did you mean other"):
        Tensor.zeros(2, 3) @ Tensor.zeros(4, 3)
    with pytest.raises(ShapeError):
        Tensor.zeros(2, 3) @ Tensor(2.0)
    with pytest.raises(ShapeError):
        Tensor.zeros(2, 3, 4) @ Tensor.zeros(3, 4, 2)


def test_linear_outer_trace() -> None:
    check_op(lambda x, w, b: x.linear(w, b), (2, 3, 4), (5, 4), (5,), torch_fn=F.linear)
    check_op(lambda x, y: x.outer(y), (3,), (4,))
    check_op(lambda x: x.trace(), (3, 5))
    assert (np.ones((2, 3)) @ Tensor(np.ones((3, 2)))).tolist() == [[3, 3], [3, 3]]


@pytest.mark.parametrize(
    ("formula", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]),
        ("ii->i", [(3, 3)]),
        ("ii", [(3, 3)]),
        ("ij->ji", [(2, 3)]),
        ("bij,bjk,kl->bil", [(2, 3, 4), (2, 4, 5), (5, 2)]),
        ("i,j->ij", [(3,), (4,)]),
        ("ij->", [(2, 3)]),
        ("...ij,...jk->...ik", [(2, 3, 4), (2, 4, 5)]),
        ("ij,ij", [(2, 3), (2, 3)]),
        ("iij->j", [(3, 3, 2)]),
        ("...i->...", [(2, 3)]),
        ("b...,b...->b", [(2, 3, 4), (2, 3, 4)]),
        ("ij,kl->jl", [(2, 3), (4, 5)]),
        ("ba", [(2, 3)]),
        ("i,i,i->i", [(3,), (3,), (3,)]),
    ],
)
def test_einsum(formula: str, shapes: list[tuple[int, ...]]) -> None:
    check_op(
        lambda *x: Tensor.einsum(formula, *x),
        *shapes,
        torch_fn=lambda *x: torch.einsum(formula, *x),
    )


@pytest.mark.parametrize("formula", ["ij->k", "i->i", "ij,jk->ik", "ij->ii"])
def test_einsum_errors(formula: str) -> None:
    with pytest.raises(ShapeError):
        Tensor.einsum(formula, Tensor.zeros(2, 3))


# --- convolution ---------------------------------------------------------------------------------

CONVOLUTIONS = [
    ((2, 4, 7, 8), (6, 4, 3, 3), {}),
    ((2, 4, 7, 8), (6, 2, 3, 2), {"stride": (2, 3), "padding": (1, 0), "groups": 2}),
    ((1, 3, 9, 9), (3, 1, 3, 3), {"padding": 2, "dilation": 2, "groups": 3}),
    ((2, 3, 5, 5), (4, 3, 1, 1), {"stride": 2}),
    ((2, 2, 5, 6), (2, 2, 4, 3), {"padding": "same", "dilation": (1, 2)}),
    ((2, 2, 5, 6), (2, 2, 5, 6), {"padding": "valid"}),
    ((3, 6, 7), (4, 3, 3, 3), {}),
]


@pytest.mark.parametrize(("x", "w", "kwargs"), CONVOLUTIONS)
@pytest.mark.filterwarnings("ignore:Using padding")
def test_conv2d(x: tuple[int, ...], w: tuple[int, ...], kwargs: dict[str, Any]) -> None:
    if len(x) == 3:
        x = (3, 6, 7)
    check_op(
        lambda x, w, b: x.conv2d(w, b, **kwargs),
        x,
        w,
        (w[0],),
        torch_fn=lambda x, w, b: F.conv2d(x, w, b, **kwargs),
    )


def test_conv_of_one_and_three_axes() -> None:
    check_op(
        lambda x, w: x.conv1d(w, padding=1, stride=2),
        (2, 3, 9),
        (4, 3, 3),
        torch_fn=lambda x, w: F.conv1d(x, w, padding=1, stride=2),
    )
    check_op(lambda x, w: x.conv3d(w), (1, 2, 4, 3, 4), (3, 2, 2, 2, 2), torch_fn=F.conv3d)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"stride": 2, "padding": 1},
        {"stride": (2, 3), "padding": (1, 0), "output_padding": (1, 2), "groups": 2},
        {"dilation": 2, "padding": 2},
    ],
)
def test_conv_transpose2d(kwargs: dict[str, Any]) -> None:
    check_op(
        lambda x, w, b: x.conv_transpose2d(w, b, **kwargs),
        (2, 4, 5, 3),
        (4, 3, 3, 2),
        (3 * kwargs.get("groups", 1),),
        torch_fn=lambda x, w, b: F.conv_transpose2d(x, w, b, **kwargs),
    )


def test_conv_transpose1d_and_half() -> None:
    check_op(
        lambda x, w: x.conv_transpose1d(w, stride=2),
        (2, 3, 4),
        (3, 2, 3),
        torch_fn=lambda x, w: F.conv_transpose1d(x, w, stride=2),
    )
    x, w = (
        Tensor(random_array((1, 8, 6, 6)), dtype="float16"),
        Tensor(random_array((4, 8, 3, 3), 1), dtype="float16"),
    )
    exact = F.conv2d(
        torch.tensor(x.numpy().astype(np.float64)), torch.tensor(w.numpy().astype(np.float64))
    )
    assert x.conv2d(w).dtype.name == "float16"
    assert_close(x.conv2d(w).numpy().astype(float), exact.numpy(), 1e-3, 1e-3)


@pytest.mark.parametrize(
    ("x", "w", "kwargs"),
    [
        ((1, 3, 5, 5), (4, 2, 3, 3), {}),
        ((1, 3, 5, 5), (4, 3, 7, 7), {}),
        ((1, 3, 5, 5), (4, 3, 3), {}),
        ((1, 4, 5, 5), (3, 2, 3, 3), {"groups": 2}),
        ((5, 5), (4, 3, 3, 3), {}),
        ((1, 3, 5, 5), (4, 3, 3, 3), {"stride": 0}),
        ((1, 3, 5, 5), (4, 3, 3, 3), {"stride": (1, 1, 1)}),
        ((1, 3, 5, 5), (4, 3, 3, 3), {"padding": "full"}),
    ],
)
def test_conv_errors(x: tuple[int, ...], w: tuple[int, ...], kwargs: dict[str, Any]) -> None:
    with pytest.raises(ShapeError):
        Tensor.zeros(x).conv2d(Tensor.zeros(w), **kwargs)


# --- pooling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(2,), (3, 2, 1), ((2, 3), (1, 2)), (3, 1, 1, 2), (2, 2, 1)])
def test_max_pool2d(arguments: tuple[Any, ...]) -> None:
    check_op(
        lambda x: x.max_pool2d(*arguments),
        (2, 3, 7, 8),
        torch_fn=lambda x: F.max_pool2d(x, *arguments),
    )


def test_max_pool_padding_never_wins() -> None:
    assert Tensor.full((1, 1, 2, 2), -5.0).max_pool2d(2, 2, 1).tolist() == [[[[-5, -5], [-5, -5]]]]
    assert Tensor(np.full((1, 2, 2), -5, np.int8)).max_pool2d(2, 2, 1).numpy().max() == -5
    check_op(lambda x: x.max_pool1d(2), (2, 3, 7), torch_fn=lambda x: F.max_pool1d(x, 2))


@pytest.mark.parametrize("count_include_pad", [True, False])
def test_avg_pool2d(count_include_pad: bool) -> None:
    for arguments in ((2,), (3, 2, 1), ((2, 3), (1, 2))):
        check_op(
            lambda x, a=arguments: x.avg_pool2d(*a, count_include_pad=count_include_pad),
            (2, 3, 7, 8),
            torch_fn=lambda x, a=arguments: F.avg_pool2d(
                x, *a, count_include_pad=count_include_pad
            ),
        )


@pytest.mark.parametrize("size", [1, (3, 2), (7, 8), (5, 4)])
def test_adaptive_avg_pool2d(size: Any) -> None:
    check_op(
        lambda x: x.adaptive_avg_pool2d(size),
        (2, 3, 7, 8),
        torch_fn=lambda x: F.adaptive_avg_pool2d(x, size),
    )


@pytest.mark.parametrize(
    "kwargs",
    [
        {"size": (9, 4), "mode": "nearest"},
        {"scale_factor": 2, "mode": "nearest"},
        {"size": (9, 4), "mode": "bilinear"},
        {"size": (9, 4), "mode": "bilinear", "align_corners": True},
        {"scale_factor": 2, "mode": "bilinear"},
    ],
)
def test_interpolate(kwargs: dict[str, Any]) -> None:
    check_op(
        lambda x: x.interpolate(**kwargs),
        (2, 3, 7, 8),
        torch_fn=lambda x: F.interpolate(x, **kwargs),
    )


@pytest.mark.parametrize("seed", range(3))
def test_max_pool_with_places_and_ragged_ends(seed: int) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    for _ in range(3):
        kernel = [int(k) for k in rng.integers(1, 4, 2)]
        stride, dilation = rng.integers(1, 5, 2).tolist(), rng.integers(1, 3, 2).tolist()
        padding = [int(rng.integers(0, k // 2 + 1)) for k in kernel]
        x = rng.standard_normal((2, *rng.integers(5, 9, 2))).astype(np.float32)
        values, places = Tensor(x).max_pool2d(
            kernel, stride, padding, dilation, ceil_mode=True, return_indices=True
        )
        wanted, where = torch.nn.functional.max_pool2d(
            torch.tensor(x), kernel, stride, padding, dilation, True, True
        )
        np.testing.assert_array_equal(values.numpy(), wanted.numpy())
        np.testing.assert_array_equal(places.numpy(), where.numpy())
