"""Kernels: what the scheduler hands to the code generators, one fused loop nest each.

    Kernel = name
             axes     (AXIS, ...)            the output loops, outermost first as the scheduler suggests
             stores   (Store, ...)           in the order of their effect
             buffers  (BufferInfo, ...)      what LOAD and Store slots mean; index in this tuple = slot
             params   ((name, low, high), ...)   run-time integers
    Store  = (slot, index, value[, valid], mode)

Meaning. For every point of the axes free in a store (a subset of `kernel.axes`), `buffer[index] = value`
(or combined with the old content, by `mode`) where `valid`. A store runs where its free axes are bound, so
stores over fewer axes (row statistics next to a row) are allowed.

Invariants, checked by `verify`:
- the free axes of every store are among `kernel.axes`; bound axes of REDUCE and SCAN are not;
- indices are flat element numbers inside the buffer wherever `valid` holds and the surrounding LOAD's
  `valid` holds;
- two stores never write the same element, and with mode "set" no two points of one store do, unless
  `ordered_axes` of that store names the axes that must run in order (scatter);
- a buffer that is stored to may be loaded only at exactly the index of the store (in-place elementwise), or
  not at all, except the scatter target, which is updated in place by mode;
- SCAN(op, axis, bound) may only occur where `axis` is one of `kernel.axes`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mygrad.dtype import DType
from mygrad.expr import Expr
from mygrad.helpers import UNKNOWN, Location


@dataclass(frozen=True)
class BufferInfo:
    """A kernel argument: `size` elements of `dtype`; `written` if some store targets it."""

    dtype: DType
    size: int
    written: bool = False


@dataclass(frozen=True)
class Store:
    """`buffer[index] = value` where `valid`; `mode` is one of ops.SCATTER_MODES.

    `ordered_axes` are the axes whose iterations may hit the same element and therefore must run
    sequentially, in order, inside of all others.
    """

    slot: int
    index: Expr
    value: Expr
    valid: Expr | None = None
    mode: str = "set"
    ordered_axes: tuple[Expr, ...] = ()


@dataclass(frozen=True)
class Kernel:
    """One fused loop nest. `reason` and `location` explain it and are not part of its identity."""

    name: str
    axes: tuple[Expr, ...]
    stores: tuple[Store, ...]
    buffers: tuple[BufferInfo, ...]
    params: tuple[tuple[str, int, int], ...] = ()
    reason: str = field(default="", compare=False)
    location: Location = field(default=UNKNOWN, compare=False)
    flops: int = field(default=0, compare=False)
    bytes: int = field(default=0, compare=False)
