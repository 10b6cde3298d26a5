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

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mygrad import capture, graph, realize
from mygrad import dtype as dt
from mygrad.capture import Lazy
from mygrad.dtype import DType
from mygrad.errors import DTypeError, GradientError, ShapeError, message
from mygrad.graph import Node
from mygrad.helpers import Shape
from mygrad.ops import Op
from mygrad.runtime import device as devices
from mygrad.tensor.data import source
from mygrad.tensor.mode import Mark, mode
from mygrad.tensor.nodes import (
    Array,
    DTypeLike,
    Scalar,
    cast_node,
    check_axis,
    is_scalar,
    plain_number,
)

if TYPE_CHECKING:
    from typing_extensions import Self

_SMALL = 64  # elements that repr shows
bool_ = bool  # the class of number types has a method of that name


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
            node = source(data, kind, place)
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
                graph.const(plain_number(value), dt.promote_scalar(self.dtype, plain_number(value)))
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
    """Raise GradientError unless the tensor carries gradients, DTypeError if it is none."""
    if not isinstance(tensor, Base):
        raise DTypeError(message(name, type(tensor).__name__, "a tensor"))
    if not tensor.requires_grad:
        raise GradientError(
            message(
                name,
                "a tensor that depends on no leaf with requires_grad=True",
                "a result of such leaves",
                "set requires_grad on the inputs, and mind no_grad() and detach()",
            )
        )
