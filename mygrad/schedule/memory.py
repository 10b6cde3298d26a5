"""The memory planner: an offset in one arena for every intermediate of a plan, by lifetime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mygrad.helpers import round_up

Array = np.ndarray[Any, Any]

ALIGNMENT = 256  # bytes: cache lines, vector loads and OpenCL sub-buffers are content with it


@dataclass(frozen=True)
class Lifetime:
    """`nbytes` needed from step `first` to step `last`, both included."""

    nbytes: int
    first: int
    last: int


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
