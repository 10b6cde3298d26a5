"""The search for schedules: its neighbours are right, it believes nothing that is not, it survives
candidates that crash or hang, and what it found is used by later processes."""

from __future__ import annotations

import dataclasses
import os
import time
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_cases import arrays_for, run_on

from mygrad import Tensor, codegen, compiler, tune
from mygrad import dtype as dt
from mygrad.codegen.actions import Action, ScheduleError, Split, Vectorize
from mygrad.codegen.analysis import default_actions
from mygrad.codegen.neighbours import neighbours
from mygrad.config import context
from mygrad.expr import alu, axis, load, reduce
from mygrad.kernel import BufferInfo, Kernel, Store
from mygrad.ops import Op
from mygrad.runtime import device as devices

F = dt.float32
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the search forks a child")


def matmul(m: int, n: int, k: int, name: str = "matmul") -> Kernel:
    i, j, r = axis(0, m), axis(1, n), axis(2, k)
    product = alu(Op.MUL, load(1, F, i * k + r), load(2, F, r * n + j))
    value = alu(Op.MAX, reduce(Op.ADD, product, (r,)), load(3, F, j))
    infos = (BufferInfo(F, m * n, True), BufferInfo(F, m * k), BufferInfo(F, k * n))
    return Kernel(name, (i, j), (Store(0, i * n + j, value),), (*infos, BufferInfo(F, n)))


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[None]:
    """An empty cache, and a search that has spent nothing."""
    with context(MYGRAD_CACHE=str(tmp_path)):
        _forget()
        yield
    _forget()


def _forget() -> None:
    tune._known.clear()
    tune._any.clear()
    tune._spent[0] = 0.0


def searched(kernel: Kernel, seconds: float = 60.0) -> tuple[Action, ...] | None:
    with context(TUNE=seconds):
        tune.search({kernel.name: kernel}, devices.get("cpu"))
    return tune.tuned(kernel.name)


def test_every_neighbour_computes_the_same() -> None:
    kernel = matmul(7, 35, 19)
    # of one machine, whatever this one is: how many neighbours there are depends on its registers
    target = dataclasses.replace(
        devices.get("cpu").target, vector_bytes=64, vector_registers=32, units=()
    )
    default = default_actions(kernel, target)
    arrays = arrays_for(kernel)
    expected = run_on("reference", kernel, arrays)[0]
    found = list(neighbours(kernel, default))
    assert len(found) > 20
    assert len(set(found)) == len(found)
    assert default not in found
    lowered = 0
    for candidate in found:
        try:
            result = run_on("cpu", kernel, arrays, actions=candidate)[0]
        except ScheduleError:
            continue
        lowered += 1
        np.testing.assert_array_equal(result, expected, err_msg=str(candidate))
    assert lowered > len(found) // 2


def test_neighbours_change_each_kind_of_decision() -> None:
    kernel = matmul(64, 64, 64)
    default = (Split("i1", 16), Vectorize("i1i"))
    kinds = {type(a).__name__ for found in neighbours(kernel, default) for a in found}
    assert kinds == {"Split", "Vectorize", "Reorder", "Parallel", "Unroll"}
    assert (Split("i1", 8), Vectorize("i1i")) in set(neighbours(kernel, default))


@pytest.mark.parametrize("kind", typing.get_args(Action), ids=lambda k: k.__name__)
def test_actions_survive_being_written(kind: type[Any]) -> None:
    values = {"str": "i0", "int": 8, "bool": True, "tuple[str, ...]": ("i0", "i1")}
    action = kind(*(values[str(f.type)] for f in dataclasses.fields(kind)))
    assert tune._read(tune._write((action,))) == (action,)


def test_a_search_finds_a_better_schedule_and_keeps_it(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = (Split("i1", 16), Vectorize("i1i"))
    monkeypatch.setattr(tune, "default_actions", lambda kernel, target: ())
    monkeypatch.setattr(tune, "neighbours", lambda kernel, actions: iter([good]))
    kernel = matmul(64, 64, 64)
    assert searched(kernel) == good
    tune._known.clear()
    assert tune.tuned(kernel.name) == good  # from disk
    monkeypatch.setattr(tune, "neighbours", _never)
    assert searched(kernel) == good  # it is not searched again


def _never(kernel: Kernel, actions: object) -> Iterator[tuple[Action, ...]]:
    raise AssertionError("searched again")


def test_the_compiler_uses_what_was_found(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    good = (Split("i0", 4), Vectorize("i0i"))
    monkeypatch.setattr(tune, "default_actions", lambda kernel, target: ())
    monkeypatch.setattr(tune, "neighbours", lambda kernel, actions: iter([good]))
    monkeypatch.setattr(tune, "BETTER", 1e9)  # whatever the clock says
    x = np.arange(1000, dtype=np.float32)
    with context(TUNE=60.0):
        value = (Tensor(x, device="cpu") * 3 - 7).relu()
        np.testing.assert_array_equal(value.numpy(), np.maximum(x * 3 - 7, 0))
    kernels = [k for _, k in compiler._loaded if isinstance(k, Kernel)]
    target = devices.get("cpu").target
    assert any(compiler._tuned(k, target) == good for k in kernels)


def test_a_wrong_result_is_not_believed(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = (Split("i1", 16), Vectorize("i1i"))
    other = matmul(64, 64, 63, "other")  # faster, and leaves a part out
    right = codegen.compile

    def compile(kernel: Kernel, target: Any, actions: Any = None) -> Any:
        return right(other if actions == bad else kernel, target, actions)

    monkeypatch.setattr(codegen, "compile", compile)
    monkeypatch.setattr(tune, "default_actions", lambda kernel, target: ())
    monkeypatch.setattr(tune, "neighbours", lambda kernel, actions: iter([bad]))
    assert searched(matmul(64, 64, 64)) is None


@pytest.mark.parametrize("way", ["dies", "hangs"])
def test_a_candidate_that_fails_ends_neither_process_nor_search(
    way: str, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = (Split("i1", 8), Vectorize("i1i")), (Split("i1", 16), Vectorize("i1i"))
    parent, right = os.getpid(), codegen.compile

    def compile(kernel: Kernel, target: Any, actions: Any = None) -> Any:
        if actions == bad:
            assert os.getpid() != parent
            os.kill(os.getpid(), 9) if way == "dies" else time.sleep(600)
        return right(kernel, target, actions)

    monkeypatch.setattr(codegen, "compile", compile)
    monkeypatch.setattr(tune, "PATIENCE", 3.0)
    monkeypatch.setattr(tune, "default_actions", lambda kernel, target: ())
    monkeypatch.setattr(tune, "neighbours", lambda kernel, actions: iter([bad, good]))
    assert searched(matmul(64, 64, 64)) == good


def test_the_time_is_kept_and_nothing_is_left_running(fresh: None) -> None:
    begin = time.monotonic()
    searched(matmul(300, 300, 300), seconds=1.0)
    assert time.monotonic() - begin < 30  # a bound against hanging, not a measurement
    assert tune._spent[0] >= 0.5
    with context(TUNE=0.5):
        assert not tune.is_wanted()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_without_tune_nothing_is_searched(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "search", _never)
    assert (Tensor([1.0, 2.0], device="cpu") * 5).tolist() == [5.0, 10.0]
    assert not tune.exists()
