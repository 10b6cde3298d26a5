"""What the families share: broadcasting and casting of nodes, checks of axes and shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np

from mygrad import graph
from mygrad.dtype import DType
from mygrad.errors import DTypeError, IndexRangeError, ShapeError, message
from mygrad.graph import Node
from mygrad.helpers import Shape
from mygrad.ops import Op

Array = np.ndarray[Any, Any]
Scalar = bool | int | float
DTypeLike = DType | str | type | np.dtype[Any]
Axes = int | Sequence[int] | None
P = ParamSpec("P")
R = TypeVar("R")


def axis_names(method: Callable[P, R]) -> Callable[P, R]:
    """Let a method also take PyTorch's `dim=` for `axis=` and NumPy's `keepdims=` for
    `keepdim=`."""

    @functools.wraps(method)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if not args:  # called on the class, like Tensor.cat()
            raise ShapeError(message(method.__name__, "no tensors", "one or more tensors"))
        if "dim" in kwargs:
            kwargs["axis"] = kwargs.pop("dim")
        if "keepdims" in kwargs:
            kwargs["keepdim"] = kwargs.pop("keepdims")
        return method(*args, **kwargs)

    return wrapper


def broadcast_shapes(name: str, *shapes: Shape) -> Shape:
    """The shape that all of `shapes` can be expanded to, by NumPy's rules.

    Raises:
        ShapeError: there is none.
    """
    first = shapes[0]
    if all(shape == first for shape in shapes):
        return first
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    result = []
    for extents in zip(*padded, strict=True):
        wanted = {extent for extent in extents if extent != 1}
        if len(wanted) > 1:
            raise ShapeError(
                message(
                    name,
                    f"shapes {' and '.join(map(str, shapes))}",
                    "extents that are equal or 1, from the right",
                    "reshape or expand one of them",
                )
            )
        result.append(wanted.pop() if wanted else 1)
    return tuple(result)


def expand_node(node: Node, shape: Shape) -> Node:
    """`node` broadcast to `shape`; a constant is made anew."""
    if node.shape == shape:
        return node
    if node.op is Op.CONST:
        return graph.const(node.arg, node.dtype, shape)
    return graph.move(Op.EXPAND, node, shape)


def reshape_node(node: Node, shape: Shape) -> Node:
    """`node` in another shape of as many elements; a constant is made anew."""
    if node.shape == shape:
        return node
    if node.op is Op.CONST:
        return graph.const(node.arg, node.dtype, shape)
    return graph.move(Op.RESHAPE, node, shape)


def cast_node(node: Node, dtype: DType) -> Node:
    """`node` as `dtype`; a whole number as a float constant is made anew."""
    if node.op is Op.CONST and dtype.is_float and not node.dtype.is_float and abs(node.arg) <= 256:
        return graph.const(node.arg, dtype, node.shape)  # exact in every float type
    return graph.cast(node, dtype)


def check_axis(name: str, axis: int, rank: int) -> int:
    """`axis` counted from the front.

    Raises:
        IndexRangeError: there is no such axis.
        DTypeError: it is no integer.
    """
    check_integer(name, "axis", axis)
    if not -rank <= axis < rank:
        raise IndexRangeError(
            message(
                name,
                f"axis {axis}",
                f"{-rank} <= axis < {rank}" if rank else "a tensor with axes",
                f"the tensor has {rank} axes",
            )
        )
    return int(axis) + rank if axis < 0 else int(axis)


def check_integer(name: str, what: str, value: Any) -> int:
    """`value` as an int; `what` it is, for the error.

    Raises:
        DTypeError: it is no integer of Python or NumPy.
    """
    if not isinstance(value, (int, np.integer)):
        raise DTypeError(message(name, f"{what} {value!r}", "an integer"))
    return int(value)


def check_axes(name: str, axes: Axes, rank: int) -> tuple[int, ...]:
    """All of `axes` counted from the front, sorted; None stands for all axes."""
    if axes is None:
        return tuple(range(rank))
    if not isinstance(axes, Iterable) or isinstance(axes, str):
        return (check_axis(name, axes, rank),)
    found = tuple(sorted(check_axis(name, axis, rank) for axis in axes))
    if len(set(found)) != len(found):
        raise ShapeError(message(name, f"axes {tuple(axes)}", "distinct axes"))
    return found


def check_places(name: str, index: Array, n: int) -> None:
    """Refuse places outside of an axis of `n`; unlike those of x[index], they do not count from the
    end.

    Raises:
        IndexRangeError: there is such a place.
    """
    wrong = index[(index < 0) | (index >= n)]
    if wrong.size:
        raise IndexRangeError(message(name, f"index {wrong[0]}", f"0 <= index < {n}"))


def check_shape(name: str, shape: Iterable[int]) -> Shape:
    """Extents as a tuple of non-negative integers."""
    found = tuple(shape)
    for extent in found:
        if isinstance(extent, (bool, float)) or not hasattr(extent, "__index__"):
            raise ShapeError(message(name, f"shape {found}", "integers as extents"))
        if extent < 0:
            raise ShapeError(message(name, f"shape {found}", "extents of 0 or more"))
    return tuple(int(extent) for extent in found)


def is_scalar(value: object) -> bool:
    """Whether `value` is a number of Python or NumPy."""
    return isinstance(value, (bool, int, float, np.number, np.bool_)) and not isinstance(
        value, np.complexfloating
    )


def plain_number(value: Any) -> Scalar:
    """A Python number."""
    return value.item() if isinstance(value, np.generic) else value
