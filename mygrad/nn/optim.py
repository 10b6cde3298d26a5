"""Optimisers: SGD, Adam and AdamW by PyTorch's formulas, as Tensor expressions.

All state lives in Tensors on the device of the parameters: the learning rate, the moments, the
counters of steps. So `step` works the same eagerly and inside of `jit`, and a learning rate that is
set between two calls of a jitted step takes effect.

    >>> optimizer = Adam(get_parameters(model), lr=1e-3)
    >>> optimizer.zero_grad(); loss.backward(); optimizer.step()
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mygrad import dtype as dt
from mygrad.errors import ConfigError, DeviceError, GradientError, message
from mygrad.nn import state
from mygrad.tensor import Tensor
from mygrad.tensor.mode import differentiated


class Optimizer:
    """What all optimisers share. A subclass keeps its state in attributes and defines `_update`.

    Args:
        parameters: Tensors with requires_grad=True; those that come twice count once.
        lr: the learning rate.

    Raises:
        GradientError: no parameters, or one that requires no gradient.
        DeviceError: parameters on several devices.
        ConfigError: a negative learning rate.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        name = type(self).__name__
        self.parameters = list({id(p): p for p in parameters}.values())
        if not self.parameters:
            remedy = "make parameters with requires_grad=True, or pass get_parameters(model)"
            raise GradientError(message(name, "no parameters", "at least one Tensor", remedy))
        for i, p in enumerate(self.parameters):
            if not isinstance(p, Tensor) or not (p.requires_grad and p.is_leaf):
                got = f"parameter {i}: {p!r}"
                expected = "a Tensor made with requires_grad=True"
                raise GradientError(message(name, got, expected, "pass get_parameters(model)"))
        places = sorted({str(p.device) for p in self.parameters})
        if len(places) > 1:
            got = f"parameters on {' and '.join(places)}"
            raise DeviceError(message(name, got, "one device", "use one optimiser for each device"))
        self._check("lr", lr, 0.0)
        self._lr = self._scalar(lr)
        Tensor.realize(*self.parameters)

    # --- for subclasses ---------------------------------------------------------------------------

    def _update(self, index: int, p: Tensor, gradient: Tensor, shared: Any) -> None:
        """Assign new values to the parameter number `index` and to its state."""
        raise NotImplementedError

    def _begin(self, active: list[int]) -> Any:
        """What the updates of a step share; `active` are the numbers of the parameters with
        gradients."""

    def _check(self, what: str, value: float, low: float, high: float = math.inf) -> None:
        if not isinstance(value, (int, float)) or not low <= value < high:
            expected = f"{low:g} or more" if high == math.inf else f"{low:g} <= {what} < {high:g}"
            raise ConfigError(message(type(self).__name__, f"{what}={value}", expected))

    def _scalar(self, value: float) -> Tensor:
        # from an array: a buffer of its own, not a constant that would be compiled into kernels
        values = np.array(value, np.float32)
        return Tensor(values, device=self.parameters[0].device, requires_grad=False)

    def _zeros(self) -> list[Tensor]:
        """One state for each parameter."""
        return [
            Tensor(np.zeros(p.shape, np.float32), p.dtype, p.device, requires_grad=False)
            for p in self.parameters
        ]

    # --- for users --------------------------------------------------------------------------------

    @property
    def lr(self) -> Tensor:
        """The learning rate, a Tensor without axes; set it with a number."""
        return self._lr

    @lr.setter
    def lr(self, value: float | Tensor) -> None:
        new = value.detach().cast(dt.float32) if isinstance(value, Tensor) else self._scalar(value)
        self._lr.assign(new)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for p in self.parameters:
            p.grad = None

    def step(self) -> None:
        """Update every parameter that has a gradient; those without are left alone.

        The new values are computed now, together with the losses that `backward` was called on, so
        that reading one afterwards costs nothing. Inside of `jit` nothing is computed now.

        Raises:
            GradientError: no parameter has a gradient.
        """
        active = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        if not active:
            got = f"{type(self).__name__}.step"
            raise GradientError(
                message(
                    got, "no gradients", "a gradient of a parameter", "call loss.backward() first"
                )
            )
        with Tensor.no_grad():
            shared = self._begin(active)
            for i in active:
                p = self.parameters[i]
                assert p.grad is not None
                self._update(i, p, p.grad, shared)
        losses = [t for t in (reference() for reference in differentiated) if t is not None]
        differentiated.clear()
        Tensor.realize(*self.parameters, *self.state_dict().values(), *losses)

    def state_dict(self) -> dict[str, Tensor]:
        """The state by name, without the parameters. The Tensors themselves, not copies."""
        own = {name: value for name, value in vars(self).items() if name != "parameters"}
        return state.get_state_dict(own)

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Assign a state that `state_dict` of such an optimiser gave; see
        `state.load_state_dict`."""
        state.load_state_dict({n: v for n, v in vars(self).items() if n != "parameters"}, values)


class SGD(Optimizer):
    """Gradient descent, optionally with (Nesterov's) momentum.

        g = grad + weight_decay * p
        b = g on a parameter's first step, then momentum * b + (1 - dampening) * g
        p = p - lr * (g + momentum * b if nesterov else b)

    Sutskever et al., On the importance of initialization and momentum, ICML 2013.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(parameters, lr)
        self._check("momentum", momentum, 0.0)
        self._check("weight_decay", weight_decay, 0.0)
        if nesterov and (momentum == 0.0 or dampening != 0.0):
            got = f"nesterov with momentum={momentum}, dampening={dampening}"
            raise ConfigError(message("SGD", got, "a momentum and no dampening"))
        self.momentum, self.dampening = momentum, dampening
        self.weight_decay, self.nesterov = weight_decay, nesterov
        self.b = self._zeros() if momentum else []
        # whether a parameter had its first step; only dampening needs to know
        self.started = [self._scalar(0.0) for _ in self.parameters] if dampening else []

    def _update(self, index: int, p: Tensor, gradient: Tensor, shared: None) -> None:
        g = gradient + p * self.weight_decay if self.weight_decay else gradient
        if self.momentum:
            b = self.b[index].assign(self.b[index] * self.momentum + g * self._fresh(index))
            g = g + b * self.momentum if self.nesterov else b
        p.assign(p - g * self._lr.cast(p.dtype))

    def _fresh(self, index: int) -> Tensor | float:
        """The weight of the new gradient: 1 on the first step, then 1 - dampening."""
        if not self.dampening:
            return 1.0
        weight = 1.0 - self.started[index] * self.dampening
        self.started[index].assign(self.started[index] * 0.0 + 1.0)
        return weight.cast(self.parameters[index].dtype)


class _Adam(Optimizer):
    """Adam and AdamW, which differ in what weight decay acts on."""

    decoupled: bool

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        amsgrad: bool,
    ) -> None:
        super().__init__(parameters, lr)
        self._check("betas[0]", betas[0], 0.0, 1.0)
        self._check("betas[1]", betas[1], 0.0, 1.0)
        self._check("eps", eps, 0.0)
        self._check("weight_decay", weight_decay, 0.0)
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.m, self.v = self._zeros(), self._zeros()
        self.largest = self._zeros() if amsgrad else []
        # steps each parameter had, all in one Tensor: one small kernel counts for all of them
        counts = np.zeros(len(self.parameters), np.float32)
        self.steps = Tensor(counts, device=self.parameters[0].device, requires_grad=False)

    def _begin(self, active: list[int]) -> tuple[Tensor, Tensor]:
        """lr / (1 - b1^t) and sqrt(1 - b2^t), one of each for every parameter."""
        counted: Tensor | float = 1.0
        if len(active) < len(self.parameters):
            flags = np.zeros(len(self.parameters), np.float32)
            flags[active] = 1.0
            counted = Tensor(flags, device=self.steps.device)
        steps = self.steps.assign(self.steps + counted)
        first, second = (_one_minus_power(beta, steps) for beta in self.betas)
        # in memory of their own, or every element of every parameter would compute them again
        return (self._lr / first).contiguous(), second.sqrt().contiguous()

    def _update(
        self, index: int, p: Tensor, gradient: Tensor, shared: tuple[Tensor, Tensor]
    ) -> None:
        size, root = (values[index].cast(p.dtype) for values in shared)
        g, decayed = gradient, p
        if self.weight_decay and self.decoupled:
            decayed = p * (1.0 - self._lr * self.weight_decay).cast(p.dtype)
        elif self.weight_decay:
            g = gradient + p * self.weight_decay
        (b1, b2), m, v = self.betas, self.m[index], self.v[index]
        m = m.assign(m * b1 + g * (1.0 - b1))
        v = v.assign(v * b2 + g * g * (1.0 - b2))
        if self.largest:
            v = self.largest[index].assign(self.largest[index].maximum(v))
        p.assign(decayed - m * size / (v.sqrt() / root + self.eps))


def _one_minus_power(beta: float, exponent: Tensor) -> Tensor:
    """1 - beta^exponent; by expm1, since float32 loses most digits of 1 - 0.999."""
    if beta == 0.0:
        return exponent * 0.0 + 1.0
    return -(exponent * math.log(beta)).expm1()


class Adam(_Adam):
    """Kingma and Ba 2014, 1412.6980; weight decay is added to the gradient (L2 regularisation).

        m = b1 m + (1 - b1) g          v = b2 v + (1 - b2) g^2
        p = p - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)

    With `amsgrad` the largest v so far is used: Reddi et al. 2018, 1904.09237.
    """

    decoupled = False

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay, amsgrad)


class AdamW(_Adam):
    """Adam with weight decay on the parameter itself, p - lr * weight_decay * p, before the update.

    Loshchilov and Hutter 2017, 1711.05101.
    """

    decoupled = True

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay, amsgrad)


def clip_grad_norm_(
    parameters: Iterable[Tensor], max_norm: float, norm_type: float = 2.0
) -> Tensor:
    """Scale all gradients together so that their norm is at most `max_norm`; returns the norm
    before.

    `norm_type` is the p of the p-norm; inf is the largest absolute value. As in PyTorch the factor
    is min(1, max_norm / (norm + 1e-6)).

    Raises:
        GradientError: no parameter has a gradient.
    """
    gradients = [(p, p.grad) for p in parameters if p.grad is not None]
    if not gradients:
        remedy = "call loss.backward() first"
        raise GradientError(message("clip_grad_norm_", "no gradients", "at least one", remedy))
    with Tensor.no_grad():
        sizes = [_power_sum(g.cast(dt.float32), norm_type) for _, g in gradients]
        total = sizes[0]
        for size in sizes[1:]:
            total = total.maximum(size) if norm_type == math.inf else total + size
        norm = _root(total, norm_type)
        factor = (max_norm / (norm + 1e-6)).minimum(1.0).contiguous()
        for p, g in gradients:
            p.grad = g * factor.cast(g.dtype)
    return norm


def _power_sum(x: Tensor, p: float) -> Tensor:
    if p == math.inf:
        return x.abs().max()
    return (x * x).sum() if p == 2.0 else (x.abs() ** p).sum()


def _root(total: Tensor, p: float) -> Tensor:
    if p == math.inf:
        return total
    return total.sqrt() if p == 2.0 else total ** (1.0 / p)
