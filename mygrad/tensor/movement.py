"""Other shapes and orders of the same values."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from mygrad import graph
from mygrad.errors import ShapeError, message
from mygrad.helpers import Shape, ceildiv, prod
from mygrad.ops import Op
from mygrad.tensor.activation import Activation
from mygrad.tensor.base import Base
from mygrad.tensor.creation import shape_of
from mygrad.tensor.nodes import (
    Axes,
    axis_names,
    broadcast_shapes,
    check_axes,
    check_axis,
    expand_node,
    reshape_node,
)

if TYPE_CHECKING:
    from typing_extensions import Self


def on_axis(
    shape: Shape, axis: int, pair: tuple[int, int], others: str
) -> tuple[tuple[int, int], ...]:
    """The argument of PAD (others "pad") or SHRINK (others "shrink") that changes one axis only."""
    return tuple(
        pair if a == axis else (0, 0) if others == "pad" else (0, n) for a, n in enumerate(shape)
    )


class Movement(Activation):
    """reshape, permute, pad, flip, join, split and their relatives. Gradients flow through all of
    them."""

    __slots__ = ()

    def _move(self, op: Op, arg: Any) -> Self:
        return self._map(graph.move(op, self._operand(), arg))

    # --- shape ---

    def reshape(self, *shape: Any) -> Self:
        """The same elements, in row-major order, in another shape; one extent may be -1.

        >>> Tensor.arange(6).reshape(2, -1).shape
        (2, 3)

        Raises:
            ShapeError: another number of elements.
        """
        extents = list(
            shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        )
        if -1 in extents:
            known = prod(n for n in extents if n != -1)
            if extents.count(-1) > 1 or known == 0 or self.numel() % known:
                raise ShapeError(
                    message(
                        "reshape",
                        f"{self.shape} to {tuple(extents)}",
                        "one -1, and extents that divide the number of elements",
                    )
                )
            extents[extents.index(-1)] = self.numel() // known
        new = shape_of("reshape", tuple(extents))
        if prod(new) != self.numel():
            raise ShapeError(
                message(
                    "reshape",
                    f"{self.shape} to {new}",
                    f"{self.numel()} elements, not {prod(new)}",
                    "use -1 for one extent",
                )
            )
        return self._map(reshape_node(self._operand(), new))

    view = reshape

    def view_as(self, other: Base) -> Self:
        """Reshaped to the other's shape."""
        return self.reshape(other.shape)

    def flatten(self, start: int = 0, end: int = -1) -> Self:
        """The axes from `start` to `end` (included) as one.

        Raises:
            ShapeError: `start` comes after `end`.
        """
        if not self.shape:
            return self.reshape(1)
        first, last = check_axis("flatten", start, self.ndim), check_axis("flatten", end, self.ndim)
        if first > last:
            raise ShapeError(
                message("flatten", f"axes {start} to {end}", "the first before the last")
            )
        shape = self.shape
        return self.reshape(*shape[:first], prod(shape[first : last + 1]), *shape[last + 1 :])

    ravel = flatten

    @axis_names
    def unflatten(self, axis: int, sizes: Sequence[int]) -> Self:
        """One axis as several; one size may be -1."""
        axis = check_axis("unflatten", axis, self.ndim)
        sizes = list(sizes)
        if -1 in sizes:
            known = prod(n for n in sizes if n != -1)
            sizes[sizes.index(-1)] = self.shape[axis] // known if known else 0
        return self.reshape(*self.shape[:axis], *sizes, *self.shape[axis + 1 :])

    @axis_names
    def squeeze(self, axis: Axes = None) -> Self:
        """Without axes of extent 1: all of them, or those given (others of the given stay)."""
        drop = {a for a in check_axes("squeeze", axis, self.ndim) if self.shape[a] == 1}
        return self.reshape(tuple(n for a, n in enumerate(self.shape) if a not in drop))

    @axis_names
    def unsqueeze(self, axis: int) -> Self:
        """A new axis of extent 1 at `axis`."""
        axis = check_axis("unsqueeze", axis, self.ndim + 1)
        return self.reshape((*self.shape[:axis], 1, *self.shape[axis:]))

    def expand(self, *shape: Any) -> Self:
        """Axes of extent 1 repeated to the given extents (-1 keeps one); new axes may stand in
        front.

        >>> Tensor([[1], [2]]).expand(-1, 3).tolist()
        [[1, 1, 1], [2, 2, 2]]

        Raises:
            ShapeError: an axis has neither extent 1 nor the given one.
        """
        extents = list(
            shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        )
        lead = len(extents) - self.ndim
        for i, extent in enumerate(extents):
            if extent == -1 and i >= lead:
                extents[i] = self.shape[i - lead]
        new = shape_of("expand", tuple(extents))
        if broadcast_shapes("expand", self.shape, new) != new:
            raise ShapeError(
                message("expand", f"{self.shape} to {new}", "extents equal or 1, from the right")
            )
        return self._map(expand_node(self._operand(), new))

    broadcast_to = expand

    def expand_as(self, other: Base) -> Self:
        """Expanded to the other's shape."""
        return self.expand(other.shape)

    # --- order ---

    def permute(self, *order: Any) -> Self:
        """Axis j of the result is axis order[j] of this tensor.

        Raises:
            ShapeError: not every axis exactly once.
        """
        axes = tuple(order[0]) if len(order) == 1 and isinstance(order[0], (tuple, list)) else order
        found = tuple(check_axis("permute", axis, self.ndim) for axis in axes)
        if sorted(found) != list(range(self.ndim)):
            raise ShapeError(
                message("permute", f"{axes} for shape {self.shape}", "every axis exactly once")
            )
        return self._move(Op.PERMUTE, found)

    def transpose(self, a: int = 1, b: int = 0) -> Self:
        """Two axes exchanged."""
        a, b = check_axis("transpose", a, self.ndim), check_axis("transpose", b, self.ndim)
        order = list(range(self.ndim))
        order[a], order[b] = b, a
        return self._move(Op.PERMUTE, tuple(order))

    swapaxes = transpose

    @property
    def T(self) -> Self:
        """The axes in reverse order."""
        return self._move(Op.PERMUTE, tuple(reversed(range(self.ndim))))

    @property
    def mT(self) -> Self:
        """The last two axes exchanged."""
        return self.transpose(-1, -2)

    def movedim(self, source: int | Sequence[int], target: int | Sequence[int]) -> Self:
        """Axes `source` moved to the places `target`; the others keep their order."""
        sources = [source] if isinstance(source, int) else list(source)
        targets = [target] if isinstance(target, int) else list(target)
        sources = [check_axis("movedim", a, self.ndim) for a in sources]
        targets = [check_axis("movedim", a, self.ndim) for a in targets]
        rest = iter(a for a in range(self.ndim) if a not in sources)
        place = dict(zip(targets, sources, strict=True))
        return self.permute(*(place[i] if i in place else next(rest) for i in range(self.ndim)))

    moveaxis = movedim

    @axis_names
    def flip(self, axis: Axes = None, *more: int) -> Self:
        """Reversed along the axes, all by default."""
        axes = (axis, *more) if more else axis
        return self._move(Op.FLIP, check_axes("flip", axes, self.ndim))  # type: ignore[arg-type]

    # --- parts ---

    def shrink(self, bounds: Sequence[tuple[int, int] | None]) -> Self:
        """The block start <= i < stop on every axis; None keeps an axis."""
        arg = tuple((0, n) if b is None else b for b, n in zip(bounds, self.shape, strict=True))
        return self._move(Op.SHRINK, arg)

    def _slice(self, axis: int, start: int, stop: int) -> Self:
        return self._move(Op.SHRINK, on_axis(self.shape, axis, (start, stop), "shrink"))

    @axis_names
    def narrow(self, axis: int, start: int, length: int) -> Self:
        """`length` elements from `start` on along one axis."""
        axis = check_axis("narrow", axis, self.ndim)
        start = start + self.shape[axis] if start < 0 else start
        return self._slice(axis, start, start + length)

    def _stride(self, axis: int, step: int) -> Self:
        """Every `step`-th element along an axis."""
        if step == 1 or self.shape[axis] <= 1:
            return self
        node = graph.move(Op.WINDOW, self._operand(), (axis, 1, step, 1))
        return self._map(reshape_node(node, (*node.shape[: axis + 1], *node.shape[axis + 2 :])))

    @axis_names
    def split(self, sizes: int | Sequence[int], axis: int = 0) -> tuple[Self, ...]:
        """Pieces along an axis: of one size (the last may be smaller), or of the given sizes.

        Raises:
            ShapeError: a size below 1, or sizes that do not add up to the extent.
        """
        axis = check_axis("split", axis, self.ndim)
        n = self.shape[axis]
        if isinstance(sizes, int):
            if sizes <= 0:
                raise ShapeError(message("split", f"size {sizes}", "a size of 1 or more"))
            sizes = [min(sizes, n - i) for i in range(0, max(n, 1), sizes)]
        if sum(sizes) != n:
            raise ShapeError(message("split", f"sizes {tuple(sizes)}", f"sizes that add up to {n}"))
        ends = list(accumulate(sizes))
        return tuple(
            self._slice(axis, end - size, end) for size, end in zip(sizes, ends, strict=True)
        )

    @axis_names
    def chunk(self, chunks: int, axis: int = 0) -> tuple[Self, ...]:
        """At most `chunks` pieces of one size along an axis; the last may be smaller.

        Raises:
            ShapeError: less than 1 chunk.
        """
        if chunks < 1:
            raise ShapeError(message("chunk", f"{chunks} chunks", "1 or more"))
        axis = check_axis("chunk", axis, self.ndim)
        return self.split(max(1, ceildiv(self.shape[axis], chunks)), axis)

    @axis_names
    def unbind(self, axis: int = 0) -> tuple[Self, ...]:
        """All slices along an axis, without that axis."""
        axis = check_axis("unbind", axis, self.ndim)
        shape = self.shape[:axis] + self.shape[axis + 1 :]
        return tuple(self._slice(axis, i, i + 1).reshape(shape) for i in range(self.shape[axis]))

    def diagonal(self, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Self:
        """The diagonal of two axes, as a new last axis: every (columns + 1)-th element of the flat
        matrix.

        Raises:
            ShapeError: the two axes are one.
        """
        a, b = check_axis("diagonal", axis1, self.ndim), check_axis("diagonal", axis2, self.ndim)
        if a == b:
            raise ShapeError(message("diagonal", f"axes {axis1} and {axis2}", "two different axes"))
        x = self.movedim((a, b), (-2, -1))
        rows, columns = x.shape[-2:]
        x = x._slice(x.ndim - 1, min(offset, columns), columns) if offset > 0 else x
        x = x._slice(x.ndim - 2, min(-offset, rows), rows) if offset < 0 else x
        n = min(x.shape[-2:])
        x = x._slice(x.ndim - 2, 0, n)
        flat = x.reshape(*x.shape[:-2], n * x.shape[-1])
        return flat._stride(flat.ndim - 1, x.shape[-1] + 1)._slice(flat.ndim - 1, 0, n)

    @axis_names
    def unfold(self, axis: int, size: int, step: int) -> Self:
        """Windows of `size` every `step` along an axis, as a new last axis."""
        axis = check_axis("unfold", axis, self.ndim)
        windows = self._move(Op.WINDOW, (axis, size, step, 1))
        return windows.movedim(axis + 1, -1)

    # --- repetition ---

    def repeat(self, *counts: Any) -> Self:
        """The whole tensor repeated counts[i] times along axis i; new axes in front as needed.

        >>> Tensor([1, 2]).repeat(2, 2).tolist()
        [[1, 2, 1, 2], [1, 2, 1, 2]]

        Raises:
            ShapeError: fewer counts than axes.
        """
        times = shape_of("repeat", counts)
        if len(times) < self.ndim:
            raise ShapeError(
                message("repeat", f"{len(times)} counts", f"at least {self.ndim}, one per axis")
            )
        shape = (1,) * (len(times) - self.ndim) + self.shape
        split = tuple(n for extent in shape for n in (1, extent))
        spread = tuple(n for pair in zip(times, shape, strict=True) for n in pair)
        return (
            self.reshape(split)
            .expand(spread)
            .reshape(tuple(t * n for t, n in zip(times, shape, strict=True)))
        )

    def tile(self, *counts: Any) -> Self:
        """Like `repeat`, with counts of 1 put in front as needed."""
        times = shape_of("tile", counts)
        return self.repeat((1,) * (self.ndim - len(times)) + times)

    @axis_names
    def repeat_interleave(self, repeats: int, axis: int | None = None) -> Self:
        """Each element repeated along an axis (of the flattened tensor if there is none)."""
        if axis is None:
            return self.flatten().repeat_interleave(repeats, 0)
        axis = check_axis("repeat_interleave", axis, self.ndim)
        shape = self.shape
        spread = (*shape[: axis + 1], repeats, *shape[axis + 1 :])
        merged = (*shape[:axis], shape[axis] * repeats, *shape[axis + 1 :])
        return self.unsqueeze(axis + 1).expand(spread).reshape(merged)
