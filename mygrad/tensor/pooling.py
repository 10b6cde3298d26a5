"""Pooling and interpolation of the last axes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mygrad import graph
from mygrad.errors import ShapeError, message
from mygrad.graph import Node
from mygrad.helpers import ceildiv, prod
from mygrad.ops import Op
from mygrad.tensor.convolution import Convolution, Sizes, check_window, sizes_of, windows
from mygrad.tensor.reduce import accumulator

if TYPE_CHECKING:
    from typing_extensions import Self


class Pooling(Convolution):
    """max_pool, avg_pool, adaptive_avg_pool2d, interpolate."""

    __slots__ = ()

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
        ceil_mode: bool = False,
    ) -> Node:
        """Windows (.., o1, k1, o2, k2) of the last axes, padded with `fill`; ceil_mode: also the
        last one, if it begins inside."""
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
        after = list(pads)
        if ceil_mode:
            for i, n in enumerate(self.shape[lead:]):
                span, padded = dilations[i] * (kernel[i] - 1) + 1, n + 2 * pads[i]
                last = ceildiv(max(padded - span, 0), max(strides[i], 1)) * strides[i]
                after[i] += last + span - padded if pads[i] + n > last and last else 0
                after[i] = max(after[i], pads[i])
        around = [(p, q) for p, q in zip(pads, after, strict=True)]
        x = self._pad_constant([(0, 0)] * lead + around, fill)
        check_window(name, x.shape[lead:], kernel, dilations)
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
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        """The greatest element of each window of the last two axes; padding never wins.

        Args:
            ceil_mode: a last window that begins inside counts, even if it ends outside.
            return_indices: also where each element lies, in the last two axes as one; int64.

        >>> Tensor([[1.0, 2.0, 9.0]]).max_pool2d((1, 2), ceil_mode=True).tolist()
        [[2.0, 9.0]]

        Raises:
            ShapeError: a window larger than the padded input.
        """
        sizes = (kernel_size, stride, padding, dilation)
        return self._max_pool("max_pool2d", *sizes, ceil_mode, return_indices, 2)

    def max_pool1d(
        self,
        kernel_size: Sizes = 2,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        """The greatest element of each window of the last axis; see max_pool2d."""
        sizes = (kernel_size, stride, padding, dilation)
        return self._max_pool("max_pool1d", *sizes, ceil_mode, return_indices, 1)

    def _max_pool(
        self,
        name: str,
        kernel_size: Sizes,
        stride: Sizes | None,
        padding: Sizes,
        dilation: Sizes,
        ceil_mode: bool,
        return_indices: bool,
        rank: int,
    ) -> Any:
        sizes = (kernel_size, stride, padding, dilation)
        node = self._pool(name, *sizes, self.dtype.min, rank, ceil_mode)
        result = self._map(self._pooled(node, Op.MAX, rank))
        if not return_indices:
            return result
        # the place of every element goes through the same windows; padding has none
        lead = self.ndim - rank
        count = prod(self.shape[lead:])
        places = self._wrap(graph.iota(count)).reshape(self.shape[lead:])
        of_window = places._pool(name, *sizes, -1, rank, ceil_mode)
        offsets = [lead + 1 + 2 * i for i in range(rank)]
        order = [a for a in range(len(node.shape)) if a not in offsets] + offsets
        values = self.detach()._wrap(node).permute(*order).flatten(-rank)
        chosen = values.argmax(-1, keepdim=True)
        shown = self._wrap(of_window).permute(*[a - lead for a in order[lead:]]).flatten(-rank)
        found = shown.expand(*values.shape).gather(-1, chosen).squeeze(-1)
        return result, found

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
        if out < 1:
            raise ShapeError(message("adaptive_avg_pool2d", f"output size {out}", "1 or more"))
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
