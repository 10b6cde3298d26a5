"""Learning-rate schedules: plain functions of the number of the step, set into an optimiser.

    >>> schedule = CosineAnnealingLR(optimizer, steps=1000)
    >>> for x, y in batches:
    ...     train(x, y)
    ...     schedule.step()

The rates are PyTorch's, step by step. They are computed by Python on the host and written into the
optimiser's `lr` Tensor, so a jitted training step sees them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

from mygrad.errors import ConfigError, message
from mygrad.nn.optim import Optimizer


class Schedule(ABC):
    """Sets `optimizer.lr` to `lr_at(0)` now and to `lr_at(n)` at the n-th call of `step`."""

    def __init__(self, optimizer: Optimizer, base_lr: float | None = None) -> None:
        self.optimizer = optimizer
        self.base_lr = float(optimizer.lr.item()) if base_lr is None else base_lr
        self.steps_done = 0
        self.optimizer.lr = self.lr_at(0)

    @abstractmethod
    def lr_at(self, step: int) -> float:
        """The learning rate of the step with this number, from 0."""

    def step(self) -> None:
        """Go on to the next learning rate."""
        self.steps_done += 1
        self.optimizer.lr = self.lr_at(self.steps_done)


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(message(name, value, "1 or more steps"))


class LambdaLR(Schedule):
    """base_lr * factor(step), for any function."""

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        self.factor = factor
        super().__init__(optimizer)

    def lr_at(self, step: int) -> float:
        return self.base_lr * self.factor(step)


class StepLR(Schedule):
    """base_lr * gamma^(step // step_size)."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        _check_positive("StepLR: step_size", step_size)
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer)

    def lr_at(self, step: int) -> float:
        return self.base_lr * self.gamma ** (step // self.step_size)


class CosineAnnealingLR(Schedule):
    """From base_lr down to lr_min along half a cosine in `steps` steps, after a linear warm-up.

    Loshchilov and Hutter 2016, 1608.03983, without restarts: after the last step it stays at
    lr_min.
    """

    def __init__(
        self, optimizer: Optimizer, steps: int, lr_min: float = 0.0, warmup_steps: int = 0
    ) -> None:
        _check_positive("CosineAnnealingLR: steps", steps - warmup_steps)
        self.steps, self.lr_min, self.warmup_steps = steps, lr_min, warmup_steps
        super().__init__(optimizer)

    def lr_at(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.base_lr * (step + 1) / (self.warmup_steps + 1)
        done = min(1.0, (step - self.warmup_steps) / (self.steps - self.warmup_steps))
        return _cosine(self.base_lr, self.lr_min, done)


class LinearWarmup(Schedule):
    """From start_factor * base_lr up to base_lr in a straight line of `steps` steps, then
    constant."""

    def __init__(self, optimizer: Optimizer, steps: int, start_factor: float = 1.0 / 3.0) -> None:
        _check_positive("LinearWarmup: steps", steps)
        self.steps, self.start_factor = steps, start_factor
        super().__init__(optimizer)

    def lr_at(self, step: int) -> float:
        done = min(1.0, step / self.steps)
        return self.base_lr * (self.start_factor + (1.0 - self.start_factor) * done)


class OneCycleLR(Schedule):
    """Up from max_lr / div_factor to max_lr in a part `pct_start` of the steps, then down to max_lr
    / div_factor / final_div_factor, both along half a cosine. Smith and Topin 2017, 1708.07120.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float,
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        _check_positive("OneCycleLR: total_steps", total_steps)
        if not 0.0 <= pct_start <= 1.0:
            raise ConfigError(
                message("OneCycleLR", f"pct_start={pct_start}", "0 <= pct_start <= 1")
            )
        self.max_lr, self.total_steps, self.pct_start = max_lr, total_steps, pct_start
        self.first_lr = max_lr / div_factor
        self.last_lr = self.first_lr / final_div_factor
        super().__init__(optimizer, base_lr=max_lr)

    def lr_at(self, step: int) -> float:
        top, last = self.pct_start * self.total_steps - 1.0, self.total_steps - 1.0
        if step <= top:
            return _cosine(self.first_lr, self.max_lr, step / top if top else 1.0)
        return _cosine(self.max_lr, self.last_lr, min(1.0, (step - top) / (last - top)))


def _cosine(start: float, end: float, done: float) -> float:
    """From start (done = 0) to end (done = 1) along half a cosine."""
    return end + (start - end) * (1.0 + math.cos(math.pi * done)) / 2.0
