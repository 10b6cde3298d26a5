"""The cost function, in the open: every home is chosen by comparing two sums of these terms.

LAUNCH, BYTE, CACHED, OPERATION, FLOP, TILED and BAND_CALL are nanoseconds, or nanoseconds per byte
or per operation and element, on one core of a current processor; all others are ratios, counts and
bytes.
Of times only the ratios matter; they are rounded from measurements of the CPU backend. The figures
of sums that are divided stand in split.py.
"""

from __future__ import annotations

from mygrad.helpers import prod
from mygrad.ops import Op

LAUNCH = 500.0  # one more kernel: its loops, its barrier
BYTE = 0.05  # moving a byte between memory and registers
CACHED = 0.01  # reading it again, from a cache
KEPT = 1.5  # writing what waits for other kernels, relative to other bytes: it takes up space
OPERATION = 0.03  # a simple operation on one element of a vector
REPEAT = 10.0  # operations that it costs to read an element that is repeated side by side
INDEX = 0.25  # of an operation on places alone, of which much is the same for a whole row
FLOP = 0.012  # a floating-point operation of a large product
TILE_REUSE = 16  # a register tile computes a shared operand once for about this many results
AGAIN = 4.0  # times that a sum may be computed to be one with the sum over it
AGAIN_HEAVY = 1.5  # and a product, such as those of windows that overlap
EPILOGUE_ROWS = 32  # rows a row kernel needs, so that threads can share them
ROW_SUM = 128  # times the work of a sum over rows: a product so large is better off without it
SMALL = 16384  # elements below which a kernel runs on one thread anyway
TINY = 1024  # elements up to which it makes no difference whether a value is stored
MAX_OPERATIONS = 300  # in the expression of one value: compile time grows with it
MAX_LEAVES = 24  # arrays read by the expression of one value: kernel arguments
PLACES = 4  # at which a kernel computes anew what it also stores; chains of those would explode
SIBLINGS = 8  # kernels that are looked at to find one that a reduction can join

WEIGHT: dict[Op, float] = {
    Op.CAST: 0.5,
    Op.BITCAST: 0.0,
    Op.NEG: 0.5,
    Op.DIV: 10.0,
    Op.SQRT: 12.0,
    Op.EXP: 10.0,
    Op.LOG: 10.0,
    Op.SIN: 12.0,
    Op.IDIV: 20.0,
    Op.MOD: 20.0,
    Op.GATHER: 3.0,
}

# sums over windows (winograd.py)
TILED = 0.1  # a byte of tiles that one kernel writes and the next one reads,
TILED_NEAR = 0.045  # and the same in a cache
NARROW = {"amx_bf16": 5.0, "dot_bf16": 1.9}  # times the speed of float32, by matrix unit
WORTH = 0.9  # of the time of the direct sum, that all may take together

# bands (bands.py)
BAND_BYTES = 32 << 20  # a temporary array from which on is too large to wait in memory
BAND_NEAR = 4  # an array of this part of it is better kept in the cache of a thread, if it can be,
BAND_AGAIN = 0.25  # and if, for each byte that is not stored, no more than this are read again,
BAND_WHOLE = 0.45  # or this, where blocks are of all units, and small
BAND_BLOCK = 16 << 20  # bytes of all local arrays of a block: some cache holds them
BAND_LOCAL = 2 << 20  # the same for one thread, where it runs the band by itself
BAND_SHARE = 64  # rows of its blocks at least: each copies what all rows of a unit read
BAND_LITTLE = 8  # times smaller than a large array are those that count for nothing beside it
BAND_LIGHT = 4  # operations for a byte, up to which a kernel waits for what it reads
BAND_CALL = 500.0  # running a kernel of a band for one more block
BAND_ALONE = 512 << 10  # bytes of an array that a kernel writes at a time, for others to read
BAND_ROWS = 8  # rows that a block has at least
RECOMPUTE_FLOPS = 80  # for a byte that need not wait, by which making it again is cheap

# panels (panels.py)
PANEL_TIMES = 4  # that an operand is read, from which on a copy for all readers pays
PANEL_ROWS = 256  # of a product: with more it copies the operand by itself, and hardly notices
PANEL_LEAST = 4096  # elements of an operand: others stay in the first cache as they are


def weight(op: Op) -> float:
    """Operations that one evaluation counts for."""
    return WEIGHT.get(op, 1.0)


def evaluations(own: int, space: int) -> float:
    """How often a value is computed inside loops over `space` points when it depends on axes with
    `own` points in all: a register tile shares it among TILE_REUSE neighbours."""
    return own * max(1.0, space / max(own, 1) / TILE_REUSE)


def computing(times: float, operations: float) -> float:
    """So many evaluations of an expression of so many operations."""
    return times * operations * OPERATION


def moving(times: float, nbytes: float, size: float | None = None) -> float:
    """Reading or writing `nbytes` so many times; all but the first `size` times from a cache."""
    first = times if size is None else min(times, size)
    return nbytes * (first * BYTE + (times - first) * CACHED)


def extents(axes: object) -> int:
    """Number of points of a collection of AXIS expressions."""
    return prod(a.arg[1] for a in axes)  # type: ignore[attr-defined]
