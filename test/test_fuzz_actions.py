"""The fuzzer of schedules for a bounded time; and that it finds what is wrong.

The environment variable FUZZ_SEED, a number or `random`, chooses its seed; failures print it.
"""

from __future__ import annotations

import os
import secrets
import time
import typing
from collections import Counter
from collections.abc import Container
from random import Random

import pytest
from fuzz_actions import PLAUSIBLE, Fuzzer, absurd, random_actions, shrunk, until
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_families import FAMILIES, small
from schedule_checks import Case, Wrong, native, statements

from mygrad import codegen
from mygrad import dtype as dt
from mygrad.codegen import emit
from mygrad.codegen.actions import Action, Reorder, ScheduleError, Split, Unroll, Vectorize, start
from mygrad.expr import axis, load, reduce
from mygrad.kernel import BufferInfo, Kernel, Store
from mygrad.ops import Op

SECONDS = 6.0
CERTAIN = 40  # cases that are run however slow the machine is
USUAL = 4  # the seed


def chosen() -> int:
    """The seed that FUZZ_SEED asks for."""
    asked = os.environ.get("FUZZ_SEED") or str(USUAL)
    return secrets.randbelow(1 << 32) if asked == "random" else int(asked)


SEED = chosen()


def fuzz(seed: int, seconds: float) -> Counter[str]:
    """Run the fuzzer; what it did."""
    fuzzer = Fuzzer(seed)
    end = time.monotonic() + seconds
    fuzzer.run(range(CERTAIN))
    fuzzer.run(until(end, CERTAIN))
    assert not fuzzer.failures, "\n\n".join(fuzzer.failures)
    return fuzzer.counts


def test_random_schedules_keep_the_bits() -> None:
    counts = fuzz(SEED, SECONDS)
    common = {"Split", "Reorder", "Vectorize", "Unroll", "Parallel", "Stage", "Defer", "Stream"}
    if SEED == USUAL:  # on a slow machine others may not draw all of them
        assert common <= set(counts), counts
    assert min(counts[kind] for kind in ("actions", "walks", "refused", "native")) > 0, SEED


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 5))
def test_random_schedules_keep_the_bits_for_longer(number: int) -> None:
    counts = fuzz(SEED + number, 120.0)
    missing = {kind.__name__ for kind in typing.get_args(Action)} - set(counts)
    assert not missing, f"seed {SEED + number}: {counts}"


@pytest.mark.parametrize(
    ("asked", "seeds"), [(None, {USUAL}), ("", {USUAL}), ("17", {17}), ("random", range(1 << 32))]
)
def test_the_environment_chooses_the_seed(
    asked: str | None, seeds: Container[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FUZZ_SEED", raising=False)
    if asked is not None:
        monkeypatch.setenv("FUZZ_SEED", asked)
    assert chosen() in seeds


def test_failures_print_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emit.Emitter, "peeled", _without_the_rest)
    with pytest.raises(AssertionError, match=f"--seed {SEED} --case"):
        fuzz(SEED, 0.0)


@pytest.mark.parametrize("family", list(FAMILIES))
@settings(max_examples=5)
@given(rng=st.randoms(use_true_random=False))
def test_schedules_that_hypothesis_draws(family: str, rng: Random) -> None:
    kernel = small(family, rng, 300)
    statements(Case(kernel, random_actions(rng, kernel, Counter())))


def test_every_action_is_drawn() -> None:
    assert set(PLAUSIBLE) == set(typing.get_args(Action))
    scheduled = start(small("product", Random(0), 300))
    rng = Random(0)
    assert {type(absurd(rng, scheduled)) for _ in range(300)} == set(PLAUSIBLE)


@settings(max_examples=60)
@given(rng=st.randoms(use_true_random=False), family=st.sampled_from(list(FAMILIES)))
def test_nonsense_is_refused_as_such(rng: Random, family: str) -> None:
    scheduled = start(small(family, rng, 300))
    for _ in range(4):
        try:
            after = absurd(rng, scheduled).apply(scheduled)
            codegen.lower(after)
            scheduled = after
        except ScheduleError:
            continue


def total(n: int) -> Kernel:
    i, k = axis(0, n), axis(1, n)
    value = reduce(Op.ADD, load(1, dt.float32, i * n + k), (k,))
    infos = (BufferInfo(dt.float32, n, True), BufferInfo(dt.float32, n * n))
    return Kernel("total", (i,), (Store(0, i, value),), infos)


def test_a_wrong_schedule_is_found_and_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lowering that forgets the short tile at the end."""
    needless = (Split("i1", 3), Reorder(("i0", "i1o", "i1i")))
    case = Case(total(19), (*needless, Split("i0", 8), Vectorize("i0i")))
    fine = Case(total(16), case.actions)
    assert statements(case) is not None
    assert native([case, fine]) == []
    monkeypatch.setattr(emit.Emitter, "peeled", _without_the_rest)
    assert statements(fine) is not None
    with pytest.raises(Wrong, match="3 elements of b0 differ, the first at 16"):
        statements(case)
    assert [n for n, _ in native([fine, case])] == [1]
    assert shrunk(case).actions == case.actions[2:]


_peeled = emit.Emitter.peeled


def _without_the_rest(self: emit.Emitter, *arguments: typing.Any) -> typing.Any:
    return _peeled(self, *arguments)[:1]


def test_machine_code_that_leaves_its_buffers_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole vectors where the last one is short."""
    case = Case(total(19), (Split("i0", 8), Vectorize("i0i")))
    fine = Case(total(16), (Split("i0", 4), Unroll("i0i")))
    monkeypatch.setattr(emit, "min", max, raising=False)
    found = native([fine, case, fine])
    assert [n for n, _ in found] == [1]
    assert "SIG" in str(found[0][1])


def test_cases_are_reproducible() -> None:
    texts = []
    for _ in range(2):
        fuzzer = Fuzzer(7)
        for number in (3, 5):
            fuzzer.one(number)
        texts.append([str(case) for _, case in fuzzer.waiting])
    assert texts[0] == texts[1]
    assert texts[0]
