"""Large graphs, deep and wide: no recursion, time in proportion, and memory comes back."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import numpy as np
import pytest

from mygrad import Tensor, graph
from mygrad.schedule.schedule import schedule

X = Tensor(np.full(4, 0.5, np.float32))


def deep(count: int) -> list[Tensor]:
    y = X
    for _ in range(count):
        y = y + X
    return [y]


def wide(count: int) -> list[Tensor]:
    parts = [Tensor(np.full(4, i, np.float32)) for i in range(count)]
    return [sum(parts[1:], parts[0])]  # type: ignore[list-item]


def many(count: int) -> list[Tensor]:
    return [Tensor(np.full(4, i, np.float32)) * 2 for i in range(count)]


def sums(count: int) -> list[Tensor]:
    """Each sums what the one before changed: nothing can be computed together."""
    results = [X]
    for i in range(count):
        results.append((results[-1] - results[-1].sum() * (0.01 + i / 1e6)).exp())
    return results[1:]


def branches(count: int) -> list[Tensor]:
    """Sums of one array that could all be one kernel."""
    x = Tensor(np.arange(64, dtype=np.float32))
    return [(x * i).sum() for i in range(count)]


def seconds(make: Callable[[int], list[Tensor]], count: int) -> float:
    nodes = [t.node for t in make(count)]
    gc.disable()  # a collection looks at what all other tests have left
    try:
        begin = time.process_time()
        assert schedule(nodes, "cpu").steps
        return time.process_time() - begin
    finally:
        gc.enable()


@pytest.mark.parametrize("make", [deep, wide, many, sums, branches])
def test_time_to_schedule_is_in_proportion(make: Callable[[int], list[Tensor]]) -> None:
    seconds(make, 5)
    small = min(seconds(make, 60) for _ in range(2))
    assert seconds(make, 480) < 20 * small + 0.2  # 8 times as much; 64 would be quadratic


def test_results_of_large_graphs() -> None:
    before = len(graph._interned)
    y = deep(5_000)[0]
    assert y.tolist() == [0.5 * 5_001] * 4
    y = wide(1_000)[0]
    assert y.tolist() == [999 * 500.0] * 4
    found = many(1_000)
    Tensor.realize(*found)
    assert [t.numpy()[0] for t in found] == [2.0 * i for i in range(1_000)]
    del y, found
    gc.collect()
    assert len(graph._interned) < before + 100


def test_gradient_of_a_deep_graph() -> None:
    x = Tensor([1.0, 1.0], requires_grad=True)
    y = x
    for _ in range(300):
        y = y * x
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [301.0, 301.0]
