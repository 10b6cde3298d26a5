"""Blocks for the caches: which loops the default schedule divides, and that sums stay what they
were, by the interpreters of kernels and of statements."""

from __future__ import annotations

from dataclasses import replace

import pytest
from graphs import buffer, expand, matmul, reshape
from test_lower import check

from mygrad import dtype as dt
from mygrad import graph as g
from mygrad.codegen import schedule, staging
from mygrad.codegen.actions import Schedule, Split, Stage
from mygrad.codegen.analysis import default_actions
from mygrad.helpers import prod
from mygrad.kernel import Kernel
from mygrad.ops import Op
from mygrad.program import Target
from mygrad.schedule.schedule import schedule as plan

WIDE = Target(
    "llvm", "wide", vector_bytes=64, vector_registers=32, l1_bytes=48 << 10, l2_bytes=2 << 20
)
AVX2 = Target(
    "llvm", "avx2", vector_bytes=32, vector_registers=16, l1_bytes=32 << 10, l2_bytes=1 << 20
)
TINY = Target(
    "llvm", "tiny", vector_bytes=16, vector_registers=16, l1_bytes=256, l2_bytes=4 << 10
)  # caches that small products overflow


def product(m: int, k: int, n: int, kind: str = "NN") -> Kernel:
    a = buffer(m, k) if kind[0] == "N" else g.move(Op.PERMUTE, buffer(k, m), (1, 0))
    b = buffer(k, n) if kind[1] == "N" else g.move(Op.PERMUTE, buffer(n, k), (1, 0))
    (step,) = plan([matmul(a, b)], "cpu").steps
    assert isinstance(step.what, Kernel)
    return step.what


@pytest.mark.parametrize("depth", [11000, 20224])
def test_sums_whose_columns_are_too_many_for_the_second_cache_are_divided(depth: int) -> None:
    actions = default_actions(product(128, depth, 256), WIDE)
    (panel,) = [a for a in actions if isinstance(a, Split) and a.axis == "i2"]
    assert 256 <= panel.factor <= 512
    assert [a.slot for a in actions if isinstance(a, Stage)] == [1]


def test_few_rows_across_lines_are_copied_where_they_fall_on_each_other() -> None:
    for rows, stages in ((1536, 1), (1552, 0)):
        actions = default_actions(product(rows, 256, 256, "TN"), WIDE)
        assert sum(isinstance(a, Stage) and a.slot == 0 for a in actions) == stages


@pytest.mark.parametrize("target", [WIDE, AVX2])
def test_columns_of_a_block_fit_in_half_of_the_second_cache(target: Target) -> None:
    kernel = product(512, 640, 2048)
    scheduled = schedule(kernel, target)
    (stage,) = [a for a in default_actions(kernel, target) if isinstance(a, Stage)]
    cells = 1
    for name in stage.layout:
        cells *= scheduled.loop(name).extent
    assert target.l2_bytes // 8 < 4 * cells <= target.l2_bytes // 2
    assert stage.at == scheduled.loops[0].name == "i1oo"


def test_rows_that_fall_on_each_other_are_copied_as_many_as_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One thread, and rows for which 16 second caches have no room."""
    for columns, copied in ((2048, True), (384, False)):  # they are read often enough, or not
        kernel = product(4096, 2048, columns)
        scheduled = schedule(kernel, AVX2)
        stages = [a for a in default_actions(kernel, AVX2) if isinstance(a, Stage) and a.slot == 0]
        assert len(stages) == copied
        for stage in stages:
            assert stage.at == scheduled.loops[0].name
            size = 4 * prod(scheduled.loop(name).extent for name in stage.layout)
            assert 8 * AVX2.l2_bytes < size <= 16 * AVX2.l2_bytes
    monkeypatch.setattr(staging, "OFTEN", 0)
    kernel = product(67, 512, 24)
    actions = default_actions(kernel, TINY)
    assert any(isinstance(a, Split) and a.axis == "i0o" for a in actions)
    check(kernel, schedule(kernel, TINY))


def test_columns_that_fit_are_one_block() -> None:
    actions = default_actions(product(256, 24, 256), WIDE)
    assert not any(isinstance(a, Stage) for a in actions)
    assert not any(isinstance(a, Split) and a.axis.endswith("o") for a in actions)


def test_rows_across_lines_are_copied_in_blocks_and_the_sum_is_divided() -> None:
    actions = default_actions(product(1024, 1024, 1024, "TN"), WIDE)
    assert {a.slot for a in actions if isinstance(a, Stage)} == {0, 1}
    (panel,) = [a for a in actions if isinstance(a, Split) and a.axis == "i2"]
    assert 256 <= panel.factor <= 512
    assert not any(
        isinstance(a, Split) and a.axis == "i2"
        for a in default_actions(product(1024, 1024, 1024), WIDE)
    )


def copied(scheduled: Schedule, slot: int) -> int:
    """Elements of a buffer that each of two threads copies."""
    (stage,) = [x for x in scheduled.stages if x.slot == slot]
    names = [p.name for p in scheduled.loops]
    around = scheduled.loops[: names.index(stage.at) + 1] if stage.at else ()
    cells = 1
    for p in around:
        cells *= p.extent // 2 if p.kind == "parallel" else p.extent
    for name in stage.layout:
        cells *= scheduled.loop(name).extent
    return cells


@pytest.mark.parametrize("shape", [(512, 528, 512), (2048, 1552, 384), (2048, 384, 1152)])
def test_each_thread_copies_its_own_columns(shape: tuple[int, int, int]) -> None:
    scheduled = schedule(product(*shape), replace(WIDE, threads=2))
    assert scheduled.loops[0].kind == "parallel"
    assert copied(scheduled, 1) == shape[1] * shape[2] // 2


@pytest.mark.parametrize("shape", [(512, 512, 2048), (2048, 1024, 2304)])
def test_each_thread_copies_its_own_rows_where_they_fall_on_each_other(
    shape: tuple[int, int, int],
) -> None:
    scheduled = schedule(product(*shape), replace(AVX2, threads=2))
    assert scheduled.loops[0].kind == "parallel"
    assert scheduled.loops[0].extent == 2
    tiles = sum(p.extent for p in scheduled.loops if p.name == "i0oi")
    assert copied(scheduled, 0) == tiles * scheduled.loop("i0i").extent * shape[1]
    assert 0 <= copied(scheduled, 0) - shape[0] * shape[1] // 2 < 16 * shape[1]


def test_where_columns_cannot_be_shared_there_is_a_block_of_rows_for_each_thread() -> None:
    scheduled = schedule(product(2048, 8192, 96), replace(WIDE, threads=2))
    assert [(p.name, p.kind) for p in scheduled.loops[:2]] == [("i0oo", "parallel"), ("i1o", "seq")]
    assert copied(scheduled, 1) == 8192 * 96


@pytest.mark.parametrize("target", [WIDE, TINY])
def test_a_sum_whose_columns_are_not_read(target: Target) -> None:
    """They are computed from the index alone."""
    numbers = expand(reshape(g.iota(20), (1, 20)), (24, 20))
    (step,) = plan([matmul(buffer(16, 24), g.cast(numbers, dt.float32))], "cpu").steps
    assert isinstance(step.what, Kernel)
    check(step.what, schedule(step.what, target))


def test_columns_whose_lines_fall_on_each_other_are_copied() -> None:
    """256 lines that are 1024 bytes apart have 32 places in the first cache; 16 fit. 256 rows are
    43 tiles, which read them often enough, and 168 rows are not."""
    for rows, depth, stages in ((256, 16, 0), (256, 256, 1), (168, 256, 0)):
        actions = default_actions(product(rows, depth, 256), AVX2)
        assert [a.slot for a in actions if isinstance(a, Stage)] == [1] * stages


def test_rows_that_begin_within_lines_are_copied() -> None:
    for columns, stages in ((256, 0), (257, 1), (264, 1)):
        actions = default_actions(product(128, 24, columns), WIDE)
        assert sum(isinstance(a, Stage) for a in actions) == stages


def test_lanes_along_the_sum_that_are_far_apart_are_copied() -> None:
    scheduled = schedule(product(200, 784, 10), WIDE)
    assert [p.root.arg[0] for p in scheduled.loops if p.kind == "vector"] == [2]
    assert [x.slot for x in scheduled.stages] == [1]
    few = product(20, 784, 10)  # to copy for so few rows takes longer than to leave lanes empty
    scheduled = schedule(few, WIDE)
    assert [p.root.arg[0] for p in scheduled.loops if p.kind == "vector"] == [1]
    check(few, scheduled)


@pytest.mark.parametrize("kind", ["NN", "NT", "TN", "TT"])
@pytest.mark.parametrize("shape", [(1, 7, 130), (13, 37, 61), (40, 24, 96), (33, 1, 47)])
def test_values(kind: str, shape: tuple[int, int, int]) -> None:
    kernel = product(*shape, kind)
    for target in (TINY, AVX2, replace(TINY, threads=2), replace(TINY, threads=3)):
        check(kernel, schedule(kernel, target))


def test_threads_are_busy_as_their_tiles_are() -> None:
    """21 tiles of columns in blocks of four are 12 and 9 for two threads: there rows are shared.
    Seven threads have a block of three each."""
    for threads, shared in ((2, "i0oo"), (7, "i1oo")):
        scheduled = schedule(product(1000, 1000, 1000), replace(WIDE, threads=threads))
        assert [p.name for p in scheduled.loops if p.kind == "parallel"] == [shared], threads
