"""Rematerialisation: a schedule that needs more memory than allowed computes some arrays twice.

    a = f(x) ... long ... g(a)      ->      a = f(x) ... long ... a' = f(x); g(a')

Of the arrays that wait while the most memory is in use, the one goes that frees most bytes for the
time that making it again takes, until the budget is met (Chen et al. 2016, 1604.06174, choose in
the same spirit, by layers). An array is made again from what is alive at that time, or from inputs;
if operands must wait longer for it, they count against it. A part of a joined array lies inside of
it: only if it is the one part that is there so early, making it again lets the whole come later.

A choice is good if the most crowded moment becomes less crowded. One that only moves the crowd to
where the array is made again may be the first of several that help together: then it is taken if
nothing is good, but never for what is already made again, and `PATIENCE` times in a row at most. So
the search ends: every good choice lowers a pair of integers, and the others are counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from mygrad.errors import DeviceError, message
from mygrad.helpers import quantity
from mygrad.kernel import Kernel
from mygrad.schedule import cost, memory
from mygrad.schedule.bands import users_of, written_by
from mygrad.schedule.steps import Memory, Step, Threads, local_bytes_of, peak_of

PATIENCE = 16  # choices in a row that do not help by themselves


def fit(
    steps: Sequence[Step], arrays: Sequence[Memory], budget: int, threads: Threads
) -> tuple[list[Step], list[Memory]]:
    """The steps with arrays made again until `budget` bytes are enough for temporaries, results and
    the memory of threads.

    Raises:
        DeviceError: they cannot be; the error says how many bytes would.
    """
    fitter = _Fitter(list(steps), list(arrays))
    kept = peak_of(arrays, {}, 0)
    local = local_bytes_of(steps, threads)  # no band is run again
    best = None
    while (peak := fitter.peak() + kept + local) > budget:
        best = peak if best is None else min(best, peak)
        if not fitter.improve():
            raise DeviceError(
                message(
                    "memory_budget",
                    f"{quantity(budget)}B",
                    f"{quantity(best)}B or more, of which results take {quantity(kept)}B",
                    "a larger budget, or a smaller batch",
                )
            )
    return fitter.steps, fitter.arrays


@dataclass(frozen=True)
class _Choice:
    """Make array `i` again before step `at`: bytes that are freed, and nanoseconds it takes."""

    i: int
    at: int
    freed: int
    time: float


class _Fitter:
    def __init__(self, steps: list[Step], arrays: list[Memory]) -> None:
        self.steps = steps
        self.arrays = arrays
        self.given = len(arrays)  # what comes behind them is made again
        self.patience = PATIENCE
        self.least: tuple[float, int] = (math.inf, 0)
        self.measure()

    def measure(self) -> None:
        """Who touches what, and how long it is needed."""
        self.users = users_of(self.steps)
        self.inside = memory.parts_of(self.steps, self.arrays)
        every = memory.lifetimes(self.steps, self.arrays, self.inside)
        self.life = {i: n for i, n in every.items() if self.arrays[i].kind == "temporary"}

    def peak(self) -> int:
        """Bytes of the arenas."""
        return sum(memory.plan(self.steps, self.arrays).nbytes.values())

    def place(self, i: int) -> int:
        """The array that has a place of its own in the arena: this one, or what it is part of."""
        return self.inside.get(i, (i, 0))[0]

    def improve(self) -> bool:
        """Make one array again; whether there was one worth it."""
        crowd = self.crowd()
        if crowd[:2] < self.least:
            self.least, self.patience = crowd[:2], PATIENCE
        choices = sorted(self.choices(crowd[2]), key=lambda c: -c.freed / c.time)
        before = self.steps, self.arrays
        for choice in choices:
            self.make_again(choice)
            self.measure()
            if self.crowd()[:2] < crowd[:2]:
                return True
            self.steps, self.arrays = before
            self.measure()
        new = [c for c in choices if c.i < self.given]
        if not new or not self.patience:
            return False
        self.patience -= 1
        self.make_again(new[0])
        self.measure()
        return True

    def crowd(self) -> tuple[int, int, int]:
        """The most bytes that are alive at once, during how many steps, and the first of them."""
        change = [0] * (len(self.steps) + 1)
        for need in self.life.values():
            change[need.first] += need.nbytes
            change[need.last + 1] -= need.nbytes
        alive = list(accumulate(change[:-1]))
        most = max(alive)
        return most, alive.count(most), alive.index(most)

    def choices(self, busiest: int) -> Iterator[_Choice]:
        """What could be made again after the busiest step, and not wait during it."""
        early = {i for s in self.steps[: busiest + 1] for i in s.arguments}
        parts = Counter(self.place(i) for i in early if i in self.inside)  # that are there
        for i, (maker, *readers) in self.users.items():
            place = self.place(i)
            later = [p for p in readers if p > busiest]
            if place not in self.life or maker >= busiest or busiest in readers or not later:
                continue
            if parts[place] > (i in self.inside) or not self.is_free(maker, i, later[0]):
                continue
            step = self.steps[maker]
            operands = {self.place(j) for j in set(step.arguments) - set(written_by(step))}
            waiting = [self.life[j] for j in operands - {place} if j in self.life]
            freed = self.life[place].nbytes - sum(n.nbytes for n in waiting if n.last < busiest)
            if freed > 0:
                kernel = step.what
                assert isinstance(kernel, Kernel)
                time = cost.LAUNCH + cost.moving(1, kernel.bytes) + kernel.flops * cost.FLOP
                yield _Choice(i, later[0], freed, time)

    def is_free(self, maker: int, i: int, at: int) -> bool:
        """Whether a step can run again before step `at`: it is a kernel, the only one that writes
        this array, and what it reads is still the same."""
        step = self.steps[maker]
        if not isinstance(step.what, Kernel):
            return False
        once = [p for p in self.users[i] if i in written_by(self.steps[p])] == [maker]
        inputs = set(step.arguments) - set(written_by(step))
        fixed = all(
            not any(j in written_by(self.steps[p]) for p in self.users[j] if maker < p < at)
            for j in inputs
        )
        return once and fixed and len(set(step.arguments)) == len(step.arguments)

    def make_again(self, choice: _Choice) -> None:
        """A second run of the maker; what follows reads its result. The first run goes if nothing
        needs it any more."""
        maker = self.users[choice.i][0]
        step = self.steps[maker]
        new = {j: len(self.arrays) + n for n, j in enumerate(written_by(step))}
        self.arrays = [*self.arrays, *(replace(self.arrays[j], kind="temporary") for j in new)]
        again = replace(step, arguments=tuple(new.get(j, j) for j in step.arguments))
        instead = {choice.i: new[choice.i]}
        later = [
            replace(s, arguments=tuple(instead.get(j, j) for j in s.arguments))
            for s in self.steps[choice.at :]
        ]
        first = self.steps[: choice.at]
        if self.is_only_for(maker, choice):
            del first[maker]
        why = f"{step.reason}; made again, so that it need not wait (memory_budget)"
        self.steps = [*first, replace(again, reason=why), *later]

    def is_only_for(self, maker: int, choice: _Choice) -> bool:
        """Whether nothing else than what follows a choice reads what a step writes."""
        written = written_by(self.steps[maker])
        return all(
            self.arrays[j].kind == "temporary"
            and not any(p != maker and (j != choice.i or p < choice.at) for p in self.users[j])
            for j in written
        )
