"""What the examples share: options, a progress bar, results as JSON, pictures."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mygrad.errors import MissingPackageError
from mygrad.helpers import atomic_write, optional_import


def parser(description: str, **defaults: Any) -> argparse.ArgumentParser:
    """The options that every example has; `defaults` are those of this one.

    >>> parser("...", epochs=5, batch_size=128, lr=1e-3).parse_args(["--steps", "10"]).steps
    10
    """
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument("--seed", type=int, default=0, help="seed of weights and batches")
    made.add_argument("--epochs", type=positive, default=1, help="passes over the data")
    made.add_argument("--steps", type=positive, default=None, help="stop after so many steps")
    made.add_argument("--batch-size", type=positive, default=64, help="samples per step")
    made.add_argument("--lr", type=float, default=1e-3, help="learning rate")
    made.add_argument("--json", type=Path, default=None, metavar="FILE", help="write results here")
    made.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="files made")
    made.set_defaults(**defaults)
    return made


def positive(text: str) -> int:
    """An option that is a whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


class Progress:
    """Goes through items and shows how far, by tqdm where that is installed, else silently.

    >>> for item in (bar := Progress(items, "epoch 1")):
    ...     bar.note(loss=0.5)
    """

    def __init__(self, items: Iterable[Any], label: str, total: int | None = None) -> None:
        self.bar: Any = None
        self.items = items
        try:
            tqdm = optional_import("tqdm", "progress bar", "examples")
        except MissingPackageError:
            print(label, file=sys.stderr)
            return
        # disable=None: no bar when stderr is not a terminal
        self.items = self.bar = tqdm.tqdm(items, label, total=total, disable=None)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def note(self, **values: float) -> None:
        """Show values beside the bar."""
        if self.bar is not None:
            self.bar.set_postfix({name: f"{value:.4f}" for name, value in values.items()})


def write_json(path: Path | None, results: dict[str, Any]) -> None:
    """Write results for other programs to read, whole or not at all; nothing without a path."""
    if path is not None:
        atomic_write(path, (json.dumps(results, indent=2) + "\n").encode())
        print(f"results: {path}")


def pyplot() -> Any:
    """matplotlib.pyplot that draws into files, or None (said on the screen) where it is missing."""
    try:
        optional_import("matplotlib", "pictures", "examples").use("Agg")
        return optional_import("matplotlib.pyplot", "pictures", "examples")
    except MissingPackageError as error:
        print(f"no pictures: {error}")
        return None


def plot_losses(path: Path, losses: list[float], title: str) -> None:
    """A PNG of the loss by step, if matplotlib is installed."""
    plt = pyplot()
    if plt is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.plot(range(1, len(losses) + 1), losses, linewidth=0.8)
    axes.set(title=title, xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(f"loss curve: {path}")
