"""The devices: one table, opened lazily, one `Runtime` each.

    get("opencl")          the runtime, opened at the first call
    available()            {"cpu": None, "opencl": "why it cannot be used", ...}
    default()              the device of new tensors
    Device.DEFAULT = ...   sets it; otherwise MYGRAD_DEVICE, then CPU=1, OPENCL=1 ... are read

Nothing is imported before it is asked for: a missing driver or package is a clear sentence from
`get`, never an error of `import mygrad`.
"""

from __future__ import annotations

import importlib
import threading
from dataclasses import dataclass

from mygrad.config import config
from mygrad.errors import ConfigError, DeviceError, MissingPackageError, message
from mygrad.runtime.base import Runtime


@dataclass(frozen=True)
class Entry:
    """A known device: where its `Runtime` lives, and what it is. No module: not in this version."""

    module: str
    runtime: str
    doc: str


DEVICES: dict[str, Entry] = {
    "cpu": Entry("mygrad.runtime.cpu", "CPU", "this processor, through LLVM"),
    "opencl": Entry("mygrad.runtime.opencl", "OpenCL", "an OpenCL 1.2 device"),
    "cuda": Entry("", "", "an NVIDIA GPU"),
    "reference": Entry("mygrad.runtime.reference", "Reference", "the NumPy interpreter of kernels"),
}

_opened: dict[str, Runtime] = {}
_lock = threading.RLock()


def canonical(name: str) -> str:
    """The name of a known device in lower case.

    >>> canonical("OpenCL")
    'opencl'

    Raises:
        DeviceError: there is no such device.
    """
    found = name.lower() if isinstance(name, str) else name
    if found not in DEVICES:
        raise DeviceError(message("device", repr(name), f"one of {', '.join(DEVICES)}"))
    return found


def get(name: str) -> Runtime:
    """The runtime of a device, opened once per process.

    Raises:
        DeviceError: the device is unknown, or cannot be used; it says why.
        MissingPackageError: its Python package is not installed.
    """
    runtime = _opened.get(name)
    if runtime is not None:
        return runtime
    with _lock:
        name = canonical(name)
        if name not in _opened:
            _opened[name] = _open(name)
        return _opened[name]


def _open(name: str) -> Runtime:
    entry = DEVICES[name]
    if not entry.module:
        raise DeviceError(
            message(
                f"device {name}",
                f"a request for {entry.doc}",
                "an implemented device",
                f"{name} is not implemented in this version; use cpu or opencl",
            )
        )
    runtime = getattr(importlib.import_module(entry.module), entry.runtime)
    opened: Runtime = runtime()
    return opened


def available() -> dict[str, str | None]:
    """For every known device None, or the reason why it cannot be used here; opens the others."""
    reasons: dict[str, str | None] = {}
    for name in DEVICES:
        try:
            get(name)
            reasons[name] = None
        except (DeviceError, MissingPackageError) as error:
            reasons[name] = str(error)
    return reasons


class Devices:
    """The user's handle: `Device.DEFAULT`, and `Device[name]` for a runtime."""

    def __init__(self) -> None:
        self._chosen: str | None = None

    @property
    def DEFAULT(self) -> str:
        """The device of new tensors. Assign a name to set it, None to follow the environment."""
        return self._chosen or _from_settings()

    @DEFAULT.setter
    def DEFAULT(self, name: str | None) -> None:
        self._chosen = None if name is None else canonical(name)

    def __getitem__(self, name: str) -> Runtime:
        return get(name)

    def __repr__(self) -> str:
        return f"Device(DEFAULT={self.DEFAULT!r}, known={list(DEVICES)})"


Device = Devices()


def default() -> str:
    """The device of new tensors: `Device.DEFAULT` if set, else MYGRAD_DEVICE, else the one device
    whose flag (CPU, OPENCL, CUDA, REFERENCE) is set, else "cpu".

    Raises:
        ConfigError: flags of two devices are set.
        DeviceError: MYGRAD_DEVICE names no known device.
    """
    return Device.DEFAULT


def _from_settings() -> str:
    if config.MYGRAD_DEVICE:
        return canonical(config.MYGRAD_DEVICE)
    chosen = [name for name in DEVICES if getattr(config, name.upper())]
    if len(chosen) > 1:
        raise ConfigError(
            message(
                "environment",
                " and ".join(f"{n.upper()}=1" for n in chosen),
                "at most one device",
                "unset all but one, or set MYGRAD_DEVICE",
            )
        )
    return chosen[0] if chosen else "cpu"
