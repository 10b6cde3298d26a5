"""What a device must be able to do. One subclass of `Runtime` per device; `device.py` finds them.

The driver uses a runtime like this (compiler.py the first two lines, prepared.py the others):

    binary     = runtime.compile(program)            pure; kept on disk by the driver
    executable = runtime.load([(program, binary)])   loads several at once
    sequence   = runtime.sequence([Launch(...)])     an ordered list of launches, prepared once
    sequence.run(memories, params)                   `memories[slot]` is what allocate returned

`Launch.arguments` are (slot, byte offset) pairs into `memories`, so one sequence serves any
buffers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mygrad.program import Launch, Program, Target


class LaunchSequence(ABC):
    """An ordered list of launches, ready to be run many times."""

    @abstractmethod
    def run(self, memories: Sequence[Any], params: Mapping[str, int]) -> None:
        """Run all launches in order. May return before they have finished (see
        `Runtime.synchronize`)."""

    @abstractmethod
    def time(self, memories: Sequence[Any], params: Mapping[str, int]) -> list[float]:
        """Run launch by launch and return the seconds each took."""


class Runtime(ABC):
    """A device. `name` is what users call it, `target` what code generators see."""

    name: str
    target: Target
    caches_binaries: bool = True  # whether `compile` results are worth keeping on disk
    alignment: int = 64  # of byte offsets in Launch arguments

    @abstractmethod
    def allocate(self, nbytes: int) -> Any:
        """Memory of at least `nbytes` bytes, not initialised.

        Raises:
            DeviceError: there is no memory left.
        """

    @abstractmethod
    def release(self, memory: Any) -> None:
        """Take memory back; the runtime may keep it for the next allocation."""

    @abstractmethod
    def write(self, memory: Any, data: np.ndarray[Any, Any]) -> None:
        """Copy a contiguous host array to the start of the memory."""

    @abstractmethod
    def read(self, memory: Any, out: np.ndarray[Any, Any]) -> None:
        """Copy the start of the memory into a contiguous host array, after all earlier launches."""

    def view(self, memory: Any, dtype: np.dtype[Any], size: int) -> np.ndarray[Any, Any] | None:
        """The start of the memory as a host array that shares it; None where that cannot be."""
        return None

    @abstractmethod
    def compile(self, program: Program) -> bytes:
        """The device binary of a program; empty where programs are compiled as they are loaded.

        Raises:
            CompileError: the compiler refused the text.
        """

    @abstractmethod
    def load(self, programs: Sequence[tuple[Program, bytes]]) -> list[Any]:
        """Executables, in order.

        Raises:
            CompileError: the compiler of the device refused a program.
            DeviceError: the device lacks something that a program needs.
        """

    @abstractmethod
    def sequence(self, launches: Sequence[Launch]) -> LaunchSequence:
        """Prepare launches to be run together."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until everything launched has finished."""

    def disassemble(self, program: Program) -> str:
        """Machine code as text, for DEBUG=5; empty where there is none to show."""
        return ""
