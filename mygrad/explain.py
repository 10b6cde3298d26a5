"""What DEBUG prints, and `Plan`, the public way to look inside.

DEBUG=1   every plan as a table: kernels, reasons, bytes, flops, the user's line
DEBUG=2   and each step as it runs: time, flops, bytes, and their rates
DEBUG=3   and the kernel language, with the schedule actions that were chosen
DEBUG=4   and the generated source        DEBUG=5   and the machine code

All of it goes to stderr. A plan is printed when it is about to be compiled, so that a kernel the
compiler refuses has been seen, and again only when a higher DEBUG asks for more.

A line of the user is that of the first graph of a structure: a second graph that differs from it in
nothing but its buffers runs the same plan (`realize.prepare`), whatever line it comes from.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mygrad import compiler
from mygrad.config import config
from mygrad.helpers import UNKNOWN, Location, quantity
from mygrad.kernel import Kernel
from mygrad.kernel import text as kernel_text
from mygrad.schedule.steps import Band, Schedule, Step, kernels_of

HEADER = ("", "step", "device", "bytes", "flops", "line", "why it is a step")
_shown: dict[int, tuple[Schedule, int]] = {}  # by id: the schedule, kept alive, and its DEBUG


@dataclass(frozen=True)
class PlanKernel:
    """One step of a plan: a kernel, a band of kernels that runs block by block, or a call, sort or
    copy on the host. Texts of a band are those of its kernels, one after the other.

    `reason` says why it is a step of its own, `location` which line of the user asked for it.
    `bytes` counts every element that is read or written once, `flops` floating-point operations; a
    host step has no flops.
    """

    name: str
    reason: str
    bytes: int
    flops: int
    location: Location
    device: str
    kernels: tuple[Kernel, ...] = ()
    band: Band | None = None

    @property
    def text(self) -> str:
        """The step in the kernel language, for a band with the order of its kernels; empty for
        host steps."""
        return "\n\n".join(
            [str(self.band)] * bool(self.band) + list(map(kernel_text, self.kernels))
        )

    @property
    def actions(self) -> tuple[str, ...]:
        """The schedule actions chosen for the device; none for host steps and on `reference`."""
        return tuple(a for k in self.kernels for a in compiler.actions(k, self.device))

    @property
    def source(self) -> str:
        """The generated source, made now; empty for host steps."""
        return "\n\n".join(compiler.generate(k, self.device).source for k in self.kernels)

    @property
    def machine_code(self) -> str:
        """The machine code as text, made now; empty for host steps, and where there is none."""
        return "\n\n".join(compiler.machine_code(k, self.device) for k in self.kernels)


@dataclass(frozen=True)
class Plan:
    """What would run to compute some tensors: `kernels` in order, and `peak_bytes`, the memory that
    they need beside their inputs. Printing it gives a table.

    >>> import mygrad
    >>> plan = mygrad.plan(mygrad.Tensor([1.0, 2.0]).exp().sum())
    >>> len(plan.kernels), plan.kernels[0].reason
    (1, 'asked for')
    """

    kernels: tuple[PlanKernel, ...]
    peak_bytes: int

    def __str__(self) -> str:
        if not self.kernels:
            return f"nothing to run, {quantity(self.peak_bytes)}B of memory beside the inputs"
        rows = [HEADER, *(_row(i, k) for i, k in enumerate(self.kernels))]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER) - 1)]
        lines = [
            "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]])
            for row in rows
        ]
        steps = f"{len(self.kernels)} step{'s' * (len(self.kernels) != 1)}"
        nbytes, flops = (sum(getattr(k, name) for k in self.kernels) for name in ("bytes", "flops"))
        work = f"{quantity(nbytes)}B moved, {quantity(flops)} flops"
        total = f"{steps}, {work}, {quantity(self.peak_bytes)}B of memory beside the inputs"
        return "\n".join([*lines, total])


def _row(number: int, k: PlanKernel) -> tuple[str, ...]:
    work = quantity(k.bytes), quantity(k.flops)
    return str(number), k.name, k.device, *work, short(k.location), k.reason


def plan_of(schedule: Schedule) -> Plan:
    """The public view of a schedule."""
    return Plan(tuple(_plan_kernel(s, schedule) for s in schedule.steps), schedule.peak_bytes)


def _plan_kernel(step: Step, schedule: Schedule) -> PlanKernel:
    what = step.what
    if isinstance(what, (Kernel, Band)):
        work = what.bytes, what.flops
    else:
        work = sum(schedule.memories[i].nbytes for i in step.arguments), 0
    about = _name(step), step.reason, *work, step.location, step.device
    return PlanKernel(*about, tuple(kernels_of(step)), what if isinstance(what, Band) else None)


def _name(step: Step) -> str:
    return step.what if isinstance(step.what, str) else step.what.name


def short(location: Location) -> str:
    """The file's name without its folder, and the line; "-" where there is none."""
    return "-" if location is UNKNOWN else f"{Path(location.file).name}:{location.line}"


# --- printing -------------------------------------------------------------------------------------


def begin(schedule: Schedule) -> None:
    """Print a plan, and write its kernels into the folder MYGRAD_DUMP, as far as is asked for."""
    if config.MYGRAD_DUMP:
        for step in schedule.steps:
            for kernel in kernels_of(step):
                compiler.dump(kernel, step.device)
    if config.DEBUG == 0 or not schedule.steps:
        return
    if id(schedule) in _shown and _shown[id(schedule)][1] >= config.DEBUG:
        return
    _shown[id(schedule)] = schedule, config.DEBUG
    _print(str(plan_of(schedule)))
    for pair in dict.fromkeys((k, s.device) for s in schedule.steps for k in kernels_of(s)):
        _print_kernel(*pair)


def _print_kernel(kernel: Kernel, device: str) -> None:
    if config.DEBUG >= 3:
        _print(f"--- {kernel.name}, kernel\n{kernel_text(kernel)}")
        _print(f"--- {kernel.name}, schedule\n{compiler.schedule_text(kernel, device)}")
    if config.DEBUG >= 4:
        program = compiler.generate(kernel, device)
        _print(f"--- {kernel.name}, {program.language} source\n{program.source}")
    if config.DEBUG >= 5:
        machine = compiler.machine_code(kernel, device)
        _print(f"--- {kernel.name}, machine code\n{machine or 'none to show on ' + device}")


def timed(steps: Sequence[Step], seconds: Sequence[float]) -> None:
    """Print a line for each kernel that ran."""
    for step, elapsed in zip(steps, seconds, strict=True):
        if isinstance(step.what, (Kernel, Band)):
            _print_time(step, elapsed, step.what.flops, step.what.bytes)


@contextmanager
def timing(step: Step, schedule: Schedule) -> Iterator[None]:
    """Print a line for the host step that runs inside of the block."""
    start = time.perf_counter()
    yield
    if config.DEBUG >= 2:
        nbytes = sum(schedule.memories[i].nbytes for i in step.arguments)
        _print_time(step, time.perf_counter() - start, 0, nbytes)


def _print_time(step: Step, elapsed: float, flops: int, nbytes: int) -> None:
    work = [
        f"{quantity(n) + unit:>9} {n / elapsed / 1e9 if elapsed > 0 else 0.0:8.2f} G{unit}/s"
        for n, unit in ((flops, "FLOP"), (nbytes, "B"))
    ]
    _print(f"{elapsed * 1e6:10.1f} us  {'  '.join(work)}  {_name(step)}  {short(step.location)}")


def _print(line: str) -> None:
    print(line, file=sys.stderr)
