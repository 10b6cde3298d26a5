"""Schedule actions: what they do to the loops, what they refuse, and that they are data."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mygrad import codegen
from mygrad import dtype as dt
from mygrad.codegen.actions import (
    Parallel,
    Reorder,
    Schedule,
    ScheduleError,
    Split,
    Stage,
    Stream,
    Unroll,
    Vectorize,
    apply,
    definition,
    start,
)
from mygrad.errors import CompileError, InternalError
from mygrad.expr import alu, axis, load, reduce, scan
from mygrad.kernel import BufferInfo, Kernel, Store
from mygrad.ops import Op
from mygrad.program import Target

F = dt.float32


def matmul(m: int = 20, n: int = 30, k: int = 40) -> Kernel:
    i, j, r = axis(0, m), axis(1, n), axis(2, k)
    product = alu(Op.MUL, load(1, F, i * k + r), load(2, F, r * n + j))
    store = Store(0, i * n + j, reduce(Op.ADD, product, (r,)))
    sizes = ((m * n, True), (m * k, False), (k * n, False))
    return Kernel(
        "matmul", (i, j), (store,), tuple(BufferInfo(F, size, out) for size, out in sizes)
    )


def running_sum() -> Kernel:
    i, bound = axis(0, 32), axis(1, 32)
    store = Store(0, i, scan(Op.ADD, load(1, F, bound), i, bound))
    return Kernel("sum", (i,), (store,), (BufferInfo(F, 32, True), BufferInfo(F, 32)))


def names(schedule: Schedule) -> list[str]:
    return [p.name for p in schedule.loops]


def test_the_start_lists_outputs_then_reductions_without_trivial_axes() -> None:
    assert names(start(matmul())) == ["i0", "i1", "i2"]
    assert names(start(matmul(n=1, k=1))) == ["i0"]
    assert names(start(matmul(m=0))) == ["i1", "i2"]


def test_split_keeps_the_value_of_the_axis() -> None:
    schedule = apply(start(matmul()), (Split("i0", 8), Split("i0i", 2)))
    assert names(schedule) == ["i0o", "i0io", "i0ii", "i1", "i2"]
    assert [(p.extent, p.stride) for p in schedule.loops[:3]] == [(3, 8), (4, 2), (2, 1)]
    value = definition(schedule, schedule.kernel.axes[0])
    assert value is sum(
        (p.axis * p.stride for p in schedule.loops[:3]), start=0 * schedule.loops[0].axis
    )


def test_split_by_more_than_the_extent_has_no_outer_loop() -> None:
    schedule = apply(start(matmul()), (Split("i0", 32),))
    assert names(schedule) == ["i0i", "i1", "i2"]
    assert schedule.loops[0].extent == 32
    assert names(apply(start(matmul(m=5000)), (Split("i0", 10000),))) == ["i0i", "i1", "i2"]


def test_ids_of_new_axes_are_unique() -> None:
    schedule = apply(
        start(matmul()), (Split("i0", 8), Split("i2", 4), Split("i1", 16), Split("i1i", 4))
    )
    ids = [p.axis.arg[0] for p in schedule.loops]
    assert len(set(ids)) == len(ids)


def test_reorder_uses_the_places_of_the_named_loops() -> None:
    schedule = apply(start(matmul()), (Split("i1", 8), Reorder(("i2", "i0"))))
    assert names(schedule) == ["i2", "i1o", "i1i", "i0"]


def test_parallel_moves_outside() -> None:
    schedule = apply(start(matmul()), (Parallel("i1"),))
    assert names(schedule) == ["i1", "i0", "i2"]
    assert schedule.loops[0].kind == "parallel"


def test_schedules_and_actions_are_data() -> None:
    actions = (Split("i0", 8), Unroll("i0i"), Stage(2, "i0o", ("i1", "i2")))
    assert eval(repr(actions)) == actions
    assert hash(actions) == hash(eval(repr(actions)))
    once, again = apply(start(matmul()), actions), apply(start(matmul()), actions)
    assert once == again
    assert str(once) == str(again)


REFUSED = [
    ((Split("i9", 2),), "expected one of i0, i1, i2"),
    ((Split("i0", 1),), "2 or more"),
    ((Split("i0", 1 << 40),), "4096 or less"),
    ((Split("i0", 8), Split("i0i", 3)), "must divide 8"),
    ((Unroll("i0"), Split("i0", 2)), "unroll already"),
    ((Reorder(("i0", "i0")),), "named twice"),
    ((Split("i0", 4), Reorder(("i0i", "i0o"))), "must stay outside"),
    ((Vectorize("i0"),), "no power of two"),
    ((Split("i0", 4), Vectorize("i0o")), "sequential loop runs over a part"),
    ((Split("i0", 4), Unroll("i0i"), Vectorize("i0o")), "stride 1"),
    ((Split("i0", 4), Vectorize("i0i"), Split("i2", 4), Vectorize("i2i")), "two vector axes"),
    ((Unroll("i2"), Unroll("i2")), "unroll already"),
    ((Split("i2", 80), Unroll("i2i")), "more than 64"),
    ((Parallel("i2"),), "cannot share a reduction"),
    ((Parallel("i0"), Parallel("i1")), "parallel loop already"),
    ((Split("i0", 4), Parallel("i0i")), "i0o must stay outside"),
    ((Stage(0, "i0", ("i1",)),), "reads no such buffer"),
    ((Stage(99, "i0", ("i1",)),), "reads no such buffer"),
    ((Stage(-1, "i0", ("i1",)),), "reads no such buffer"),
    ((Unroll("i0"), Stage(1, "i0", ("i2",))), "inside of a tile"),
    ((Stage(1, "i0", ("i2",)), Stage(1, "i0", ("i2",))), "staged already"),
    ((Stage(1, "", ("i0", "i2", "i0")),), "named twice"),
    ((Stream(1),), "does not store there"),
]


@pytest.mark.parametrize(("actions", "why"), REFUSED)
def test_refused(actions: tuple, why: str) -> None:
    with pytest.raises(ScheduleError, match=why):
        apply(start(matmul()), actions)


def test_what_a_kernel_reads_and_writes_is_neither_stream_nor_copied() -> None:
    i = axis(0, 64)
    info = BufferInfo(F, 64, True)
    one = Store(0, i, alu(Op.EXP, load(0, F, i)))
    with pytest.raises(ScheduleError, match="reads it"):
        Stream(0).apply(start(Kernel("in_place", (i,), (one,), (info,))))
    with pytest.raises(ScheduleError, match="written by this kernel"):
        Stage(0, "", ("i0",)).apply(start(Kernel("in_place", (i,), (one,), (info,))))
    one = Store(0, i, load(1, F, i), None, "add")
    with pytest.raises(ScheduleError, match="old values"):
        Stream(0).apply(start(Kernel("sums", (i,), (one,), (info, BufferInfo(F, 64)))))


@pytest.mark.parametrize(
    ("rows", "columns", "together"), [(16, 4096, 8), (16, 64, 1), (9, 4096, 1)]
)
def test_far_rows_are_summed_together(rows: int, columns: int, together: int) -> None:
    target = Target("llvm", "test", vector_bytes=64, vector_registers=32, l2_bytes=1 << 14)
    i, j = axis(0, rows), axis(1, columns)
    total = reduce(Op.ADD, load(1, F, i * columns + j), (j,))
    infos = (BufferInfo(F, rows, True), BufferInfo(F, rows * columns))
    made = codegen.schedule(Kernel("sums", (i,), (Store(0, i, total),), infos), target)
    copies = [p.extent for p in made.loops if p.root is i and p.kind == "unroll"]
    assert copies == [together] * (together > 1)


def copied(n: int) -> Kernel:
    """b1[i] = b0[i]"""
    i = axis(0, n)
    store = Store(1, i, load(0, F, i))
    return Kernel("copy", (i,), (store,), (BufferInfo(F, n), BufferInfo(F, n, True)))


def test_large_outputs_are_streams_if_they_are_written_line_by_line() -> None:
    small = Target("llvm", "test", vector_bytes=32, vector_registers=16, l2_bytes=1 << 10)
    large = replace(small, l2_bytes=1 << 24)
    for target, n, streams in ((small, 1 << 20, ()), (small, 1 << 22, (1,)), (large, 1 << 22, ())):
        assert codegen.schedule(copied(n), target).streams == streams
    i, j = axis(0, 4096), axis(1, 4096)  # lanes are half a line, the next one is far away
    store = Store(1, i * 4096 + j, load(0, F, j * 4096 + i))
    buffers = (BufferInfo(F, 1 << 24), BufferInfo(F, 1 << 24, True))
    assert codegen.schedule(Kernel("turn", (i, j), (store,), buffers), small).streams == ()
    assert codegen.schedule(matmul(4096, 1024, 8), small).streams == ()  # many rows at once


def test_a_scan_may_have_lanes() -> None:
    scheduled = apply(start(running_sum()), (Split("i0", 8), Vectorize("i0i")))
    assert [p.kind for p in scheduled.loops] == ["seq", "vector"]


@pytest.mark.parametrize("action", [Unroll("i0"), Parallel("i0")])
def test_a_scan_runs_in_order(action) -> None:
    with pytest.raises(ScheduleError, match="scan"):
        action.apply(start(running_sum()))


@pytest.mark.parametrize("action", [Vectorize("i0"), Unroll("i0"), Parallel("i0")])
def test_a_scatter_runs_in_order(action) -> None:
    i = axis(0, 32)
    store = Store(0, load(1, dt.index, i), load(2, F, i), None, "add", (i,))
    buffers = (BufferInfo(F, 8, True), BufferInfo(dt.index, 32), BufferInfo(F, 32))
    with pytest.raises(ScheduleError, match="scatter"):
        action.apply(start(Kernel("scatter", (i,), (store,), buffers)))


def test_a_schedule_error_is_a_value_error_and_an_internal_error() -> None:
    assert issubclass(ScheduleError, ValueError)
    assert issubclass(ScheduleError, InternalError)


# --- the default schedule -------------------------------------------------------------------------

AVX512 = Target("llvm", "a", vector_bytes=64, vector_registers=32, l2_bytes=2 << 20, threads=2)
AVX2 = Target("llvm", "b", vector_bytes=32, vector_registers=16, threads=1)
SCALAR = Target("llvm", "c", vector_bytes=4, vector_registers=8, threads=1)


def kinds(schedule: Schedule) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for p in schedule.loops:
        found.setdefault(p.kind, []).append(p.extent)
    return found


def test_the_register_tile_fills_the_registers_and_no_more() -> None:
    for target, low in ((AVX512, 16), (AVX2, 8)):
        found = kinds(codegen.schedule(matmul(512, 512, 512), target))
        cells = 1
        for copies in found["unroll"]:
            cells *= copies
        assert low <= cells <= target.vector_registers - 4
        assert found["vector"] == [target.vector_bytes // 4]


def test_no_vectors_where_the_machine_has_none() -> None:
    assert "vector" not in kinds(codegen.schedule(matmul(64, 64, 64), SCALAR))


def test_small_kernels_stay_on_one_thread() -> None:
    assert "parallel" not in kinds(codegen.schedule(matmul(4, 4, 4), AVX512))
    assert "parallel" in kinds(codegen.schedule(matmul(256, 256, 64), AVX512))


def test_rows_a_power_of_two_apart_are_staged() -> None:
    scheduled = codegen.schedule(matmul(1024, 2048, 1024), AVX2)
    assert {s.slot for s in scheduled.stages} == {1, 2}  # what is read as vectors, and as elements
    scheduled = codegen.schedule(matmul(1024, 768, 1024), AVX2)
    assert {s.slot for s in scheduled.stages} == {2}  # rows that have places of their own
    scheduled = codegen.schedule(matmul(1024, 2048, 1024), AVX512)
    assert {s.slot for s in scheduled.stages} == {2}  # and where a vector is a line
    assert codegen.schedule(matmul(96, 96, 96), AVX512).stages == ()


# --- compile --------------------------------------------------------------------------------------


def test_stages_of_a_program_keep_the_text_after_each_pass() -> None:
    program = codegen.compile(matmul(), AVX512)
    assert [name for name, _ in program.stages] == [
        "kernel",
        "schedule",
        "lower",
        "verify",
        "render",
    ]
    assert program.source == program.stages[-1][1]
    assert program.buffers == (0, 1, 2)
    assert program.entry == "matmul"


def test_numpy_programs_are_kernels() -> None:
    program = codegen.compile(matmul(), Target("numpy", "numpy"))
    assert program.kernel == matmul()
    assert "kernel matmul" in program.source


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(CompileError, match="fortran"):
        codegen.compile(matmul(), Target("fortran", "x"))


def test_given_actions_replace_the_default() -> None:
    program = codegen.compile(matmul(), AVX512, [Parallel("i0")])
    assert program.parallel
    assert program.grid == (20,)
    assert not codegen.compile(matmul(), AVX512, []).parallel
