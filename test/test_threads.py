"""Results do not depend on the number of threads, not by a bit: kernels whose loops are shared,
random graphs, and training steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import guarded
import numpy as np
import pytest
import test_fuzz
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from kernel_cases import run_program
from kernel_families import FAMILIES, small
from schedule_checks import small_limits
from test_guard import run_steps

from mygrad import codegen, compiler, realize
from mygrad import dtype as dt
from mygrad.config import context
from mygrad.graph import Node
from mygrad.kernel import Kernel
from mygrad.runtime import device as devices
from mygrad.runtime.cpu import CPU

Array = np.ndarray[Any, Any]
THREADS = (1, 2, 3, 7)


def machines() -> dict[int, CPU]:
    """This processor with so many threads."""
    made = {}
    for threads in THREADS:
        with context(MYGRAD_THREADS=threads):
            made[threads] = CPU()
    return made


def each_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[CPU]:
    """Each of them in turn as the cpu device, with nothing compiled yet."""
    try:
        for runtime in machines().values():
            monkeypatch.setitem(devices._opened, "cpu", runtime)
            realize._prepared.clear()
            compiler._loaded.clear()
            with context(MYGRAD_CACHE="off"):
                yield runtime
    finally:
        realize._prepared.clear()
        compiler._loaded.clear()


def noisy(kernel: Kernel) -> list[Array]:
    """Contents whose sums depend on their order, and small indices."""
    rng = np.random.default_rng(0)
    made = []
    for info in kernel.buffers:
        values = rng.integers(0, 6, info.size)
        if info.dtype.is_float:
            values = rng.standard_normal(info.size)
        made.append(dt.to_storage(values, info.dtype))
    return made


def results(kernels: list[Kernel]) -> list[dict[int, tuple[bool, list[bytes]]]]:
    """For each kernel and number of threads, whether there was a shared loop, and the contents."""
    found = []
    runtimes = machines()
    for kernel in kernels:
        by_threads = {}
        for threads, runtime in runtimes.items():
            with small_limits():
                program = codegen.compile(kernel, runtime.target)
            (executable,) = runtime.load([(program, runtime.compile(program))])
            arrays = run_program(runtime, program, executable, noisy(kernel))
            by_threads[threads] = program.parallel, [a.tobytes() for a in arrays]
        found.append(by_threads)
    return found


@pytest.mark.parametrize("family", list(FAMILIES))
def test_kernels(family: str) -> None:
    kernels = [small(family, Random(f"{family} {n}"), 8000) for n in range(10)]
    shared = 0
    for kernel, by_threads in zip(kernels, guarded.in_child(lambda: results(kernels)), strict=True):
        contents = [bytes_ for _, bytes_ in by_threads.values()]
        assert contents.count(contents[0]) == len(THREADS), kernel
        assert not by_threads[1][0]
        shared += all(by_threads[threads][0] for threads in THREADS[1:])
    assert shared > 0


def random_floats(data: test_fuzz.Draw, shape: tuple[int, ...], device: str) -> Node:
    """In the place of the whole numbers of `test_fuzz`."""
    values = np.random.default_rng(data.draw(st.integers(0, 99))).standard_normal(shape)
    return realize.from_numpy(values.astype(np.float32), device=device)


def test_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """All kernels of a graph, in one native program with its barriers."""
    monkeypatch.setattr(test_fuzz, "whole", random_floats)
    runtimes = machines()
    shared = []

    @settings(
        max_examples=6,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(data=st.data())
    def compare(data: test_fuzz.Draw) -> None:
        node = random_floats(data, (data.draw(st.sampled_from([5, 17, 33])), 19), "cpu")
        for _ in range(data.draw(st.integers(2, 6))):
            after = data.draw(st.sampled_from(test_fuzz.STEPS))(data, node, "cpu")
            node = after if 0 < after.size < 20_000 else node
        by_threads = [values(node, runtime) for runtime in runtimes.values()]
        assert by_threads.count(by_threads[0]) == len(THREADS)

    def values(node: Node, runtime: CPU) -> bytes:
        monkeypatch.setitem(devices._opened, "cpu", runtime)
        realize._prepared.clear()
        compiler._loaded.clear()
        (result,) = realize.realize([node])
        shared.extend(e.parallel for e in compiler._loaded.values())
        return bytes(realize.to_numpy(result).tobytes())

    with context(MYGRAD_CACHE="off"), small_limits():
        compare()
    realize._prepared.clear()
    compiler._loaded.clear()
    assert sum(shared) > len(shared) // 4 > 0


@pytest.mark.slow
@pytest.mark.parametrize("threads", THREADS[1:])
def test_training_steps(threads: int, tmp_path: Path) -> None:
    models = ["large_cnn", "large_transformer", "large_lstm", "resnet"]
    one = run_steps(tmp_path, models, MYGRAD_THREADS="1")
    assert run_steps(tmp_path, models, MYGRAD_THREADS=str(threads)) == one
