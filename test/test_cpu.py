"""The cpu device: memory, compiling, loading, launch sequences, and its threads."""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from cpu_tools import device, program

from mygrad import dtype as dt
from mygrad.codegen.stmt import Function, Loop, Put
from mygrad.config import context
from mygrad.errors import CompileError, DeviceError, InternalError
from mygrad.expr import alu, axis, const, load, param
from mygrad.kernel import BufferInfo, Kernel
from mygrad.ops import Op
from mygrad.program import LOCAL, Launch, Program, Rounds
from mygrad.runtime.cpu import CPU, Executable, NativeSequence, Team
from mygrad.runtime.cpu_memory import Allocator, size_class
from mygrad.runtime.cpu_plan import barriers, owners
from mygrad.runtime.cpu_target import host_target

F = dt.float32
BUSY = 50  # times as long as on an idle machine a run may take on a busy one


def cpu_with(threads: int) -> CPU:
    with context(MYGRAD_THREADS=threads):
        return CPU()


def affine(
    name: str, size: int, kind: str = "parallel", scale: float = 1.0, shift: float = 1.0
) -> Function:
    """b1[i] = b0[size - 1 - i] * scale + shift: every thread reads what other threads wrote
    before."""
    i = axis(0, size)
    value = alu(
        Op.ADD, alu(Op.MUL, load(0, F, const(size - 1) - i), const(scale, F)), const(shift, F)
    )
    return Function(
        name,
        ((F, size, False), (F, size, True)),
        (),
        (Loop(i, const(0), const(size), kind, (Put(1, i, value),)),),
    )


def kernel_of(function: Function) -> Kernel:
    return Kernel(function.name, (), (), tuple(BufferInfo(*b) for b in function.buffers))


def load_all(cpu: CPU, functions: list[Function]) -> list[Executable]:
    made = []
    for function in functions:
        p = program(function)
        made.append(
            Program(
                p.entry,
                p.language,
                p.source,
                p.buffers,
                p.params,
                p.parallel,
                kernel=kernel_of(function),
            )
        )
    return cpu.load([(p, cpu.compile(p)) for p in made])


def launch(executable: Executable, *slots: int | tuple[int, int]) -> Launch:
    arguments = tuple(s if isinstance(s, tuple) else (s, 0) for s in slots)
    program = executable.program
    infos = [program.kernel.buffers[n] for n in program.buffers] if program.kernel else []
    touches = tuple((info.size * info.dtype.itemsize, info.written) for info in infos)
    return Launch(
        executable, arguments, program.params, program.parallel, program.entry, touches=touches
    )


def put(cpu: CPU, array: np.ndarray):
    memory = cpu.allocate(array.nbytes)
    cpu.write(memory, array)
    return memory


def get(cpu: CPU, memory, size: int) -> np.ndarray:
    out = np.empty(size, np.float32)
    cpu.read(memory, out)
    return out


def chain(cpu: CPU, size: int, steps: int, kinds: tuple[str, ...]) -> tuple[NativeSequence, list]:
    """Launches that hand an array back and forth between two memories."""
    functions = [affine(f"step_{kind}", size, kind) for kind in kinds]
    executables = load_all(cpu, functions)
    launches = [launch(executables[n % len(kinds)], n % 2, 1 - n % 2) for n in range(steps)]
    return cpu.sequence(launches), [put(cpu, np.arange(size, dtype=np.float32)) for _ in range(2)]


def expected(size: int, steps: int) -> np.ndarray:
    x = np.arange(size, dtype=np.float32)
    return (x if steps % 2 == 0 else x[::-1]) + steps


# --- memory --------------------------------------------------------------------------------------


def test_memory_is_aligned_and_holds_what_is_written() -> None:
    cpu = device()
    for nbytes in (0, 1, 63, 64, 65, 4097, 9 << 20):
        memory = cpu.allocate(nbytes)
        assert memory.address % 64 == 0
        assert memory.capacity >= max(nbytes, 1)
        data = np.random.default_rng(0).integers(0, 256, nbytes, np.uint8)
        cpu.write(memory, data)
        out = np.empty_like(data)
        cpu.read(memory, out)
        np.testing.assert_array_equal(out, data)
        cpu.release(memory)


def test_released_memory_is_used_again_up_to_a_bound() -> None:
    memory = Allocator(limit=10_000)
    a = memory.allocate(4000)
    address = a.address
    memory.release(a)
    assert memory.kept == size_class(4000)
    assert memory.allocate(4090).address == address
    assert memory.kept == 0
    for block in [memory.allocate(4000) for _ in range(5)]:
        memory.release(block)
    assert memory.kept <= 10_000
    memory.trim()
    assert memory.kept == 0


def test_size_classes_waste_at_most_an_eighth() -> None:
    for n in [*range(1, 3000, 7), 10**6, 10**9 + 1]:
        assert n <= size_class(n) <= max(n * 9 / 8 + 64, 64)
        assert size_class(size_class(n)) == size_class(n)


def test_too_much_memory_is_a_device_error() -> None:
    with pytest.raises(DeviceError, match="cpu memory"):
        device().allocate(1 << 60)


def test_copies_that_do_not_fit_are_refused() -> None:
    cpu = device()
    memory = cpu.allocate(64)
    with pytest.raises(InternalError):
        cpu.write(memory, np.zeros(1000))
    with pytest.raises(InternalError):
        cpu.read(memory, np.zeros((4, 4), np.float32)[:, :2])


# --- compiling and loading -----------------------------------------------------------------------


def test_text_that_llvm_refuses_is_a_compile_error_with_its_reason() -> None:
    broken = Program("f", "llvm", "define void @f() { ret i32 undefined_thing }", ())
    with pytest.raises(CompileError, match=r"compile f.*error"):
        device().compile(broken)
    invalid = Program(
        "f",
        "llvm",
        "define i32 @f() {\n  %a = add i32 %b, 1\n  %b = add i32 %a, 1\n  ret i32 %a\n}\n",
        (),
    )
    with pytest.raises(CompileError, match="dominate"):
        device().compile(invalid)


def test_programs_of_one_name_are_kept_apart() -> None:
    cpu = device()
    ones = load_all(cpu, [affine("same", 8, "seq", shift=float(n)) for n in (1, 2, 1)])
    assert ones[0].address == ones[2].address != ones[1].address
    memories = [put(cpu, np.zeros(8, np.float32)) for _ in range(3)]
    cpu.sequence([launch(ones[0], 0, 1), launch(ones[1], 0, 2)]).run(memories, {})
    assert get(cpu, memories[1], 8)[0] == 1
    assert get(cpu, memories[2], 8)[0] == 2


def test_functions_outlive_everything_but_the_device() -> None:
    cpu = device()
    (executable,) = load_all(cpu, [affine("alive", 8)])
    gc.collect()
    memories = [put(cpu, np.ones(8, np.float32)) for _ in range(2)]
    cpu.sequence([launch(executable, 0, 1)]).run(memories, {})
    assert (get(cpu, memories[1], 8) == 2).all()


def test_machine_code_can_be_seen() -> None:
    text = device().disassemble(program(affine("shown", 64)))
    assert "shown:" in text
    assert "ret" in text


def test_the_target_describes_the_machine(tmp_path: Path) -> None:
    target = device().target
    assert target.language == "llvm"
    assert target.vector_bytes in (16, 32, 64)
    assert target.threads >= 1
    assert host_target("x", "+avx2,-avx512f", 1, tmp_path).vector_bytes == 32
    assert host_target("x", "+avx2,+avx512f", 1, tmp_path).vector_registers == 32
    assert host_target("x", "+sse2", 1, tmp_path).l1_bytes == 32 << 10  # nothing known
    for number, (level, kind, size) in enumerate(
        [
            (1, "Data", "48K"),
            (1, "Instruction", "64K"),
            (2, "Unified", "2M"),
            (3, "Unified", "broken"),
        ]
    ):
        folder = tmp_path / f"index{number}"
        folder.mkdir()
        for name, value in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(f"{value}\n")
    target = host_target("x", "+neon", 4, tmp_path)
    assert (target.l1_bytes, target.l2_bytes, target.vector_bytes) == (48 << 10, 2 << 20, 16)


# --- sequences -----------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "kinds", [("parallel",), ("seq",), ("parallel", "seq"), ("seq", "parallel", "parallel")]
)
def test_a_chain_is_the_same_with_any_number_of_threads(
    threads: int, kinds: tuple[str, ...]
) -> None:
    cpu = cpu_with(threads)
    for size in (1, 5, 1000):
        sequence, memories = chain(cpu, size, 21, kinds)
        for _ in range(5):
            cpu.write(memories[0], np.arange(size, dtype=np.float32))
            sequence.run(memories, {})
            np.testing.assert_array_equal(get(cpu, memories[1], size), expected(size, 21))


def test_arguments_may_point_into_one_arena() -> None:
    """Steps that write disjoint parts need no barrier between them, and dependent ones have it."""
    cpu = cpu_with(2)
    first, second = load_all(cpu, [affine("arena_a", 16), affine("arena_b", 16, shift=5.0)])
    launches = [
        launch(first, (0, 0), (0, 64)),
        launch(second, (0, 0), (0, 128)),
        launch(first, (0, 64), (0, 192)),
    ]
    assert barriers(launches, apart=True) == [False, False, True]
    memory = put(cpu, np.zeros(64, np.float32))
    cpu.sequence(launches).run([memory], {})
    np.testing.assert_array_equal(get(cpu, memory, 64), np.repeat([0, 1, 5, 2], 16))


def test_barriers_stand_only_where_threads_could_disturb_each_other() -> None:
    cpu = device()
    par, ser = load_all(cpu, [affine("bar_p", 16), affine("bar_s", 16, "seq")])
    a, b = launch(par, 0, 1), launch(par, 1, 2)
    assert barriers([a, b], True) == [False, True]  # b reads what a writes
    assert barriers([a, a], True) == [False, True]  # the same output
    assert barriers([a, launch(par, 0, 2)], True) == [False, False]  # both only read 0
    assert barriers([a, launch(par, 0, 2)], False) == [False, True]  # but 1 and 2 may be the same
    assert barriers([b, a], True) == [False, True]  # a overwrites what b reads
    assert barriers([launch(ser, 0, 1), launch(ser, 1, 2)], True) == [
        False,
        False,
    ]  # both on thread 0
    assert barriers([launch(ser, 0, 1), b], True) == [False, True]
    unknown = Executable(Program("x", "llvm", "", (0, 1), parallel=True), 0)
    assert barriers([launch(unknown, 0, 1), launch(unknown, 0, 2)], True) == [False, True]


def test_serial_launches_that_need_nothing_of_each_other_have_owners_of_their_own() -> None:
    size = 1 << 16  # 512 KB touched: 50 us
    par, ser = load_all(cpu_with(2), [affine("own_p", size), affine("own_s", size, "seq")])
    chain_a = [launch(ser, 0, 1), launch(ser, 1, 2), launch(ser, 2, 3)]
    chain_b = [launch(ser, 0, 4), launch(ser, 4, 5)]
    mixed = [chain_a[0], chain_b[0], chain_a[1], chain_b[1], chain_a[2]]

    def owned(launches: list[Launch], threads: int = 2) -> list[int]:
        return owners(launches, barriers(launches, True), threads)

    assert owned(mixed) == [0, 1, 0, 1, 0]
    assert owned(mixed, threads=1) == [0] * 5
    assert owned(chain_a) == [0, 0, 0]
    # what reads both chains is a part of both
    assert owned([*mixed, launch(ser, 3, 6), launch(ser, 5, 6)]) == [0] * 7
    # behind a barrier it begins anew
    assert owned([*mixed, launch(par, 3, 6), launch(ser, 6, 7), launch(ser, 5, 8)])[-2:] == [0, 1]
    (small,) = load_all(cpu_with(2), [affine("own_t", 16, "seq")])
    assert owned([launch(small, 0, 1), launch(small, 0, 2)]) == [0, 0]  # not worth it


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_chains_side_by_side(threads: int) -> None:
    """Eight serial chains of different lengths between two shared loops."""
    size = 20_000
    cpu = cpu_with(threads)
    par, ser = load_all(cpu, [affine("side_p", size), affine("side_s", size, "seq")])
    launches = [launch(par, 0, 1)]
    at = [1] * 8
    for step in range(8):
        for n in range(step, 8):  # chain n has n + 1 links
            launches.append(launch(ser, at[n], 2 + 8 * n + step))
            at[n] = 2 + 8 * n + step
    launches += [launch(par, at[n], 70 + n) for n in range(8)]
    owned = owners(launches, barriers(launches, True), threads)
    assert set(owned) == set(range(min(threads, 8)))
    memories = [put(cpu, np.zeros(size, np.float32)) for _ in range(78)]
    sequence = cpu.sequence(launches)
    for _ in range(20):
        cpu.write(memories[0], np.arange(size, dtype=np.float32))
        sequence.run(memories, {})
        for n in range(8):
            np.testing.assert_array_equal(get(cpu, memories[70 + n], size), expected(size, n + 3))


def test_rounds() -> None:
    """Blocks of units, through memory of the thread's own; what is added up runs block by block,
    and the first one sets. More threads than there are shares divide each kernel."""
    units, blocks, size = 3, 4, 100
    unit, block = param("unit", 0, units - 1), param("block", 0, blocks - 1)
    i, start = axis(0, size), (unit * blocks + block) * size
    given = param("given", 0, 9)

    def loop(name: str, put: Put, *buffers: tuple, params: tuple[str, ...]) -> Function:
        body = (Loop(i, const(0), const(size), "parallel", (put,)),)
        return Function(name, buffers, params, body)

    whole = units * blocks * size
    scaled = alu(Op.MUL, load(0, F, start + i), alu(Op.CAST, given, dtype=F))
    total, local = load(1, F, unit * size + i), load(0, F, const(size - 1) - i)
    array, part, sums = (F, whole, False), (F, size, True), (F, units * size, True)
    functions = [
        loop("in", Put(1, i, scaled), array, part, params=("block", "given", "unit")),
        loop("set", Put(1, unit * size + i, local), (F, size, False), sums, params=("unit",)),
        loop(
            "add",
            Put(1, unit * size + i, alu(Op.ADD, total, local)),
            (F, size, False),
            sums,
            params=("unit",),
        ),
    ]
    x = np.random.default_rng(0).standard_normal((units, blocks, size)).astype(np.float32)
    want = np.zeros((units, size), np.float32)
    for n in range(blocks):
        want += 3 * x[:, n, ::-1]
    for threads in (1, 2, 3, 7):
        cpu = cpu_with(threads)
        first, *sums_of = (
            launch(e, *at)
            for e, at in zip(
                load_all(cpu, functions),
                [(0, (LOCAL, 64)), ((LOCAL, 64), 1), ((LOCAL, 64), 1)],
                strict=True,
            )
        )
        parts = ((first, 0, blocks), (sums_of[0], 0, 1), (sums_of[1], 1, blocks))
        touches = ((x.nbytes, False), (want.nbytes, True))
        rounds = Rounds(parts, units, blocks, False, 64 + 4 * size)
        step = Launch(rounds, ((0, 0), (1, 0)), ("given",), True, "rounds", touches=touches)
        memories = [put(cpu, x), put(cpu, want * 0)]
        sequence = cpu.sequence([step])
        for run in (sequence.run, sequence.time):
            cpu.write(memories[1], want * 0)
            run(memories, {"given": 3})
            np.testing.assert_allclose(
                get(cpu, memories[1], want.size).reshape(want.shape), want, rtol=1e-5
            )


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_rounds_after_each_other(threads: int) -> None:
    """Nothing that they touch is the same, so no barrier stands between them: what a thread has for
    itself must be nobody else's in all of them, and in what all threads share (3 units)."""
    cpu, size = cpu_with(threads), 2000
    i, unit = axis(0, size), param("unit", 0, 9)
    plus = [alu(Op.ADD, load(0, F, at), const(1.0, F)) for at in (unit * size + i, i)]
    buffers = [((F, 10 * size, False), (F, size, True)), ((F, size, False), (F, 10 * size, True))]
    functions = [
        Function(
            name, own, ("unit",), (Loop(i, const(0), const(size), "parallel", (Put(1, to, v),)),)
        )
        for name, own, to, v in zip(
            ("out_of", "back_to"), buffers, (i, unit * size + i), plus, strict=True
        )
    ]
    executables = load_all(cpu, functions)
    launches = []
    for n, units in enumerate((10, 3, 10, 3)):
        local = (LOCAL, 4096 * n)  # and so their memory is not equally large
        first = launch(executables[0], 2 * n, local)
        second = launch(executables[1], local, 2 * n + 1)
        rounds = Rounds(((first, 0, 1), (second, 0, 1)), units, 1, True, 4096 * n + 4 * size)
        touches = ((40 * size, False), (40 * size, True))
        at = ((2 * n, 0), (2 * n + 1, 0))
        launches.append(Launch(rounds, at, (), True, "rounds", touches=touches))
    assert not any(barriers(launches, True))
    sequence = cpu.sequence(launches)
    assert len({about[3] for about in sequence._plan._about}) == 1
    arrays = [np.arange(10 * size, dtype=np.float32) + n for n in range(8)]
    memories = [put(cpu, a) for a in arrays]
    for _ in range(50):
        for n in range(1, 8, 2):
            cpu.write(memories[n], arrays[n] * 0)
        sequence.run(memories, {})
        for n, units in enumerate((10, 3, 10, 3)):
            got = get(cpu, memories[2 * n + 1], 10 * size)[: units * size]
            np.testing.assert_array_equal(got, arrays[2 * n][: units * size] + 2)


def runs(count: int, alone: float, together: float, busy: int) -> list[bool]:
    """Which of so many runs were done alone, on a machine where the first `busy` of them sleep at a
    barrier and take 9 ms with all threads."""
    team, log, now = Team(), [], 0.0
    for run in range(count):
        log.append(team.alone)
        slept = run < busy and not team.alone
        seconds = alone if team.alone else 9e-3 if slept else together
        now += seconds
        team.after(seconds, 20 * slept, now)
    return log


def test_threads_that_wait_longer_than_they_work_are_left_out() -> None:
    """Where a run takes 9 ms with all threads and 2 alone, until the machine is idle again."""
    log = runs(2000, alone=2e-3, together=1e-3, busy=500)
    assert log[:4] == [False, False, True, True]
    assert sum(log[:500]) > 450
    assert sum(log[500:]) < 300  # half a second later it looks again: all together are faster
    assert not any(log[1000:])


def test_a_moment_of_waiting_does_not_slow_a_long_program_down() -> None:
    """Neither do the few sleeps that every long run has."""
    assert not any(runs(20, alone=0.5, together=0.3, busy=0))
    assert not any(runs(20, alone=2e-3, together=1e-3, busy=1))
    team, now = Team(), 0.0
    for _ in range(20):
        now += 0.3
        team.after(0.3, sleeps=10, now=now)
        assert not team.alone


def test_threads_that_sleep_though_they_help_are_kept() -> None:
    team, alone, now = Team(), 0, 0.0
    for _ in range(2000):
        seconds = 2e-3 if team.alone else 1.1e-3
        alone += team.alone
        now += seconds
        team.after(seconds, sleeps=int(not team.alone), now=now)
    assert 1 <= alone < 30


def seconds_of_runs(cpu: CPU, sequence: NativeSequence, crowd: int) -> float:
    """The time of 30 runs of 20 kernels beside so many busy processes, as the median of several;
    all of them are right."""
    x, seconds = np.arange(4096, dtype=np.float32), []
    program = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    busy = [subprocess.Popen(program, stdout=subprocess.PIPE) for _ in range(crowd)]
    try:
        for process in busy:
            process.stdout.readline()  # it has begun
        for _ in range(8):
            begin = time.perf_counter()
            for _ in range(30):  # more than a slice of time: it must be shared with the others
                memories = [put(cpu, x), put(cpu, x)]
                sequence.run(memories, {})
                np.testing.assert_array_equal(get(cpu, memories[0], 4096), x + 20)
            seconds.append(time.perf_counter() - begin)
    finally:
        for process in busy:
            process.kill()
            process.communicate()
    return statistics.median(seconds)


def test_a_busy_machine_costs_time_and_nothing_else() -> None:
    """Twice as many busy processes as cores: the same results, and not a slice of time for each of
    the barriers, which would be a thousand times what a run takes."""
    cpu = cpu_with(2)
    (executable,) = load_all(cpu, [affine("crowd", 4096)])
    sequence = cpu.sequence([launch(executable, n % 2, 1 - n % 2) for n in range(20)])
    crowd = 2 * (os.cpu_count() or 1)
    ratios = []
    for _ in range(3):
        idle = seconds_of_runs(cpu, sequence, 0)
        ratios.append(seconds_of_runs(cpu, sequence, crowd) / idle)
    assert statistics.median(ratios) <= BUSY, ratios


def test_one_memory_in_two_slots() -> None:
    """Slots count as different memory in the plan; when they are not, a plan with more barriers
    runs."""
    cpu = cpu_with(2)
    (executable,) = load_all(cpu, [affine("alias", 4096)])
    sequence = cpu.sequence([launch(executable, 0, 1), launch(executable, 2, 3)])
    x = np.arange(4096, dtype=np.float32)
    for _ in range(20):
        a, b, c = (put(cpu, x) for _ in range(3))
        sequence.run([a, b, b, c], {})
        np.testing.assert_array_equal(get(cpu, c, 4096), x + 2)


def test_one_memory_in_two_slots_that_are_only_read() -> None:
    cpu = cpu_with(2)
    (executable,) = load_all(cpu, [affine("readers", 64)])
    sequence = cpu.sequence([launch(executable, 0, 2), launch(executable, 1, 3)])
    x = np.arange(64, dtype=np.float32)
    a, b, c = (put(cpu, x) for _ in range(3))
    sequence.run([a, a, b, c], {})
    assert sequence._careful is None  # no more barriers than for two memories
    for result in (b, c):
        np.testing.assert_array_equal(get(cpu, result, 64), x[::-1] + 1)
    sequence.run([a, b, b, c], {})
    assert sequence._careful is not None
    np.testing.assert_array_equal(get(cpu, c, 64), x + 2)


def test_parameters_and_new_memories_at_each_run() -> None:
    cpu = device()
    i, n = axis(0, 100), param("n", 0, 100)
    function = Function(
        "fill",
        ((F, 100, True),),
        ("n",),
        (Loop(i, const(0), n, "parallel", (Put(0, i, const(3.0, F)),)),),
    )
    sequence = cpu.sequence([launch(*load_all(cpu, [function]), 0)])
    for count in (0, 1, 50, 100):
        memory = put(cpu, np.zeros(100, np.float32))
        sequence.run([memory], {"n": count, "unused": 5})
        np.testing.assert_array_equal(get(cpu, memory, 100), np.where(np.arange(100) < count, 3, 0))


def test_wrong_arguments_are_internal_errors() -> None:
    cpu = device()
    i, n = axis(0, 4), param("n", 0, 4)
    function = Function(
        "few", ((F, 4, True),), ("n",), (Loop(i, const(0), n, "seq", (Put(0, i, const(3.0, F)),)),)
    )
    sequence = cpu.sequence([launch(*load_all(cpu, [function]), 0)])
    memory = cpu.allocate(16)
    for memories, params in (([], {"n": 1}), ([memory, memory], {"n": 1}), ([memory], {})):
        with pytest.raises(InternalError, match="launch"):
            sequence.run(memories, params)


def test_an_empty_sequence_does_nothing() -> None:
    sequence = device().sequence([])
    sequence.run([], {})
    assert sequence.time([], {}) == []


def test_time_runs_each_launch_once() -> None:
    cpu = cpu_with(2)
    sequence, memories = chain(cpu, 1000, 4, ("parallel", "seq"))
    seconds = sequence.time(memories, {})
    assert len(seconds) == 4
    assert all(0 < s < 10 for s in seconds)
    np.testing.assert_array_equal(get(cpu, memories[0], 1000), expected(1000, 4))


# --- threads -------------------------------------------------------------------------------------


def test_serial_sequences_do_not_start_the_pool() -> None:
    cpu = cpu_with(2)
    sequence, memories = chain(cpu, 10, 3, ("seq",))
    sequence.run(memories, {})
    assert cpu.pool().threads is None


def test_a_pool_that_slept_wakes_up() -> None:
    cpu = cpu_with(3)
    sequence, memories = chain(cpu, 100, 3, ("parallel",))
    for pause in (0.0, 0.02, 0.0, 0.05):
        threading.Event().wait(pause)
        cpu.write(memories[0], np.arange(100, dtype=np.float32))
        sequence.run(memories, {})
        np.testing.assert_array_equal(get(cpu, memories[1], 100), expected(100, 3))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="not Linux")
def test_threads_that_wake_up_do_not_run_where_they_are_waited_for() -> None:
    """Unless there are fewer processors than threads."""
    allowed = os.sched_getaffinity(0)
    for threads in (2, len(allowed), len(allowed) + 1):
        tasks = set(os.listdir("/proc/self/task"))
        cpu = cpu_with(threads)
        sequence, memories = chain(cpu, 100, 3, ("parallel",))
        for _ in range(2):
            sequence.run(memories, {})
            threading.Event().wait(0.05)
        own = set(os.listdir("/proc/self/task")) - tasks
        assert len(own) == threads - 1
        for task in own:
            left = len(os.sched_getaffinity(int(task)))
            assert left == len(allowed) - (threads <= len(allowed))
        assert os.sched_getaffinity(0) == allowed


def test_many_barriers_when_there_are_more_threads_than_cores() -> None:
    cpu = cpu_with(8)
    sequence, memories = chain(cpu, 64, 301, ("parallel",))
    cpu.write(memories[0], np.arange(64, dtype=np.float32))
    sequence.run(memories, {})
    np.testing.assert_array_equal(get(cpu, memories[1], 64), expected(64, 301))


def test_python_threads_may_run_sequences_at_the_same_time() -> None:
    cpu = cpu_with(2)
    jobs = [chain(cpu, 500, 5, ("parallel",)) for _ in range(4)]
    wrong = []

    def work(sequence: NativeSequence, memories: list) -> None:
        for _ in range(30):
            cpu.write(memories[0], np.arange(500, dtype=np.float32))
            sequence.run(memories, {})
            if not (get(cpu, memories[1], 500) == expected(500, 5)).all():
                wrong.append(1)

    threads = [threading.Thread(target=work, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_a_pool_of_its_own() -> None:
    """In a process of its own: the threads of the test runner are not this test's business."""
    code = """
import os, sys, numpy as np
sys.path.insert(0, "test")
from test_cpu import chain, cpu_with, expected, get
cpu = cpu_with(3)
sequence, memories = chain(cpu, 200, 7, ("parallel",))
sequence.run(memories, {})
child = os.fork()
cpu.write(memories[0], np.arange(200, dtype=np.float32))
sequence.run(memories, {})
good = (get(cpu, memories[1], 200) == expected(200, 7)).all()
if child == 0:
    os._exit(0 if good else 3)
assert good and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    run_python(code)


def test_the_process_ends_with_the_pool_asleep_or_awake() -> None:
    run_python("""
import sys
sys.path.insert(0, "test")
from test_cpu import chain, cpu_with
sequence, memories = chain(cpu_with(4), 200, 7, ("parallel",))
sequence.run(memories, {})
""")


def run_python(code: str) -> None:
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=root,
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()


def test_the_native_program_is_compiled_once_per_machine(tmp_path: Path) -> None:
    with context(MYGRAD_CACHE=str(tmp_path)):
        for _ in range(2):
            cpu = cpu_with(2)
            sequence, memories = chain(cpu, 10, 3, ("parallel",))
            sequence.run(memories, {})
    kept = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(kept) == 1


ROWS = """
import hashlib, numpy as np
from mygrad import Tensor, jit
rng = np.random.default_rng(0)
x = Tensor(rng.standard_normal(1 << 18, dtype=np.float32)).realize()
y = Tensor(rng.standard_normal((300, 1031), dtype=np.float32)).realize()
where = Tensor(rng.integers(0, 50, 700)).realize()
def step(x, y, where):
    table = Tensor.zeros(50, 33).index_add(0, where, y[:, :33].repeat(3, 1)[:700])
    parts = x.cumsum(0), x.sum(), x.argmax(), y.cumsum(1), y.sum(0), y.softmax(-1), y.T.contiguous()
    return (*parts, table, y[where[:200]])
print(hashlib.sha256(b"".join(t.numpy().tobytes() for t in jit(step)(x, y, where))).hexdigest())
"""


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", ROWS],
            env={**os.environ, "MYGRAD_THREADS": str(n), "CPU": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in (1, 2, 3, 7)
    ]
    answers = {run.communicate()[0].strip() for run in runs}
    assert len(answers) == 1
    assert all(answers)
