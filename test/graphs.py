"""Small graphs that several tests build from primitives, without the Tensor API."""

from __future__ import annotations

import numpy as np

from mygrad import dtype as dt
from mygrad import graph as g
from mygrad import realize
from mygrad.graph import Node
from mygrad.helpers import Shape
from mygrad.ops import Op
from mygrad.program import Buffer
from mygrad.runtime import device as devices


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def buffer(*shape: int, seed: int = 0, device: str | None = None) -> Node:
    return realize.from_numpy(array(*shape, seed=seed), device=device)


def read(memory: Buffer) -> np.ndarray:
    out = np.empty(memory.size, memory.dtype.storage)
    if out.size:
        devices.get(memory.device).read(memory.memory, out)
    return out


def expand(x: Node, shape: Shape) -> Node:
    return g.move(Op.EXPAND, x, shape)


def reshape(x: Node, shape: Shape) -> Node:
    return g.move(Op.RESHAPE, x, shape)


def full(value: float, like: Node) -> Node:
    return g.const(value, like.dtype, like.shape)


def sub(a: Node, b: Node) -> Node:
    return g.alu(Op.ADD, a, g.alu(Op.NEG, b))


def relu(x: Node) -> Node:
    return g.alu(Op.MAX, x, full(0, x))


def row(op: Op, x: Node) -> Node:
    """A reduction of the last axis, spread over it again."""
    kept = (*x.shape[:-1], 1)
    return expand(reshape(g.reduce(op, x, (len(x.shape) - 1,)), kept), x.shape)


def softmax(x: Node) -> Node:
    e = g.alu(Op.EXP, sub(x, row(Op.MAX, x)))
    return g.alu(Op.DIV, e, row(Op.ADD, e))


def layer_norm(x: Node) -> Node:
    scale = full(1 / x.shape[-1], x)
    centred = sub(x, g.alu(Op.MUL, row(Op.ADD, x), scale))
    variance = g.alu(Op.MUL, row(Op.ADD, g.alu(Op.MUL, centred, centred)), scale)
    return g.alu(Op.DIV, centred, g.alu(Op.SQRT, g.alu(Op.ADD, variance, full(1e-5, x))))


def matmul(a: Node, b: Node) -> Node:
    (m, k), (_, n) = a.shape, b.shape
    left = expand(reshape(a, (m, k, 1)), (m, k, n))
    return g.reduce(Op.ADD, g.alu(Op.MUL, left, expand(b, (m, k, n))), (1,))


def conv(x: Node, w: Node) -> Node:
    """Two-dimensional, valid, stride 1: (n, c, h, w) with (o, c, kh, kw)."""
    (n, c, h, width), (o, _, kh, kw) = x.shape, w.shape
    windows = g.move(Op.WINDOW, g.move(Op.WINDOW, x, (2, kh, 1, 1)), (4, kw, 1, 1))
    oh, ow = h - kh + 1, width - kw + 1
    space = (n, o, c, oh, kh, ow, kw)
    left = expand(reshape(windows, (n, 1, c, oh, kh, ow, kw)), space)
    right = expand(reshape(w, (1, o, c, 1, kh, 1, kw)), space)
    return g.reduce(Op.ADD, g.alu(Op.MUL, left, right), (2, 4, 6))


def pad(x: Node, *widths: tuple[int, int]) -> Node:
    return g.move(Op.PAD, x, widths)


def index(values: list[int], like: Shape) -> Node:
    """Indices along the first axis, the same for everything behind it."""
    column = realize.from_numpy(np.array(values, np.int64))
    return expand(reshape(column, (len(values), *(1,) * (len(like) - 1))), (len(values), *like[1:]))


def zeros(*shape: int) -> Node:
    return g.const(0, dt.float32, shape)
