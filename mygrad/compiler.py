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
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mygrad import codegen, tune
from mygrad.codegen.actions import Action
from mygrad.codegen.analysis import default_actions
from mygrad.config import config
from mygrad.errors import ConfigError, message
from mygrad.helpers import atomic_write, content_key
from mygrad.kernel import Kernel, text
from mygrad.program import Program, Target
from mygrad.runtime import cache
from mygrad.runtime import device as devices
from mygrad.runtime.base import Runtime

# besides codegen/: the modules that decide what is generated from a kernel
GENERATORS = ("algebra", "dtype", "expr", "fold", "kernel", "logic", "numeric", "ops", "scalar")
FORK_FROM = 3  # missing kernels from which a second process pays for its start


@dataclass(frozen=True)
class Executable:
    """A loaded program with what a launch must know of it."""

    executable: Any
    buffers: tuple[int, ...]
    params: tuple[str, ...]
    parallel: bool


_loaded: dict[tuple[str, Kernel], Executable] = {}
_version: list[str] = []
statistics = {"compiled": 0, "from disk": 0}


def executables(kernels: Sequence[Kernel], device: str) -> dict[Kernel, Executable]:
    """Every kernel, compiled and loaded on the device."""
    missing = [k for k in kernels if (device, k) not in _loaded]
    if missing:
        runtime = devices.get(device)
        programs = _binaries(missing, runtime)
        for kernel, (program, _), loaded in zip(
            missing, programs, runtime.load(programs), strict=True
        ):
            made = Executable(loaded, program.buffers, program.params, program.parallel)
            _loaded[device, kernel] = made
    return {k: _loaded[device, k] for k in kernels}


def _binaries(kernels: Sequence[Kernel], runtime: Runtime) -> list[tuple[Program, bytes]]:
    if not runtime.caches_binaries:
        return [_compile(k, runtime) for k in kernels]
    _search(kernels, runtime)
    disk = cache.default_cache()
    keys = [_key(k, runtime.target, _tuned(k, runtime.target)) for k in kernels]
    found = [_unpack(disk.get(key)) for key in keys]
    missing = [i for i, entry in enumerate(found) if entry is None]
    statistics["from disk"] += len(kernels) - len(missing)
    statistics["compiled"] += len(missing)
    compiled = _compile_all([kernels[i] for i in missing], runtime)
    for i, made in zip(missing, compiled, strict=True):
        found[i] = made
        disk.put(keys[i], _pack(*made))
    # what runtimes ask about arguments (which are written) stands in the kernel
    return [(replace(e[0], kernel=k), e[1]) for k, e in zip(kernels, found, strict=True) if e]


def _compile(kernel: Kernel, runtime: Runtime) -> tuple[Program, bytes]:
    program = codegen.compile(kernel, runtime.target, _tuned(kernel, runtime.target))
    return program, runtime.compile(program)


def _search(kernels: Sequence[Kernel], runtime: Runtime) -> None:
    """With TUNE, look for better schedules than the default ones."""
    if tune.is_wanted():
        tune.search({_key(k, runtime.target, None): k for k in kernels}, runtime)


def _tuned(kernel: Kernel, target: Target) -> tuple[Action, ...] | None:
    """What a search found for a kernel, if there was one; None means the default actions."""
    return tune.tuned(_key(kernel, target, None)) if tune.exists() else None


def _key(kernel: Kernel, target: Target, actions: tuple[Action, ...] | None) -> str:
    if not _version:
        here = Path(__file__).parent
        files = sorted([*(here / "codegen").glob("*.py"), *(here / f"{n}.py" for n in GENERATORS)])
        _version.append(content_key(*(f.read_text() for f in files)))
    return content_key(kernel.name, text(kernel), target, _version[0], actions)


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


def _compile_all(kernels: Sequence[Kernel], runtime: Runtime) -> list[tuple[Program, bytes]]:
    workers = min(runtime.target.threads, len(kernels))
    can_fork = hasattr(os, "fork") and threading.active_count() == 1 and sys.platform == "linux"
    if workers < 2 or len(kernels) < FORK_FROM or not can_fork:
        return [_compile(k, runtime) for k in kernels]
    children = [_start_child(kernels[n::workers], runtime) for n in range(1, workers)]
    shares = [[_compile(k, runtime) for k in kernels[::workers]]]
    for n, child in enumerate(children, 1):
        made = _finish_child(*child)
        if (
            made is None
        ):  # it died: that is no reason to fail, and if there is an error it shows here
            made = [_compile(k, runtime) for k in kernels[n::workers]]
        shares.append(made)
    return [shares[i % workers][i // workers] for i in range(len(kernels))]


def _start_child(kernels: Sequence[Kernel], runtime: Runtime) -> tuple[int, int]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    status = 1
    try:
        made = [_pack(*_compile(k, runtime)) for k in kernels]
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(made, pipe)
        status = 0
    finally:
        os._exit(status)  # no cleanup of what belongs to the parent


def _finish_child(pid: int, reader: int) -> list[tuple[Program, bytes]] | None:
    with os.fdopen(reader, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(pid, 0)
    if status != 0:
        return None
    return [_unpack(made) for made in pickle.loads(content)]  # type: ignore[misc]


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
    taken = _tuned(kernel, target) or default_actions(kernel, target)
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
    _write(f"{kernel.name}.kernel.txt", f"{_about(kernel)}\n{text(kernel)}\n")
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
