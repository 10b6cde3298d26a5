"""Memory budgets: met by computing again, with the same results; or refused with what it takes."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import array

from mygrad import Tensor, jit, nn, realize
from mygrad.errors import DeviceError
from mygrad.runtime import device as devices
from mygrad.schedule.schedule import schedule

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


def test_the_predicted_peak_is_what_a_run_allocates(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = devices.get("cpu")
    x = Tensor(array(300, 300), device="cpu").realize()
    taken: list[int] = []
    allocate = runtime.allocate

    def counted(nbytes: int) -> object:
        taken.append(nbytes)
        return allocate(nbytes)

    monkeypatch.setattr(runtime, "allocate", counted)
    realize._prepared.clear()  # what is prepared from here on allocates so
    run = jit(lambda x: ((x @ x).tanh() @ x).softmax(-1).sum(0))
    first = run(x)
    taken.clear()
    second = run(x)
    realize._prepared.clear()
    assert sum(taken) == run.peak_bytes > 0
    np.testing.assert_array_equal(first.numpy(), second.numpy())


def test_peak_bytes_are_known_after_the_first_call() -> None:
    run = jit(lambda x: x + 1)
    assert run.peak_bytes == 0
    run(Tensor(array(100)).realize())
    assert run.peak_bytes == 400
