"""Every setting of mygrad, in one typed and documented table.

A setting is read from the environment once, at import, and can be changed for a block:

>>> with context(DEBUG=2):
...     pass

The cpu device reads MYGRAD_THREADS, MYGRAD_AMX and MYGRAD_GUARD once, when it is first used: a
later `context` does not reach it.

An environment value of the wrong form is a `ConfigError` that names the variable, at import.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mygrad.errors import ConfigError, message

_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off", ""}


def _boolean(text: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise ValueError


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def _level(text: str) -> int:
    value = _natural(text)
    if value > 5:
        raise ValueError
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError
    return value


def _guard(text: str) -> int:
    value = _natural(text)
    if value > 2:
        raise ValueError
    return value


@dataclass(frozen=True)
class Setting:
    """One row of the table: environment name, parser, default, what the parser expects, meaning."""

    name: str
    parse: Callable[[str], Any]
    default: Any
    expected: str
    doc: str


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "DEBUG",
        _level,
        0,
        "an integer from 0 to 5",
        "1 plan with reasons, 2 kernels with time, 3 kernel language, 4 source, 5 machine code",
    ),
    Setting("MYGRAD_DEVICE", str.lower, "", "cpu, opencl, cuda or reference", "default device"),
    Setting("CPU", _boolean, False, "0 or 1", "use the cpu device (LLVM)"),
    Setting("OPENCL", _boolean, False, "0 or 1", "use the opencl device"),
    Setting("CUDA", _boolean, False, "0 or 1", "use the cuda device"),
    Setting("REFERENCE", _boolean, False, "0 or 1", "use the NumPy interpreter of kernels"),
    Setting(
        "MYGRAD_THREADS",
        _natural,
        0,
        "a number of threads, 0 for one per processor that the process may use",
        "threads of the cpu device",
    ),
    Setting(
        "MYGRAD_AMX",
        _boolean,
        True,
        "0 or 1",
        "multiply bfloat16 and int8 by the matrix unit of the processor, or its dot products",
    ),
    Setting(
        "MYGRAD_WINOGRAD",
        _boolean,
        True,
        "0 or 1",
        "on the cpu, multiply less in sums over windows, at about twice the rounding of float32",
    ),
    Setting(
        "CHECK",
        _boolean,
        False,
        "0 or 1",
        "checked mode: an out-of-range gather or scatter index is an error",
    ),
    Setting(
        "MYGRAD_GUARD",
        _guard,
        0,
        "0, 1 or 2",
        "cpu buffers end (1) or begin (2) at a page that nothing may touch, and start as NaN",
    ),
    Setting(
        "TUNE",
        _seconds,
        0.0,
        "a number of seconds",
        "time that each process may spend on searching for better schedules",
    ),
    Setting("MYGRAD_DUMP", str, "", "a folder", "write every generated kernel into this folder"),
    Setting("MYGRAD_DATA", str, "", "a folder", "offline folder of the dataset loaders"),
    Setting(
        "MYGRAD_CACHE",
        str,
        os.path.join("~", ".cache", "mygrad"),
        "a folder, or 'off'",
        "compiled kernels and programs, tuned schedules, downloaded datasets",
    ),
)

_BY_NAME = {setting.name: setting for setting in SETTINGS}


class Config:
    """The current values; read as attributes, e.g. `config.DEBUG`."""

    DEBUG: int
    MYGRAD_DEVICE: str
    CPU: bool
    OPENCL: bool
    CUDA: bool
    REFERENCE: bool
    MYGRAD_THREADS: int
    MYGRAD_AMX: bool
    MYGRAD_WINOGRAD: bool
    CHECK: bool
    MYGRAD_GUARD: int
    TUNE: float
    MYGRAD_DUMP: str
    MYGRAD_DATA: str
    MYGRAD_CACHE: str

    def __init__(self, environment: dict[str, str]) -> None:
        for setting in SETTINGS:
            text = environment.get(setting.name)
            setattr(self, setting.name, setting.default if text is None else _parse(setting, text))
        for name in environment:
            if name.startswith("MYGRAD_") and name not in _BY_NAME:
                known = ", ".join(n for n in _BY_NAME if n.startswith("MYGRAD_"))
                raise ConfigError(
                    message("environment", name, f"one of {known}", "check the spelling")
                )


def _parse(setting: Setting, text: str) -> Any:
    try:
        return setting.parse(text)
    except ValueError:
        raise ConfigError(
            message(
                f"environment variable {setting.name}",
                repr(text),
                setting.expected,
                f"{setting.name}: {setting.doc}",
            )
        ) from None


config = Config(dict(os.environ))


@contextmanager
def context(**values: Any) -> Iterator[None]:
    """Change settings inside a `with` block: `with context(DEBUG=4): ...`.

    Raises:
        ConfigError: there is no setting of that name.
    """
    for name in values:
        if name not in _BY_NAME:
            raise ConfigError(message("context", name, f"one of {', '.join(_BY_NAME)}"))
    before = {name: getattr(config, name) for name in values}
    try:
        for name, value in values.items():
            setattr(config, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)
