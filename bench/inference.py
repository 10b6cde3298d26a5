"""Inference: a token of GPT-2 with 124M weights, whose keys and values of the tokens before are
cached, a prompt of several tokens, and an image through ResNet-50. Weights are random.

A token must read every weight once, so the time for that, measured in the same rounds, stands
beside it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from bench import models
from bench.arrays import random, workload
from bench.libraries import Ours, Theirs
from bench.measure import OURS, Candidates, Make
from bench.peers import Array, Run, has, jax, torch
from mygrad import Tensor, jit

State = dict[str, Array]


# --- GPT-2: Radford et al. 2019 -------------------------------------------------------------------


class GPT2:
    """Sizes, weights and the cache of a decoder at one token."""

    def __init__(self, layers: int, width: int, heads: int, vocabulary: int, context: int) -> None:
        self.layers, self.width, self.heads, self.context = layers, width, heads, context
        self.position = context // 2
        shapes = {
            f"{layer}.{name}": shape
            for layer in range(layers)
            for name, shape in {
                "qkv": (3 * width, width),
                "proj": (width, width),
                "fc": (4 * width, width),
                "fc2": (width, 4 * width),
            }.items()
        }
        self.weights: State = {}
        for i, (name, shape) in enumerate(shapes.items()):
            self.weights[f"{name}.weight"] = random(*shape, seed=i, scale=0.02)
            self.weights[f"{name}.bias"] = random(shape[0], seed=i, scale=0.02)
        for name in ["ln"] + [f"{layer}.ln{i}" for layer in range(layers) for i in (1, 2)]:
            self.weights[f"{name}.weight"] = np.ones(width, np.float32)
            self.weights[f"{name}.bias"] = np.zeros(width, np.float32)
        self.weights["wte"] = random(vocabulary, width, scale=0.02)
        self.weights["wpe"] = random(context, width, seed=1, scale=0.02)
        cache = (layers, 2, heads, context, width // heads)  # keys and values
        self.cache = random(*cache, seed=3)

    def ours(self) -> Run:
        """mygrad: one jitted step for every position."""
        p = {name: Tensor(a).realize() for name, a in self.weights.items()}
        cache = [Tensor(a).realize() for a in self.cache]
        places = Tensor.arange(self.context).realize()

        def layer(n: int, x: Tensor, position: Tensor) -> Tensor:
            def linear(name: str, x: Tensor) -> Tensor:
                return x.linear(p[f"{n}.{name}.weight"], p[f"{n}.{name}.bias"])

            def norm(name: str, x: Tensor) -> Tensor:
                return x.layernorm(self.width, p[f"{n}.{name}.weight"], p[f"{n}.{name}.bias"])

            parts = linear("qkv", norm("ln1", x)).reshape(3, self.heads, -1)
            cache[n][:, :, position] = parts[1:]
            keys, values = cache[n][0], cache[n][1]  # (heads, context, width of a head)
            seen = (places <= position).reshape(1, 1, -1)
            q = parts[0].unsqueeze(1)
            y = q.scaled_dot_product_attention(keys, values, attn_mask=seen)
            x = x + linear("proj", y.reshape(self.width))
            return x + linear("fc2", linear("fc", norm("ln2", x)).gelu(approximate="tanh"))

        @jit
        def step(token: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
            x = p["wte"][token] + p["wpe"][position]
            for n in range(self.layers):
                x = layer(n, x, position)
            x = x.layernorm(self.width, p["ln.weight"], p["ln.bias"])
            logits = x.linear(p["wte"])
            return logits.argmax(), logits

        def run() -> Tensor:
            token, logits = step(Tensor(11).realize(), Tensor(self.position).realize())
            token.item()
            return logits

        return run

    def theirs(self) -> Run:
        """PyTorch: reads the part of the cache that is used."""
        functional: Any = torch.nn.functional
        p = {name: torch.from_numpy(a) for name, a in self.weights.items()}
        cache = torch.from_numpy(self.cache.copy())

        def linear(name: str, x: Any) -> Any:
            return functional.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

        def norm(name: str, x: Any) -> Any:
            weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]
            return functional.layer_norm(x, (self.width,), weight, bias)

        def step(token: Any, position: int) -> Any:
            x = p["wte"][token] + p["wpe"][position]
            for n in range(self.layers):
                parts = linear(f"{n}.qkv", norm(f"{n}.ln1", x)).view(3, self.heads, -1)
                cache[n, :, :, position] = parts[1:]
                keys, values = cache[n, :, None, :, : position + 1]
                q = parts[0][None, :, None]
                y = functional.scaled_dot_product_attention(q, keys, values)
                x = x + linear(f"{n}.proj", y.reshape(self.width))
                h = functional.gelu(linear(f"{n}.fc", norm(f"{n}.ln2", x)), approximate="tanh")
                x = x + linear(f"{n}.fc2", h)
            logits = functional.linear(norm("ln", x), p["wte"])
            return logits.argmax(), logits

        def run() -> Any:
            with torch.no_grad():
                token, logits = step(torch.tensor(11), self.position)
                token.item()
            return logits

        return run

    def with_jax(self) -> Run:
        """JAX: one jitted step for every position, the cache donated."""
        jnp, lax = jax.numpy, jax.lax
        p = {name: jnp.asarray(a) for name, a in self.weights.items()}
        held = [jnp.asarray(self.cache)]

        def linear(p: Any, name: str, x: Any) -> Any:
            return p[f"{name}.weight"] @ x + p[f"{name}.bias"]

        def norm(p: Any, name: str, x: Any) -> Any:
            y = x - x.mean()
            y = y * lax.rsqrt((y * y).mean() + 1e-5)
            return y * p[f"{name}.weight"] + p[f"{name}.bias"]

        def step(p: Any, cache: Any, token: Any, position: Any) -> Any:
            x = p["wte"][token] + p["wpe"][position]
            seen = jnp.arange(self.context) <= position
            for n in range(self.layers):
                parts = linear(p, f"{n}.qkv", norm(p, f"{n}.ln1", x)).reshape(3, self.heads, -1)
                cache = cache.at[n, :, :, position].set(parts[1:])
                scores = jnp.einsum("hd,hsd->hs", parts[0], cache[n, 0]) * parts.shape[-1] ** -0.5
                shares = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), -1)
                y = jnp.einsum("hs,hsd->hd", shares, cache[n, 1])
                x = x + linear(p, f"{n}.proj", y.reshape(self.width))
                h = jax.nn.gelu(linear(p, f"{n}.fc", norm(p, f"{n}.ln2", x)), approximate=True)
                x = x + linear(p, f"{n}.fc2", h)
            logits = p["wte"] @ norm(p, "ln", x)
            return logits.argmax(), logits, cache

        jitted = jax.jit(step, donate_argnums=1)

        def run() -> Any:
            token, logits, held[0] = jitted(p, held[0], 11, self.position)
            int(token)
            return logits

        return run

    def read_weights(self) -> Run:
        """The sum of every weight: none can be had for less than reading it."""
        arrays = [a for name, a in self.weights.items() if name != "wpe"]
        if not has("torch"):
            return lambda: [a.sum() for a in arrays]
        tensors = [torch.from_numpy(a) for a in arrays]
        return lambda: [t.sum() for t in tensors]


class Prompt(GPT2):
    """The same network at all tokens of a prompt at once; the logits of the last one."""

    def forward(
        self, x: Any, linear: Any, norm: Any, attention: Callable[..., Any], gelu: Any, wte: Any
    ) -> Any:
        """From embeddings (tokens, width) to logits; `attention` is of (tokens, heads, width)."""
        for n in range(self.layers):
            parts = linear(f"{n}.qkv", norm(f"{n}.ln1", x)).reshape(len(x), 3, self.heads, -1)
            y = attention(parts[:, 0], parts[:, 1], parts[:, 2])
            x = x + linear(f"{n}.proj", y.reshape(len(x), self.width))
            x = x + linear(f"{n}.fc2", gelu(linear(f"{n}.fc", norm(f"{n}.ln2", x))))
        return norm("ln", x)[-1] @ wte.T

    @property
    def tokens(self) -> Array:
        """Of the whole context."""
        vocabulary = len(self.weights["wte"])
        return np.random.default_rng(5).integers(0, vocabulary, self.context)

    def ours(self) -> Run:
        """mygrad: one jitted step."""
        p = {name: Tensor(a).realize() for name, a in self.weights.items()}

        def attention(*parts: Tensor) -> Tensor:
            q, k, v = (t.transpose(0, 1) for t in parts)
            return q.scaled_dot_product_attention(k, v, is_causal=True).transpose(0, 1)

        @jit
        def step(tokens: Tensor) -> Tensor:
            return self.forward(  # type: ignore[no-any-return]
                p["wte"][tokens] + p["wpe"],
                lambda name, x: x.linear(p[f"{name}.weight"], p[f"{name}.bias"]),
                lambda name, x: x.layernorm(self.width, p[f"{name}.weight"], p[f"{name}.bias"]),
                attention,
                lambda x: x.gelu(approximate="tanh"),
                p["wte"],
            )

        tokens = Tensor(self.tokens).realize()
        return lambda: step(tokens)

    def theirs(self) -> Run:
        """PyTorch."""
        functional: Any = torch.nn.functional
        p = {name: torch.from_numpy(a) for name, a in self.weights.items()}

        def attention(*parts: Any) -> Any:
            q, k, v = (t.transpose(0, 1) for t in parts)
            y = functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)
            return y[0].transpose(0, 1)

        def norm(name: str, x: Any) -> Any:
            weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]
            return functional.layer_norm(x, (self.width,), weight, bias)

        tokens = torch.from_numpy(self.tokens)

        def run() -> Any:
            with torch.no_grad():
                return self.forward(
                    p["wte"][tokens] + p["wpe"],
                    lambda name, x: functional.linear(x, p[f"{name}.weight"], p[f"{name}.bias"]),
                    norm,
                    attention,
                    lambda x: functional.gelu(x, approximate="tanh"),
                    p["wte"],
                )

        return run

    def with_jax(self) -> Run:
        """JAX: one jitted step."""
        jnp, lax = jax.numpy, jax.lax
        weights = {name: jnp.asarray(a) for name, a in self.weights.items()}

        def attention(*parts: Any) -> Any:
            return jax.nn.dot_product_attention(*(t[None] for t in parts), is_causal=True)[0]

        def step(p: Any, tokens: Any) -> Any:
            def norm(name: str, x: Any) -> Any:
                y = x - x.mean(-1, keepdims=True)
                y = y * lax.rsqrt((y * y).mean(-1, keepdims=True) + 1e-5)
                return y * p[f"{name}.weight"] + p[f"{name}.bias"]

            return self.forward(
                p["wte"][tokens] + p["wpe"],
                lambda name, x: x @ p[f"{name}.weight"].T + p[f"{name}.bias"],
                norm,
                attention,
                lambda x: jax.nn.gelu(x, approximate=True),
                p["wte"],
            )

        jitted, tokens = jax.jit(step), jnp.asarray(self.tokens)
        return lambda: jax.block_until_ready(jitted(weights, tokens))


def prompt(layers: int, width: int, heads: int, vocabulary: int, context: int) -> Candidates:
    """So many tokens at once."""
    model = Prompt(layers, width, heads, vocabulary, context)
    return {OURS: model.ours, "torch": model.theirs, "jax": model.with_jax}


def decode(layers: int, width: int, heads: int, vocabulary: int, context: int) -> Candidates:
    """One token, in the middle of a context of so many."""
    model = GPT2(layers, width, heads, vocabulary, context)
    return {
        OURS: model.ours,
        "torch": model.theirs,
        "jax": model.with_jax,
        "@read the weights": model.read_weights,
    }


# --- ResNet-50 ------------------------------------------------------------------------------------


def resnet50(size: int, blocks: tuple[int, ...]) -> Candidates:
    """One image of (3, size, size); logits."""
    x = random(1, 3, size, size)
    Tensor.manual_seed(1)
    state = models.resnet50(Ours, blocks).state_dict()
    Tensor.realize(*state.values())
    weights = {k: v.numpy() for k, v in state.items()}

    def ours() -> Run:
        model = models.resnet50(Ours, blocks)
        model.load_state_dict(weights)
        model.eval()
        image = Tensor(x).realize()

        @jit
        def step(image: Tensor) -> Tensor:
            with Tensor.no_grad():
                return model(image)

        return lambda: step(image)

    def theirs(compiled: bool = False, last: bool = False) -> Run:
        model = models.resnet50(Theirs, blocks)
        model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in weights.items()})
        model.eval()
        image = torch.from_numpy(x)
        if last:
            model = model.to(memory_format=torch.channels_last)
            image = image.to(memory_format=torch.channels_last)
        if compiled:  # with weights as constants, which is its fastest
            importlib.import_module("torch._inductor.config").freezing = True  # type: ignore[attr-defined]
            model = torch.compile(model, dynamic=False)

        def run() -> Any:
            with torch.no_grad():
                return model(image)

        return run

    made: dict[str, Make] = {OURS: ours, "torch": theirs}
    made["torch/channels last"] = partial(theirs, last=True)
    made["torch.compile"] = partial(theirs, compiled=True)
    return made


WORKLOADS = (
    workload(
        "GPT-2 124M token",
        decode,
        (12, 768, 12, 50257, 128),
        (2, 32, 2, 100, 16),
        bytes=4 * 123.65e6,
    ),
    workload(
        "GPT-2 124M prompt of 64",
        prompt,
        (12, 768, 12, 50257, 64),
        (2, 32, 2, 100, 16),
        flops=2 * 64 * 85e6,
    ),
    workload(
        "ResNet-50 image", resnet50, (224, (3, 4, 6, 3)), (32, (1, 1, 1, 1)), flops=2 * 4.09e9
    ),
)
