"""MYGRAD_GUARD catches what it promises to catch, and models run under it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import guarded
import numpy as np
import pytest
from kernel_cases import run_on, run_program

from mygrad import codegen
from mygrad import dtype as dt
from mygrad.codegen.actions import Split, Vectorize
from mygrad.config import context
from mygrad.expr import alu, axis, both, const, less, load
from mygrad.kernel import BufferInfo, Kernel, Store
from mygrad.ops import Op
from mygrad.program import Program
from mygrad.runtime.cpu import CPU
from mygrad.runtime.guard import BEFORE_THE_PAGE, BEHIND_THE_PAGE

N = 37
F = dt.float32


def double() -> Kernel:
    i = axis(0, N)
    x = load(1, F, i)
    buffers = (BufferInfo(F, N, True), BufferInfo(F, N))
    return Kernel("double", (i,), (Store(0, i, alu(Op.ADD, x, x)),), buffers)


def wrong(which: str) -> Program:
    """Text that reads or writes `array[at]` of arrays with N elements."""
    at = {"beyond": N, "before": -1}[which.split()[1]]
    read, write = "%v = load volatile float, ptr %x", "store volatile float 1.0, ptr %x"
    access = write if which.startswith("write") else read
    text = (
        "define void @wrong(ptr %args, i64 %tid, i64 %n) {\n"
        "  %a = load ptr, ptr %args\n"
        f"  %x = getelementptr float, ptr %a, i64 {at}\n"
        f"  {access}, align 4\n  ret void\n}}\n"
    )
    return Program("wrong", "llvm", text, (0,))


def arrays() -> list[np.ndarray]:
    return [np.zeros(N, np.float32), np.arange(N, dtype=np.float32)]


@pytest.mark.parametrize("which", ["read beyond", "read before", "write beyond", "write before"])
def test_one_element_outside_stops_the_process_and_names_the_kernel(which: str) -> None:
    with pytest.raises(guarded.Fault, match=r"^SIG(SEGV|BUS)") as caught:
        guarded.run_text(wrong(which), arrays()[:1])
    assert " in wrong\n" in caught.value.trace


def test_a_fault_on_another_thread_names_the_kernel_too() -> None:
    text = (
        "define void @wrong(ptr %args, i64 %tid, i64 %n) {\n"
        "  %a = load ptr, ptr %args\n"
        "  %mine = icmp eq i64 %tid, 0\n"
        f"  %at = select i1 %mine, i64 0, i64 {N}\n"
        "  %x = getelementptr float, ptr %a, i64 %at\n"
        "  store float 1.0, ptr %x, align 4\n  ret void\n}\n"
    )

    def work() -> None:
        with context(MYGRAD_GUARD=BEFORE_THE_PAGE, MYGRAD_THREADS=2):
            runtime = CPU()
        program = Program("wrong", "llvm", text, (0,), parallel=True)
        (executable,) = runtime.load([(program, runtime.compile(program))])
        run_program(runtime, program, executable, arrays()[:1])

    with pytest.raises(guarded.Fault, match=r"^SIG(SEGV|BUS)") as caught:
        guarded.in_child(work)
    assert " in wrong\n" in caught.value.trace


def test_wrong_kernels_of_the_code_generator_are_caught() -> None:
    """Buffers one element shorter than the kernel says."""
    kernel = double()
    for actions in ((), (Split("i0", 8), Vectorize("i0i"))):
        np.testing.assert_array_equal(guarded.run(kernel, arrays(), actions)[0], 2 * arrays()[1])
        with pytest.raises(guarded.Fault, match="SIG") as caught:
            guarded.run(kernel, [a[:-1] for a in arrays()], actions)
        assert " in double\n" in caught.value.trace


def test_lanes_beyond_the_end_are_not_read_where_a_vector_is_halved() -> None:
    """Indices are wider than what they pick: LLVM halves their vector, and the half that is
    inactive must not be read. (Found by the fuzzer: seed 1128, case 1841.)"""
    i = axis(0, 2)
    place = load(1, dt.int64, i + 1)
    inside = both(less(const(-1, dt.int64), place), less(place, const(4, dt.int64)))
    buffers = (BufferInfo(F, 2, True), BufferInfo(dt.int64, 3), BufferInfo(dt.bfloat16, 4))
    picked = alu(Op.CAST, load(2, dt.bfloat16, place, inside), dtype=F)
    kernel = Kernel("picked", (i,), (Store(0, i, picked),), buffers)
    table = dt.to_storage(np.arange(4, dtype=np.float32), dt.bfloat16)
    given = [np.zeros(2, np.float32), np.array([0, 3, 1]), table]
    found = guarded.run(kernel, given, (Split("i0", 8), Vectorize("i0i")))
    np.testing.assert_array_equal(found[0], [3, 1])


@pytest.mark.parametrize("mode", [BEFORE_THE_PAGE, BEHIND_THE_PAGE])
def test_memory_that_nobody_wrote_is_nan(mode: int) -> None:
    with context(MYGRAD_GUARD=mode):
        runtime = CPU()
    program = codegen.compile(double(), runtime.target)
    (executable,) = runtime.load([(program, runtime.compile(program))])
    memory = [runtime.allocate(4 * N) for _ in range(2)]
    for dtype in (np.float16, np.float64, np.float32):
        held = np.empty(4 * N // np.dtype(dtype).itemsize, dtype)
        runtime.read(memory[1], held)
        assert np.isnan(held).all()
    got = run_program(runtime, program, executable, [arrays()[0], held])
    assert np.isnan(got[0]).all()


def test_released_memory_is_gone() -> None:
    def work() -> None:
        memory = guarded.cpu().allocate(100)
        guarded.cpu().release(memory)
        guarded.cpu().read(memory, np.empty(100, np.uint8))

    with pytest.raises(guarded.Fault, match="SIG"):
        guarded.in_child(work)


def test_a_child_tells_of_its_errors() -> None:
    def fails() -> None:
        raise ValueError("so it is")

    with pytest.raises(AssertionError, match="ValueError: so it is"):
        guarded.in_child(fails)
    assert guarded.in_child(lambda: 3) == 3


def test_without_guard_pages_nothing_changes() -> None:
    assert not CPU().guarded
    np.testing.assert_array_equal(run_on("cpu", double(), arrays())[0], 2 * arrays()[1])


# --- models ---------------------------------------------------------------------------------------

STEPS = Path(__file__).parent / "model_steps.py"


def run_steps(tmp_path: Path, names: list[str], **settings: str) -> dict[str, str]:
    """A digest of the values of each of these models after 3 training steps, in a process with
    these settings."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MYGRAD_")}
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(STEPS), *names],
        env={
            **inherited,
            "PYTHONPATH": os.pathsep.join((str(STEPS.parent.parent), str(STEPS.parent))),
            "MYGRAD_CACHE": str(tmp_path / "cache"),
            **settings,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stderr[-3000:]}"
    return dict(line.split() for line in done.stdout.splitlines())


QUICK = ["cnn", "transformer", "lstm"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digests without guard pages, on one thread."""
    return run_steps(tmp_path_factory.mktemp("plain"), QUICK, MYGRAD_THREADS="1")


@pytest.mark.parametrize("mode", ["1", "2"])
def test_models_stay_inside_of_their_buffers(
    mode: str, plain: dict[str, str], tmp_path: Path
) -> None:
    assert run_steps(tmp_path, QUICK, MYGRAD_GUARD=mode, MYGRAD_THREADS="2") == plain


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["1", "2"])
def test_larger_models_stay_inside_of_their_buffers(mode: str, tmp_path: Path) -> None:
    large = ["large_cnn", "large_transformer", "large_lstm", "resnet"]
    assert run_steps(tmp_path, large, MYGRAD_GUARD=mode) == run_steps(tmp_path, large)


@pytest.mark.parametrize("threads", ["2", "3", "7"])
def test_models_do_not_depend_on_threads(
    threads: str, plain: dict[str, str], tmp_path: Path
) -> None:
    assert run_steps(tmp_path, QUICK, MYGRAD_THREADS=threads) == plain
