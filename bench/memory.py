"""Peak memory of a training step, in fresh processes: what is resident above the state before the
network exists, beside what our plan predicted."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import startup
from bench.measure import OURS, Row
from bench.peers import PACKAGES

TASK = "nanoGPT step"
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MEASURE = """
import gc, json
from bench import memory, training
from mygrad.prepared import Prepared
make = training.candidates({task!r}, {small})[{who!r}]
__import__({package!r})
gc.collect()
before = memory.resident()
run = make()
for _ in range(3):
    run()
peak = memory.peak() - before
plans = [o.schedule.peak_bytes for o in gc.get_objects() if isinstance(o, Prepared)]
print(json.dumps([peak, max(plans)]))
"""


def rows(peers: Sequence[str], quick: bool, wanted: Callable[[str], bool]) -> list[Row]:
    """Ours and eager PyTorch's."""
    name = f"memory {TASK}"
    if not wanted(name) or not RESET.exists():
        return []
    nbytes, figures = {}, {}
    for who in (OURS, *(p for p in peers if p == "torch")):
        code = MEASURE.format(task=TASK, small=quick, who=who, package=PACKAGES.get(who, OURS))
        try:
            startup.run(code)  # so that nothing is compiled in the one that counts
            nbytes[who], predicted = json.loads(startup.run(code))
        except subprocess.CalledProcessError as error:
            return [Row(name, 0, note=error.stderr.strip().splitlines()[-1], failed=True)]
        if who == OURS:
            figures["our plan, without weights and moments, bytes"] = predicted
    return [Row(name, 0, {}, "small version" * quick, figures, nbytes)]


def resident() -> int:
    """Bytes in memory now; the peak counts from here on."""
    RESET.write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """The most bytes in memory since `resident` was asked. Not `ru_maxrss`, which starts with what
    the parent had."""
    return _status("VmHWM")


def _status(name: str) -> int:
    (line,) = (x for x in STATUS.read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024
