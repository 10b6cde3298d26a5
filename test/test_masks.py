"""Masks that reach over kernels: what is masked out is neither stored nor read (masks.py), and
loops leave out what nobody needs (domain.py, codegen/bounds.py). Kernels with conditions are also a
family of test_default_schedules and of the fuzzer."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers import torch

from mygrad import Tensor, domain
from mygrad import expr as ex
from mygrad.expr import Expr, axis, const, less, load
from mygrad.kernel import Kernel, Store
from mygrad.ops import Op
from mygrad.schedule import masks
from mygrad.schedule.schedule import schedule

T = 96  # long enough for every pass to look at


def kernels_of(*tensors: Tensor) -> list[Kernel]:
    steps = schedule([t.node for t in tensors], "cpu").steps
    return [s.what for s in steps if isinstance(s.what, Kernel)]


def stores_of(*tensors: Tensor) -> list[Store]:
    return [s for k in kernels_of(*tensors) for s in k.stores]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


# --- where a value is nothing ---------------------------------------------------------------------

t, s = axis(0, 64), axis(1, 64)
BELOW = less(s, t + 1)
X, ZERO, LOW = (
    load(0, ex.dt.float32, t * 64 + s),
    const(0.0, ex.dt.float32),
    const(-math.inf, ex.dt.float32),
)


def alu(op: Op, *src: Expr) -> Expr:
    return ex.alu(op, *src)


@pytest.mark.parametrize(
    ("value", "condition"),
    [
        (ex.where(BELOW, X, ZERO), BELOW),
        (ex.where(BELOW, ZERO, X), less(t, s)),
        (ex.where(BELOW, X, LOW), None),
        (alu(Op.MUL, X, ex.where(BELOW, X, ZERO)), BELOW),
        (alu(Op.ADD, X, ex.where(BELOW, X, ZERO)), None),
        (alu(Op.ADD, alu(Op.NEG, ex.where(BELOW, X, ZERO)), ex.where(BELOW, X, ZERO)), BELOW),
        (alu(Op.EXP, alu(Op.ADD, ex.where(BELOW, X, LOW), X)), BELOW),
        (alu(Op.EXP, ex.where(BELOW, X, ZERO)), None),
        (alu(Op.DIV, X, ex.where(BELOW, X, ZERO)), None),
        (load(0, ex.dt.float32, t * 64 + s, BELOW), BELOW),
        (ex.where(less(s, t + 60), X, ZERO), None),  # not worth it
    ],
)
def test_nothing(value: Expr, condition: Expr | None) -> None:
    zero = domain.nothing([value])[value][0]
    assert zero == (frozenset() if condition is None else frozenset({condition}))


def test_nothing_of_sums() -> None:
    body = ex.where(BELOW, X, ZERO)
    inside = ex.reduce(Op.ADD, body, (s,))
    outside = ex.reduce(
        Op.ADD, alu(Op.MUL, body, load(1, ex.dt.float32, axis(2, 5))), (axis(2, 5),)
    )
    found = domain.nothing([inside, outside])
    assert found[inside][0] == frozenset()
    assert found[outside][0] == frozenset({BELOW})
    assert domain.terms_of([inside])[inside] == frozenset({BELOW})
    high = ex.reduce(Op.MAX, ex.where(BELOW, X, LOW), (s,))
    assert domain.terms_of([high])[high] == frozenset({BELOW})


# --- of kernels -----------------------------------------------------------------------------------


@given(
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    factors=st.lists(st.integers(-3, 3), min_size=4, max_size=4),
    low=st.integers(-6, 6),
    high=st.integers(-6, 6),
)
def test_bounds_are_said_of_the_element(
    shape: list[int], factors: list[int], low: int, high: int
) -> None:
    """A condition on axes, said of the element's number, and again on one long axis."""
    axes = [axis(n, extent) for n, extent in enumerate(shape)]
    strides = np.cumprod([1, *shape[:0:-1]])[::-1].tolist()
    index = sum((a * step for a, step in zip(axes, strides, strict=True)), const(0))
    total = sum((a * f for a, f in zip(axes, factors, strict=False)), const(0))
    condition = ex.both(less(const(low - 1), total), less(total, const(high + 1)))
    if condition.op is not Op.LT:
        return
    bound = masks.bound_of(condition, index)
    if bound is None:  # an axis of extent 1 has no digit
        assert 1 in shape
        return
    assert bound.at(index) is condition
    flat = axis(9, math.prod(shape))
    numbers = np.arange(math.prod(shape))
    grid = np.unravel_index(numbers, shape)
    expected = ex.evaluate(condition, dict(zip(axes, grid, strict=True)))
    found = ex.evaluate(bound.at(flat), {flat: numbers})
    np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.scaled_dot_product_attention(k, v, is_causal=True)


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As students write it."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    past = Tensor.ones(T, T).tril()
    return scores.masked_fill(past == 0, -math.inf).softmax(-1) @ v


@pytest.mark.parametrize("attend", [attention, by_hand])
def test_scores_are_stored_under_the_mask(attend: Callable[..., Tensor]) -> None:
    inputs = [Tensor(normal(2, 3, T, 16), requires_grad=True) for _ in range(3)]
    result = attend(*inputs)
    gradients = (result * Tensor(normal(2, 3, T, 16) + 1)).sum().gradient(*inputs)
    square = 6 * T * T
    for kernel in kernels_of(result, *gradients):
        for store in kernel.stores:
            if kernel.buffers[store.slot].size == square:
                assert store.valid is not None, kernel
        for e in kernel.nodes:
            if e.op is Op.REDUCE and square in [
                kernel.buffers[x.arg].size for x in ex.toposort([e]) if x.op is Op.LOAD
            ]:
                assert domain.terms_of([e])[e], kernel


@pytest.mark.parametrize("attend", [attention, by_hand])
def test_causal_attention(attend: Callable[..., Tensor]) -> None:
    arrays = [normal(2, 3, T, 16) + n for n in range(4)]
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays[:3]]
    expected = torch.nn.functional.scaled_dot_product_attention(*theirs, is_causal=True)
    (expected * torch.tensor(arrays[3])).sum().backward()
    ours = [Tensor(a, requires_grad=True) for a in arrays[:3]]
    result = attend(*ours)
    (result * Tensor(arrays[3])).sum().backward()
    np.testing.assert_allclose(result.numpy(), expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.grad.numpy(), other.grad.numpy(), rtol=1e-3, atol=1e-4)


def test_operations_that_are_left_out_are_not_counted() -> None:
    q, k, v = (Tensor(normal(2, 3, T, 16)) for _ in range(3))
    causal = sum(x.flops for x in kernels_of(attention(q, k, v)))
    whole = sum(x.flops for x in kernels_of(q.scaled_dot_product_attention(k, v)))
    assert 0.45 < causal / whole < 0.6


def test_a_window() -> None:
    """Two conditions: 16 keys up to the own one."""
    q, k, v = (normal(2, T, 8) for _ in range(3))
    place = np.arange(T)
    mask = (place[None] <= place[:, None]) & (place[None] > place[:, None] - 16)
    i, j = Tensor.arange(T).reshape(T, 1), Tensor.arange(T).reshape(1, T)
    scores = (Tensor(q) @ Tensor(k).mT).masked_fill(
        ((j <= i) & (j > i - 16)).logical_not(), -math.inf
    )
    result = scores.softmax(-1) @ Tensor(v)
    partly = [x for x in stores_of(result) if x.valid is not None]
    assert partly
    scores_ = np.where(mask, q @ k.swapaxes(1, 2), -np.inf)
    weights = np.exp(scores_ - scores_.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True) @ v
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_what_is_masked_out_has_no_say() -> None:
    """The last value is not a number, and only the last query sees it."""
    q, k, v = (normal(1, 1, T, 8) for _ in range(3))
    v[..., -1, :] = np.nan
    result = attention(Tensor(q), Tensor(k), Tensor(v)).numpy()
    assert np.isfinite(result[..., :-1, :]).all()
    assert np.isnan(result[..., -1, :]).all()


def test_arrays_that_are_read_elsewhere_are_whole() -> None:
    x = Tensor(normal(T, T))
    square = (x @ x).contiguous()
    masked = square.tril() @ x
    other = square.sum()
    assert all(store.valid is None for store in stores_of(masked, other))
    a = x.numpy()
    np.testing.assert_allclose(masked.numpy(), np.tril(a @ a) @ a, rtol=1e-3, atol=1e-2)


def test_what_the_user_keeps_is_whole() -> None:
    x = Tensor(normal(T, T))
    weights = (x @ x).tril()
    product = weights @ x
    assert all(s.valid is None for s in stores_of(weights, product))
    a = x.numpy()
    np.testing.assert_allclose(weights.numpy(), np.tril(a @ a), rtol=1e-3, atol=1e-3)
