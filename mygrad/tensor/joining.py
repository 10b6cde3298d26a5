"""Tensors side by side: cat, stack, roll, pad."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mygrad import dtype as dt
from mygrad import graph
from mygrad.errors import DTypeError, ShapeError, message
from mygrad.graph import Node
from mygrad.ops import Op
from mygrad.tensor.base import Base
from mygrad.tensor.creation import along
from mygrad.tensor.movement import Movement, on_axis
from mygrad.tensor.nodes import (
    Axes,
    Scalar,
    axis_names,
    cast_node,
    check_axis,
    expand_node,
    reshape_node,
)

if TYPE_CHECKING:
    from typing_extensions import Self

Pairs = Sequence[tuple[int, int]]


class Joining(Movement):
    """cat, stack, meshgrid, roll, pad. Gradients flow through all of them."""

    __slots__ = ()

    # --- joining ---

    @axis_names
    def cat(self, *others: Self, axis: int = 0) -> Self:
        """Joined along an axis: `a.cat(b, c)` or `Tensor.cat([a, b, c], axis)`; types are promoted.

        Raises:
            ShapeError: extents differ on another axis.
        """
        tensors, axis = _listed(self, others, axis)
        first = tensors[0]
        axis = check_axis("cat", axis, first.ndim)
        for t in tensors:
            if t.ndim != first.ndim or any(
                a != axis and n != first.shape[a] for a, n in enumerate(t.shape)
            ):
                raise ShapeError(
                    message(
                        "cat",
                        f"shapes {' and '.join(str(x.shape) for x in tensors)}",
                        f"equal extents on all axes but {axis}",
                    )
                )
        kind = first.dtype
        for t in tensors:
            kind = dt.promote(kind, t.dtype)
        filled = [t for t in tensors if t.shape[axis]] or [first]
        nodes = [cast_node(t._operand(), kind) for t in filled]
        return first._wrap(_join(nodes, axis), any(t._carries for t in tensors))

    @axis_names
    def stack(self, *others: Self, axis: int = 0) -> Self:
        """Joined along a new axis: `a.stack(b)` or `Tensor.stack([a, b], axis)`.

        Raises:
            ShapeError: shapes differ.
        """
        tensors, axis = _listed(self, others, axis)
        if any(t.shape != tensors[0].shape for t in tensors):
            raise ShapeError(
                message(
                    "stack", f"shapes {' and '.join(str(x.shape) for x in tensors)}", "equal shapes"
                )
            )
        axis = check_axis("stack", axis, tensors[0].ndim + 1)
        return tensors[0].unsqueeze(axis).cat(*(t.unsqueeze(axis) for t in tensors[1:]), axis=axis)

    def meshgrid(self, *others: Self, indexing: str = "ij") -> tuple[Self, ...]:
        """Coordinates of the grid over one-dimensional tensors, one tensor for each.

        Raises:
            ShapeError: `indexing` is neither "ij" nor "xy".
        """
        tensors, _ = _listed(self, others, 0)
        if indexing not in ("ij", "xy"):
            raise ShapeError(message("meshgrid", f"indexing {indexing!r}", "'ij' or 'xy'"))
        order = list(range(len(tensors)))
        if indexing == "xy" and len(tensors) > 1:
            order[:2] = [1, 0]
        shape = tuple(tensors[i].numel() for i in order)
        return tuple(
            t._map(
                expand_node(
                    along(reshape_node(t._operand(), (t.numel(),)), order.index(i), len(shape)),
                    shape,
                )
            )
            for i, t in enumerate(tensors)
        )

    @axis_names
    def roll(self, shifts: int | Sequence[int], axis: Axes = None) -> Self:
        """Shifted along axes (or along the flattened tensor), what leaves at one end enters at the
        other.

        Raises:
            ShapeError: several shifts without axes.
        """
        if axis is None:
            if not isinstance(shifts, int):
                raise ShapeError(
                    message("roll", f"shifts {shifts} without axes", "one axis for each shift")
                )
            return self.flatten().roll(shifts, 0).reshape(self.shape)
        pairs = [(shifts, axis)] if isinstance(shifts, int) else zip(shifts, axis, strict=True)  # type: ignore
        result = self
        for by, along_axis in pairs:
            a = check_axis("roll", along_axis, self.ndim)  # type: ignore[arg-type]
            n = self.shape[a]
            cut = -by % n if n else 0  # type: ignore[operator]
            if cut:
                result = result._slice(a, cut, n).cat(result._slice(a, 0, cut), axis=a)
        return result

    # --- padding ---

    def pad(self, padding: Sequence[Any], mode: str = "constant", value: Scalar = 0) -> Self:
        """Elements added (or, with negative numbers, removed) at the ends of axes.

        Args:
            padding: a (before, after) pair or None for each axis; or as in PyTorch a flat list that
                starts at the last axis: (left, right, top, bottom, ...).
            mode: "constant", "reflect" (without the edge), "replicate" or "circular".

        >>> Tensor([1, 2]).pad((1, 0), value=9).tolist()
        [9, 1, 2]

        Raises:
            ShapeError: numbers that do not fit the axes, another word for `mode`, or a border that
                is wider than its mode can fill.
        """
        pairs = self._pad_pairs(padding)
        if mode == "constant":
            return self._pad_constant(pairs, value)
        if mode not in _BORDER:
            raise ShapeError(message("pad", f"mode {mode!r}", f"constant, {', '.join(_BORDER)}"))
        result = self
        for axis, (before, after) in enumerate(pairs):
            result = result._pad_border(axis, max(before, 0), max(after, 0), mode)
            n = result.shape[axis]
            result = result._slice(axis, max(-before, 0), n - max(-after, 0))
        return result

    def _pad_pairs(self, padding: Sequence[Any]) -> Pairs:
        if all(isinstance(p, int) for p in padding):
            if len(padding) % 2 or len(padding) > 2 * self.ndim:
                raise ShapeError(
                    message(
                        "pad",
                        f"{tuple(padding)} for shape {self.shape}",
                        "two numbers for each of the last axes",
                    )
                )
            ends = [(padding[i], padding[i + 1]) for i in range(0, len(padding), 2)]
            return [(0, 0)] * (self.ndim - len(ends)) + ends[::-1]
        if len(padding) != self.ndim:
            raise ShapeError(message("pad", f"{len(padding)} pairs", f"{self.ndim}, one per axis"))
        return [(0, 0) if p is None else (p[0], p[1]) for p in padding]

    def _pad_constant(self, pairs: Pairs, value: Scalar) -> Self:
        keep = tuple(
            (max(-b, 0), n - max(-a, 0)) for (b, a), n in zip(pairs, self.shape, strict=True)
        )
        grow = tuple((max(b, 0), max(a, 0)) for b, a in pairs)
        inner = self._move(Op.SHRINK, keep)
        node = graph.move(Op.PAD, inner._operand(), grow)
        if value != 0 and node is not inner._operand():
            inside = graph.move(Op.PAD, graph.const(True, dt.bool_, inner.shape), grow)
            if not self.dtype.is_float and isinstance(value, float):
                raise DTypeError(
                    message("pad", f"value {value} for {self.dtype.name}", "an integer")
                )
            node = graph.alu(Op.WHERE, inside, node, graph.const(value, self.dtype, node.shape))
        return self._map(node)

    def _pad_border(self, axis: int, before: int, after: int, mode: str) -> Self:
        if not before and not after:
            return self
        n = self.shape[axis]
        if n == 0 or max(before, after) > _BORDER[mode](n):
            raise ShapeError(
                message(
                    "pad",
                    f"{(before, after)} for extent {n} in mode {mode}",
                    f"at most {_BORDER[mode](n)}",
                    "pad several times",
                )
            )
        left, right = self._border_pieces(axis, before, after, mode)
        pieces = [piece for piece in (left, self, right) if piece.shape[axis]]
        return pieces[0].cat(*pieces[1:], axis=axis)

    def _border_pieces(self, axis: int, before: int, after: int, mode: str) -> tuple[Self, Self]:
        n = self.shape[axis]
        if mode == "circular":
            return self._slice(axis, n - before, n), self._slice(axis, 0, after)
        if mode == "reflect":
            return (
                self._slice(axis, 1, before + 1).flip(axis),
                self._slice(axis, n - 1 - after, n - 1).flip(axis),
            )
        lead, rest = self.shape[:axis], self.shape[axis + 1 :]
        return (
            self._slice(axis, 0, 1).expand(*lead, before, *rest),
            self._slice(axis, n - 1, n).expand(*lead, after, *rest),
        )


_BORDER = {"reflect": lambda n: n - 1, "replicate": lambda n: math.inf, "circular": lambda n: n}


def _listed(first: Any, others: Sequence[Any], axis: int) -> tuple[list[Any], int]:
    """The tensors and the axis of `a.cat(b, axis=1)` or of `Tensor.cat([a, b], 1)`."""
    rest = list(others)
    if isinstance(first, (list, tuple)) and len(rest) == 1 and isinstance(rest[0], int):
        axis = rest.pop()
    tensors = [*first, *rest] if isinstance(first, (list, tuple)) else [first, *rest]
    if not tensors or not all(isinstance(t, Base) for t in tensors):
        raise ShapeError(
            message(
                "join",
                f"{[type(t).__name__ for t in tensors]}",
                "one or more tensors",
                "wrap data in Tensor(...)",
            )
        )
    return tensors, axis


def _join(nodes: Sequence[Node], axis: int) -> Node:
    """Nodes one after the other: each is padded to the full extent, and chosen where it lies.

    Halves are joined first, so that depth and selects per element are logarithmic in the number of
    nodes.
    """
    parts = list(nodes)
    while len(parts) > 1:
        pairs = [_join_two(a, b, axis) for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[len(parts) & ~1 :]
    return parts[0]


def _join_two(a: Node, b: Node, axis: int) -> Node:
    m, n = a.shape[axis], b.shape[axis]
    left = graph.move(Op.PAD, a, on_axis(a.shape, axis, (0, n), "pad"))
    right = graph.move(Op.PAD, b, on_axis(b.shape, axis, (m, 0), "pad"))
    first = graph.alu(Op.LT, graph.iota(m + n), graph.const(m, dt.index, (m + n,)))
    return graph.alu(
        Op.WHERE, expand_node(along(first, axis, len(a.shape)), left.shape), left, right
    )
