"""Three training steps of small networks, and what came of them, as digests.

    python test/model_steps.py cnn lstm

prints one line for each model: its name and a digest of its losses, gradients, parameters and
state, bit for bit. Tests run it under different settings, which must not change a bit.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from mygrad import Tensor, jit, nn

Array = np.ndarray[Any, Any]
Model = tuple[nn.Module, Array, Array]


class Residual(nn.Module):
    """Two convolutions and a norm beside a strided 1x1 convolution."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outer)
        self.second = nn.Conv2d(outer, outer, 3, padding=1, groups=2)
        self.short = nn.Conv2d(inner, outer, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inner, h, w) -> (n, outer, h / stride, w / stride)"""
        return (self.second(self.norm(self.first(x)).relu()) + self.short(x)).relu()


class Block(nn.Module):
    """Causal attention and a gelu network, each behind a norm and beside its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.Sequential(nn.LayerNorm(width), nn.LayerNorm(width))
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, steps, width) to the same"""
        b, s, d = x.shape
        parts = self.mix(self.norms[0](x)).split(d, 2)
        q, k, v = (t.reshape(b, s, self.heads, d // self.heads).permute(0, 2, 1, 3) for t in parts)
        mask = Tensor.full((s, s), -np.inf).triu(1)
        weights = (q @ k.transpose(-2, -1) * (d // self.heads) ** -0.5 + mask).softmax(-1)
        x = x + self.out((weights @ v).permute(0, 2, 1, 3).reshape(b, s, d))
        return x + self.down(self.up(self.norms[1](x)).gelu())


class Language(nn.Module):
    """An embedding, blocks, and the logits of the next token."""

    def __init__(self, vocabulary: int, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.Sequential(*(Block(width, 2) for _ in range(depth)))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, steps) -> (batch * steps, vocabulary)"""
        logits = self.head(self.blocks(self.embed(tokens)))
        return logits.reshape(-1, logits.shape[-1])


class Recurrent(nn.Module):
    """An LSTM, and logits from its last state."""

    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.width = width
        self.x, self.h = nn.Linear(inputs, 4 * width), nn.Linear(width, 4 * width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, steps, inputs) -> (batch, classes)"""
        h = c = Tensor.zeros(x.shape[0], self.width)
        for t in range(x.shape[1]):
            i, f, o, u = (self.x(x[:, t]) + self.h(h)).split(self.width, 1)
            c = f.sigmoid() * c + i.sigmoid() * u.tanh()
            h = o.sigmoid() * c.tanh()
        return self.head(h)


def _floats(*shape: int) -> Array:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def _labels(classes: int, *shape: int) -> Array:
    return np.random.default_rng(8).integers(0, classes, shape)


def cnn(batch: int, channels: int) -> Model:
    """That of MNIST, on images of its size."""
    layers = (
        nn.Conv2d(1, channels, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2 * channels * 25, 10),
    )  # fmt: skip
    return nn.Sequential(*layers), _floats(batch, 1, 28, 28), _labels(10, batch)


def transformer(batch: int, steps: int, width: int, depth: int) -> Model:
    """A language model on random tokens."""
    tokens = _labels(23, batch, steps)
    return Language(23, width, depth), tokens, np.roll(tokens, -1, 1).reshape(-1)


def lstm(batch: int, steps: int, width: int) -> Model:
    """A classifier of sequences."""
    return Recurrent(5, width, 4), _floats(batch, steps, 5), _labels(4, batch)


def resnet(batch: int, width: int) -> Model:
    """Residual blocks with batch norms, grouped and strided convolutions."""
    blocks = (Residual(3, width, 1), Residual(width, 2 * width, 2), nn.AvgPool2d(2), nn.Flatten())
    layers = (*blocks, nn.Linear(2 * width * 16, 5))
    return nn.Sequential(*layers), _floats(batch, 3, 16, 16), _labels(5, batch)


MODELS: dict[str, Callable[[], Model]] = {
    "cnn": lambda: cnn(7, 4),
    "transformer": lambda: transformer(2, 7, 12, 1),
    "lstm": lambda: lstm(3, 3, 10),
    "large_cnn": lambda: cnn(64, 32),
    "large_transformer": lambda: transformer(8, 65, 128, 2),
    # fewer steps than joins.LEAST: guard pages leave products apart, and joined ones round anew
    "large_lstm": lambda: lstm(32, 7, 100),
    "resnet": lambda: resnet(9, 16),
}


def digest(name: str) -> str:
    """What three steps of Adam make of a model."""
    Tensor.manual_seed(1)
    model, x, y = MODELS[name]()
    optimizer = nn.optim.Adam(model.parameters(), lr=1e-2)

    @jit
    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = nn.CrossEntropyLoss()(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    losses = [step(Tensor(x), Tensor(y)).numpy() for _ in range(3)]
    state = [value.numpy() for value in model.state_dict().values()]
    assert all(np.isfinite(a).all() for a in (*losses, *state) if a.dtype.kind == "f"), name
    print(name, [float(one) for one in losses], file=sys.stderr)
    return hashlib.sha256(b"".join(a.tobytes() for a in (*losses, *state))).hexdigest()


if __name__ == "__main__":
    for wanted in sys.argv[1:] or MODELS:
        print(wanted, digest(wanted), flush=True)
