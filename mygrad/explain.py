"""What DEBUG prints, and `Plan`, the public way to look inside.

DEBUG=1   every plan as a table: kernels, reasons, bytes, flops, the user's line
DEBUG=2   kernels as they run, with their times
DEBUG=3   the kernel language        DEBUG=4   the generated source        DEBUG=5   machine code
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from mygrad import compiler
from mygrad.config import config
from mygrad.helpers import Location
from mygrad.kernel import Kernel
from mygrad.kernel import text as kernel_text
from mygrad.runtime import device as devices
from mygrad.schedule.schedule import Schedule, Step

_shown: set[int] = set()


@dataclass(frozen=True)
class PlanKernel:
    """One step of a plan. `bytes` counts every element read or written once; `flops` are floating-point
    operations; `source` is generated on request."""

    name: str
    reason: str
    bytes: int
    flops: int
    location: Location
    device: str
    kernel: Kernel | None = None

    @property
    def source(self) -> str:
        """The generated source; empty for host calls and copies."""
        return "" if self.kernel is None else compiler.generate(self.kernel, self.device).source

    @property
    def text(self) -> str:
        """The kernel in the kernel language."""
        return "" if self.kernel is None else kernel_text(self.kernel)


@dataclass(frozen=True)
class Plan:
    """What would run to compute some tensors: `kernels` in order, and `peak_bytes`, the memory that they need
    beside their inputs. Printing it gives a table.

    >>> import mygrad
    >>> print(mygrad.plan(mygrad.Tensor([1.0, 2.0]).exp().sum()))  # doctest: +SKIP
    """

    kernels: tuple[PlanKernel, ...]
    peak_bytes: int

    def __str__(self) -> str:
        rows = [("", "kernel", "bytes", "flops", "line", "why it is a kernel")]
        for i, k in enumerate(self.kernels):
            line = f"{os.path.basename(k.location.file)}:{k.location.line}"
            rows.append((str(i), k.name, quantity(k.bytes), quantity(k.flops), line, k.reason))
        widths = [max(len(row[c]) for row in rows) for c in range(5)]
        lines = [
            "  ".join([*(cell.ljust(w) for cell, w in zip(row[:5], widths, strict=True)), row[5]])
            for row in rows
        ]
        count = f"{len(self.kernels)} kernel{'s' * (len(self.kernels) != 1)}"
        return "\n".join(
            [*lines, f"{count}, {quantity(self.peak_bytes)}B of memory beside the inputs"]
        )


def plan_of(schedule: Schedule) -> Plan:
    """The public view of a schedule."""
    return Plan(tuple(_plan_kernel(s) for s in schedule.steps), schedule.peak_bytes)


def _plan_kernel(step: Step) -> PlanKernel:
    what = step.what
    if isinstance(what, Kernel):
        return PlanKernel(
            what.name, step.reason, what.bytes, what.flops, step.location, step.device, what
        )
    name = what if isinstance(what, str) else what.name
    return PlanKernel(name, step.reason, 0, 0, step.location, step.device)


def quantity(n: float) -> str:
    """A number with three digits and a unit prefix: 12345678 -> 12.3M."""
    for unit in ("", "k", "M", "G", "T"):
        if abs(n) < 1000 or unit == "T":
            return f"{n:.3g}{unit}"
        n /= 1000
    raise AssertionError


def begin(schedule: Schedule) -> None:
    """Print a plan before it runs for the first time, as far as DEBUG asks for it."""
    if config.DEBUG < 1 or id(schedule) in _shown or not schedule.steps:
        return
    _shown.add(id(schedule))
    _print(str(plan_of(schedule)))
    for step in dict.fromkeys(schedule.steps):
        if isinstance(step.what, Kernel):
            _print_kernel(step.what, step.device)


def _print_kernel(kernel: Kernel, device: str) -> None:
    if config.DEBUG < 3:
        return
    _print(f"--- {kernel.name}\n{kernel_text(kernel)}")
    program = compiler.generate(kernel, device)
    if config.DEBUG >= 4:
        _print(f"--- {kernel.name}, {program.language} source\n{program.source}")
    if config.DEBUG >= 5:
        machine = devices.get(device).disassemble(program)
        _print(f"--- {kernel.name}, machine code\n{machine or 'none to show on ' + device}")


def timed(steps: Sequence[Step], seconds: Sequence[float]) -> None:
    """Print a line for each kernel that ran."""
    for step, time in zip(steps, seconds, strict=True):
        kernel = step.what
        assert isinstance(kernel, Kernel)
        rate = f"{kernel.flops / time / 1e9:8.2f} GFLOP/s {kernel.bytes / time / 1e9:8.2f} GB/s"
        _print(f"{time * 1e6:10.1f} us {rate}  {kernel.name}  {step.location}")


def _print(line: str) -> None:
    print(line, file=sys.stderr)
