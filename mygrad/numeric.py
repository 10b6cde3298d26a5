"""The meaning of the alu operations in NumPy, one row per operation.

Both interpreters (of the graph and of kernels) stand on these tables, so this file *is* the
executable form of the rules in `ops.py`. It works on *value* arrays: what `dtype.from_storage`
returns, which is the storage type itself except that bfloat16 values are float32 numbers with 8
bits of precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mygrad import dtype as dt
from mygrad.dtype import DType
from mygrad.errors import InternalError
from mygrad.ops import Op

Array = np.ndarray[Any, Any]


def value_dtype(dtype: DType) -> np.dtype[Any]:
    """The NumPy type of the value arrays of `dtype`."""
    return np.dtype(np.float32) if dtype is dt.bfloat16 else dtype.storage


def round_to(values: Array, dtype: DType) -> Array:
    """Numbers rounded (never wrapped or saturated) to the value array of a float `dtype`."""
    return dt.from_storage(dt.to_storage(values, dtype), dtype)


# --- rows ---------------------------------------------------------------------------------------


def _shift_in_range(x: Array, count: Array) -> tuple[Array, Array]:
    bits = x.dtype.itemsize * 8
    fits = (count >= 0) & (count < bits)
    return fits, np.where(fits, count, 0).astype(x.dtype)


def _shift_left(x: Array, count: Array) -> Array:
    fits, safe = _shift_in_range(x, count)
    return np.where(fits, np.left_shift(x, safe), np.zeros_like(x))


def _shift_right(x: Array, count: Array) -> Array:
    fits, safe = _shift_in_range(x, count)
    far = np.where(x < 0, x.dtype.type(-1) if x.dtype.kind == "i" else 0, 0).astype(x.dtype)
    return np.where(fits, np.right_shift(x, safe), far)


def _floor_divide(a: Array, b: Array) -> Array:
    zero, one = a.dtype.type(0), a.dtype.type(1)
    return np.where(b == 0, zero, np.floor_divide(a, np.where(b == 0, one, b)))


def _modulo(a: Array, b: Array) -> Array:
    zero, one = a.dtype.type(0), a.dtype.type(1)
    return np.where(b == 0, zero, np.remainder(a, np.where(b == 0, one, b)))


ALU: dict[Op, Callable[..., Any]] = {
    Op.NEG: np.negative,
    Op.SQRT: np.sqrt,
    Op.EXP: np.exp,
    Op.LOG: np.log,
    Op.SIN: np.sin,
    Op.TRUNC: np.trunc,
    Op.ADD: np.add,  # "or" on bool
    Op.MUL: np.multiply,  # "and" on bool
    Op.DIV: np.divide,
    Op.MAX: np.maximum,  # NaN if either side is; "or" on bool
    Op.IDIV: _floor_divide,
    Op.MOD: _modulo,
    Op.LT: np.less,
    Op.EQ: np.equal,
    Op.AND: np.bitwise_and,
    Op.OR: np.bitwise_or,
    Op.XOR: np.bitwise_xor,
    Op.SHL: _shift_left,
    Op.SHR: _shift_right,
    Op.WHERE: np.where,
}


def cast(x: Array, dtype: DType) -> Array:
    """CAST: to bool `x != 0`; float to integer truncates and saturates, NaN gives 0; integers wrap;
    floats round to nearest even (to bfloat16 by way of float32, as `dtype.to_storage` does)."""
    if dtype is dt.bool_:
        return x != 0
    if dtype.is_float:
        return round_to(x, dtype)
    if x.dtype.kind != "f":
        return x.astype(dtype.storage)
    whole = np.trunc(x.astype(np.float64))
    above, below = whole >= float(2 ** (dtype.bits - (dtype.kind == "i"))), whole < float(dtype.min)
    inside = ~(above | below | np.isnan(whole))
    result = np.where(inside, whole, 0.0).astype(dtype.storage)
    result = np.where(above, dtype.storage.type(dtype.max), result)
    return np.where(below, dtype.storage.type(dtype.min), result)


def bitcast(x: Array, dtype: DType) -> Array:
    """BITCAST: the same bytes as another type of the same size (a nonzero byte as bool is true).

    Float32 values seen as a type of two bytes are bfloat16: only so can the sizes agree.
    """
    source = dt.bfloat16 if x.dtype == np.float32 and dtype.itemsize == 2 else dt.parse(x.dtype)
    if source.itemsize != dtype.itemsize:
        raise InternalError(f"bitcast: {source.name} and {dtype.name} differ in size")
    stored = np.ascontiguousarray(dt.to_storage(x, source)).reshape(x.shape)
    if dtype is dt.bool_:
        return stored.view(np.uint8) != 0
    return dt.from_storage(stored.view(dtype.storage), dtype)


CONVERT: dict[Op, Callable[[Array, DType], Array]] = {Op.CAST: cast, Op.BITCAST: bitcast}


def evaluate_alu(op: Op, operands: Sequence[Array], dtype: DType) -> Array:
    """One alu operation on value arrays that broadcast; `dtype` is the type of the result.

    >>> evaluate_alu(Op.IDIV, [np.int32(-7), np.int32(2)], dt.int32)
    array(-4, dtype=int32)
    """
    arrays = [np.asarray(x) for x in operands]
    with np.errstate(all="ignore"):
        if op in CONVERT:
            return np.asarray(CONVERT[op](arrays[0], dtype))
        result = np.asarray(ALU[op](*arrays))
        return round_to(result, dtype) if dtype is dt.bfloat16 else result


# --- combining along axes -----------------------------------------------------------------------

COMBINE: dict[Op, np.ufunc] = {Op.ADD: np.add, Op.MUL: np.multiply, Op.MAX: np.maximum}


def identity(op: Op, dtype: DType) -> bool | int | float:
    """The value that changes nothing: 0 for ADD, 1 for MUL, the smallest value for MAX."""
    value = {Op.ADD: 0, Op.MUL: 1, Op.MAX: dtype.min}[op]
    return bool(value) if dtype is dt.bool_ else value


def _wide(x: Array, dtype: DType) -> Array:
    # accumulated in float64 and rounded once: an oracle is more exact than what it judges
    return x.astype(np.float64) if dtype.is_float else x


def reduce(op: Op, x: Array, axes: tuple[int, ...], dtype: DType) -> Array:
    """Combine over `axes`, which disappear; the identity where there is nothing to combine."""
    with np.errstate(all="ignore"):
        wide = _wide(x, dtype)
        result = COMBINE[op].reduce(wide, axis=axes, dtype=wide.dtype, initial=identity(op, dtype))
        return round_to(np.asarray(result), dtype)


def scan(op: Op, x: Array, axis: int, dtype: DType) -> Array:
    """Inclusive prefix combination along `axis`."""
    with np.errstate(all="ignore"):
        wide = _wide(x, dtype)
        return round_to(COMBINE[op].accumulate(wide, axis=axis, dtype=wide.dtype), dtype)


# --- scatter ------------------------------------------------------------------------------------

SCATTER: dict[str, Callable[[Array, Array], Array]] = {
    "set": lambda old, new: new,
    "add": np.add,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
}


def scatter(cells: Array, index: Array, values: Array, mode: str, dtype: DType) -> None:
    """cells[index[i]] = cells[index[i]] `mode` values[i] for i in order, in place; all are flat.

    Updates of equal index are done in rounds, the k-th of each index in round k, so that every
    update rounds to `dtype` on its own.
    """
    order = np.argsort(index, kind="stable")
    sorted_index = index[order]
    first = np.concatenate(([0], np.flatnonzero(np.diff(sorted_index)) + 1)).astype(np.int64)
    ends = np.concatenate((first[1:], [len(index)]))
    position, combine = first[first < ends], SCATTER[mode]
    ends = ends[first < ends]
    with np.errstate(all="ignore"):
        while position.size:
            points = order[position]
            cells[index[points]] = round_to(combine(cells[index[points]], values[points]), dtype)
            more = position + 1 < ends
            position, ends = position[more] + 1, ends[more]
