"""Runs the benchmarks: see the package's docstring."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import peers, startup
from bench.measure import Row, compare, table


def main() -> None:
    """One process for each number of threads, because libraries read it when they are imported."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="mygrad beside its peers")
    parser.add_argument("--quick", action="store_true", help="a few workloads, for a short time")
    parser.add_argument(
        "--only", metavar="NAME", default="", help="workloads whose name contains this"
    )
    parser.add_argument("--threads", type=int, help="so many threads (default: one, then all)")
    parser.add_argument("--json", metavar="FILE", help="write the rows here")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        rows = kernels(options)
        Path(options.json).write_text(json.dumps([r.as_dict() for r in rows]))
        return
    counts = [options.threads] if options.threads else sorted({1, len(os.sched_getaffinity(0))})
    rows = [row for threads in counts for row in in_child(options, threads)]
    if not options.only or options.only in "startup":
        known = {"mygrad": "mygrad", "numpy": "numpy"} | (
            {"torch": "torch"} if peers.optional("torch") else {}
        )
        rows += [
            startup.imports(known),
            *startup.first_steps("torch" in known, 1 if options.quick else 3),
        ]
    print(table(rows))
    if options.json:
        Path(options.json).write_text(json.dumps([r.as_dict() for r in rows], indent=2) + "\n")


def in_child(options: argparse.Namespace, threads: int) -> list[Row]:
    """The rows of a process with so many threads."""
    peers.set_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [
            sys.executable,
            "-m",
            "bench",
            "--child",
            "--threads",
            str(threads),
            "--json",
            str(file),
        ]
        command += ["--only", options.only] + ["--quick"] * options.quick
        subprocess.run(command, check=True)
        found = json.loads(file.read_text())
    return [Row(r["workload"], r["threads"], r["seconds"], r["note"]) for r in found]


def kernels(options: argparse.Namespace) -> list[Row]:
    """Every chosen workload, in this process."""
    from bench import workloads  # noqa: PLC0415  after the number of threads is set

    if workloads.torch is not None:
        workloads.torch.set_num_threads(options.threads)
    names = workloads.QUICK if options.quick else tuple(workloads.WORKLOADS)
    rows = []
    for name in names:
        if options.only in name:
            seconds = 0.5 if options.quick else 3.0
            rows.append(compare(name, options.threads, workloads.WORKLOADS[name](), seconds))
            print(table(rows[-1:]).splitlines()[-1], file=sys.stderr)
    return rows


if __name__ == "__main__":
    main()
