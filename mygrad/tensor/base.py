"""A Tensor without its arithmetic: making one, its properties, reading its values, its part in
gradients.

    Tensor = Lazy node + four fields
      _carries   whether gradients flow to the value (it was made from leaves, with gradients on)
      _mark      for a gradient leaf, and for a value that was computed (mode.Mark); else None
      _frozen    made with requires_grad=False: never carries gradients
      grad       what backward() accumulated, for leaves

How a leaf stays itself. Nodes are interned, so two parameters of equal value share a node, and a
parameter gets a new node at every optimiser step. Therefore the mark is not in the value but in the
*use*: an operation that reads a leaf reads `DETACH(value, mark)`, a node of this leaf alone,
whatever the value is, and `backward` finds the marks in the graph. A value that was computed has
only its BUFFER as node; its mark remembers the expression, so `loss.item()` before
`loss.backward()` loses nothing. `detach` and `no_grad` use DETACH without a mark: an operation
under no_grad reads operands that carry gradients through it. DETACH is no work; the scheduler drops
it.

The families of methods stand on each other in one line (Base, Creation, Elementwise, ..., Tensor):
a file uses the methods of the files before it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from mygrad import capture, graph, numeric, realize
from mygrad import dtype as dt
from mygrad.capture import Lazy
from mygrad.dtype import DType
from mygrad.errors import DTypeError, GradientError, IndexRangeError, ShapeError, message
from mygrad.graph import Node
from mygrad.helpers import Shape
from mygrad.ops import Op
from mygrad.runtime import device as devices
from mygrad.tensor.mode import Mark, mode

if TYPE_CHECKING:
    from typing_extensions import Self

Array = np.ndarray[Any, Any]
Scalar = bool | int | float
DTypeLike = DType | str | type | np.dtype[Any]
Axes = int | Sequence[int] | None
bool_ = bool  # the class has a method of that name
P = ParamSpec("P")
R = TypeVar("R")

_SMALL = 64  # elements that repr shows


def axis_names(method: Callable[P, R]) -> Callable[P, R]:
    """Let a method also take PyTorch's `dim=` for `axis=` and NumPy's `keepdims=` for
    `keepdim=`."""

    @functools.wraps(method)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if "dim" in kwargs:
            kwargs["axis"] = kwargs.pop("dim")
        if "keepdims" in kwargs:
            kwargs["keepdim"] = kwargs.pop("keepdims")
        return method(*args, **kwargs)

    return wrapper


# --- nodes ----------------------------------------------------------------------------------------


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
    """
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


def check_axes(name: str, axes: Axes, rank: int) -> tuple[int, ...]:
    """All of `axes` counted from the front, sorted; None stands for all axes."""
    if axes is None:
        return tuple(range(rank))
    if isinstance(axes, (int, np.integer)):
        return (check_axis(name, int(axes), rank),)
    found = tuple(sorted(check_axis(name, axis, rank) for axis in axes))
    if len(set(found)) != len(found):
        raise ShapeError(message(name, f"axes {tuple(axes)}", "distinct axes"))
    return found


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


def _plain(value: Any) -> Scalar:
    """A Python number."""
    return value.item() if isinstance(value, np.generic) else value


# --- data -----------------------------------------------------------------------------------------


def _array_of(data: Any) -> Array:
    """Nested lists, NumPy arrays and whatever NumPy understands, as an array of numbers."""
    weak = isinstance(data, (list, tuple, range))
    if weak and any(isinstance(x, Base) for x in data):
        data = [x.numpy() if isinstance(x, Base) else x for x in data]
    try:
        array = np.asarray(data)
    except ValueError as error:
        raise ShapeError(
            message(
                "Tensor",
                "nested lists of unequal lengths",
                "a rectangular array",
                f"pad the rows ({error})",
            )
        ) from None
    if array.dtype.kind not in "biuf" and "bfloat16" not in str(array.dtype):
        raise DTypeError(
            message(
                "Tensor",
                f"data of type {array.dtype}",
                "bool, integers or floats",
                "use the real and imaginary parts"
                if array.dtype.kind == "c"
                else "convert it to numbers first",
            )
        )
    if weak and array.dtype == np.float64 and not any(isinstance(x, np.ndarray) for x in data):
        return array.astype(dt.default_float.storage)
    return array


def _source(data: Any, dtype: DType | None, device: str | None) -> Node:
    """The node of new data: a constant for a number, else a buffer."""
    if is_scalar(data):
        kind = dt.parse(data.dtype) if isinstance(data, np.generic) else dt.of_scalar(data)
        value = _plain(data)
        if dtype is not None and not dtype.is_float and kind.is_float:
            value = numeric.cast(np.asarray(value), dtype).item()
        node = graph.const(value, dtype or kind)
        return node if device is None or device == devices.default() else graph.copy(node, device)
    array = _array_of(data)
    if dtype is None:
        dtype = dt.parse(array.dtype)
    elif array.dtype.kind == "f" and not dtype.is_float:
        array = numeric.cast(array, dtype)
    elif str(array.dtype) == "bfloat16":
        array = array.astype(np.float32)
    if array.dtype == object:
        raise DTypeError(message("Tensor", "integers beyond 64 bits", f"values of {dtype.name}"))
    return realize.from_numpy(array, dtype, device)


# --- the class ------------------------------------------------------------------------------------


class Base(Lazy):
    """Making a tensor, its properties and its values. See the module's docstring for the fields."""

    __slots__ = ("_carries", "_frozen", "_mark", "grad")
    __array_ufunc__ = None  # numpy_array * tensor is the tensor's affair

    _carries: bool
    _frozen: bool_
    _mark: Mark | None
    grad: Self | None

    def __init__(
        self,
        data: Any,
        dtype: DTypeLike | None = None,
        device: str | None = None,
        requires_grad: bool | None = None,
    ) -> None:
        """A tensor with the values of `data`.

        Args:
            data: a number, nested lists of numbers, a NumPy array, a Tensor (its value, gradients
                included), or anything that `numpy.asarray` understands. Data is copied.
            dtype: the number type; by default the array's own, and for Python numbers bool, int64
                or float32.
            device: where it lives; by default `Device.DEFAULT`.
            requires_grad: True makes a leaf that `backward` gives a gradient, False a tensor that
                never carries one, whatever is assigned to it.

        >>> Tensor([[1, 2], [3, 4]]).shape
        (2, 2)

        Raises:
            ShapeError: rows of different lengths.
            DTypeError: data that is not numbers; a leaf that is not a float.
            DeviceError: an unknown or missing device.
        """
        kind = None if dtype is None else dt.parse(dtype)
        place = None if device is None else devices.canonical(device)
        carries = False
        if isinstance(data, Base):
            node, carries = data._operand(), data._carries and mode.gradients
            node = node if kind is None else cast_node(node, kind)
            node = node if place is None or place == data.device else graph.copy(node, place)
        else:
            node = _source(data, kind, place)
        super().__init__(node)
        self._carries, self._frozen = carries and node.dtype.is_float, False
        self._mark, self.grad = None, None
        if requires_grad is not None:
            self.requires_grad = requires_grad

    @classmethod
    def _wrap(cls, node: Node, carries: bool = False) -> Self:
        """The tensor of a node; `carries` says whether an operand carried gradients."""
        made = cls.__new__(cls)
        Lazy.__init__(made, node)
        made._carries = carries and mode.gradients and node.dtype.is_float
        made._frozen = False
        made._mark = made.grad = None
        return made

    def _operand(self) -> Node:
        """The node that an operation reads: marked where gradients begin or end."""
        node = self.node
        if not self._carries:
            return node
        if self._mark is not None:
            return graph.detach(node, self._mark) if mode.gradients else node
        return node if mode.gradients else graph.detach(node)

    def _lift(self, value: Any) -> Self:
        """`value` as a tensor: arrays and lists go to this tensor's device."""
        if isinstance(value, Base):
            return value  # type: ignore[return-value]
        if is_scalar(value):
            return self._wrap(
                graph.const(_plain(value), dt.promote_scalar(self.dtype, _plain(value)))
            )
        return type(self)(value, device=self.node.device)

    def _map(self, node: Node) -> Self:
        """The result of an operation on this tensor alone."""
        return self._wrap(node, self._carries)

    # --- properties ---

    @property
    def shape(self) -> Shape:
        """Extents, outermost first."""
        return self._node.shape

    @property
    def dtype(self) -> DType:
        """The number type."""
        return self._node.dtype

    @property
    def device(self) -> str:
        """The device it lives on; for a constant expression, where it would be computed."""
        return self._node.device or devices.default()

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._node.shape)

    def size(self, axis: int | None = None) -> Any:
        """The shape, or one extent of it."""
        return self.shape if axis is None else self.shape[check_axis("size", axis, self.ndim)]

    def numel(self) -> int:
        """Number of elements."""
        return self._node.size

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return self.numel() * self.dtype.itemsize

    def element_size(self) -> int:
        """Bytes of one element."""
        return self.dtype.itemsize

    def dim(self) -> int:
        """Number of axes, as PyTorch calls it."""
        return self.ndim

    def is_floating_point(self) -> bool:
        """Whether the number type is a float."""
        return self.dtype.is_float

    def __len__(self) -> int:
        if not self.shape:
            raise ShapeError(
                message("len", "a tensor without axes", "at least one axis", "use item()")
            )
        return self.shape[0]

    def __hash__(self) -> int:
        return id(self)  # == is elementwise, so identity

    def __repr__(self) -> str:
        values = ""
        if (
            self._node.op in (Op.BUFFER, Op.CONST)
            and self.numel() <= _SMALL
            and capture.current() is None
        ):
            values = ", " + np.array2string(realize_values(self._node), separator=", ").replace(
                "\n", ""
            )
        grad = ", requires_grad=True" if self._carries else ""
        return f"Tensor({self.shape}, {self.dtype.name}, {self.device}{values}{grad})"

    # --- gradients ---

    @property
    def requires_grad(self) -> bool:
        """Whether gradients are computed for it: a leaf that asked for them, or made from such
        leaves.

        Assigning True makes a leaf: `backward` then adds to its `.grad`. Assigning False ends that,
        and keeps later assigned values from carrying gradients.
        """
        return self._carries

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if not value:
            if self._carries and self._mark is None:
                self.node = graph.detach(self.node)
            self._carries, self._mark, self._frozen = False, None, True
            return
        if not self.dtype.is_float:
            raise DTypeError(
                message(
                    "requires_grad",
                    f"a tensor of {self.dtype.name}",
                    "a float",
                    "cast with .float()",
                )
            )
        self._frozen = False
        if not self._carries:
            self._carries, self._mark = True, Mark(self)

    def requires_grad_(self, value: bool = True) -> Self:
        """Set `requires_grad`; returns the tensor itself."""
        self.requires_grad = value
        return self

    @property
    def is_leaf(self) -> bool:
        """Whether gradients end here: not made by an operation that carries them."""
        return not self._carries or (self._mark is not None and self._mark.origin is None)

    def retain_grad(self) -> None:
        """Let backward() fill `.grad` of this value too, though it is no leaf."""
        check_carries("retain_grad", self)
        if not self.is_leaf:
            self._mark = Mark(self, self.node if self._mark is None else self._mark.origin)

    def detach(self) -> Self:
        """The same value, a constant for gradients. No copy."""
        return self._wrap(
            graph.detach(self.node) if self._carries and self._mark is None else self.node
        )

    # --- values ---

    def realize(self, *others: Base) -> Self:
        """Compute this tensor and `others` together, now; returns this one.

        Inside of a jitted function, where values do not exist, it does nothing.
        """
        if capture.current() is None:
            realize_all([self, *others])
        return self

    def numpy(self) -> Array:
        """The values as a new NumPy array (bfloat16 as float32).

        Raises:
            CaptureError: inside of a jitted function.
        """
        capture.forbid("numpy", "return the tensor from the function and read it outside")
        if self.node.op is not Op.CONST:
            realize_all([self])
        return realize_values(self._node)

    def tolist(self) -> Any:
        """The values as nested lists of Python numbers."""
        capture.forbid("tolist", "return the tensor from the function and read it outside")
        return self.numpy().tolist()

    def item(self) -> Scalar:
        """The value of a tensor of one element, as a Python number.

        Raises:
            ShapeError: more or less than one element.
            CaptureError: inside of a jitted function.
        """
        capture.forbid("item", "return the tensor from the function and read it outside")
        if self.numel() != 1:
            raise ShapeError(
                message(
                    "item",
                    f"shape {self.shape}",
                    "one element",
                    "use .tolist() or .numpy(), or index one element",
                )
            )
        return self.numpy().reshape(()).item()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.numpy() if dtype is None else self.numpy().astype(dtype)

    def __bool__(self) -> bool:
        capture.forbid("bool", "use where(condition, a, b) instead of `if`")
        if self.numel() != 1:
            raise ShapeError(
                message(
                    "bool", f"shape {self.shape}", "one element", "reduce with .any() or .all()"
                )
            )
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype.is_float:
            raise DTypeError(
                message("index", self.dtype.name, "an integer tensor", "cast with .long()")
            )
        return int(self.item())

    def free(self) -> None:
        """Give the memory of the values back now; reading them later is an error."""
        if self._node.op is Op.BUFFER:
            self._node.arg.free("free() was called on it")

    # --- conversion ---

    def cast(self, dtype: DTypeLike) -> Self:
        """The values converted to `dtype`: floats to integers truncate and saturate, NaN becomes 0.

        >>> Tensor([1.7, -1.7]).cast("int32").tolist()
        [1, -1]
        """
        target = dt.parse(dtype)
        return self if target is self.dtype else self._map(cast_node(self._operand(), target))

    def bitcast(self, dtype: DTypeLike) -> Self:
        """The bits of each element read as a `dtype` of the same size; carries no gradient."""
        return self._wrap(graph.bitcast(self.node, dt.parse(dtype)))

    def float(self) -> Self:
        """Cast to float32."""
        return self.cast(dt.float32)

    def double(self) -> Self:
        """Cast to float64."""
        return self.cast(dt.float64)

    def half(self) -> Self:
        """Cast to float16."""
        return self.cast(dt.float16)

    def bfloat16(self) -> Self:
        """Cast to bfloat16."""
        return self.cast(dt.bfloat16)

    def int(self) -> Self:
        """Cast to int32."""
        return self.cast(dt.int32)

    def long(self) -> Self:
        """Cast to int64."""
        return self.cast(dt.int64)

    def bool(self) -> Self:
        """Whether each element is not zero."""
        return self.cast(dt.bool_)

    def to(self, target: Any) -> Self:
        """The values on another device, or as another dtype; itself if nothing changes.

        Raises:
            DeviceError: an unknown device.
        """
        if not isinstance(target, str):
            return self.cast(target)
        name = devices.canonical(target)
        if name == self.device:
            return self
        return self._map(graph.copy(self._operand(), name))

    def contiguous(self) -> Self:
        """The same values, in memory of their own: a kernel boundary on request."""
        return self._map(graph.contiguous(self._operand()))

    def clone(self) -> Self:
        """A new tensor of the same value; gradients flow through."""
        return self._map(self._operand())

    # --- assignment ---

    def assign(self, value: Any) -> Self:
        """Give this tensor the value of another; other tensors never change.

        A leaf stays a leaf. Otherwise the tensor carries gradients if the value does, unless it was
        made with requires_grad=False.

        Raises:
            ShapeError, DTypeError: value of another shape or type; nothing is converted silently.
            DeviceError: value on another device.
        """
        source = (
            value if isinstance(value, Base) else type(self)(value, self.dtype, self.node.device)
        )
        if source.shape != self.shape:
            raise ShapeError(
                message("assign", f"shape {source.shape}", f"{self.shape}", "expand it first")
            )
        if source.dtype is not self.dtype:
            raise DTypeError(
                message(
                    "assign",
                    source.dtype.name,
                    self.dtype.name,
                    f"cast with .cast({self.dtype.name!r})",
                )
            )
        _check_same_device("assign", source, self)
        self._set(source)
        return self

    def _set(self, source: Base) -> None:
        """Take over the value of `source` (same shape, dtype and device)."""
        node = source._operand()
        if self._frozen or (self._carries and self.is_leaf):
            node = graph.detach(node) if source._carries else node
        else:
            self._carries, self._mark = source._carries and mode.gradients, None
        self.node = node

    def replace(self, value: Base) -> Self:
        """Like `assign`, but the other's shape, type and device are taken over as well."""
        self._set(value)
        return self

    def __deepcopy__(self, memo: dict[Any, Any]) -> Self:
        copied = self._wrap(self.node)
        memo[id(self)] = copied
        if self._frozen or (self._carries and self.is_leaf):
            copied.requires_grad = self._carries
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        asked = self._carries if self._frozen or self.is_leaf else None
        return _unpickle, (type(self), self.numpy(), self.dtype, self.device, asked)


def _unpickle(
    cls: type[Base], values: Array, dtype: DType, device: str, asked: bool | None
) -> Base:
    return cls(values, dtype, device, requires_grad=asked)


def _check_same_device(name: str, a: Base, b: Base) -> None:
    if a.node.device is not None and b.node.device is not None and a.node.device != b.node.device:
        raise devices.DeviceError(
            message(
                name,
                f"tensors on {a.device} and {b.device}",
                "one device",
                f"move one with .to({b.device!r})",
            )
        )


def realize_values(node: Node) -> Array:
    """The values of a node as a new array; constants need no device."""
    if node.op is Op.CONST:
        with np.errstate(over="ignore"):
            value = dt.from_storage(dt.to_storage(np.asarray(node.arg), node.dtype), node.dtype)
        return np.full(node.shape, value)
    return realize.to_numpy(node)


def realize_all(tensors: Sequence[Base]) -> None:
    """Compute tensors together; each then has a BUFFER node, and remembers its graph if it carries
    gradients."""
    lazy = [t for t in tensors if t.node.op is not Op.BUFFER]
    if not lazy:
        return
    before = [t.node for t in lazy]
    for tensor, old, new in zip(lazy, before, realize.realize(before), strict=True):
        if tensor._carries and tensor._mark is None:
            tensor._mark = Mark(origin=old)
        tensor.node = new


def check_carries(name: str, tensor: Base) -> None:
    """Raise GradientError unless the tensor carries gradients."""
    if not tensor.requires_grad:
        raise GradientError(
            message(
                name,
                "a tensor that depends on no leaf with requires_grad=True",
                "a result of such leaves",
                "set requires_grad on the inputs, and mind no_grad() and detach()",
            )
        )
