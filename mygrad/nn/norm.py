"""Normalisation: subtract a mean, divide by a deviation, scale and shift.

    BatchNorm     over the batch and space, per channel    Ioffe and Szegedy 2015, 1502.03167
    LayerNorm     over the last axes                       Ba, Kiros and Hinton 2016, 1607.06450
    InstanceNorm  over space, per sample and channel       Ulyanov et al. 2016, 1607.08022
    GroupNorm     over space and groups of channels        Wu and He 2018, 1803.08494
    RMSNorm       over the last axes, without a mean       Zhang and Sennrich 2019, 1910.07467

Variances are means of squared deviations (not n - 1), as in PyTorch. Inputs of 16 bits are
normalised in float32, where squares do not overflow, and the result has the input's type.
"""

from __future__ import annotations

from mygrad import dtype as dt
from mygrad.errors import ShapeError, message
from mygrad.helpers import Shape, prod
from mygrad.nn import init
from mygrad.nn.module import Module
from mygrad.tensor import Tensor


class _BatchNorm(Module):
    """Normalise each channel (axis 1) over all other axes.

    In training by the statistics of the batch, whose running means are kept in the buffers
    running_mean and running_var: `running = (1 - momentum) * running + momentum * batch`, the
    latter with the unbiased variance; momentum None means the average of all batches. In evaluation
    by the running statistics, unless `track_running_stats` is off.
    """

    ranks: tuple[int, ...]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = init.constant((num_features,), 1.0) if affine else None
        self.bias = init.constant((num_features,), 0.0) if affine else None
        tracked = track_running_stats
        self.running_mean = init.buffer(Tensor.zeros(num_features)) if tracked else None
        self.running_var = init.buffer(Tensor.ones(num_features)) if tracked else None
        self.num_batches_tracked = init.buffer(Tensor.zeros(dtype=dt.int64)) if tracked else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, num_features, ...) -> the same shape.

        Raises:
            ShapeError: another number of axes or of features, or, in training, one value for each
                feature.
        """
        self.check_input(
            x,
            lambda shape: len(shape) in self.ranks and shape[1] == self.num_features,
            f"{' or '.join(map(str, self.ranks))} axes, {self.num_features} on axis 1",
        )
        if not self.training and self.running_mean is not None and self.running_var is not None:
            return self._normalize(x, self.running_mean, self.running_var)
        axes = tuple(i for i in range(len(x.shape)) if i != 1)
        count = prod(x.shape[i] for i in axes)
        if self.training and count == 1:
            raise ShapeError(
                message(
                    type(self).__name__,
                    f"input {tuple(x.shape)}",
                    "more than one value per channel in training",
                    "call .eval() or use a larger batch",
                )
            )
        wide = x.cast(dt.promote(x.dtype, dt.float32))
        mean = wide.mean(axis=axes)
        centred = wide - self._spread(mean, x)
        variance = (centred * centred).mean(axis=axes)
        if self.training:
            self._track(mean.detach(), variance.detach() * (count / max(count - 1, 1)))
        return self._normalize(x, mean, variance)

    def _normalize(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        inverse = (variance + self.eps).rsqrt()
        scale = inverse if self.weight is None else inverse * self.weight
        y = (x - self._spread(mean, x)) * self._spread(scale, x)
        y = y if self.bias is None else y + self._spread(self.bias, x)
        return y.cast(x.dtype)

    @staticmethod
    def _spread(values: Tensor, x: Tensor) -> Tensor:
        """(C) -> (1, C, 1, ...) with as many axes as x."""
        return values.reshape(1, -1, *(1,) * (len(x.shape) - 2))

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        seen = self.num_batches_tracked.assign(self.num_batches_tracked + 1)
        momentum = 1.0 / seen.cast(mean.dtype) if self.momentum is None else self.momentum
        self.running_mean.assign(self.running_mean * (1.0 - momentum) + mean * momentum)
        self.running_var.assign(self.running_var * (1.0 - momentum) + variance * momentum)

    def extra_repr(self) -> str:
        affine = self.weight is not None
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={affine}"


class BatchNorm1d(_BatchNorm):
    __doc__ = f"Batch normalisation: (N, C) or (N, C, L) -> the same shape.\n\n{_BatchNorm.__doc__}"
    ranks = (2, 3)


class BatchNorm2d(_BatchNorm):
    __doc__ = f"Batch normalisation: (N, C, H, W) -> the same shape.\n\n{_BatchNorm.__doc__}"
    ranks = (4,)


class _LastAxes(Module):
    """What norms over the last axes share: weight and bias of the shape that is normalised."""

    def __init__(self, normalized_shape: int | Shape, eps: float, weight: bool, bias: bool) -> None:
        whole = (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
        self.normalized_shape, self.eps = tuple(whole), eps
        if not self.normalized_shape:
            raise ShapeError(message(type(self).__name__, "normalized_shape ()", "an axis or more"))
        self.weight = init.constant(self.normalized_shape, 1.0) if weight else None
        self.bias = init.constant(self.normalized_shape, 0.0) if bias else None

    def _check(self, x: Tensor) -> None:
        wanted = self.normalized_shape
        self.check_input(x, lambda shape: shape[-len(wanted) :] == wanted, f"last axes {wanted}")

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, affine={self.weight is not None}"


class LayerNorm(_LastAxes):
    """Normalise over the last axes, whose shape is `normalized_shape`, with a weight and a bias of
    it."""

    def __init__(
        self,
        normalized_shape: int | Shape,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, elementwise_affine and bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., *normalized_shape) -> the same shape.

        Raises:
            ShapeError: the last axes are not normalized_shape.
        """
        self._check(x)
        return x.layernorm(self.normalized_shape, self.weight, self.bias, self.eps)


class RMSNorm(_LastAxes):
    """x / sqrt(mean(x^2) + eps) * weight over the last axes, whose shape is `normalized_shape`."""

    def __init__(
        self, normalized_shape: int | Shape, eps: float = 1e-6, elementwise_affine: bool = True
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, False)

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        axes = tuple(range(-len(self.normalized_shape), 0))
        return x.rms_norm(self.weight, self.eps, axes)


class GroupNorm(Module):
    """Normalise (N, C, ...) over groups of C / num_groups channels and all axes after them."""

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True
    ) -> None:
        if num_groups < 1 or num_channels % num_groups:
            got = f"{num_channels} channels in {num_groups} groups"
            raise ShapeError(message("GroupNorm", got, "channels divisible by the groups"))
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, eps
        self.weight = init.constant((num_channels,), 1.0) if affine else None
        self.bias = init.constant((num_channels,), 0.0) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, num_channels, ...) -> the same shape.

        Raises:
            ShapeError: axis 1 is not num_channels.
        """
        channels = self.num_channels
        self.check_input(x, lambda shape: shape[1:2] == (channels,), f"(N, {channels}, ...)")
        return x.group_norm(self.num_groups, self.weight, self.bias, self.eps).cast(x.dtype)

    def extra_repr(self) -> str:
        affine = self.weight is not None
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={affine}"


class InstanceNorm2d(GroupNorm):
    """Normalise each channel of each sample of (N, C, H, W) over H and W: one group per channel."""

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = False) -> None:
        super().__init__(num_features, num_features, eps, affine)
