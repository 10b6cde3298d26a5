"""Losses as Modules: `loss = CrossEntropyLoss()(logits, labels)`; each is the Tensor method of the
name.

`reduction` is "mean", "sum" or "none" in all of them. Shapes that would broadcast are refused: they
are a mistake more often than not.
"""

from __future__ import annotations

from mygrad.errors import ConfigError, ShapeError, message
from mygrad.nn.module import Module
from mygrad.tensor import Tensor

_REDUCTIONS = ("mean", "sum", "none")


class _Loss(Module):
    def __init__(self, reduction: str = "mean") -> None:
        if reduction not in _REDUCTIONS:
            expected = ", ".join(_REDUCTIONS)
            raise ConfigError(message(type(self).__name__, f"reduction={reduction!r}", expected))
        self.reduction = reduction

    def _check(self, x: Tensor, target: Tensor) -> None:
        if tuple(x.shape) != tuple(target.shape):
            got = f"input {tuple(x.shape)} and target {tuple(target.shape)}"
            raise ShapeError(
                message(type(self).__name__, got, "equal shapes", "reshape one of them")
            )

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


class MSELoss(_Loss):
    """(x - y)^2."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """x and target (...) -> (), or (...) with reduction "none".

        Raises:
            ShapeError: the shapes differ.
        """
        self._check(x, target)
        return x.mse_loss(target, self.reduction)


class L1Loss(_Loss):
    """|x - y|."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """x and target (...) -> (), or (...) with reduction "none".

        Raises:
            ShapeError: the shapes differ.
        """
        self._check(x, target)
        return x.l1_loss(target, self.reduction)


class SmoothL1Loss(_Loss):
    """d^2 / (2 beta) where d = |x - y| < beta, else d - beta / 2. Girshick 2015, 1504.08083."""

    def __init__(self, reduction: str = "mean", beta: float = 1.0) -> None:
        super().__init__(reduction)
        self.beta = beta

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """x and target (...) -> (), or (...) with reduction "none".

        Raises:
            ShapeError: the shapes differ.
        """
        self._check(x, target)
        return x.smooth_l1_loss(target, self.beta, self.reduction)


class BCEWithLogitsLoss(_Loss):
    """-(y log s + (1 - y) log(1 - s)) with s = sigmoid(x), as max(x, 0) - x y + log(1 +
    exp(-|x|))."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """x and target (...) -> (), or (...) with reduction "none".

        Raises:
            ShapeError: the shapes differ.
        """
        self._check(x, target)
        return x.binary_cross_entropy_with_logits(target, reduction=self.reduction)


class NLLLoss(_Loss):
    """-log_probabilities[label]: (N, C, ...) and labels (N, ...).

    Samples whose label is `ignore_index` count neither in the sum nor in the mean.
    """

    def __init__(self, reduction: str = "mean", ignore_index: int = -100) -> None:
        super().__init__(reduction)
        self.ignore_index = ignore_index

    def forward(self, log_probabilities: Tensor, labels: Tensor) -> Tensor:
        """(N, C, ...) and integers (N, ...) -> (), or (N, ...) with reduction "none".

        Raises:
            ShapeError: the shapes do not fit.
        """
        return log_probabilities.nll_loss(
            labels, ignore_index=self.ignore_index, reduction=self.reduction
        )


class CrossEntropyLoss(_Loss):
    """NLLLoss of log_softmax: logits (N, C, ...) and labels (N, ...).

    `label_smoothing` mixes the labels with the uniform distribution: Szegedy et al. 2015,
    1512.00567.
    """

    def __init__(
        self, reduction: str = "mean", ignore_index: int = -100, label_smoothing: float = 0.0
    ) -> None:
        super().__init__(reduction)
        self.ignore_index, self.label_smoothing = ignore_index, label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N, C, ...) and integers (N, ...) -> (), or (N, ...) with reduction "none".

        Raises:
            ShapeError: the shapes do not fit.
        """
        return logits.cross_entropy(
            labels,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )
