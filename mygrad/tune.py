"""Searching for better schedules: `TUNE=seconds`.

    tuned(key)               the best actions that were found for a kernel on this machine, or None
    search(kernels, runtime) look for better ones while the time lasts, and keep what is found

The analysis gives every kernel a good schedule at once. With TUNE set, each process may spend that
many seconds on looking around it: the kernels that take longest get the most time, and each search
climbs from the default to the best of its neighbours (`codegen/neighbours.py`) until none is
better. Before a candidate is believed, all that it writes is compared with what the default writes
on the same random data.

The search runs in a forked child, which tells what it is about to try. If a candidate does not come
back in time, or takes the child down, the child is replaced and the candidate is not tried again.
What was found is kept in `$MYGRAD_CACHE/tuned`, per kernel, target and version of the code
generators; later processes use it without TUNE.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np

from mygrad import codegen
from mygrad import dtype as dt
from mygrad.codegen.actions import Action, ScheduleError
from mygrad.codegen.analysis import default_actions
from mygrad.codegen.neighbours import Actions, neighbours
from mygrad.config import config
from mygrad.dtype import DType
from mygrad.kernel import Kernel
from mygrad.program import Launch
from mygrad.runtime import cache
from mygrad.runtime.base import LaunchSequence, Runtime

BETTER = 0.97  # of the time of the best so far, that a candidate must stay under
REPEATS, LONG_ENOUGH = 7, 0.03  # a time is the least of so many runs, or of as many as this takes
PATIENCE = 20.0  # seconds that one candidate may take to be compiled and to run a few times
HOPELESS = 2.0  # times the best so far: one run is enough to see it
CLOSE = {
    2: 3e-2,
    4: 1e-4,
    8: 1e-9,
}  # of the largest magnitude, by size: sums in any order

_LIMIT = 64 << 20  # bytes of what was found, on disk

Array = np.ndarray[Any, Any]

_KINDS: dict[str, Any] = {kind.__name__: kind for kind in typing.get_args(Action)}
_known: dict[str, Actions | None] = {}  # by key; None: nothing is on disk
_any: list[bool] = []  # the answer of `exists`, once it was asked
_spent = [0.0]  # seconds of search in this process


def tuned(key: str) -> Actions | None:
    """The actions that a search found for the kernel of this key; None if there was none, or if it
    found nothing better than the default."""
    if key not in _known:
        content = _disk().get(key)
        _known[key] = None if content is None else _read(json.loads(content)["actions"])
    return _known[key]


def exists() -> bool:
    """Whether a search may have found something: its folder exists, or a kernel was looked up
    before. Spares a look for each kernel; the answer holds until the next search."""
    if not _any:
        folder = _disk().folder
        _any.append(bool(_known) or (folder is not None and folder.is_dir()))
    return _any[0]


def is_wanted() -> bool:
    """Whether there is time left to search, on a system with processes that fork."""
    return _spent[0] < config.TUNE and hasattr(os, "fork")


def search(kernels: Mapping[str, Kernel], runtime: Runtime) -> None:
    """Spend what is left of TUNE on these kernels, by key; afterwards `tuned` knows the results."""
    open_ = {key: k for key, k in kernels.items() if _disk().get(key) is None}
    begin = time.monotonic()
    deadline = begin + config.TUNE - _spent[0]
    wanted = [_Search(key, kernel) for key, kernel in open_.items()]
    while wanted and time.monotonic() < deadline:
        _run_child(wanted, runtime, deadline)
        wanted = [s for s in wanted if not s.done]
    _spent[0] += time.monotonic() - begin
    for one in open_:
        _known.pop(one, None)
    _any.clear()


def _disk() -> cache.DiskCache:
    return cache.folder("tuned", _LIMIT)


def _write(actions: Actions) -> list[list[Any]]:
    return [[type(a).__name__, *astuple(a)] for a in actions]


def _read(lists: list[list[Any]]) -> Actions | None:
    """Actions from JSON, where tuples are lists."""
    if not lists:
        return None
    return tuple(
        _KINDS[name](*(tuple(a) if isinstance(a, list) else a for a in arguments))
        for name, *arguments in lists
    )


# --- the parent -----------------------------------------------------------------------------------


@dataclass
class _Search:
    """What the parent knows of one search. `done`: it came to its end, or to that of its time."""

    key: str
    kernel: Kernel
    best: Actions = ()
    seconds: tuple[float, float] = (0.0, 0.0)  # of the default, of the best
    banned: set[Actions] = field(default_factory=set)
    trying: Actions | None = None
    done: bool = False

    def hear(self, message: dict[str, Any]) -> None:
        """One line of the child."""
        if "try" in message:
            self.trying = _read(message["try"]) or ()
            return
        self.trying = None
        self.done = message.get("done", False)
        if "best" in message:
            self.best = _read(message["best"]) or ()
            self.seconds = message["seconds"]
        if self.done:
            self.keep()

    def keep(self) -> None:
        """Write what was found to disk, and say so at DEBUG=1."""
        record = {"actions": _write(self.best), "seconds": self.seconds, "name": self.kernel.name}
        _disk().put(self.key, json.dumps(record).encode())
        if config.DEBUG:
            before, after = (f"{s * 1e6:.1f} us" for s in self.seconds)
            print(f"tuned {self.kernel.name}: {before} -> {after}", file=sys.stderr)


def _run_child(wanted: Sequence[_Search], runtime: Runtime, deadline: float) -> None:
    """One child, until all searches are done, the time is over, or a candidate fails."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        _child(wanted, runtime, deadline, writer)
    os.close(writer)
    current = None
    try:
        for message in _lines(reader, deadline):
            current = wanted[message["search"]]
            current.hear(message)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
    if time.monotonic() >= deadline:
        for one in wanted:
            if not one.done and one.seconds[0]:
                one.keep()
    elif current is not None and current.trying is not None:
        current.banned.add(current.trying)
    elif not all(one.done for one in wanted):  # it failed at something that is no candidate
        for one in wanted:
            one.done = True


def _lines(reader: int, deadline: float) -> Iterator[dict[str, Any]]:
    """What the child says, until it ends, says nothing for too long, or the time is over."""
    rest = b""
    while True:
        patience = min(PATIENCE, deadline - time.monotonic())
        if patience <= 0 or not select.select([reader], [], [], patience)[0]:
            return
        received = os.read(reader, 1 << 16)
        if not received:
            return
        *lines, rest = (rest + received).split(b"\n")
        for line in lines:
            yield json.loads(line)


# --- the child ------------------------------------------------------------------------------------


def _child(wanted: Sequence[_Search], runtime: Runtime, deadline: float, writer: int) -> None:
    """Search, and tell; never returns."""
    with os.fdopen(writer, "w") as pipe:
        try:
            _search_all(wanted, runtime, deadline, pipe)
        finally:
            pipe.flush()
            os._exit(0)  # no cleanup of what belongs to the parent


def _search_all(
    wanted: Sequence[_Search], runtime: Runtime, deadline: float, pipe: typing.TextIO
) -> None:
    """The heaviest kernels first; each gets its share of the time that is left."""

    def tell(number: int, **what: Any) -> None:
        print(json.dumps({"search": number, **what}), file=pipe, flush=True)

    benches = [_Bench(one.kernel, runtime) for one in wanted]
    defaults = [default_actions(one.kernel, runtime.target) for one in wanted]
    times = []
    for bench, actions in zip(benches, defaults, strict=True):
        times.append(bench.measure(actions, float("inf")) or 0.0)
        bench.forget()
    order = sorted(range(len(wanted)), key=lambda i: -times[i])
    while order:
        i = order.pop(0)
        share = times[i] / (sum(times[j] for j in order) + times[i] or 1.0)
        until = time.monotonic() + (deadline - time.monotonic()) * share
        _climb(i, wanted[i], benches[i], defaults[i], until, tell)


def _climb(
    number: int, one: _Search, bench: _Bench, default: Actions, until: float, tell: Any
) -> None:
    """From the default, or the best of the child before, to the best of its neighbours, until none
    is better."""
    bench.accept(default)
    base = bench.measure(default, float("inf")) or 0.0
    best = one.best or default
    least = base if best == default else bench.measure(best, float("inf")) or base
    tell(number, best=_write(one.best), seconds=(base, least))
    tried = {default, best, *one.banned}
    improved = True
    while improved:
        improved = False
        for candidate in neighbours(one.kernel, best):
            if candidate in tried:
                continue
            if time.monotonic() > until:
                tell(number, done=True)
                return
            tried.add(candidate)
            tell(number, **{"try": _write(candidate)})
            seconds = bench.measure(candidate, least * BETTER)
            if seconds is not None and bench.agrees(candidate):
                best, least, improved = candidate, seconds, True
                tell(number, best=_write(best), seconds=(base, least))
                break
            tell(number)
    bench.forget()
    tell(number, done=True)


class _Bench:
    """One kernel on random data: the time of a schedule, and whether its results are right."""

    def __init__(self, kernel: Kernel, runtime: Runtime) -> None:
        self.kernel, self.runtime = kernel, runtime
        self.params = {name: low for name, low, _ in kernel.params}
        self.data: list[Array] = []
        self.memories: list[Any] = []
        self.expected: list[Array] = []
        self.built: tuple[Actions, LaunchSequence] | None = None

    def sequence(self, actions: Actions) -> LaunchSequence:
        """The kernel by these actions, loaded."""
        if self.built is None or self.built[0] != actions:
            program = codegen.compile(self.kernel, self.runtime.target, actions)
            loaded = self.runtime.load([(program, self.runtime.compile(program))])[0]
            arguments = tuple((slot, 0) for slot in program.buffers)
            launch = Launch(loaded, arguments, program.params, program.parallel, program.entry)
            self.built = (actions, self.runtime.sequence([launch]))
        return self.built[1]

    def measure(self, actions: Actions, limit: float) -> float | None:
        """Seconds of a run; None if that is not below `limit`, or the actions cannot be lowered."""
        try:
            sequence = self.sequence(actions)
        except ScheduleError:
            return None
        if not self.memories:
            self.prepare()
        best, begin = float("inf"), time.monotonic()
        for n in range(REPEATS + 1):
            best = min(best, sequence.time(self.memories, self.params)[0])
            if best > HOPELESS * limit or (n > 1 and time.monotonic() - begin > LONG_ENOUGH):
                break
        return best if best < limit else None

    def accept(self, actions: Actions) -> None:
        """What this schedule writes is right."""
        self.expected = self.run(actions)

    def agrees(self, actions: Actions) -> bool:
        """Whether this schedule writes what the accepted one does."""
        return all(map(_same, self.run(actions), self.expected, self.written_types()))

    def written_types(self) -> list[DType]:
        """The types of the buffers that the kernel writes."""
        return [b.dtype for b in self.kernel.buffers if b.written]

    def run(self, actions: Actions) -> list[Array]:
        """All that the kernel writes, from the same data each time."""
        sequence = self.sequence(actions)
        self.prepare()
        sequence.run(self.memories, self.params)
        self.runtime.synchronize()
        results = []
        for memory, array, info in zip(self.memories, self.data, self.kernel.buffers, strict=True):
            if info.written:
                results.append(np.empty_like(array))
                self.runtime.read(memory, results[-1])
        return results

    def prepare(self) -> None:
        """Memories with the data; those that the kernel writes get theirs back."""
        fresh = not self.memories
        if fresh:
            rng = np.random.default_rng(0)
            self.data = [_random(rng, b.dtype, b.size) for b in self.kernel.buffers]
            self.memories = [self.runtime.allocate(max(a.nbytes, 1)) for a in self.data]
        for memory, array, info in zip(self.memories, self.data, self.kernel.buffers, strict=True):
            if fresh or info.written:
                self.runtime.write(memory, array)

    def forget(self) -> None:
        """Give the memory back."""
        for memory in self.memories:
            self.runtime.release(memory)
        self.data, self.memories, self.expected, self.built = [], [], [], None


def _random(rng: np.random.Generator, dtype: DType, size: int) -> Array:
    """Numbers in [-1, 1), or small whole ones, which are indices more often than not."""
    if dtype.kind == "f":
        return dt.to_storage(rng.random(size, np.float32) * 2 - 1, dtype)
    return dt.to_storage(rng.integers(0, 2 if dtype is dt.bool_ else 8, size), dtype)


def _same(got: Array, expected: Array, dtype: DType) -> bool:
    """Equal, or for floats close, as sums in another order are."""
    if dtype.kind != "f":
        return bool(np.array_equal(got, expected))
    a, b = (dt.from_storage(x, dtype).astype(np.float64) for x in (got, expected))
    scale = np.max(np.abs(b), initial=0.0, where=np.isfinite(b))
    return bool(np.allclose(a, b, rtol=0.0, atol=CLOSE[dtype.itemsize] * scale, equal_nan=True))
