"""Whether a schedule of a kernel does what the kernel means, bit for bit on small whole numbers.

with small_limits():              blocks, copies, panels and threads come with small shapes
    case = Case(kernel, actions, target)
statements(case)                  by the interpreter of statements
native(cases)                     by machine code between guard pages, in a forked child
mechanisms(case)                  what the schedule makes use of
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import guarded
import numpy as np
import pytest
import stmt_interpreter as interpreter
from kernel_cases import arrays_for

from mygrad import codegen
from mygrad import dtype as dt
from mygrad.codegen import analysis, prepare, staging, stmt, tensorize, tiling
from mygrad.codegen.actions import Action, Schedule, ScheduleError, Stage, Tensorize, apply, start
from mygrad.domain import conditions
from mygrad.expr import free_axes
from mygrad.kernel import Kernel, verify
from mygrad.kernel import text as kernel_text
from mygrad.ops import Op
from mygrad.program import Program, Target
from mygrad.runtime import reference

Array = np.ndarray[Any, Any]
UNITS = ("amx_bf16", "amx_int8")

# vector bytes, registers, matrix units
MACHINES = {
    "avx512": Target("llvm", "avx512", vector_bytes=64, vector_registers=32, threads=2),
    "amx": Target("llvm", "amx", units=UNITS, vector_bytes=64, vector_registers=32, threads=2),
    "dot": Target(
        "llvm",
        "dot",
        units=("dot_bf16",),
        vector_bytes=64,
        vector_registers=32,
        streams=1,
        threads=2,
    ),
    "avx2": Target("llvm", "avx2", vector_bytes=32, vector_registers=16, threads=2),
    "neon": Target("llvm", "neon", vector_bytes=16, vector_registers=32, threads=2),
    "sse": Target("llvm", "sse", vector_bytes=16, vector_registers=16, threads=2),
}

# so that what is meant for large shapes happens on those of tests
LIMITS = (
    (analysis, "SMALL", 1),
    (analysis, "PANEL", 4),
    (analysis, "STREAMED", 1),
    (analysis, "KEPT", 1),
    (analysis, "LINE", 16),
    (analysis, "BLOCK", 32),
    (prepare, "BLOCK", 8),
    (staging, "USES", 2),
    (staging, "ALIASED", 32),
    (tiling, "PAGE", 64),
    (tensorize, "SMALL", 1),
    (tensorize, "ROOMS", dict.fromkeys(tensorize.ROOMS, tensorize.Room(8.0, 0.5, 0.0))),
)


@contextlib.contextmanager
def small_limits() -> Iterator[None]:
    """The analysis with the limits of LIMITS."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in LIMITS:
            patch.setattr(module, name, value)
        yield


def small_caches(target: Target) -> Target:
    """The same machine with caches of a few vectors."""
    return replace(target, l1_bytes=1 << 9, l2_bytes=1 << 11, streams=min(target.streams, 2))


class Wrong(AssertionError):
    """A schedule that does not do what the kernel means."""


@dataclass(frozen=True)
class Case:
    """A kernel, a legal schedule of it, and a machine."""

    kernel: Kernel
    actions: tuple[Action, ...]
    target: Target = MACHINES["avx512"]

    @cached_property
    def schedule(self) -> Schedule:
        """The loops."""
        return apply(start(self.kernel), self.actions)

    @cached_property
    def arrays(self) -> list[Array]:
        """What is in the buffers before."""
        return arrays_for(self.kernel)

    @cached_property
    def expected(self) -> list[Array]:
        """And after."""
        arrays = [a.copy() for a in self.arrays]
        reference.run(self.kernel, arrays, {})
        return arrays

    def check(self, got: Sequence[Array]) -> None:
        """Raises Wrong if these are other arrays than expected."""
        for slot, info in enumerate(self.kernel.buffers):
            have, want = (dt.from_storage(x[slot], info.dtype) for x in (got, self.expected))
            same = (have == want) | (np.isnan(have) & np.isnan(want))
            if not same.all():
                at = np.nonzero(~same)[0]
                raise Wrong(
                    f"{len(at)} elements of b{slot} differ, the first at {at[0]}: "
                    f"{have[at[0]]} and not {want[at[0]]}\n{self}"
                )

    def __str__(self) -> str:
        listed = "\n".join(f"  {a}," for a in self.actions)
        return f"{kernel_text(self.kernel)}\nactions = (\n{listed}\n)\n{self.target}"


def default(kernel: Kernel, target: Target) -> Case:
    """The schedule of the analysis.

    Raises:
        Wrong: it has none, or one that is not legal.
    """
    verify(kernel)
    try:
        case = Case(kernel, analysis.default_actions(kernel, target), target)
        case.schedule  # noqa: B018
    except Exception:
        raise Wrong(f"{traceback.format_exc()}\n{Case(kernel, (), target)}") from None
    return case


def lowered(case: Case) -> stmt.Function | None:
    """The statements; None if the schedule cannot be lowered, and says so.

    Raises:
        Wrong: it fails in another way.
    """
    try:
        function = codegen.lower(case.schedule)
        stmt.verify(function)
    except ScheduleError:
        return None
    except Exception:
        raise Wrong(f"{traceback.format_exc()}\n{case}") from None
    return function


def statements(case: Case) -> stmt.Function | None:
    """Run the statements; None if there are none.

    Raises:
        Wrong: the result is, or a rule of statements is broken.
    """
    function = lowered(case)
    if function is not None:
        arrays = [a.copy() for a in case.arrays]
        try:
            interpreter.run(function, arrays)
        except Exception:
            raise Wrong(f"{traceback.format_exc()}\n{case}\n{stmt.text(function)}") from None
        case.check(arrays)
    return function


def in_whole_lines(case: Case) -> Case:
    """The case with streamed buffers of whole lines of memory: stores past the caches want them to
    begin at one, and between guard pages a buffer that ends at one does."""
    infos = [
        replace(b, size=-(-b.size // 64) * 64) if slot in case.schedule.streams else b
        for slot, b in enumerate(case.kernel.buffers)
    ]
    return replace(case, kernel=replace(case.kernel, buffers=tuple(infos)))


def native(cases: Sequence[Case]) -> list[tuple[int, Wrong]]:
    """Run machine code, all in one child; what is wrong, and with which of the cases."""
    wrong: list[tuple[int, Wrong]] = []
    compiled: list[tuple[int, Case, Program]] = []
    for n, case in enumerate(map(in_whole_lines, cases)):
        try:
            program = codegen.compile(case.kernel, case.target, case.actions)
            compiled.append((n, case, program))
        except ScheduleError:
            continue
        except Exception:
            wrong.append((n, Wrong(f"{traceback.format_exc()}\n{case}")))
    results = guarded.run_all([(program, case.arrays) for _, case, program in compiled])
    for (n, case, _), result in zip(compiled, results, strict=True):
        try:
            if isinstance(result, Exception):
                raise Wrong(f"{result}\n{case}")
            case.check(result)
        except Wrong as found:
            wrong.append((n, found))
    return wrong


def runs_here(case: Case) -> bool:
    """Whether this processor has the matrix unit that the schedule asks for, if it does."""
    here = set(guarded.cpu().target.units)
    wanted = set(case.target.units or UNITS)  # without any, the text is that for AMX
    return not any(isinstance(a, Tensorize) for a in case.actions) or here >= wanted


def mechanisms(case: Case) -> Counter[str]:
    """Kinds of actions, and of copies and loops, by how often they occur."""
    found = Counter(type(a).__name__ for a in case.actions)
    outputs = case.kernel.axes
    for action in case.actions:
        if isinstance(action, Stage):
            found["copy inside" if action.at else "copy outside"] += 1
    loops = case.schedule.loops
    last = max((n for n, p in enumerate(loops) if p.root in outputs and not p.is_tile), default=-1)
    found["blocked sum"] += any(p.root not in outputs for p in loops[:last])
    found["lanes of a sum"] += any(p.kind == "vector" and p.root not in outputs for p in loops)
    masks = [e.src[0] for e in case.kernel.nodes if e.op is Op.WHERE]
    masks += [s.valid for s in case.kernel.stores if s.valid is not None]
    if any(map(conditions, masks)):
        function = lowered(case)
        ends = [s.high for s in loops_of(function.body)] if function else []
        found["steps left out"] += any(free_axes(e) for e in ends)
    return +found


def loops_of(block: stmt.Block) -> Iterator[stmt.Loop]:
    """All loops of some statements."""
    for s in block:
        if isinstance(s, stmt.Loop):
            yield s
        yield from loops_of(getattr(s, "body", ()))
