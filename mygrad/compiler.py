"""Kernels to executables: code generation, the disk cache, and compiling on several cores.

A kernel is compiled once per process. What is compiled is kept on disk under (kernel, target,
version of the code generators), so a later process generates and compiles nothing. When several
kernels are missing, forked children compile them side by side (the LLVM binding holds one lock per
process, so threads would not help).
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import struct
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mygrad.config import config
from mygrad.errors import ConfigError, message
from mygrad.helpers import atomic_write, content_key, lazy_module
from mygrad.program import Program, Target
from mygrad.runtime import cache
from mygrad.runtime import device as devices
from mygrad.runtime.base import Runtime

if TYPE_CHECKING:
    from mygrad import codegen, tune
    from mygrad import kernel as kernels
    from mygrad.codegen import analysis
    from mygrad.codegen.actions import Action
    from mygrad.kernel import Kernel
else:
    codegen, tune = lazy_module("mygrad.codegen"), lazy_module("mygrad.tune")
    kernels = lazy_module("mygrad.kernel")
    analysis = lazy_module("mygrad.codegen.analysis")

# besides codegen/: the modules that decide what is generated from a kernel
GENERATORS = (
    *("algebra", "dtype", "expr", "fold", "kernel", "logic", "numeric", "ops", "scalar"),
    "schedule/cost",
)
FORK_FROM = 3  # missing kernels from which a second process pays for its start
FORK_UP_TO = 1 << 13  # as many numbers as a pipe holds
_NUMBER = struct.Struct("<I")


@dataclass(frozen=True)
class Executable:
    """A loaded program with what a launch must know of it. `key` names it on disk; empty where
    binaries are not kept."""

    executable: Any
    buffers: tuple[int, ...]
    params: tuple[str, ...]
    parallel: bool
    key: str

    @property
    def entry(self) -> tuple[Any, bool]:
        """What a launch runs, and whether several threads may enter it."""
        return self.executable, self.parallel


_loaded: dict[tuple[str, Kernel | str], Executable] = {}  # by kernel, and by key on disk
_version: list[str] = []
statistics = {"compiled": 0, "from disk": 0}


def executables(wanted: Sequence[Kernel], device: str) -> dict[Kernel, Executable]:
    """Every kernel, compiled and loaded on the device."""
    missing = [k for k in wanted if (device, k) not in _loaded]
    if missing:
        runtime = devices.get(device)
        keep = runtime.caches_binaries
        keys = [key_of(k, runtime.target) if keep else "" for k in missing]
        programs = _binaries(missing, keys, runtime)
        for kernel, made in zip(missing, _load(programs, keys, runtime), strict=True):
            _loaded[device, kernel] = made
    return {k: _loaded[device, k] for k in wanted}


def load(keys: Sequence[str], device: str) -> dict[str, Executable] | None:
    """The kernels of these keys, loaded from disk; None if one of them is not there."""
    runtime, disk = devices.get(device), cache.default_cache()
    missing = [key for key in keys if (device, key) not in _loaded]
    found = [_unpack(disk.get(_binary_key(key))) for key in missing]
    programs = [entry for entry in found if entry is not None]
    if len(programs) < len(missing):
        return None
    statistics["from disk"] += len(programs)
    _load(programs, missing, runtime)
    return {key: _loaded[device, key] for key in keys}


def _load(
    programs: Sequence[tuple[Program, bytes]], keys: Sequence[str], runtime: Runtime
) -> list[Executable]:
    result = []
    for (program, _), loaded, key in zip(programs, runtime.load(programs), keys, strict=True):
        made = Executable(loaded, program.buffers, program.params, program.parallel, key)
        if key:
            _loaded[runtime.name, key] = made
        result.append(made)
    return result


def _binaries(
    wanted: Sequence[Kernel], keys: Sequence[str], runtime: Runtime
) -> list[tuple[Program, bytes]]:
    if not runtime.caches_binaries:
        return [_compile(k, runtime) for k in wanted]
    if config.TUNE and tune.is_wanted():  # look for better schedules than the default ones
        tune.search(dict(zip(keys, wanted, strict=True)), runtime)
    disk = cache.default_cache()
    found = [_unpack(disk.get(_binary_key(key))) for key in keys]
    missing = [i for i, entry in enumerate(found) if entry is None]
    statistics["from disk"] += len(wanted) - len(missing)
    statistics["compiled"] += len(missing)
    compiled = _compile_all([wanted[i] for i in missing], runtime)
    for i, made in zip(missing, compiled, strict=True):
        found[i] = made
        disk.put(_binary_key(keys[i]), _pack(*made))
    return [entry for entry in found if entry is not None]


def _compile(kernel: Kernel, runtime: Runtime) -> tuple[Program, bytes]:
    program = codegen.compile(kernel, runtime.target, _tuned(kernel, runtime.target), printed=False)
    return program, runtime.compile(program)


def _tuned(kernel: Kernel, target: Target) -> tuple[Action, ...] | None:
    return _tuned_by_key(key_of(kernel, target)) if _was_tuned() else None


def _tuned_by_key(key: str) -> tuple[Action, ...] | None:
    """What a search found for a kernel, if there was one; None means the default actions."""
    return tune.tuned(key) if _was_tuned() else None


def _was_tuned() -> bool:
    """Whether anything was ever tuned here; spares the others the module and a look for each
    kernel."""
    tuned = cache.folder("tuned").folder
    return tuned is not None and tuned.is_dir() and tune.exists()


def key_of(kernel: Kernel, target: Target) -> str:
    """The name of a kernel on disk: its text, the target, and the text of the code generators."""
    if not _version:
        here = Path(__file__).parent
        files = sorted([*(here / "codegen").glob("*.py"), *(here / f"{n}.py" for n in GENERATORS)])
        _version.append(content_key(*(f.read_text() for f in files)))
    return content_key(kernel.name, kernels.text(kernel), target, _version[0])


def _binary_key(key: str) -> str:
    return content_key(key, _tuned_by_key(key))


def _pack(program: Program, binary: bytes) -> bytes:
    about = {
        "entry": program.entry,
        "language": program.language,
        "buffers": program.buffers,
        "params": program.params,
        "parallel": program.parallel,
        "grid": program.grid,
        "block": program.block,
    }
    return json.dumps(about).encode() + b"\n" + binary


def _unpack(content: bytes | None) -> tuple[Program, bytes] | None:
    if content is None:
        return None
    head, _, binary = content.partition(b"\n")
    about: dict[str, Any] = json.loads(head)
    listed = {k: tuple(v) for k, v in about.items() if isinstance(v, list)}
    return Program(**{"source": "", **about, **listed}), binary


# --- several processes ----------------------------------------------------------------------------


def _compile_all(wanted: Sequence[Kernel], runtime: Runtime) -> list[tuple[Program, bytes]]:
    workers = min(runtime.target.threads, len(wanted))
    can_fork = hasattr(os, "fork") and threading.active_count() == 1 and sys.platform == "linux"
    if workers < 2 or not FORK_FROM <= len(wanted) <= FORK_UP_TO or not can_fork:
        return [_compile(k, runtime) for k in wanted]
    queue = _queue(wanted)
    children = [_start_child(wanted, queue, runtime) for _ in range(1, workers)]
    try:
        made = _compile_queued(wanted, queue, runtime)
    except BaseException:  # nobody will want what the children make
        for pid, _ in children:
            os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.close(queue)
        finished = [_finish_child(*child) for child in children]
    for of_child in finished:
        made |= of_child
    # what a child that died had taken: that is no reason to fail, and if there is an error it shows
    return [made.get(i) or _compile(k, runtime) for i, k in enumerate(wanted)]


def _queue(wanted: Sequence[Kernel]) -> int:
    """A pipe with the numbers of the kernels, from which each process takes the next. Large ones
    come first, so that nobody is left with one at the end."""
    reader, writer = os.pipe()
    size = [len(k.nodes) for k in wanted]
    order = sorted(range(len(wanted)), key=lambda i: -size[i])
    os.write(writer, b"".join(map(_NUMBER.pack, order)))
    os.close(writer)
    return reader


def _compile_queued(
    wanted: Sequence[Kernel], queue: int, runtime: Runtime
) -> dict[int, tuple[Program, bytes]]:
    made = {}
    while taken := os.read(queue, _NUMBER.size):
        (i,) = _NUMBER.unpack(taken)
        made[i] = _compile(wanted[i], runtime)
    return made


def _start_child(wanted: Sequence[Kernel], queue: int, runtime: Runtime) -> tuple[int, int]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    os.close(reader)  # then nobody reads if the parent dies, and the child does not wait for it
    status = 1
    try:
        made = _compile_queued(wanted, queue, runtime)
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump({i: _pack(*one) for i, one in made.items()}, pipe)
        status = 0
    finally:
        os._exit(status)  # no cleanup of what belongs to the parent


def _finish_child(pid: int, reader: int) -> dict[int, tuple[Program, bytes]]:
    with os.fdopen(reader, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(pid, 0)
    if status != 0 or not content:
        return {}
    return {i: _unpack(made) for i, made in pickle.loads(content).items()}  # type: ignore[misc]


# --- looking inside -------------------------------------------------------------------------------

SUFFIX = {"llvm": "ll", "opencl": "cl", "cuda": "cu"}  # of files with source, by language
_dumped: set[tuple[str, str, Kernel]] = set()


def generate(kernel: Kernel, device: str) -> Program:
    """The generated program of a kernel, with the text after each pass."""
    target = devices.get(device).target
    return codegen.compile(kernel, target, _tuned(kernel, target))


def actions(kernel: Kernel, device: str) -> tuple[str, ...]:
    """The schedule actions chosen for the device; none where kernels are interpreted."""
    target = devices.get(device).target
    if target.language == "numpy":
        return ()
    taken = _tuned(kernel, target) or analysis.default_actions(kernel, target)
    return tuple(str(action) for action in taken)


def schedule_text(kernel: Kernel, device: str) -> str:
    """The schedule actions, and the loops that they make."""
    taken = actions(kernel, device)
    loops = dict(generate(kernel, device).stages).get("schedule", "")
    lines = [*(taken or ["no actions: the loops are as the kernel lists them"]), loops]
    return "\n".join(line for line in lines if line)


def machine_code(kernel: Kernel, device: str) -> str:
    """The machine code as text; empty where the device has none to show."""
    return devices.get(device).disassemble(generate(kernel, device))


def dump(kernel: Kernel, device: str) -> None:
    """Write a kernel into the folder MYGRAD_DUMP, each file whole or not at all, once per process:

    <kernel>.kernel.txt               why it exists, for which line, and the kernel language
    <kernel>.<language>.schedule.txt  the schedule actions, and the loops that they make
    <kernel>.<language>.stmt.txt      the loops made explicit
    <kernel>.ll (.cl)                 the generated source

    Raises:
        ConfigError: the folder cannot be made or written to.
    """
    done = (config.MYGRAD_DUMP, device, kernel)
    if not config.MYGRAD_DUMP or done in _dumped:
        return
    _write(f"{kernel.name}.kernel.txt", f"{_about(kernel)}\n{kernels.text(kernel)}\n")
    program = generate(kernel, device)  # after the kernel is written: it may be what this fails on
    if program.language != "numpy":  # which interprets the kernel as it is
        prefix = f"{kernel.name}.{program.language}"
        _write(f"{prefix}.schedule.txt", schedule_text(kernel, device) + "\n")
        _write(f"{prefix}.stmt.txt", dict(program.stages)["lower"] + "\n")
        suffix = SUFFIX.get(program.language, f"{program.language}.txt")
        _write(f"{kernel.name}.{suffix}", program.source)
    _dumped.add(done)


def _about(kernel: Kernel) -> str:
    lines = [f"why:   {kernel.reason}", f"line:  {kernel.location}"]
    return "\n".join([*lines, f"bytes: {kernel.bytes}", f"flops: {kernel.flops}", ""])


def _write(name: str, content: str) -> None:
    folder = Path(config.MYGRAD_DUMP).expanduser()
    try:
        atomic_write(folder / name, content.encode())
    except OSError as error:
        raise ConfigError(
            message(
                "MYGRAD_DUMP",
                f"{str(folder)!r} ({error.strerror or error})",
                "a folder that can be written to",
                "name another folder, or unset MYGRAD_DUMP",
            )
        ) from error
