"""Operands that several kernels read are laid out once, and the values are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import array
from test_bands import attention, theirs

from mygrad import Tensor, realize
from mygrad.codegen.actions import Stage
from mygrad.codegen.analysis import default_actions
from mygrad.helpers import prod
from mygrad.kernel import Kernel
from mygrad.runtime import device as devices
from mygrad.schedule import bands, cost
from mygrad.schedule.schedule import schedule
from mygrad.schedule.steps import Band, Schedule, kernels_of

STEPS = 6


def recurrence(x: Tensor, w: Tensor, transposed: bool, steps: int = STEPS) -> Tensor:
    """x = tanh(x W) so many times; `transposed`: W^T."""
    for _ in range(steps):
        x = (x @ (w.T if transposed else w)).tanh()
    return x


def plan_of(result: Tensor, device: str = "cpu") -> Schedule:
    return schedule([result._node], device)


def copies(plan: Schedule) -> list[Kernel]:
    found = [s.what for s in plan.steps if isinstance(s.what, Kernel)]
    return [k for k in found if k.name.startswith("panels")]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", [16, 19, 33])
def test_one_copy_serves_all_steps(transposed: bool, dtype: str, rows: int) -> None:
    x, w = array(rows, 96).astype(dtype), 0.2 * array(96, 96, seed=1).astype(dtype)
    result = recurrence(Tensor(x), Tensor(w), transposed)
    plan = plan_of(result)
    (copy,) = copies(plan)
    assert copy.buffers[1].size == w.size
    want = x
    for _ in range(STEPS):
        want = np.tanh(want @ (w.T if transposed else w))
    np.testing.assert_allclose(result.numpy(), want, rtol=1e-4, atol=1e-5)
    (made,) = (s.arguments[1] for s in plan.steps if s.what is copy)
    readers = [s for s in plan.steps if made in s.arguments and s.what is not copy]
    assert len(readers) == STEPS
    for step in readers:
        taken = default_actions(step.what, devices.get("cpu").target)
        slots = [a.slot for a in taken if isinstance(a, Stage)]
        assert step.arguments.index(made) not in slots  # panels need no copy


def test_gradients_through_a_recurrence() -> None:
    torch = pytest.importorskip("torch")
    x, w = array(32, 64), 0.2 * array(64, 64, seed=1)
    mine = [Tensor(a).requires_grad_() for a in (x, w)]
    recurrence(*mine, True).sum().backward()
    assert len(copies(schedule([t.grad._node for t in mine], "cpu"))) == 2  # forward and backward
    his = [torch.tensor(a, requires_grad=True) for a in (x, w)]
    h = his[0]
    for _ in range(STEPS):
        h = torch.tanh(h @ his[1].T)
    h.sum().backward()
    for a, b in zip(mine, his, strict=True):
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "columns", "steps"),
    [
        (32, 64, 3),  # too few readers
        (4, 64, 6),  # too few rows: nothing is used again
        (1000, 64, 6),  # so many that a copy of their own costs nothing
        (32, 70, 6),  # not whole panels
        (32, 32, 6),  # small enough for the first cache
    ],
)
def test_where_it_does_not_pay(rows: int, columns: int, steps: int) -> None:
    x, w = Tensor(array(rows, columns)), Tensor(array(columns, columns))
    assert not copies(plan_of(recurrence(x, w, True, steps)))


def test_other_devices_keep_their_operands() -> None:
    x, w = (Tensor(array(n, 64), device="reference") for n in (32, 64))
    assert not copies(plan_of(recurrence(x, w, True), "reference"))


def test_two_operands_along_one_column() -> None:
    """x W + y V: one of them has panels."""
    x, y = array(32, 64), array(32, 64, seed=1)
    w, v = 0.1 * array(64, 64, seed=2), 0.1 * array(64, 64, seed=3)
    a, b = Tensor(x), x
    for _ in range(STEPS):
        a = (a @ Tensor(w).T + Tensor(y) @ Tensor(v).T).tanh()
        b = np.tanh(b @ w.T + y @ v.T)
    np.testing.assert_allclose(a.numpy(), b, rtol=1e-4, atol=1e-5)


def test_an_operand_that_changes_in_between() -> None:
    """Weights that are computed from what was read before."""
    x, w = array(32, 64), 0.1 * array(64, 64, seed=1)
    a, b, t, u = Tensor(x), x, Tensor(w), w
    for _ in range(2):
        a, b = recurrence(a, t, True), b
        for _ in range(STEPS):
            b = np.tanh(b @ u.T)
        t, u = (t + a.sum() * 0.001).contiguous(), u + b.sum() * 0.001
    assert len(copies(plan_of(a))) == 2
    np.testing.assert_allclose(a.numpy(), b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("units", [True, False])
@pytest.mark.parametrize(
    ("shape", "keys", "options"),
    [
        ((3, 64, 16), 64, {}),
        ((2, 3, 64, 16), 64, {"is_causal": True}),
        ((2, 2, 61, 32), 96, {}),
        ((1, 2, 80, 16), 80, {"is_causal": True}),
    ],
)
def test_bands_read_panels(
    monkeypatch: pytest.MonkeyPatch,
    cache: Path,
    shape: tuple[int, ...],
    keys: int,
    options: dict[str, object],
    units: bool,
) -> None:
    monkeypatch.setattr(bands, "BY_UNITS", {"cpu"} if units else set())
    monkeypatch.setattr(cost, "BAND_BYTES", prod(shape[:-1]) * keys * 4)
    monkeypatch.setattr(cost, "BAND_BLOCK", 2 * prod(shape[:-2]) * 20 * keys * 4)
    monkeypatch.setattr(cost, "BAND_LOCAL", 1)
    monkeypatch.setattr(cost, "BAND_SHARE", 20)
    monkeypatch.setattr(cost, "PANEL_TIMES", 2)
    monkeypatch.setattr(cost, "PANEL_LEAST", 64)
    realize._prepared.clear()
    found = attention(shape, keys, False, **options)
    plan = schedule([t._node for t in found], "cpu")
    if units:
        (band,) = (s for s in plan.steps if isinstance(s.what, Band))
        assert copies(plan)
        made = {k.name for k in kernels_of(band)}
        assert len(made) == len(kernels_of(band))
    for got, want in zip(found, theirs(shape, keys, False, **options), strict=True):
        np.testing.assert_allclose(got.numpy(), want, rtol=2e-4, atol=2e-5)
    realize._prepared.clear()
