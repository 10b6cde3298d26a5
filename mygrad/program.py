"""What codegen and runtime share, and the only thing they share: memory handles, targets, programs.

    Buffer   a piece of device memory, by size; the runtime owns what `memory` is
    Target   what a code generator must know of a machine
    Program  generated text, its arguments and how to launch it

Calling convention of a Program, for every runtime: first one pointer per entry of
`program.buffers`, in that order, then one int64 per entry of `program.params`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mygrad.dtype import DType
from mygrad.helpers import UNKNOWN, Location, round_up


class Buffer:
    """`size` elements of `dtype` on `device`. `memory` is None until the runtime has allocated it.

    Buffers are compared by identity. When the last reference goes, `release` gives the memory back.
    """

    __slots__ = ("__weakref__", "device", "dtype", "memory", "release", "size", "why_unreadable")

    def __init__(
        self,
        device: str,
        dtype: DType,
        size: int,
        memory: Any = None,
        release: Callable[[Any], None] | None = None,
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.size = size
        self.memory = memory
        self.release = release
        self.why_unreadable = ""  # why there is no memory, for the error of a reader

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.size * self.dtype.itemsize

    def free(self, why: str = "its memory was freed") -> None:
        """Give the memory back now; later reads are an error that says `why`."""
        if self.memory is not None and self.release is not None:
            self.release(self.memory)
        self.memory, self.release, self.why_unreadable = None, None, why

    def __del__(self) -> None:
        if self.memory is not None and self.release is not None:
            self.release(self.memory)

    def __repr__(self) -> str:
        state = "allocated" if self.memory is not None else "empty"
        return f"Buffer({self.device}, {self.dtype.name}, {self.size}, {state})"


@dataclass(frozen=True)
class Target:
    """A machine as a code generator sees it. Everything a schedule depends on is here, so that the
    key of a compiled kernel is (kernel, target)."""

    language: str  # "llvm", "opencl", "cuda", "numpy"
    name: str  # processor name, part of cache keys
    features: str = ""  # instruction-set features, part of cache keys
    units: tuple[str, ...] = ()  # what multiplies matrices: amx_bf16, amx_int8
    vector_bytes: int = 16  # width of a vector register; 4 where vectors are not worth it
    vector_registers: int = 16
    l1_bytes: int = 32 << 10
    l2_bytes: int = 1 << 20
    streams: int = 8  # rows in memory that are best read at a time: what is fetched ahead for each
    threads: int = 1


@dataclass(frozen=True)
class Program:
    """A generated kernel.

    `entry` is the function's name in `source`. `parallel` says that the program may be entered by
    several threads, or work-groups, that share its work; otherwise one thread runs it. `grid` and
    `block` are the launch extents of GPU-like targets. `kernel` is the loop nest it was generated
    from (used by the `numpy` language, which interprets it, and by anything that explains).
    """

    entry: str
    language: str
    source: str
    buffers: tuple[int, ...]  # kernel buffer slots in argument order
    params: tuple[str, ...] = ()  # names of run-time integers in argument order
    parallel: bool = False
    grid: tuple[int, ...] = (1,)
    block: tuple[int, ...] = (1,)
    kernel: Any = field(default=None, compare=False)
    stages: tuple[tuple[str, str], ...] = field(
        default=(), compare=False
    )  # (pass name, text) for DEBUG


UNIT, BLOCK = "unit", "block"  # the parameters of launches within Rounds
LOCAL = -1  # the slot of the memory that a thread has for itself there
PAGE = 4096  # bytes: the memories of threads do not share pages


def local_memory(nbytes: int, threads: int) -> int:
    """Bytes that so many threads take where each has `nbytes` of its own: there is one part more,
    for launches that all threads share."""
    return round_up(nbytes, PAGE) * (threads + 1)


@dataclass(frozen=True)
class Rounds:
    """Launches that one thread runs in order, again and again, with `local_bytes` of its own.

    `parts` are (launch, first, end): it runs in the blocks from `first` up to `end`. Threads share
    the units, and if blocks are `apart`, these too.
    """

    parts: tuple[tuple[Launch, int, int], ...]
    units: int
    blocks: int
    apart: bool
    local_bytes: int

    @property
    def shares(self) -> int:
        """Among how many threads the work could be divided."""
        return self.units * self.blocks if self.apart else self.units


@dataclass(frozen=True)
class Launch:
    """One program with its arguments: for each pointer (slot of the plan, byte offset).

    The executable may be Rounds of other launches: then the arguments are all that these touch.
    `params` names, for each parameter of the program, the one of the run that it is, or is its
    value. `touches`
    says of each pointer how many bytes the program touches there, and whether it writes
    them; empty if that is not known.
    """

    executable: Any
    arguments: tuple[tuple[int, int], ...]
    params: tuple[str | int, ...] = ()
    parallel: bool = False
    name: str = ""
    location: Location = UNKNOWN
    touches: tuple[tuple[int, bool], ...] = ()

    def values(self, params: Mapping[str, int]) -> tuple[int, ...]:
        """The parameters of the program in a run with these."""
        return tuple(p if isinstance(p, int) else params[p] for p in self.params)

    @property
    def executables(self) -> list[Any]:
        """What is run: one program, or those of the rounds."""
        if isinstance(self.executable, Rounds):
            return [part.executable for part, _, _ in self.executable.parts]
        return [self.executable]

    def with_executables(self, of: Callable[[Any], tuple[Any, bool]]) -> Launch:
        """The same launch of other executables. `of` also says whether several threads may enter
        one: of all that a launch knows, only that depends on the schedule of the kernel."""
        if not isinstance(self.executable, Rounds):
            executable, parallel = of(self.executable)
            return replace(self, executable=executable, parallel=parallel)
        parts = ((p.with_executables(of), first, end) for p, first, end in self.executable.parts)
        return replace(self, executable=replace(self.executable, parts=tuple(parts)))
