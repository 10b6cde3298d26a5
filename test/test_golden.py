"""Golden text: what the scheduler and the code generators make of a few programs.

Each file in test/golden holds a program's kernels with their reasons, the schedule actions that
were chosen, the statements, and the generated OpenCL (short) and LLVM (long) text, for fixed
machines. After a change that is meant to alter them, look at the difference:

    python test/test_golden.py && git diff test/golden
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from graphs import buffer, conv, layer_norm, matmul, pad, relu, softmax

from mygrad import codegen
from mygrad import graph as g
from mygrad.graph import Node
from mygrad.kernel import Kernel
from mygrad.ops import Op
from mygrad.program import Target
from mygrad.schedule.schedule import schedule

FOLDER = Path(__file__).parent / "golden"
AVX512 = Target(
    "llvm",
    "golden",
    vector_bytes=64,
    vector_registers=32,
    l1_bytes=48 << 10,
    l2_bytes=2 << 20,
    threads=2,
)
OPENCL = Target(
    "opencl",
    "golden",
    vector_bytes=32,
    vector_registers=16,
    l1_bytes=32 << 10,
    l2_bytes=1 << 20,
    threads=2,
)

PROGRAMS: dict[str, Callable[[], list[Node]]] = {
    "elementwise": lambda: [relu(buffer(1000, device="reference"))],
    "matmul": lambda: [
        relu(matmul(buffer(64, 32, device="reference"), buffer(32, 48, device="reference")))
    ],
    "softmax": lambda: [softmax(buffer(64, 100, device="reference"))],
    "layer_norm": lambda: [layer_norm(buffer(64, 100, device="reference"))],
    "convolution": lambda: [
        conv(
            pad(relu(buffer(2, 8, 14, 14, device="reference")), (0, 0), (0, 0), (1, 1), (1, 1)),
            buffer(16, 8, 3, 3, device="reference"),
        )
    ],
    "prefix_sum": lambda: [g.scan(Op.ADD, buffer(4, 50, device="reference"), 1)],
}


def describe(roots: list[Node]) -> str:
    """The whole way of a program as text."""
    parts = []
    for step in schedule(roots, "reference").steps:
        assert isinstance(step.what, Kernel)
        parts.append(f"=== {step.what.name}\n{step.reason}")
        for target in (AVX512, OPENCL):
            program = codegen.compile(step.what, target)
            stages = {name: text for name, text in program.stages if text != "ok"}
            if target is OPENCL:
                stages = {"render": stages["render"]}
            parts += [
                f"--- {target.language}: {name}\n{text.strip()}" for name, text in stages.items()
            ]
    return "\n\n".join(parts) + "\n"


@pytest.mark.parametrize("name", PROGRAMS)
def test_golden(name: str) -> None:
    expected = (FOLDER / f"{name}.txt").read_text()
    assert describe(PROGRAMS[name]()) == expected, "look at it, then: python test/test_golden.py"


def test_what_the_golden_text_must_show() -> None:
    """Properties that a regenerated file must not lose without somebody noticing."""
    text = {name: (FOLDER / f"{name}.txt").read_text() for name in PROGRAMS}
    for name, body in text.items():
        assert body.count("=== ") == (2 if name == "convolution" else 1)
    assert "zero-padded copy" in text["convolution"]
    for name in ("matmul", "convolution"):
        assert "llvm.fmuladd.v16f32" in text[name]  # full vectors
        assert "vector[16]" in text[name]
        assert (
            max(int(n) for n in re.findall(r"unroll\[(\d+)\]", text[name])) >= 4
        )  # a register tile


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for program, build in PROGRAMS.items():
        (FOLDER / f"{program}.txt").write_text(describe(build()))
