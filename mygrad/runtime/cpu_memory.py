"""Memory of the cpu device, aligned, and kept for reuse when it is released.

The first touch of fresh pages costs ten times what writing to used ones does, so released memory
waits in lists by size class until it is asked for again. What waits is bounded.
"""

from __future__ import annotations

import ctypes
from collections import deque
from contextlib import suppress
from functools import lru_cache

from mygrad.errors import DeviceError, message

ALIGNMENT = 64
_HUGE = 2 << 20
_MADV_HUGEPAGE = 14
_LIBC = ctypes.CDLL(None)
_LIBC.free.argtypes = (ctypes.c_void_p,)
_LIBC.free.restype = None
_LIBC.posix_memalign.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)


class Memory:
    """`capacity` bytes at `address`."""

    __slots__ = ("address", "capacity")

    def __init__(self, address: int, capacity: int) -> None:
        self.address = address
        self.capacity = capacity


@lru_cache(maxsize=1024)
def size_class(nbytes: int) -> int:
    """The capacity that serves a request: eight classes between powers of two, so that at most an
    eighth is wasted.

    >>> size_class(0), size_class(65), size_class(1 << 20), size_class((1 << 20) + 1)
    (64, 128, 1048576, 1179648)
    """
    nbytes = max(nbytes, ALIGNMENT)
    step = max(1 << (nbytes - 1).bit_length() - 4, ALIGNMENT)
    return -(-nbytes // step) * step


class Allocator:
    """Memory by size class; at most `limit` released bytes are kept.

    `release` may be called by the garbage collector at any point, inside of `allocate` too, so
    the lists are deques, whose operations are atomic, and there is no lock.
    """

    def __init__(self, limit: int = 4 << 30) -> None:
        self.limit = limit
        self.kept = 0
        self._free: dict[int, deque[Memory]] = {}

    def allocate(self, nbytes: int) -> Memory:
        """At least `nbytes` bytes."""
        capacity = size_class(nbytes)
        waiting = self._free.get(capacity)
        if waiting:
            try:
                memory = waiting.pop()
            except IndexError:  # another thread was faster
                pass
            else:
                self.kept -= capacity
                return memory
        return _fresh(capacity) or self._after_trim(capacity)

    def _after_trim(self, capacity: int) -> Memory:
        self.trim()
        memory = _fresh(capacity)
        if memory is None:
            raise DeviceError(
                message(
                    "cpu memory",
                    f"a request for {capacity} bytes",
                    "free memory",
                    "use smaller batches, or free tensors",
                )
            )
        return memory

    def release(self, memory: Memory) -> None:
        """Take memory back."""
        if self.kept + memory.capacity > self.limit:
            _LIBC.free(memory.address)
            return
        self.kept += memory.capacity
        self._free.setdefault(memory.capacity, deque()).append(memory)

    def trim(self) -> None:
        """Give all that waits back to the system."""
        for waiting in list(self._free.values()):
            with suppress(IndexError):
                while True:
                    memory = waiting.pop()
                    self.kept -= memory.capacity
                    _LIBC.free(memory.address)


def _fresh(capacity: int) -> Memory | None:
    if capacity >= 1 << 62:  # more than an address has bits
        return None
    address = ctypes.c_void_p()
    huge = capacity >= 2 * _HUGE
    if _LIBC.posix_memalign(ctypes.byref(address), _HUGE if huge else ALIGNMENT, capacity):
        return None
    if address.value is None:
        return None
    if huge and hasattr(_LIBC, "madvise"):  # one page fault instead of 512; only advice
        _LIBC.madvise(address, ctypes.c_size_t(capacity), _MADV_HUGEPAGE)
    return Memory(address.value, capacity)
