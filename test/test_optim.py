"""Optimisers and schedules against PyTorch, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from peers import needs_torch, torch

from mygrad import Device, Tensor, jit, nn
from mygrad import dtype as dt
from mygrad.errors import ConfigError, DataError, GradientError
from mygrad.nn import schedules
from mygrad.nn.optim import SGD, Adam, AdamW, clip_grad_norm_
from mygrad.ops import Op

pytestmark = pytest.mark.usefixtures("reference")

SHAPES = ((3, 4), (5,), (), (1, 2, 2))
STEPS = 6

CASES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "sgd": (SGD, "SGD", {"lr": 0.1}),
    "sgd decay": (SGD, "SGD", {"lr": 0.1, "weight_decay": 0.3}),
    "momentum": (SGD, "SGD", {"lr": 0.1, "momentum": 0.9}),
    "dampening": (SGD, "SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.4, "weight_decay": 0.1}),
    "nesterov": (SGD, "SGD", {"lr": 0.1, "momentum": 0.8, "nesterov": True}),
    "adam": (Adam, "Adam", {"lr": 0.01}),
    "adam options": (Adam, "Adam", {"lr": 0.1, "betas": (0.7, 0.9), "eps": 1e-3}),
    "adam decay": (Adam, "Adam", {"lr": 0.05, "weight_decay": 0.2}),
    "adam no momentum": (Adam, "Adam", {"lr": 0.05, "betas": (0.0, 0.99)}),
    "amsgrad": (Adam, "Adam", {"lr": 0.05, "amsgrad": True, "betas": (0.9, 0.5)}),
    "adamw": (AdamW, "AdamW", {"lr": 0.05}),
    "adamw decay": (AdamW, "AdamW", {"lr": 0.05, "weight_decay": 0.5, "amsgrad": True}),
}


def initial() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]


def gradients(step: int) -> list[np.ndarray | None]:
    """Different every step, of very different sizes, an exact zero, sometimes none."""
    rng = np.random.default_rng(step + 1)
    made: list[np.ndarray | None] = [
        (rng.standard_normal(shape) * 10.0 ** (i - 2)).astype(np.float32)
        for i, shape in enumerate(SHAPES)
    ]
    made[0][0, 0] = 0.0  # type: ignore[index]
    if step in (0, 3):
        made[1] = None
    return made


def run_ours(make: Callable[[list[Tensor]], Any], lrs: dict[int, float]) -> list[np.ndarray]:
    parameters = [Tensor(v, requires_grad=True) for v in initial()]
    optimizer = make(parameters)
    for step in range(STEPS):
        if step in lrs:
            optimizer.lr = lrs[step]
        for p, g in zip(parameters, gradients(step), strict=True):
            p.grad = None if g is None else Tensor(g)
        optimizer.step()
    return [p.numpy() for p in parameters]


def run_theirs(make: Callable[[list[Any]], Any], lrs: dict[int, float]) -> list[np.ndarray]:
    parameters = [torch.tensor(v, requires_grad=True) for v in initial()]
    optimizer = make(parameters)
    for step in range(STEPS):
        if step in lrs:
            optimizer.param_groups[0]["lr"] = lrs[step]
        for p, g in zip(parameters, gradients(step), strict=True):
            p.grad = None if g is None else torch.tensor(g)
        optimizer.step()
    return [p.detach().numpy() for p in parameters]


@needs_torch
@pytest.mark.parametrize("name", CASES)
def test_steps_equal_torchs(name: str) -> None:
    ours, theirs, options = CASES[name]
    lrs = {4: options["lr"] * 0.5}
    found = run_ours(lambda p: ours(p, **options), lrs)
    expected = run_theirs(lambda p: getattr(torch.optim, theirs)(p, **options), lrs)
    for before, a, b in zip(initial(), found, expected, strict=True):
        assert np.abs(b - before).max() > 1e-3  # something was learned
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)


def test_defaults_are_torchs() -> None:
    p = [Tensor([1.0], requires_grad=True)]
    assert (Adam(p).lr.item(), AdamW(p).weight_decay) == (np.float32(1e-3).item(), 1e-2)
    assert (Adam(p).betas, Adam(p).eps, Adam(p).weight_decay) == ((0.9, 0.999), 1e-8, 0.0)


def test_a_step_of_the_first_adam_by_hand() -> None:
    """After one step m / (1 - b1) = g and v / (1 - b2) = g^2, so p moves by lr * sign(g)."""
    p = Tensor([1.0, 1.0, 1.0], requires_grad=True)
    p.grad = Tensor([3.0, -1e-4, 0.0])
    Adam([p], lr=0.25).step()
    np.testing.assert_allclose(p.numpy(), [0.75, 1.25, 1.0], rtol=1e-4)


def test_training_a_line() -> None:
    x = np.linspace(-1, 1, 16, dtype=np.float32).reshape(-1, 1)
    model = nn.Linear(1, 1)
    optimizer = SGD(model.parameters(), lr=0.3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.MSELoss()(model(Tensor(x)), Tensor(3 * x - 2))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-4 < losses[0]
    np.testing.assert_allclose([model.weight.item(), model.bias.item()], [3, -2], atol=0.02)


def test_a_step_computes_the_loss_along() -> None:
    p = Tensor([2.0], requires_grad=True)
    optimizer = SGD([p], lr=0.5)
    lost = (p * 3).sum()
    lost.backward()
    del lost  # nobody can read it any more
    loss = (p * p).sum()
    loss.backward()
    optimizer.step()
    assert loss.node.op is Op.BUFFER
    assert loss.item() == 4.0
    np.testing.assert_array_equal(p.numpy(), [2.0 - 0.5 * (3 + 4)])


def test_parameters_stay_leaves_and_keep_their_type() -> None:
    p = Tensor([1.0], requires_grad=True)
    optimizer = Adam([p, p])
    (p * 2).sum().backward()
    optimizer.step()
    assert len(optimizer.parameters) == 1
    assert p.requires_grad
    assert p.is_leaf
    assert all(not t.requires_grad for t in optimizer.state_dict().values())
    optimizer.zero_grad()
    assert p.grad is None


@pytest.mark.parametrize("make", [SGD, Adam, lambda p: SGD(p, momentum=0.9, dampening=0.1)])
def test_low_precision_parameters_stay_so(make: Callable[[list[Tensor]], Any]) -> None:
    p = Tensor([1.0, 2.0], dtype=dt.bfloat16, requires_grad=True)
    optimizer = make([p])
    for _ in range(2):
        p.grad = Tensor([1.0, 1.0], dtype=dt.bfloat16)
        optimizer.step()
    assert p.dtype is dt.bfloat16
    assert np.isfinite(p.numpy()).all()


def test_state_dict_resumes_a_run() -> None:
    def run(
        first: int, load: dict[str, np.ndarray] | None, start: list[np.ndarray], last: int
    ) -> Any:
        parameters = [Tensor(v, requires_grad=True) for v in start]
        optimizer = Adam(parameters, lr=0.1, amsgrad=True)
        if load is not None:
            optimizer.load_state_dict(load)
        for step in range(first, last):
            for p, g in zip(parameters, gradients(step), strict=True):
                p.grad = None if g is None else Tensor(g)
            optimizer.step()
        optimizer.lr = 0.05
        saved = {name: t.numpy() for name, t in optimizer.state_dict().items()}
        return [p.numpy() for p in parameters], saved

    halfway, saved = run(0, None, initial(), 3)
    assert {"_lr", "steps", "m.0", "v.3", "largest.1"} <= set(saved)
    assert not any(name.startswith("parameters") for name in saved)
    saved["_lr"] = np.float32(0.1)
    resumed, _ = run(3, saved, halfway, STEPS)
    whole, _ = run(0, None, initial(), STEPS)
    for a, b in zip(resumed, whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    with pytest.raises(DataError, match="missing _lr"):
        SGD([Tensor([1.0], requires_grad=True)]).load_state_dict({})


# --- inside of jit --------------------------------------------------------------------------------


def train_small(wrap: Callable[[Any], Any], make: Callable[[Any], Any]) -> list[np.ndarray]:
    """Losses, parameters, statistics and optimiser states; the learning rate falls."""
    Tensor.manual_seed(3)
    # no bias before the norm: its gradient is rounding noise, of which Adam takes only the sign
    first = nn.Linear(3, 4, bias=False)
    model = nn.Sequential(first, nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).train()
    optimizer = make(model.parameters())

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = model(x).cross_entropy(y)
        loss.backward()
        optimizer.step()
        return loss

    run, losses = wrap(step), []
    for i in range(5):
        rng = np.random.default_rng(i)
        x, y = rng.standard_normal((6, 3)).astype(np.float32), rng.integers(0, 2, 6)
        losses.append(run(Tensor(x), Tensor(y)).numpy())
        optimizer.lr = 0.1 / (i + 2)
    state = [*model.state_dict().values(), *optimizer.state_dict().values()]
    return [*losses, *(t.numpy() for t in state)]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: SGD(p, lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.01),
        lambda p: AdamW(p, lr=0.1, amsgrad=True),
    ],
)
def test_jit_does_what_eager_steps_do(make: Callable[[Any], Any]) -> None:
    Device.DEFAULT = "cpu"  # one test of the whole way
    for a, b in zip(train_small(jit, make), train_small(lambda f: f, make), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_clipping_inside_of_jit() -> None:
    p = Tensor([3.0, 4.0], requires_grad=True)

    @jit
    def norm(x: Tensor) -> Tensor:
        p.grad = None
        (p * x).sum().backward()
        before = clip_grad_norm_([p], 1.0)
        return before + 0 * p.grad.sum(), p.grad

    for scale in (1.0, 100.0):
        before, clipped = norm(Tensor([3.0, 4.0]) * scale)
        assert abs(before.item() / (5 * scale) - 1) < 1e-5
        np.testing.assert_allclose(clipped.numpy(), [0.6, 0.8], rtol=1e-4)


def test_errors() -> None:
    p = Tensor([1.0], requires_grad=True)
    with pytest.raises(GradientError, match=r"Adam: got no parameters, expected at least one"):
        Adam([])
    with pytest.raises(GradientError, match=r"SGD: got parameter 1: .*get_parameters\(model\)"):
        SGD([p, Tensor([1.0])])
    with pytest.raises(GradientError, match="made with requires_grad=True"):
        SGD([p * 2])
    with pytest.raises(GradientError, match=r"SGD\.step: got no gradients.*loss\.backward\(\)"):
        SGD([p]).step()
    with pytest.raises(ConfigError, match=r"SGD: got lr=-1"):
        SGD([p], lr=-1)
    with pytest.raises(ConfigError, match=r"nesterov with momentum=0.0"):
        SGD([p], nesterov=True)
    with pytest.raises(ConfigError, match=r"betas\[1\]=1.0, expected 0 <= betas\[1\] < 1"):
        Adam([p], betas=(0.9, 1.0))
    with pytest.raises(GradientError, match="clip_grad_norm_: got no gradients"):
        clip_grad_norm_([p], 1.0)


@needs_torch
@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, math.inf])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clip_grad_norm(norm_type: float, max_norm: float) -> None:
    ours = [Tensor(v, requires_grad=True) for v in initial()]
    theirs = [torch.tensor(v, requires_grad=True) for v in initial()]
    for a, b, g in zip(ours, theirs, gradients(0), strict=True):
        if g is not None:
            a.grad, b.grad = Tensor(g), torch.tensor(g)
    norm = clip_grad_norm_(ours, max_norm, norm_type)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    np.testing.assert_allclose(norm.item(), expected.item(), rtol=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-5)


# --- schedules ------------------------------------------------------------------------------------

SCHEDULES: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], Any], int]] = {
    "step": (
        lambda o: schedules.StepLR(o, 3, gamma=0.5),
        lambda s, o: s.StepLR(o, 3, gamma=0.5),
        10,
    ),
    "cosine": (
        lambda o: schedules.CosineAnnealingLR(o, 8, lr_min=0.01),
        lambda s, o: s.CosineAnnealingLR(o, 8, eta_min=0.01),
        8,
    ),
    "warm-up": (
        lambda o: schedules.LinearWarmup(o, 5, start_factor=0.2),
        lambda s, o: s.LinearLR(o, start_factor=0.2, total_iters=5),
        9,
    ),
    "one cycle": (
        lambda o: schedules.OneCycleLR(o, 0.4, 20),
        lambda s, o: s.OneCycleLR(o, 0.4, 20, cycle_momentum=False),
        19,
    ),
    "lambda": (
        lambda o: schedules.LambdaLR(o, lambda step: 0.9**step),
        lambda s, o: s.LambdaLR(o, lambda step: 0.9**step),
        5,
    ),
}


@needs_torch
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_equal_torchs(name: str) -> None:
    ours, theirs, steps = SCHEDULES[name]
    optimizer = SGD([Tensor([1.0], requires_grad=True)], lr=0.1)
    other = torch.optim.SGD([torch.tensor([1.0], requires_grad=True)], lr=0.1)
    schedule, other_schedule = ours(optimizer), theirs(torch.optim.lr_scheduler, other)
    for _ in range(steps):
        np.testing.assert_allclose(optimizer.lr.item(), other.param_groups[0]["lr"], rtol=1e-5)
        other.step()
        schedule.step()
        other_schedule.step()
    np.testing.assert_allclose(optimizer.lr.item(), other.param_groups[0]["lr"], rtol=1e-5)


def test_cosine_with_warm_up_and_after_the_end() -> None:
    optimizer = SGD([Tensor([1.0], requires_grad=True)], lr=1.0)
    schedule = schedules.CosineAnnealingLR(optimizer, 12, lr_min=0.1, warmup_steps=4)
    rates = [schedule.lr_at(i) for i in range(16)]
    np.testing.assert_allclose(rates[:5], [0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[4:13] == sorted(rates[4:13], reverse=True)
    np.testing.assert_allclose(rates[12:], 0.1)


def test_schedule_errors() -> None:
    optimizer = SGD([Tensor([1.0], requires_grad=True)])
    with pytest.raises(ConfigError, match="StepLR: step_size: got 0"):
        schedules.StepLR(optimizer, 0)
    with pytest.raises(ConfigError, match="CosineAnnealingLR: steps: got 0"):
        schedules.CosineAnnealingLR(optimizer, 5, warmup_steps=5)
    with pytest.raises(ConfigError, match=r"pct_start=1.5"):
        schedules.OneCycleLR(optimizer, 0.1, 5, pct_start=1.5)
