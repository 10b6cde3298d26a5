"""Layers with weights (Linear, Conv, Embedding), and those that only rearrange or drop values.

Arguments, shapes, names of parameters and initial values are PyTorch's, so that its weight files
fit.
"""

from __future__ import annotations

from typing import Any

from mygrad.errors import ConfigError, ShapeError, message
from mygrad.helpers import prod
from mygrad.nn import init
from mygrad.nn.module import Module
from mygrad.tensor import Tensor

Extents = int | tuple[int, ...]


def _extents(value: Extents, n: int, name: str, low: int = 1) -> tuple[int, ...]:
    """One number for each of n axes, `low` or more."""
    extents = (value,) * n if isinstance(value, int) else tuple(value)
    if len(extents) != n or min(extents) < low:
        raise ShapeError(message(name, value, f"a number or {n} numbers, {low} or more"))
    return extents


class Identity(Module):
    """x -> x."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Flatten(Module):
    """Merge the axes from `start_axis` to `end_axis`: (N, C, H, W) -> (N, C * H * W)."""

    def __init__(self, start_axis: int = 1, end_axis: int = -1) -> None:
        self.start_axis, self.end_axis = start_axis, end_axis

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> (N, product of the others), with the default axes."""
        return x.flatten(self.start_axis, self.end_axis)


class Linear(Module):
    """x @ weight.T + bias: (..., in_features) -> (..., out_features).

    weight (out_features, in_features) and bias (out_features) start uniform in +-1 /
    sqrt(in_features).
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        self.weight = init.fan_in_uniform((out_features, in_features), in_features)
        self.bias = init.fan_in_uniform((out_features,), in_features) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features).

        Raises:
            ShapeError: the last axis is not in_features.
        """
        last = self.weight.shape[1:]
        self.check_input(x, lambda shape: shape[-1:] == last, f"(..., {last[0]})")
        return x.linear(self.weight, self.bias)

    def extra_repr(self) -> str:
        out_features, in_features = self.weight.shape
        return f"{in_features}, {out_features}, bias={self.bias is not None}"


class _Conv(Module):
    """Cross-correlation over the last `axes` axes: (N, in, *spatial) -> (N, out, *spatial')."""

    axes: int
    operation: Any  # the method of Tensor
    transposed = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Extents,
        stride: Extents = 1,
        padding: Extents = 0,
        dilation: Extents = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        name = type(self).__name__
        if groups < 1 or in_channels % groups or out_channels % groups:
            got = f"{in_channels} in and {out_channels} out channels in {groups} groups"
            raise ShapeError(message(name, got, "channels divisible by the groups"))
        kernel = _extents(kernel_size, self.axes, f"{name}: kernel_size")
        self.stride = _extents(stride, self.axes, f"{name}: stride")
        self.padding = _extents(padding, self.axes, f"{name}: padding", 0)
        self.dilation = _extents(dilation, self.axes, f"{name}: dilation")
        self.groups = groups
        shape = (out_channels, in_channels // groups, *kernel)
        if self.transposed:
            shape = (in_channels, out_channels // groups, *kernel)
        fan_in = prod(shape[1:])  # of a transposed one too, as PyTorch counts
        self.weight = init.fan_in_uniform(shape, fan_in)
        self.bias = init.fan_in_uniform((out_channels,), fan_in) if bias else None

    def _check(self, x: Tensor) -> None:
        channels = self.weight.shape[0 if self.transposed else 1]
        channels *= 1 if self.transposed else self.groups
        self.check_input(
            x,
            lambda shape: len(shape) == self.axes + 2 and shape[1] == channels,
            f"(N, {channels}{', spatial' * self.axes})",
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, *spatial) -> (N, out_channels, *spatial').

        Raises:
            ShapeError: another number of axes or of channels.
        """
        self._check(x)
        result: Tensor = type(self).operation(
            x,
            self.weight,
            self.bias,
            groups=self.groups,
            stride=self.stride,
            dilation=self.dilation,
            padding=self.padding,
        )
        return result

    def extra_repr(self) -> str:
        kernel = self.weight.shape[2:]
        first, second = self.weight.shape[0], self.weight.shape[1] * self.groups
        channels = (first, second) if self.transposed else (second, first)
        text = f"{channels[0]}, {channels[1]}, {tuple(kernel)}"
        defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
        for name, default in defaults.items():
            value = getattr(self, name)
            if value not in (default, (default,) * self.axes):
                text += f", {name}={value}"
        return text if self.bias is not None else f"{text}, bias=False"


class Conv1d(_Conv):
    """Convolution: (N, in, L) -> (N, out, L'); weight (out, in / groups, kernel)."""

    axes = 1
    operation = Tensor.conv1d


class Conv2d(_Conv):
    """Convolution: (N, in, H, W) -> (N, out, H', W'); weight (out, in / groups, kernel, kernel).

    H' = (H + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1. Weight and bias start
    uniform in +-1 / sqrt(in / groups * kernel * kernel).
    """

    axes = 2
    operation = Tensor.conv2d


class ConvTranspose2d(_Conv):
    """The transposed map of a convolution: (N, in, H, W) -> (N, out, H', W').

    weight (in, out / groups, kernel, kernel);
    H' = (H - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1.
    """

    axes = 2
    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Extents,
        stride: Extents = 1,
        padding: Extents = 0,
        output_padding: Extents = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Extents = 1,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        )
        self.output_padding = _extents(output_padding, 2, "ConvTranspose2d: output_padding", 0)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H', W').

        Raises:
            ShapeError: another number of axes or of channels.
        """
        self._check(x)
        return x.conv_transpose2d(
            self.weight,
            self.bias,
            groups=self.groups,
            stride=self.stride,
            dilation=self.dilation,
            padding=self.padding,
            output_padding=self.output_padding,
        )


class Embedding(Module):
    """Rows of a table by integer index: (...) -> (..., embedding_dim); weight starts normal(0, 1).

    The row `padding_idx` starts at zero and gets no gradient.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None
    ) -> None:
        self.weight = init.normal((num_embeddings, embedding_dim))
        self.padding_idx = padding_idx
        if padding_idx is not None:
            keep = Tensor.arange(num_embeddings).reshape(-1, 1) != padding_idx
            self.weight = init.parameter(keep.where(self.weight, 0.0))

    def forward(self, index: Tensor) -> Tensor:
        """Integers of shape (...) -> (..., embedding_dim)."""
        rows = self.weight[index]
        if self.padding_idx is None:
            return rows
        # the same values; only the gradient of the padding row is cut
        return (index != self.padding_idx).unsqueeze(-1).where(rows, rows.detach())

    def extra_repr(self) -> str:
        return ", ".join(map(str, self.weight.shape))


class Dropout(Module):
    """In training, zero each value with probability p and scale the others by 1 / (1 - p).

    Srivastava et al., Dropout, JMLR 2014.
    """

    def __init__(self, p: float = 0.5) -> None:
        if not isinstance(p, (int, float)) or not 0.0 <= p <= 1.0:
            raise ConfigError(message("Dropout", f"p={p!r}", "a probability"))
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x.dropout(self.p, training=self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class _Pool(Module):
    def __init__(
        self, kernel_size: Extents, stride: Extents | None = None, padding: Extents = 0
    ) -> None:
        name = type(self).__name__
        self.kernel_size = _extents(kernel_size, 2, f"{name}: kernel_size")
        self.stride = _extents(kernel_size if stride is None else stride, 2, f"{name}: stride")
        self.padding = _extents(padding, 2, f"{name}: padding", 0)

    def extra_repr(self) -> str:
        return f"{self.kernel_size}, stride={self.stride}, padding={self.padding}"


class MaxPool2d(_Pool):
    """The largest value of each window: (N, C, H, W) -> (N, C, H', W'). The stride is the window's
    size unless given; padding counts as -inf."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H', W') with H' = (H + 2 * padding - kernel) // stride + 1."""
        return x.max_pool2d(self.kernel_size, stride=self.stride, padding=self.padding)


class AvgPool2d(_Pool):
    """The mean of each window: (N, C, H, W) -> (N, C, H', W'). The stride is the window's size
    unless given; padding counts as zeros."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H', W') with H' = (H + 2 * padding - kernel) // stride + 1."""
        return x.avg_pool2d(self.kernel_size, stride=self.stride, padding=self.padding)
