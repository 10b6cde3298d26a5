"""A fuzzer of schedules: random kernels, random lists of actions, every result compared.

    python test/fuzz_actions.py --seconds 3600 [--seed N]

Two generators of lists, each of them over the kernels of `kernel_cases` and `kernel_families`:

- *actions*: any action with any arguments, most of them plausible, some absurd. One that is not
  legal must be refused as a ScheduleError; what was accepted must be lowered, or be a
  ScheduleError then;
- *walks*: from the default schedule of a machine over `codegen/neighbours.py`: what the tuner can
  reach.

What is left is run by the interpreter of statements, and as machine code between guard pages in
forked children, many at a time. All must give the bits of the `reference`. For what fails, the
number of the case, the kernel and a shrunk list of actions are printed; `--seed N --case M` runs
one again.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random

import guarded
from kernel_cases import random_kernel
from kernel_families import FAMILIES, points, small
from schedule_checks import (
    MACHINES,
    Case,
    Wrong,
    default,
    lowered,
    native,
    runs_here,
    small_caches,
    small_limits,
    statements,
)
from schedule_checks import mechanisms as mechanisms_of

from mygrad.codegen.actions import (
    Action,
    Defer,
    Keep,
    Parallel,
    Reorder,
    Schedule,
    ScheduleError,
    Split,
    Stage,
    Stream,
    Tensorize,
    Unroll,
    Vectorize,
    start,
)
from mygrad.codegen.neighbours import neighbours
from mygrad.expr import free_axes
from mygrad.helpers import prod
from mygrad.kernel import Kernel, verify
from mygrad.ops import Op

POINTS = 700  # of a kernel: more take the interpreter too long
CELLS = 256  # points of a tile: more take LLVM too long
TOGETHER = 24  # cases of one child
STEPS = 8  # actions
LOOKED_AT = 60  # neighbours, of which one is taken
FACTORS = (2, 2, 3, 4, 4, 8, 8, 16, 5, 64)

# --- actions --------------------------------------------------------------------------------------


def some(rng: Random, names: list[str], low: int = 0) -> tuple[str, ...]:
    """Some of the loops in any order."""
    return tuple(rng.sample(names, rng.randint(min(low, len(names)), len(names))))


def stage(rng: Random, s: Schedule) -> Stage:
    """A copy of any operand, laid out over the loops inside of its place that it depends on."""
    loads = [e for e in s.kernel.nodes if e.op is Op.LOAD]
    if not loads:
        return Stage(0, "", ())
    e, n = rng.choice(loads), rng.randint(-1, len(s.loops) - 1)
    layout = [p.name for p in s.loops[n + 1 :] if p.root in free_axes(e)]
    if rng.random() < 0.5:
        rng.shuffle(layout)
    at = s.loops[n].name if n >= 0 else ""
    return Stage(e.arg, at, tuple(layout), rng.random() < 0.5)


def tensorize(rng: Random, s: Schedule) -> Tensorize:
    """Tiles of output loops and loops of reductions; operands packed anywhere."""
    outputs = [p.name for p in s.loops if p.root in s.kernel.axes]
    depth = [p.name for p in s.loops if p.root not in s.kernel.axes]
    at = ["", *outputs]
    half = rng.randint(0, len(outputs))
    rows, columns = outputs[:half], outputs[half:]
    if rng.random() < 0.3:
        rows, columns = columns, rows
    sides = tuple(rows[-1:]), tuple(columns[-1:])
    return Tensorize(*sides, some(rng, depth, 1), rng.choice(at), rng.choice(at))


def defer(rng: Random, s: Schedule) -> Defer:
    """Unrolled loops of outputs."""
    return Defer(some(rng, [p.name for p in s.loops if p.kind == "unroll"], 1))


def any_name(rng: Random, s: Schedule) -> str:
    """The name of a loop."""
    return rng.choice([p.name for p in s.loops] or ["i0"])


def innermost(rng: Random, s: Schedule) -> str:
    """The name of a loop that may run in lockstep."""
    return rng.choice([p.name for p in s.loops if p.stride == 1 and p.kind == "seq"] or ["i0"])


def slot(rng: Random, s: Schedule) -> int:
    """A buffer that is written."""
    return rng.choice([n for n, b in enumerate(s.kernel.buffers) if b.written])


PLAUSIBLE: dict[type, Callable[[Random, Schedule], Action]] = {
    Split: lambda rng, s: Split(any_name(rng, s), rng.choice(FACTORS)),
    Reorder: lambda rng, s: Reorder(some(rng, [p.name for p in s.loops], 2)),
    Vectorize: lambda rng, s: Vectorize(innermost(rng, s)),
    Unroll: lambda rng, s: Unroll(any_name(rng, s)),
    Parallel: lambda rng, s: Parallel(any_name(rng, s)),
    Stage: stage,
    Keep: lambda rng, s: Keep(rng.choice((0, 0, 0, 1))),
    Defer: defer,
    Stream: lambda rng, s: Stream(slot(rng, s)),
    Tensorize: tensorize,
}
WEIGHTS = {Split: 6, Vectorize: 3, Reorder: 2, Unroll: 3, Stage: 2}  # of the others: 1


def absurd(rng: Random, s: Schedule) -> Action:
    """Any action with arguments that may be nonsense."""
    names = [*(p.name for p in s.loops), "", "i99", "i0oi", rng.choice(("x", "i-1"))]

    def name() -> str:
        return rng.choice(names)

    def group() -> tuple[str, ...]:
        return tuple(name() for _ in range(rng.randint(0, 3)))

    number = rng.choice((-2, -1, 0, 1, 2, 99, 1 << 40))
    made: dict[type, Action] = {
        Split: Split(name(), number),
        Reorder: Reorder(group()),
        Vectorize: Vectorize(name()),
        Unroll: Unroll(name()),
        Parallel: Parallel(name()),
        Stage: Stage(number, name(), group(), rng.random() < 0.5),
        Keep: Keep(number),
        Defer: Defer(group()),
        Stream: Stream(number),
        Tensorize: Tensorize(group(), group(), group(), name(), name()),
    }
    return made[rng.choice(list(made))]


def cells(s: Schedule) -> int:
    """Points of all tiles together."""
    return prod(p.extent for p in s.loops if p.is_tile)


def random_actions(rng: Random, kernel: Kernel, counts: Counter[str]) -> tuple[Action, ...]:
    """Legal actions, each after the other. Those that are refused are left out, and mostly those
    with which the loops cannot be lowered."""
    s, taken = start(kernel), []
    kinds = list(PLAUSIBLE)
    weights = [WEIGHTS.get(kind, 1) for kind in kinds]
    for _ in range(rng.randint(1, STEPS)):
        kind = rng.choices(kinds, weights)[0]
        action = absurd(rng, s) if rng.random() < 0.1 else PLAUSIBLE[kind](rng, s)
        after = applied(kernel, taken, s, action, counts)
        if after is None or cells(after) > CELLS:
            continue
        can = not isinstance(action, Reorder | Stage | Keep | Defer | Tensorize)
        if can or rng.random() < 0.1 or lowered(Case(kernel, (*taken, action))) is not None:
            s = after
            taken.append(action)
    return tuple(taken)


def applied(
    kernel: Kernel, taken: list[Action], s: Schedule, action: Action, counts: Counter[str]
) -> Schedule | None:
    """The schedule after one more action; None if it is refused.

    Raises:
        Wrong: it is refused in another way than by a ScheduleError.
    """
    try:
        after = action.apply(s)
        str(after)
    except ScheduleError:
        counts["refused"] += 1
        return None
    except Exception as error:
        raise Wrong(f"{error!r} of {action} after\n{Case(kernel, tuple(taken))}") from error
    return after


# --- cases ----------------------------------------------------------------------------------------


def any_kernel(rng: Random) -> Kernel:
    """Of one of the two sources."""
    if rng.random() < 0.25:
        return next(k for k in (random_kernel(rng) for _ in itertools.count()) if small_enough(k))
    return small(rng.choice(list(FAMILIES)), rng, POINTS)


def small_enough(kernel: Kernel) -> bool:
    return points(kernel) <= POINTS and start(kernel).loops != ()


def by_actions(rng: Random, counts: Counter[str]) -> Case:
    """A kernel with random actions."""
    kernel = any_kernel(rng)
    verify(kernel)
    target = MACHINES[rng.choice(list(MACHINES))]
    return Case(kernel, random_actions(rng, kernel, counts), target)


def by_walk(rng: Random, counts: Counter[str]) -> Case:
    """A kernel some steps away from its default schedule."""
    kernel = any_kernel(rng)
    case = default(kernel, small_caches(MACHINES[rng.choice(list(MACHINES))]))
    for _ in range(rng.randint(0, 4)):
        try:
            found = list(itertools.islice(neighbours(kernel, case.actions), LOOKED_AT))
        except Exception as error:
            raise Wrong(f"neighbours: {error!r}\n{case}") from error
        found = [a for a in found if cells(Case(kernel, a).schedule) <= CELLS]
        if not found:
            break
        case = Case(kernel, rng.choice(found), case.target)
    return case


GENERATORS = {"actions": by_actions, "walks": by_walk}


def made(seed: int, number: int, counts: Counter[str]) -> tuple[str, Case]:
    """Case `number` of a seed: reproducible by itself."""
    rng = Random(f"{seed} {number}")
    kind = "walks" if number % 3 == 2 else "actions"
    return kind, GENERATORS[kind](rng, counts)


class Fuzzer:
    """What was run, and what failed, of one seed."""

    def __init__(self, seed: int, say: Callable[[str], None] = lambda line: None) -> None:
        self.seed, self.say = seed, say
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.waiting: list[tuple[int, Case]] = []

    def run(self, numbers: Iterator[int] | range) -> None:
        """These cases; machine code comes in groups."""
        for number in numbers:
            with small_limits():
                self.one(number)
            if len(self.waiting) >= TOGETHER:
                self.native()
        self.native()

    def one(self, number: int) -> None:
        """Make a case and run its statements."""
        self.counts["cases"] += 1
        try:
            kind, case = made(self.seed, number, self.counts)
            function = statements(case)
        except Wrong as wrong:
            self.failed(number, wrong)
            return
        self.counts["lowered" if function is not None else "not lowered"] += 1
        if function is not None:
            self.counts[kind] += 1
            self.counts += mechanisms_of(case)
            if runs_here(case):
                self.waiting.append((number, case))

    def native(self) -> None:
        """Run the machine code of what waits for it."""
        waiting, self.waiting = self.waiting, []
        with small_limits():
            found = native([case for _, case in waiting])
            self.counts["native"] += len(waiting)
            for n, wrong in found:
                self.failed(waiting[n][0], wrong)

    def failed(self, number: int, wrong: Wrong) -> None:
        """Keep what is to be known of a failure, and say it."""
        shown = str(wrong)
        with contextlib.suppress(Wrong), small_limits():
            case = made(self.seed, number, Counter())[1]
            shown = f"{shown}\nshrunk: {list(shrunk(case).actions)}"
        text = f"--seed {self.seed} --case {number}\n{shown}"
        self.failures.append(text)
        self.say(text)


def fails(case: Case) -> bool:
    """Whether the case is legal, and wrong."""
    try:
        case.schedule  # noqa: B018
        statements(case)
    except ScheduleError:
        return False
    except Wrong:
        return True
    return runs_here(case) and bool(native([case]))


def shrunk(case: Case) -> Case:
    """The case without actions that it fails without."""
    n = len(case.actions) - 1  # from the last, since later actions name what earlier ones made
    while n >= 0:
        less = Case(case.kernel, case.actions[:n] + case.actions[n + 1 :], case.target)
        case = less if fails(less) else case
        n -= 1
    return case


def until(deadline: float, first: int = 0) -> Iterator[int]:
    """Numbers, as long as there is time."""
    for number in itertools.count(first):
        if time.monotonic() > deadline:
            return
        yield number


def main() -> int:
    """Run for a time, or one case again; 1 if anything failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--case", type=int, default=None, help="run this one alone")
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    fuzzer = Fuzzer(asked.seed, lambda text: print(f"FAILED {text}\n", flush=True))
    guarded.cpu()
    if asked.case is not None:
        fuzzer.run(range(asked.case, asked.case + 1))
    else:
        fuzzer.run(until(time.monotonic() + asked.seconds))
    print(", ".join(f"{count} {name}" for name, count in sorted(fuzzer.counts.items())))
    print(f"{len(fuzzer.failures)} failures")
    return 1 if fuzzer.failures else 0


if __name__ == "__main__":
    sys.exit(main())
