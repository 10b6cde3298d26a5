"""Launches as a native plan (native.py): where threads meet, and who runs what is not shared.

    Plan(launches, ...)     the steps, and the table that their arguments are filled in from
    barriers(launches)      before which launches all threads must meet
    owners(launches)        which thread runs a serial launch

Rounds become one step, in which each thread runs blocks by itself. Where there are too few for the
threads, or where memories may overlap, they become their launches, one by one.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, product
from typing import Any, NamedTuple

from mygrad.helpers import round_up
from mygrad.program import BLOCK, LOCAL, PAGE, UNIT, Launch, Rounds
from mygrad.runtime import native

_KIND: dict[str | int, int] = {UNIT: 2, BLOCK: 3}  # of arguments of rounds: see native.py
CALL, BYTES = 1e-6, 1e10  # seconds for a serial launch, and bytes that it touches in one
MANY = 500  # serial launches between two barriers, from which on nobody looks for chains
IDLE = 1.5  # times the work of rounds that their threads could do while one is not done yet
GAIN = 5e-6  # seconds to be won, from which on several threads take serial launches


class Plan:
    """The native form of launches; see native.py. `apart`: different slots are different memory;
    then `threads` may share serial launches. `rounds`: the native function that runs Rounds, in
    `local` bytes for each thread.

    The table of values that arguments come from is: memories, parameters, and then two of its own,
    the address of the local memory and a zero for what is known already. The local memory begins
    with a part for launches of Rounds that all threads share. Each thread has its own part behind
    it, the same one for all Rounds: no barrier need stand between them.
    """

    MEMORY, ZERO, OWN = 0, 1, 2

    def __init__(
        self,
        launches: Sequence[Launch],
        slots: int,
        params: tuple[str, ...],
        apart: bool,
        threads: int = 1,
        rounds: int = 0,
        local: int = 0,
    ) -> None:
        self._local = local
        self._own = slots + len(params)
        self._number = dict.fromkeys((UNIT, BLOCK), self._own + self.ZERO)
        self._number |= {name: slots + n for n, name in enumerate(params)}
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
        meet = barriers(launches, apart)
        owned = owners(launches, meet, threads) if apart else [0] * len(launches)
        for launch, start, barrier, owner in zip(launches, starts, meet, owned, strict=True):
            flags = native.PARALLEL * launch.parallel + native.BARRIER * barrier
            flags |= owner << native.OWNER
            address = rounds if is_rounds(launch) else launch.executable.address
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

    def _row_of(self, launch: Launch, local: int = 0) -> list[int]:
        """(number of a value, what is added to it) for each argument, one after the other; `local`
        is where local memory begins."""
        if is_rounds(launch):
            about = self._describe(launch.executable)
            self._about.append(about)
            row = [self._own + self.ZERO, ctypes.addressof(about)]
            for part, _, _ in launch.executable.parts:
                row += self._row_of(part, self._local)
            return row
        row = []
        for slot, offset in launch.arguments:
            row += [self._own + self.MEMORY, local + offset] if slot == LOCAL else [slot, offset]
        for p in launch.params:
            row += [self._own + self.ZERO, p] if isinstance(p, int) else [self._number[p], 0]
        return row

    def _describe(self, rounds: Rounds) -> ctypes.Array[ctypes.c_int64]:
        words: list[int] = []
        kinds: list[int] = []
        for part, first, end in rounds.parts:
            count = len(part.arguments) + len(part.params)
            words += [part.executable.address, first, end, count]
            kinds += [int(slot == LOCAL) for slot, _ in part.arguments]
            kinds += [_KIND.get(p, 0) for p in part.params]
        blocks = 1 if rounds.apart else rounds.blocks
        most = max(words[3::4])
        head = [rounds.shares, blocks, rounds.blocks, self._local, len(rounds.parts), most]
        return (ctypes.c_int64 * (len(head) + len(words) + len(kinds)))(*head, *words, *kinds)


def is_rounds(launch: Launch) -> bool:
    """Whether a launch is a band, which native code runs round by round."""
    return isinstance(launch.executable, Rounds)


def local_bytes(launch: Launch) -> int:
    """Memory that each thread needs for a launch."""
    return round_up(launch.executable.local_bytes, PAGE) if is_rounds(launch) else 0


def _flat(launch: Launch, threads: int) -> Iterator[Launch]:
    """Rounds that so many threads cannot share well, as launches that all of them share; 0: none
    may."""
    if not is_rounds(launch):
        yield launch
        return
    rounds: Rounds = launch.executable
    if threads and round_up(rounds.shares, threads) <= IDLE * rounds.shares:
        yield launch
        return
    for unit, block in product(range(rounds.units), range(rounds.blocks)):
        for part, first, end in rounds.parts:
            if first <= block < end:
                known: dict[str | int, int] = {UNIT: unit, BLOCK: block}
                yield replace(part, params=tuple(known.get(p, p) for p in part.params))


class Access(NamedTuple):
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

    def conflicts(self, a: Access, apart: bool) -> bool:
        """Whether a launch with access `a` must wait for one of those before."""
        for (written, parallel), slots in self.kinds.items():
            if not (written or a.written) or not (parallel or a.parallel):
                continue  # only reading, or both serial: `owners` gives such launches one thread
            if not apart and (len(slots) > 1 or a.slot not in slots):
                return True
            if a.slot in slots and slots[a.slot].overlaps(a.start, a.end):
                return True
        return False

    def add(self, a: Access) -> None:
        """Remember an access."""
        slots = self.kinds.setdefault((a.written, a.parallel), {})
        slots.setdefault(a.slot, _Bytes()).add(a.start, a.end)


def accesses(launch: Launch) -> list[Access]:
    """What a launch reads and writes; where that is not known, it writes all of its memories."""
    touches = launch.touches or [(1 << 62, True)] * len(launch.arguments)  # unknown: all of it
    return [
        Access(slot, offset, offset + size, written, launch.parallel)
        for (slot, offset), (size, written) in zip(launch.arguments, touches, strict=True)
    ]


def barriers(launches: Sequence[Launch], apart: bool) -> list[bool]:
    """For every launch, whether all threads must meet before it. `apart`: different slots are
    different memory."""
    found, since = [], _Since()
    for launch in launches:
        own = accesses(launch)
        needed = any(since.conflicts(a, apart) for a in own)
        found.append(needed)
        since = _Since() if needed else since
        for a in own:
            since.add(a)
    return found


def owners(launches: Sequence[Launch], meet: Sequence[bool], threads: int) -> list[int]:
    """For every launch the thread that runs it, if it is a serial one. Between two barriers those
    that need each other have one owner; the longest chains go to the thread that has least to do,
    where that saves time."""
    found = [0] * len(launches)
    ends = [n for n, barrier in enumerate(meet) if barrier and n] + [len(launches)]
    for first, end in pairwise([0, *ends]):
        serial = [n for n in range(first, end) if not launches[n].parallel]
        if not 2 <= len(serial) <= MANY or threads < 2:
            continue
        chains = _chains([accesses(launches[n]) for n in serial])
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
                found[serial[n]] = owner
    return found


def _chains(touched: Sequence[Sequence[Access]]) -> list[list[int]]:
    """Launches that need each other, directly or not: one writes what another touches."""
    chain_of = list(range(len(touched)))
    seen: dict[int, list[tuple[Access, int]]] = {}
    for n, own in enumerate(touched):
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
