"""Taking turns: every candidate runs once in each round, and medians over the rounds are
compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

REST = 0.25  # seconds after which the waiting threads of the candidate before no longer spin
Run = Callable[[], Any]  # runs once, waits for the result, returns it


@dataclass
class Row:
    """One line of the table. `seconds` are medians; `ratio` is the best peer's over ours."""

    workload: str
    threads: int
    seconds: dict[str, float]
    note: str = ""
    best_peer: str = field(init=False)
    ratio: float = field(init=False)

    def __post_init__(self) -> None:
        peers = {name: s for name, s in self.seconds.items() if name != "mygrad"}
        self.best_peer = min(peers, key=peers.__getitem__) if peers else ""
        self.ratio = peers[self.best_peer] / self.seconds["mygrad"] if peers else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare(
    name: str,
    threads: int,
    candidates: Mapping[str, Run],
    seconds: float = 2.0,
    tolerance: float = 1e-3,
) -> Row:
    """Time the candidates in turns for about so many seconds, after checking that they agree.

    Raises:
        ValueError: a peer's result differs from ours by more than `tolerance`, relative to the
        largest.
    """
    results = {who: _values(run()) for who, run in candidates.items()}
    _check(name, results, tolerance)
    repeats = {who: _repeats(run) for who, run in candidates.items()}
    rounds: dict[str, list[float]] = {who: [] for who in candidates}
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(rounds["mygrad"]) < 3:
        for who, run in candidates.items():
            if threads > 1:
                time.sleep(REST)
                run()  # its own threads wake up
            rounds[who].append(_once(run, repeats[who]))
    return Row(name, threads, {who: statistics.median(times) for who, times in rounds.items()})


def _once(run: Run, repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - begin) / repeats


def _repeats(run: Run, least: float = 2e-3) -> int:
    """How often to run in one measurement, so that the clock's grain does not matter."""
    return max(1, int(least / max(_once(run, 1), 1e-7)))


def _values(result: Any) -> list[np.ndarray]:
    if result is None:
        return []
    if isinstance(result, (list, tuple)):
        return [v for part in result for v in _values(part)]
    if hasattr(result, "detach"):
        result = result.detach()
    return [np.asarray(result.numpy() if hasattr(result, "numpy") else result, np.float64)]


def _check(name: str, results: Mapping[str, list[np.ndarray]], tolerance: float) -> None:
    ours = results["mygrad"]
    for who, theirs in results.items():
        for a, b in zip(ours, theirs, strict=False):
            error = np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), 1e-30)
            if not error <= tolerance:
                raise ValueError(
                    f"{name}: mygrad and {who} differ by {error:.2g} of the largest value"
                )


def table(rows: list[Row]) -> str:
    """The rows as text: times in a readable unit, and the ratio."""
    peers = list(dict.fromkeys(who for row in rows for who in row.seconds))
    lines = [["workload", "threads", *peers, "best peer / ours", ""]]
    for row in rows:
        times = [duration(row.seconds[who]) if who in row.seconds else "-" for who in peers]
        ratio = "-" if row.ratio != row.ratio else f"{row.ratio:.2f} ({row.best_peer})"
        lines.append([row.workload, str(row.threads), *times, ratio, row.note])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def duration(seconds: float) -> str:
    """Three digits with a unit: 0.00123 -> '1.23 ms'."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
