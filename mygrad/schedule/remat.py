"""Rematerialisation: a schedule that needs more memory than allowed computes some arrays twice.

    a = f(x) ... long ... g(a)      ->      a = f(x) ... long ... a' = f(x); g(a')

Of the arrays that wait while the most memory is in use, the one goes that frees most bytes for the
time that making it again takes, until the budget is met (Chen et al. 2016, 1604.06174, choose in
the same spirit, by layers). An array is made again from what is alive at that time, or from inputs;
if operands must wait longer for it, they count against it. A part of a joined array lies inside of
it: only if it is the one part that is there so early, making it again lets the whole come later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mygrad.errors import DeviceError, message
from mygrad.helpers import quantity
from mygrad.kernel import Kernel
from mygrad.schedule import cost, memory
from mygrad.schedule.bands import users_of, written_by
from mygrad.schedule.steps import Memory, Step, Threads, local_bytes_of, peak_of


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
        self.users: dict[int, list[int]] = {}
        self.inside: memory.Inside = {}
        self.life: dict[int, memory.Lifetime] = {}  # of what the arenas hold

    def peak(self) -> int:
        """Bytes of the arenas."""
        self.users = users_of(self.steps)
        planned = memory.plan(self.steps, self.arrays)
        self.inside, self.life = planned.inside, planned.life
        return sum(planned.nbytes.values())

    def place(self, i: int) -> int:
        """The array that has a place of its own in the arena: this one, or what it is part of."""
        return self.inside.get(i, (i, 0))[0]

    def improve(self) -> bool:
        """Make the best array again; whether there was one."""
        busiest = self.busiest()
        choice = max(self.choices(busiest), key=lambda c: c.freed / c.time, default=None)
        if choice is not None:
            self.make_again(choice)
        return choice is not None

    def busiest(self) -> int:
        """The step during which most bytes are alive."""
        change = [0] * (len(self.steps) + 1)
        for need in self.life.values():
            change[need.first] += need.nbytes
            change[need.last + 1] -= need.nbytes
        alive, most, found = 0, -1, 0
        for position, n in enumerate(change[:-1]):
            alive += n
            if alive > most:
                most, found = alive, position
        return found

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
        """A second run of the maker; what follows reads its result."""
        step = self.steps[self.users[choice.i][0]]
        new = {j: len(self.arrays) + n for n, j in enumerate(written_by(step))}
        self.arrays += [replace(self.arrays[j], kind="temporary") for j in new]
        again = replace(step, arguments=tuple(new.get(j, j) for j in step.arguments))
        instead = {choice.i: new[choice.i]}
        later = [
            replace(s, arguments=tuple(instead.get(j, j) for j in s.arguments))
            for s in self.steps[choice.at :]
        ]
        why = f"{step.reason}; made again, so that it need not wait (memory_budget)"
        self.steps[choice.at :] = [replace(again, reason=why), *later]
