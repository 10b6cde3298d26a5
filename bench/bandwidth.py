"""What memory bounds, beside a copy that is timed in the same rounds."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.arrays import beside_copy, candidates, integers, random, with_gradient, workload
from bench.measure import Candidates
from bench.peers import Array, Lazy, jax
from mygrad import Tensor

functional: Any = Lazy("torch.nn.functional")


def gelu_chain(n: int) -> Candidates:
    """gelu(x * 1.5 + 0.5) * sigmoid(x)."""

    def plain(x: Array) -> Array:
        y = x * np.float32(1.5) + np.float32(0.5)
        inner = np.float32(0.7978845608) * (y + np.float32(0.044715) * y * y * y)
        return np.float32(0.5) * y * (1 + np.tanh(inner)) / (1 + np.exp(-x))

    return beside_copy(
        candidates(
            [random(n)],
            lambda x: (x * 1.5 + 0.5).gelu(approximate="tanh") * x.sigmoid(),
            numpy=plain,
            torch=lambda x: functional.gelu(x * 1.5 + 0.5, approximate="tanh") * x.sigmoid(),
            jax=lambda x: jax.nn.gelu(x * 1.5 + 0.5, approximate=True) * jax.nn.sigmoid(x),
            tinygrad=lambda x: (x * 1.5 + 0.5).gelu() * x.sigmoid(),
            compiled=True,
        )
    )


def softmax(rows: int, columns: int) -> Candidates:
    """Of each row."""

    def plain(x: Array) -> Array:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def tensors(x: Any) -> Any:
        return x.softmax(-1)

    return beside_copy(
        candidates(
            [random(rows, columns)],
            tensors,
            numpy=plain,
            torch=tensors,
            jax=lambda x: jax.nn.softmax(x, -1),
            tinygrad=tensors,
            compiled=True,
        )
    )


def layer_norm(rows: int, columns: int) -> Candidates:
    """Of each row, with weight and bias."""

    def plain(x: Any, w: Any, b: Any) -> Any:
        y = x - x.mean(-1, keepdims=True)
        return y / np.sqrt((y * y).mean(-1, keepdims=True) + np.float32(1e-5)) * w + b

    def jitted(x: Any, w: Any, b: Any) -> Any:
        y = x - x.mean(-1, keepdims=True)
        return y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + 1e-5) * w + b

    return beside_copy(
        candidates(
            [random(rows, columns), random(columns, seed=1), random(columns, seed=2)],
            lambda x, w, b: x.layernorm(columns, w, b),
            numpy=plain,
            torch=lambda x, w, b: functional.layer_norm(x, (columns,), w, b),
            jax=jitted,
            tinygrad=lambda x, w, b: x.layernorm() * w + b,
            compiled=True,
        )
    )


def cross_entropy(rows: int, classes: int) -> Candidates:
    """Loss and its gradient for the logits."""
    arrays = [random(rows, classes), integers(classes, rows)]

    def tensors(x: Tensor, y: Tensor) -> list[Tensor]:
        loss = x.cross_entropy(y)
        return [loss, *loss.gradient(x)]

    def jitted(x: Any, y: Any) -> Any:
        def loss(x: Any) -> Any:
            return -jax.numpy.take_along_axis(jax.nn.log_softmax(x, -1), y[:, None], 1).mean()

        return jax.value_and_grad(loss)(x)

    def tiny(x: Any, y: Any) -> Any:
        loss = x.sparse_categorical_crossentropy(y)
        return [loss, *loss.gradient(x)]

    def loss(x: Any, y: Any) -> Any:
        return functional.cross_entropy(x, y)

    made = candidates(arrays, tensors, gradient=True, jax=jitted, tinygrad=tiny)
    return beside_copy(made | with_gradient(loss, arrays, True))


def total(n: int) -> Candidates:
    """Sum of all elements."""

    def tensors(x: Any) -> Any:
        return x.sum()

    who: dict[str, Any] = dict.fromkeys(["numpy", "torch", "jax", "tinygrad"], tensors)
    return beside_copy(candidates([random(n)], tensors, compiled=True, **who))


def transposed_copy(n: int) -> Candidates:
    """A square, its rows and columns exchanged in memory."""

    def tensors(x: Any) -> Any:
        return x.T.contiguous()

    return beside_copy(
        candidates(
            [random(n, n)],
            tensors,
            numpy=lambda x: np.ascontiguousarray(x.T),
            torch=tensors,
            jax=lambda x: x.T,
            tinygrad=tensors,
            compiled=True,
        )
    )


def embedding(vocabulary: int, width: int, count: int) -> Candidates:
    """Rows of a table."""

    def rows(table: Any, i: Any) -> Any:
        return table[i]

    arrays = [random(vocabulary, width), integers(vocabulary, count)]
    made = candidates(
        arrays,
        rows,
        numpy=rows,
        torch=lambda table, i: functional.embedding(i, table),
        jax=rows,
        tinygrad=rows,
        compiled=True,
    )
    return beside_copy(made)


def embedding_gradient(vocabulary: int, width: int, count: int) -> Candidates:
    """Rows of a table, and the gradient for the table of the sum of their squares."""
    arrays = [random(vocabulary, width), integers(vocabulary, count)]

    def tensors(table: Any, i: Any) -> Any:
        rows = table[i]
        return (rows * rows).sum().gradient(table)[0]

    def jitted(table: Any, i: Any) -> Any:
        return jax.grad(lambda t: (t[i] * t[i]).sum())(table)

    def loss(table: Any, i: Any) -> Any:
        rows = functional.embedding(i, table)
        return (rows * rows).sum()

    made = candidates(arrays, tensors, gradient=True, jax=jitted, tinygrad=tensors)
    return beside_copy(made | with_gradient(loss, arrays, False))


def prefix_sum(n: int) -> Candidates:
    """Cumulative sum."""

    def tensors(x: Any) -> Any:
        return x.cumsum(0)

    who: dict[str, Any] = dict.fromkeys(["numpy", "torch", "jax", "tinygrad"], tensors)
    return beside_copy(candidates([random(n)], tensors, **who))


def argmax(n: int) -> Candidates:
    """Place of the largest element."""

    def tensors(x: Any) -> Any:
        return x.argmax()

    who: dict[str, Any] = dict.fromkeys(["numpy", "torch", "jax", "tinygrad"], tensors)
    return beside_copy(candidates([random(n)], tensors, **who))


def sort(n: int) -> Candidates:
    """Values in order."""

    def tensors(x: Any) -> Any:
        return x.sort()[0]

    who: dict[str, Any] = {"numpy": np.sort, "jax": lambda x: jax.numpy.sort(x)}
    return beside_copy(candidates([random(n)], tensors, torch=tensors, tinygrad=tensors, **who))


F = 4  # bytes of a float32
M = 1 << 20

WORKLOADS = (
    workload("gelu chain 4M", gelu_chain, (4 * M,), (5000,), bytes=8 * 4 * M),
    workload("gelu chain 16M", gelu_chain, (16 * M,), (4999,), bytes=8 * 16 * M),
    workload("softmax", softmax, (4096, 1024), (64, 100), bytes=8 * 4 * M),
    workload("layer norm", layer_norm, (4096, 1024), (64, 100), bytes=8 * 4 * M),
    workload("cross-entropy", cross_entropy, (4096, 32000), (64, 100), bytes=3 * F * 4096 * 32000),
    workload("sum 16M", total, (16 * M,), (5000,), bytes=F * 16 * M),
    workload("transposed copy 4096", transposed_copy, (4096,), (100,), bytes=8 * 16 * M),
    workload("embedding", embedding, (50000, 256, 8192), (100, 16, 50), bytes=8 * 256 * 8192),
    workload(
        "embedding gradient",
        embedding_gradient,
        (50000, 256, 8192),
        (100, 16, 50),
        bytes=F * 256 * (4 * 8192 + 50000),
    ),
    workload("cumsum 1M", prefix_sum, (M,), (5000,), bytes=8 * M),
    workload("argmax 1M", argmax, (M,), (5000,), bytes=F * M, tolerance=0),
    workload("sort 1M", sort, (M,), (5000,), bytes=8 * M, tolerance=0),
)
