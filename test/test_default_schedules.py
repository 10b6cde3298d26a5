"""The default schedule of any kernel, on five machines, with limits that make every mechanism of
the analysis happen on small shapes: by the interpreter of statements and by machine code, bit for
bit as `reference` has it.

Kernels are drawn until each mechanism that their family is there for has been met; those that show
nothing new are checked as long as they are among the first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_families import FAMILIES, small
from schedule_checks import (
    MACHINES,
    Case,
    default,
    mechanisms,
    native,
    runs_here,
    small_caches,
    small_limits,
    statements,
)

from mygrad import dtype as dt

# what must have happened to the kernels of a family, or the test says nothing
USUAL = {"Split", "Vectorize", "Parallel", "Reorder"}
SUM = {*USUAL, "Unroll", "lanes of a sum"}
MECHANISMS = {
    "product": {*SUM, "copy outside", "copy inside", "Defer", "blocked sum", "Tensorize"},
    "convolution": {*SUM, "copy outside", "copy inside", "Defer", "blocked sum"},
    "rows": {*SUM, "Keep"},
    "sums": {*SUM, "blocked sum"},
    "scans": {*USUAL, "Stream"},
    "scatter": {*USUAL, "Unroll"},
    "gather": SUM,
    "moves": {*USUAL, "Unroll", "Stream", "copy inside"},
    "masked": {*SUM, "copy outside", "steps left out"},
    "tiles": {*USUAL, "Stream"},
}
FIRST, EACH = 10, 2  # cases that are checked in any case, and of each mechanism
DRAWN = 600  # kernels of which one must show it


def drawn(family: str, rng: Random, points: int) -> Case:
    """A kernel on a machine with 1 or 3 threads; on most of them everything is small."""
    kernel = small(family, rng, points)
    names = list(MACHINES)
    if any(b.dtype in (dt.bfloat16, dt.int8) for b in kernel.buffers):
        names += ["amx", "dot"] * 2
    target = replace(MACHINES[rng.choice(names)], threads=rng.choice((1, 3, 3)))
    if rng.random() < 0.15:
        return default(kernel, target)
    with small_limits():
        return default(kernel, small_caches(target))


def chosen(family: str, first: int, each: int, points: int) -> Iterator[Case]:
    """The first kernels, then those that show a mechanism not seen often enough."""
    seen: Counter[str] = Counter()
    for n in range(max(DRAWN, first)):
        case = drawn(family, Random(f"{family} {n}"), points)
        shown = {m for m in mechanisms(case) if m in MECHANISMS[family] and seen[m] < each}
        if n < first or shown:
            seen.update(set(mechanisms(case)))
            yield case
        if n >= first and all(seen[m] >= each for m in MECHANISMS[family]):
            return
    missing = {m for m in MECHANISMS[family] if seen[m] < each}
    assert not missing, f"kernels of the family {family} never show {missing}"


def check(cases: Iterator[Case]) -> None:
    """Statements one by one, machine code all together."""
    waiting = []
    for case in cases:
        with small_limits():
            assert statements(case) is not None, f"it cannot be lowered\n{case}"
        if runs_here(case):
            waiting.append(case)
    with small_limits():
        found = native(waiting)
    assert not found, "\n\n".join(str(wrong) for _, wrong in found)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_default_schedules(family: str) -> None:
    check(chosen(family, FIRST, EACH, 800))


@pytest.mark.slow
@pytest.mark.parametrize("family", list(FAMILIES))
def test_default_schedules_of_many(family: str) -> None:
    check(chosen(family, 500, 5, 2500))


@settings(max_examples=25)
@given(rng=st.randoms(use_true_random=False), family=st.sampled_from(list(FAMILIES)))
def test_statements_of_default_schedules(rng: Random, family: str) -> None:
    """What fails here is shrunk."""
    with small_limits():
        assert statements(drawn(family, rng, 300)) is not None
