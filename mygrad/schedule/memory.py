"""The memory planner: an offset in one arena for every intermediate of a plan, by lifetime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mygrad.helpers import round_up

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
    offsets = [0] * len(needs)
    placed: list[int] = []
    for i in sorted(range(len(needs)), key=lambda i: (-needs[i].nbytes, needs[i].first, i)):
        need = needs[i]
        taken = sorted(
            (offsets[j], offsets[j] + round_up(needs[j].nbytes, ALIGNMENT))
            for j in placed
            if needs[j].first <= need.last and need.first <= needs[j].last
        )
        offset = 0
        for start, stop in taken:
            if start - offset >= need.nbytes:
                break
            offset = max(offset, stop)
        offsets[i] = offset
        placed.append(i)
    size = max((offsets[i] + round_up(n.nbytes, ALIGNMENT) for i, n in enumerate(needs)), default=0)
    return offsets, size
