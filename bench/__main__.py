"""Runs the benchmarks: see the package's docstring."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import memory, peers, report, startup
from bench.measure import Row

QUICK = ("numpy", "torch")  # compiling takes the others longer than all the rest


def main() -> None:
    """Everything that was asked for; exits with 1 if a workload failed."""
    options = parsed()
    if options.child is not None:
        child(options)
        return
    if options.chart and (why := report.missing()):
        sys.exit(why)
    asked = bool(options.peers)
    try:
        chosen = options.peers.split(",") if options.peers else QUICK if options.quick else None
        options.peers, missing = peers.installed(chosen or tuple(peers.PACKAGES))
    except ValueError as error:
        sys.exit(str(error))
    for why in missing:
        print(f"left out: {why}", file=sys.stderr)
    counts = [options.threads] if options.threads else sorted({1, len(os.sched_getaffinity(0))})
    rows = [row for threads in counts for row in in_children(options, threads)]
    peers.set_threads(counts[-1])
    quick, found = options.quick, options.peers
    rows += startup.rows(found, asked, quick, 2 * options.budget, lambda n: wanted(options, n))
    rows += memory.rows(found, quick, lambda n: wanted(options, n))
    print(report.table(rows))
    if options.json:
        Path(options.json).write_text(json.dumps([r.as_dict() for r in rows], indent=2) + "\n")
    if options.chart:
        report.chart(rows, Path(options.chart))
    sys.exit(any(row.failed for row in rows))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="mygrad beside its peers")
    add = parser.add_argument
    add("--quick", action="store_true", help="small versions for a short time: does it all work?")
    add("--only", metavar="NAME", default="", help="workloads whose name contains this")
    add("--threads", type=int, help="so many threads (default: one, then all)")
    add("--peers", metavar="A,B", help=f"of {', '.join(peers.PACKAGES)} (default: the installed)")
    add("--budget", type=float, default=60, help="seconds for the first runs of a peer")
    add("--json", metavar="FILE", help="write the rows here")
    add("--chart", metavar="FILE", help="draw the ratios here")
    add("--child", type=int, metavar="SKIP", help=argparse.SUPPRESS)
    return parser.parse_args()


def wanted(options: argparse.Namespace, name: str) -> bool:
    """Whether a workload was chosen."""
    return options.only.lower() in name.lower()


def in_children(options: argparse.Namespace, threads: int) -> list[Row]:
    """The rows of a process with so many threads, because libraries read their number when they are
    imported. A process that dies is followed by another one for the rest."""
    peers.set_threads(threads)
    command = [sys.executable, "-m", "bench", "--threads", str(threads), "--only", options.only]
    command += ["--budget", str(options.budget), "--peers", ",".join(options.peers)]
    command += ["--quick"] * options.quick
    rows: list[Row] = []
    while True:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows.jsonl"
            here = ["--json", str(file), "--child", str(len(rows))]
            code = subprocess.run(command + here).returncode
            names, *found = (json.loads(line) for line in file.read_text().splitlines())
        rows += map(Row.from_dict, found)
        if len(rows) == len(names):
            return rows
        note = f"the process ended with {code}"
        rows.append(Row(names[len(rows)], threads, note=note, failed=True))


def child(options: argparse.Namespace) -> None:
    """Measure here, without the first workloads. Write the names of all, and each row as soon as it
    is known."""
    if options.threads:
        peers.keep_to(options.threads)
    from bench import engine  # noqa: PLC0415  after the number of threads is set

    chosen = options.peers.split(",")
    names = [name for name in engine.WORKLOADS if wanted(options, name)]
    with Path(options.json).open("w") as file:
        print(json.dumps(names), file=file, flush=True)
        for name in names[options.child :]:
            row = engine.measured(name, options.threads, chosen, options.quick, options.budget)
            print(report.table([row]).splitlines()[-1], file=sys.stderr)
            print(json.dumps(row.as_dict()), file=file, flush=True)


if __name__ == "__main__":
    main()
