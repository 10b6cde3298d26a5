"""Other number types, other devices, and assignment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mygrad import dtype as dt
from mygrad import graph
from mygrad.dtype import DType
from mygrad.errors import DTypeError, ShapeError, message
from mygrad.runtime import device as devices
from mygrad.tensor.base import Base
from mygrad.tensor.mode import mode
from mygrad.tensor.nodes import Array, DTypeLike, cast_node

if TYPE_CHECKING:
    from typing_extensions import Self


class Conversion(Base):
    """cast, to, contiguous, assign and copies."""

    __slots__ = ()

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
