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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from mygrad.config import config
from mygrad.errors import InternalError, message
from mygrad.helpers import content_key
from mygrad.program import Launch, Program, Target, local_memory
from mygrad.runtime import guard, native
from mygrad.runtime.base import LaunchSequence, Runtime
from mygrad.runtime.cache import default_cache
from mygrad.runtime.cpu_memory import Memory
from mygrad.runtime.cpu_plan import Plan, accesses, is_rounds, local_bytes
from mygrad.runtime.cpu_target import host_target
from mygrad.runtime.llvm import Compiler

_RUN = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
_START = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)
_NOTHING = nullcontext()
_address = attrgetter("address")
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
        """Memory at a multiple of 64 bytes, not initialised. With MYGRAD_GUARD=1 less than 256 kB
        begin anywhere instead, and end at a page.

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
        self._local = max(map(local_bytes, launches), default=0)  # of each thread
        self._slots = 1 + max((slot for one in launches for slot, _ in one.arguments), default=-1)
        self._written = {
            a.slot for one in launches for a in accesses(one) if a.written and a.start < a.end
        }
        params = dict.fromkeys(p for one in launches for p in one.params)
        self._params = tuple(p for p in params if isinstance(p, str))
        self.parallel = runtime.target.threads > 1 and any(one.parallel for one in launches)
        size = self._slots + len(self._params)
        self._values = ctypes.create_string_buffer(8 * (size + Plan.OWN))
        self._pack = struct.Struct(f"{self._slots}Q{len(self._params)}q").pack_into
        self._local_address = ctypes.c_uint64.from_buffer(self._values, 8 * (size + Plan.MEMORY))
        self._values_pointer = ctypes.c_void_p(ctypes.addressof(self._values))
        self._plan = self._made(self._launches, True, runtime.target.threads)
        self._careful: Plan | None = None  # for memories that overlap
        self._singles: list[Plan] | None = None
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
        with self._runtime.lock, self._local_memory() if self._local else _NOTHING:
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
        with self._runtime.lock, self._local_memory() if self._local else _NOTHING:
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
        addresses = list(map(_address, memories))
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

    def _careful_plan(self) -> Plan:
        if self._careful is None:
            self._careful = self._made(self._launches, False, 1)
        return self._careful

    def _made(self, launches: Sequence[Launch], apart: bool, threads: int) -> Plan:
        rounds = self._runtime.pool().rounds if any(map(is_rounds, launches)) else 0
        return Plan(launches, self._slots, self._params, apart, threads, rounds, self._local)

    @contextmanager
    def _local_memory(self) -> Iterator[None]:
        """Memory for each thread's own, while the launches run."""
        memory = self._runtime.allocate(local_memory(self._local, self._runtime.target.threads))
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

    def _enter(self, plan: Plan, parallel: bool) -> None:
        pool = self._pool_now(parallel)
        threads = pool.threads if parallel else pool.one
        pool.entry(pool.context, plan.pointer, self._values_pointer, threads)
