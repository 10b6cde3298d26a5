"""Bands: the same values block by block, and no array of all rows."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import array, buffer, matmul, softmax
from peers import torch

from mygrad import Tensor, realize
from mygrad import graph as g
from mygrad.graph import Node
from mygrad.helpers import prod
from mygrad.kernel import Kernel
from mygrad.ops import Op
from mygrad.schedule import cost
from mygrad.schedule.bands import BLOCK
from mygrad.schedule.schedule import schedule
from mygrad.schedule.steps import Schedule


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of 8 kB are large."""
    monkeypatch.setattr(cost, "BAND_BYTES", 8 << 10)
    monkeypatch.setattr(cost, "BAND_BLOCK", 16 << 10)
    monkeypatch.setattr(cost, "BAND_ROWS", 2)
    realize._prepared.clear()
    yield
    realize._prepared.clear()


def blocked(plan: Schedule) -> int:
    """Steps that run for one block."""
    return sum(isinstance(s.what, Kernel) and BLOCK in dict(s.constants) for s in plan.steps)


def attention(shape: tuple[int, ...], keys: int, between: bool, **options: object) -> list[Tensor]:
    """The output and the gradients of query, key and value; `between`: more than attention lies
    before the loss."""
    *outer, _, width = shape
    q = Tensor(array(*shape)).requires_grad_()
    k, v = (Tensor(array(*outer, keys, width, seed=n)).requires_grad_() for n in (1, 2))
    out = q.scaled_dot_product_attention(k, v, **options)
    y = (out @ Tensor(array(width, width, seed=3))).softmax(-1) if between else out
    (y * Tensor(array(*shape, seed=4))).sum().backward()
    return [out, q.grad, k.grad, v.grad]


def theirs(shape: tuple[int, ...], keys: int, between: bool, **options: object) -> list[np.ndarray]:
    *outer, _, width = shape
    q = torch.from_numpy(array(*shape)).requires_grad_()
    k, v = (torch.from_numpy(array(*outer, keys, width, seed=n)).requires_grad_() for n in (1, 2))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)
    y = (out @ torch.from_numpy(array(width, width, seed=3))).softmax(-1) if between else out
    (y * torch.from_numpy(array(*shape, seed=4))).sum().backward()
    return [t.detach().numpy() for t in (out, q.grad, k.grad, v.grad)]


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize(
    ("shape", "keys", "options"),
    [
        ((1, 2, 64, 16), 64, {}),
        ((2, 3, 64, 16), 64, {"is_causal": True}),
        ((1, 1, 61, 8), 61, {"is_causal": True}),  # a block is left over
        ((2, 2, 48, 16), 80, {}),  # other keys than queries
        ((3, 40, 12), 40, {"scale": 0.3}),
    ],
)
def test_attention(
    small: None,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, ...],
    keys: int,
    options: dict[str, object],
    between: bool,
) -> None:
    monkeypatch.setattr(cost, "BAND_BYTES", prod(shape[:-1]) * keys * 4)
    found = attention(shape, keys, between, **options)
    plan = schedule([t._node for t in found], "cpu")
    *_, rows, _ = shape
    used = [plan.memories[i] for i in {i for s in plan.steps for i in s.arguments}]
    assert not [m for m in used if m.shape[-2:] == (rows, keys) and m.dtype.is_float]
    for got, want in zip(found, theirs(shape, keys, between, **options), strict=True):
        np.testing.assert_allclose(got.numpy(), want, rtol=2e-4, atol=2e-5)


def test_the_memory_of_long_attention_grows_with_its_length_alone() -> None:
    peaks = {}
    for rows in (2048, 4096):
        found = attention((1, 2, rows, 64), rows, True)
        peaks[rows] = schedule([t._node for t in found], "cpu").peak_bytes
    assert peaks[4096] < 4096 * 4096 * 4  # of one of eight such arrays
    assert peaks[4096] < 2.5 * peaks[2048]


def rows_and_sums(rows: int) -> list[Node]:
    """A product by rows, and a sum over them that blocks must add up."""
    a, b = buffer(rows, 20), buffer(20, 48)
    p = softmax(matmul(a, b))
    return [g.reduce(Op.MAX, p, (1,)), matmul(g.move(Op.PERMUTE, p, (1, 0)), a)]


@pytest.mark.parametrize("rows", [16, 64, 67, 128, 131])
@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_sums_over_rows_add_blocks_up(small: None, rows: int, device: str) -> None:
    a, b = array(rows, 20), array(20, 48)
    x, y = Tensor(a, device=device), Tensor(b, device=device)
    p = (x @ y).softmax(-1)
    top, total = p.max(1), p.T @ x
    if rows > 42:
        assert blocked(schedule([top._node, total._node], device)) or rows in (67, 131)
    e = np.exp(a @ b - (a @ b).max(1, keepdims=True))
    want = e / e.sum(1, keepdims=True)
    Tensor.realize(top, total)
    np.testing.assert_allclose(top.numpy(), want.max(1), rtol=1e-4)
    np.testing.assert_allclose(total.numpy(), want.T @ a, rtol=1e-3, atol=1e-4)


def test_small_arrays_need_no_band() -> None:
    plan = schedule(rows_and_sums(128), "reference")
    assert not blocked(plan)


def test_what_the_user_keeps_stays_whole(small: None) -> None:
    scores = matmul(buffer(64, 20), buffer(20, 48))
    p = softmax(scores)
    plan = schedule([scores, p, g.reduce(Op.ADD, matmul(p, buffer(48, 8)), (1,))], "reference")
    for i in plan.results:
        assert plan.memories[i].kind == "result"
