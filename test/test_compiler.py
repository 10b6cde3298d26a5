"""Compiling kernels: side by side as alone, whatever happens to the children; equal ones once."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from graphs import array

from mygrad import Tensor, compiler, nn, realize
from mygrad import dtype as dt
from mygrad.config import context
from mygrad.errors import CompileError
from mygrad.expr import alu, axis, load, reduce
from mygrad.kernel import BufferInfo, Kernel, Store
from mygrad.ops import Op
from mygrad.program import Program
from mygrad.runtime.base import Runtime
from mygrad.runtime.cpu import CPU

F = dt.float32
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")


def row_sums(rows: int, columns: int) -> Kernel:
    i, r = axis(0, rows), axis(1, columns)
    value = reduce(Op.ADD, alu(Op.EXP, load(1, F, i * columns + r)), (r,))
    infos = (BufferInfo(F, rows, True), BufferInfo(F, rows * columns))
    return Kernel(f"sums_{rows}x{columns}", (i,), (Store(0, i, value),), infos)


KERNELS = [row_sums(64, n) for n in (3, 16, 100, 1000, 33, 7)]


@pytest.fixture
def runtime() -> Runtime:
    """Of three threads, so that two children are forked."""
    with context(MYGRAD_THREADS=3):
        return CPU()


def contents(made: list[tuple[Program, bytes]]) -> list[bytes]:
    return [compiler._pack(*one) for one in made]


def no_child_is_left() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


@forks
def test_several_processes_compile_the_same(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [compiler._compile(k, runtime) for k in KERNELS]
    children = []
    start = compiler._start_child
    monkeypatch.setattr(
        compiler, "_start_child", lambda *args: children.append(start(*args)) or children[-1]
    )
    together = compiler._compile_all(KERNELS, runtime)
    assert len(children) == 2
    assert contents(together) == contents(alone)
    assert no_child_is_left()


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def failing() -> None:
    raise MemoryError


@forks
@pytest.mark.parametrize("way", [killed, failing, lambda: os._exit(0)], ids=["9", "error", "exit"])
@pytest.mark.parametrize("after", [0, 1])
def test_what_a_child_had_taken_is_compiled_though_it_dies(
    way: Callable[[], None], after: int, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents([compiler._compile(k, runtime) for k in KERNELS])
    parent, compile, done = os.getpid(), compiler._compile, []

    def dying(kernel: Kernel, runtime: Runtime) -> tuple[Program, bytes]:
        if os.getpid() != parent and len(done) == after:
            way()
        done.append(kernel)
        return compile(kernel, runtime)

    monkeypatch.setattr(compiler, "_compile", dying)
    assert contents(compiler._compile_all(KERNELS, runtime)) == expected
    assert no_child_is_left()


@forks
def test_an_error_of_the_parent_leaves_no_child(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, compile = os.getpid(), compiler._compile

    def refused(kernel: Kernel, runtime: Runtime) -> tuple[Program, bytes]:
        if os.getpid() == parent:
            raise CompileError("no")
        program, _ = compile(kernel, runtime)
        return program, bytes(1 << 20)  # more than a pipe holds

    monkeypatch.setattr(compiler, "_compile", refused)
    with pytest.raises(CompileError, match="no"):
        compiler._compile_all(KERNELS, runtime)
    assert no_child_is_left()


@forks
def test_children_do_not_wait_for_a_parent_that_died(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would hold a process forever, with all that it inherited, such as this pipe."""
    compile = compiler._compile

    def large(kernel: Kernel, runtime: Runtime) -> tuple[Program, bytes]:
        return compile(kernel, runtime)[0], bytes(1 << 20)

    monkeypatch.setattr(compiler, "_compile", large)
    reader, writer = os.pipe()
    parent = os.fork()
    if not parent:
        monkeypatch.setattr(compiler, "_finish_child", lambda *child: os._exit(0))
        compiler._compile_all(KERNELS, runtime)
    os.close(writer)
    os.waitpid(parent, 0)
    ended, _, _ = select.select([reader], [], [], 60)  # once nobody has the other end
    os.close(reader)
    assert ended


@pytest.mark.parametrize("count", [2, 7])
def test_equal_layers_are_compiled_once(
    count: int, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Kernel] = []
    compile_all = compiler._compile_all

    def counted(wanted: list[Kernel], runtime: Runtime) -> list[tuple[Program, bytes]]:
        compiled.extend(wanted)
        return compile_all(wanted, runtime)

    monkeypatch.setattr(compiler, "_compile_all", counted)
    realize._prepared.clear()
    compiler._loaded.clear()
    layers = [nn.Linear(48, 48) for _ in range(count)]
    realize.realize([p.node for layer in layers for p in (layer.weight, layer.bias)])
    x = Tensor(array(32, 48), device="cpu").realize()
    compiled.clear()
    y = x
    for layer in layers:
        y = layer(y).tanh()
    assert np.isfinite(y.numpy()).all()
    assert len(compiled) == 1
