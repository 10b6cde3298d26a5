"""Sorting, searching, and what depends on values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mygrad import capture, graph
from mygrad import dtype as dt
from mygrad.errors import ShapeError, message
from mygrad.tensor.indexing import Indexing
from mygrad.tensor.nodes import (
    axis_names,
    broadcast_shapes,
    check_axis,
    check_integer,
)

if TYPE_CHECKING:
    from typing_extensions import Self


class Ordering(Indexing):
    """sort, topk, searchsorted, unique, nonzero."""

    __slots__ = ()

    # --- what depends on values ---

    def masked_select(self, mask: Any) -> Self:
        """The elements where mask is true, one-dimensional. Reads the mask."""
        mask = self._lift(mask)
        shape = broadcast_shapes("masked_select", self.shape, mask.shape)
        return self.expand(shape)[mask.expand(shape)]

    def nonzero(self) -> Self:
        """The coordinates of the nonzero elements, (count, ndim), int64. Reads the values."""
        capture.forbid(
            "nonzero", "use where(condition, a, b), whose shape does not depend on values"
        )
        return type(self)(np.argwhere(self.numpy()), device=self.node.device)

    def unique(self, return_inverse: bool = False, return_counts: bool = False) -> Any:
        """The distinct elements, sorted; with the place of each element in them, and counts. Reads
        the values."""
        capture.forbid("unique", "sort() keeps the shape")
        found = np.unique(self.numpy(), return_inverse=True, return_counts=True)
        wanted = (True, return_inverse, return_counts)
        inverse = found[1].reshape(self.shape)
        values = type(self)(found[0], self.dtype, self.node.device)
        parts = [values, *(type(self)(x, device=self.node.device) for x in (inverse, found[2]))]
        chosen = [p for p, want in zip(parts, wanted, strict=True) if want]
        return chosen[0] if len(chosen) == 1 else tuple(chosen)

    # --- order ---

    @axis_names
    def argsort(self, axis: int = -1, descending: bool = False) -> Self:
        """The stable order of the elements along an axis; int64. NaN counts as the greatest."""
        if not self.ndim:
            return self.zeros_like(dt.default_int)
        return self._wrap(
            graph.sort(self.detach().node, check_axis("argsort", axis, self.ndim), descending)
        )

    @axis_names
    def sort(self, axis: int = -1, descending: bool = False) -> tuple[Self, Self]:
        """The elements in order along an axis, and their places before."""
        order = self.argsort(axis, descending)
        if not self.ndim:
            return self, order
        along = check_axis("sort", axis, self.ndim)
        return self._map(graph.sort(self._operand(), along, descending, values=True)), order

    @axis_names
    def topk(self, k: int, axis: int = -1, largest: bool = True) -> tuple[Self, Self]:
        """The k greatest (or smallest) elements along an axis, in order, and their places.

        Raises:
            ShapeError: k is negative, or more than the extent.
        """
        axis = check_axis("topk", axis, self.ndim)
        if not 0 <= check_integer("topk", "k", k) <= self.shape[axis]:
            raise ShapeError(message("topk", f"k = {k}", f"0 <= k <= {self.shape[axis]}"))
        order = self.argsort(axis, descending=largest)._slice(axis, 0, k)
        return self.gather(axis, order), order

    @axis_names
    def kthvalue(self, k: int, axis: int = -1, keepdim: bool = False) -> tuple[Self, Self]:
        """The k-th smallest element along an axis (from 1), and its place.

        Raises:
            ShapeError: k is below 1, or more than the extent.
        """
        axis = check_axis("kthvalue", axis, self.ndim)
        if not 1 <= check_integer("kthvalue", "k", k) <= self.shape[axis]:
            raise ShapeError(message("kthvalue", f"k = {k}", f"1 <= k <= {self.shape[axis]}"))
        order = self.argsort(axis)._slice(axis, k - 1, k)
        values = self.gather(axis, order)
        return (values, order) if keepdim else (values.squeeze(axis), order.squeeze(axis))

    @axis_names
    def median(self, axis: int | None = None, keepdim: bool = False) -> Self:
        """The middle element in order (the lower of two, as PyTorch)."""
        if axis is None:
            return self.flatten().kthvalue((self.numel() + 1) // 2, 0)[0]
        n = self.shape[check_axis("median", axis, self.ndim)]
        return self.kthvalue((n + 1) // 2, axis, keepdim)[0]

    def searchsorted(self, values: Any, right: bool = False) -> Self:
        """For each value the place in this sorted vector before which it belongs; int64. Binary
        search.

        >>> Tensor([1, 3, 5]).searchsorted(Tensor([3, 6])).tolist()
        [1, 3]

        Raises:
            ShapeError: this tensor is no vector.
        """
        if self.ndim != 1:
            raise ShapeError(message("searchsorted", f"shape {self.shape}", "a sorted vector"))
        wanted = self._lift(values).detach()
        flat, sorted_ = wanted.flatten(), self.detach()
        n = self.numel()
        low, high = flat.zeros_like(dt.index), flat.full_like(n, dt.index)
        for _ in range(n.bit_length()):
            middle = (low + high) >> 1
            found = sorted_.gather(0, middle)
            before = ((found <= flat) if right else (found < flat)) & (low < high)
            low, high = before.where(middle + 1, low), before.where(high, middle.minimum(high))
        return low.reshape(wanted.shape)
