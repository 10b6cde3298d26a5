"""x[...] and x[...] = v as in NumPy, gather and scatter, sorting and searching.

Integers, slices and None are movements. Index arrays become one GATHER on one flattened axis.
Assignment builds a new value: slices by choosing between the padded update and the old value, index
arrays by one SCATTER on the flat tensor. Nothing is a view: other tensors never change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mygrad import capture, graph, realize
from mygrad import dtype as dt
from mygrad.config import config
from mygrad.errors import DTypeError, IndexRangeError, ShapeError, message
from mygrad.graph import Node
from mygrad.helpers import Shape, prod, strides_of
from mygrad.ops import Op
from mygrad.tensor.base import Base
from mygrad.tensor.nodes import (
    Array,
    axis_names,
    broadcast_shapes,
    cast_node,
    check_axis,
    check_places,
    expand_node,
    is_scalar,
    reshape_node,
)
from mygrad.tensor.reduce import Reduce

if TYPE_CHECKING:
    from typing_extensions import Self

_OUTSIDE = "use indices inside of the axis, or clamp them"


@dataclass
class Basic:
    """What integers, slices, None and Ellipsis do: a block, reversed axes, strides, and the shape
    after that.

    `arrays` are the index arrays with the axis each reads (an axis of the strided block), `first`
    the place in the result where their axes go.
    """

    bounds: list[tuple[int, int]] = field(default_factory=list)
    flips: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    strided: list[int] = field(default_factory=list)  # shape of the block after striding
    shape: list[int] = field(default_factory=list)  # without integers' axes, with new ones
    arrays: list[tuple[int, Any]] = field(default_factory=list)  # (axis in `shape`, index)
    first: int | None = None

    def take(self, bounds: tuple[int, int], extent: int, step: int = 1) -> None:
        """One axis of the tensor: the block's bounds on it, how many elements remain, every how
        many."""
        if step < 0:
            self.flips.append(len(self.bounds))
        self.bounds.append(bounds)
        self.steps.append(abs(step))
        self.strided.append(extent)


def _items(index: Any, shape: Shape) -> list[Any]:
    """The index as one item for each axis, masks replaced by arrays of positions."""
    items: list[Any] = []
    for item in index if isinstance(index, tuple) else (index,):
        items += _expand_mask(
            item, sum(1 for i in items if i is not None and i is not Ellipsis), shape
        )
    used = sum(1 for i in items if i is not None and i is not Ellipsis)
    if used > len(shape):
        raise IndexRangeError(
            message("index", f"{used} indices", f"at most {len(shape)} for shape {shape}")
        )
    dots = [k for k, i in enumerate(items) if i is Ellipsis]
    if len(dots) > 1:
        raise IndexRangeError(message("index", "several ellipses", "at most one"))
    fill: list[Any] = [slice(None)] * (len(shape) - used)
    return items[: dots[0]] + fill + items[dots[0] + 1 :] if dots else items + fill


def _expand_mask(item: Any, axis: int, shape: Shape) -> list[Any]:
    if isinstance(item, (list, tuple)):
        item = (
            np.asarray([], np.int64)
            if not len(item)
            else np.asarray([x.numpy() if isinstance(x, Base) else x for x in item])
        )
    if isinstance(item, (bool, np.bool_)):
        raise DTypeError(
            message(
                "index",
                "a Python bool",
                "integers, slices, arrays or bool arrays",
                "use None to add an axis",
            )
        )
    if isinstance(item, Base) and item.dtype is dt.bool_:
        capture.forbid(
            "a mask as index", "use where(mask, a, b), whose shape does not depend on values"
        )
        item = item.numpy()
    if not (isinstance(item, np.ndarray) and item.dtype == np.bool_):
        return [item]
    if item.shape != shape[axis : axis + item.ndim]:
        raise IndexRangeError(
            message(
                "index",
                f"a mask of shape {item.shape} for axes from {axis} on of {shape}",
                "equal extents",
            )
        )
    return list(np.nonzero(item))


def _resolve(index: Any, shape: Shape) -> Basic:
    """The plan of an index."""
    found, axis, places = Basic(), 0, []
    items = _items(index, shape)
    for k, item in enumerate(items):
        if item is None:
            found.shape.append(1)
            continue
        n = shape[axis]
        if isinstance(item, slice):
            _resolve_slice(found, item, n)
        elif isinstance(item, (int, np.integer)):
            at = _check_integer(int(item), axis, n, shape)
            found.take((at, at + 1), 1)
            places.append((k, len(found.shape)))
        else:
            found.take((0, n), n)
            places.append((k, len(found.shape)))
            found.arrays.append((len(found.shape), item))
            found.shape.append(n)
        axis += 1
    if found.arrays:  # integers count as index arrays here, as in NumPy
        together = places[-1][0] - places[0][0] == len(places) - 1
        found.first = places[0][1] if together else 0
    return found


def _check_integer(at: int, axis: int, n: int, shape: Shape) -> int:
    if not -n <= at < n:
        raise IndexRangeError(
            message(
                "index",
                f"{at} on axis {axis} of shape {shape}",
                f"{-n} <= index < {n}" if n else "an axis that is not empty",
                _OUTSIDE,
            )
        )
    return at % n


def _resolve_slice(found: Basic, item: slice, n: int) -> None:
    ends = [x.item() if isinstance(x, Base) else x for x in (item.start, item.stop, item.step)]
    for end in ends:
        if end is not None and not hasattr(end, "__index__"):
            raise DTypeError(message("index", f"{end!r} in a slice", "integers or nothing"))
    if ends[2] == 0:
        raise IndexRangeError(message("index", "a slice with step 0", "another step"))
    start, stop, step = slice(*ends).indices(n)
    count = len(range(start, stop, step))
    last = start + (count - 1) * step
    low, high = min(start, last), max(start, last)
    found.take((low, high + 1) if count else (0, 0), count, step)
    found.shape.append(count)


class Indexing(Reduce):
    """NumPy-style indexing, gather, scatter, sort, search."""

    __slots__ = ()

    # --- reading ---

    def __getitem__(self, index: Any) -> Self:
        """x[index] with integers, slices, None, Ellipsis, index arrays and masks, as in NumPy.

        >>> Tensor.arange(6).reshape(2, 3)[:, ::-1].tolist()
        [[2, 1, 0], [5, 4, 3]]

        Raises:
            IndexRangeError: an integer (or a host array's element) outside of its axis, too many
                indices.
            CaptureError: a mask inside of a jitted function.
        """
        plan = _resolve(index, self.shape)
        node = reshape_node(_read_block(self._operand(), plan), tuple(plan.shape))
        return self._map(_gather_arrays(self, node, plan) if plan.arrays else node)

    def _index_node(self, item: Any, n: int, axis: int) -> Node:
        """An index array as int64 positions; negative ones count from the end."""
        if not isinstance(item, Base):
            return realize.from_numpy(_host_index(item, n, axis), dt.index, self.node.device)
        if not item.dtype.is_int:
            raise DTypeError(
                message("index", item.dtype.name, "integers or a bool mask", "cast with .long()")
            )
        if config.CHECK and capture.current() is None:
            _host_index(item.numpy(), n, axis)
        node = cast_node(item.node, dt.index)
        if item.dtype.kind == "u":
            return node
        negative = graph.alu(Op.LT, node, graph.const(0, dt.index, node.shape))
        wrapped = graph.alu(Op.ADD, node, graph.const(n, dt.index, node.shape))
        return graph.alu(Op.WHERE, negative, wrapped, node)

    # --- writing ---

    def __setitem__(self, index: Any, value: Any) -> None:
        """x[index] = value: this tensor gets a new value; tensors made from it before keep theirs.

        Raises:
            ShapeError: value does not broadcast to x[index].
            DTypeError: a float value for an integer tensor.
        """
        mask = (
            index
            if isinstance(index, Base)
            else np.asarray(index)
            if isinstance(index, np.ndarray)
            else None
        )
        if (
            mask is not None
            and mask.dtype in (dt.bool_, np.dtype(bool))
            and self._fits_mask(mask, value)
        ):
            mask = self._lift(mask)
            mask = mask.reshape(*mask.shape, *(1,) * (self.ndim - mask.ndim))
            self._set(mask.expand(self.shape).where(self._new_values(value), self))
            return
        plan = _resolve(index, self.shape)
        new = self._new_values(value)
        self._set(self._write_arrays(plan, new) if plan.arrays else self._write_block(plan, new))

    def _fits_mask(self, mask: Any, value: Any) -> bool:
        """Whether x[mask] = value needs no value of the mask: the update has no axis for the chosen
        elements."""
        if tuple(mask.shape) != self.shape[: mask.ndim]:
            return False
        return is_scalar(value) or np.ndim(value) <= self.ndim - mask.ndim

    def _new_values(self, value: Any) -> Self:
        if is_scalar(value):
            if isinstance(value, float) and not self.dtype.is_float:
                raise DTypeError(
                    message(
                        "x[...] = v",
                        f"a float for {self.dtype.name}",
                        self.dtype.name,
                        "cast the value explicitly",
                    )
                )
            return self._wrap(graph.const(value, self.dtype))
        new = self._lift(value)
        if new.dtype is not self.dtype:
            if isinstance(value, Base) and dt.promote(new.dtype, self.dtype) is not self.dtype:
                raise DTypeError(
                    message(
                        "x[...] = v",
                        new.dtype.name,
                        self.dtype.name,
                        f"cast the value with .cast({self.dtype.name!r})",
                    )
                )
            new = new.cast(self.dtype)
        return new

    def _fit(self, new: Self, shape: Shape) -> Node:
        """The update broadcast to the shape of x[index]; leading axes of extent 1 may be too
        many."""
        node = new._operand()
        extra = len(node.shape) - len(shape)
        if extra > 0 and prod(node.shape[:extra]) == 1:
            node = reshape_node(node, node.shape[extra:])
        if broadcast_shapes("x[...] = v", node.shape, shape) != shape:
            raise ShapeError(
                message(
                    "x[...] = v", f"a value of shape {new.shape}", f"one that broadcasts to {shape}"
                )
            )
        return expand_node(node, shape)

    def _write_block(self, plan: Basic, new: Self) -> Self:
        update = _write_back(self._fit(new, tuple(plan.shape)), plan, self.shape)
        if all(
            b == (0, n) and s == 1
            for b, n, s in zip(plan.bounds, self.shape, plan.steps, strict=True)
        ):
            return self._wrap(update, new._carries)
        inside = _write_back(graph.const(True, dt.bool_, tuple(plan.shape)), plan, self.shape)
        node = graph.alu(Op.WHERE, inside, update, self._operand())
        return self._wrap(node, self._carries or new._carries)

    def _write_arrays(self, plan: Basic, new: Self, mode: str = "set") -> Self:
        # the place of every element of x[index], by indexing 1, 2, ..: an index outside finds 0,
        # hence place -1
        number = reshape_node(graph.iota(self.numel()), self.shape)
        number = graph.alu(Op.ADD, number, graph.const(1, dt.index, self.shape))
        block = reshape_node(_read_block(number, plan), tuple(plan.shape))
        place = _gather_arrays(self, block, plan)
        place = graph.alu(Op.ADD, place, graph.const(-1, dt.index, place.shape))
        flat = (prod(place.shape),)
        update = reshape_node(self._fit(new, place.shape), flat)
        node = graph.scatter(
            reshape_node(self._operand(), (self.numel(),)),
            reshape_node(place, flat),
            update,
            0,
            mode,
        )
        return self._wrap(reshape_node(node, self.shape), self._carries or new._carries)

    def index_put(self, indices: Any, values: Any, accumulate: bool = False) -> Self:
        """A copy with x[indices] = values, or with values added (all of them, for equal
        indices).

        Raises:
            DTypeError: there is no array among the indices.
        """
        plan = _resolve(tuple(indices), self.shape)
        if not plan.arrays:
            raise DTypeError(message("index_put", "no index arrays", "at least one"))
        return self._write_arrays(plan, self._new_values(values), "add" if accumulate else "set")

    # --- gather and scatter ---

    def _other_index(self, name: str, index: Any, axis: int) -> tuple[Self, int]:
        axis = check_axis(name, axis, self.ndim)
        given, index = index, self._lift(index)
        if not index.dtype.is_int or index.ndim != self.ndim:
            raise ShapeError(
                message(
                    name,
                    f"an index of shape {index.shape} and type {index.dtype.name}",
                    f"integers with {self.ndim} axes",
                )
            )
        if not isinstance(given, Base) or (config.CHECK and capture.current() is None):
            check_places(name, np.asarray(given), self.shape[axis])
        return index, axis

    @axis_names
    def gather(self, axis: int, index: Any) -> Self:
        """The elements whose coordinate on `axis` is the index; the index has the result's shape,
        and on other axes at most this tensor's extents. 0 for an index outside of 0 <= index <
        extent.

        >>> Tensor([[1, 2], [3, 4]]).gather(1, Tensor([[0], [1]])).tolist()
        [[1], [4]]
        """
        index, axis = self._other_index("gather", index, axis)
        keep = tuple(
            (0, n if a == axis else m)
            for a, (n, m) in enumerate(zip(self.shape, index.shape, strict=True))
        )
        x = graph.move(Op.SHRINK, self._operand(), keep)
        return self._map(graph.gather(x, index.node, axis))

    def take_along_axis(self, indices: Any, axis: int) -> Self:
        """`gather` as NumPy has it: other axes broadcast, and negative indices count from the
        end."""
        axis = check_axis("take_along_axis", axis, self.ndim)
        index = self._wrap(self._index_node(indices, self.shape[axis], axis))
        one = (*self.shape[:axis], 1, *self.shape[axis + 1 :])
        shape = broadcast_shapes("take_along_axis", index.shape, one)
        x = self.expand(*shape[:axis], self.shape[axis], *shape[axis + 1 :])
        return x._map(graph.gather(x._operand(), expand_node(index.node, shape), axis))

    @axis_names
    def index_select(self, axis: int, index: Any) -> Self:
        """The slices at `index` (one-dimensional) along an axis."""
        axis = check_axis("index_select", axis, self.ndim)
        return self[(slice(None),) * axis + (index,)]

    def _scatter(self, name: str, axis: int, index: Any, source: Any, mode: str) -> Self:
        index, axis = self._other_index(name, index, axis)
        if is_scalar(source):
            update = self._new_values(source).expand(index.shape)
        else:
            update = self._new_values(source)
            if update.ndim != self.ndim or any(
                n < m for n, m in zip(update.shape, index.shape, strict=True)
            ):
                raise ShapeError(
                    message(
                        name,
                        f"updates of shape {update.shape}",
                        f"at least the index's shape {index.shape}",
                    )
                )
            update = update.shrink([(0, m) for m in index.shape])
        missing = tuple(
            (0, 0 if a == axis else n - m)
            for a, (n, m) in enumerate(zip(self.shape, index.shape, strict=True))
        )
        if any(after < 0 for _, after in missing):
            raise ShapeError(
                message(
                    name,
                    f"an index of shape {index.shape}",
                    f"at most {self.shape} outside of axis {axis}",
                )
            )
        place = (index.cast(dt.index) + 1).pad(missing) - 1 if any(a for _, a in missing) else index
        update = update.pad(missing)
        node = graph.scatter(self._operand(), place.node, update._operand(), axis, mode)
        return self._wrap(node, self._carries or update._carries)

    @axis_names
    def scatter(self, axis: int, index: Any, src: Any, reduce: str | None = None) -> Self:
        """A copy with `src` written where the coordinate on `axis` is the index (the last of equal
        indices wins), or combined: reduce "add" or "multiply". Indices out of range are dropped.

        >>> Tensor.zeros(3).scatter(0, Tensor([2]), 5.0).tolist()
        [0.0, 0.0, 5.0]

        Raises:
            DTypeError: another word for `reduce`.
            ShapeError: the index is not of integers, or has another number of axes.
        """
        modes = {None: "set", "add": "add", "multiply": "mul"}
        if reduce not in modes:
            raise DTypeError(
                message(
                    "scatter",
                    f"reduce {reduce!r}",
                    "None, 'add' or 'multiply'",
                    "see scatter_reduce",
                )
            )
        return self._scatter("scatter", axis, index, src, modes[reduce])

    @axis_names
    def scatter_add(self, axis: int, index: Any, src: Any) -> Self:
        """A copy with `src` added where the coordinate on `axis` is the index."""
        return self._scatter("scatter_add", axis, index, src, "add")

    @axis_names
    def scatter_reduce(
        self, axis: int, index: Any, src: Any, reduce: str, include_self: bool = True
    ) -> Self:
        """A copy with `src` combined by "sum", "prod", "amax", "amin" or "mean" where the
        coordinate on `axis` is the index; without include_self the old values there do not
        count.

        Raises:
            DTypeError: another word for `reduce`.
            ShapeError: the index is not of integers, or has another number of axes.
        """
        modes = {"sum": "add", "prod": "mul", "amax": "max", "amin": "min", "mean": "add"}
        if reduce not in modes:
            raise DTypeError(message("scatter_reduce", f"reduce {reduce!r}", ", ".join(modes)))
        start = {"prod": 1, "amax": self.dtype.min, "amin": self.dtype.max}.get(reduce, 0)
        x = self if include_self else self._scatter("scatter_reduce", axis, index, start, "set")
        result = x._scatter("scatter_reduce", axis, index, src, modes[reduce])
        if reduce != "mean":
            return result
        count = self.full_like(1 if include_self else 0)._scatter(
            "scatter_reduce", axis, index, 1, "add"
        )
        return result.div(count.maximum(1), rounding_mode=None if self.dtype.is_float else "floor")

    @axis_names
    def index_add(self, axis: int, index: Any, source: Self) -> Self:
        """A copy with the slices of `source` added at `index` (one-dimensional) along an axis."""
        axis = check_axis("index_add", axis, self.ndim)
        plan = _resolve((slice(None),) * axis + (index,), self.shape)
        return self._write_arrays(plan, self._new_values(source), "add")


# --- blocks ---------------------------------------------------------------------------------------


def _read_block(x: Node, plan: Basic) -> Node:
    """The block of `plan.bounds`, reversed and strided."""
    x = graph.move(Op.SHRINK, x, tuple(plan.bounds))
    if plan.flips:
        x = graph.move(Op.FLIP, x, tuple(plan.flips))
    for axis, step in enumerate(plan.steps):
        if step > 1 and x.shape[axis] > 1:
            x = graph.move(Op.WINDOW, x, (axis, 1, step, 1))
            x = reshape_node(x, (*x.shape[: axis + 1], *x.shape[axis + 2 :]))
    return x


def _write_back(x: Node, plan: Basic, shape: Shape) -> Node:
    """The reverse of `_read_block`: elements of x[index] at their places in `shape`, 0
    elsewhere."""
    x = reshape_node(x, tuple(plan.strided))
    for axis, step in enumerate(plan.steps):
        low, high = plan.bounds[axis]
        if step > 1 and high - low > 1:
            x = reshape_node(x, (*x.shape[: axis + 1], 1, *x.shape[axis + 1 :]))
            x = graph.move(Op.UNWINDOW, x, (axis, high - low, step, 1))
            x = reshape_node(x, (*x.shape[: axis + 1], *x.shape[axis + 2 :]))
    if plan.flips:
        x = graph.move(Op.FLIP, x, tuple(plan.flips))
    pairs = tuple((low, n - high) for (low, high), n in zip(plan.bounds, shape, strict=True))
    return graph.move(Op.PAD, x, pairs)


# --- index arrays ---------------------------------------------------------------------------------


def _host_index(item: Any, n: int, axis: int) -> Array:
    """Positions of an index array that lies in host memory, checked and made non-negative."""
    array = np.asarray(item)
    if array.dtype.kind not in "iu":
        raise DTypeError(message("index", f"an array of {array.dtype}", "integers or a bool mask"))
    bad = (array < -n) | (array >= n)
    if bad.any():
        raise IndexRangeError(
            message(
                "index", f"{array[bad].flat[0]} on axis {axis}", f"{-n} <= index < {n}", _OUTSIDE
            )
        )
    return np.where(array < 0, array + n, array).astype(np.int64)


def _gather_arrays(owner: Indexing, x: Node, plan: Basic) -> Node:
    """x read at index arrays: their axes become one, and the index arrays one flat index into
    it."""
    axes = [axis for axis, _ in plan.arrays]
    extents = [x.shape[axis] for axis in axes]
    indices = [
        owner._index_node(item, n, axis)
        for (axis, item), n in zip(plan.arrays, extents, strict=True)
    ]
    shape = broadcast_shapes("index", *(i.shape for i in indices))
    index = _flat_index([expand_node(i, shape) for i in indices], extents)
    first = plan.first or 0
    rest = [axis for axis in range(len(x.shape)) if axis not in axes]
    order = (*rest[:first], *axes, *rest[first:])
    x = graph.move(Op.PERMUTE, x, order)
    lead, tail = tuple(x.shape[:first]), tuple(x.shape[first + len(axes) :])
    count = prod(shape)
    flat = reshape_node(x, (*lead, prod(extents), *tail))
    index = reshape_node(index, (*(1,) * first, count, *(1,) * len(tail)))
    found = graph.gather(flat, expand_node(index, (*lead, count, *tail)), first)
    return reshape_node(found, (*lead, *shape, *tail))


def _flat_index(indices: Sequence[Node], extents: Sequence[int]) -> Node:
    """One index into several axes as one; -1 where any of several is out of range."""
    if len(indices) == 1:
        return indices[0]
    total = valid = None
    for index, n, step in zip(indices, extents, strides_of(tuple(extents)), strict=True):
        negative = graph.alu(Op.LT, index, graph.const(0, dt.index, index.shape))
        fits = graph.alu(Op.LT, index, graph.const(n, dt.index, index.shape))
        fits = graph.alu(
            Op.AND, fits, graph.alu(Op.XOR, negative, graph.const(True, dt.bool_, index.shape))
        )
        part = graph.alu(Op.MUL, index, graph.const(step, dt.index, index.shape))
        total = part if total is None else graph.alu(Op.ADD, total, part)
        valid = fits if valid is None else graph.alu(Op.AND, valid, fits)
    assert total is not None
    assert valid is not None
    return graph.alu(Op.WHERE, valid, total, graph.const(-1, dt.index, total.shape))
