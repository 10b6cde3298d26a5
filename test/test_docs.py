"""README.md and ARCHITECTURE.md say what is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import test_layers

from mygrad import codegen
from mygrad import dtype as dt
from mygrad.codegen import actions
from mygrad.codegen.llvm_ops import template
from mygrad.config import SETTINGS
from mygrad.dtype import DType
from mygrad.graph import _TAKES
from mygrad.ops import ALU, Op
from mygrad.runtime.device import DEVICES
from mygrad.schedule import cost

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
BOTH = {"README.md": README, "ARCHITECTURE.md": ARCHITECTURE}


def section(text: str, title: str) -> str:
    """What stands under a heading."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, f"no section {title!r}"
    return found[1]


def table(text: str) -> list[list[str]]:
    """The cells of the rows of a table, without heading."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def code(text: str) -> list[str]:
    """What stands between single backticks."""
    return re.findall(r"`([^`\n]+)`", text)


# --- README ---------------------------------------------------------------------------------------


def test_readme_lists_every_setting() -> None:
    rows = {code(row[0])[0]: row for row in table(section(README, "Settings"))}
    assert list(rows) == [s.name for s in SETTINGS]
    for setting in SETTINGS[1:]:
        _, expected, default, meaning = rows[setting.name]
        assert expected == setting.expected
        assert meaning == setting.doc
        if setting.parse is not str:  # numbers and flags; the others say it in words
            assert default in (str(int(setting.default or 0)), "cpu")


def test_readme_lists_every_device() -> None:
    rows = {code(row[0])[0]: row for row in table(section(README, "Devices"))}
    assert set(rows) == set(DEVICES)
    for name, entry in DEVICES.items():
        assert ("not implemented" in rows[name][2]) == (not entry.module)


def test_readme_lists_every_extra() -> None:
    extras = re.search(r"extras_require=\{(.*?)\}", (ROOT / "setup.py").read_text(), re.S)
    assert extras
    named = [code(row[0])[0] for row in table(section(README, "Set up"))]
    assert named == re.findall(r'"(\w+)":', extras[1])


def test_the_commands_are_those_of_ci() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    for command in ("pip install", "-e '.[test]'", "-m pytest"):
        assert command in ci
    assert "pip install -e '.[test]'" in section(README, "Set up")
    assert "python -m pytest\n" in section(README, "Tests")


def test_the_first_program_runs_as_it_says(tmp_path: Path) -> None:
    program = re.search(r"```python\n(.*?)```", section(README, "A first program"), re.S)
    assert program
    path = tmp_path / "first.py"
    path.write_text(program[1])
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    first, second, *plan = done.stdout.splitlines()
    promised = re.findall(r"  # (.*)", program[1])
    assert first == promised[0]
    assert promised[1].startswith(second)
    shown = re.search(r"```text\n(.*?)```", section(README, "Looking inside"), re.S)
    assert shown
    # sizes, reasons and counts as printed; names may carry another key
    for line, said in zip(plan, shown[1].splitlines(), strict=True):
        said = said.removesuffix("...")
        assert re.sub(r"_\w{8}\b", "", line).startswith(re.sub(r"_\w{8}\b", "", said))


def test_the_licence_is_mit() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert text.startswith("MIT License")
    assert "the mygrad authors" in text
    assert 'license="MIT"' in (ROOT / "setup.py").read_text()


# --- ARCHITECTURE ---------------------------------------------------------------------------------


def test_layers_are_those_that_are_enforced() -> None:
    exists = {test_layers.layer_of(m) for m in test_layers.MODULES - {"mygrad"}}
    expected = [tuple(n for n in names if n in exists) for names in test_layers.LAYERS]
    rows = table(section(ARCHITECTURE, "Layers"))
    assert [int(row[0]) for row in rows] == list(range(len(expected)))
    assert [tuple(code(row[1])) for row in rows] == expected


def test_every_action_is_named() -> None:
    row = next(r for r in table(section(ARCHITECTURE, "Words")) if r[0] == "action")
    assert code(row[1]) == [action.__name__ for action in actions.Action.__args__]


def test_words_are_explained_once() -> None:
    words = [w.strip() for row in table(section(ARCHITECTURE, "Words")) for w in row[0].split(",")]
    assert len(words) == len(set(words)) > 30


def test_cost_terms_exist() -> None:
    terms = {t for t in code(section(ARCHITECTURE, "How homes are chosen")) if t.isupper()}
    terms -= {"DEBUG=1", *Op.__members__}
    assert {"LAUNCH", "BYTE", "OPERATION", "TILE_REUSE", "WEIGHT"} <= terms
    assert [t for t in terms if not hasattr(cost, t)] == []


@pytest.mark.parametrize("name", BOTH)
def test_files_that_are_named_exist(name: str) -> None:
    named = {n.rstrip(",:") for n in code(BOTH[name]) if re.fullmatch(r"[\w/.]+(\.py|\.md|/)", n)}
    named |= {f"test/{n}.py" for n in code(BOTH[name]) if re.fullmatch(r"test_\w+", n)}
    links = set(re.findall(r"\]\((?!#|http)([^)]+)\)", BOTH[name]))
    folders = ("", "mygrad", "mygrad/schedule", "mygrad/codegen", "mygrad/runtime", "test")
    assert len(named) > 10
    missing = [n for n in named | links if not any((ROOT / f / n).exists() for f in folders)]
    assert [n for n in missing if not n.startswith("out/")] == []


def test_names_of_the_code_exist() -> None:
    tables = {"SETTINGS", "DEVICES", "RENDERERS", "PIPELINE", "_TAKES", "VJP", "RULES", "_REBUILD"}
    tables |= {"NOT_DIFFERENTIABLE", "MAX_LANES", "SUFFIX", "SCALAR", "_operand_demands", "KINDS"}
    source = "\n".join(p.read_text() for f in ("mygrad", "test") for p in (ROOT / f).rglob("*.py"))
    for name in tables:
        assert re.search(rf"\b{name}\b", ARCHITECTURE), name
        assert re.search(rf"^(def )?{name}\b", source, re.M), name


# --- tables that have no test of their own --------------------------------------------------------


def takes(op: Op, dtype: DType) -> bool:
    return dtype.kind in _TAKES.get(op, ("biuf",))[0]


@pytest.mark.parametrize("op", sorted(ALU - {Op.CAST, Op.BITCAST}, key=str), ids=str)
def test_llvm_has_text_for_every_operation_and_type(op: Op) -> None:
    compares = op in (Op.LT, Op.EQ)
    for dtype in dt.ALL:
        if takes(op, dtype):
            for lanes in (1, 8):
                assert "{r}" in template(op, dtype, dt.bool_ if compares else dtype, lanes)


def test_every_language_of_a_device_has_a_renderer() -> None:
    assert {"llvm", "opencl"} <= set(codegen.RENDERERS)
