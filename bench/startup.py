"""What a process costs before it computes: imports, and the first training step of the MNIST
network with an empty and with a full cache. Every figure is of fresh processes."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping

from bench.measure import Row

IMPORT = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"

FIRST_STEP = """
import json, time
start = time.perf_counter()
from bench.workloads import _mnist_layers, training
from mygrad import compiler, realize
spent = dict(schedule=0.0, compile=0.0)
def timed(module, name, label):
    inner = getattr(module, name)
    def outer(*args):
        begin = time.perf_counter()
        try:
            return inner(*args)
        finally:
            spent[label] += time.perf_counter() - begin
    setattr(module, name, outer)
timed(realize, "schedule", "schedule")
timed(compiler, "executables", "compile")
imported = time.perf_counter()
runs = training(_mnist_layers, 128, 1, 28, 28, theirs="{peer}" == "torch")
built = time.perf_counter()
float(runs["{peer}"]().item())
done = time.perf_counter()
spent.update(build=built - imported, step=done - built)
print(json.dumps({{"import": imported - start, **spent}}))
"""


def run(code: str, **environment: str) -> str:
    """The last line that a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip().splitlines()[-1]


def imports(peers: Mapping[str, str], rounds: int = 5) -> Row:
    """Seconds to import each package, in turns."""
    seconds: dict[str, list[float]] = {who: [] for who in peers}
    for _ in range(rounds):
        for who, module in peers.items():
            seconds[who].append(float(run(IMPORT.format(module))))
    return Row("import", 0, {who: statistics.median(s) for who, s in seconds.items()})


def first_steps(with_torch: bool, rounds: int = 3) -> list[Row]:
    """Cold and warm: from the built network to the first loss. Parts are in the note."""
    cold, warm, torch = [], [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            code = FIRST_STEP.format(peer="mygrad")
            cold.append(json.loads(run(code, MYGRAD_CACHE=folder)))
            warm.append(json.loads(run(code, MYGRAD_CACHE=folder)))
        if with_torch:
            torch.append(json.loads(run(FIRST_STEP.format(peer="torch"))))
    rows = []
    for name, ours in (("first MNIST CNN step, cold", cold), ("first MNIST CNN step, warm", warm)):
        seconds = {"mygrad": statistics.median(o["step"] for o in ours)}
        if torch:
            seconds["torch"] = statistics.median(o["step"] for o in torch)
        middle = {k: statistics.median(o[k] for o in ours) for k in ours[0]}
        note = ", ".join(f"{k} {v:.2f} s" for k, v in middle.items() if k != "step")
        rows.append(
            Row(
                name,
                0,
                seconds,
                note + " (build, schedule and compile include the initial weights)",
            )
        )
    return rows
