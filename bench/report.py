"""Rows as a table and as a chart."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from bench.measure import OURS, Row
from bench.peers import PACKAGES


def table(rows: list[Row]) -> str:
    """Times in a readable unit, the ratio, and what else was measured."""
    present = {who for row in rows for who in row.seconds | row.nbytes} | {OURS}
    order = {who: i for i, who in enumerate((OURS, *PACKAGES))}
    peers = sorted(present, key=lambda who: (order.get(who, len(order)), who))
    lines = [["workload", "threads", *peers, "best peer / ours", "", ""]]
    for row in rows:
        times = [amount(row, who) for who in peers]
        ratio = "failed" if row.failed else "-"
        if row.ratio is not None:
            ratio = f"{row.ratio:.2f} ({row.best_peer})"
        lines.append([row.workload, str(row.threads or "-"), *times, ratio, figures(row), row.note])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def amount(row: Row, who: str) -> str:
    """The time, or the bytes, of one candidate."""
    if who in row.seconds:
        return duration(row.seconds[who])
    return f"{row.nbytes[who] / 2**20:.0f} MiB" if who in row.nbytes else "-"


def figures(row: Row) -> str:
    """Our rates, the rate of a copy, and what else was timed beside."""
    parts = [
        f"{row.figures[f'{OURS} {unit}']:.3g} {unit}"
        for unit in ("GFLOP/s", "GB/s")
        if f"{OURS} {unit}" in row.figures
    ]
    if "copy GB/s" in row.figures:
        parts.append(f"copy {row.figures['copy GB/s']:.3g} GB/s")
    parts += [
        f"{name.removesuffix(' seconds')} {duration(value)}"
        for name, value in row.figures.items()
        if name.endswith(" seconds") and not name.endswith(("first seconds", "copy seconds"))
    ]
    parts += [f"{k} {v / 2**20:.0f} MiB" for k, v in row.figures.items() if k.endswith("bytes")]
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Three digits with a unit: 0.00123 -> '1.23 ms'."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def missing() -> str | None:
    """Why no chart can be drawn, or None."""
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        return "--chart needs matplotlib: pip install 'mygrad[bench]'"
    return None


def chart(rows: list[Row], file: Path) -> None:
    """A bar for each ratio, on a logarithmic scale: to the right of 1 mygrad is ahead."""
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    plot: Any = importlib.import_module("matplotlib.pyplot")
    shown = [row for row in rows if row.ratio is not None]
    names = list(dict.fromkeys(row.workload for row in shown))
    counts = sorted({row.threads for row in shown})
    height = 0.8 / max(len(counts), 1)
    figure, axes = plot.subplots(figsize=(9, 1.5 + 0.32 * len(names)))
    for i, threads in enumerate(counts):
        mine = [row for row in shown if row.threads == threads]
        places = [names.index(row.workload) + (i - (len(counts) - 1) / 2) * height for row in mine]
        label = f"{threads} thread{'s' * (threads != 1)}" if threads else "fresh processes"
        widths = [(row.ratio or 1) - 1 for row in mine]
        bars = axes.barh(places, widths, height, left=1, label=label)  # from 1 to the ratio
        texts = [f"{row.ratio:.2f} {row.best_peer}" for row in mine]
        axes.bar_label(bars, texts, padding=2, fontsize=6)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("time of the best peer / time of mygrad (more is better)")
    if shown:
        axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    plot.close(figure)
