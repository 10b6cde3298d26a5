"""Movement operations are index maps: eight rows, used by graph, scheduler, autograd and
interpreters.

    op        arg                               output index -> input index
    RESHAPE   new shape                         same place in row-major order
    PERMUTE   permutation                       out axis j is in axis permutation[j]
    EXPAND    new shape, as numpy.broadcast_to  0 on axes of extent 1, new leading axes dropped
    PAD       ((before, after), ...) per axis   i - before where inside, else the element is 0
    SHRINK    ((start, stop), ...) per axis     i + start
    FLIP      axes                              extent - 1 - i on those axes
    WINDOW    (axis, size, stride, dilation)    [.., L, ..] -> [.., o, k, ..]:
                                                o * stride + k * dilation
    UNWINDOW  (axis, extent, stride, dilation)  [.., o, k, ..] -> [.., i, k, ..]:
                                                ((i - k * dilation) / stride, k) where whole
                                                and inside, else the element is 0

Each row answers five questions: the shape that comes out (`out_shape`, which also validates), which
input index an output index reads and when (`index`), which steps carry a gradient back (`adjoint`),
what it does to a NumPy array (`apply`, written independently of `index`), and when it does nothing
(`is_noop`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from mygrad.errors import IndexRangeError, ShapeError, message
from mygrad.expr import Expr, both, const, equal, is_true, less
from mygrad.helpers import Shape, ceildiv, prod, strides_of
from mygrad.ops import Op

Array = np.ndarray[Any, Any]
Index = tuple[Expr, ...]
MEMO = 1 << 14  # indices that are moved once: layers and steps of time ask for the same ones
Step = tuple[Op, Any]  # an operation and its arg; (Op.REDUCE, (Op.ADD, axes)) occurs in adjoints


def out_shape(op: Op, shape: Shape, arg: Any) -> Shape:
    """The shape that comes out.

    >>> out_shape(Op.WINDOW, (2, 8), (1, 3, 2, 1))
    (2, 3, 3)

    Raises:
        ShapeError: the argument does not fit the shape.
        IndexRangeError: an axis, or a bound of SHRINK, outside of the shape.
    """
    return TABLE[op].shape(shape, arg)


@lru_cache(maxsize=MEMO)
def index(op: Op, shape: Shape, arg: Any, out_index: Index) -> tuple[Index, Expr | None]:
    """The input index that `out_index` reads, and the condition under which it reads at all (else
    the element is 0); None stands for always. `shape` is the input's.

    Where the condition fails the index may lie outside of the input.
    """
    found, valid = TABLE[op].index(shape, arg, out_index)
    return found, None if valid is None or is_true(valid) else valid


def chain(shape: Shape, steps: Sequence[Step], out_index: Index) -> tuple[Index, Expr | None]:
    """`index` through several movements: `steps` lead from an array of `shape` to the output."""
    shapes = [shape]
    for op, arg in steps:
        shapes.append(out_shape(op, shapes[-1], arg))
    valid: Expr | None = None
    for (op, arg), before in zip(reversed(steps), reversed(shapes[:-1]), strict=True):
        out_index, condition = index(op, before, arg, out_index)
        if condition is not None:
            valid = condition if valid is None else both(valid, condition)
    return out_index, None if valid is None or is_true(valid) else valid


def adjoint(op: Op, shape: Shape, arg: Any) -> tuple[Step, ...]:
    """The steps that carry a gradient of the output's shape back to the input's `shape`.

    The step (Op.REDUCE, (Op.ADD, axes)) sums over axes and removes them; all others are movements.

    >>> adjoint(Op.EXPAND, (1, 3), (2, 4, 3))
    ((REDUCE, (ADD, (0, 1))), (RESHAPE, (1, 3)))
    """
    return TABLE[op].adjoint(shape, arg)


def apply(op: Op, array: Array, arg: Any) -> Array:
    """What the movement does to a NumPy array."""
    out_shape(op, array.shape, arg)
    return TABLE[op].apply(array, arg)


def is_noop(op: Op, shape: Shape, arg: Any) -> bool:
    """Whether the movement gives back its input unchanged.

    >>> is_noop(Op.PERMUTE, (2, 3), (0, 1)), is_noop(Op.FLIP, (2, 1), (1,))
    (True, True)
    """
    return TABLE[op].noop(shape, arg)


def merge(op1: Op, arg1: Any, op2: Op, arg2: Any, shape: Shape) -> Step | None:
    """One movement equal to the first followed by the second on an array of `shape`; None if there
    is none.

    >>> merge(Op.PERMUTE, (1, 2, 0), Op.PERMUTE, (1, 2, 0), (2, 3, 4))
    (PERMUTE, (2, 0, 1))
    """
    middle = out_shape(op1, shape, arg1)
    if is_noop(op1, shape, arg1):
        return op2, arg2
    if is_noop(op2, middle, arg2):
        return op1, arg1
    if _only_units(op1, shape, arg1) and _only_units(op2, middle, arg2):
        return Op.RESHAPE, out_shape(op2, middle, arg2)
    if op1 is op2 and op1 in _MERGE:
        return op1, _MERGE[op1](arg1, arg2)
    if op1 is Op.PAD and op2 is Op.SHRINK:
        return _merge_pad_shrink(arg1, arg2, shape)
    return None


def _only_units(op: Op, shape: Shape, arg: Any) -> bool:
    """Whether the movement keeps the row-major order of the elements, and so is a RESHAPE."""
    if op is Op.PERMUTE:
        kept = [axis for axis in arg if shape[axis] != 1]
        return kept == sorted(kept)
    if op is Op.EXPAND:
        return prod(arg) == prod(shape) != 0
    return op is Op.RESHAPE


def _merge_shrink(first: tuple[Shape, ...], second: tuple[Shape, ...]) -> tuple[Shape, ...]:
    return tuple((a + c, a + d) for (a, _), (c, d) in zip(first, second, strict=True))


def _merge_pad(first: tuple[Shape, ...], second: tuple[Shape, ...]) -> tuple[Shape, ...]:
    return tuple((a + c, b + d) for (a, b), (c, d) in zip(first, second, strict=True))


_MERGE: dict[Op, Callable[[Any, Any], Any]] = {
    Op.EXPAND: lambda first, second: second,
    Op.PERMUTE: lambda first, second: tuple(first[axis] for axis in second),
    Op.FLIP: lambda first, second: tuple(sorted(set(first) ^ set(second))),
    Op.SHRINK: _merge_shrink,
    Op.PAD: _merge_pad,
}


def _merge_pad_shrink(
    pad: tuple[Shape, ...], shrink: tuple[Shape, ...], shape: Shape
) -> Step | None:
    """A SHRINK if nothing padded is left on any axis, a PAD if nothing original is lost on any."""
    window = [
        (start - before, stop - before)
        for (before, _), (start, stop) in zip(pad, shrink, strict=True)
    ]
    if all(
        start >= 0 and stop <= extent for (start, stop), extent in zip(window, shape, strict=True)
    ):
        return Op.SHRINK, tuple(window)
    if all(
        start <= 0 and stop >= extent for (start, stop), extent in zip(window, shape, strict=True)
    ):
        return Op.PAD, tuple(
            (-start, stop - extent) for (start, stop), extent in zip(window, shape, strict=True)
        )
    return None


# --- validation -----------------------------------------------------------------------------------


def _check_axis(name: str, axis: int, rank: int) -> None:
    if not 0 <= axis < rank:
        raise IndexRangeError(
            message(
                name,
                f"axis {axis}",
                f"an axis in 0 .. {rank - 1}" if rank else "an array with axes",
                f"the input has {rank} axes",
            )
        )


def _check_pairs(name: str, shape: Shape, arg: tuple[Shape, ...], what: str) -> None:
    if len(arg) != len(shape) or any(len(pair) != 2 for pair in arg):
        raise ShapeError(
            message(
                name,
                f"{arg} for shape {shape}",
                f"one {what} pair for each axis",
                f"give {len(shape)} pairs",
            )
        )


def _check_extents(name: str, new: Shape) -> None:
    if any(extent < 0 for extent in new):
        raise ShapeError(message(name, f"shape {new}", "extents of 0 or more"))


def _check_steps(name: str, stride: int, dilation: int) -> None:
    if stride < 1 or dilation < 1:
        raise ShapeError(message(name, f"stride {stride}, dilation {dilation}", "both at least 1"))


# --- RESHAPE --------------------------------------------------------------------------------------


def _reshape_shape(shape: Shape, new: Shape) -> Shape:
    _check_extents("reshape", new)
    if prod(new) != prod(shape):
        raise ShapeError(
            message(
                "reshape",
                f"{shape} to {new}",
                f"{prod(shape)} elements, not {prod(new)}",
                "give a shape with as many elements",
            )
        )
    return tuple(new)


def _groups(a: Shape, b: Shape) -> Iterable[tuple[list[int], list[int]]]:
    """The shortest runs of axes of `a` and `b` with equal products, without axes of extent 1."""
    left = [axis for axis, extent in enumerate(a) if extent != 1]
    right = [axis for axis, extent in enumerate(b) if extent != 1]
    i = j = 0
    while i < len(left):
        start, stop = i, j
        have, want = a[left[i]], b[right[j]]
        i, j = i + 1, j + 1
        while have != want:
            if have < want:
                have, i = have * a[left[i]], i + 1
            else:
                want, j = want * b[right[j]], j + 1
        yield left[start:i], right[stop:j]


def _reshape_index(shape: Shape, new: Shape, out: Index) -> tuple[Index, None]:
    found = [const(0)] * len(shape)
    if prod(shape) == 0:  # nothing is ever read
        return tuple(found), None
    for ours, theirs in _groups(shape, new):
        flat = const(0)
        for axis, step in zip(theirs, strides_of(tuple(new[axis] for axis in theirs)), strict=True):
            flat = flat + out[axis] * step
        for axis, step in zip(ours, strides_of(tuple(shape[axis] for axis in ours)), strict=True):
            high_part = flat // step
            found[axis] = high_part if axis == ours[0] else high_part % shape[axis]
    return tuple(found), None


# --- PERMUTE, EXPAND, FLIP ------------------------------------------------------------------------


def _permute_shape(shape: Shape, order: tuple[int, ...]) -> Shape:
    for axis in order:
        _check_axis("permute", axis, len(shape))
    if len(order) != len(shape) or len(set(order)) != len(order):
        raise ShapeError(
            message("permute", f"{order} for shape {shape}", "every axis exactly once")
        )
    return tuple(shape[axis] for axis in order)


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(order.index(axis) for axis in range(len(order)))


def _permute_index(shape: Shape, order: tuple[int, ...], out: Index) -> tuple[Index, None]:
    return tuple(out[place] for place in _inverse(order)), None


def _expand_shape(shape: Shape, new: Shape) -> Shape:
    _check_extents("expand", new)
    lead = len(new) - len(shape)
    if lead < 0 or any(a not in (1, b) for a, b in zip(shape, new[max(lead, 0) :], strict=False)):
        raise ShapeError(
            message(
                "expand",
                f"{shape} to {tuple(new)}",
                "extents equal or 1, from the right",
                "reshape first so that the axes line up",
            )
        )
    return tuple(new)


def _expand_index(shape: Shape, new: Shape, out: Index) -> tuple[Index, None]:
    lead = len(new) - len(shape)
    return tuple(const(0) if extent == 1 else out[lead + i] for i, extent in enumerate(shape)), None


def _expand_adjoint(shape: Shape, new: Shape) -> tuple[Step, ...]:
    lead = len(new) - len(shape)
    axes = tuple(range(lead)) + tuple(
        lead + i for i, extent in enumerate(shape) if extent != new[lead + i]
    )
    kept = tuple(extent for axis, extent in enumerate(new) if axis not in axes)
    steps: tuple[Step, ...] = ((Op.REDUCE, (Op.ADD, axes)),) if axes else ()
    return steps if kept == shape else (*steps, (Op.RESHAPE, shape))


def _flip_shape(shape: Shape, axes: tuple[int, ...]) -> Shape:
    for axis in axes:
        _check_axis("flip", axis, len(shape))
    if len(set(axes)) != len(axes):
        raise ShapeError(message("flip", f"axes {axes}", "every axis at most once"))
    return tuple(shape)


def _flip_index(shape: Shape, axes: tuple[int, ...], out: Index) -> tuple[Index, None]:
    return tuple(
        const(shape[axis] - 1) - at if axis in axes else at for axis, at in enumerate(out)
    ), None


# --- PAD, SHRINK ----------------------------------------------------------------------------------


def _pad_shape(shape: Shape, pairs: tuple[Shape, ...]) -> Shape:
    _check_pairs("pad", shape, pairs, "(before, after)")
    if any(before < 0 or after < 0 for before, after in pairs):
        raise ShapeError(
            message("pad", pairs, "widths of 0 or more", "use shrink to remove elements")
        )
    return tuple(
        extent + before + after for extent, (before, after) in zip(shape, pairs, strict=True)
    )


def _pad_index(shape: Shape, pairs: tuple[Shape, ...], out: Index) -> tuple[Index, Expr]:
    found = tuple(at - before if before else at for at, (before, _) in zip(out, pairs, strict=True))
    valid = _TRUE
    for at, extent, (before, after) in zip(found, shape, pairs, strict=True):
        if before:
            valid = both(valid, at >= 0)
        if after:
            valid = both(valid, less(at, const(extent)))
    return found, valid


def _pad_adjoint(shape: Shape, pairs: tuple[Shape, ...]) -> tuple[Step, ...]:
    return (
        (
            Op.SHRINK,
            tuple(
                (before, before + extent) for extent, (before, _) in zip(shape, pairs, strict=True)
            ),
        ),
    )


def _shrink_shape(shape: Shape, pairs: tuple[Shape, ...]) -> Shape:
    _check_pairs("shrink", shape, pairs, "(start, stop)")
    for extent, (start, stop) in zip(shape, pairs, strict=True):
        if not 0 <= start <= stop <= extent:
            raise IndexRangeError(
                message(
                    "shrink",
                    f"{pairs} for shape {shape}",
                    "0 <= start <= stop <= extent",
                    "use pad to add elements",
                )
            )
    return tuple(stop - start for start, stop in pairs)


def _shrink_index(shape: Shape, pairs: tuple[Shape, ...], out: Index) -> tuple[Index, None]:
    return tuple(
        at + start if start else at for at, (start, _) in zip(out, pairs, strict=True)
    ), None


def _shrink_adjoint(shape: Shape, pairs: tuple[Shape, ...]) -> tuple[Step, ...]:
    return (
        (
            Op.PAD,
            tuple(
                (start, extent - stop) for extent, (start, stop) in zip(shape, pairs, strict=True)
            ),
        ),
    )


# --- WINDOW, UNWINDOW -----------------------------------------------------------------------------


def _window_shape(shape: Shape, arg: tuple[int, int, int, int]) -> Shape:
    axis, size, stride, dilation = arg
    _check_axis("window", axis, len(shape))
    _check_steps("window", stride, dilation)
    span = dilation * (size - 1) + 1
    if size < 1 or span > max(
        shape[axis], 1
    ):  # an empty axis has no window of size 1, which is no error
        raise ShapeError(
            message(
                "window",
                f"size {size} with dilation {dilation} on extent {shape[axis]}",
                "a window of at least 1 that fits the axis",
                "pad the axis first",
            )
        )
    return (*shape[:axis], (shape[axis] - span) // stride + 1, size, *shape[axis + 1 :])


def _window_index(shape: Shape, arg: tuple[int, int, int, int], out: Index) -> tuple[Index, None]:
    axis, _, stride, dilation = arg
    return (*out[:axis], out[axis] * stride + out[axis + 1] * dilation, *out[axis + 2 :]), None


def _window_adjoint(shape: Shape, arg: tuple[int, int, int, int]) -> tuple[Step, ...]:
    """Windows that do not overlap only move: (o, k) is place o*stride + k. Others are summed; those
    with a stride for each phase of it."""
    axis, size, stride, dilation = arg
    if dilation == 1 and 1 < stride < size:
        return _phases(shape, axis, size, stride)
    if dilation != 1 or stride < size:
        spread = (Op.UNWINDOW, (axis, shape[axis], stride, dilation))
        return spread, (Op.REDUCE, (Op.ADD, (axis + 1,)))
    count, lead, rest = (shape[axis] - size) // stride + 1, shape[:axis], shape[axis + 1 :]
    steps: list[Step] = []
    if stride > size:
        gap = ((0, 0),) * (axis + 1) + ((0, stride - size),) + ((0, 0),) * len(rest)
        steps.append((Op.PAD, gap))
    steps.append((Op.RESHAPE, (*lead, count * stride, *rest)))
    missing = shape[axis] - count * stride
    if missing > 0:
        steps.append((Op.PAD, ((0, 0),) * axis + ((0, missing),) + ((0, 0),) * len(rest)))
    elif missing < 0:
        steps.append((Op.SHRINK, tuple((0, n) for n in shape)))
    return tuple(steps)


def _phases(shape: Shape, axis: int, size: int, stride: int) -> tuple[Step, ...]:
    """Place i = stride*q + r is met by the offsets k = stride*j + r alone, of windows o = q - j. So
    the sum goes over j, and no offset that misses the place is looked at:

    (o, k) -> (o, j, r) -> (q, j, r) -> (q, r) -> i
    """
    lead, rest = shape[:axis], shape[axis + 1 :]
    count, places = (shape[axis] - size) // stride + 1, ceildiv(shape[axis], stride)
    steps = ceildiv(size, stride)
    zeros = ((0, 0),) * len(rest)
    made: list[Step] = []
    if size % stride:
        made.append((Op.PAD, (*((0, 0),) * (axis + 1), (0, steps * stride - size), *zeros)))
    made += [
        (Op.RESHAPE, (*lead, count, steps, stride, *rest)),
        (Op.UNWINDOW, (axis, places, 1, 1)),
        (Op.REDUCE, (Op.ADD, (axis + 1,))),
        (Op.RESHAPE, (*lead, places * stride, *rest)),
    ]
    if places * stride > shape[axis]:
        made.append((Op.SHRINK, tuple((0, n) for n in shape)))
    return tuple(made)


def _window_apply(array: Array, arg: tuple[int, int, int, int]) -> Array:
    axis, size, stride, dilation = arg
    count = (array.shape[axis] - dilation * (size - 1) - 1) // stride + 1
    lead = (slice(None),) * axis
    places = [
        slice(k * dilation, k * dilation + max(count - 1, 0) * stride + (count > 0), stride)
        for k in range(size)
    ]
    return np.stack([array[lead + (place,)] for place in places], axis + 1)  # noqa: RUF005


def _unwindow_shape(shape: Shape, arg: tuple[int, int, int, int]) -> Shape:
    axis, extent, stride, dilation = arg
    _check_axis("unwindow", axis, len(shape))
    _check_axis("unwindow", axis + 1, len(shape))
    _check_steps("unwindow", stride, dilation)
    _check_extents("unwindow", (extent,))
    return (*shape[:axis], extent, *shape[axis + 1 :])


def _unwindow_index(shape: Shape, arg: tuple[int, int, int, int], out: Index) -> tuple[Index, Expr]:
    axis, _, stride, dilation = arg
    place = out[axis] - out[axis + 1] * dilation
    valid = both(place >= 0, less(place, const(stride * (shape[axis] - 1) + 1)))
    valid = both(valid, equal(place % stride, const(0)))
    return (*out[:axis], place // stride, *out[axis + 1 :]), valid


def _unwindow_adjoint(shape: Shape, arg: tuple[int, int, int, int]) -> tuple[Step, ...]:
    """g[o*stride + k*dilation, k]: with (i, k) flattened that is o*(stride*K) + k*(dilation*K + 1),
    which is a window of the flat axis. Places beyond `extent` are padded with zeros.
    """
    axis, extent, stride, dilation = arg
    count, size = shape[axis], shape[axis + 1]
    lead, rest = shape[:axis], shape[axis + 2 :]
    if prod(shape) == 0:
        if extent == 0 or prod((*lead, size, *rest)) == 0:  # the output is empty too
            return ((Op.RESHAPE, shape),)
        pairs = ((0, e) for e in (size, *rest))
        return ((Op.SHRINK, (*((0, e) for e in lead), (0, 0), *pairs)),)
    flat = extent * size
    need = (count - 1) * stride * size + (size - 1) * (dilation * size + 1) + 1
    steps: list[Step] = [(Op.RESHAPE, (*lead, flat, *rest))]
    if flat < need:
        zero = (0, 0)
        steps.append((Op.PAD, (*(zero,) * len(lead), (0, need - flat), *(zero,) * len(rest))))
    elif flat > need:
        steps.append((Op.SHRINK, tuple((0, e) for e in (*lead, need, *rest))))
    steps.append((Op.WINDOW, (axis, size, stride * size, dilation * size + 1)))
    return tuple(steps)


def _unwindow_apply(array: Array, arg: tuple[int, int, int, int]) -> Array:
    axis, extent, stride, dilation = arg
    moved = np.moveaxis(array, (axis, axis + 1), (0, 1))
    out = np.zeros((extent, *moved.shape[1:]), array.dtype)
    for k in range(moved.shape[1]):
        room = len(range(k * dilation, extent, stride))
        count = min(room, moved.shape[0])
        out[k * dilation : k * dilation + count * stride : stride, k][:count] = moved[:count, k]
    return np.moveaxis(out, (0, 1), (axis, axis + 1))


# --- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Movement:
    """What one movement means; the functions of this module say what each field answers."""

    shape: Callable[[Shape, Any], Shape]
    index: Callable[[Shape, Any, Index], tuple[Index, Expr | None]]
    adjoint: Callable[[Shape, Any], tuple[Step, ...]]
    apply: Callable[[Array, Any], Array]
    noop: Callable[[Shape, Any], bool]


_TRUE = equal(const(0), const(0))

TABLE: dict[Op, Movement] = {
    Op.RESHAPE: Movement(
        _reshape_shape,
        _reshape_index,
        lambda shape, new: ((Op.RESHAPE, shape),),
        lambda array, new: array.reshape(new),
        lambda shape, new: shape == new,
    ),
    Op.PERMUTE: Movement(
        _permute_shape,
        _permute_index,
        lambda shape, order: ((Op.PERMUTE, _inverse(order)),),
        lambda array, order: array.transpose(order),
        lambda shape, order: order == tuple(range(len(order))),
    ),
    Op.EXPAND: Movement(
        _expand_shape,
        _expand_index,
        _expand_adjoint,
        lambda array, new: np.broadcast_to(array, new),
        lambda shape, new: shape == new,
    ),
    Op.PAD: Movement(
        _pad_shape,
        _pad_index,
        _pad_adjoint,
        lambda array, pairs: np.pad(array, pairs) if pairs else array,
        lambda shape, pairs: all(pair == (0, 0) for pair in pairs),
    ),
    Op.SHRINK: Movement(
        _shrink_shape,
        _shrink_index,
        _shrink_adjoint,
        lambda array, pairs: array[tuple(slice(*pair) for pair in pairs)],
        lambda shape, pairs: pairs == tuple((0, extent) for extent in shape),
    ),
    Op.FLIP: Movement(
        _flip_shape,
        _flip_index,
        lambda shape, axes: ((Op.FLIP, axes),),
        lambda array, axes: np.flip(array, axes),
        lambda shape, axes: all(shape[a] <= 1 for a in axes),
    ),
    Op.WINDOW: Movement(
        _window_shape, _window_index, _window_adjoint, _window_apply, lambda shape, arg: False
    ),
    Op.UNWINDOW: Movement(
        _unwindow_shape,
        _unwindow_index,
        _unwindow_adjoint,
        _unwindow_apply,
        lambda shape, arg: shape[arg[0]] == arg[1] and shape[arg[0] + 1] == 1 and arg[2] == 1,
    ),
}
