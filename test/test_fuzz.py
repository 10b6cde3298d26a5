"""Random graphs: every device must compute exactly what the interpreter of graphs computes.

Values are small whole numbers kept in [-8, 8], so float32 arithmetic is exact in any order and
results are compared bit for bit; rounding is the business of other tests."""

from __future__ import annotations

import os

import numpy as np
import pytest
from graphs import expand, full, read, reshape
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mygrad import dtype as dt
from mygrad import graph as g
from mygrad import interpret, realize
from mygrad.graph import Node
from mygrad.ops import Op
from mygrad.runtime import device as devices

DEVICES = ["reference", "cpu", "opencl"]
Draw = st.DataObject


def whole(data: Draw, shape: tuple[int, ...], device: str) -> Node:
    seed = data.draw(st.integers(0, 99))
    values = np.random.default_rng(seed).integers(-8, 9, shape)
    return realize.from_numpy(values.astype(np.float32), device=device)


def clamp(x: Node) -> Node:
    negative = g.alu(Op.NEG, g.alu(Op.MAX, x, full(-8, x)))
    return g.alu(Op.NEG, g.alu(Op.MAX, negative, full(-8, x)))


def unary(data: Draw, x: Node, device: str) -> Node:
    kind = data.draw(st.sampled_from(["neg", "relu", "where", "cast", "square"]))
    if kind == "neg":
        return g.alu(Op.NEG, x)
    if kind == "relu":
        return g.alu(Op.MAX, x, full(data.draw(st.integers(-2, 2)), x))
    if kind == "where":
        return g.alu(Op.WHERE, g.alu(Op.LT, x, full(1, x)), full(3, x), x)
    if kind == "cast":
        narrow = data.draw(
            st.sampled_from([dt.int32, dt.int8, dt.bfloat16, dt.float16, dt.float64])
        )
        return g.cast(g.cast(x, narrow), dt.float32)
    return clamp(g.alu(Op.MUL, x, x))


def binary(data: Draw, x: Node, device: str) -> Node:
    """With another array, or with a permuted or reduced form of itself spread again."""
    kind = data.draw(st.sampled_from(["other", "row", "first"]))
    if kind == "other" or not x.shape:
        y = whole(data, x.shape, device)
    else:
        axis = data.draw(st.integers(0, len(x.shape) - 1)) if kind == "row" else 0
        kept = tuple(1 if i == axis else n for i, n in enumerate(x.shape))
        y = expand(reshape(g.reduce(Op.MAX, x, (axis,)), kept), x.shape)
        if 0 in x.shape:
            y = x
    op = data.draw(st.sampled_from([Op.ADD, Op.MUL, Op.MAX]))
    return clamp(g.alu(op, x, y))


def reduction(data: Draw, x: Node, device: str) -> Node:
    axes = data.draw(st.sets(st.integers(0, len(x.shape) - 1), max_size=2)) if x.shape else set()
    op = data.draw(st.sampled_from([Op.ADD, Op.MAX]))
    if op is Op.MAX and any(x.shape[a] == 0 for a in axes):
        op = Op.ADD
    return clamp(g.reduce(op, x, tuple(axes)))


def movement(data: Draw, x: Node, device: str) -> Node:
    rank = len(x.shape)
    if rank == 0:
        return expand(x, (3,))
    axis = data.draw(st.integers(0, rank - 1))
    n = x.shape[axis]
    kind = data.draw(
        st.sampled_from(["permute", "flatten", "pad", "shrink", "flip", "window", "unwindow"])
    )
    if kind == "permute":
        return g.move(Op.PERMUTE, x, tuple(data.draw(st.permutations(range(rank)))))
    if kind == "flatten":
        return reshape(x, (x.size,)) if rank > 1 or n % 2 else reshape(x, (n // 2, 2))
    if kind == "pad":
        widths = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
        return g.move(Op.PAD, x, tuple(widths if i == axis else (0, 0) for i in range(rank)))
    if kind == "shrink":
        start = data.draw(st.integers(0, n))
        stop = data.draw(st.integers(start, n))
        return g.move(
            Op.SHRINK,
            x,
            tuple((start, stop) if i == axis else (0, m) for i, m in enumerate(x.shape)),
        )
    if kind == "flip":
        return g.move(Op.FLIP, x, (axis,))
    size, stride = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    if n < size or rank > 3:
        return x
    windows = g.move(Op.WINDOW, x, (axis, size, stride, 1))
    if kind == "window":
        return windows
    back = g.move(Op.UNWINDOW, windows, (axis, n, stride, 1))
    return clamp(g.reduce(Op.ADD, back, (axis + 1,)))


def lookup(data: Draw, x: Node, device: str) -> Node:
    if not x.shape:
        return x
    axis = data.draw(st.integers(0, len(x.shape) - 1))
    count = data.draw(st.integers(0, 4))
    rows = np.random.default_rng(data.draw(st.integers(0, 9))).integers(
        -1, x.shape[axis] + 1, count
    )
    column = realize.from_numpy(rows, device=device)
    shape = tuple(count if i == axis else n for i, n in enumerate(x.shape))
    index = expand(
        reshape(column, tuple(count if i == axis else 1 for i in range(len(shape)))), shape
    )
    if data.draw(st.booleans()):
        return g.gather(x, index, axis)
    mode = data.draw(st.sampled_from(["set", "add", "max", "min"]))
    return clamp(g.scatter(x, index, whole(data, shape, device), axis, mode))


def product(data: Draw, x: Node, device: str) -> Node:
    """A matrix product with the last axis."""
    if not x.shape or len(x.shape) > 3:
        return x
    k, n = x.shape[-1], data.draw(st.integers(1, 5))
    space = (*x.shape, n)
    left = expand(reshape(x, (*x.shape, 1)), space)
    right = expand(whole(data, (k, n), device), space)
    return clamp(g.reduce(Op.ADD, g.alu(Op.MUL, left, right), (len(x.shape) - 1,)))


def prefix(data: Draw, x: Node, device: str) -> Node:
    if not x.shape:
        return x
    axis = data.draw(st.integers(0, len(x.shape) - 1))
    return clamp(g.scan(data.draw(st.sampled_from([Op.ADD, Op.MAX])), x, axis))


STEPS = [unary, unary, binary, binary, reduction, movement, movement, lookup, product, prefix]


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=int(os.environ.get("FUZZ", 40)), suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_graphs(device: str, data: Draw) -> None:
    if devices.available().get(device):
        pytest.skip(f"no {device} here")
    shape = tuple(data.draw(st.lists(st.integers(0, 5) | st.just(17), min_size=0, max_size=3)))
    nodes = [whole(data, shape, device)]
    for _ in range(data.draw(st.integers(1, 7))):
        source = nodes[-1] if data.draw(st.integers(0, 3)) else data.draw(st.sampled_from(nodes))
        nodes.append(data.draw(st.sampled_from(STEPS))(data, source, device))
        if nodes[-1].size > 20_000:
            nodes.pop()
    roots = [nodes[-1]] + ([data.draw(st.sampled_from(nodes))] if data.draw(st.booleans()) else [])
    expected = [interpret.evaluate(r, read) for r in roots]
    for root, result, value in zip(roots, realize.realize(roots), expected, strict=True):
        np.testing.assert_array_equal(realize.to_numpy(result), value, err_msg=g.text([root]))


def test_the_generator_reaches_every_primitive_it_names() -> None:
    """A generator that stopped making some operation would still pass; this would not."""
    made: set[Op] = set()

    @settings(
        max_examples=150, suppress_health_check=list(HealthCheck), database=None, derandomize=True
    )
    @given(data=st.data())
    def collect(data: Draw) -> None:
        x = whole(data, (4, 3), "reference")
        for _ in range(3):
            x = data.draw(st.sampled_from(STEPS))(data, x, "reference")
            if x.size > 500 or x.size == 0:
                break
        made.update(n.op for n in g.toposort([x]))

    collect()
    assert made >= {
        Op.NEG,
        Op.MAX,
        Op.ADD,
        Op.MUL,
        Op.WHERE,
        Op.LT,
        Op.CAST,
        Op.REDUCE,
        Op.SCAN,
        Op.RESHAPE,
        Op.PERMUTE,
        Op.EXPAND,
        Op.PAD,
        Op.SHRINK,
        Op.FLIP,
        Op.WINDOW,
        Op.UNWINDOW,
        Op.GATHER,
        Op.SCATTER,
    }
