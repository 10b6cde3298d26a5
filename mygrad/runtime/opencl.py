"""The `opencl` device: OpenCL 1.2 through pyopencl.

A kernel runs as one work-item, or as one per compute unit where it has a parallel loop to share,
always in work-groups of one: on PoCL that is both the fast way and the one that compiles once.
Drivers keep a cache of what they built, so there are no binaries for mygrad to keep.
"""

from __future__ import annotations

import importlib
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from mygrad.errors import CompileError, DeviceError, MissingPackageError, message
from mygrad.program import Launch, Program, Target
from mygrad.runtime.base import LaunchSequence, Runtime

KEPT_BYTES = 256 << 20  # of released memory that is kept for the next allocation of the same size


def _pyopencl() -> Any:
    try:
        return importlib.import_module("pyopencl")
    except ImportError as error:
        raise MissingPackageError(
            message(
                "device opencl",
                f"no usable pyopencl ({error})",
                "the package",
                "pip install 'mygrad[opencl]'",
            )
        ) from None


def _find_device(cl: Any) -> Any:
    """The first GPU, else the first device of any kind."""
    remedy = "pip install 'mygrad[opencl]' brings one for the processor"
    try:
        devices = [d for platform in cl.get_platforms() for d in platform.get_devices()]
    except cl.Error as error:
        raise DeviceError(
            message("device opencl", f"no platform ({error})", "an OpenCL driver", remedy)
        ) from None
    if not devices:
        raise DeviceError(
            message("device opencl", "no device", "an OpenCL driver with one", remedy)
        )
    return min(devices, key=lambda d: d.type != cl.device_type.GPU)


def _check_linker(device: Any) -> None:
    # PoCL links every kernel with `ld`, and aborts the whole process when there is none
    if "Portable Computing Language" in device.platform.name and shutil.which("ld") is None:
        raise DeviceError(
            message(
                "device opencl",
                "PoCL without the program `ld` on PATH",
                "a linker",
                "install binutils",
            )
        )


# PoCL 3 takes Zen 4 for Zen 3, but links a library for AVX-512: what uses its functions of vectors
# fails to compile, or crashes, those of single numbers do not
_SCALAR = ("znver1", "znver2", "znver3")


@dataclass(frozen=True)
class Executable:
    """A built program and what its launch needs."""

    program: Program
    built: Any  # pyopencl.Program


class OpenCL(Runtime):
    """The device `opencl`: the first GPU that OpenCL finds, else the first device.

    Raises:
        MissingPackageError: pyopencl is not installed.
        DeviceError: there is no driver or device, or PoCL lacks its linker.
    """

    name = "opencl"
    caches_binaries = False

    def __init__(self) -> None:
        self.cl = _pyopencl()
        self.device = _find_device(self.cl)
        _check_linker(self.device)
        self.context = self.cl.Context([self.device])
        self.queue = self.cl.CommandQueue(
            self.context, properties=self.cl.command_queue_properties.PROFILING_ENABLE
        )
        self.alignment = max(64, self.device.mem_base_addr_align // 8)
        self.target = _target(self.device)
        self.options = ["-cl-std=CL1.2"]
        if self.device.single_fp_config & self.cl.device_fp_config.CORRECTLY_ROUNDED_DIVIDE_SQRT:
            self.options.append("-cl-fp32-correctly-rounded-divide-sqrt")
        self._built: dict[str, Any] = {}  # by source
        self._free: dict[int, list[Any]] = {}
        self._kept = 0

    @contextmanager
    def errors(self, op: str) -> Iterator[None]:
        """OpenCL's errors as ours."""
        try:
            yield
        except self.cl.Error as error:
            raise DeviceError(message(f"opencl {op}", str(error), "success")) from error

    def allocate(self, nbytes: int) -> Any:
        nbytes = max(nbytes, 1)
        if self._free.get(nbytes):
            self._kept -= nbytes
            return self._free[nbytes].pop()
        with self.errors(f"allocation of {nbytes} bytes"):
            return self.cl.Buffer(self.context, self.cl.mem_flags.READ_WRITE, nbytes)

    def release(self, memory: Any) -> None:
        if self._kept + memory.size > KEPT_BYTES:
            memory.release()
            return
        self._kept += memory.size
        self._free.setdefault(memory.size, []).append(memory)

    def write(self, memory: Any, data: np.ndarray[Any, Any]) -> None:
        if data.nbytes:
            with self.errors("write"):
                self.cl.enqueue_copy(
                    self.queue, memory, np.ascontiguousarray(data), is_blocking=True
                )

    def read(self, memory: Any, out: np.ndarray[Any, Any]) -> None:
        if out.nbytes:
            with self.errors("read"):
                self.cl.enqueue_copy(self.queue, out, memory, is_blocking=True)

    def compile(self, program: Program) -> bytes:
        return b""

    def load(self, programs: Sequence[tuple[Program, bytes]]) -> list[Any]:
        return [Executable(program, self._build(program)) for program, _ in programs]

    def _build(self, program: Program) -> Any:
        if program.source not in self._built:
            if "cl_khr_fp64" in program.source and "cl_khr_fp64" not in self.device.extensions:
                raise DeviceError(
                    message(
                        "opencl",
                        "a float64 kernel",
                        f"a type that {self.device.name} has",
                        "cast to float32",
                    )
                )
            try:
                with warnings.catch_warnings():  # about remarks of the driver's compiler
                    warnings.simplefilter("ignore", self.cl.CompilerWarning)
                    built = self.cl.Program(self.context, program.source)
                    self._built[program.source] = built.build(options=self.options, cache_dir=False)
            except self.cl.Error as error:
                raise CompileError(
                    message(
                        f"opencl compiler, kernel {program.entry}",
                        str(error),
                        "no errors",
                        f"this is a defect of mygrad; the source:\n{program.source}",
                    )
                ) from error
        return self._built[program.source]

    def sequence(self, launches: Sequence[Launch]) -> LaunchSequence:
        return OpenCLSequence(self, launches)

    def synchronize(self) -> None:
        with self.errors("wait"):
            self.queue.finish()


def _target(device: Any) -> Target:
    width = 4 * max(1, device.native_vector_width_float)
    if width >= 64 and any(zen in device.version for zen in _SCALAR):
        width = 4
    return Target(
        "opencl",
        f"{device.platform.version} {device.name}",
        vector_bytes=width,
        vector_registers=32 if width >= 64 else 16,
        threads=device.max_compute_units,
    )


class _Bound:
    """One launch: its kernel with the arguments it had last."""

    def __init__(self, runtime: OpenCL, launch: Launch) -> None:
        self.runtime = runtime
        self.program: Program = launch.executable.program
        self.kernel = runtime.cl.Kernel(launch.executable.built, self.program.entry)
        self.arguments, self.values = launch.arguments, launch.values
        self.memories: list[Any] = [None] * len(launch.arguments)
        self.params: tuple[int, ...] = ()
        self.items = 1
        if self.program.parallel:
            self.items = max(1, min(runtime.target.threads, self.program.grid[0]))

    def bind(self, memories: Sequence[Any], params: Mapping[str, int]) -> None:
        """Set the arguments that changed."""
        for position, (slot, offset) in enumerate(self.arguments):
            memory = memories[slot]
            if self.memories[position] is not memory:
                self.memories[position] = memory
                # a sub-buffer is the only pointer with an offset that OpenCL 1.2 passes to a kernel
                part = memory[offset : memory.size] if offset else memory
                self.kernel.set_arg(position, part)
        values = self.values(params)
        if values != self.params:
            self.params = values
            for position, value in enumerate(values, len(self.arguments)):
                self.kernel.set_arg(position, np.int64(value))

    def enqueue(self, memories: Sequence[Any], params: Mapping[str, int]) -> Any:
        """The event of the launch."""
        self.bind(memories, params)
        return self.runtime.cl.enqueue_nd_range_kernel(
            self.runtime.queue, self.kernel, (self.items,), (1,)
        )


class OpenCLSequence(LaunchSequence):
    """Launches in an in-order queue."""

    def __init__(self, runtime: OpenCL, launches: Sequence[Launch]) -> None:
        self.runtime = runtime
        with runtime.errors("kernel"):
            self.launches = [_Bound(runtime, launch) for launch in launches]

    def run(self, memories: Sequence[Any], params: Mapping[str, int]) -> None:
        with self.runtime.errors("launch"):
            for launch in self.launches:
                launch.enqueue(memories, params)
            self.runtime.queue.flush()

    def time(self, memories: Sequence[Any], params: Mapping[str, int]) -> list[float]:
        with self.runtime.errors("launch"):
            events = [launch.enqueue(memories, params) for launch in self.launches]
            self.runtime.queue.finish()
            return [1e-9 * (event.profile.end - event.profile.start) for event in events]
