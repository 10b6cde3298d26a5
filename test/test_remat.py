"""Memory budgets: met by computing again, with the same results; or refused with what it takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from graphs import array

from mygrad import Tensor, jit, nn, plan, realize
from mygrad.errors import DeviceError
from mygrad.runtime import device as devices
from mygrad.schedule import cost
from mygrad.schedule.schedule import schedule
from mygrad.schedule.steps import Band

DEPTH, BATCH, WIDTH = 8, 256, 64


class Deep(nn.Module):
    """Layers whose activations the backward pass needs."""

    def __init__(self) -> None:
        self.layers = [nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return x


def trained(budget: int | None, steps: int = 2) -> tuple[list[np.ndarray], int]:
    """Losses and weights after some steps, and the predicted peak."""
    Tensor.manual_seed(0)
    model = Deep()
    optimizer = nn.optim.SGD(model.parameters(), lr=0.1)

    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    run = jit(step, memory_budget=budget)
    x = Tensor(array(BATCH, WIDTH)).realize()
    found = [run(x).numpy() for _ in range(steps)]
    return [*found, *(p.numpy() for p in model.parameters())], run.peak_bytes


def test_a_budget_is_met_and_changes_nothing_else() -> None:
    expected, whole = trained(None)
    found, peak = trained(whole * 4 // 5)
    assert peak <= whole * 4 // 5
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_budget_that_is_large_enough_costs_nothing() -> None:
    x = Tensor(array(64, 64))
    root = (x @ x).tanh() @ x
    free = schedule([root._node], "cpu")
    bounded = schedule([root._node], "cpu", free.peak_bytes)
    assert len(bounded.steps) == len(free.steps)
    assert bounded.peak_bytes == free.peak_bytes


def test_a_budget_that_cannot_be_met_says_what_can() -> None:
    x = Tensor(array(64, 64)).realize()
    product = jit(lambda x: (x @ x).tanh() @ x, memory_budget=1000)
    with pytest.raises(DeviceError, match=r"memory_budget.*1kB.*or more, of which results take"):
        product(x)


def test_a_budget_below_what_one_step_needs_is_refused() -> None:
    """The backward pass of a gelu reads two arrays of 25 MB and writes a third. Making one of two
    operands of a step again delays it until after the other, and so on in turns without an end."""
    x, w, v = (Tensor(array(*shape)) for shape in ((4096, 384), (384, 1536), (1536, 384)))
    for leaf in (x, w, v):
        leaf.requires_grad = True
    y = ((x @ w).gelu() @ v).softmax(-1)
    y.square().sum().backward()
    roots = [leaf.grad.node for leaf in (x, w, v)]
    for budget in range(30 << 20, 100 << 20, 10 << 20):
        with contextlib.suppress(DeviceError):
            assert schedule(roots, "cpu", budget).peak_bytes <= budget
    with pytest.raises(DeviceError, match=r"memory_budget.*or more"):
        schedule(roots, "cpu", 75 << 20)


def one_part_early(x: Tensor) -> Tensor:
    """One part of a stack, then two large arrays that the other parts need."""
    first = (x @ x).tanh()
    large = first @ Tensor(array(WIDTH, 2048))
    small = (large.tanh() @ Tensor(array(2048, 2048)) * 1e-2) @ Tensor(array(2048, WIDTH))
    later = [(small * (k + 1)).tanh() @ x for k in range(7)]
    return x @ Tensor.stack(first, *later).square().sum(0)


def half_early(x: Tensor) -> Tensor:
    """As before, with four parts of eight: none of them alone is to blame for the whole."""
    first = [(x @ x * (k + 1)).tanh() @ x for k in range(4)]
    large = (first[0] + first[1] + first[2] + first[3]) @ Tensor(array(WIDTH, 2048))
    small = (large.tanh() @ Tensor(array(2048, 2048)) * 1e-2) @ Tensor(array(2048, WIDTH))
    later = [(small * (k + 1)).tanh() @ x for k in range(4)]
    return x @ Tensor.stack(*first, *later).square().sum(0)


def states(x: Tensor) -> Tensor:
    """A stack of states that waits for what comes after it."""
    h, stacked, after = x, [], []
    for _ in range(8):
        h = (h @ x).tanh()
        stacked.append(h)
    for _ in range(8):
        h = (h @ x).tanh()
        after.append(h)
    for waits in reversed(after):
        h = (h + waits) @ x
    return (Tensor.stack(*stacked).sum(0) + h) @ x


JOINED = (one_part_early, half_early, states)


@pytest.mark.parametrize("function", JOINED)
def test_a_budget_holds_where_arrays_are_joined(function: Callable[[Tensor], Tensor]) -> None:
    """The parts lie inside of the whole, which is there from the first of them on."""
    root = function(Tensor(array(WIDTH, WIDTH))).node
    free = schedule([root], "cpu")
    joined = [m for m in free.memories if m.shape == (8, WIDTH, WIDTH)]
    assert joined
    assert len(schedule([root], "cpu", free.peak_bytes).steps) == len(free.steps)
    met = []
    for part in range(1, 16):
        budget = free.peak_bytes - part * joined[0].nbytes // 8
        with contextlib.suppress(DeviceError):
            met.append(schedule([root], "cpu", budget))
            assert met[-1].peak_bytes <= budget
    assert met


def test_the_first_part_is_made_again_if_the_whole_can_come_later() -> None:
    x = Tensor(array(WIDTH, WIDTH)).realize()
    free = jit(one_part_early)
    expected = free(x).numpy()
    budget = free.peak_bytes - 4 * x.nbytes
    bounded = jit(one_part_early, memory_budget=budget)
    np.testing.assert_array_equal(bounded(x).numpy(), expected)
    assert bounded.peak_bytes <= budget


def products(x: Tensor) -> Tensor:
    return ((x @ x).tanh() @ x).softmax(-1).sum(0)


def attention(x: Tensor) -> Tensor:
    """Scores of 8 heads, in a band; what follows waits in the arena."""
    heads = x[:, :128].reshape(8, 300, 16)
    return heads.scaled_dot_product_attention(heads, heads).cumsum(1).softmax(0).sum((0, 2))


@pytest.fixture
def bands(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[None]:
    """Arrays of 64 kB are large enough for bands; what is prepared knows of that only here."""
    monkeypatch.setattr(cost, "BAND_LOCAL", 16 << 10)
    monkeypatch.setattr(cost, "BAND_BYTES", 64 << 10)
    realize._prepared.clear()
    yield
    realize._prepared.clear()


@pytest.mark.parametrize(("function", "width"), [(products, 100), (attention, 300)])
def test_the_predicted_peak_is_what_a_run_allocates(
    function: Callable[[Tensor], Tensor],
    width: int,
    bands: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = devices.get("cpu")
    x = Tensor(array(width, width), device="cpu").realize()
    steps = schedule([function(x).node], "cpu").steps
    assert function is products or any(isinstance(s.what, Band) for s in steps)
    taken: list[int] = []
    allocate = runtime.allocate

    def counted(nbytes: int) -> object:
        taken.append(nbytes)
        return allocate(nbytes)

    monkeypatch.setattr(runtime, "allocate", counted)
    run = jit(function)
    first = run(x)
    taken.clear()
    second = run(x)
    assert sum(taken) == run.peak_bytes > 0
    assert plan(function(x)).peak_bytes == run.peak_bytes
    np.testing.assert_array_equal(first.numpy(), second.numpy())


def test_a_budget_holds_with_the_memory_of_bands(bands: None) -> None:
    x = Tensor(array(300, 300), device="cpu").realize()
    free = jit(attention)
    free(x)
    bounded = jit(attention, memory_budget=free.peak_bytes)
    bounded(x)
    assert bounded.peak_bytes == free.peak_bytes
    root = attention(x).node
    whole = [schedule([root], "cpu", threads=lambda device, n=n: n).peak_bytes for n in (1, 2, 5)]
    assert whole[2] - whole[1] == 3 * (whole[1] - whole[0]) > 0  # each thread takes the same
    with pytest.raises(DeviceError, match="memory_budget"):
        schedule([root], "cpu", whole[0], threads=lambda device: 5)


def test_peak_bytes_are_known_after_the_first_call() -> None:
    run = jit(lambda x: x + 1)
    assert run.peak_bytes == 0
    run(Tensor(array(100)).realize())
    assert run.peak_bytes == 400
