"""From Python and NumPy data to nodes."""

from __future__ import annotations

from typing import Any

import numpy as np

from mygrad import dtype as dt
from mygrad import graph, numeric, realize
from mygrad.capture import Lazy, forbid
from mygrad.dtype import DType
from mygrad.errors import DTypeError, ShapeError, message
from mygrad.graph import Node
from mygrad.runtime import device as devices
from mygrad.tensor.nodes import Array, is_scalar, plain_number


def _array_of(data: Any) -> Array:
    """Nested lists, NumPy arrays and whatever NumPy understands, as an array of numbers."""
    weak = isinstance(data, (list, tuple, range))
    if weak and any(isinstance(x, Lazy) for x in data):
        forbid("Tensor([tensors])", "use Tensor.stack, which also carries gradients")
        data = [realize.to_numpy(x.node) if isinstance(x, Lazy) else x for x in data]
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


def source(data: Any, dtype: DType | None, device: str | None) -> Node:
    """The node of new data: a constant for a number, else a buffer."""
    if is_scalar(data):
        kind = dt.parse(data.dtype) if isinstance(data, np.generic) else dt.of_scalar(data)
        value = plain_number(data)
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
