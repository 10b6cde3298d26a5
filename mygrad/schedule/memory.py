"""The memory planner: an offset in the arena of its device for every intermediate of a plan.

    plan(steps, arrays) -> Arenas    where temporaries lie, and the bytes of the arenas
    place(lifetimes)                 offsets in one arena

The parts of a joined array lie inside of it, so that it is needed from its first part on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mygrad.errors import InternalError
from mygrad.helpers import round_up
from mygrad.schedule.steps import JOIN, Memory, Step

Array = np.ndarray[Any, Any]

Inside = dict[int, tuple[int, int]]  # of parts: the array, and at which byte of it they lie

ALIGNMENT = 256  # bytes: cache lines, vector loads and OpenCL sub-buffers are content with it


@dataclass(frozen=True)
class Lifetime:
    """`nbytes` needed from step `first` to step `last`, both included."""

    nbytes: int
    first: int
    last: int


@dataclass(frozen=True)
class Arenas:
    """`offsets` of temporaries in the arena of their device, and the bytes of each arena. `inside`:
    which of them are parts; `life` of those that have places of their own."""

    offsets: dict[int, int]
    nbytes: dict[str, int]
    inside: Inside
    life: dict[int, Lifetime]


def plan(steps: Sequence[Step], arrays: Sequence[Memory]) -> Arenas:
    """A place for every temporary array that the steps touch."""
    inside = parts_of(steps, arrays)
    life = lifetimes(steps, arrays, inside)
    needs = {i: need for i, need in life.items() if arrays[i].kind == "temporary"}
    made = Arenas({}, {}, inside, needs)
    for device in dict.fromkeys(arrays[i].device for i in needs):
        mine = [i for i in needs if arrays[i].device == device]
        offsets, made.nbytes[device] = place([needs[i] for i in mine])
        made.offsets.update(zip(mine, offsets, strict=True))
    made.offsets.update({i: made.offsets[whole] + at for i, (whole, at) in inside.items()})
    return made


def parts_of(steps: Iterable[Step], arrays: Sequence[Memory]) -> Inside:
    """In what array the parts of joined arrays lie, and at which byte."""
    found: Inside = {}
    for step in steps:
        if step.what == JOIN:
            *parts, whole = step.arguments
            if any(arrays[i].kind != "temporary" for i in step.arguments):
                raise InternalError(f"schedule: no place in the arena for parts of memory {whole}")
            found |= {i: (whole, n * arrays[i].nbytes) for n, i in enumerate(parts)}
    return found


def lifetimes(
    steps: Iterable[Step], arrays: Sequence[Memory], inside: Inside
) -> dict[int, Lifetime]:
    """How long every array is needed that has a place of its own: what is joined as long as it, or
    any of its parts."""
    life: dict[int, list[int]] = {}
    for position, step in enumerate(steps):
        for i in step.arguments if step.what != JOIN else ():
            whole, _ = inside.get(i, (i, 0))
            life.setdefault(whole, [position, position])[1] = position
    return {i: Lifetime(max(1, arrays[i].nbytes), *ends) for i, ends in life.items()}


def place(needs: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Offsets such that what is alive together does not overlap, and the bytes of the arena.

    Greedy by size: the largest first, each at the lowest offset that is free for its whole life.

    >>> place([Lifetime(256, 0, 1), Lifetime(512, 1, 2), Lifetime(256, 2, 3)])
    ([512, 0, 512], 768)
    """
    offsets, total = [0] * len(needs), 0
    # (offset, end, first, last) of what is placed, by offset, as columns: plans have thousands
    placed = np.zeros((4, len(needs)), np.int64)
    for n, i in enumerate(sorted(range(len(needs)), key=lambda i: _order(needs[i], i))):
        need, (starts, ends, first, last) = needs[i], placed[:, :n]
        alive = (first <= need.last) & (last >= need.first)
        offset = _gap(starts[alive], ends[alive], need.nbytes)
        end = offset + round_up(need.nbytes, ALIGNMENT)
        at = int(np.searchsorted(starts, offset))
        placed[:, at + 1 : n + 1] = placed[:, at:n].copy()
        placed[:, at] = offset, end, need.first, need.last
        offsets[i], total = offset, max(total, end)
    return offsets, total


def _order(need: Lifetime, i: int) -> tuple[int, int, int]:
    return -need.nbytes, need.first, i


def _gap(starts: Array, ends: Array, nbytes: int) -> int:
    """The lowest offset with `nbytes` free before the next of `starts`, which are sorted."""
    free = np.maximum.accumulate(np.concatenate(([0], ends)))
    fits = np.flatnonzero(starts - free[:-1] >= nbytes)
    return int(free[fits[0]] if fits.size else free[-1])
