"""Tensors from nothing: constants, ranges, triangles."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mygrad import capture, graph
from mygrad import dtype as dt
from mygrad.config import config
from mygrad.dtype import DType
from mygrad.errors import DTypeError, ShapeError, message
from mygrad.graph import Node
from mygrad.helpers import Shape, ceildiv
from mygrad.ops import Op
from mygrad.runtime import device as devices
from mygrad.tensor.base import Base
from mygrad.tensor.conversion import Conversion
from mygrad.tensor.nodes import (
    Array,
    DTypeLike,
    Scalar,
    cast_node,
    check_places,
    check_shape,
    expand_node,
    is_scalar,
    reshape_node,
)

if TYPE_CHECKING:
    from typing_extensions import Self


def shape_of(name: str, shape: tuple[Any, ...]) -> Shape:
    """The shape from `f(2, 3)` or `f((2, 3))`."""
    if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
        shape = tuple(shape[0])
    return check_shape(name, shape)


def along(node: Node, axis: int, rank: int) -> Node:
    """A one-dimensional node as one of `rank` axes, with extent 1 on all but `axis`."""
    return reshape_node(node, (1,) * axis + node.shape + (1,) * (rank - axis - 1))


def positions(shape: Shape, axis: int, dtype: DType = dt.index) -> Node:
    """The coordinate along `axis` of every element of `shape`."""
    return expand_node(along(graph.iota(shape[axis], dtype), axis, len(shape)), shape)


class Creation(Conversion):
    """Constants, ranges and other tensors that are given by a formula."""

    __slots__ = ()

    @classmethod
    def _place(cls, node: Node, device: str | None, requires_grad: bool | None) -> Self:
        if device is not None and devices.canonical(device) != devices.default():
            node = graph.copy(node, devices.canonical(device))
        made = cls._wrap(node)
        if requires_grad is not None:
            made.requires_grad = requires_grad
        return made

    @classmethod
    def full(
        cls,
        shape: int | Shape,
        value: Scalar,
        dtype: DTypeLike | None = None,
        device: str | None = None,
        requires_grad: bool | None = None,
    ) -> Self:
        """`value` everywhere in `shape`; dtype by default that of the Python number.

        >>> Tensor.full((2, 2), 7).tolist()
        [[7, 7], [7, 7]]

        Raises:
            ShapeError: extents that are negative, or no integers.
            DTypeError: the value is no number, or `dtype` is an integer type that cannot hold it.
        """
        extents = check_shape("full", (shape,) if isinstance(shape, int) else shape)
        if isinstance(value, Base):
            value = value.item()
        if not is_scalar(value):
            raise DTypeError(message("full", f"a value of type {type(value).__name__}", "a number"))
        kind = dt.of_scalar(value) if dtype is None else dt.parse(dtype)
        if not kind.is_float and isinstance(value, float):
            value = int(value)
        return cls._place(graph.const(value, kind, extents), device, requires_grad)

    @classmethod
    def zeros(
        cls,
        *shape: Any,
        dtype: DTypeLike | None = None,
        device: str | None = None,
        requires_grad: bool | None = None,
    ) -> Self:
        """Zeros, float32 by default: `zeros(2, 3)` or `zeros((2, 3))`."""
        kind = dtype or dt.default_float
        return cls.full(shape_of("zeros", shape), 0, kind, device, requires_grad)

    @classmethod
    def ones(
        cls,
        *shape: Any,
        dtype: DTypeLike | None = None,
        device: str | None = None,
        requires_grad: bool | None = None,
    ) -> Self:
        """Ones, float32 by default."""
        return cls.full(
            shape_of("ones", shape), 1, dtype or dt.default_float, device, requires_grad
        )

    @classmethod
    def empty(
        cls,
        *shape: Any,
        dtype: DTypeLike | None = None,
        device: str | None = None,
        requires_grad: bool | None = None,
    ) -> Self:
        """Zeros: there is nothing to gain from undefined values in a lazy graph."""
        return cls.zeros(*shape, dtype=dtype, device=device, requires_grad=requires_grad)

    def full_like(
        self, value: Scalar, dtype: DTypeLike | None = None, device: str | None = None
    ) -> Self:
        """`value` everywhere, with this tensor's shape, and its dtype and device unless given."""
        return self.full(self.shape, value, dtype or self.dtype, device or self.node.device)

    def zeros_like(self, dtype: DTypeLike | None = None, device: str | None = None) -> Self:
        """Zeros of this tensor's shape, dtype and device."""
        return self.full_like(0, dtype, device)

    def ones_like(self, dtype: DTypeLike | None = None, device: str | None = None) -> Self:
        """Ones of this tensor's shape, dtype and device."""
        return self.full_like(1, dtype, device)

    def empty_like(self, dtype: DTypeLike | None = None, device: str | None = None) -> Self:
        """Zeros of this tensor's shape, dtype and device."""
        return self.full_like(0, dtype, device)

    @classmethod
    def from_numpy(cls, array: Array, device: str | None = None) -> Self:
        """A copy of a NumPy array."""
        return cls(array, device=device)

    @classmethod
    def arange(
        cls,
        start: Scalar,
        stop: Scalar | None = None,
        step: Scalar = 1,
        dtype: DTypeLike | None = None,
        device: str | None = None,
        requires_grad: bool | None = None,
    ) -> Self:
        """start, start + step, ... before stop; int64 for integers, else float32.

        >>> Tensor.arange(1, 8, 3).tolist()
        [1, 4, 7]

        Raises:
            ShapeError: a step of 0.
        """
        start, stop = (0, start) if stop is None else (start, stop)
        if not all(is_scalar(x) and math.isfinite(x) for x in (start, stop, step)):
            got = f"from {start!r} to {stop!r} by {step!r}"
            raise ShapeError(message("arange", got, "finite numbers"))
        if step == 0:
            raise ShapeError(message("arange", "a step of 0", "another step"))
        whole = all(isinstance(x, int) for x in (start, stop, step))
        count = ceildiv(int(stop - start), int(step)) if whole else math.ceil((stop - start) / step)
        if not whole and dtype is not None and not dt.parse(dtype).is_float:
            start, step = int(start), int(step)
        kind = dt.parse(dtype or (dt.default_int if whole else dt.default_float))
        return cls._place(_progression(max(count, 0), start, step, kind), device, requires_grad)

    @classmethod
    def linspace(
        cls,
        start: float,
        stop: float,
        steps: int,
        dtype: DTypeLike | None = None,
        device: str | None = None,
        requires_grad: bool | None = None,
    ) -> Self:
        """`steps` evenly spaced numbers from `start` to `stop`, both included.

        >>> Tensor.linspace(0, 1, 5).tolist()
        [0.0, 0.25, 0.5, 0.75, 1.0]
        """
        (steps,) = check_shape("linspace", (steps,))
        kind = dt.parse(dtype or dt.default_float)
        if steps <= 1:
            return cls.full((steps,), start, kind, device, requires_grad)
        wide = kind if kind.is_float and kind.itemsize >= 4 else dt.float64
        step = (stop - start) / (steps - 1)
        rising = _progression(steps, start, step, wide)
        falling = _progression(steps, stop - step * (steps - 1), step, wide)  # exact at the far end
        half = graph.alu(Op.LT, graph.iota(steps), graph.const(steps // 2, dt.index, (steps,)))
        node = graph.alu(Op.WHERE, half, rising, falling) if stop != start else rising
        last = graph.alu(Op.EQ, graph.iota(steps), graph.const(steps - 1, dt.index, (steps,)))
        node = graph.alu(Op.WHERE, last, graph.const(stop, wide, (steps,)), node)
        return cls._place(graph.cast(node, kind), device, requires_grad)

    @classmethod
    def eye(
        cls,
        rows: int,
        columns: int | None = None,
        dtype: DTypeLike | None = None,
        device: str | None = None,
        requires_grad: bool | None = None,
    ) -> Self:
        """Ones on the diagonal of (rows, columns), zeros elsewhere; float32 by default."""
        shape = check_shape("eye", (rows, rows if columns is None else columns))
        kind = dt.parse(dtype or dt.default_float)
        node = graph.alu(Op.EQ, positions(shape, 0), positions(shape, 1))
        return cls._place(graph.cast(node, kind), device, requires_grad)

    def tril(self, diagonal: int = 0) -> Self:
        """The lower triangle of the last two axes: zeros where column > row + diagonal."""
        return self._triangle("tril", diagonal, upper=False)

    def triu(self, diagonal: int = 0) -> Self:
        """The upper triangle of the last two axes: zeros where column < row + diagonal."""
        return self._triangle("triu", diagonal, upper=True)

    def _triangle(self, name: str, diagonal: int, upper: bool) -> Self:
        if self.ndim < 2:
            raise ShapeError(message(name, f"shape {self.shape}", "at least two axes"))
        row, column = positions(self.shape[-2:], 0), positions(self.shape[-2:], 1)
        edge = graph.alu(
            Op.ADD, row, graph.const(diagonal + (0 if upper else 1), dt.index, row.shape)
        )
        below = expand_node(graph.alu(Op.LT, column, edge), self.shape)
        x, zero = self._operand(), graph.const(0, self.dtype, self.shape)
        return self._map(graph.alu(Op.WHERE, below, *((zero, x) if upper else (x, zero))))

    def one_hot(self, num_classes: int) -> Self:
        """A new last axis with 1 at this index and 0 elsewhere (all 0 for an index out of range);
        int64.

        >>> Tensor([1, 0]).one_hot(3).tolist()
        [[0, 1, 0], [1, 0, 0]]

        Raises:
            IndexRangeError: an index out of range, in checked mode.
        """
        if not self.dtype.is_int:
            raise DTypeError(message("one_hot", self.dtype.name, "integers", "cast with .long()"))
        (n,) = check_shape("one_hot", (num_classes,))
        if config.CHECK and capture.current() is None:
            check_places("one_hot", self.numpy(), n)
        shape = (*self.shape, n)
        index = cast_node(self.node, dt.index)
        index = expand_node(reshape_node(index, (*self.shape, 1)), shape)
        return self._wrap(
            graph.cast(graph.alu(Op.EQ, index, positions(shape, len(shape) - 1)), dt.default_int)
        )


def _progression(count: int, start: Scalar, step: Scalar, dtype: DType) -> Node:
    """start + i * step for i in 0 .. count - 1; computed in float64 where a float type is
    narrower."""
    wide = (
        dtype
        if dtype.is_int
        else dt.float64
        if isinstance(start, float) or isinstance(step, float)
        else dt.index
    )
    node = graph.cast(graph.iota(count), wide) if wide.is_float else graph.iota(count, wide)
    if wide.kind == "u":  # a negative step counts down by wrapping around
        step = int(step) % (1 << wide.bits)
    if step != 1:
        node = graph.alu(Op.MUL, node, graph.const(step, wide, (count,)))
    if start != 0:
        node = graph.alu(Op.ADD, node, graph.const(start, wide, (count,)))
    return graph.cast(node, dtype)
