"""Programs on disk: a second process schedules and compiles nothing, and computes the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from graphs import buffer, full, matmul, pad, relu, softmax

from mygrad import Tensor, context, graph, jit, realize, stored
from mygrad.graph import HostCall, Node
from mygrad.ops import Op
from mygrad.schedule.schedule import schedule
from mygrad.schedule.steps import key, places, rebuild

ROOT = Path(__file__).parent.parent

PROGRAM = """
import json, sys
import numpy as np
from mygrad import Tensor, compiler, jit, nn, realize

data = np.random.default_rng(0)
model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))
for p in nn.state.get_parameters(model):
    p.assign(Tensor(data.standard_normal(p.shape).astype(np.float32) * 0.1))
optimizer = nn.optim.Adam(nn.state.get_parameters(model), lr=1e-2)
x = Tensor(data.standard_normal((3, 1, 8, 8)).astype(np.float32))
y = Tensor(np.array([1, 0, 4]))

@jit
def step(x, y):
    loss = model(x).cross_entropy(y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss

losses = [float(step(x, y).item()) for _ in range(3)]
order = Tensor([3.0, 1.0, 2.0]).exp().sort()[0].tolist()
heavy = [m for m in ("codegen", "schedule.homes", "kernel") if f"mygrad.{m}" in sys.modules]
print(json.dumps([losses, order, realize.statistics, compiler.statistics, heavy]))
"""


def start(
    folder: Path, code: str = PROGRAM, *arguments: str, **settings: str
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MYGRAD_CACHE": str(folder), "CPU": "1"}
        | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[bytes]) -> tuple[list, str]:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    return json.loads(out.splitlines()[-1]), errors.decode()


def files(folder: Path, kind: str) -> list[Path]:
    return sorted(p for p in (folder / kind).rglob("*") if p.is_file())


def forget() -> None:
    """What a new process does not have."""
    realize._prepared.clear()
    realize.compiler._loaded.clear()


def test_a_second_process_schedules_and_compiles_nothing(tmp_path: Path) -> None:
    first, _ = finish(start(tmp_path))
    second, _ = finish(start(tmp_path))
    assert first[2]["scheduled"] > 1
    assert first[3]["compiled"] > 1
    assert second[:2] == first[:2]
    assert second[2] == {"scheduled": 0, "from disk": first[2]["scheduled"]}
    assert second[3]["compiled"] == 0
    assert second[4] == []  # it does not even import what would

    shown, errors = finish(start(tmp_path, DEBUG="3"))  # whoever looks sees every kernel
    assert shown[:2] == first[:2]
    assert shown[3]["compiled"] == 0
    assert "<string>:23" in errors  # the line of the sort
    assert errors.count("\nkernel ") > 5


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-1], lambda b: b"", lambda b: b[:70] + bytes([b[70] ^ 4]) + b[71:]],
    ids=["cut", "empty", "bit flipped"],
)
@pytest.mark.parametrize("kind", ["programs", "kernels"])
def test_damage_is_a_miss(cache: Path, damage, kind: str) -> None:
    x = buffer(5, 7)
    root = graph.alu(Op.MUL, x, full(3.0, x))
    structure, _ = key([root])
    forget()
    realize.realize([root])
    forget()
    assert stored.load((structure, (None, ())), "cpu") is not None
    for path in files(cache, kind):
        path.write_bytes(damage(path.read_bytes()))
    forget()
    assert stored.load((structure, (None, ())), "cpu") is None
    realize.realize([root])  # repairs it
    forget()
    assert stored.load((structure, (None, ())), "cpu") is not None


def test_processes_share_the_folder(tmp_path: Path) -> None:
    together = [start(tmp_path) for _ in range(3)]
    results = [finish(p)[0] for p in together]
    assert all(r[:2] == results[0][:2] for r in results)
    assert finish(start(tmp_path))[0][2]["scheduled"] == 0


COUNTERS = """
import json, sys
import numpy as np
from mygrad import Tensor, jit, realize, tune
from mygrad.codegen.actions import Parallel

tune.BETTER = 1e9  # whatever the clock says
tune.neighbours = lambda kernel, actions: iter(
    [tuple(a for a in actions if not isinstance(a, Parallel))]
)
counters = [Tensor(np.zeros(n << 18, np.float32)).realize() for n in map(int, sys.argv[1:])]

@jit
def step():
    for counter in counters:
        counter.assign(counter + 1)

for _ in range(3):
    step()
((captured,),) = step.captured.values()
(segment,) = captured.prepared.outline.parts
parallel = [launch.parallel for launch in segment.launches]
values = [sorted({float(c.min().item()), float(c.max().item())}) for c in counters]
print(json.dumps([values, parallel, realize.statistics["scheduled"]]))
"""


def test_a_kernel_that_was_tuned_after_its_program_was_kept(tmp_path: Path) -> None:
    """Threads that all run what they no longer share would count several times."""
    one, many = ("4",), {"MYGRAD_THREADS": "4"}
    first, _ = finish(start(tmp_path, COUNTERS, *one, **many))
    assert first[:2] == [[[3.0]], [True]]
    tuned, _ = finish(start(tmp_path, COUNTERS, "4", "2", **many, TUNE="60"))
    assert tuned[:2] == [[[3.0], [3.0]], [False, False]]
    assert files(tmp_path, "tuned")
    again, _ = finish(start(tmp_path, COUNTERS, *one, **many))
    assert again == [[[3.0]], [False], 0]


def sort(x: Node) -> Node:
    return graph.gather(x, graph.sort(x, 1), 1)


GRAPHS = {
    "elementwise": lambda: [relu(buffer(5, 7))],
    "softmax": lambda: [softmax(buffer(6, 40))],
    "two matmuls": lambda: [matmul(relu(matmul(buffer(9, 20), buffer(20, 19))), buffer(19, 8))],
    "pad": lambda: [pad(buffer(4, 5), (1, 0), (0, 2))],
    "sort": lambda: [sort(buffer(4, 9))],
    "constants": lambda: [
        graph.alu(Op.ADD, graph.const(v, t, (3,)), graph.const(1, t, (3,)))
        for t, v in ((graph.dt.float32, -0.0), (graph.dt.int32, -3), (graph.dt.float64, 1e300))
    ],
    "a condition": lambda: [
        graph.alu(Op.AND, graph.const(True, graph.dt.bool_, (2,)), buffer_of_bools())
    ],
    "detached": lambda: [graph.detach(relu(buffer(3, 3)), "label")],
}


def buffer_of_bools() -> Node:
    return realize.from_numpy(np.array([True, False]))


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_made_again_has_the_same_schedule(name: str) -> None:
    roots = GRAPHS[name]()
    structure, _ = key(roots)
    again = rebuild(structure, places(roots))
    assert key(again)[0] == structure
    assert [n.location for n in graph.toposort(again)] == [
        n.location for n in graph.toposort(roots) if n.op is not Op.DETACH
    ]
    one, two = schedule(roots, "cpu"), schedule(again, "cpu")
    assert one == two
    assert [s.location for s in one.steps] == [s.location for s in two.steps]


def test_what_calls_the_user_is_not_kept(cache: Path) -> None:
    x = buffer(3)
    call = HostCall(lambda a: a + 1, "one more", (3,), graph.dt.float32)
    roots = [graph.alu(Op.NEG, graph.host(call, x))]
    forget()
    (result,) = realize.realize(roots)
    assert files(cache, "programs") == []
    np.testing.assert_array_equal(realize.to_numpy(result), -1 - realize.to_numpy(x))
    realize.realize([graph.alu(Op.NEG, x)])
    assert len(files(cache, "programs")) == 1


def test_a_later_look_at_a_program_from_disk(
    cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def double(x: Tensor) -> Tensor:
        return (x * 2).sort()[0]

    x = Tensor([3.0, 1.0, 2.0])
    forget()
    jit(double)(x)
    forget()
    before = dict(realize.statistics)
    again = jit(double)
    assert again(x).tolist() == [2.0, 4.0, 6.0]
    assert realize.statistics["scheduled"] == before["scheduled"]
    with context(DEBUG=2):
        assert again(x).tolist() == [2.0, 4.0, 6.0]
    shown = capfd.readouterr().err
    assert "GFLOP/s" in shown
    assert "test_schedule_cache.py" in shown
