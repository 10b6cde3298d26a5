"""Sorting on the host against NumPy's stable argsort, through the interpreter of graphs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mygrad import Tensor, interpret, sorting
from mygrad import graph as g
from mygrad.runtime import device as devices

TYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")
SHAPES = ((0,), (1,), (2,), (257,), (1 << 17,), (3, 5), (5, 3), (7, 20_011), (4, 0, 3), (2, 31, 6))


def special(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Many equal numbers, and the extremes of the type."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 2 if dtype == "?" else 99, shape).astype(dtype)
    if x.dtype.kind == "f":
        x -= 50
        odd = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-7, -1e-7], dtype)
    elif x.dtype.kind == "b":
        return x
    else:
        odd = np.array([np.iinfo(dtype).min, np.iinfo(dtype).max, 0, 1], dtype)
    pick = rng.integers(0, 3 * len(odd), shape)
    return np.where(pick < len(odd), odd[pick % len(odd)], x)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_sort_and_argsort(dtype: str, shape: tuple[int, ...]) -> None:
    x = special(dtype, shape)
    for axis in range(x.ndim):
        for descending in (False, True):
            want = interpret.argsort(x, axis, descending)
            for threads in (1, 2, 3):
                order, values = np.empty(shape, np.int64), np.empty_like(x)
                if x.size:
                    sorting.argsort(x, order, axis, descending, threads)
                    sorting.sort(x, values, axis, descending, threads)
                np.testing.assert_array_equal(order, want)
                np.testing.assert_array_equal(values, np.take_along_axis(x, want, axis))


def test_what_is_not_contiguous() -> None:
    x = special("f4", (40, 30)).T
    out = np.empty((40, 30), np.float32).T
    for axis in (0, 1):
        sorting.sort(x, out, axis, True, 2)
        want = np.take_along_axis(x, interpret.argsort(x, axis, True), axis)
        np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int16", "bool"])
@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_on_devices(dtype: str, device: str) -> None:
    pytest.importorskip("llvmlite")
    plain = np.nan_to_num(special("f4", (5, 77)), posinf=99, neginf=-99)
    x = Tensor(plain, device=device).cast(dtype).realize()
    values, order = x.sort(1, descending=True)
    want = interpret.argsort(x.numpy(), 1, True)
    np.testing.assert_array_equal(order.numpy(), want)
    np.testing.assert_array_equal(values.numpy(), np.take_along_axis(x.numpy(), want, 1))
    np.testing.assert_array_equal(values.sort(0)[0].numpy(), np.sort(values.numpy(), 0))


def test_whole_numbers_on_two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of 64 bits leave no room for the place beside them."""
    pytest.importorskip("llvmlite")
    runtime = devices.get("cpu")
    monkeypatch.setattr(runtime, "target", dataclasses.replace(runtime.target, threads=2))
    for shape in ((sorting.MANY + 3,), (3, sorting.MANY // 2)):
        plain = special("i8", shape)
        x = Tensor(plain, device="cpu").realize()
        values, order = x.sort(-1)
        np.testing.assert_array_equal(order.numpy(), np.argsort(plain, -1, kind="stable"))
        np.testing.assert_array_equal(x.argsort(-1).numpy(), order.numpy())
        np.testing.assert_array_equal(values.numpy(), np.sort(plain, -1))


def test_the_values_have_a_gradient() -> None:
    x = Tensor([3.0, 1.0, 2.0, 1.0], requires_grad=True)
    (x.sort(descending=True)[0] * Tensor([1.0, 10.0, 100.0, 1000.0])).sum().backward()
    assert x.grad.tolist() == [1.0, 100.0, 10.0, 1000.0]


def test_the_node_says_what_it_gives() -> None:
    x = Tensor([2.0, 1.0]).node
    assert [n.dtype.name for n in (g.sort(x, 0), g.sort(x, 0, values=True))] == ["int64", "float32"]
