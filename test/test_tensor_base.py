"""Making tensors, reading them, converting and assigning; creation functions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from interpreted import interpreted  # noqa: F401
from peers import torch

from mygrad import Device, Tensor, dtypes
from mygrad.capture import Capture
from mygrad.errors import (
    BufferError_,
    CaptureError,
    DeviceError,
    DTypeError,
    IndexRangeError,
    ShapeError,
)

pytestmark = pytest.mark.usefixtures("interpreted")


@pytest.mark.parametrize(
    ("data", "name", "shape"),
    [
        (3, "int64", ()),
        (3.0, "float32", ()),
        (True, "bool", ()),
        ([1, 2], "int64", (2,)),
        ([[1.5], [2]], "float32", (2, 1)),
        ([True], "bool", (1,)),
        ([], "float32", (0,)),
        (range(3), "int64", (3,)),
        ((1, 2.0), "float32", (2,)),
        (np.float64(1), "float64", ()),
        (np.zeros((2, 0), np.float16), "float16", (2, 0)),
        (np.int8(3), "int8", ()),
        (np.array([1, 2], ">i4"), "int32", (2,)),
        ([np.float64(1.5), 2], "float32", (2,)),
        ([[]], "float32", (1, 0)),
        (np.arange(6).reshape(2, 3).T, "int64", (3, 2)),
        ([Tensor(1.0), Tensor(2.0)], "float32", (2,)),
    ],
)
def test_data(data: Any, name: str, shape: tuple[int, ...]) -> None:
    t = Tensor(data)
    assert (t.dtype.name, t.shape) == (name, shape)
    expected = (
        [x.item() for x in data]
        if isinstance(data, list) and shape == (2,) and isinstance(data[0], Tensor)
        else data
    )
    np.testing.assert_array_equal(t.numpy(), np.asarray(expected))


def test_data_of_pytorch() -> None:
    t = Tensor(torch.ones(2, 3))
    assert (t.dtype.name, t.shape) == ("float32", (2, 3))
    np.testing.assert_array_equal(t.numpy(), np.ones((2, 3)))


@pytest.mark.parametrize("dtype", [d.name for d in dtypes.ALL])
def test_dtype_argument(dtype: str) -> None:
    for data in ([0, 1, 2], 1, [0.0, 1.0], np.array([1.0, 0.0])):
        t = Tensor(data, dtype=dtype)
        assert t.dtype.name == dtype
        assert (
            t.float().tolist()
            == (np.asarray(data) != 0 if dtype == "bool" else np.asarray(data)).tolist()
        )


def test_conversion_of_data_saturates() -> None:
    assert Tensor([300.7, -1.5, math.nan], dtype="uint8").tolist() == [255, 0, 0]
    assert Tensor(1e30, dtype="int32").item() == 2**31 - 1
    assert Tensor([0.1], dtype="bfloat16").item() == pytest.approx(0.1, rel=4e-3)


def test_data_is_copied() -> None:
    array = np.ones(2, np.float32)
    t = Tensor(array)
    array[0] = 5
    read = t.numpy()
    read[0] = 7
    assert t.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ([[1, 2], [3]], ShapeError),
        ("text", DTypeError),
        (1 + 2j, DTypeError),
        (None, DTypeError),
        ([None], DTypeError),
        (np.array(["a"]), DTypeError),
        ([2**70], DTypeError),
    ],
)
def test_bad_data(data: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Tensor(data)


def test_properties() -> None:
    t = Tensor(np.zeros((2, 3), np.float16))
    assert (t.ndim, t.numel(), t.nbytes, len(t), t.size(), t.size(-1)) == (2, 6, 12, 2, (2, 3), 3)
    assert t.element_size() == 2
    assert t.dim() == 2
    assert t.is_floating_point()
    assert [row.shape for row in t] == [(3,), (3,)]
    assert hash(t) != hash(Tensor(t))


def test_reading() -> None:
    assert Tensor([[2]]).item() == 2
    assert float(Tensor(2.5)) == 2.5
    assert int(Tensor([7])) == 7
    assert [1, 2, 3][Tensor(1)] == 2
    assert bool(Tensor([True]))
    assert not Tensor(0.0)
    assert np.asarray(Tensor([1, 2])).tolist() == [1, 2]
    with pytest.raises(ShapeError, match="one element"):
        Tensor([1, 2]).item()
    with pytest.raises(ShapeError, match="any"):
        bool(Tensor([1, 2]))
    with pytest.raises(ShapeError):
        len(Tensor(1))


def test_repr_shows_small_values_only_when_there() -> None:
    device = Device.DEFAULT
    assert repr(Tensor([1, 2])) == f"Tensor((2,), int64, {device}, [1, 2])"
    assert repr(Tensor([1, 2]) + 1) == f"Tensor((2,), int64, {device})"
    assert repr(Tensor(np.zeros(100))) == f"Tensor((100,), float64, {device})"
    assert "requires_grad" in repr(Tensor([1.0], requires_grad=True))


def test_conversions() -> None:
    t = Tensor([1.7, -1.7, 0.0])
    for name, dtype in (
        ("half", "float16"),
        ("double", "float64"),
        ("bfloat16", "bfloat16"),
        ("int", "int32"),
        ("long", "int64"),
        ("bool", "bool"),
        ("float", "float32"),
    ):
        assert getattr(t, name)().dtype.name == dtype
    assert t.int().tolist() == [1, -1, 0]
    assert t.bool().tolist() == [True, True, False]
    assert t.to(dtypes.float64).dtype is dtypes.float64
    assert Tensor([1.0]).bitcast("int32").tolist() == [0x3F800000]
    with pytest.raises(DTypeError):
        t.bitcast("int64")
    with pytest.raises(DeviceError):
        t.to("nowhere")


def test_assign() -> None:
    t = Tensor([1.0, 2.0])
    alias, view = Tensor(t), t + 0
    assert t.assign(Tensor([3.0, 4.0])) is t
    assert (t.tolist(), alias.tolist(), view.tolist()) == ([3, 4], [1, 2], [1, 2])
    assert t.assign([5, 6]).tolist() == [5, 6]
    with pytest.raises(ShapeError):
        t.assign(Tensor([1.0]))
    with pytest.raises(DTypeError, match="cast"):
        t.assign(Tensor([1, 2]))


def test_free() -> None:
    t = Tensor([1.0, 2.0])
    t.free()
    with pytest.raises(BufferError_, match="free"):
        t.numpy()


def test_reading_is_refused_during_capture() -> None:
    t = Tensor([1.0])
    with Capture(lambda lazy: lazy._node):
        for read in (
            t.numpy,
            t.tolist,
            t.item,
            lambda: bool(t),
            lambda: float(t),
            t.nonzero,
            t.unique,
        ):
            with pytest.raises(CaptureError):
                read()
        assert t.realize() is t


# --- creation ------------------------------------------------------------------------------------


def test_constants() -> None:
    assert Tensor.zeros(2, 3).tolist() == np.zeros((2, 3)).tolist()
    assert Tensor.ones((2,), dtype="int8").dtype is dtypes.int8
    assert Tensor.full((2,), 7).dtype is dtypes.int64
    assert Tensor.full((), math.inf).item() == math.inf
    assert Tensor.full((2,), 2.5, dtype="int32").tolist() == [2, 2]
    assert Tensor.empty(0, 3).shape == (0, 3)
    like = Tensor([[1, 2]], dtype="int16").ones_like()
    assert (like.shape, like.dtype.name) == ((1, 2), "int16")
    assert Tensor([1.0]).full_like(3).tolist() == [3]
    for bad in ((-1,), (1.5,), ("a",)):
        with pytest.raises(ShapeError):
            Tensor.zeros(*bad)


@pytest.mark.parametrize(
    "arguments",
    [(5,), (0,), (1, 8, 3), (8, 1, -3), (0.5, 3), (0, 1, 0.1), (3, 0, -0.7), (-2, 2)],
)
def test_arange(arguments: tuple[Any, ...]) -> None:
    expected = torch.arange(*arguments).numpy()
    got = Tensor.arange(*arguments)
    assert got.numpy().dtype == expected.dtype
    np.testing.assert_allclose(got.numpy(), expected, 1e-6)
    with pytest.raises(ShapeError):
        Tensor.arange(0, 3, 0)


def test_arange_of_other_types() -> None:
    assert Tensor.arange(3, dtype="float16").tolist() == [0, 1, 2]
    assert Tensor.arange(5, 0, -2, dtype="uint8").tolist() == [5, 3, 1]
    assert Tensor.arange(257, dtype="bfloat16").numpy()[-1] == 256


@pytest.mark.parametrize(
    "arguments",
    [(0, 1, 5), (-3, 7, 11), (2, 2, 4), (1, 0, 2), (0, 1, 1), (0, 1, 0), (0.1, 0.7, 333)],
)
def test_linspace(arguments: tuple[Any, ...]) -> None:
    got = Tensor.linspace(*arguments).numpy()
    np.testing.assert_allclose(got, torch.linspace(*arguments).numpy(), 1e-6, 1e-7)
    if arguments[2] > 1:
        assert got[-1] == np.float32(arguments[1])


def test_eye_and_triangles() -> None:
    assert Tensor.eye(2, 3).tolist() == np.eye(2, 3).tolist()
    x = np.arange(24.0).reshape(2, 3, 4)
    for k in (-4, -1, 0, 2, 9):
        np.testing.assert_array_equal(Tensor(x).tril(k).numpy(), np.tril(x, k))
        np.testing.assert_array_equal(Tensor(x).triu(k).numpy(), np.triu(x, k))
    with pytest.raises(ShapeError):
        Tensor([1.0]).tril()


def test_one_hot() -> None:
    assert Tensor([[1, 0]]).one_hot(3).tolist() == [[[0, 1, 0], [1, 0, 0]]]
    assert Tensor([5, -1]).one_hot(2).tolist() == [[0, 0], [0, 0]]
    with pytest.raises(DTypeError):
        Tensor([1.0]).one_hot(2)


def test_axis_errors_name_the_range() -> None:
    with pytest.raises(IndexRangeError, match="-2 <= axis < 2"):
        Tensor.zeros(2, 3).sum(2)
