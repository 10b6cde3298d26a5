"""The cpu device: LLVM compiles, one native program launches.

    CPU.compile    LLVM text -> object file
    CPU.load       object files -> functions, all in one engine
    CPU.sequence   launches -> a native plan; `run` is one call, whatever the number of launches

A pool of native threads, started at the first parallel sequence, enters the plan with the caller
(native.py). Memory is kept when it is released: pages that were touched before are ten times
cheaper.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import threading
import time
import weakref
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np

from mygrad.config import config
from mygrad.errors import InternalError, message
from mygrad.helpers import content_key, round_up
from mygrad.program import BLOCK, LOCAL, UNIT, Launch, Program, Rounds, Target
from mygrad.runtime import guard, native
from mygrad.runtime.base import LaunchSequence, Runtime
from mygrad.runtime.cache import default_cache
from mygrad.runtime.cpu_memory import Memory
from mygrad.runtime.cpu_target import host_target
from mygrad.runtime.llvm import Compiler

_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
_RUN = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
_START = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)
_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
_STOP = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)


class Executable(NamedTuple):
    """A loaded program."""

    program: Program
    address: int


class CPU(Runtime):
    """This processor.

    Raises:
        MissingPackageError: llvmlite is not installed.
    """

    name = "cpu"

    def __init__(self) -> None:
        self._compiler = Compiler()
        self.target: Target = host_target(self._compiler.name, self._compiler.features, _threads())
        self._memory = guard.allocator()
        self.guarded = isinstance(self._memory, guard.GuardedAllocator)
        self._pool: Pool | None = None
        self.lock = threading.RLock()
        _alive.add(self)

    # --- memory --------------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> Memory:
        """Memory at a multiple of 64 bytes, not initialised.

        Raises:
            DeviceError: there is no memory left.
        """
        return self._memory.allocate(nbytes)

    def release(self, memory: Memory) -> None:
        """Keep the memory for the next allocation of about its size."""
        self._memory.release(memory)

    def write(self, memory: Memory, data: np.ndarray[Any, Any]) -> None:
        """Copy a contiguous host array to the start of the memory."""
        _check_copy(memory, data)
        ctypes.memmove(memory.address, data.ctypes.data, data.nbytes)

    def read(self, memory: Memory, out: np.ndarray[Any, Any]) -> None:
        """Copy the start of the memory into a contiguous host array."""
        _check_copy(memory, out)
        ctypes.memmove(out.ctypes.data, memory.address, out.nbytes)

    def view(self, memory: Memory, dtype: np.dtype[Any], size: int) -> np.ndarray[Any, Any]:
        """The start of the memory as a host array that shares it, while the memory is held."""
        data = (ctypes.c_char * (size * dtype.itemsize)).from_address(memory.address)
        return np.ctypeslib.as_array(data).view(dtype)

    # --- programs ------------------------------------------------------------------------------

    def compile(self, program: Program) -> bytes:
        """The object file of a program.

        Raises:
            CompileError: LLVM refused the text.
        """
        return self._compiler.compile(program.source, program.entry)

    def disassemble(self, program: Program) -> str:
        """The machine code as assembly text."""
        return self._compiler.assembly(program.source, program.entry)

    def load(self, programs: Sequence[tuple[Program, bytes]]) -> list[Executable]:
        """Executables, in order. Programs of one name and different text get engines of their
        own."""
        groups: list[dict[str, tuple[Program, bytes]]] = []
        for program, binary in programs:
            for group in groups:
                same = group.setdefault(program.entry, (program, binary))
                if same[1] == binary:
                    break
            else:
                groups.append({program.entry: (program, binary)})
        found: dict[tuple[str, bytes], int] = {}
        for group in groups:
            addresses = self._compiler.load([b for _, b in group.values()], list(group))
            for (entry, (_, binary)), address in zip(group.items(), addresses, strict=True):
                found[entry, binary] = address
        return [Executable(p, found[p.entry, binary]) for p, binary in programs]

    def sequence(self, launches: Sequence[Launch]) -> NativeSequence:
        """Prepare launches to be run by one native call."""
        return NativeSequence(self, launches)

    def synchronize(self) -> None:
        """Nothing to wait for: `run` returns when the work is done."""

    def pool(self) -> Pool:
        """The pool of threads, started when it is first asked for, and again in a forked child."""
        with self.lock:
            if self._pool is None or self._pool.process != os.getpid():
                self._pool = Pool(self._native(), self.target.threads)
                # the threads run code that dies with the compiler; also at the end of the process
                weakref.finalize(self, self._pool.stop)
            return self._pool

    def _native(self) -> list[int]:
        """The addresses of the native program's functions; compiled once per machine."""
        cache, text, compiler = default_cache(), native.source(), self._compiler
        key = content_key("native", text, compiler.name, compiler.features)
        binary = cache.get(key)
        if binary is None:
            binary = compiler.compile(text, "native")
            cache.put(key, binary)
        names = ["mygrad_run", "mygrad_start", "mygrad_stop", "mygrad_rounds"]
        return compiler.load([binary], names)


_alive: weakref.WeakSet[CPU] = weakref.WeakSet()


def _after_fork() -> None:
    for cpu in _alive:
        cpu.lock = threading.RLock()  # another thread may have held it, and does not exist here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _threads() -> int:
    if config.MYGRAD_THREADS:
        return min(config.MYGRAD_THREADS, native.MAX_THREADS)
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        count = os.cpu_count() or 1
    return min(count, native.MAX_THREADS)


def _check_copy(memory: Memory, array: np.ndarray[Any, Any]) -> None:
    if not array.flags.c_contiguous or array.nbytes > memory.capacity:
        raise InternalError(
            message(
                "copy",
                f"{array.nbytes} bytes, contiguous: {array.flags.c_contiguous}",
                f"at most {memory.capacity} contiguous bytes",
            )
        )


class Pool:
    """The native program, and the threads that run it with the caller."""

    def __init__(self, functions: Sequence[int], threads: int) -> None:
        self.process = os.getpid()
        self.entry = _RUN(functions[0])
        self.rounds = functions[3]
        self._stop = _STOP(functions[2])
        self._context = ctypes.create_string_buffer(native.CONTEXT_BYTES + 64)
        aligned = (ctypes.addressof(self._context) + 63) & ~63
        self.context = ctypes.c_void_p(aligned)
        self.slept = ctypes.c_int64.from_address(aligned + 8 * native.WORDS["slept"])
        self._wanted, self._start = threads, _START(functions[1])
        self.threads: ctypes.c_int64 | None = None
        self.one = ctypes.c_int64(1)

    def start(self) -> ctypes.c_int64:
        """Create the threads; how many there are, this one included."""
        if self.threads is None:
            # signals are for the threads of Python, but for faults, which cannot wait
            blocked = signal.valid_signals() - _FAULTS
            before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
            try:
                count = self._start(self.context, self._wanted)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self.threads = ctypes.c_int64(count)
        return self.threads

    def stop(self) -> None:
        """End the threads and wait until they are gone."""
        if self.threads is not None and self.process == os.getpid():
            self._stop(self.context, self.threads)
        self.threads = None


class Team:
    """Whether the caller runs a sequence alone. On a busy machine threads can wait for each other,
    at each barrier, for a slice of time of somebody else: hundreds of times what the work takes.

    When two runs in a row have slept at barriers so often that waiting may have been most of their
    time, the next is done alone; if that was clearly faster, so are those of the following
    milliseconds, twice as many each time. It is time that counts and not runs: a machine that was
    busy for a moment must not slow a long program down.
    """

    FIRST, MOST = 0.004, 0.5  # seconds for which a decision stands
    CLEARLY = 0.8  # of the time of the run with all threads
    SLICE = 1e-3  # seconds that a sleep at a barrier can take when others want the processor

    def __init__(self) -> None:
        self.alone = False
        self._together: float | None = None  # seconds of the run that is compared with
        self._waited = False  # in the run before
        self._until = 0.0  # when the decision ends
        self._pause = self.FIRST

    def after(self, seconds: float, sleeps: int, now: float) -> None:
        """Tell how the last run went: its time, how often a thread slept at a barrier, and when it
        ended."""
        waited, before = sleeps * self.SLICE > seconds / 2, self._waited
        self._waited = waited
        if self._together is not None:
            self.alone = seconds < self.CLEARLY * self._together
            self._together, self._until = None, now + self._pause
            self._pause = min(2 * self._pause, self.MOST)
        elif now < self._until:
            pass
        elif self.alone:
            self.alone = False  # look again
        elif waited and before:
            self.alone, self._together = True, seconds
        elif not waited:
            self._pause = self.FIRST


class NativeSequence(LaunchSequence):
    """Launches as a native plan: steps, and a table from which their arguments are filled in."""

    def __init__(self, runtime: CPU, launches: Sequence[Launch]) -> None:
        self._runtime, self._launches = runtime, tuple(launches)
        self._local = max(map(_local_bytes, launches), default=0) * runtime.target.threads
        self._slots = 1 + max((slot for one in launches for slot, _ in one.arguments), default=-1)
        self._written = {
            a.slot for one in launches for a in _accesses(one) if a.written and a.start < a.end
        }
        self._params = tuple(dict.fromkeys(name for one in launches for name in one.params))
        self.parallel = runtime.target.threads > 1 and any(one.parallel for one in launches)
        size = self._slots + len(self._params)
        self._values = ctypes.create_string_buffer(8 * (size + _Plan.OWN))
        self._pack = struct.Struct(f"{self._slots}Q{len(self._params)}q").pack_into
        self._local_address = ctypes.c_uint64.from_buffer(self._values, 8 * (size + _Plan.LOCAL))
        self._values_pointer = ctypes.c_void_p(ctypes.addressof(self._values))
        self._plan = self._made(self._launches, True, runtime.target.threads)
        self._careful: _Plan | None = None  # for memories that overlap
        self._singles: list[_Plan] | None = None
        self._pool: Pool | None = None
        self._team = Team()
        self._last: list[int] = []
        self._distinct = True

    def run(self, memories: Sequence[Any], params: Mapping[str, int]) -> None:
        """Run all launches in order; returns when they are done.

        Raises:
            InternalError: fewer memories than slots, or a missing parameter.
        """
        if self._runtime.guarded:  # one by one, so that a fault has the name of a kernel
            self.time(memories, params)
            return
        with self._runtime.lock, self._local_memory():
            self._fill(memories, params)
            plan = self._plan if self._distinct else self._careful_plan()
            if not self.parallel:
                self._enter(plan, False)
                return
            slept = self._pool_now(True).slept
            before, begin = slept.value, time.perf_counter()
            self._enter(plan, not self._team.alone)
            end = time.perf_counter()
            self._team.after(end - begin, slept.value - before, end)

    def time(self, memories: Sequence[Any], params: Mapping[str, int]) -> list[float]:
        """Run launch by launch; the seconds each took."""
        if self._singles is None:
            threads = self._runtime.target.threads
            self._singles = [self._made((one,), True, threads) for one in self._launches]
        seconds = []
        with self._runtime.lock, self._local_memory():
            self._fill(memories, params)
            for plan, launch in zip(self._singles, self._launches, strict=True):
                parallel = self.parallel and launch.parallel
                self._pool_now(parallel)  # not its start is to be measured
                enter = guard.named(launch, partial(self._enter, plan, parallel))
                begin = time.perf_counter()
                enter()
                seconds.append(time.perf_counter() - begin)
        return seconds

    def _fill(self, memories: Sequence[Any], params: Mapping[str, int]) -> None:
        addresses = [memory.address for memory in memories]
        if addresses == self._last and not self._params:
            return
        try:
            self._pack(self._values, 0, *addresses, *[params[name] for name in self._params])
        except (struct.error, KeyError) as error:
            raise InternalError(
                message(
                    "launch",
                    f"{len(addresses)} memories and parameters {sorted(params)} ({error})",
                    f"{self._slots} memories and {list(self._params)}",
                )
            ) from None
        if addresses != self._last:
            self._last = addresses
            self._distinct = len(set(addresses)) == len(addresses) or self._are_apart(addresses)

    def _are_apart(self, addresses: Sequence[int]) -> bool:
        """Whether no slot that is written is the memory of another one."""
        count = Counter(addresses)
        return all(count[addresses[slot]] == 1 for slot in self._written)

    def _careful_plan(self) -> _Plan:
        if self._careful is None:
            self._careful = self._made(self._launches, False, 1)
        return self._careful

    def _made(self, launches: Sequence[Launch], apart: bool, threads: int) -> _Plan:
        rounds = self._runtime.pool().rounds if any(map(_local_bytes, launches)) else 0
        return _Plan(launches, self._slots, self._params, apart, threads, rounds)

    @contextmanager
    def _local_memory(self) -> Iterator[None]:
        """Memory for each thread's own, while the launches run."""
        if not self._local:
            yield
            return
        memory = self._runtime.allocate(self._local)
        try:
            self._local_address.value = memory.address
            yield
        finally:
            self._runtime.release(memory)

    def _pool_now(self, parallel: bool) -> Pool:
        pool = self._pool
        if pool is None or pool.process != os.getpid():
            pool = self._pool = self._runtime.pool()
        if parallel and pool.threads is None:
            pool.start()
        return pool

    def _enter(self, plan: _Plan, parallel: bool) -> None:
        pool = self._pool_now(parallel)
        threads = pool.threads if parallel else pool.one
        pool.entry(pool.context, plan.pointer, self._values_pointer, threads)


class _Plan:
    """The native form of launches; see native.py. `apart`: different slots are different memory;
    then `threads` may share serial launches. `rounds`: the native function that runs Rounds.

    The table of values that arguments come from is: memories, parameters, and then two of its own,
    the address of the threads' local memory and a zero for what is known already.
    """

    LOCAL, ZERO, OWN = 0, 1, 2

    def __init__(
        self,
        launches: Sequence[Launch],
        slots: int,
        params: tuple[str, ...],
        apart: bool,
        threads: int = 1,
        rounds: int = 0,
    ) -> None:
        self._own = slots + len(params)
        self._number = {name: slots + n for n, name in enumerate(params)}
        self._about: list[Any] = []  # of rounds, kept as long as the plan
        launches = [f for one in launches for f in _flat(one, threads if apart else 0)]
        table: list[int] = []
        starts: list[int] = []
        for launch in launches:
            starts.append(len(table) // 2)
            table += self._row_of(launch)
        nargs = len(table) // 2
        self._args = (ctypes.c_int64 * max(nargs, 1))()
        self._table = (ctypes.c_int64 * max(len(table), 1))(*table)
        steps: list[int] = []
        barriers = _barriers(launches, apart)
        owners = _owners(launches, barriers, threads) if apart else [0] * len(launches)
        for launch, start, barrier, owner in zip(launches, starts, barriers, owners, strict=True):
            flags = native.PARALLEL * launch.parallel + native.BARRIER * barrier
            flags |= owner << native.OWNER
            address = rounds if _is_rounds(launch) else launch.executable.address
            steps += [address, ctypes.addressof(self._args) + 8 * start, flags]
        self._steps = (ctypes.c_int64 * max(len(steps), 1))(*steps)
        self._plan = (ctypes.c_int64 * 5)(
            ctypes.addressof(self._steps),
            len(launches),
            ctypes.addressof(self._table),
            nargs,
            ctypes.addressof(self._args),
        )
        self.pointer = ctypes.c_void_p(ctypes.addressof(self._plan))

    def _row_of(self, launch: Launch) -> list[int]:
        """(number of a value, what is added to it) for each argument, one after the other."""
        if _is_rounds(launch):
            about = self._describe(launch.executable)
            self._about.append(about)
            row = [self._own + self.ZERO, ctypes.addressof(about)]
            for part, _, _ in launch.executable.parts:
                row += self._row_of(part)
            return row
        row = []
        for slot, offset in launch.arguments:
            row += [self._own + self.LOCAL if slot == LOCAL else slot, offset]
        for name in launch.params:
            known = isinstance(name, _Known)
            row += [self._own + self.ZERO, name.value] if known else [self._number_of(name), 0]
        return row

    def _number_of(self, name: str) -> int:
        return self._own + self.ZERO if name in (UNIT, BLOCK) else self._number[name]

    def _describe(self, rounds: Rounds) -> ctypes.Array[ctypes.c_int64]:
        words: list[int] = []
        kinds: list[int] = []
        for part, first, end in rounds.parts:
            count = len(part.arguments) + len(part.params)
            words += [part.executable.address, first, end, count]
            kinds += [int(slot == LOCAL) for slot, _ in part.arguments]
            kinds += [{UNIT: 2, BLOCK: 3}.get(name, 0) for name in part.params]
        blocks = 1 if rounds.apart else rounds.blocks
        most = max(words[3::4])
        stride = round_up(rounds.local_bytes, PAGE)
        head = [rounds.shares, blocks, rounds.blocks, stride, len(rounds.parts), most]
        return (ctypes.c_int64 * (len(head) + len(words) + len(kinds)))(*head, *words, *kinds)


PAGE = 4096  # bytes: the memories of threads do not share pages


def _is_rounds(launch: Launch) -> bool:
    return isinstance(launch.executable, Rounds)


def _local_bytes(launch: Launch) -> int:
    """Memory that each thread needs for a launch."""
    return round_up(launch.executable.local_bytes, PAGE) if _is_rounds(launch) else 0


class _Known(NamedTuple):
    """A parameter whose value is known."""

    value: int


def _flat(launch: Launch, threads: int) -> Iterator[Launch]:
    """Rounds that so many threads cannot share, as launches that all of them share; 0: none may."""
    if not _is_rounds(launch) or launch.executable.shares >= threads > 0:
        yield launch
        return
    rounds: Rounds = launch.executable
    for unit, block in product(range(rounds.units), range(rounds.blocks)):
        for part, first, end in rounds.parts:
            if first <= block < end:
                known = {UNIT: _Known(unit), BLOCK: _Known(block)}
                yield replace(part, params=tuple(known.get(n, n) for n in part.params))


class _Access(NamedTuple):
    """Bytes that a launch reads or writes."""

    slot: int
    start: int
    end: int
    written: bool
    parallel: bool


class _Bytes:
    """A set of byte ranges that grows, as sorted disjoint ranges: plans have thousands."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []

    def overlaps(self, start: int, end: int) -> bool:
        """Whether a byte from `start` to `end` is in the set."""
        return start < end and bisect_right(self.ends, start) < bisect_left(self.starts, end)

    def add(self, start: int, end: int) -> None:
        """Put these bytes into the set; neighbours become one range."""
        if start >= end:
            return
        first, last = bisect_left(self.ends, start), bisect_right(self.starts, end)
        if first < last:
            start, end = min(start, self.starts[first]), max(end, self.ends[last - 1])
        self.starts[first:last], self.ends[first:last] = [start], [end]


class _Since:
    """What was touched since the last barrier, by (is written, is shared by threads)."""

    def __init__(self) -> None:
        self.kinds: dict[tuple[bool, bool], dict[int, _Bytes]] = {}

    def conflicts(self, a: _Access, apart: bool) -> bool:
        """Whether a launch with access `a` must wait for one of those before."""
        for (written, parallel), slots in self.kinds.items():
            if not (written or a.written) or not (parallel or a.parallel):
                continue  # only reading, or both on thread 0
            if not apart and (len(slots) > 1 or a.slot not in slots):
                return True
            if a.slot in slots and slots[a.slot].overlaps(a.start, a.end):
                return True
        return False

    def add(self, a: _Access) -> None:
        """Remember an access."""
        slots = self.kinds.setdefault((a.written, a.parallel), {})
        slots.setdefault(a.slot, _Bytes()).add(a.start, a.end)


def _accesses(launch: Launch) -> list[_Access]:
    touches = launch.touches or [(1 << 62, True)] * len(launch.arguments)  # unknown: all of it
    return [
        _Access(slot, offset, offset + size, written, launch.parallel)
        for (slot, offset), (size, written) in zip(launch.arguments, touches, strict=True)
    ]


def _barriers(launches: Sequence[Launch], apart: bool) -> list[bool]:
    """For every launch, whether all threads must meet before it. `apart`: different slots are
    different memory."""
    barriers, since = [], _Since()
    for launch in launches:
        own = _accesses(launch)
        needed = any(since.conflicts(a, apart) for a in own)
        barriers.append(needed)
        since = _Since() if needed else since
        for a in own:
            since.add(a)
    return barriers


CALL, BYTES = 1e-6, 1e10  # seconds for a serial launch, and bytes that it touches in one
MANY = 500  # serial launches between two barriers, from which on nobody looks for chains
GAIN = 5e-6  # seconds to be won, from which on several threads take serial launches


def _owners(launches: Sequence[Launch], barriers: Sequence[bool], threads: int) -> list[int]:
    """For every launch the thread that runs it, if it is a serial one. Between two barriers those
    that need each other have one owner; the longest chains go to the thread that has least to do,
    where that saves time."""
    owners = [0] * len(launches)
    ends = [n for n, barrier in enumerate(barriers) if barrier and n] + [len(launches)]
    for first, end in pairwise([0, *ends]):
        serial = [n for n in range(first, end) if not launches[n].parallel]
        if not 2 <= len(serial) <= MANY or threads < 2:
            continue
        chains = _chains([_accesses(launches[n]) for n in serial])
        seconds = [
            sum(CALL + sum(size for size, _ in launches[serial[n]].touches) / BYTES for n in chain)
            for chain in chains
        ]
        if sum(seconds) - max(seconds) < GAIN:
            continue
        busy = [0.0] * threads
        for chain, cost in sorted(zip(chains, seconds, strict=True), key=lambda c: -c[1]):
            owner = busy.index(min(busy))
            busy[owner] += cost
            for n in chain:
                owners[serial[n]] = owner
    return owners


def _chains(accesses: Sequence[Sequence[_Access]]) -> list[list[int]]:
    """Launches that need each other, directly or not: one writes what another touches."""
    chain_of = list(range(len(accesses)))
    seen: dict[int, list[tuple[_Access, int]]] = {}
    for n, own in enumerate(accesses):
        for a in own:
            for b, m in seen.get(a.slot, ()):
                if (a.written or b.written) and a.start < b.end and b.start < a.end:
                    old, new = chain_of[m], chain_of[n]
                    chain_of = [new if c == old else c for c in chain_of]
            seen.setdefault(a.slot, []).append((a, n))
    chains: dict[int, list[int]] = {}
    for n, chain in enumerate(chain_of):
        chains.setdefault(chain, []).append(n)
    return list(chains.values())
