"""Kernels run on the cpu between guard pages, in a forked child: a fault is an error with a name.

    run(kernel, arrays, actions, target)   the arrays after it; `Fault` if it killed the child
    run_all([(program, arrays), ...])      the same of many, in as few children as there can be

The child compiles, so that the parent of a thousand kernels does not grow, and runs with guard
pages behind the buffers and again with guard pages before them.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import select
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from kernel_cases import run_program

from mygrad import codegen
from mygrad.codegen.actions import Action
from mygrad.config import context
from mygrad.kernel import Kernel
from mygrad.program import Program, Target
from mygrad.runtime.cpu import CPU
from mygrad.runtime.guard import BEFORE_THE_PAGE, BEHIND_THE_PAGE, GuardedAllocator

Array = np.ndarray[Any, Any]
PATIENCE = 120.0  # seconds until a child counts as hung


class Fault(Exception):
    """The child was killed by a signal, or hung. `trace` is what `faulthandler` wrote."""

    def __init__(self, what: str, trace: str) -> None:
        super().__init__(f"{what}\n{trace}")
        self.trace = trace


@cache
def cpu() -> CPU:
    """A cpu device with guard pages."""
    with context(MYGRAD_GUARD=BEFORE_THE_PAGE):
        return CPU()


def in_child(work: Callable[[], Any]) -> Any:
    """The result of `work` in a forked child.

    Raises:
        Fault: it was killed, or did not end.
        AssertionError: it raised; the message is its traceback.
    """
    with tempfile.TemporaryFile() as trace:
        out, into = os.pipe()
        child = os.fork()
        if not child:
            _child(work, into, trace.fileno())
        os.close(into)
        try:
            content = _read(out, child)
        finally:
            os.close(out)
            status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            trace.seek(0)
            text = trace.read().decode(errors="replace")
            raise Fault(signal.Signals(os.WTERMSIG(status)).name, text)
    fine, result = pickle.loads(content)
    if not fine:
        raise AssertionError(result)
    return result


def _child(work: Callable[[], Any], into: int, trace: int) -> None:
    faulthandler.enable(trace)
    try:
        result = True, work()
    except BaseException:
        result = False, traceback.format_exc()
    with os.fdopen(into, "wb") as pipe:
        pickle.dump(result, pipe)
    os._exit(0)


def _read(pipe: int, child: int) -> bytes:
    """Everything from the pipe; kills the child when it takes too long."""
    parts, end = [], time.monotonic() + PATIENCE
    while True:
        if not select.select([pipe], [], [], max(end - time.monotonic(), 0))[0]:
            os.kill(child, signal.SIGKILL)
            return b""
        part = os.read(pipe, 1 << 20)
        if not part:
            return b"".join(parts)
        parts.append(part)


def run(
    kernel: Kernel,
    arrays: Sequence[Array],
    actions: Sequence[Action] | None = None,
    target: Target | None = None,
    params: Mapping[str, int] | None = None,
) -> list[Array]:
    """The arrays after the kernel, under both modes of MYGRAD_GUARD."""
    return run_text(codegen.compile(kernel, target or cpu().target, actions), arrays, params)


def run_text(
    program: Program, arrays: Sequence[Array], params: Mapping[str, int] | None = None
) -> list[Array]:
    """The same of a program."""
    cpu()  # starts in the parent, once
    return in_child(lambda: _run_here(program, arrays, params))


def run_all(cases: Sequence[tuple[Program, Sequence[Array]]]) -> list[list[Array] | Exception]:
    """The arrays after each program, or what it raised: all in one child, as far as none kills it;
    then each half in one of its own."""

    def work() -> list[list[Array] | Exception]:
        results: list[list[Array] | Exception] = []
        for program, arrays in cases:
            try:
                results.append(_run_here(program, arrays))
            except Exception:
                results.append(AssertionError(traceback.format_exc()))
        return results

    cpu()
    try:
        return in_child(work) if cases else []
    except Fault as fault:
        if len(cases) == 1:
            return [fault]
        half = len(cases) // 2
        return run_all(cases[:half]) + run_all(cases[half:])


def _run_here(
    program: Program, arrays: Sequence[Array], params: Mapping[str, int] | None = None
) -> list[Array]:
    runtime = cpu()
    (executable,) = runtime.load([(program, runtime.compile(program))])
    results = []
    for mode in (BEFORE_THE_PAGE, BEHIND_THE_PAGE):
        runtime._memory = GuardedAllocator(mode)
        results.append(run_program(runtime, program, executable, arrays, params))
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second, "differs with the place of the page")
    return results[0]
