"""Normalisation, attention and losses as functions of tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mygrad import capture
from mygrad import dtype as dt
from mygrad.config import config
from mygrad.errors import DTypeError, IndexRangeError, ShapeError, message
from mygrad.tensor.base import Base
from mygrad.tensor.mode import precise_type, product_type
from mygrad.tensor.nodes import check_integer
from mygrad.tensor.random import Random
from mygrad.tensor.reduce import accumulator

if TYPE_CHECKING:
    from typing_extensions import Self


class Losses(Random):
    """layernorm, batchnorm, scaled_dot_product_attention, cross_entropy and the other losses.

    Losses take reduction="mean", "sum" or "none".
    """

    __slots__ = ()

    # --- normalisation ---

    def layernorm(
        self,
        normalized_shape: int | Sequence[int] | None = None,
        weight: Self | None = None,
        bias: Self | None = None,
        eps: float = 1e-5,
    ) -> Self:
        """(x - mean) / sqrt(variance + eps) over the last axes (Ba et al. 2016), times weight, plus
        bias.

        Args:
            normalized_shape: the extents of those axes; by default the last axis.

        Raises:
            ShapeError: normalized_shape is not the end of the shape.
        """
        if normalized_shape is None:
            normalized_shape = self.shape[-1:]
        ends = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        if not ends or self.shape[-len(ends) :] != ends:
            raise ShapeError(
                message(
                    "layernorm",
                    f"normalized_shape {ends} for shape {self.shape}",
                    "the last extents of the shape",
                )
            )
        x = self.cast(accumulator(self.dtype))
        axes = tuple(range(self.ndim - len(ends), self.ndim))
        centred = x - x.mean(axes, keepdim=True)
        result = centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
        return result._affine(weight, bias).cast(self.dtype)

    def rms_norm(
        self, weight: Self | None = None, eps: float = 1e-6, axis: int | Sequence[int] = -1
    ) -> Self:
        """x / sqrt(mean of x^2 + eps) (Zhang and Sennrich 2019), times weight."""
        x = self.cast(accumulator(self.dtype))
        result = x * (x.square().mean(axis, keepdim=True) + eps).rsqrt()
        return result._affine(weight, None).cast(self.dtype)

    def batchnorm(
        self, weight: Self | None, bias: Self | None, mean: Self, invstd: Self, axis: int = 1
    ) -> Self:
        """(x - mean) * invstd * weight + bias with one number per channel (`axis`)."""
        shape = tuple(n if a == axis % self.ndim else 1 for a, n in enumerate(self.shape))
        scale = invstd if weight is None else invstd * weight
        result = (self - mean.reshape(shape)) * scale.reshape(shape)
        return (result if bias is None else result + bias.reshape(shape)).cast(self.dtype)

    def group_norm(
        self, groups: int, weight: Self | None = None, bias: Self | None = None, eps: float = 1e-5
    ) -> Self:
        """Layer norm over each of `groups` groups of channels of (N, C, ..) (Wu and He 2018).

        Raises:
            ShapeError: channels do not divide into the groups.
        """
        if check_integer("group_norm", "groups", groups) < 1 or (
            self.ndim < 2 or self.shape[1] % groups
        ):
            raise ShapeError(
                message(
                    "group_norm",
                    f"shape {self.shape} in {groups} groups",
                    "channels that divide into 1 or more groups",
                )
            )
        flat = self.reshape(self.shape[0], groups, -1)
        result = flat.layernorm(flat.shape[-1], eps=eps).reshape(self.shape)
        shape = (-1, *(1,) * (self.ndim - 2))
        return result._affine(
            None if weight is None else weight.reshape(shape),
            None if bias is None else bias.reshape(shape),
        )

    def _affine(self, weight: Self | None, bias: Self | None) -> Self:
        result = self if weight is None else self * weight
        return result if bias is None else result + bias

    def normalize(self, p: float = 2.0, axis: int = 1, eps: float = 1e-12) -> Self:
        """x / max(norm, eps) along an axis."""
        return self / self.norm(p, axis, keepdim=True).maximum(eps)

    # --- attention ---

    def scaled_dot_product_attention(
        self,
        key: Self,
        value: Self,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Self:
        """softmax(q k^T scale + mask) v (Vaswani et al. 2017) for q (.., L, E), k (.., S, E), v
        (.., S, F). What the mask hides has no say, even if it is infinite.

        Args:
            attn_mask: bool (true takes part) or float (added to the scores), broadcast to (.., L,
                S).
            is_causal: query i sees keys 0 .. i only.
            scale: 1 / sqrt(E) by default.
            enable_gqa: fewer heads of k and v than of q, each serving several.

        Raises:
            ShapeError: a mask together with is_causal.
        """
        if enable_gqa:
            times = self.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
        factor = 1 / math.sqrt(max(self.shape[-1], 1)) if scale is None else scale
        scores = (self * factor) @ key.mT
        if is_causal:
            if attn_mask is not None:
                raise ShapeError(
                    message(
                        "scaled_dot_product_attention", "attn_mask and is_causal", "one of them"
                    )
                )
            attn_mask = self.full(scores.shape[-2:], True, dt.bool_).tril()
        if attn_mask is not None:
            mask = self._lift(attn_mask)
            scores = mask.where(scores, -math.inf) if mask.dtype is dt.bool_ else scores + mask
        if not scores.numel():
            return scores @ value
        weights, inverse = scores._exponentials(-1)
        # what makes their sum 1 is a factor of the result, and of what comes back to it, which
        # have fewer elements; but sums of float16 would overflow
        late = product_type(self.dtype) is not dt.float16
        weights = (weights if late else weights * inverse).cast(self.dtype)
        result = weights.dropout(dropout_p, training=dropout_p > 0) @ value
        return (result * inverse).cast(result.dtype) if late else result

    # --- losses ---

    def _reduced_loss(self, reduction: str) -> Self:
        if reduction not in ("mean", "sum", "none"):
            raise DTypeError(message("loss", f"reduction {reduction!r}", "'mean', 'sum' or 'none'"))
        return self.mean() if reduction == "mean" else self.sum() if reduction == "sum" else self

    def cross_entropy(
        self,
        target: Any,
        weight: Self | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> Self:
        """log sum e^x - x[target] for logits (C,), (N, C) or (N, C, d1, ..) and class indices
        without the class axis, or -sum(target log_softmax(x)) for targets that are probabilities of
        the logits' shape.

        Args:
            weight: (C,) a factor for each class; the mean is weighted by it.
            ignore_index: targets of this value count for nothing.
            label_smoothing: this share of the target is spread evenly over all classes.

        >>> Tensor([[0.0, 0.0]]).cross_entropy(Tensor([1])).item()
        0.6931471824645996

        Raises:
            ShapeError: target of another shape.
        """
        given, target = target, self._lift(target)
        axis = 0 if self.ndim == 1 else 1
        if target.dtype.is_float:
            return self._soft_cross_entropy(target, axis, weight, label_smoothing, reduction)
        self._check_target("cross_entropy", target, axis)
        if not self.dtype.is_float or not 0 <= label_smoothing <= 1:
            got = f"{self.dtype.name} logits, label_smoothing {label_smoothing}"
            raise DTypeError(message("cross_entropy", got, "floats, and 0 <= label_smoothing <= 1"))
        target = self._checked_labels("cross_entropy", given, target, axis, ignore_index)
        target = target.cast(dt.int64)  # uint8 labels cannot be compared with -100
        x = self.cast(accumulator(self.dtype))
        log_total = x.logsumexp(axis)
        loss, factor = log_total - x._picked(target, axis), None
        if weight is not None:
            factor = weight._picked_vector(target)
            loss = loss * factor
        if label_smoothing:
            spread = log_total - x.mean(axis)
            if weight is not None:
                shape = tuple(n if a == axis else 1 for a, n in enumerate(self.shape))
                spread = ((log_total.unsqueeze(axis) - x) * weight.reshape(shape)).mean(axis)
            loss = loss * (1 - label_smoothing) + spread * label_smoothing
        result = loss._masked_mean(target != ignore_index, factor, reduction)
        return result.cast(precise_type(self.dtype))

    def _soft_cross_entropy(
        self, target: Self, axis: int, weight: Self | None, smoothing: float, reduction: str
    ) -> Self:
        if target.shape != self.shape:
            raise ShapeError(
                message(
                    "cross_entropy",
                    f"probabilities {target.shape} for logits {self.shape}",
                    "equal shapes, or integer class indices",
                )
            )
        if smoothing:
            target = target * (1 - smoothing) + smoothing / self.shape[axis]
        product = self.log_softmax(axis) * target
        if weight is not None:
            product = product * weight.reshape(
                tuple(n if a == axis else 1 for a, n in enumerate(self.shape))
            )
        loss = -product.sum(axis)
        return loss._reduced_loss(reduction)

    def _check_target(self, name: str, target: Self, axis: int) -> None:
        expected = self.shape[:axis] + self.shape[axis + 1 :]
        if not self.ndim or target.shape != expected or not target.dtype.is_int:
            raise ShapeError(
                message(
                    name,
                    f"target {target.shape} {target.dtype.name} for {self.shape}",
                    f"integer class indices of shape {expected}",
                )
            )

    def _checked_labels(
        self, name: str, given: Any, target: Self, axis: int, ignore_index: int
    ) -> Self:
        """The target, after a look at labels that come from the host or, in checked mode, from a
        tensor."""
        checked = config.CHECK and capture.current() is None
        if checked or not isinstance(given, Base):
            labels, classes = np.asarray(given), self.shape[axis]
            wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= classes))]
            if wrong.size:
                expected = f"0 <= label < {classes}, or ignore_index = {ignore_index}"
                raise IndexRangeError(message(name, f"label {wrong[0]}", expected))
        return target

    def _picked(self, target: Self, axis: int) -> Self:
        """The element at the target's index along the class axis; 0 where there is none."""
        if config.CHECK:  # labels were looked at: what is left outside is to be ignored
            target = (target < 0).where(0, target) % self.shape[axis]
        return self.gather(axis, target.unsqueeze(axis)).squeeze(axis)

    def _picked_vector(self, target: Self) -> Self:
        """The element of this vector at each index; 0 where there is none."""
        if config.CHECK:
            target = (target < 0).where(0, target) % self.shape[0]
        return self.gather(0, target.flatten()).reshape(target.shape)

    def _masked_mean(self, mask: Self, factor: Self | None, reduction: str) -> Self:
        """This loss where the mask holds, reduced; the mean is over what counts."""
        loss = mask.where(self, 0.0)
        if reduction != "mean":
            return loss._reduced_loss(reduction)
        count = mask.cast(self.dtype).sum() if factor is None else mask.where(factor, 0.0).sum()
        return loss.sum() / count

    def nll_loss(
        self,
        target: Any,
        weight: Self | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> Self:
        """-x[target] for log probabilities x; arguments as in cross_entropy."""
        given, target = target, self._lift(target)
        axis = 0 if self.ndim == 1 else 1
        self._check_target("nll_loss", target, axis)
        target = self._checked_labels("nll_loss", given, target, axis, ignore_index)
        target = target.cast(dt.int64)
        loss, factor = -self._picked(target, axis), None
        if weight is not None:
            factor = weight._picked_vector(target)
            loss = loss * factor
        return loss._masked_mean(target != ignore_index, factor, reduction)

    def binary_cross_entropy(
        self, target: Any, weight: Any = None, reduction: str = "mean"
    ) -> Self:
        """-(t log p + (1 - t) log(1 - p)) for probabilities p; logarithms end at -100, as in
        PyTorch."""
        target = self._lift(target)
        log_p, log_q = self.log().maximum(-100.0), (1 - self).log().maximum(-100.0)
        loss = -(target * log_p + (1 - target) * log_q)
        return (loss if weight is None else loss * weight)._reduced_loss(reduction)

    def binary_cross_entropy_with_logits(
        self, target: Any, weight: Any = None, pos_weight: Any = None, reduction: str = "mean"
    ) -> Self:
        """binary_cross_entropy of sigmoid(x), as softplus(x) - x t; pos_weight is a factor for t =
        1."""
        target = self._lift(target)
        if pos_weight is None:
            loss = self.softplus() - self * target
        else:
            loss = (1 - target) * self + ((self._lift(pos_weight) - 1) * target + 1) * (
                -self
            ).softplus()
        return (loss if weight is None else loss * weight)._reduced_loss(reduction)

    def mse_loss(self, target: Any, reduction: str = "mean") -> Self:
        """(x - target)^2."""
        return (self - target).square()._reduced_loss(reduction)

    def l1_loss(self, target: Any, reduction: str = "mean") -> Self:
        """|x - target|."""
        return (self - target).abs()._reduced_loss(reduction)

    def smooth_l1_loss(self, target: Any, beta: float = 1.0, reduction: str = "mean") -> Self:
        """d^2 / (2 beta) where d = |x - target| is below beta, else d - beta / 2."""
        distance = (self - target).abs()
        if beta == 0:
            return distance._reduced_loss(reduction)
        loss = (distance < beta).where(distance.square() * (0.5 / beta), distance - 0.5 * beta)
        return loss._reduced_loss(reduction)

    def huber_loss(self, target: Any, delta: float = 1.0, reduction: str = "mean") -> Self:
        """d^2 / 2 where d = |x - target| is below delta, else delta (d - delta / 2)."""
        return self.smooth_l1_loss(target, delta, "none")._scaled(delta)._reduced_loss(reduction)

    def _scaled(self, factor: float) -> Self:
        return self if factor == 1 else self * factor

    def kl_div(self, target: Any, log_target: bool = False, reduction: str = "mean") -> Self:
        """t (log t - x) for log probabilities x; reduction "batchmean" divides the sum by the first
        extent."""
        target = self._lift(target)
        if log_target:
            loss = target.exp() * (target - self)
        else:
            positive = target > 0
            loss = positive.where(target * (positive.where(target, 1.0).log() - self), 0.0)
        if reduction == "batchmean":
            return loss.sum() / max(self.shape[0], 1)
        return loss._reduced_loss(reduction)
