"""How number types look in LLVM text: in registers, in memory, and as constants.

    bool       i1 in registers, i8 (0 or 1) in memory
    intN       iN, signed and unsigned alike
    float16    half
    bfloat16   float in registers, always a value that bfloat16 holds; i16 in memory
    float32/64 float, double

A vector of `lanes` lanes is `<lanes x type>`; lanes 0 means a scalar.
"""

from __future__ import annotations

import struct
from functools import lru_cache

import numpy as np

from mygrad import dtype as dt
from mygrad.dtype import DType

_FLOAT = {dt.float16: "half", dt.bfloat16: "float", dt.float32: "float", dt.float64: "double"}
_FLOAT_BITS = {"half": "f16", "float": "f32", "double": "f64"}


def scalar(dtype: DType) -> str:
    """The register type of one value."""
    return _FLOAT[dtype] if dtype.is_float else f"i{dtype.bits}"


def memory(dtype: DType) -> str:
    """The type of one element in memory."""
    if dtype is dt.bfloat16:
        return "i16"
    return "i8" if dtype.kind == "b" else scalar(dtype)


def vector(element: str, lanes: int) -> str:
    """`lanes` elements, or the element itself for lanes 0."""
    return f"<{lanes} x {element}>" if lanes else element


def register(dtype: DType, lanes: int) -> str:
    """The register type of a value with so many lanes."""
    return vector(scalar(dtype), lanes)


def mangled(element: str, lanes: int) -> str:
    """The type as it appears in names of intrinsics: float, 16 -> v16f32."""
    name = _FLOAT_BITS.get(element, "p0" if element == "ptr" else element)
    return f"v{lanes}{name}" if lanes else name


@lru_cache(maxsize=4096)
def _float_bits(text: str, element: str) -> str:
    value = float(text)
    if element == "double":
        return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"
    with np.errstate(over="ignore"):
        if element == "half":
            return f"0xH{int(np.float16(value).view(np.uint16)):04X}"
        return f"0x{struct.unpack('<Q', struct.pack('<d', float(np.float32(value))))[0]:016X}"


def float_literal(value: float, element: str) -> str:
    """A float rounded to the element type, as exact bits."""
    return _float_bits(repr(value), element)


def literal(value: bool | int | float, dtype: DType) -> str:
    """A scalar constant of a number type."""
    if dtype.kind == "b":
        return "true" if value else "false"
    if dtype.is_int:
        return str(wrap(int(value), dtype))
    if dtype is dt.bfloat16:
        stored = dt.to_storage(np.asarray(value, np.float64).astype(np.float32), dtype)
        value = float(dt.from_storage(stored.reshape(1), dtype)[0])
    return float_literal(float(value), scalar(dtype))


def wrap(value: int, dtype: DType) -> int:
    """An integer wrapped around into the range of its type."""
    value &= (1 << dtype.bits) - 1
    return value - (1 << dtype.bits) if dtype.kind == "i" and value >> (dtype.bits - 1) else value


def splat(constant: str, element: str, lanes: int) -> str:
    """A scalar constant in every lane."""
    return f"splat ({element} {constant})" if lanes else constant


def lane_mask(active: int, lanes: int) -> str:
    """The constant mask whose first `active` lanes are on."""
    if active >= lanes:
        return "splat (i1 true)"
    return "<" + ", ".join(f"i1 {int(lane < active)}" for lane in range(lanes)) + ">"
