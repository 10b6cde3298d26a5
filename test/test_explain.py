"""Looking inside: plan(), DEBUG and MYGRAD_DUMP, as a user's script sees them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mygrad
from mygrad import Tensor, explain, helpers, realize
from mygrad.config import context
from mygrad.errors import ConfigError, DTypeError
from mygrad.helpers import UNKNOWN, Location
from mygrad.nn import Linear

ROOT = Path(__file__).parent.parent

# the blank first lines make the line numbers below those of a real file, and easy to see
SCRIPT = """
import numpy as np
import mygrad
from mygrad import Tensor

a = Tensor(np.ones((7, 5), np.float32))
b = Tensor(np.ones((5, 3), np.float32))
c = (
    a @ b
).relu()  # line 10 or 9
order = c.sort()[0].abs()  # line 11
print(order.numpy().sum())
"""


def run(folder: Path, script: str = SCRIPT, **environment: str) -> subprocess.CompletedProcess:
    """Run a user's script in a folder of its own."""
    path = folder / "user_script.py"
    path.write_text(script)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MYGRAD_") and k != "DEBUG"}
    settings = {"PYTHONPATH": str(ROOT), "MYGRAD_CACHE": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, str(path)],
        cwd=folder,
        env={**clean, **settings, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def tensor(*shape: int) -> Tensor:
    return Tensor(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


# --- plan -----------------------------------------------------------------------------------------


def test_plan_describes_a_matmul() -> None:
    a, b = tensor(37, 20), tensor(20, 19)
    c = (a @ b).relu()
    line = sys._getframe().f_lineno - 1
    plan = mygrad.plan(c)
    (kernel,) = plan.kernels
    assert kernel.reason == "asked for"
    assert kernel.bytes == 4 * (37 * 20 + 20 * 19 + 37 * 19)
    assert kernel.flops == 2 * 37 * 20 * 19 + 37 * 19  # multiply, add; relu
    assert kernel.location == Location(__file__, line)
    assert plan.peak_bytes == 4 * 37 * 19
    assert f"kernel {kernel.name}(" in kernel.text
    assert "add[i2<20]" in kernel.text
    assert kernel.name in kernel.source


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_plan_shows_every_stage_of_a_kernel(device: str) -> None:
    (kernel,) = mygrad.plan(tensor(8, 64).to(device).realize().exp()).kernels
    assert kernel.device == device
    if device == "cpu":
        assert "define void" in kernel.source
        assert any(action.startswith("Vectorize(") for action in kernel.actions)
        assert kernel.name in kernel.machine_code
        assert "ret" in kernel.machine_code
    else:
        assert kernel.source == kernel.text
        assert kernel.actions == ()
        assert kernel.machine_code == ""


def test_plan_runs_and_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("plan must not get here")

    a = tensor(6, 6)
    pending = a.exp().sort()[0] + 1
    node = pending.node
    with monkeypatch.context() as patch:
        patch.setattr(realize, "assemble", refuse)
        patch.setattr(realize.Prepared, "run", refuse)
        plan = mygrad.plan(pending)
        assert len(plan.kernels) == 3
        with pytest.raises(AssertionError, match="must not get here"):
            pending.numpy()  # the traps work
    assert pending.node is node
    np.testing.assert_allclose(pending.numpy(), np.sort(np.exp(a.numpy()), -1) + 1, rtol=1e-5)


def test_plan_is_what_runs(capfd: pytest.CaptureFixture[str]) -> None:
    a, b = tensor(9, 4), tensor(9)
    result = (a.softmax() @ a.T).sum(axis=0) * b
    table = str(mygrad.plan(result))
    with context(DEBUG=1):
        result.numpy()
    assert table in capfd.readouterr().err


def test_plan_of_several_tensors_shares_their_work() -> None:
    x = tensor(40, 40).exp()
    apart = [mygrad.plan(t) for t in (x.sum(axis=1), x.max(axis=1))]
    together = mygrad.plan(x.sum(axis=1), x.max(axis=1))
    assert len(together.kernels) < sum(len(p.kernels) for p in apart)


def test_plan_of_values_in_memory_is_empty() -> None:
    for plan in (mygrad.plan(), mygrad.plan(tensor(3)), mygrad.plan(tensor(6).reshape(2, 3))):
        assert plan == explain.Plan((), 0)
        assert str(plan) == "nothing to run, 0B of memory beside the inputs"


def test_plan_of_empty_tensors_has_no_steps() -> None:
    plan = mygrad.plan(Tensor(np.zeros((0, 3), np.float32)).exp())
    assert plan.kernels == ()
    assert "nothing to run" in str(plan)


def test_plan_shows_host_steps() -> None:
    plan = mygrad.plan((tensor(8, 4) * 2).sort(axis=0)[0].abs())
    assert [k.name for k in plan.kernels][1] == "sort"
    step = plan.kernels[1]
    assert step.bytes == 8 * 4 * (4 + 4)  # the values, before and after
    assert (step.flops, step.source, step.text, step.actions) == (0, "", "", ())
    assert "sort is a step of its own" in str(plan)


def test_plan_counts_the_memory_between_kernels() -> None:
    x = tensor(1000)
    for _ in range(6):
        x = x.exp().contiguous()
    plan = mygrad.plan(x)
    assert len(plan.kernels) == 6
    assert plan.peak_bytes == 4000 + 2 * 4096  # the result, and two intermediates at a time


def test_plan_works_inside_jit() -> None:
    seen = []

    @mygrad.jit
    def step(x: Tensor) -> Tensor:
        y = (x @ x).relu()
        seen.append(mygrad.plan(y))
        return y

    step(tensor(5, 5))
    assert [len(p.kernels) for p in seen] == [1]


def test_plan_of_a_model_names_the_lines_of_the_model() -> None:
    plan = mygrad.plan(Linear(4, 3)(tensor(2, 4)))
    assert all(k.location.file == __file__ for k in plan.kernels)


def test_plan_refuses_what_is_no_tensor() -> None:
    with pytest.raises(DTypeError, match=r"plan: got list, expected tensors; plan\(\*tensors\)"):
        mygrad.plan([tensor(3)])  # type: ignore[arg-type]


def test_table_lines_up() -> None:
    lines = str(mygrad.plan((tensor(9, 4) @ tensor(4, 9)).sort()[0].abs())).split("\n")
    *table, total = lines
    for column in ("step", "device", "bytes", "flops", "line", "why"):
        start = table[0].index(column)
        assert all(row[start - 2 : start] == "  " and row[start] != " " for row in table)
    assert re.fullmatch(r"3 steps, \S+B moved, \S+ flops, \S+B of memory beside the inputs", total)


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0"), (1, "1"), (999, "999"), (999.4, "999"), (999.6, "1k"), (12345678, "12.3M"),
     (999_999, "1M"), (2.5e9, "2.5G"), (7e12, "7T"), (1e16, "10000T"), (-1500, "-1.5k")],
)  # fmt: skip
def test_quantity(n: float, text: str) -> None:
    assert helpers.quantity(n) == text


def test_short_location() -> None:
    assert explain.short(Location("/somewhere/else/model.py", 12)) == "model.py:12"
    assert explain.short(UNKNOWN) == "-"


# --- DEBUG ----------------------------------------------------------------------------------------

# what each level adds to those below it
MARKS = {
    1: ("why it is a step", "3 steps"),
    2: (" us ", "GFLOP/s", "GB/s"),
    3: ("kernel\nkernel rows_7x3x5", "schedule\n", "Vectorize(axis="),
    4: ("llvm source\n", "define void"),
    5: ("machine code\n", ".globl"),
}


BODY = "\n".join("        " + line for line in SCRIPT.strip().splitlines()[3:])
FORKS = f"""import os
import sys
import numpy as np
from mygrad import Tensor, context
for level in range(6):
    print("=====", file=sys.stderr, flush=True)
    if os.fork():
        os.wait()
        continue
    with context(DEBUG=level):
{BODY}
    sys.exit()
"""
MATMUL, SORT = "(14|15|16)", "17"  # lines of FORKS


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """What each level prints, each in a process of its own: forked ones, to import NumPy once."""
    folder = tmp_path_factory.mktemp("debug")
    done = run(folder, FORKS)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "105.0\n" * 6  # DEBUG says nothing on stdout
    return dict(enumerate(done.stderr.split("=====\n")[1:]))


@pytest.mark.parametrize("level", range(6))
def test_debug_levels(outputs: dict[int, str], level: int) -> None:
    for needs, marks in MARKS.items():
        for mark in marks:
            assert (mark in outputs[level]) == (level >= needs), (level, mark)
    assert bool(outputs[level]) == (level > 0)


def test_debug_names_the_line_of_the_user(outputs: dict[int, str]) -> None:
    table = outputs[1]
    assert re.search(rf"rows_7x3x5_\w+ .* user_script\.py:{MATMUL} ", table)
    assert re.search(rf"sort .* user_script\.py:{SORT} ", table)


def test_debug_is_read_from_the_environment(tmp_path: Path) -> None:
    done = run(tmp_path, DEBUG="2")
    assert done.stdout == "105.0\n"
    assert re.search(r"rows_7x3x5_\w+ .* user_script\.py:(9|10) ", done.stderr)
    assert "GB/s" in done.stderr


def test_debug_times_kernels_and_host_steps(outputs: dict[int, str]) -> None:
    times = [line for line in outputs[2].splitlines() if " us " in line and "GB/s" in line]
    assert [re.split(r"\s{2,}", line)[-2].split("_")[0] for line in times][:2] == ["rows", "sort"]
    assert "217FLOP" not in outputs[2]
    assert "231FLOP" in times[0]  # 2 * 7 * 3 * 5 + 7 * 3
    assert f"{4 * (35 + 15 + 21)}B" in times[0]


def test_debug_prints_a_plan_once_until_more_is_asked_for(
    capfd: pytest.CaptureFixture[str],
) -> None:
    x = tensor(29)
    for level in (2, 2, 2, 3):
        with context(DEBUG=level):
            (x * 3).numpy()
    printed = capfd.readouterr().err
    assert printed.count("why it is a step") == 2
    assert printed.count("--- ") == 2  # the kernel and its schedule, at the end
    assert printed.count("GB/s") == 4


def test_debug_on_the_interpreter(capfd: pytest.CaptureFixture[str]) -> None:
    with context(DEBUG=5):
        (tensor(5, 8).to("reference") * 7).numpy()
    printed = capfd.readouterr().err
    assert "no actions: the loops are as the kernel lists them" in printed
    assert "none to show on reference" in printed


def test_debug_shows_a_kernel_that_cannot_be_compiled(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("refused")

    monkeypatch.setattr(realize.compiler, "executables", fail)
    with context(DEBUG=1), pytest.raises(RuntimeError, match="refused"):
        (tensor(3, 11) * 1.25).numpy()
    assert "elementwise_33" in capfd.readouterr().err


# --- MYGRAD_DUMP ----------------------------------------------------------------------------------

STAGES = {".kernel.txt", ".llvm.schedule.txt", ".llvm.stmt.txt", ".ll"}


def dumped(folder: Path) -> dict[str, set[str]]:
    """kernel name -> suffixes of its files"""
    found: dict[str, set[str]] = {}
    for path in folder.iterdir():
        name, dot, suffix = path.name.partition(".")
        found.setdefault(name, set()).add(dot + suffix)
    return found


def test_dump_writes_every_kernel(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    done = run(tmp_path, MYGRAD_DUMP=str(folder))
    assert done.returncode == 0, done.stderr
    names = dumped(folder)
    assert sorted(name.rpartition("_")[0] for name in names) == ["elementwise_21", "rows_7x3x5"]
    assert all(suffixes == STAGES for suffixes in names.values())
    matmul = next(name for name in names if name.startswith("rows"))
    about = (folder / f"{matmul}.kernel.txt").read_text()
    assert re.search(r"^why:   \S.*", about, re.M)
    assert re.search(rf"^line:  {re.escape(str(tmp_path / 'user_script.py'))}:(9|10)$", about, re.M)
    assert f"kernel {matmul}(" in about
    assert f"define void @{matmul}(" in (folder / f"{matmul}.ll").read_text()
    assert f"function {matmul}(" in (folder / f"{matmul}.llvm.stmt.txt").read_text()
    assert "Vectorize(" in (folder / f"{matmul}.llvm.schedule.txt").read_text()


def test_dump_of_kernels_that_come_from_the_disk_cache(tmp_path: Path) -> None:
    script = f"{SCRIPT}\nfrom mygrad import compiler\nprint(compiler.statistics['compiled'])"
    assert run(tmp_path, script).stdout == "105.0\n2\n"
    again = run(tmp_path, script, MYGRAD_DUMP="dump")
    assert again.stdout == "105.0\n0\n"  # nothing was compiled, everything is written
    names = dumped(tmp_path / "dump")
    assert len(names) == 2
    assert all(suffixes == STAGES for suffixes in names.values())


def test_dump_of_kernels_that_ran_before(tmp_path: Path) -> None:
    (tensor(5, 8) * 7).numpy()
    dump_into(tmp_path / "a")
    assert list(dumped(tmp_path / "a").values()) == [STAGES]


def test_dump_of_the_interpreter_is_the_kernel(tmp_path: Path) -> None:
    with context(MYGRAD_DUMP=str(tmp_path)):
        (tensor(5, 8).to("reference") * 7).numpy()
    assert list(dumped(tmp_path).values()) == [{".kernel.txt"}]


def dump_into(folder: Path) -> dict[str, bytes]:
    """Run a small kernel with this folder; the files in it, by name."""
    with context(MYGRAD_DUMP=str(folder)):
        (tensor(5, 8) * 7).numpy()
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_dump_replaces_damaged_files_whole(tmp_path: Path) -> None:
    before = dump_into(tmp_path / "a")
    assert len(before) == len(STAGES)
    (tmp_path / "b").mkdir()
    for name, content in before.items():
        (tmp_path / "b" / name).write_bytes(content[:7] + b"\xff")
    assert dump_into(tmp_path / "b") == before


def test_dump_where_a_folder_has_the_name_of_a_file(tmp_path: Path) -> None:
    name = next(name for name in dump_into(tmp_path / "a") if name.endswith(".ll"))
    (tmp_path / "b" / name / "x").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"MYGRAD_DUMP: got '.*/b' "):
        dump_into(tmp_path / "b")


def test_dump_survives_a_crash_without_half_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with context(MYGRAD_DUMP=str(tmp_path)), pytest.raises(ConfigError, match="No space left"):
        (tensor(3, 7) * 1.75).numpy()
    assert list(tmp_path.iterdir()) == []


def test_dump_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("not a folder")
    done = run(tmp_path, MYGRAD_DUMP="taken")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        "mygrad.errors.ConfigError: MYGRAD_DUMP: got 'taken' (File exists), expected a folder "
        "that can be written to; name another folder, or unset MYGRAD_DUMP"
    )
    assert (tmp_path / "taken").read_text() == "not a folder"
    with pytest.raises(ConfigError, match="a folder that can be written to"):
        dump_into(tmp_path / "taken" / "inside")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_dump_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(ConfigError, match="Permission denied"):
        dump_into(tmp_path / "closed")


def test_dump_of_a_kernel_that_cannot_be_generated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such lowering")

    monkeypatch.setattr(realize.compiler.codegen, "compile", fail)
    with context(MYGRAD_DUMP=str(tmp_path)), pytest.raises(RuntimeError, match="no such lowering"):
        (tensor(3, 13) * 1.75).numpy()
    (path,) = tmp_path.iterdir()
    assert "kernel elementwise_39" in path.read_text()
