"""The front door: examples/trace_add.py runs, tells what it should, and would notice."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mygrad import codegen, interpret

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / "trace_add.py"), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example as a module."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    module = importlib.import_module("trace_add")
    module.checked.clear()
    return module


def test_the_whole_trace(tmp_path: Path) -> None:
    # on the cpu whatever the settings say, and silent about everything else
    done = run(tmp_path, "--json", "r/trace.json", MYGRAD_DEVICE="reference", DEBUG="3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    results = json.loads((tmp_path / "r" / "trace.json").read_text())
    assert (results["folded"], results["added"]) == (5.0, 5.0)
    assert results["checks"] == len(re.findall("^ *ok: ", done.stdout, re.M)) > 50
    assert results["kernels"]["add"]["flops"] == 1
    assert "add[i2<7]" in results["kernels"]["matmul"]["kernel"]
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((13, 7), (7, 21)))
    assert results["product_sum"] == pytest.approx(np.maximum(a @ b, 0).sum(), rel=1e-5)


def test_every_stage_is_shown(
    tmp_path: Path, trace: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    trace.add()
    printed = capsys.readouterr().out
    stages = re.findall(r"^--- (.*?):", printed, re.M)
    assert stages == [
        "1 Tensor",
        "2 Node",
        "3 simplify",
        "4 homes",
        "5 Kernel",
        "6 actions",
        "7 Stmt",
        "8 source",
        "9 Program",
        "machine code",
        "10 memory and launch",
        "the plan",
        "11 the number",
    ]
    for text in ("ADD %0 %1", "b2[0] = (b0[0] + b1[0])", "fadd float", "asked for", "[5.]"):
        assert text in printed


@pytest.mark.parametrize("seed", [1, 2])
def test_other_matrices(trace: ModuleType, seed: int) -> None:
    trace.multiply(seed)


def test_a_wrong_answer_is_noticed(trace: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    right = interpret.evaluate
    monkeypatch.setattr(interpret, "evaluate", lambda *a: right(*a) + np.float32(1e-3))
    with pytest.raises(AssertionError, match="not so: the interpreter of graphs"):
        trace.add()


def test_a_wrong_program_is_noticed(trace: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    right = codegen.RENDERERS["llvm"]

    def wrong(*arguments: object) -> str:
        return right(*arguments).replace(" fadd ", " fsub ")  # type: ignore[arg-type]

    monkeypatch.setitem(codegen.RENDERERS, "llvm", wrong)
    with pytest.raises(AssertionError, match="not so:"):
        trace.add()


def test_help(tmp_path: Path) -> None:
    done = run(tmp_path, "--help")
    assert done.returncode == 0
    assert "--json FILE" in done.stdout
    assert run(tmp_path, "--typo").returncode == 2
