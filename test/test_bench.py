"""The benchmarks run, check their results, and say what they measured. Nothing here is timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peers import has_torch, needs_torch, torch

from bench import engine, memory, peers, report, startup, training
from bench.measure import Row, TooSlow, Workload, compare, limit, values
from bench.workloads import WORKLOADS

ROOT = Path(__file__).parents[1]


def command(*options: str) -> subprocess.CompletedProcess[str]:
    """`python -m bench` with one thread, small."""
    line = [sys.executable, "-m", "bench", "--quick", "--threads", "1", *options]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)


# --- the command ----------------------------------------------------------------------------------


def test_the_command_writes_rows_and_a_chart(tmp_path: Path) -> None:
    file, picture = tmp_path / "rows.json", tmp_path / "chart.png"
    options = ["--only", "jitted add", "--peers", "numpy", "--json", str(file)]
    if report.missing() is None:
        options += ["--chart", str(picture)]
    done = command(*options)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(file.read_text())
    assert row["workload"] == "jitted add 16"
    assert row["threads"] == 1
    assert row["best_peer"] == "numpy"
    assert row["ratio"] == row["seconds"]["numpy"] / row["seconds"]["mygrad"]
    assert "jitted add 16" in done.stdout
    assert picture.exists() == (report.missing() is None)


def test_an_unknown_peer_is_refused_and_the_known_ones_named() -> None:
    done = command("--peers", "matlab")
    assert done.returncode == 1
    assert "no such peer: matlab; there are numpy, torch" in done.stderr


def test_a_peer_that_is_missing_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.PACKAGES, "jax", "no_such_package")
    monkeypatch.setenv("CC", "no_such_compiler")
    monkeypatch.setitem(peers.PACKAGES, "tinygrad", "numpy")
    found, missing = peers.installed(["numpy", "jax", "tinygrad"])
    assert found == ["numpy"]
    assert missing == ["jax is not installed", "tinygrad finds no compiler no_such_compiler"]


def test_a_chart_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install" in (report.missing() or "")


# --- comparing ------------------------------------------------------------------------------------


def run_all(**candidates: Any) -> Row:
    """A row of functions, which need no setting up."""
    made = {who: (lambda f=f: f) for who, f in candidates.items()}
    return compare(Workload("x", dict), 1, made, 0.01, 0.5)


def test_a_wrong_result_is_refused() -> None:
    right, wrong = np.ones(3), np.array([1.0, 2.0, 1.0])
    with pytest.raises(ValueError, match="mygrad and peer differ"):
        run_all(mygrad=lambda: right, peer=lambda: wrong)
    with pytest.raises(ValueError, match="mygrad and peer differ"):
        run_all(mygrad=lambda: right * np.nan, peer=lambda: right)
    with pytest.raises(ValueError, match=r"mygrad gives \(1, 3\), peer \(1, 2\)"):
        run_all(mygrad=lambda: right, peer=lambda: right[:2])


def test_a_later_step_that_is_wrong_is_refused() -> None:
    losses = {"mygrad": chain([1.0, 0.5, 0.4], repeat(0)), "peer": chain([1.0, 0.5], repeat(0.3))}
    made = {who: (lambda r=rest: lambda: next(r)) for who, rest in losses.items()}
    with pytest.raises(ValueError, match=r"differ by 0\.1 "):
        compare(Workload("x", dict, steps=3), 1, made)


def fail() -> None:
    raise OSError("no licence")


def test_a_peer_that_fails_is_left_out_and_named() -> None:
    row = run_all(mygrad=lambda: 1, peer=fail, slow=lambda: time.sleep(20), other=lambda: 1)
    assert set(row.seconds) == {"mygrad", "other"}
    assert "peer left out: OSError: no licence" in row.note
    assert "slow left out: more than 0.5 s" in row.note


def test_that_mygrad_fails_is_a_failure() -> None:
    with pytest.raises(OSError, match="no licence"):
        run_all(mygrad=fail, peer=lambda: 1)


def test_the_better_variant_stands_for_its_peer() -> None:
    candidates = {"mygrad": lambda: 1, "peer": lambda: time.sleep(0.02) or 1, "peer/fast": int}
    candidates |= {"peer/fast": lambda: 1, "@copy": lambda: 2}
    row = run_all(**candidates)
    assert set(row.seconds) == {"mygrad", "peer"}
    assert row.seconds["peer"] < 0.02
    assert "peer: fast" in row.note
    assert row.figures["copy seconds"] > 0


def test_a_limit_interrupts_and_then_leaves_no_alarm() -> None:
    with pytest.raises(TooSlow), limit(0.05):
        time.sleep(5)
    with limit(0.05):
        pass
    time.sleep(0.1)


def test_rows_survive_json() -> None:
    row = Row("x", 2, {"mygrad": 2e-3, "a": 4e-3, "b": 3e-3}, "note", {"GB/s": 1.0})
    assert row.best_peer == "b"
    assert row.ratio == 1.5
    assert Row.from_dict(json.loads(json.dumps(row.as_dict()))) == row


def test_the_table_names_the_best_peer() -> None:
    row = Row("x", 2, {"mygrad": 2e-3, "a": 4e-3, "b": 3e-3})
    text = report.table([row, Row("y", 0, nbytes={"mygrad": 2**20, "a": 2**21})])
    assert "1.50 (b)" in text
    assert "2.00 (a)" in text
    assert "2 MiB" in text
    assert report.duration(1.5e-6) == "1.5 us"


def test_a_failed_row_has_no_ratio() -> None:
    row = Row("x", 1, {"mygrad": 1.0, "a": 2.0}, failed=True)
    assert row.ratio is None
    assert "failed" in report.table([row])


# --- the workloads --------------------------------------------------------------------------------

LIGHT = (
    "eager add 16",
    "matmul NT 1024",
    "matmul bf16 512",
    "conv 3x3 64 data gradient",
    "conv 3x3 64 weight gradient",
    "conv depthwise 3x3 128",
    "layer norm",
    "cross-entropy",
    "embedding gradient",
    "GPT-2 124M token",
)


@needs_torch
@pytest.mark.parametrize("name", LIGHT)
def test_mygrad_agrees_with_pytorch(name: str) -> None:
    row = engine.measured(name, 1, ["numpy", "torch"], True, 60)
    assert not row.failed, row.note
    assert "torch" in row.seconds


@needs_torch
@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in WORKLOADS if n not in LIGHT])
def test_mygrad_agrees_with_pytorch_everywhere(name: str) -> None:
    test_mygrad_agrees_with_pytorch(name)


def test_the_float32_weights_of_mixed_precision_learn() -> None:
    task = training.mlp(**training.SMALL["MLP step"])
    state = task.state()
    mixed, exact = training.ours_mixed(task, state), training.ours(task, state)
    losses = np.array([[run().item() for run in (mixed, exact)] for _ in range(3)])
    assert (np.diff(losses[:, 0]) < 0).all()
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=1e-2)
    assert (losses[:, 0] != losses[:, 1]).all()  # it did compute in bfloat16


def test_values_of_any_library() -> None:
    assert values(None) == []
    (a, b) = values([np.ones(2, np.float32), (3,)])
    assert a.dtype == b.dtype == np.float64
    if has_torch:
        (c,) = values(torch.tensor([1.5], dtype=torch.bfloat16, requires_grad=True))
        assert c.tolist() == [1.5]


# --- whole processes ------------------------------------------------------------------------------


@pytest.mark.skipif(not memory.RESET.exists(), reason="only Linux tells the peak")
def test_peak_memory_sees_an_array_that_is_gone() -> None:
    before = memory.resident()
    assert np.ones(1 << 23).sum() == 1 << 23  # 64 MiB
    assert 0.9 < (memory.peak() - before) / (1 << 26) < 1.3


def test_imports_are_timed_in_fresh_processes() -> None:
    row = startup.imports(["numpy"], rounds=1)
    assert set(row.seconds) == {"mygrad", "numpy"}
    assert all(s > 0 for s in row.seconds.values())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be kept to some")
def test_a_thread_has_one_processor() -> None:
    """Also for libraries that do not listen to settings."""
    code = (
        "import os; from bench import peers; peers.keep_to(1); print(len(os.sched_getaffinity(0)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "1"
