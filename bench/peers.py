"""Which peers are installed. The number of threads must be set before they are imported."""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MYGRAD_THREADS")


def set_threads(threads: int) -> None:
    """Let this process, and everything it imports from now on, use so many threads."""
    for name in THREAD_VARIABLES:
        os.environ[name] = str(threads)


def optional(name: str) -> ModuleType | None:
    """The package, or None where it is not installed."""
    return importlib.import_module(name) if importlib.util.find_spec(name) else None
