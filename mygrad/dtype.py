"""Number types, their promotion and their limits.

Promotion follows PyTorch: bool < integers < floats; two integers go to the smallest type that holds
both; an integer and a float go to that float; float16 and bfloat16 meet in float32. Python scalars
are weak: they never widen a tensor of the same or a higher category (`float16_tensor + 2.5` is
float16, `int8_tensor + 2.5` is the default float).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mygrad.errors import DTypeError, message


@dataclass(frozen=True, eq=False)
class DType:
    """A number type. There is one object per type, so identity is equality.

    `storage` is the NumPy type with the same bytes; it is `uint16` for bfloat16, which NumPy lacks.
    """

    name: str
    kind: str  # 'b' bool, 'i' signed, 'u' unsigned, 'f' float
    itemsize: int
    storage: np.dtype[Any]

    @property
    def bits(self) -> int:
        """Bits of the value: 1 for bool."""
        return 1 if self.kind == "b" else self.itemsize * 8

    @property
    def is_float(self) -> bool:
        """Whether this is a floating-point type."""
        return self.kind == "f"

    @property
    def is_int(self) -> bool:
        """Whether this is a signed or unsigned integer (bool is not)."""
        return self.kind in "iu"

    @property
    def min(self) -> int | float:
        """Smallest value: -inf for floats, 0 for bool."""
        if self.is_float:
            return float("-inf")
        return -(1 << (self.bits - 1)) if self.kind == "i" else 0

    @property
    def max(self) -> int | float:
        """Largest value: inf for floats, 1 for bool."""
        if self.is_float:
            return float("inf")
        return (1 << (self.bits - (self.kind == "i"))) - 1

    def __repr__(self) -> str:
        return f"mygrad.{self.name}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (parse, (self.name,))


def _numpy(name: str, kind: str) -> DType:
    dtype = np.dtype(name)
    return DType(name, kind, dtype.itemsize, dtype)


bool_ = _numpy("bool", "b")
int8, int16, int32, int64 = (_numpy(f"int{n}", "i") for n in (8, 16, 32, 64))
uint8, uint16, uint32, uint64 = (_numpy(f"uint{n}", "u") for n in (8, 16, 32, 64))
float16, float32, float64 = (_numpy(f"float{n}", "f") for n in (16, 32, 64))
bfloat16 = DType("bfloat16", "f", 2, np.dtype(np.uint16))

ALL: tuple[DType, ...] = (
    bool_,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
    float16,
    bfloat16,
    float32,
    float64,
)
INTS = tuple(d for d in ALL if d.is_int)
FLOATS = tuple(d for d in ALL if d.is_float)
_BY_NAME = {d.name: d for d in ALL} | {
    "half": float16,
    "float": float32,
    "double": float64,
    "int": int32,
    "long": int64,
}
_BY_NUMPY = {d.storage: d for d in ALL if d is not bfloat16}

default_float = float32
default_int = int64
index = int64  # the type of every index expression


def parse(value: DType | str | type | np.dtype[Any]) -> DType:
    """The DType named by a DType, a name, a NumPy dtype or `float`, `int`, `bool`.

    Raises:
        DTypeError: there is no such number type.
    """
    if isinstance(value, DType):
        return value
    if isinstance(value, str) and value in _BY_NAME:
        return _BY_NAME[value]
    if isinstance(value, type) and value in (float, int, bool):  # np.dtype("float64") == float
        return {float: default_float, int: default_int, bool: bool_}[value]
    if str(value) == "bfloat16":  # ml_dtypes
        return bfloat16
    try:  # NumPy takes None for float64
        found = None if value is None else _BY_NUMPY.get(np.dtype(value).newbyteorder("="))
    except TypeError:
        found = None
    if found is None:
        raise DTypeError(message("dtype", repr(value), ", ".join(d.name for d in ALL)))
    return found


def promote(a: DType, b: DType) -> DType:
    """The type in which `a` and `b` meet.

    >>> promote(uint8, int8).name, promote(float16, bfloat16).name, promote(int64, float16).name
    ('int16', 'float32', 'float16')

    Raises:
        DTypeError: uint64 with a signed integer: no type holds both.
    """
    if a is b or b.kind == "b":
        return a
    if a.kind == "b":
        return b
    if a.is_float or b.is_float:
        if a.is_float != b.is_float:
            return a if a.is_float else b
        if a.itemsize == b.itemsize:  # float16 and bfloat16
            return float32
        return a if a.itemsize > b.itemsize else b
    if a.kind == b.kind:
        return a if a.itemsize > b.itemsize else b
    signed, unsigned = (a, b) if a.kind == "i" else (b, a)
    for candidate in (int16, int32, int64):
        if candidate.itemsize > unsigned.itemsize and candidate.itemsize >= signed.itemsize:
            return candidate
    raise DTypeError(
        message(
            "promotion",
            f"{a.name} and {b.name}",
            "a type that holds both",
            "cast one side explicitly with .cast(...)",
        )
    )


def of_scalar(value: bool | int | float) -> DType:
    """The default type of a Python scalar."""
    if isinstance(value, (bool, np.bool_)):
        return bool_
    return default_int if isinstance(value, (int, np.integer)) else default_float


def promote_scalar(a: DType, value: bool | int | float) -> DType:
    """The type of `tensor op value` where the tensor has type `a` and `value` is weak."""
    b = of_scalar(value)
    order = {"b": 0, "i": 1, "u": 1, "f": 2}
    return a if order[a.kind] >= order[b.kind] else b


def to_storage(values: np.ndarray[Any, Any], dtype: DType) -> np.ndarray[Any, Any]:
    """Values as an array of `dtype.storage`; for bfloat16 the float32 values rounded to nearest
    even."""
    if dtype is not bfloat16:
        return np.asarray(values, dtype.storage)
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    nan = (bits & 0x7FFFFFFF) > 0x7F800000  # rounding could carry a NaN into infinity
    return np.where(nan, ((bits >> 16) | 0x40).astype(np.uint16), rounded)


def from_storage(stored: np.ndarray[Any, Any], dtype: DType) -> np.ndarray[Any, Any]:
    """The values of stored bytes as NumPy can compute on: bfloat16 becomes float32, the rest is as
    is."""
    if dtype is not bfloat16:
        return stored
    return (stored.astype(np.uint32) << 16).view(np.float32)
