"""Memory between pages that nothing may touch, for finding kernels that leave their buffers.

    MYGRAD_GUARD=1    each buffer ends where an inaccessible page begins
    MYGRAD_GUARD=2    each buffer begins where an inaccessible page ends

An access beyond the end, or before the start, stops the process with a signal at the instruction
that makes it, and Python's `faulthandler` prints the name of the kernel and the user's line as if
the kernel were a function of it. Nothing is shared: every temporary has memory of its own, which
goes back to the system when it is released. Fresh memory is full of 0xFF bytes, which are NaN as
floats of any width and -1 as integers, so that what is read before it is written shows.

Kernels ask for no more than the alignment of an element, so the end may be put exactly. Only stores
past the caches want whole lines: large arrays end within a line of the page. What a
kernel does inside of its own scratch arrays is not seen here; the interpreter of statements in the
tests checks those.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import mmap
from collections.abc import Callable
from types import FunctionType

from mygrad.config import config
from mygrad.errors import DeviceError, message
from mygrad.helpers import round_up
from mygrad.program import Launch
from mygrad.runtime.cpu_memory import Allocator, Memory

POISON = 0xFF
LINE, LARGE = 64, 256 << 10  # bytes; arrays that are written past the caches are larger
BEFORE_THE_PAGE, BEHIND_THE_PAGE = 1, 2  # the two values of MYGRAD_GUARD
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
_LIBC.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_NOTHING, _READ_AND_WRITE = 0, mmap.PROT_READ | mmap.PROT_WRITE
_FAILED = ctypes.c_void_p(-1).value


class Guarded(Memory):
    """Memory inside of a mapping of its own: `length` bytes at `base`."""

    __slots__ = ("base", "length")

    def __init__(self, address: int, capacity: int, base: int, length: int) -> None:
        super().__init__(address, capacity)
        self.base = base
        self.length = length


class GuardedAllocator(Allocator):
    """Fresh memory between inaccessible pages for every request; nothing is kept."""

    def __init__(self, mode: int) -> None:
        super().__init__(limit=0)
        self.mode = mode

    def allocate(self, nbytes: int) -> Memory:
        """Exactly `nbytes` bytes, poisoned.

        Raises:
            DeviceError: the system gives no more memory, or no more mappings.
        """
        page = mmap.PAGESIZE
        inner = round_up(max(nbytes, 1), page)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        base = _LIBC.mmap(None, inner + 2 * page, _NOTHING, flags, -1, 0)
        start = 0 if base in (None, _FAILED) else base + page
        if not start or _LIBC.mprotect(start, inner, _READ_AND_WRITE):
            raise DeviceError(
                message(
                    "guarded cpu memory",
                    f"a refused request for {nbytes} bytes (errno {ctypes.get_errno()})",
                    "memory, and fewer mappings than the system allows",
                    "use smaller batches, or leave MYGRAD_GUARD off",
                )
            )
        ctypes.memset(start, POISON, inner)
        before = inner - nbytes
        if nbytes >= LARGE:
            before -= before % LINE
        address = start + before if self.mode == BEFORE_THE_PAGE else start
        return Guarded(address, nbytes, base, inner + 2 * page)

    def release(self, memory: Memory) -> None:
        """Give it back to the system: a later access stops the process."""
        assert isinstance(memory, Guarded)
        _LIBC.munmap(memory.base, memory.length)


def allocator() -> Allocator:
    """What MYGRAD_GUARD asks for."""
    if not config.MYGRAD_GUARD:
        return Allocator()
    if not faulthandler.is_enabled():
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # stderr may be no file
            faulthandler.enable()
    return GuardedAllocator(config.MYGRAD_GUARD)


def named(launch: Launch, run: Callable[[], None]) -> Callable[[], None]:
    """`run` in a frame with the name and the user's line of the launch: a traceback is all that a
    process still says when it dies."""
    code = (lambda run=run: run()).__code__.replace(
        co_name=launch.name or "kernel",
        co_filename=launch.location.file,
        co_firstlineno=max(launch.location.line, 1),
    )
    return FunctionType(code, {}, argdefs=(run,))
