"""Sorting on the host, by NumPy's vectorised sort and several threads.

    sort(x, out, axis, descending, threads)       the elements in order
    argsort(x, out, axis, descending, threads)    their places, equal elements in their first order

NaN counts as the greatest. NumPy sorts plain numbers an order of magnitude faster than it finds a
stable order, so that comes from sorting numbers too: key * 2^32 + place, where keys are integers in
the order of the elements. A long row is first divided at its quantiles, and each part sorted by a
thread; the result is the same for every number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
MANY = 1 << 17  # elements that are worth a second thread


def sort(x: Array, out: Array, axis: int, descending: bool, threads: int) -> None:
    """Write the elements of `x` along `axis`, in order, to `out`. Zeros of both signs are equal."""
    in_place = axis == x.ndim - 1 and out.flags.c_contiguous
    if in_place:
        np.copyto(out, x)
    rows = out.reshape(-1, x.shape[axis]) if in_place else _rows(x, axis)
    if x.dtype == np.float16:
        rows[np.isnan(rows)] = np.nan  # without a sign
        numbers = rows.view(np.int16)
        _turn(numbers)
        _sort_rows(numbers, threads)
        _turn(numbers)
    else:
        _sort_rows(rows, threads)
    if descending or not in_place:
        _put_rows(rows[:, ::-1] if descending else rows, out, axis)


def argsort(x: Array, out: Array, axis: int, descending: bool, threads: int) -> None:
    """Write the stable order of `x` along `axis` to `out`, which is int64.

    >>> order = np.empty(3, np.int64)
    >>> argsort(np.array([2.0, 1.0, 2.0]), order, 0, True, 1)
    >>> order.tolist()
    [0, 2, 1]
    """
    rows = _rows(x, axis)
    keys = _keys(rows)
    if descending:
        keys = ~keys
    if keys.itemsize == 8 or rows.shape[1] >= 1 << 32:  # no room for the place
        _put_rows(np.argsort(keys, kind="stable"), out, axis)
        return
    packed = keys.astype(np.uint64)
    packed <<= np.uint64(32)
    packed |= np.arange(rows.shape[1], dtype=np.uint64)
    _sort_rows(packed, threads)
    packed &= np.uint64((1 << 32) - 1)
    _put_rows(packed.view(np.int64), out, axis)


def _turn(bits: Array) -> None:
    """Between the bits of float16 and integers in their order, in place. NumPy 2.4 sorts these on
    all processors; of halves it loses some with AVX-512 on Zen 4."""
    bits ^= (bits >> 15) & 0x7FFF


def _rows(x: Array, axis: int) -> Array:
    """A copy in which the axis is the last of two."""
    moved = np.moveaxis(x, axis, -1)
    return np.array(moved, order="C").reshape(-1, x.shape[axis])


def _put_rows(rows: Array, out: Array, axis: int) -> None:
    moved = np.moveaxis(out, axis, -1)
    moved[...] = rows.reshape(moved.shape)


def _keys(x: Array) -> Array:
    """Unsigned integers in the order of the numbers, equal where those are.

    The bits of floats are in order but for the sign: those of negative ones count backwards.
    """
    bits = 8 * x.itemsize
    unsigned, signed = np.dtype(f"u{x.itemsize}"), np.dtype(f"i{x.itemsize}")
    if x.dtype.kind in "bu":
        return x.view(unsigned)
    top = unsigned.type(1 << (bits - 1))
    if x.dtype.kind == "i":
        return x.view(unsigned) ^ top
    plain = x + x.dtype.type(0)  # of -0.0 that is 0.0
    turned = (plain.view(signed) >> signed.type(bits - 1)).view(unsigned) | top
    turned ^= plain.view(unsigned)
    turned[np.isnan(x)] = np.iinfo(unsigned).max
    return turned


def _sort_rows(rows: Array, threads: int) -> None:
    """Sort each row, in place."""
    count, length = rows.shape
    if threads < 2 or rows.size < MANY:
        rows.sort(axis=-1)
    elif count >= threads:
        _at_once([part.sort for part in np.array_split(rows, threads)])
    else:
        ends = [length * n // threads for n in range(1, threads)]
        for row in rows:
            row.partition(ends)
            _at_once([part.sort for part in np.split(row, ends)])


def _at_once(calls: Sequence[Callable[[], None]]) -> None:
    others = [threading.Thread(target=call) for call in calls[1:]]
    for other in others:
        other.start()
    calls[0]()
    for other in others:
        other.join()
