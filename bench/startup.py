"""What a process costs before it computes: imports, and the first training step with an empty and
with a full cache. Every figure is of fresh processes."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

from bench.measure import OURS, Row
from bench.peers import PACKAGES

IMPORT = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
TASKS = {"MLP": "MLP step", "MNIST CNN": "MNIST CNN step 128", "nanoGPT": "nanoGPT step"}

FIRST_STEP = """
import json, time, types
start = time.perf_counter()
from bench import training
from mygrad import compiler, realize
spent = dict(schedule=0.0, compile=0.0)
def timed(label, inner):
    def outer(*args, **kwargs):
        begin = time.perf_counter()
        try:
            return inner(*args, **kwargs)
        finally:
            spent[label] += time.perf_counter() - begin
    return outer
scheduler = realize.scheduler  # imported when it is first needed
schedule = timed("schedule", lambda *args: scheduler.schedule(*args))
realize.scheduler = types.SimpleNamespace(schedule=schedule)
compiler.executables = timed("compile", compiler.executables)
imported = time.perf_counter()
run = training.candidates({task!r}, {small})[{who!r}]()
built = time.perf_counter()
float(run().item())
done = time.perf_counter()
spent.update(build=built - imported, step=done - built)
print(json.dumps({{"import": imported - start, **spent}}))
"""

# where each keeps what it compiled
CACHES = (
    "MYGRAD_CACHE",
    "TORCHINDUCTOR_CACHE_DIR",
    "JAX_COMPILATION_CACHE_DIR",
    "XDG_CACHE_HOME",  # tinygrad
)
ALWAYS = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def rows(
    peers: Sequence[str],
    asked: bool,
    quick: bool,
    budget: float,
    wanted: Callable[[str], bool],
) -> list[Row]:
    """Imports of all peers, and first steps: of PyTorch, and of the others only if `--peers` asked
    for them, since they compile for up to minutes; at most so many seconds for each."""
    compared = [p for p in peers if p == "torch" or (asked and p != "numpy")]
    found = []
    if wanted("startup import"):
        found.append(imports(list(dict.fromkeys(PACKAGES[p] for p in peers)), 1 if quick else 5))
    for label, task in TASKS.items():
        if wanted(f"startup first {label} step"):
            found += first_steps(label, task, compared, quick, budget)
    return found


def run(code: str, timeout: float | None = None, **environment: str) -> str:
    """The last line that a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=timeout,
    )
    return done.stdout.strip().splitlines()[-1]


def imports(packages: Sequence[str], rounds: int = 5) -> Row:
    """Seconds to import each package, in turns."""
    seconds: dict[str, list[float]] = {who: [] for who in (OURS, *packages)}
    for _ in range(rounds):
        for who, times in seconds.items():
            times.append(float(run(IMPORT.format(who))))
    return Row("startup import", 0, {who: statistics.median(s) for who, s in seconds.items()})


def first_steps(
    label: str, task: str, peers: Sequence[str], quick: bool, budget: float
) -> list[Row]:
    """Cold and warm: from the network with its weights to the first loss."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {"cold": {}, "warm": {}}
    notes = []
    for who in (OURS, *peers):
        try:
            for _ in range(1 if quick or who != OURS else 3):
                code = FIRST_STEP.format(task=task, small=quick, who=who)
                with tempfile.TemporaryDirectory() as folder:
                    places = dict.fromkeys(CACHES, folder) | ALWAYS
                    for state in found.values():
                        figures = json.loads(run(code, None if who == OURS else budget, **places))
                        state.setdefault(who, []).append(figures)
        except subprocess.TimeoutExpired:
            notes.append(f"{who} left out: more than {budget:g} s")
        except subprocess.CalledProcessError as error:
            lines = error.stderr.strip().splitlines() or [""]
            notes.append(f"{who} left out: {lines[-1]}")
    return [_row(f"startup first {label} step, {k}", v, notes) for k, v in found.items()]


def _row(name: str, found: dict[str, list[dict[str, float]]], notes: list[str]) -> Row:
    if OURS not in found:
        return Row(name, 0, note="; ".join(notes), failed=True)
    parts = {k: statistics.median(o[k] for o in found[OURS]) for k in found[OURS][0]}
    seconds = {who: statistics.median(o["step"] for o in all_) for who, all_ in found.items()}
    figures = {f"{k} seconds": v for k, v in parts.items() if k != "step"}
    note = "build, schedule and compile include the initial weights"
    return Row(name, 0, seconds, "; ".join([note, *notes]), figures)
