"""Taking turns: every candidate runs once in each round, and medians over the rounds are
compared."""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from bench.peers import Run

REST = 0.25  # seconds after which the waiting threads of the candidate before no longer spin
WARM = 0.05  # seconds that every candidate runs after that before it is timed
Make = Callable[[], Run]  # sets a candidate up
Candidates = Mapping[str, Make]

# Names of candidates: "mygrad"; a peer; "peer/variant", of which the best stands for the peer; and
# "@name", something that is timed beside them and competes with nobody, e.g. a copy.
OURS = "mygrad"


@dataclass(frozen=True)
class Workload:
    """One line of the benchmark.

    make, small     the candidates; `small` is the version of `--quick` (None: left out there)
    flops, bytes    of one run of the full version; bytes are compared with a copy
    tolerance       of the difference from a peer, as a share of the largest value
    steps           so many first results are compared: a training step has to learn, too
    """

    name: str
    make: Callable[[], Candidates]
    small: Callable[[], Candidates] | None = None
    flops: float = 0
    bytes: float = 0
    tolerance: float = 1e-3
    steps: int = 1


@dataclass
class Row:
    """One line of the table. `seconds` are medians; `ratio` is the best peer's over ours. Where
    `figures` are bytes (a row about memory), `seconds` is empty and they are compared."""

    workload: str
    threads: int
    seconds: dict[str, float] = field(default_factory=dict)
    note: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    nbytes: dict[str, float] = field(default_factory=dict)
    failed: bool = False
    best_peer: str = field(init=False)
    ratio: float | None = field(init=False)

    def __post_init__(self) -> None:
        values = self.seconds or self.nbytes
        peers = {name: v for name, v in values.items() if name != OURS}
        self.best_peer = min(peers, key=peers.__getitem__) if peers else ""
        compared = peers and OURS in values and not self.failed
        self.ratio = peers[self.best_peer] / values[OURS] if compared else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Row:
        """The inverse."""
        return cls(**{k: v for k, v in values.items() if k not in ("best_peer", "ratio")})


class TooSlow(Exception):
    """A candidate used up its time."""


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Interrupt the block after so many seconds: as soon as Python runs again, because compiled
    code is not interrupted. Does nothing where there are no alarms."""
    if seconds <= 0 or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: Any) -> None:
        raise TooSlow(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Candidate:
    """What was set up and ran, with its first results and times."""

    run: Run
    results: list[Any]
    first: float  # seconds to set it up and to run it the first time
    repeats: int  # in one measurement
    times: list[float] = field(default_factory=list)

    def done(self, budget: float) -> bool:
        """Whether another round would take too long."""
        return bool(self.times) and sum(self.times) * self.repeats > budget


def compare(
    workload: Workload,
    threads: int,
    candidates: Candidates,
    seconds: float = 2.0,
    budget: float = 60.0,
) -> Row:
    """Time the candidates in turns for about so many seconds, after checking that they agree.

    A peer whose setup and first runs take more than `budget` seconds is left out, and so is one
    that fails; the row's note says so. One that is slow takes part in fewer rounds.

    Raises:
        ValueError: a peer's result differs from ours by more than the tolerance.
    """
    ready: dict[str, Candidate] = {}
    notes = []
    for who, make in candidates.items():
        try:
            with limit(0 if who == OURS else budget):
                ready[who] = _prepare(make, workload.steps)
        except Exception as error:
            if who == OURS:
                raise
            notes.append(f"{who} left out: {brief(error)}")
    check(workload, {who: c.results for who, c in ready.items()})
    _measure(ready, threads, seconds, max(budget / 3, seconds))
    once = [who for who, c in ready.items() if len(c.times) == 1]
    notes += [f"{who} ran once" for who in once]
    return _row(workload, threads, ready, notes)


def brief(error: BaseException) -> str:
    """One line about an error."""
    lines = str(error).strip().splitlines() or [""]
    text = lines[0] if isinstance(error, TooSlow) else f"{type(error).__name__}: {lines[0]}"
    return text[:117] + "..." if len(text) > 120 else text


def _prepare(make: Make, steps: int) -> Candidate:
    begin = time.perf_counter()
    run = make()
    results = [values(run())]
    first = time.perf_counter() - begin
    results += [values(run()) for _ in range(steps - 1)]
    return Candidate(run, results, first, _repeats(run))


def _measure(
    ready: Mapping[str, Candidate], threads: int, seconds: float, budget: float, least: int = 3
) -> None:
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(ready[OURS].times) < least:
        for candidate in ready.values():
            if candidate.done(budget):
                continue
            if threads > 1:
                time.sleep(REST)
                _warm_up(candidate.run)
            candidate.times.append(_once(candidate.run, candidate.repeats))
        if ready[OURS].done(budget):
            break


def _warm_up(run: Run) -> None:
    """Its own threads wake up, and processors that slept take up their clock again."""
    stop = time.perf_counter() + WARM
    run()
    while time.perf_counter() < stop:
        run()


def _row(workload: Workload, threads: int, ready: Mapping[str, Candidate], notes: list[str]) -> Row:
    medians = {who: statistics.median(c.times) for who, c in ready.items()}
    seconds: dict[str, float] = {}
    for who, median in medians.items():
        name, _, variant = who.partition("/")
        if not who.startswith("@") and median < seconds.get(name, float("inf")):
            seconds[name] = median
            if variant:
                notes.append(f"{name}: {variant}")
    figures = {f"{who[1:]} seconds": s for who, s in medians.items() if who.startswith("@")}
    figures |= {f"{who} first seconds": c.first for who, c in ready.items() if who[0] != "@"}
    for unit, work in (("GFLOP/s", workload.flops), ("GB/s", workload.bytes)):
        if work:
            figures |= {f"{who} {unit}": work / s / 1e9 for who, s in seconds.items()}
    return Row(workload.name, threads, seconds, "; ".join(notes), figures)


def _once(run: Run, repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - begin) / repeats


def _repeats(run: Run, least: float = 2e-3) -> int:
    """How often to run in one measurement, so that the clock's grain does not matter."""
    return max(1, int(least / max(_once(run, 1), 1e-7)))


# --- agreement ------------------------------------------------------------------------------------


def values(result: Any) -> list[np.ndarray]:
    """A result, or lists of them, of any library as arrays of float64."""
    if result is None:
        return []
    if isinstance(result, (list, tuple)):
        return [v for part in result for v in values(part)]
    if hasattr(result, "detach"):
        result = result.detach()
    if "bfloat16" in str(getattr(result, "dtype", "")):
        result = result.astype("float32") if hasattr(result, "at") else result.float()
    return [np.asarray(result.numpy() if hasattr(result, "numpy") else result, np.float64)]


def check(workload: Workload, results: Mapping[str, list[list[np.ndarray]]]) -> None:
    """Hold ours against each peer. Results of several steps are compared together, as one array.

    Raises:
        ValueError: they differ.
    """
    ours = _together(results[OURS])
    for who, found in results.items():
        if who.startswith("@") or who == OURS:
            continue
        for a, b in zip(ours, _together(found), strict=True):
            if a.shape != b.shape:
                with suppress(ValueError):  # a peer may keep an axis of length 1
                    b = b.reshape(a.shape)
            if a.shape != b.shape:
                raise ValueError(f"{workload.name}: mygrad gives {a.shape}, {who} {b.shape}")
            error = np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), 1e-30)
            if not error <= workload.tolerance:
                raise ValueError(
                    f"{workload.name}: mygrad and {who} differ by {error:.2g} of the largest value"
                )


def _together(steps: list[list[np.ndarray]]) -> list[np.ndarray]:
    return [np.stack(parts) for parts in zip(*steps, strict=True)]
