"""The examples run, from any folder, and leave what they promise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mygrad.errors import DataError

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(p.name for p in EXAMPLES.glob("*.py") if p.name != "common.py")
sys.path.insert(0, str(EXAMPLES))
import common  # noqa: E402  (lies beside the examples, no package)


def run(script: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run an example as a user would, with mygrad from this checkout."""
    return subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script: str, tmp_path: Path) -> None:
    if "argparse" not in (EXAMPLES / script).read_text() and script != "mnist.py":
        pytest.skip("takes no options")
    done = run(script, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--seed" in done.stdout


# a package that cannot be imported stands for one that is not installed
BLOCKER = "raise ImportError('blocked by the test')\n"


def block(folder: Path, *packages: str) -> str:
    """A PYTHONPATH on which importing these packages fails."""
    for package in packages:
        (folder / f"{package}.py").write_text(BLOCKER)
    return os.pathsep.join([str(folder), str(EXAMPLES.parent)])


MNIST = ("--embedded", "--steps", "3", "--batch-size", "4", "--epochs", "1")


def test_mnist(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    pytest.importorskip("matplotlib")
    done = run("mnist.py", *MNIST, "--json", "r/mnist.json", "--out", "made", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not comparable" in done.stdout
    results: dict[str, Any] = json.loads((tmp_path / "r" / "mnist.json").read_text())
    assert results["steps"] == 3
    assert (results["train_images"], results["test_images"]) == (9000, 1000)
    assert 0 <= results["test_accuracy"] <= 1
    assert np.isfinite(results["last_loss"])
    made = sorted(p.name for p in (tmp_path / "made").iterdir())
    assert made == ["mnist.safetensors", "mnist_loss.png", "mnist_wrong.png"]


def test_mnist_without_optional_packages(tmp_path: Path) -> None:
    (tmp_path / "blocked").mkdir()
    path = block(tmp_path / "blocked", "tqdm", "matplotlib", "safetensors")
    done = run("mnist.py", *MNIST, cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert "weights not saved: safe_save: got no package safetensors" in done.stdout
    assert "no pictures: pictures: got no package matplotlib" in done.stdout
    assert "test accuracy" in done.stdout


def test_mnist_compares_only_with_torch_installed(tmp_path: Path) -> None:
    (tmp_path / "blocked").mkdir()
    path = block(tmp_path / "blocked", "torch")
    done = run("mnist.py", *MNIST, "--compare-torch", cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode != 0
    assert "--compare-torch: got no package torch" in done.stderr


def test_mnist_data_folder_must_hold_the_files(tmp_path: Path) -> None:
    done = run("mnist.py", "--data", "nowhere", cwd=tmp_path)
    assert done.returncode != 0
    assert f"{DataError.__name__}: train-images-idx3-ubyte.gz: got no such file" in done.stderr


# --- common ---------------------------------------------------------------------------------------


def test_options() -> None:
    parser = common.parser("x", epochs=7, batch_size=3, lr=0.5)
    args = parser.parse_args(["--steps", "2", "--seed", "9"])
    assert (args.epochs, args.batch_size, args.lr, args.steps, args.seed) == (7, 3, 0.5, 2, 9)
    for wrong in (["--epochs", "0"], ["--batch-size", "-1"], ["--steps", "x"], ["--typo"]):
        with pytest.raises(SystemExit):
            parser.parse_args(wrong)


def test_json_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    common.write_json(path, {"x": 1.5})
    assert json.loads(path.read_text()) == {"x": 1.5}
    with pytest.raises(TypeError):
        common.write_json(path, {"x": object()})
    assert json.loads(path.read_text()) == {"x": 1.5}
    common.write_json(None, {})


@pytest.mark.parametrize("installed", [True, False])
def test_progress(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    if not installed:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    seen = []
    for item in (bar := common.Progress([1, 2, 3], "label", 3)):
        bar.note(loss=item)
        seen.append(item)
    assert seen == [1, 2, 3]
