"""Convolution and pooling: WINDOW (or UNWINDOW), multiply, and one reduction over everything that
is summed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mygrad import dtype as dt
from mygrad import graph
from mygrad.errors import ShapeError, message
from mygrad.graph import Node
from mygrad.helpers import Shape, prod
from mygrad.ops import Op
from mygrad.tensor.base import cast_node, expand_node, reshape_node
from mygrad.tensor.linear import Linear
from mygrad.tensor.reduce import accumulator

if TYPE_CHECKING:
    from typing_extensions import Self

Sizes = int | Sequence[int]


def sizes_of(name: str, value: Sizes, rank: int) -> tuple[int, ...]:
    """One integer for each spatial axis."""
    found = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(found) != rank:
        raise ShapeError(message(name, found, f"one integer, or {rank}"))
    return found


def windows(
    x: Node, first: int, sizes: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Node:
    """Axes first, first + 1, ... each as (position, offset) of its windows: (o1, k1, o2, k2,
    ...)."""
    for i, arg in enumerate(zip(sizes, strides, dilations, strict=True)):
        x = graph.move(Op.WINDOW, x, (first + 2 * i, *arg))
    return x


class Convolution(Linear):
    """conv1d, conv2d, conv3d, conv_transpose2d, pooling, interpolation."""

    __slots__ = ()

    # --- convolution ---

    def conv2d(
        self,
        weight: Self,
        bias: Self | None = None,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
    ) -> Self:
        """x (N, C, H, W) with weight (O, C / groups, kh, kw) and bias (O,) to (N, O, H', W'), where
        H' = (H + 2 padding - dilation (kh - 1) - 1) // stride + 1. x may lack N. padding "same" or
        "valid".

        >>> Tensor.ones(1, 3, 8, 8).conv2d(Tensor.ones(4, 3, 3, 3), padding=1).shape
        (1, 4, 8, 8)

        Raises:
            ShapeError: channels, groups or extents that do not fit.
        """
        return self._conv(2, weight, bias, stride, padding, dilation, groups)

    def conv1d(
        self,
        weight: Self,
        bias: Self | None = None,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
    ) -> Self:
        """x (N, C, L) with weight (O, C / groups, k); see conv2d."""
        return self._conv(1, weight, bias, stride, padding, dilation, groups)

    def conv3d(
        self,
        weight: Self,
        bias: Self | None = None,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
    ) -> Self:
        """x (N, C, D, H, W) with weight (O, C / groups, kd, kh, kw); see conv2d."""
        return self._conv(3, weight, bias, stride, padding, dilation, groups)

    def _conv(
        self,
        rank: int,
        weight: Self,
        bias: Self | None,
        stride: Sizes,
        padding: Sizes | str,
        dilation: Sizes,
        groups: int,
    ) -> Self:
        name = f"conv{rank}d"
        if self.ndim == rank + 1:
            return (
                self.unsqueeze(0)
                ._conv(rank, weight, bias, stride, padding, dilation, groups)
                .squeeze(0)
            )
        _check_channels(name, rank, self.shape, weight.shape, groups, weight.shape[1] * groups)
        strides, dilations = sizes_of(name, stride, rank), sizes_of(name, dilation, rank)
        kernel = weight.shape[2:]
        pairs = _padding_pairs(name, padding, kernel, strides, dilations)
        x, w, kind = self._wide_pair(weight)
        x = graph.move(Op.PAD, x, ((0, 0), (0, 0), *pairs))
        _check_window(name, x.shape[2:], kernel, dilations)
        x = windows(x, 2, kernel, strides, dilations)
        product = _multiply_channels(x, w, groups)
        return self._finish_conv(product, weight, bias, kind)

    def _wide_pair(self, weight: Self) -> tuple[Node, Node, dt.DType]:
        kind = dt.promote(self.dtype, weight.dtype)
        wide = accumulator(kind) if kind.is_float else kind
        return cast_node(self._operand(), wide), cast_node(weight._operand(), wide), kind

    def _finish_conv(self, product: Node, weight: Self, bias: Self | None, kind: dt.DType) -> Self:
        """Sum a product (N, groups, O / groups, C / groups, o1, k1, o2, k2, ..) over channels and
        offsets."""
        rank = (len(product.shape) - 4) // 2
        node = graph.reduce(Op.ADD, product, (3, *(5 + 2 * i for i in range(rank))))
        n, groups, per_group, *spatial = node.shape
        node = reshape_node(node, (n, groups * per_group, *spatial))
        result = self._wrap(graph.cast(node, kind), self._carries or weight._carries)
        return result if bias is None else result + bias.reshape(-1, *(1,) * rank)

    def conv_transpose2d(
        self,
        weight: Self,
        bias: Self | None = None,
        stride: Sizes = 1,
        padding: Sizes = 0,
        output_padding: Sizes = 0,
        dilation: Sizes = 1,
        groups: int = 1,
    ) -> Self:
        """The transposed map of conv2d: x (N, C, H, W) with weight (C, O / groups, kh, kw) to (N,
        O, H', W'), H' = (H - 1) stride - 2 padding + dilation (kh - 1) + output_padding + 1.

        Raises:
            ShapeError: channels, groups or extents that do not fit.
        """
        return self._conv_transpose(
            2, weight, bias, stride, padding, output_padding, dilation, groups
        )

    def conv_transpose1d(
        self,
        weight: Self,
        bias: Self | None = None,
        stride: Sizes = 1,
        padding: Sizes = 0,
        output_padding: Sizes = 0,
        dilation: Sizes = 1,
        groups: int = 1,
    ) -> Self:
        """x (N, C, L) with weight (C, O / groups, k); see conv_transpose2d."""
        return self._conv_transpose(
            1, weight, bias, stride, padding, output_padding, dilation, groups
        )

    def _conv_transpose(
        self,
        rank: int,
        weight: Self,
        bias: Self | None,
        stride: Sizes,
        padding: Sizes,
        output_padding: Sizes,
        dilation: Sizes,
        groups: int,
    ) -> Self:
        name = f"conv_transpose{rank}d"
        if self.ndim == rank + 1:
            return (
                self.unsqueeze(0)
                ._conv_transpose(
                    rank, weight, bias, stride, padding, output_padding, dilation, groups
                )
                .squeeze(0)
            )
        _check_channels(name, rank, self.shape, weight.shape, groups, weight.shape[0])
        strides, dilations = sizes_of(name, stride, rank), sizes_of(name, dilation, rank)
        pads, extra = sizes_of(name, padding, rank), sizes_of(name, output_padding, rank)
        kernel = weight.shape[2:]
        full = tuple(
            (n - 1) * s + d * (k - 1) + 1 + e
            for n, s, d, k, e in zip(self.shape[2:], strides, dilations, kernel, extra, strict=True)
        )
        if any(n <= 2 * p for n, p in zip(full, pads, strict=True)):
            raise ShapeError(message(name, f"padding {pads} of a result of {full}", "less padding"))
        x, w, kind = self._wide_pair(weight)
        for i in range(
            rank
        ):  # an axis of kernel offsets beside each spatial axis, then spread by it
            axis = 2 + 2 * i
            x = reshape_node(x, (*x.shape[: axis + 1], 1, *x.shape[axis + 1 :]))
            x = expand_node(x, (*x.shape[: axis + 1], kernel[i], *x.shape[axis + 2 :]))
            x = graph.move(Op.UNWINDOW, x, (axis, full[i], strides[i], dilations[i]))
        crop = [(0, n) for n in x.shape]
        for i, p in enumerate(pads):
            crop[2 + 2 * i] = (p, full[i] - p)
        x = graph.move(Op.SHRINK, x, tuple(crop))
        channels, per_group = w.shape[:2]  # to the layout of conv2d: (O, C / groups, ..)
        w = reshape_node(w, (groups, channels // groups, per_group, *kernel))
        w = graph.move(Op.PERMUTE, w, (0, 2, 1, *range(3, 3 + rank)))
        w = reshape_node(w, (groups * per_group, channels // groups, *kernel))
        return self._finish_conv(_multiply_channels(x, w, groups), weight, bias, kind)

    # --- pooling ---

    def _pool(
        self,
        name: str,
        kernel_size: Sizes,
        stride: Sizes | None,
        padding: Sizes,
        dilation: Sizes,
        fill: float | int,
        rank: int,
    ) -> Node:
        """Windows (.., o1, k1, o2, k2) of the last axes, padded with `fill`."""
        kernel = sizes_of(name, kernel_size, rank)
        strides = kernel if stride is None else sizes_of(name, stride, rank)
        pads, dilations = sizes_of(name, padding, rank), sizes_of(name, dilation, rank)
        if self.ndim < rank:
            raise ShapeError(message(name, f"shape {self.shape}", f"at least {rank} axes"))
        if any(2 * p > k for p, k in zip(pads, kernel, strict=True)):
            raise ShapeError(
                message(name, f"padding {pads} for windows of {kernel}", "at most half a window")
            )
        lead = self.ndim - rank
        x = self._pad_constant([(0, 0)] * lead + [(p, p) for p in pads], fill)
        _check_window(name, x.shape[lead:], kernel, dilations)
        return windows(x._operand(), lead, kernel, strides, dilations)

    def _pooled(self, node: Node, op: Op, rank: int) -> Node:
        lead = self.ndim - rank
        return graph.reduce(op, node, tuple(lead + 1 + 2 * i for i in range(rank)))

    def max_pool2d(
        self,
        kernel_size: Sizes = 2,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        dilation: Sizes = 1,
    ) -> Self:
        """The greatest element of each window of the last two axes; padding never wins.

        Raises:
            ShapeError: a window larger than the padded input.
        """
        node = self._pool("max_pool2d", kernel_size, stride, padding, dilation, self.dtype.min, 2)
        return self._map(self._pooled(node, Op.MAX, 2))

    def max_pool1d(
        self,
        kernel_size: Sizes = 2,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        dilation: Sizes = 1,
    ) -> Self:
        """The greatest element of each window of the last axis."""
        node = self._pool("max_pool1d", kernel_size, stride, padding, dilation, self.dtype.min, 1)
        return self._map(self._pooled(node, Op.MAX, 1))

    def avg_pool2d(
        self,
        kernel_size: Sizes = 2,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        count_include_pad: bool = True,
    ) -> Self:
        """The mean of each window of the last two axes; padding counts as zeros, or not at all."""
        return self._avg_pool("avg_pool2d", kernel_size, stride, padding, count_include_pad, 2)

    def avg_pool1d(
        self,
        kernel_size: Sizes = 2,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        count_include_pad: bool = True,
    ) -> Self:
        """The mean of each window of the last axis."""
        return self._avg_pool("avg_pool1d", kernel_size, stride, padding, count_include_pad, 1)

    def _avg_pool(
        self,
        name: str,
        kernel_size: Sizes,
        stride: Sizes | None,
        padding: Sizes,
        count_include_pad: bool,
        rank: int,
    ) -> Self:
        x = self._as_float()
        wide = x.cast(accumulator(x.dtype))
        node = wide._pool(name, kernel_size, stride, padding, 1, 0, rank)
        total = wide._map(wide._pooled(node, Op.ADD, rank))
        if count_include_pad or not any(sizes_of(name, padding, rank)):
            return (total / prod(sizes_of(name, kernel_size, rank))).cast(x.dtype)
        ones = wide.ones_like()
        counts = ones._wrap(
            ones._pooled(ones._pool(name, kernel_size, stride, padding, 1, 0, rank), Op.ADD, rank)
        )
        return (total / counts).cast(x.dtype)

    def adaptive_avg_pool2d(self, output_size: Sizes = 1) -> Self:
        """The last two axes to given extents: output i is the mean from floor(i L / O) to ceil((i +
        1) L / O)."""
        result = self
        for axis, out in zip(
            (-2, -1), sizes_of("adaptive_avg_pool2d", output_size, 2), strict=True
        ):
            result = result._adaptive_average(self.ndim + axis, out)
        return result

    def _adaptive_average(self, axis: int, out: int) -> Self:
        n = self.shape[axis]
        if n % out == 0:
            return self.unflatten(axis, (out, n // out)).mean(axis + 1)
        # a matrix of weights: row i is 1 / count inside of its stretch
        weights = [
            [
                1 / (-(-(i + 1) * n // out) - i * n // out)
                if i * n // out <= j < -(-(i + 1) * n // out)
                else 0.0
                for j in range(n)
            ]
            for i in range(out)
        ]
        matrix = type(self)(weights, self._as_float().dtype, self.node.device)
        return self._as_float().movedim(axis, -1).matmul(matrix.T).movedim(-1, axis)

    def interpolate(
        self,
        size: Sizes | None = None,
        scale_factor: float | None = None,
        mode: str = "nearest",
        align_corners: bool = False,
    ) -> Self:
        """The axes after the first two to other extents. mode "nearest" repeats, "linear"
        ("bilinear") weighs the two nearest by distance, with pixel centres at i + 1/2, or at the
        corners if align_corners.

        Raises:
            ShapeError: neither size nor scale, or an unknown mode.
        """
        rank = self.ndim - 2
        if rank < 1 or (size is None) == (scale_factor is None):
            raise ShapeError(
                message(
                    "interpolate",
                    f"shape {self.shape}, size {size}, scale {scale_factor}",
                    "(N, C, ..) and either a size or a scale",
                )
            )
        if mode not in ("nearest", "linear", "bilinear", "trilinear"):
            raise ShapeError(message("interpolate", f"mode {mode!r}", "'nearest' or 'linear'"))
        if size is None:
            assert scale_factor is not None
            size = [math.floor(n * scale_factor) for n in self.shape[2:]]
        result = self
        for i, out in enumerate(sizes_of("interpolate", size, rank)):
            nearest = mode == "nearest"
            result = (
                result._resize_nearest(i + 2, out)
                if nearest
                else result._resize_linear(i + 2, out, align_corners)
            )
        return result

    def _resize_nearest(self, axis: int, out: int) -> Self:
        n = self.shape[axis]
        if n == out:
            return self
        if n and out % n == 0:
            return self.repeat_interleave(out // n, axis)
        return self.index_select(axis, [i * n // out for i in range(out)])

    def _resize_linear(self, axis: int, out: int, align_corners: bool) -> Self:
        n = self.shape[axis]
        if n == out:
            return self
        if align_corners:
            places = [i * (n - 1) / max(out - 1, 1) for i in range(out)]
        else:
            places = [max((i + 0.5) * n / out - 0.5, 0.0) for i in range(out)]
        low = [min(int(p), n - 1) for p in places]
        high = [min(i + 1, n - 1) for i in low]
        shape = (out, *(1,) * (self.ndim - axis - 1))
        weight = type(self)(
            [p - i for p, i in zip(places, low, strict=True)],
            self._as_float().dtype,
            self.node.device,
        ).reshape(shape)
        left, right = self.index_select(axis, low), self.index_select(axis, high)
        return left * (1 - weight) + right * weight


def _check_channels(name: str, rank: int, x: Shape, w: Shape, groups: int, channels: int) -> None:
    if len(x) != rank + 2 or len(w) != rank + 2:
        raise ShapeError(
            message(name, f"x {x} and weight {w}", f"{rank + 2} axes each (x may lack the first)")
        )

    if groups < 1 or x[1] != channels or w[0] % groups:
        raise ShapeError(
            message(
                name,
                f"x {x} and weight {w} in {groups} groups",
                f"{channels} input channels, and channels that divide into the groups",
            )
        )


def _check_window(
    name: str, extents: Shape, kernel: Sequence[int], dilations: Sequence[int]
) -> None:
    for n, k, d in zip(extents, kernel, dilations, strict=True):
        if d * (k - 1) + 1 > n:
            raise ShapeError(
                message(
                    name,
                    f"a window of {d * (k - 1) + 1} on a padded extent of {n}",
                    "a window that fits",
                    "add padding or use a smaller kernel",
                )
            )


def _padding_pairs(
    name: str,
    padding: Sizes | str,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[tuple[int, int]]:
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if padding == "same":
        if any(s != 1 for s in strides):
            raise ShapeError(message(name, "padding 'same' with a stride", "stride 1"))
        total = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        return [(t // 2, t - t // 2) for t in total]
    if isinstance(padding, str):
        raise ShapeError(message(name, f"padding {padding!r}", "integers, 'same' or 'valid'"))
    return [(p, p) for p in sizes_of(name, padding, len(kernel))]


def _multiply_channels(x: Node, w: Node, groups: int) -> Node:
    """x (N, C, o1, k1, ..) times w (O, C / groups, k1, ..) over (N, groups, O / groups, C / groups,
    o1, k1, ..)."""
    n, _, *spatial = x.shape
    outputs, per_group, *kernel = w.shape
    full = (n, groups, outputs // groups, per_group, *spatial)
    x = expand_node(reshape_node(x, (n, groups, 1, per_group, *spatial)), full)
    offsets = [e for k in kernel for e in (1, k)]
    w = expand_node(reshape_node(w, (groups, outputs // groups, per_group, *offsets)), full)
    return graph.alu(Op.MUL, x, w)
