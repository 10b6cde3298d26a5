"""Whole flows on the default device, compiled: it must compute what PyTorch computes."""

from __future__ import annotations

import numpy as np
from peers import F, torch

from mygrad import Device, Tensor
from mygrad.runtime import device as devices


def test_training_steps_of_a_small_network() -> None:
    Tensor.manual_seed(0)
    w = Tensor.kaiming_uniform(4, 1, 3, 3, requires_grad=True)
    v = Tensor.kaiming_uniform(3, 4 * 3 * 3, requires_grad=True)
    x, target = Tensor.randn(5, 1, 8, 8).realize(), Tensor([0, 2, 1, 1, 0])
    a, b = (torch.tensor(t.numpy(), requires_grad=True) for t in (w, v))
    for _ in range(3):
        hidden = x.conv2d(w).gelu("tanh").max_pool2d(2).flatten(1)
        loss = hidden.linear(v).cross_entropy(target)
        w.grad = v.grad = None
        loss.backward()
        with Tensor.no_grad():
            for p in (w, v):
                p.assign(p - p.grad * 0.1)
        Tensor.realize(loss, w, v)
        seen = F.max_pool2d(F.gelu(F.conv2d(torch.tensor(x.numpy()), a), approximate="tanh"), 2)
        expected = F.cross_entropy(F.linear(seen.flatten(1), b), torch.tensor(target.numpy()))
        a.grad = b.grad = None
        expected.backward()
        with torch.no_grad():
            for q in (a, b):
                q -= q.grad * 0.1
        np.testing.assert_allclose(loss.item(), expected.item(), 1e-4)
    np.testing.assert_allclose(w.numpy(), a.detach().numpy(), 1e-4, 1e-5)
    np.testing.assert_allclose(v.numpy(), b.detach().numpy(), 1e-4, 1e-5)


def test_random_numbers_are_the_same_on_every_device() -> None:
    def draw(device: str) -> list[np.ndarray]:
        Tensor.manual_seed(11)
        made = [Tensor.rand(50, device=device), Tensor.randint(50, high=9, device=device)]
        made += [
            Tensor.randperm(50, device=device),
            Tensor.ones(50, device=device).dropout(0.4, True),
        ]
        return [t.numpy() for t in made]

    usable = [name for name, reason in devices.available().items() if reason is None]
    assert {Device.DEFAULT, "reference"} <= set(usable)
    expected = draw("reference")
    for name in usable:
        for got, want in zip(draw(name), expected, strict=True):
            np.testing.assert_array_equal(got, want)


def test_values_computed_on_the_way() -> None:
    x = Tensor([[3.0, -1.0], [0.5, 2.0]], requires_grad=True)
    y = (x @ x).softmax(1)
    assert y.numpy().sum() > 0
    y[0, 0].backward()
    t = torch.tensor(x.numpy(), requires_grad=True)
    (t @ t).softmax(1)[0, 0].backward()
    np.testing.assert_allclose(x.grad.numpy(), t.grad.numpy(), 1e-5, 1e-6)


def test_indexing_and_order() -> None:
    x = np.arange(24.0, dtype=np.float32).reshape(4, 6) % 7
    t = Tensor(x)
    np.testing.assert_array_equal(t[[2, 0], ::-2].numpy(), x[[2, 0], ::-2])
    t[1:3, ::2] = 9.0
    t[Tensor([0, 3])] = Tensor(x[1])
    x[1:3, ::2] = 9
    x[[0, 3]] = np.array([6, 0, 1, 2, 3, 4])
    np.testing.assert_array_equal(t.numpy(), x)
    np.testing.assert_array_equal(t.sort(1)[0].numpy(), np.sort(x, 1))
    np.testing.assert_allclose(t.cumsum(0).numpy(), x.cumsum(0), 1e-6)


def test_gradient_of_a_padded_strided_convolution() -> None:
    """The weights are read under a condition that depends on axes which their index does not."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s).astype(np.float32) for s in ((2, 4, 7, 8), (6, 2, 3, 2))]
    x, w = (Tensor(a, requires_grad=True) for a in arrays)
    x.conv2d(w, stride=(2, 3), padding=(1, 0), groups=2).square().sum().backward()
    a, b = (torch.tensor(v, requires_grad=True) for v in arrays)
    F.conv2d(a, b, stride=(2, 3), padding=(1, 0), groups=2).square().sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), a.grad.numpy(), 1e-4, 1e-4)
    np.testing.assert_allclose(w.grad.numpy(), b.grad.numpy(), 1e-4, 1e-4)
