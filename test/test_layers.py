"""The layers: a file imports only from below (ARCHITECTURE.md has the same list with reasons)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mygrad"

# from the bottom up; a name is a file or a folder of mygrad/
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "config", "helpers"),
    ("dtype", "ops"),
    ("rewrite", "program", "numeric", "sorting"),
    ("scalar", "algebra", "logic", "fold", "expr", "domain", "movement"),
    ("graph", "kernel"),
    ("autograd", "schedule", "interpret"),
    ("codegen", "runtime"),
    ("tune", "compiler", "prepared", "stored", "explain", "realize", "capture", "jit"),
    ("tensor",),
    ("nn",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
SOURCES = sorted(PACKAGE.rglob("*.py"))


class Import(NamedTuple):
    """One import of a module, of mygrad or not."""

    source: str
    target: str
    line: int
    local: bool  # inside a function
    typing: bool  # under `if TYPE_CHECKING:`


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in SOURCES}


def targets_of(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """`from mygrad.nn import state` is an import of mygrad.nn.state, if that is a module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    for alias in node.names:
        submodule = f"{node.module}.{alias.name}"
        yield submodule if submodule in MODULES else str(node.module)


def imports_of(source: str, name: str) -> list[Import]:
    found = []
    work: list[tuple[ast.AST, bool, bool]] = [(ast.parse(source), False, False)]
    while work:
        node, local, typing = work.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found += [Import(name, t, node.lineno, local, typing) for t in targets_of(node)]
        local = local or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        typing = typing or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        work += [(child, local, typing) for child in ast.iter_child_nodes(node)]
    return found


IMPORTS = [i for path in SOURCES for i in imports_of(path.read_text("utf-8"), module_name(path))]
INTERNAL = [i for i in IMPORTS if i.target.split(".")[0] == "mygrad"]


def layer_of(module: str) -> str:
    """mygrad.nn.state -> nn"""
    return module.split(".")[1]


def is_upward(i: Import) -> bool:
    if i.source == "mygrad" or layer_of(i.source) == layer_of(i.target):
        return False  # mygrad/__init__.py is the top; files of one folder are one layer
    source, target = layer_of(i.source), layer_of(i.target)
    folders = any((PACKAGE / name).is_dir() for name in (source, target))
    return RANK[target] > RANK[source] or (RANK[target] == RANK[source] and folders)


def test_every_module_has_a_rank() -> None:
    layers = {layer_of(module) for module in MODULES - {"mygrad"}}
    assert layers <= set(RANK), "a new file or folder of mygrad/ needs a place in LAYERS"


def test_imports_go_down() -> None:
    relevant = [i for i in INTERNAL if i.target != "mygrad"]
    assert len(relevant) > 50  # the parser above sees them
    assert [i for i in relevant if is_upward(i)] == []


def test_codegen_and_runtime_do_not_know_each_other() -> None:
    pairs = {
        (layer_of(i.source), layer_of(i.target))
        for i in INTERNAL
        if i.source.count(".") and i.target.count(".")
    }
    assert not pairs & {("codegen", "runtime"), ("runtime", "codegen")}


def test_nobody_imports_the_package_itself() -> None:
    assert [i for i in INTERNAL if i.target == "mygrad"] == []


def test_no_import_inside_a_function() -> None:
    assert [i for i in IMPORTS if i.local] == []


def test_no_import_cycle() -> None:
    needs: dict[str, set[str]] = {module: set() for module in MODULES}
    for i in INTERNAL:
        if not i.typing:
            needs[i.source].add(i.target)
    while True:
        ready = {module for module, targets in needs.items() if not targets & needs.keys()}
        if not ready:
            break
        needs = {module: targets for module, targets in needs.items() if module not in ready}
    assert needs == {}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from mygrad.tensor import Tensor", "mygrad.graph"),
        ("import mygrad.realize", "mygrad.schedule.plan"),
        ("from mygrad.runtime import device", "mygrad.codegen.stmt"),
        ("def f():\n    from mygrad import graph", "mygrad.movement"),
        ("from mygrad.autograd import rules", "mygrad.interpret"),
    ],
)
def test_the_rules_can_fail(source: str, name: str) -> None:
    assert [is_upward(i) for i in imports_of(source, name)] == [True]


def test_local_and_typing_imports_are_seen() -> None:
    text = "if TYPE_CHECKING:\n    import a\ndef f():\n    if x:\n        import b\nimport c"
    seen = {i.target: (i.local, i.typing) for i in imports_of(text, "mygrad.graph")}
    assert seen == {"a": (False, True), "b": (True, False), "c": (False, False)}
