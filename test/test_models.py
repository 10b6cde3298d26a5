"""Small real networks: values and all gradients agree with PyTorch, jitted and not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mygrad import Tensor, jit

torch = pytest.importorskip("torch")
F = torch.nn.functional
Arrays = dict[str, np.ndarray[Any, Any]]


def norm(x: Any, axes: Any) -> Any:
    """With operators that both libraries have, but not batch_norm's rules."""
    y = x - x.mean(axes, keepdim=True)
    return y / ((y * y).mean(axes, keepdim=True) + 1e-5) ** 0.5


def softmax(x: Any) -> Any:
    return x.softmax(-1)


def residual(n: type, p: Any, x: Any) -> Any:
    """Convolution, norm, pooling, a strided block beside a 1x1 convolution."""
    h = n.pool(norm(n.conv(x, p["c0"], 1, 1), (0, 2, 3)).relu())
    a = norm(n.conv(h, p["c1"], 2, 1), (0, 2, 3)).relu()
    return (a + n.conv(h, p["c2"], 2, 0)).relu().mean((2, 3)) @ p["w"]


def attention(n: type, p: Any, x: Any) -> Any:
    """Causal attention with two heads, then a gelu, each beside its input."""
    b, s, d = x.shape
    parts = (norm(x, (-1,)) @ p["qkv"]).split(d, 2)
    q, k, v = (t.reshape(b, s, 2, d // 2).permute(0, 2, 1, 3) for t in parts)
    scores = q @ k.transpose(-2, -1) * 0.5 + n.mask(s, x.dtype)
    x = x + (softmax(scores) @ v).permute(0, 2, 1, 3).reshape(b, s, d) @ p["o"]
    return x + n.gelu(norm(x, (-1,)) @ p["up"]) @ p["down"]


def recurrent(n: type, p: Any, x: Any) -> Any:
    """An LSTM over 3 steps."""
    h, c = p["h"], p["c"]
    for t in range(3):
        i, f, o, u = (x[:, t] @ p["wx"] + h @ p["wh"]).split(3, 1)
        c = f.sigmoid() * c + i.sigmoid() * u.tanh()
        h = o.sigmoid() * c.tanh()
    return h


def up_and_down(n: type, p: Any, x: Any) -> Any:
    """Half the size and back, by a transposed convolution and by interpolation."""
    a = n.conv(x, p["c0"], 1, 1).sigmoid()
    down = n.conv(a, p["c1"], 2, 1)
    return a * n.up(down, p["t"]) + n.grow(down)


class Theirs:
    conv = staticmethod(lambda x, w, s, p: F.conv2d(x, w, stride=s, padding=p))
    pool = staticmethod(lambda x: F.max_pool2d(x, 2))
    mask = staticmethod(lambda n, d: torch.full((n, n), -np.inf, dtype=d).triu(1))
    gelu = staticmethod(F.gelu)
    up = staticmethod(lambda x, w: F.conv_transpose2d(x, w, stride=2))
    grow = staticmethod(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"))


class Ours:
    conv = staticmethod(lambda x, w, s, p: x.conv2d(w, stride=s, padding=p))
    pool = staticmethod(lambda x: x.max_pool2d(2))
    mask = staticmethod(lambda n, d: Tensor.full((n, n), -np.inf, dtype=d).triu(1))
    gelu = staticmethod(lambda x: x.gelu())
    up = staticmethod(lambda x, w: x.conv_transpose2d(w, stride=2))
    grow = staticmethod(lambda x: x.interpolate(scale_factor=2, mode="bilinear"))


MODELS: dict[str, tuple[Callable[..., Any], dict[str, tuple[int, ...]]]] = {
    "residual": (
        residual,
        {"x": (2, 3, 8, 8), "c0": (4, 3, 3, 3), "c1": (4, 4, 3, 3),
         "c2": (4, 4, 1, 1), "w": (4, 2)},
    ),
    "attention": (
        attention,
        {"x": (2, 5, 6), "qkv": (6, 18), "o": (6, 6), "up": (6, 12), "down": (12, 6)},
    ),
    "recurrent": (
        recurrent,
        {"x": (2, 3, 5), "h": (2, 3), "c": (2, 3), "wx": (5, 12), "wh": (3, 12)},
    ),
    "up and down": (
        up_and_down,
        {"x": (1, 2, 6, 8), "c0": (3, 2, 3, 3), "c1": (3, 3, 3, 3), "t": (3, 3, 2, 2)},
    ),
}  # fmt: skip


def data(name: str) -> Arrays:
    rng = np.random.default_rng(3)
    return {k: rng.standard_normal(s) / 2 for k, s in MODELS[name][1].items()}


def theirs(name: str, arrays: Arrays) -> tuple[Any, list[Any]]:
    """PyTorch's value and gradients, in float64."""
    leaves = {k: torch.tensor(a, requires_grad=True) for k, a in arrays.items()}
    y = MODELS[name][0](Theirs, leaves, leaves["x"])
    return y.detach().numpy(), [
        g.numpy() for g in torch.autograd.grad((y * y).sum(), list(leaves.values()))
    ]


def close(got: Tensor, wanted: Any, share: float) -> None:
    """Within a share of the largest element."""
    np.testing.assert_allclose(
        got.cast("float64").numpy(), wanted, rtol=0, atol=share * np.abs(wanted).max()
    )


@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients(name: str) -> None:
    model, arrays = MODELS[name][0], data(name)
    leaves = {k: Tensor(a, dtype="float32", requires_grad=True) for k, a in arrays.items()}

    def step(*values: Tensor) -> tuple[Tensor, list[Tensor]]:
        p = dict(zip(leaves, values, strict=True))
        y = model(Ours, p, p["x"])
        return y, (y * y).sum().gradient(*values)

    y, gradients = theirs(name, arrays)
    jitted = jit(step)
    for call in (step, jitted, jitted):
        value, found = call(*leaves.values())
        Tensor.realize(value, *found)  # together, as jit does: the kernels are the same
        close(value, y, 1e-5)
        for got, wanted in zip(found, gradients, strict=True):
            close(got, wanted, 3e-5)


@pytest.mark.parametrize(("dtype", "share"), [("float64", 1e-13), ("float16", 1e-2)])
@pytest.mark.parametrize("name", ["residual", "attention"])
def test_values_in_other_types(name: str, dtype: str, share: float) -> None:
    arrays = data(name)
    if dtype == "float16":  # the same rounded inputs for both
        arrays = {k: a.astype(np.float16).astype(np.float64) for k, a in arrays.items()}
    leaves = {k: Tensor(a, dtype=dtype) for k, a in arrays.items()}
    y = MODELS[name][0](Ours, leaves, leaves["x"])
    assert y.dtype.name == dtype
    close(y, theirs(name, arrays)[0], share)


def test_gradient_of_a_gradient() -> None:
    """A gradient penalty, through attention."""
    model, arrays = MODELS["attention"][0], data("attention")
    p = {k: Tensor(a, dtype="float64", requires_grad=True) for k, a in arrays.items()}
    (inner,) = model(Ours, p, p["x"]).sum().gradient(p["x"], create_graph=True)
    found = ((inner**2).sum() - 1).gradient(p["qkv"], p["up"])
    t = {k: torch.tensor(a, requires_grad=True) for k, a in arrays.items()}
    (other,) = torch.autograd.grad(model(Theirs, t, t["x"]).sum(), [t["x"]], create_graph=True)
    wanted = torch.autograd.grad((other**2).sum() - 1, [t["qkv"], t["up"]])
    for a, b in zip(found, wanted, strict=True):
        close(a, b.numpy(), 1e-11)
