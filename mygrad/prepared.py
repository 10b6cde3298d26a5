"""Prepared programs: schedules with everything compiled, to be run again and again.

    Outline    what running needs of a schedule: memories, results, segments of launches, host steps
    Prepared   an outline with its launch sequences open; `run` binds buffers and runs it

An Outline knows no kernel and no expression. So a program that is read from disk (stored.py) needs
neither the scheduler nor the code generators; whoever wants to look inside gets its schedule made
again, from the structure of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from mygrad import dtype as dt
from mygrad import interpret, sorting
from mygrad.config import config
from mygrad.dtype import DType
from mygrad.errors import BufferError_, ShapeError, message
from mygrad.graph import HostCall
from mygrad.helpers import lazy_module, picker, prod
from mygrad.program import Buffer, Launch
from mygrad.runtime import device as devices
from mygrad.runtime.base import LaunchSequence
from mygrad.schedule.steps import Memory, Schedule, Step, peak_of

if TYPE_CHECKING:
    from mygrad import explain
else:
    explain = lazy_module("mygrad.explain")


_memory = attrgetter("memory")


@dataclass(frozen=True)
class Segment:
    """Consecutive kernels of one device, the steps from `first` on, as one launch sequence.

    `memories` are the plan's memories behind the sequence's slots; if a kernel touches the device's
    arena, that is one more, the last. What an executable is, is the concern of who made the
    outline: a loaded one for `Prepared`, a name on disk.
    """

    device: str
    first: int
    memories: tuple[int, ...]
    in_arena: bool
    launches: tuple[Launch, ...]

    def with_executables(self, of: Callable[[Any], tuple[Any, bool]]) -> Segment:
        """The same launches of other executables; see `Launch.with_executables`."""
        return replace(self, launches=tuple(one.with_executables(of) for one in self.launches))


@dataclass(frozen=True)
class Outline:
    """What running needs of a schedule. `variables` are (name, low, high)."""

    memories: tuple[Memory, ...]
    results: tuple[int, ...]
    arena_bytes: dict[str, int]
    local_bytes: int
    variables: tuple[tuple[str, int, int], ...]
    parts: tuple[Segment | Step, ...]

    def with_executables(self, of: Callable[[Any], tuple[Any, bool]]) -> Outline:
        """The same program with other executables; see `Launch.with_executables`."""
        parts = (p.with_executables(of) if isinstance(p, Segment) else p for p in self.parts)
        return replace(self, parts=tuple(parts))


class Prepared:
    """A program that is ready to run. What a run looks up is resolved here, once, because a small
    program takes microseconds."""

    def __init__(self, outline: Outline, schedule: Callable[[], Schedule]) -> None:
        self.outline = outline
        self._make_schedule = schedule
        self._schedule: Schedule | None = None
        # a run has one table of buffers: those that it makes, then its inputs
        memories = outline.memories
        made = [i for i, m in enumerate(memories) if m.kind in ("result", "separate")]
        self._makers = [
            maker(m.device, m.dtype, m.nbytes // m.dtype.itemsize)
            for m in map(memories.__getitem__, made)
        ]
        self._makers += [maker(d, dt.uint8, n) for d, n in outline.arena_bytes.items()]
        place = {i: n for n, i in enumerate(made)}
        inputs = {i: len(self._makers) + m.number for i, m in enumerate(memories)}
        self._place = [
            inputs[i] if m.kind == "input" else place.get(i, -1) for i, m in enumerate(memories)
        ]
        arena = {device: len(made) + n for n, device in enumerate(outline.arena_bytes)}
        self._results = [self._place[i] for i in outline.results]
        self._parts = [
            p if isinstance(p, Step) else (p, picker(self._slots(p, arena)), _sequence(p))
            for p in outline.parts
        ]

    def _slots(self, segment: Segment, arena: Mapping[str, int]) -> tuple[int, ...]:
        slots = tuple(self._place[i] for i in segment.memories)
        return (*slots, arena[segment.device]) if segment.in_arena else slots

    @property
    def overwrites(self) -> frozenset[int]:
        """The inputs that a run writes, by their numbers."""
        memories = self.outline.memories
        written = {
            p.memories[slot]
            for p in self.outline.parts
            if isinstance(p, Segment)
            for one in p.launches
            for (slot, _), (_, writes) in zip(one.arguments, one.touches, strict=True)
            if writes and slot < len(p.memories)
        }
        return frozenset(memories[i].number for i in written if memories[i].kind == "input")

    @property
    def peak_bytes(self) -> int:
        """Memory that a run needs beside its inputs; see `Schedule.peak_bytes`."""
        outline = self.outline
        return peak_of(outline.memories, outline.arena_bytes, outline.local_bytes)

    @property
    def schedule(self) -> Schedule:
        """The schedule, to be looked at; made again if the program came from disk."""
        if self._schedule is None:
            self._schedule = self._make_schedule()
        return self._schedule

    def run(self, inputs: Sequence[Buffer], params: Mapping[str, int]) -> list[Buffer]:
        """Run on these inputs; one buffer per root. `params` gives every VARIABLE a value.

        Raises:
            ShapeError: a variable without a value, or with one outside of its range.
            BufferError_: an input without memory.
        """
        if self.outline.variables:
            self._check(params)
        if config.DEBUG or config.MYGRAD_DUMP:
            explain.begin(self.schedule)
        table = [make() for make in self._makers]
        table += inputs
        for part in self._parts:
            if isinstance(part, Step):
                self._host_step(part, table)
                continue
            segment, pick, sequence = part
            memories = list(map(_memory, pick(table)))
            if type(None) in map(type, memories):
                for buffer in pick(table):
                    memory_of(buffer)  # the error of the one that has none
            if config.DEBUG >= 2:
                steps = self.schedule.steps[segment.first : segment.first + len(segment.launches)]
                explain.timed(steps, sequence.time(memories, params))
            else:
                sequence.run(memories, params)
        return [table[i] for i in self._results]

    def _check(self, params: Mapping[str, int]) -> None:
        for name, low, high in self.outline.variables:
            if name not in params or not low <= params[name] <= high:
                got = params.get(name, "no value")
                raise ShapeError(message(f"variable {name}", got, f"{low} <= {name} <= {high}"))

    def _host_step(self, step: Step, table: Sequence[Buffer]) -> None:
        """HOST, SORT and COPY: through NumPy, after all earlier launches."""
        memories = [memory_of(table[self._place[i]]) for i in step.arguments]
        about = [self.outline.memories[i] for i in step.arguments]
        if config.DEBUG < 2:
            _run_host_step(step, about, memories)
            return
        with explain.timing(step, self.schedule):
            _run_host_step(step, about, memories)


def _sequence(segment: Segment) -> LaunchSequence:
    return devices.get(segment.device).sequence(segment.launches)


def _run_host_step(step: Step, about: Sequence[Memory], memories: Sequence[Any]) -> None:
    if step.what == "sort":
        _run_sort(step, about[0], about[1], memories)
        return
    values = [_values(m, memory) for m, memory in zip(about[:-1], memories[:-1], strict=True)]
    if isinstance(step.what, HostCall):
        result = interpret.call_host(step.what, values)
    else:
        result = values[0]
    if result.size:
        data = np.ascontiguousarray(dt.to_storage(result, about[-1].dtype))
        devices.get(about[-1].device).write(memories[-1], data)


def _run_sort(step: Step, source: Memory, target: Memory, memories: Sequence[Any]) -> None:
    axis, descending, wants_values = step.arg
    runtime = devices.get(target.device)
    if not prod(target.shape):
        return
    run = sorting.sort if wants_values else sorting.argsort
    x, out = _viewed(source, memories[0]), _viewed(target, memories[1])
    if x is None:
        x = _values(source, memories[0])
    if out is not None and out.dtype == (x.dtype if wants_values else np.int64):
        run(x, out, axis, descending, runtime.target.threads)
        return
    out = np.empty(target.shape, x.dtype if wants_values else np.int64)
    run(x, out, axis, descending, runtime.target.threads)
    runtime.write(memories[1], np.ascontiguousarray(dt.to_storage(out, target.dtype)))


def _viewed(about: Memory, memory: Any) -> np.ndarray[Any, Any] | None:
    """The memory as an array that shares it; None where its elements are no numbers of NumPy, and
    where a device keeps them to itself."""
    if about.dtype is dt.bfloat16:
        return None
    view = devices.get(about.device).view(memory, about.dtype.storage, prod(about.shape))
    return None if view is None else view.reshape(about.shape)


def _values(about: Memory, memory: Any) -> np.ndarray[Any, Any]:
    stored = np.empty(about.shape, about.dtype.storage)
    if stored.size:
        devices.get(about.device).read(memory, stored)
    return dt.from_storage(stored, about.dtype)


def maker(device: str, dtype: DType, size: int) -> Callable[[], Buffer]:
    """A function that allocates such a buffer."""
    runtime = devices.get(device)
    allocate, release, nbytes = runtime.allocate, runtime.release, max(size * dtype.itemsize, 1)

    def make() -> Buffer:
        return Buffer(device, dtype, size, allocate(nbytes), release)

    return make


def memory_of(buffer: Buffer) -> Any:
    """The memory of a buffer.

    Raises:
        BufferError_: it was freed, or never written.
    """
    if buffer.memory is None:
        why = buffer.why_unreadable or "it was never written"
        raise BufferError_(
            message("read", f"a tensor without memory: {why}", "a tensor with values")
        )
    return buffer.memory
