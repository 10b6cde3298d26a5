"""Random programs on scores of heads, run block by block, against NumPy in float64: products in all
directions, masks, softmax, sums over rows and over all but columns, arrays that several heads
share."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from mygrad import Tensor, realize
from mygrad.schedule import cost
from mygrad.schedule.schedule import schedule
from mygrad.schedule.steps import Band

Array = np.ndarray[Any, Any]
Pair = tuple[Tensor, Array]  # a value in mygrad, and what it must be


class Program:
    """Values of five kinds: scores [.., T, S], what has a row for each of T or S, row sums, and
    totals of columns."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.seed = rng.randrange(1 << 30)
        self.outer = tuple(rng.choice([1, 1, 2, 3]) for _ in range(rng.choice([1, 1, 2])))
        self.rows = rng.choice([8, 16, 24, 31, 32, 40])
        self.keys = rng.choice([self.rows, 16, 33, 48])
        self.width = rng.choice([4, 8, 16, 16, 20])
        self.by_rows = [self.leaf(self.rows) for _ in range(2)]
        self.by_keys = [self.leaf(self.keys) for _ in range(2)]
        self.scores: list[Pair] = []
        self.sums: list[Pair] = []
        self.totals: list[Pair] = []

    def leaf(self, extent: int) -> Pair:
        self.seed += 1
        shared = self.rng.random() < 0.2  # by all heads
        outer = (1,) * len(self.outer) if shared else self.outer
        values = np.random.default_rng(self.seed).standard_normal((*outer, extent, self.width))
        values = values.astype(np.float32) * 0.5
        x, want = Tensor(values), values.astype(np.float64)
        shape = (*self.outer, extent, self.width)
        return x.expand(*shape), np.broadcast_to(want, shape)

    def pick(self, some: list[Pair]) -> Pair:
        return self.rng.choice(some[-3:])

    def step(self) -> None:
        kinds = ["scores", "scores", "map", "map", "mask", "softmax", "result", "by keys", "sum"]
        kinds += ["total", "total"]
        kind = self.rng.choice(kinds) if self.scores else "scores"
        if kind == "scores":
            (a, x), (b, y) = self.pick(self.by_rows), self.pick(self.by_keys)
            scale = self.width**-0.5
            made = (a @ b.transpose(-2, -1)) * scale, x @ np.swapaxes(y, -2, -1) * scale
            self.scores.append((made[0].tanh(), np.tanh(made[1])))
            return
        s, v = self.pick(self.scores)
        if kind == "map":
            other, w = self.pick(self.scores)
            self.scores.append((s * other + s.relu(), v * w + np.maximum(v, 0)))
        elif kind == "mask":
            below = np.tril(np.ones((self.rows, self.keys), bool))
            kept = Tensor.ones(self.rows, self.keys).tril() != 0
            self.scores.append((kept.where(s, 0.0), np.where(below, v, 0.0)))
        elif kind == "softmax":
            e = np.exp(v - v.max(-1, keepdims=True))
            self.scores.append((s.softmax(-1), e / e.sum(-1, keepdims=True)))
        elif kind == "result":
            b, y = self.pick(self.by_keys)
            self.by_rows.append(((s @ b).tanh(), np.tanh(v @ y)))
        elif kind == "by keys":
            a, x = self.pick(self.by_rows)
            made = (s.transpose(-2, -1) @ a), np.swapaxes(v, -2, -1) @ x
            self.by_keys.append((made[0].tanh(), np.tanh(made[1])))
        elif kind == "sum":
            self.sums.append((s.sum(-1), v.sum(-1)))
        else:
            axes = tuple(range(v.ndim - 1))
            self.totals.append(((s * s).sum(axes) / v.size, (v * v).sum(axes) / v.size))

    def results(self) -> list[Pair]:
        while len(self.scores) < 2 or self.rng.random() < 0.85:
            self.step()
        made = [some[-1] for some in (self.by_rows, self.by_keys, self.sums) if some]
        made += self.totals
        if self.rng.random() < (0.6 if self.totals else 0.2):
            made.append(self.scores[-1])
        return made


def check(seed: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Run a program; how many bands by units it had, and how many readers joined for partial
    results."""
    rng = Random(seed)
    program = Program(rng)
    bytes_of_scores = 4 * int(np.prod(program.outer)) * program.rows * program.keys
    monkeypatch.setattr(cost, "BAND_BYTES", bytes_of_scores)
    monkeypatch.setattr(cost, "BAND_BLOCK", rng.choice([1, 2, 4]) * bytes_of_scores // 2)
    monkeypatch.setattr(cost, "BAND_LOCAL", rng.choice([1, 1 << 12, 1 << 14]))
    monkeypatch.setattr(cost, "BAND_SHARE", rng.choice([2, 5, 16, 20]))
    monkeypatch.setattr(cost, "BAND_ROWS", 2)
    monkeypatch.setattr(cost, "BAND_NEAR", rng.choice([1, 4]))
    monkeypatch.setattr(cost, "BAND_ALONE", rng.choice([1 << 10, 1 << 12]))
    monkeypatch.setattr(cost, "BAND_CALL", 0.0)
    monkeypatch.setattr(cost, "CACHED", rng.choice([0.0, 0.01]))
    monkeypatch.setattr(cost, "PANEL_TIMES", 2)
    monkeypatch.setattr(cost, "PANEL_LEAST", 64)
    realize._prepared.clear()
    pairs = program.results()
    found = [t for t, _ in pairs]
    plan = schedule([t._node for t in found], "cpu")
    Tensor.realize(*found)
    for got, want in pairs:
        np.testing.assert_allclose(got.numpy(), want, rtol=2e-3, atol=2e-4, err_msg=f"seed {seed}")
    realize._prepared.clear()
    found = sum(isinstance(s.what, Band) for s in plan.steps)
    return found, sum(s.reason.endswith("from partial results") for s in plan.steps)


def test_random_programs(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    found = [check(seed, monkeypatch) for seed in range(48)]
    assert sum(bands for bands, _ in found) >= 12
    assert sum(joined for _, joined in found) >= 6


@pytest.mark.slow
def test_many_random_programs(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    for seed in range(48, 400):
        check(seed, monkeypatch)
