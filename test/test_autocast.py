"""Mixed precision: which types come out, that gradients reach float32 weights, and its values."""

from __future__ import annotations

import numpy as np
import pytest
from peers import torch

from mygrad import Tensor, autocast, jit, nn
from mygrad import dtype as dt
from mygrad.errors import DTypeError


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32)).realize()


def test_types() -> None:
    x, w = tensor(4, 6), tensor(5, 6)
    image, kernel = tensor(1, 2, 5, 5), tensor(3, 2, 3, 3)
    with autocast("bfloat16"):
        assert (x @ w.T).dtype is dt.bfloat16
        assert x.linear(w, tensor(5)).dtype is dt.bfloat16
        assert Tensor.einsum("ij,kj->ik", x, w).dtype is dt.bfloat16
        assert image.conv2d(kernel, tensor(3)).dtype is dt.bfloat16
        y = x @ w.T
        assert y.softmax().dtype is y.sum().dtype is y.gelu().dtype is dt.float32
        assert y.relu().dtype is (y + y).dtype is dt.bfloat16
        assert y.cross_entropy(Tensor([0, 1, 2, 3])).dtype is dt.float32
        assert (x.double() @ w.double().T).dtype is dt.float64
        with autocast(enabled=False):
            assert (x @ w.T).dtype is dt.float32
    assert (x @ w.T).dtype is dt.float32
    with autocast("float16"):
        assert (x @ w.T).dtype is dt.float16


def test_a_wrong_type() -> None:
    with pytest.raises(DTypeError, match="autocast: got int8, expected bfloat16 or float16"):
        autocast("int8")


def test_gradients_are_those_of_float32_weights() -> None:
    model = nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 40))
    x, target = tensor(70, 48), Tensor(np.arange(70) % 40)
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        with autocast("bfloat16", enabled=enabled):
            loss = model(x).cross_entropy(target)
        loss.backward()
        gradients.append([p.grad.numpy() for p in model.parameters()])
        assert all(p.dtype is p.grad.dtype is dt.float32 for p in model.parameters())
    for exact, got in zip(*gradients, strict=True):
        error = np.linalg.norm(got - exact) / np.linalg.norm(exact)
        assert 0 < error < 0.03  # 2^-8 for each of about four roundings on the way


def test_as_in_pytorch() -> None:
    x, w, b = tensor(33, 70), tensor(65, 70, seed=1), tensor(65, seed=2)
    with autocast():
        got = x.linear(w, b).float().numpy()
    with torch.autocast("cpu", torch.bfloat16):
        operands = (torch.from_numpy(t.numpy()) for t in (x, w, b))
        want = torch.nn.functional.linear(*operands).float().numpy()
    np.testing.assert_allclose(got, want, rtol=2.0**-7, atol=2.0**-7)


def test_a_jitted_function_knows_the_mode() -> None:
    x, w = tensor(40, 64), tensor(64, 48)
    product = jit(lambda a: a @ w)
    assert product(x).dtype is dt.float32
    with autocast():
        assert product(x).dtype is dt.bfloat16
    assert product(x).dtype is dt.float32
