"""Many elements to one along axes, and running combinations.

Half types are accumulated in float32; bool and integers are summed in int64, as in PyTorch. Methods
of this file take `axis=None` (all axes), an integer or several, and `keepdim`; `dim=` and
`keepdims=` mean the same.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mygrad import dtype as dt
from mygrad import graph
from mygrad.dtype import DType
from mygrad.errors import DTypeError, ShapeError, message
from mygrad.graph import Node
from mygrad.helpers import Shape, ceildiv, prod
from mygrad.ops import Op
from mygrad.tensor.creation import positions
from mygrad.tensor.elementwise import flip_order
from mygrad.tensor.joining import Joining
from mygrad.tensor.mode import precise_type
from mygrad.tensor.nodes import (
    Axes,
    DTypeLike,
    axis_names,
    cast_node,
    check_axes,
    check_axis,
    reshape_node,
)

if TYPE_CHECKING:
    from typing_extensions import Self

_SEARCHED = 4096  # elements of a block of which only the extreme counts, unless it is the greatest


def accumulator(dtype: DType) -> DType:
    """The type in which sums and products are computed."""
    if dtype.is_float:
        return dtype if dtype.itemsize >= 4 else dt.float32
    return dt.uint64 if dtype is dt.uint64 else dt.int64


def result_type(dtype: DType) -> DType:
    """The type of a sum."""
    return dtype if dtype.is_float else accumulator(dtype)


def kept(shape: Shape, axes: tuple[int, ...]) -> Shape:
    """The shape with extent 1 on the reduced axes."""
    return tuple(1 if a in axes else n for a, n in enumerate(shape))


class Reduce(Joining):
    """sum, max, mean, var, softmax, argmax, cumsum and relatives."""

    __slots__ = ()

    def _reduced(self, op: Op, node: Node, axes: tuple[int, ...], keepdim: bool) -> Node:
        result = graph.reduce(op, node, axes)
        return reshape_node(result, kept(node.shape, axes)) if keepdim else result

    def _accumulate(
        self, op: Op, name: str, axis: Axes, keepdim: bool, dtype: DTypeLike | None
    ) -> Self:
        axes = check_axes(name, axis, self.ndim)
        target = precise_type(result_type(self.dtype)) if dtype is None else dt.parse(dtype)
        wide = cast_node(self._operand(), accumulator(target))
        return self._map(graph.cast(self._reduced(op, wide, axes, keepdim), target))

    @axis_names
    def sum(self, axis: Axes = None, keepdim: bool = False, dtype: DTypeLike | None = None) -> Self:
        """The sum over axes.

        >>> Tensor([[1, 2], [3, 4]]).sum(axis=0).tolist()
        [4, 6]

        Raises:
            IndexRangeError: an axis that does not exist.
        """
        return self._accumulate(Op.ADD, "sum", axis, keepdim, dtype)

    @axis_names
    def prod(
        self, axis: Axes = None, keepdim: bool = False, dtype: DTypeLike | None = None
    ) -> Self:
        """The product over axes."""
        return self._accumulate(Op.MUL, "prod", axis, keepdim, dtype)

    def _extreme(self, name: str, axis: Axes, keepdim: bool, smallest: bool) -> Self:
        axes = check_axes(name, axis, self.ndim)
        if any(self.shape[a] == 0 for a in axes):
            raise ShapeError(
                message(
                    name,
                    f"shape {self.shape} over axes {axes}",
                    "at least one element",
                    "check for empty tensors first",
                )
            )
        node = self._operand()
        if smallest:
            node = flip_order(self._reduced(Op.MAX, flip_order(node), axes, keepdim))
        else:
            node = self._reduced(Op.MAX, node, axes, keepdim)
        return self._map(node)

    @axis_names
    def max(self, axis: Axes = None, keepdim: bool = False) -> Self:
        """The greatest element over axes; NaN if there is one. Equal ones share the gradient.

        Raises:
            ShapeError: no elements.
        """
        return self._extreme("max", axis, keepdim, smallest=False)

    @axis_names
    def min(self, axis: Axes = None, keepdim: bool = False) -> Self:
        """The smallest element over axes; NaN if there is one. Equal ones share the gradient.

        Raises:
            ShapeError: no elements.
        """
        return self._extreme("min", axis, keepdim, smallest=True)

    amax, amin = max, min

    @axis_names
    def any(self, axis: Axes = None, keepdim: bool = False) -> Self:
        """Whether some element is nonzero."""
        axes = check_axes("any", axis, self.ndim)
        return self._wrap(self._reduced(Op.MAX, self._truth(), axes, keepdim))

    @axis_names
    def all(self, axis: Axes = None, keepdim: bool = False) -> Self:
        """Whether every element is nonzero."""
        axes = check_axes("all", axis, self.ndim)
        return self._wrap(self._reduced(Op.MUL, self._truth(), axes, keepdim))  # "and" of bools

    def _truth(self) -> Node:
        return cast_node(self.node, dt.bool_)

    @axis_names
    def count_nonzero(self, axis: Axes = None, keepdim: bool = False) -> Self:
        """How many elements are nonzero; int64."""
        return self.bool().sum(axis, keepdim)

    # --- moments ---

    def _extent(self, name: str, axis: Axes) -> int:
        return prod(self.shape[a] for a in check_axes(name, axis, self.ndim))

    @axis_names
    def mean(
        self, axis: Axes = None, keepdim: bool = False, dtype: DTypeLike | None = None
    ) -> Self:
        """The mean over axes (float32 of integers); NaN of nothing."""
        x = self._as_float() if dtype is None else self.cast(dtype)
        wide = x.cast(accumulator(x.dtype))
        n = self._extent("mean", axis)
        return (wide.sum(axis, keepdim) / n).cast(x.dtype)

    @axis_names
    def var(self, axis: Axes = None, keepdim: bool = False, correction: float = 1) -> Self:
        """The variance: squared distances from the mean, divided by n - correction (NaN if that is
        0)."""
        return self.var_mean(axis, keepdim, correction)[0]

    @axis_names
    def std(self, axis: Axes = None, keepdim: bool = False, correction: float = 1) -> Self:
        """The square root of `var`."""
        return self.var(axis, keepdim, correction).sqrt()

    @axis_names
    def var_mean(
        self, axis: Axes = None, keepdim: bool = False, correction: float = 1
    ) -> tuple[Self, Self]:
        """Variance and mean together."""
        x = self._as_float()
        wide = x.cast(accumulator(x.dtype))
        axes = check_axes("var", axis, self.ndim)
        mean = wide.mean(axes, keepdim=True)
        divisor = max(self._extent("var", axes) - correction, 0)
        var = (wide - mean).square().sum(axes, keepdim=True)
        var = var / divisor if divisor else var * math.nan
        if not keepdim:
            shape = tuple(n for a, n in enumerate(self.shape) if a not in axes)
            var, mean = var.reshape(shape), mean.reshape(shape)
        return var.cast(x.dtype), mean.cast(x.dtype)

    @axis_names
    def std_mean(
        self, axis: Axes = None, keepdim: bool = False, correction: float = 1
    ) -> tuple[Self, Self]:
        """Standard deviation and mean together."""
        var, mean = self.var_mean(axis, keepdim, correction)
        return var.sqrt(), mean

    @axis_names
    def norm(self, p: float | str = 2, axis: Axes = None, keepdim: bool = False) -> Self:
        """(sum |x|^p)^(1/p); the greatest |x| for p = inf, the smallest for -inf, the nonzeros for
        0.

        Raises:
            DTypeError: p is neither a number nor "fro".
        """
        if p == "fro":
            p = 2
        if not isinstance(p, (int, float)):
            raise DTypeError(message("norm", f"p = {p!r}", "a number or 'fro'"))
        x = self._as_float()
        if p in (math.inf, -math.inf):
            return x.abs().max(axis, keepdim) if p > 0 else x.abs().min(axis, keepdim)
        if p == 0:
            return (x != 0).sum(axis, keepdim).cast(x.dtype)
        wide = x.cast(accumulator(x.dtype))
        if p == 1:
            return wide.abs().sum(axis, keepdim).cast(x.dtype)
        if p == 2:
            return wide.square().sum(axis, keepdim).sqrt().cast(x.dtype)
        return wide.abs().pow(p).sum(axis, keepdim).pow(1 / p).cast(x.dtype)

    # --- softmax and its logarithm ---

    def _shifted(self, axis: int) -> Self:
        """x - max, so that the greatest exponential is 1. The maximum is a constant: it cancels in
        gradients."""
        return self - self.detach().max(axis, keepdim=True)

    def _exponentials(self, axis: int) -> tuple[Self, Self]:
        """e^(x - max) along an axis and one over their sum: one division for a row, because
        dividing its elements takes longer than their exponentials."""
        e = self.cast(accumulator(self.dtype))._shifted(axis).exp()
        return e, e.sum(axis, keepdim=True).reciprocal()

    @axis_names
    def softmax(self, axis: int = -1, dtype: DTypeLike | None = None) -> Self:
        """e^x / sum e^x along an axis."""
        check_axis("softmax", axis, self.ndim)
        x = self._as_float() if dtype is None else self.cast(dtype)
        if not x.numel():
            return x
        e, inverse = x._exponentials(axis)
        return (e * inverse).cast(x.dtype)

    @axis_names
    def log_softmax(self, axis: int = -1, dtype: DTypeLike | None = None) -> Self:
        """x - log sum e^x along an axis."""
        check_axis("log_softmax", axis, self.ndim)
        x = self._as_float() if dtype is None else self.cast(dtype)
        if not x.numel():
            return x
        shifted = x.cast(accumulator(x.dtype))._shifted(axis)
        return (shifted - shifted.exp().sum(axis, keepdim=True).log()).cast(x.dtype)

    @axis_names
    def logsumexp(self, axis: Axes = None, keepdim: bool = False) -> Self:
        """log sum e^x over axes, without overflow."""
        x = self._as_float()
        wide = x.cast(accumulator(x.dtype))
        axes = check_axes("logsumexp", axis, self.ndim)
        greatest = wide.detach().max(axes, keepdim=True)
        greatest = greatest.isinf().where(0.0, greatest)  # inf - inf is no distance
        result = (wide - greatest).exp().sum(axes, keepdim=True).log() + greatest
        if not keepdim:
            result = result.reshape(tuple(n for a, n in enumerate(self.shape) if a not in axes))
        return result.cast(x.dtype)

    # --- positions ---

    @axis_names
    def argmax(self, axis: int | None = None, keepdim: bool = False) -> Self:
        """The position of the first greatest element, or of the first NaN; int64.

        >>> Tensor([3, 7, 7]).argmax().item()
        1

        Raises:
            ShapeError: no elements.
        """
        return self._arg_extreme("argmax", axis, keepdim, smallest=False)

    @axis_names
    def argmin(self, axis: int | None = None, keepdim: bool = False) -> Self:
        """The position of the first smallest element, or of the first NaN; int64.

        Raises:
            ShapeError: no elements.
        """
        return self._arg_extreme("argmin", axis, keepdim, smallest=True)

    def _arg_extreme(self, name: str, axis: int | None, keepdim: bool, smallest: bool) -> Self:
        if axis is None:
            flat = self.flatten()._arg_extreme(name, 0, False, smallest)
            return flat.reshape((1,) * self.ndim) if keepdim else flat
        axis = check_axis(name, axis, self.ndim)
        if self.shape[axis] >= 2 * _SEARCHED:
            found = self.detach()._arg_of_blocks(name, axis, smallest)
            return found if keepdim else found.squeeze(axis)
        x = self.detach()
        attains = x == x._extreme(name, axis, True, smallest)
        if x.dtype.is_float:
            attains = attains | x.isnan()
        # n - i is greatest for the first i
        n = graph.const(self.shape[axis], dt.index, self.shape)
        left = graph.alu(Op.ADD, n, graph.alu(Op.NEG, positions(self.shape, axis)))
        left = graph.alu(Op.WHERE, attains.node, left, graph.const(0, dt.index, self.shape))
        return self.shape[axis] - self._wrap(self._reduced(Op.MAX, left, (axis,), keepdim))

    def _arg_of_blocks(self, name: str, axis: int, smallest: bool) -> Self:
        """The first block that attains the extreme, then the place in it: all is read once, and one
        block a second time. The axis stays."""
        count = ceildiv(self.shape[axis], _SEARCHED)
        missing = [(0, count * _SEARCHED - n if a == axis else 0) for a, n in enumerate(self.shape)]
        worst = self.dtype.max if smallest else self.dtype.min
        before, after = self.shape[:axis], self.shape[axis + 1 :]
        blocks = self.pad(missing, value=worst).reshape(*before, count, _SEARCHED, *after)
        best = blocks._extreme(name, axis + 1, False, smallest)
        which = best._arg_extreme(name, axis, True, smallest)
        index = graph.move(
            Op.EXPAND,
            graph.move(Op.RESHAPE, which.node, (*before, 1, 1, *after)),
            (*before, 1, _SEARCHED, *after),
        )
        block = self._wrap(graph.gather(blocks.node, index, axis))
        place = block._arg_extreme(name, axis + 1, False, smallest)
        return which * _SEARCHED + place

    # --- running ---

    def _scan(self, op: Op, name: str, axis: int, dtype: DTypeLike | None) -> Self:
        target = result_type(self.dtype) if dtype is None else dt.parse(dtype)
        x = self._operand()
        if not self.ndim:
            return self._map(cast_node(x, target))
        wide = cast_node(x, accumulator(target))
        node = graph.scan(op, wide, check_axis(name, axis, self.ndim))
        return self._map(graph.cast(node, target))

    @axis_names
    def cumsum(self, axis: int = 0, dtype: DTypeLike | None = None) -> Self:
        """Running sums along an axis. Neighbours are added first, so that a sum may overflow where
        adding in order would not."""
        return self._scan(Op.ADD, "cumsum", axis, dtype)

    @axis_names
    def cumprod(self, axis: int = 0, dtype: DTypeLike | None = None) -> Self:
        """Running products along an axis."""
        return self._scan(Op.MUL, "cumprod", axis, dtype)

    @axis_names
    def cummax(self, axis: int = 0) -> tuple[Self, Self]:
        """The running maximum along an axis, and the position where it was last attained."""
        return self._cumulative("cummax", axis, smallest=False)

    @axis_names
    def cummin(self, axis: int = 0) -> tuple[Self, Self]:
        """The running minimum along an axis, and the position where it was last attained."""
        return self._cumulative("cummin", axis, smallest=True)

    def _cumulative(self, name: str, axis: int, smallest: bool) -> tuple[Self, Self]:
        if not self.ndim:
            return self, self.zeros_like(dt.default_int)
        axis = check_axis(name, axis, self.ndim)
        node = self._operand()
        if smallest:
            node = flip_order(graph.scan(Op.MAX, flip_order(node), axis))
        else:
            node = graph.scan(Op.MAX, node, axis)
        values = self._map(node)
        attains = (self.detach() == values.detach()) | self.isnan()
        place = attains.where(self._wrap(positions(self.shape, axis)), 0)
        return values, self._wrap(graph.scan(Op.MAX, place.node, axis))

    # --- comparison of whole tensors ---

    def allclose(
        self, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
    ) -> bool:
        """Whether all elements are close; reads the values."""
        return bool(self.isclose(other, rtol, atol, equal_nan).all().item())

    def equal(self, other: Any) -> bool:
        """Whether shapes and all values are equal; reads the values."""
        other = self._lift(other)
        return self.shape == other.shape and (self == other).all().item() is True
