"""One workload, measured in this process: who takes part, and what becomes of errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bench.arrays import COPIED
from bench.measure import OURS, Candidates, Row, Workload, brief, compare
from bench.peers import torch
from bench.workloads import WORKLOADS

TINYGRAD_FLOPS = 5e10  # its steps of more than this take a minute each
SECONDS = 3.0


def measured(name: str, threads: int, peers: Sequence[str], quick: bool, budget: float) -> Row:
    """The row of a workload; its `failed` is set where mygrad fails or a result differs."""
    workload = WORKLOADS[name]
    if "torch" in peers:
        torch.set_num_threads(threads)
    make = workload.small if quick and workload.small else workload.make
    try:
        made, note = chosen(workload, make(), peers, quick)
        row = compare(workload, threads, made, 0.2 if quick else SECONDS, budget)
    except Exception as error:
        return Row(name, threads, note=brief(error), failed=True)
    notes = [n for n in ("small version" * quick, note, row.note) if n]
    figures = {} if quick else row.figures  # rates are those of the full version
    if "copy seconds" in figures:
        figures["copy GB/s"] = 8 * COPIED / figures["copy seconds"] / 1e9  # read and written
    return replace(row, note="; ".join(notes), figures=figures)


def chosen(
    workload: Workload, made: Candidates, peers: Sequence[str], quick: bool
) -> tuple[Candidates, str]:
    """The candidates that take part, and a note on those that cannot."""
    taking = {
        who: make
        for who, make in made.items()
        if who == OURS or who.startswith("@") or who.partition("/")[0] in peers
    }
    if "tinygrad" in taking and workload.flops > TINYGRAD_FLOPS and not quick:
        del taking["tinygrad"]
        return taking, f"tinygrad left out: above {TINYGRAD_FLOPS:.0e} flops"
    return taking, ""
