"""Kernels to programs: schedule actions, analysis, lowering to statements, renderers.

    compile(kernel, target):   Kernel -> Schedule -> Function -> source text -> Program

No pass knows matmuls or convolutions. Renderers are found in the RENDERERS table. Schedules depend
on the numbers in the target, and in a few places on its language: how many lanes a vector may have
(tiling.MAX_LANES), and what the LLVM renderer does with windows that slide (tiling._met_again) and
with copies in squares (staging._stage).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

from mygrad.codegen import stmt
from mygrad.codegen.actions import Action, Schedule, apply, start
from mygrad.codegen.analysis import default_actions
from mygrad.codegen.emit import Emitter
from mygrad.codegen.lower import Placer
from mygrad.codegen.stmt import Function, Loop
from mygrad.errors import CompileError, message
from mygrad.kernel import Kernel
from mygrad.kernel import text as kernel_text
from mygrad.kernel import verify as verify_kernel
from mygrad.program import Program, Target

Renderer = Callable[[Function, Target], str]


def _renderer(module: str) -> Renderer:
    """`render` of a module in this folder; imported when it is first used, since a process needs
    one of them, or none if every kernel comes from the disk cache."""
    return lambda function, target: importlib.import_module(module).render(function, target)


RENDERERS: dict[str, Renderer] = {
    "llvm": _renderer("mygrad.codegen.llvm"),
    "opencl": _renderer("mygrad.codegen.cstyle"),
}


def schedule(kernel: Kernel, target: Target, actions: Iterable[Action] | None = None) -> Schedule:
    """The kernel after the given actions, or after the default ones for the target."""
    return apply(start(kernel), default_actions(kernel, target) if actions is None else actions)


def lower(scheduled: Schedule) -> Function:
    """The statements of a scheduled kernel.

    Raises:
        ScheduleError: the schedule asks for something that cannot be lowered.
    """
    kernel = scheduled.kernel
    body = Emitter(scheduled).function(Placer(scheduled).run())
    return Function(
        kernel.name,
        tuple((b.dtype, b.size, b.written) for b in kernel.buffers),
        tuple(name for name, _, _ in kernel.params),
        body,
    )


def _verified(function: Function, target: Target) -> Function:
    stmt.verify(function)
    return function


def _rendered(function: Function, target: Target) -> str:
    return RENDERERS[target.language](function, target)


# (name, pass, printer of its result); every pass takes the result of the one before and the target
PIPELINE: tuple[tuple[str, Callable[[Any, Target], Any], Callable[[Any], str]], ...] = (
    ("lower", lambda scheduled, target: lower(scheduled), stmt.text),
    ("verify", _verified, lambda function: "ok"),
    ("render", _rendered, str),
)


def compile(
    kernel: Kernel,
    target: Target,
    actions: Iterable[Action] | None = None,
    printed: bool = True,
) -> Program:
    """The program of a kernel for a target, by the default schedule or by the given actions.

    `program.stages` holds the text after each pass, if it shall be `printed`. The language `numpy`
    interprets kernels as they are.

    Raises:
        CompileError: there is no renderer for the target's language.
        ScheduleError: the actions are not legal.
        InternalError: the kernel, or what a pass made of it, is not well formed.
    """
    verify_kernel(kernel)
    slots, params = tuple(range(len(kernel.buffers))), tuple(name for name, _, _ in kernel.params)
    if target.language == "numpy":
        text = kernel_text(kernel)
        stages = (("kernel", text),)
        return Program(kernel.name, "numpy", text, slots, params, kernel=kernel, stages=stages)
    if target.language not in RENDERERS:
        raise CompileError(
            message(
                "compile",
                f"language {target.language!r}",
                f"one of {', '.join(['numpy', *RENDERERS])}",
            )
        )
    value: Any = schedule(kernel, target, actions)
    texts = [("kernel", kernel_text(kernel)), ("schedule", str(value))] if printed else []
    function: Any = None
    for name, run, text_of in PIPELINE:
        value = run(value, target)
        function = value if isinstance(value, Function) else function
        if printed:
            texts.append((name, text_of(value)))
    trips = _parallel_trips(function)
    return Program(
        kernel.name,
        target.language,
        value,
        slots,
        params,
        parallel=trips > 0,
        grid=(max(trips, 1),),
        kernel=kernel,
        stages=tuple(texts),
    )


def _parallel_trips(function: Function) -> int:
    """The iterations of the longest parallel loop; 0 when there is none."""
    return max(
        (s.high.arg for s in function.body if isinstance(s, Loop) and s.kind == "parallel"),
        default=0,
    )
