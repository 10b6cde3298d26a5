"""The training steps of JAX and tinygrad, which have no layers of their own or none that match: the
networks of models.py as functions of their weights, over the few operations that both call by
different names. Images are channels-last inside of JAX, where that is faster."""

from __future__ import annotations

import math
from typing import Any

from bench.peers import Array, Lazy, Run, jax, narrow, recorded, tinygrad

Weights = dict[str, Any]


# --- the networks ---------------------------------------------------------------------------------


def linear(ops: Any, p: Weights, name: str, x: Any) -> Any:
    """x @ weight.T + bias."""
    y = x @ p[f"{name}.weight"].T
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def mlp(ops: Any, p: Weights, x: Any) -> Any:
    """models.mlp"""
    h = ops.relu(linear(ops, p, "0", x))
    return linear(ops, p, "4", ops.relu(linear(ops, p, "2", h)))


def mnist_cnn(ops: Any, p: Weights, x: Any) -> Any:
    """models.mnist_cnn"""
    x = ops.relu(ops.conv(p, "2", ops.relu(ops.conv(p, "0", ops.image(x)))))
    x = ops.pool(ops.batch_norm(p, "4", x))
    x = ops.relu(ops.conv(p, "8", ops.relu(ops.conv(p, "6", x))))
    return linear(ops, p, "13", ops.flat(ops.pool(ops.batch_norm(p, "10", x))))


def resnet18(ops: Any, p: Weights, x: Any, blocks: int = 2) -> Any:
    """models.resnet18"""
    x = ops.relu(ops.batch_norm(p, "bn", ops.conv(p, "conv", ops.image(x), 1, 1)))
    for number in range(4 * blocks):
        n, stride = f"stages.{number}", 2 if number >= blocks and number % blocks == 0 else 1
        h = ops.relu(ops.batch_norm(p, f"{n}.bn1", ops.conv(p, f"{n}.conv1", x, stride, 1)))
        h = ops.batch_norm(p, f"{n}.bn2", ops.conv(p, f"{n}.conv2", h, 1, 1))
        if f"{n}.short.0.weight" in p:
            x = ops.batch_norm(p, f"{n}.short.1", ops.conv(p, f"{n}.short.0", x, stride))
        x = ops.relu(h + x)
    return linear(ops, p, "fc", ops.mean(x))


def gpt(ops: Any, p: Weights, tokens: Any, layers: int, heads: int) -> Any:
    """models.gpt"""
    x = ops.rows(p["wte.weight"], tokens) + p["wpe.weight"]
    b, t, c = x.shape
    for layer in range(layers):
        n = f"blocks.{layer}"
        parts = linear(ops, p, f"{n}.qkv", ops.layer_norm(p, f"{n}.ln1", x))
        parts = parts.reshape(b, t, 3, heads, c // heads)
        q, k, v = (ops.permute(parts[:, :, i], (0, 2, 1, 3)) for i in range(3))
        y = ops.permute(ops.attention(q, k, v), (0, 2, 1, 3)).reshape(b, t, c)
        x = x + linear(ops, p, f"{n}.proj", y)
        h = ops.gelu(linear(ops, p, f"{n}.fc", ops.layer_norm(p, f"{n}.ln2", x)))
        x = x + linear(ops, p, f"{n}.fc2", h)
    return linear(ops, p, "head", ops.layer_norm(p, "ln", x))


# --- JAX ------------------------------------------------------------------------------------------


class Jax:
    """Operations of JAX; images are (N, H, W, C)."""

    def __init__(self) -> None:
        self.jnp, self.lax = jax.numpy, jax.lax
        self.relu, self.permute = jax.nn.relu, jax.numpy.transpose

    def gelu(self, x: Any) -> Any:
        return jax.nn.gelu(x, approximate=True)

    def rows(self, table: Any, index: Any) -> Any:
        return table[index]

    def image(self, x: Any) -> Any:
        return self.jnp.transpose(x, (0, 2, 3, 1))

    def flat(self, x: Any) -> Any:
        return self.jnp.transpose(x, (0, 3, 1, 2)).reshape(x.shape[0], -1)

    def mean(self, x: Any) -> Any:
        return x.mean((1, 2))

    def conv(self, p: Weights, name: str, x: Any, stride: int = 1, padding: int = 0) -> Any:
        y = self.lax.conv_general_dilated(
            x,
            p[f"{name}.weight"],
            (stride, stride),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
        )
        return y + p[f"{name}.bias"] if f"{name}.bias" in p else y

    def pool(self, x: Any) -> Any:
        window = (1, 2, 2, 1)
        return self.lax.reduce_window(x, -self.jnp.inf, self.lax.max, window, window, "VALID")

    def batch_norm(self, p: Weights, name: str, x: Any) -> Any:
        return self._norm(p, name, x, (0, 1, 2))

    def layer_norm(self, p: Weights, name: str, x: Any) -> Any:
        return self._norm(p, name, x, (-1,))

    def _norm(self, p: Weights, name: str, x: Any, axes: tuple[int, ...]) -> Any:
        y = x - x.mean(axes, keepdims=True)
        y = y * self.lax.rsqrt((y * y).mean(axes, keepdims=True) + 1e-5)
        return y * p[f"{name}.weight"] + p[f"{name}.bias"]

    def attention(self, q: Any, k: Any, v: Any) -> Any:
        jnp, length = self.jnp, q.shape[2]
        scores = jnp.einsum("bhtd,bhsd->bhts", q, k) / math.sqrt(q.shape[-1])
        scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -jnp.inf)
        return jnp.einsum("bhts,bhsd->bhtd", jax.nn.softmax(scores, -1), v)

    def cross_entropy(self, logits: Any, labels: Any) -> Any:
        logs = jax.nn.log_softmax(logits, -1)
        return -self.jnp.take_along_axis(logs, labels[:, None], 1).mean()


def with_jax(task: Any, state: dict[str, Array]) -> Run:
    """One jitted step, its state updated in place."""
    jnp, tree, ops = jax.numpy, jax.tree.map, Jax()
    p = {k: jnp.asarray(v) for k, v in trained(state).items()}
    x, y = jnp.asarray(narrow(task.inputs[0])), jnp.asarray(narrow(task.target)).reshape(-1)
    held = [(p, tree(jnp.zeros_like, p), tree(jnp.zeros_like, p), jnp.zeros(()))]
    lr = task.settings["lr"]

    def loss(p: Weights) -> Any:
        logits = task.function(ops, p, x)
        return ops.cross_entropy(logits.reshape(-1, logits.shape[-1]), y)

    def momentum(p: Any, m: Any, v: Any, g: Any, t: Any) -> Any:
        m = tree(lambda m, g: task.settings["momentum"] * m + g, m, g)
        return tree(lambda p, m: p - lr * m, p, m), m, v

    def adam(p: Any, m: Any, v: Any, g: Any, t: Any) -> Any:
        decay = 1 - lr * task.settings.get("weight_decay", 0.0)
        m = tree(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = tree(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
        size, root = lr / (1 - 0.9**t), jnp.sqrt(1 - 0.999**t)

        def updated(p: Any, m: Any, v: Any) -> Any:
            return p * decay - size * m / (jnp.sqrt(v) / root + 1e-8)

        return tree(updated, p, m, v), m, v

    def step(held: Any) -> Any:
        p, m, v, t = held
        value, g = jax.value_and_grad(loss)(p)
        p, m, v = (momentum if task.optimizer == "SGD" else adam)(p, m, v, g, t + 1)
        return (p, m, v, t + 1), value

    jitted = jax.jit(step, donate_argnums=0)

    def run() -> Any:
        held[0], value = jitted(held[0])
        return jax.block_until_ready(value)

    return run


def trained(state: dict[str, Array]) -> dict[str, Array]:
    """Without the running statistics of batch norms, which no step of these networks reads."""
    left_out = ("running_mean", "running_var", "num_batches_tracked")
    return {k: v for k, v in state.items() if not k.endswith(left_out)}


# --- tinygrad -------------------------------------------------------------------------------------


class Tinygrad:
    """Operations of tinygrad; images are (N, C, H, W)."""

    def __init__(self) -> None:
        self.embedding = tinygrad.nn.Embedding(2, 2)

    def relu(self, x: Any) -> Any:
        return x.relu()

    def gelu(self, x: Any) -> Any:
        return x.gelu()

    def permute(self, x: Any, order: tuple[int, ...]) -> Any:
        return x.permute(order)

    def rows(self, table: Any, index: Any) -> Any:
        self.embedding.weight = table
        return self.embedding(index)

    def image(self, x: Any) -> Any:
        return x

    def flat(self, x: Any) -> Any:
        return x.flatten(1)

    def mean(self, x: Any) -> Any:
        return x.mean((2, 3))

    def conv(self, p: Weights, name: str, x: Any, stride: int = 1, padding: int = 0) -> Any:
        bias = p.get(f"{name}.bias")
        return x.conv2d(p[f"{name}.weight"], bias, stride=stride, padding=padding)

    def pool(self, x: Any) -> Any:
        return x.max_pool2d((2, 2))

    def batch_norm(self, p: Weights, name: str, x: Any) -> Any:
        mean = x.mean((0, 2, 3))
        y = x - mean.detach().reshape(1, -1, 1, 1)
        root = ((y * y).mean((0, 2, 3)) + 1e-5).rsqrt()
        return x.batchnorm(p[f"{name}.weight"], p[f"{name}.bias"], mean, root)

    def layer_norm(self, p: Weights, name: str, x: Any) -> Any:
        return x.layernorm(eps=1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]

    def attention(self, q: Any, k: Any, v: Any) -> Any:
        return q.scaled_dot_product_attention(k, v, is_causal=True)


def with_tinygrad(task: Any, state: dict[str, Array]) -> Run:
    """One step, recorded by TinyJit at the second."""
    ops = Tinygrad()
    p = {k: tinygrad.Tensor(v).realize() for k, v in trained(state).items()}
    inputs = tinygrad.Tensor(narrow(task.inputs[0])).realize()
    labels = tinygrad.Tensor(narrow(task.target).reshape(-1)).realize()
    optimizer = getattr(Lazy("tinygrad.nn.optim"), task.optimizer)(
        list(p.values()), **task.settings
    )

    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        with tinygrad.Context(TRAINING=1):
            logits = task.function(ops, p, x)
            logits = logits.reshape(-1, logits.shape[-1])
            loss = logits.sparse_categorical_crossentropy(y).backward()
            return loss.realize(*optimizer.schedule_step())

    return recorded(tinygrad.TinyJit(step), inputs, labels, warm=False)
