"""Arrays whose parts are computed in place, judged by the interpreter of graphs and by NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from graphs import array, buffer, expand, matmul, pad, read, reshape
from hypothesis import given, settings
from hypothesis import strategies as st

from mygrad import Tensor, interpret, jit, realize
from mygrad import graph as g
from mygrad.graph import Node
from mygrad.ops import Op
from mygrad.schedule import joins
from mygrad.schedule.joins import join_parts
from mygrad.schedule.schedule import schedule
from mygrad.schedule.simplify import simplify

ROWS, COLUMNS = 16, 64  # a part of 4096 bytes


def part(seed: int, *shape: int) -> Node:
    return g.alu(Op.EXP, buffer(*(shape or (ROWS, COLUMNS)), seed=seed))


def joined(*roots: Node) -> list[Node]:
    """What the scheduler joins below the roots."""
    return [n for n in g.toposort(join_parts(simplify(roots))) if n.op is Op.JOIN]


def check(*roots: Node) -> None:
    for root, result in zip(roots, realize.realize(roots), strict=True):
        expected = interpret.evaluate(root, read)
        np.testing.assert_allclose(realize.to_numpy(result), expected, rtol=1e-5, atol=1e-4)


def placed(parts: list[Node], axis: int, order: list[int]) -> Node:
    """The gradient of slices: each part padded to its place, added in any order."""
    extent = parts[0].shape[axis]
    total = None
    for i in order:
        widths = [(0, 0)] * len(parts[0].shape)
        widths[axis] = (i * extent, (len(parts) - 1 - i) * extent)
        term = pad(parts[i], *widths)
        total = term if total is None else g.alu(Op.ADD, total, term)
    assert total is not None
    return total


def doubled(x: Node) -> Node:
    return g.alu(Op.ADD, x, x)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 13), st.integers(0, 2), st.booleans(), st.randoms(use_true_random=False))
def test_parts_of_an_array(count: int, axis: int, chosen: bool, random) -> None:
    """Along any axis, chosen or added, in any order; beside something else that reads a part."""
    shape = [ROWS, 4, COLUMNS // 4]
    parts = [part(i, *shape) for i in range(count)]
    order = list(range(count))
    random.shuffle(order)
    if chosen:
        tensors = [Tensor._wrap(p) for p in parts]
        whole = tensors[0].cat(*tensors[1:], axis=axis).node
    else:
        whole = placed(parts, axis, order)
    other = g.reduce(Op.ADD, parts[order[0]], (0,))
    assert [len(n.src) for n in joined(doubled(whole), other)] == [count] * (count >= joins.LEAST)
    check(doubled(whole), other)


def test_a_part_is_computed_in_its_place() -> None:
    parts = [part(i) for i in range(8)]
    plan = schedule([g.reduce(Op.MAX, placed(parts, 0, list(range(8))), (1,))], "reference")
    assert len(plan.steps) == 9  # each part, and what reads the whole
    *made, last = plan.steps
    whole = plan.memories[last.arguments[0]]
    offsets = [plan.memories[s.arguments[-1]].number for s in made]
    size = ROWS * COLUMNS * 4
    assert sorted(offsets) == [whole.number + i * size for i in range(8)]
    assert list(plan.arena_bytes.values()) == [8 * size]


def overlapping() -> Node:
    parts = [part(i) for i in range(8)]
    shifted = [pad(p, (max(i * ROWS - 1, 0), 8 * ROWS - ROWS - max(i * ROWS - 1, 0)), (0, 0))
               for i, p in enumerate(parts)]  # fmt: skip
    total = shifted[0]
    for s in shifted[1:]:
        total = g.alu(Op.ADD, total, s)
    return total


def chosen_by_values() -> Node:
    """Another condition than the place on the axis."""
    left, right = pad(part(0), (0, ROWS), (0, 0)), pad(part(1), (ROWS, 0), (0, 0))
    for i in range(2, 9):
        left, right = right, g.alu(Op.ADD, left, pad(part(i), (0, ROWS), (0, 0)))
    condition = g.alu(Op.LT, left, right)
    return g.alu(Op.WHERE, condition, left, right)


REFUSED: dict[str, Callable[[], list[Node]]] = {
    "the whole is asked for": lambda: [placed([part(i) for i in range(8)], 0, list(range(8)))],
    "a part is asked for": lambda: [
        doubled(placed(parts := [part(i) for i in range(8)], 0, list(range(8)))), parts[3]],
    "a part is an input": lambda: [
        doubled(placed([buffer(ROWS, COLUMNS), *map(part, range(1, 8))], 0, list(range(8))))],
    "a part twice": lambda: [
        doubled(placed([part(0)] * 2 + [part(i) for i in range(1, 7)], 0, list(range(8))))],
    "a part is missing": lambda: [
        doubled(placed([part(i) for i in range(9)], 0, [0, 1, 2, 3, 5, 6, 7, 8]))],
    "parts overlap": lambda: [doubled(overlapping())],
    "small parts": lambda: [
        doubled(placed([part(i, 8, 8) for i in range(8)], 0, list(range(8))))],
    "parts that are no lines": lambda: [
        doubled(placed([part(i, 33, 33) for i in range(8)], 0, list(range(8))))],
    "chosen by values": lambda: [doubled(chosen_by_values())],
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_lie_in_one_memory(name: str) -> None:
    roots = REFUSED[name]()
    assert not joined(*roots)
    check(*roots)


# --- sums of products -----------------------------------------------------------------------------


def transposed(x: Node) -> Node:
    return g.move(Op.PERMUTE, x, (1, 0))


def summed(lefts: list[Node], rights: list[Node]) -> Node:
    """a0.T @ b0 + a1.T @ b1 + ..."""
    total = matmul(transposed(lefts[0]), rights[0])
    for a, b in zip(lefts[1:], rights[1:], strict=True):
        total = g.alu(Op.ADD, total, matmul(transposed(a), b))
    return total


@pytest.mark.parametrize("count", [7, 8, 11])
@pytest.mark.parametrize("turned", [False, True])
def test_sums_of_products_are_one_product(count: int, turned: bool) -> None:
    lefts = [part(i) for i in range(count)]
    rights = [part(100 + i, ROWS, 80) for i in range(count)]
    total = summed(lefts, rights)
    root = transposed(total) if turned else total
    assert len(joined(root)) == 2 * (count >= joins.LEAST)
    check(root, g.reduce(Op.ADD, g.alu(Op.NEG, lefts[0]), (0, 1)))


def test_runs_of_what_is_joined_anyway() -> None:
    """All but the first of one array, all but the last of the other, as a recurrent network has
    them; in the order of the arrays, whatever that of the sum is."""
    states, gradients = [part(i) for i in range(10)], [part(50 + i) for i in range(10)]
    total = summed(states[:9][::-1], gradients[1:][::-1])
    wholes = [placed(x, 0, list(range(10))) for x in (states, gradients)]
    roots = [total, *(g.reduce(Op.MAX, w, (1,)) for w in wholes)]
    assert [len(n.src) for n in joined(*roots)] == [10, 10]
    check(*roots)


def test_sums_of_other_products_stay() -> None:
    """In another order on one side; the same array on both sides; an operand that all share."""
    a, b = [part(i) for i in range(9)], [part(50 + i) for i in range(9)]
    whole = doubled(placed(a, 0, list(range(9))))
    shuffled = summed([a[i] for i in (0, 2, 4, 6, 8, 1, 3, 5)], b[:8])
    assert len(joined(shuffled, whole)) == 1  # `a` alone
    check(shuffled, whole)
    check(summed(a, a))
    shared = summed(a, [b[0]] * 9)
    assert not joined(shared)
    check(shared)


def test_a_sum_that_a_later_part_needs() -> None:
    """Reading the whole array for the sum would be a circle."""
    a, b = [part(i) for i in range(8)], [part(50 + i) for i in range(9)]
    total = summed(a, b[:8])
    last = g.alu(Op.EXP, g.alu(Op.MUL, g.const(1e-3, total.dtype, (COLUMNS, COLUMNS)), total))
    last = reshape(g.reduce(Op.MAX, last, (0,)), (1, COLUMNS))
    ninth = g.alu(Op.EXP, g.alu(Op.NEG, expand(last, (ROWS, COLUMNS))))
    whole = doubled(placed([*a, ninth], 0, list(range(9))))
    check(whole)


@pytest.mark.parametrize("length", [5, 12])
def test_a_recurrent_network(length: int) -> None:
    """Its weight's gradient, by differences of formulas in NumPy."""
    x, w0 = array(16, length, 64) * 0.1, array(64, 64, seed=1) * 0.1

    @jit
    def step(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        h, states = Tensor.zeros(16, 64), []
        for t in range(length):
            h = (x[:, t] + h @ w).tanh()
            states.append(h)
        y = states[0].stack(*states[1:], axis=1)
        loss = (y * y).sum()
        loss.backward()
        grad = w.grad
        assert grad is not None
        w.grad = None
        return loss, grad

    w = Tensor(w0, requires_grad=True)
    for _ in range(2):
        loss, got = step(Tensor(x), w)
    hs = [np.zeros((16, 64))]
    for t in range(length):
        hs.append(np.tanh(x[:, t] + hs[-1] @ w0.astype(np.float64)))
    np.testing.assert_allclose(loss.item(), sum((h * h).sum() for h in hs), rtol=1e-5)
    back, expected = np.zeros((16, 64)), np.zeros((64, 64))
    for t in range(length, 0, -1):
        inner = (2 * hs[t] + back) * (1 - hs[t] ** 2)
        expected += hs[t - 1].T @ inner
        back = inner @ w0.T
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-5)
