"""What the networks are made of: mygrad's layers (Ours), PyTorch's (Theirs), and mygrad's in mixed
precision (Mixed). Only what the two libraries call by different names is spelled out here."""

from __future__ import annotations

import types
from typing import Any

from bench.peers import Lazy, torch
from mygrad import Tensor, nn

BF16 = "bfloat16"


class LSTM(nn.Module):
    """What PyTorch's LSTM with `batch_first` computes: (B, T, inputs) -> (B, T, hidden).

    Hochreiter and Schmidhuber 1997, with a forget gate. mygrad has no such layer.
    """

    def __init__(self, inputs: int, hidden: int, layers: int) -> None:
        self.hidden, self.layers = hidden, layers
        shapes: dict[str, tuple[int, ...]]
        shapes = {"weight_ih": (4 * hidden, inputs), "weight_hh": (4 * hidden, hidden)}
        shapes |= {"bias_ih": (4 * hidden,), "bias_hh": (4 * hidden,)}
        for layer in range(layers):
            for name, shape in shapes.items():
                setattr(self, f"{name}_l{layer}", nn.init.fan_in_uniform(shape, hidden))
            shapes["weight_ih"] = (4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        for layer in range(self.layers):
            x = self.run(x, *(getattr(self, f"{n}_l{layer}") for n in self.names))
        return x

    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")

    def run(
        self, x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
    ) -> Tensor:
        """One layer; the gates of all times in one product."""
        batch, length, _ = x.shape
        inputs = x.linear(weight_ih, bias_ih + bias_hh)
        h = c = Tensor.zeros(batch, self.hidden)
        outputs = []
        for time in range(length):
            i, f, g, o = (inputs[:, time] + h.linear(weight_hh)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return outputs[0].stack(*outputs[1:], axis=1)


class Ours:
    """mygrad."""

    nn: Any = nn
    LSTM = LSTM

    @staticmethod
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal; all (B, heads, T, width)."""
        return q.scaled_dot_product_attention(k, v, is_causal=True)

    @staticmethod
    def cat(a: Tensor, b: Tensor) -> Tensor:
        """Channels of both."""
        return a.cat(b, axis=1)

    @staticmethod
    def double(x: Tensor) -> Tensor:
        """Each pixel four times."""
        return x.interpolate(scale_factor=2)


class Theirs:
    """PyTorch."""

    nn: Any = Lazy("torch.nn")

    @staticmethod
    def LSTM(inputs: int, hidden: int, layers: int) -> Any:
        """The layer itself, without its last state."""

        class Outputs(torch.nn.LSTM):  # type: ignore[name-defined,misc]
            def forward(self, x: Any) -> Any:
                return super().forward(x)[0]

        return Outputs(inputs, hidden, layers, batch_first=True)

    @staticmethod
    def attention(q: Any, k: Any, v: Any) -> Any:
        """Causal; all (B, heads, T, width)."""
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    @staticmethod
    def cat(a: Any, b: Any) -> Any:
        """Channels of both."""
        return torch.cat([a, b], 1)

    @staticmethod
    def double(x: Any) -> Any:
        """Each pixel four times."""
        return torch.nn.functional.interpolate(x, scale_factor=2)


# --- mixed precision: float32 weights, bfloat16 products ------------------------------------------
# What PyTorch's autocast does by itself is spelled out by casts: products and convolutions take and
# give bfloat16, norms compute in float32.


def half(x: Tensor | None) -> Tensor | None:
    """As bfloat16."""
    return None if x is None else x.cast(BF16)


class Linear(nn.Linear):
    """Linear in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cast(BF16).linear(self.weight.cast(BF16), half(self.bias))


class Conv2d(nn.Conv2d):
    """Conv2d in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.cast(BF16), half(self.bias)
        return x.cast(BF16).conv2d(weight, bias, stride=self.stride, padding=self.padding)


class BatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d of bfloat16, statistics in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).cast(BF16)


class LayerNorm(nn.LayerNorm):
    """LayerNorm in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


class Mixed(Ours):
    """mygrad in mixed precision."""

    nn = types.SimpleNamespace(
        **{name: getattr(nn, name) for name in nn.__all__}
        | {"Linear": Linear, "Conv2d": Conv2d}
        | {"BatchNorm2d": BatchNorm2d, "LayerNorm": LayerNorm}
    )
