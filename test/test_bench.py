"""The benchmarks run, check their results, and say what they measured. Nothing here is timed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.measure import Row, compare, duration, table


def test_the_command_writes_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    command = [sys.executable, "-m", "bench", "--quick", "--threads", "1", "--only", "jitted add"]
    subprocess.run([*command, "--json", str(file)], check=True, cwd=Path(__file__).parents[1])
    (row,) = json.loads(file.read_text())
    assert row["workload"] == "jitted add 16"
    assert row["threads"] == 1
    assert row["ratio"] == row["seconds"][row["best_peer"]] / row["seconds"]["mygrad"]


def test_a_wrong_result_is_refused() -> None:
    right, wrong = np.ones(3), np.array([1.0, 2.0, 1.0])
    with pytest.raises(ValueError, match="mygrad and peer differ"):
        compare("x", 1, {"mygrad": lambda: right, "peer": lambda: wrong}, 0.01)


def test_the_table_names_the_best_peer() -> None:
    row = Row("x", 2, {"mygrad": 2e-3, "a": 4e-3, "b": 3e-3})
    assert row.best_peer == "b"
    assert "1.50 (b)" in table([row])
    assert duration(1.5e-6) == "1.5 us"
