"""Convolution and pooling: WINDOW (or UNWINDOW), multiply, and one reduction over everything that
is summed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mygrad import dtype as dt
from mygrad import graph
from mygrad.errors import ShapeError, message
from mygrad.graph import Node
from mygrad.helpers import Shape
from mygrad.ops import Op
from mygrad.tensor.linear import Linear, widened
from mygrad.tensor.mode import product_type
from mygrad.tensor.nodes import cast_node, check_integer, expand_node, reshape_node

if TYPE_CHECKING:
    from typing_extensions import Self

Sizes = int | Sequence[int]


def sizes_of(name: str, value: Sizes, rank: int) -> tuple[int, ...]:
    """One integer for each spatial axis."""
    values: Sequence[object] = value if isinstance(value, (list, tuple)) else (value,) * rank
    found = tuple(check_integer(name, "size", n) for n in values)
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


def _channels_last(weight: Node) -> Node:
    """A weight, which is copied to be rounded anyway, with its input channels next to each other in
    memory: they are what products add up along."""
    rank = len(weight.shape)
    order = (*range(2, rank), 0, 1)
    moved = graph.contiguous(graph.move(Op.PERMUTE, weight, order), "rounded weights, reordered")
    return graph.move(Op.PERMUTE, moved, (rank - 2, rank - 1, *range(rank - 2)))


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
        weight, bias = self._lift(weight), None if bias is None else self._lift(bias)
        check_integer(name, "groups", groups)
        if self.ndim == rank + 1:
            return (
                self.unsqueeze(0)
                ._conv(rank, weight, bias, stride, padding, dilation, groups)
                .squeeze(0)
            )
        _check_channels(name, rank, self.shape, weight.shape, groups)
        strides, dilations = sizes_of(name, stride, rank), sizes_of(name, dilation, rank)
        kernel = weight.shape[2:]
        pairs = _padding_pairs(name, padding, kernel, strides, dilations)
        x, w, kind = self._wide_pair(weight)
        x = graph.move(Op.PAD, x, ((0, 0), (0, 0), *pairs))
        check_window(name, x.shape[2:], kernel, dilations)
        x = windows(x, 2, kernel, strides, dilations)
        product = _multiply_channels(x, w, groups)
        return self._finish_conv(product, weight, bias, kind)

    def _wide_pair(self, weight: Self) -> tuple[Node, Node, dt.DType]:
        kind = product_type(dt.promote(self.dtype, weight.dtype))
        w = weight._operand()
        if kind is not w.dtype and kind.itemsize < w.dtype.itemsize:
            w = _channels_last(cast_node(w, kind))
        return widened(self._operand(), kind), widened(w, kind), kind

    def _finish_conv(self, product: Node, weight: Self, bias: Self | None, kind: dt.DType) -> Self:
        """Sum a product (N, groups, O / groups, C / groups, k1, k2, .., o1, o2, ..) over channels
        and offsets."""
        rank = (len(product.shape) - 4) // 2
        node = graph.reduce(Op.ADD, product, tuple(range(3, 4 + rank)))
        n, groups, per_group, *spatial = node.shape
        node = reshape_node(node, (n, groups * per_group, *spatial))
        result = self._wrap(graph.cast(node, kind), self._carries or weight._carries)
        if bias is None:
            return result
        if bias.shape != (groups * per_group,):
            got = f"bias {bias.shape} for {groups * per_group} output channels"
            raise ShapeError(message(f"conv{rank}d", got, "one number for each"))
        return result + bias.cast(product_type(bias.dtype)).reshape(-1, *(1,) * rank)

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
        weight, bias = self._lift(weight), None if bias is None else self._lift(bias)
        check_integer(name, "groups", groups)
        if self.ndim == rank + 1:
            return (
                self.unsqueeze(0)
                ._conv_transpose(
                    rank, weight, bias, stride, padding, output_padding, dilation, groups
                )
                .squeeze(0)
            )
        _check_channels(name, rank, self.shape, weight.shape, groups)
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


def _check_channels(name: str, rank: int, x: Shape, w: Shape, groups: int) -> None:
    if len(x) != rank + 2 or len(w) != rank + 2:
        raise ShapeError(
            message(name, f"x {x} and weight {w}", f"{rank + 2} axes each (x may lack the first)")
        )
    channels = w[0] if "transpose" in name else w[1] * groups
    if groups < 1 or x[1] != channels or w[0] % groups:
        raise ShapeError(
            message(
                name,
                f"x {x} and weight {w} in {groups} groups",
                f"{channels} input channels, and channels that divide into the groups",
            )
        )


def check_window(
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
    k1, .., o1, ..). So gradients of windows have places next to each other, as images do."""
    n = x.shape[0]
    outputs, per_group, *kernel = w.shape
    rank = len(kernel)
    x = graph.move(Op.PERMUTE, x, (0, 1, *range(3, 3 + 2 * rank, 2), *range(2, 2 + 2 * rank, 2)))
    spatial = x.shape[2:]
    full = (n, groups, outputs // groups, per_group, *spatial)
    x = expand_node(reshape_node(x, (n, groups, 1, per_group, *spatial)), full)
    ones = (1,) * rank
    w = reshape_node(w, (groups, outputs // groups, per_group, *kernel, *ones))
    return graph.alu(Op.MUL, x, expand_node(w, full))
