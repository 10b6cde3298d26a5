"""Which peers are installed, and how each runs a function of arrays. The number of threads must be
set before they are imported."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Run = Callable[[], Any]  # runs once, waits for the result, returns it
Array = np.ndarray

# by the name that tables and `--peers` use: the package that it needs
PACKAGES = {
    "numpy": "numpy",
    "torch": "torch",
    "torch.compile": "torch",
    "jax": "jax",
    "tinygrad": "tinygrad",
}
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUM_CPU_THREADS",  # tinygrad
    "MYGRAD_THREADS",
)
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
# the others of its back ends need a driver, or are slower; where it finds one it takes it silently
TINYGRAD_DEVICE = "CPU"


def set_threads(threads: int) -> None:
    """Let this process, and everything it imports or starts from now on, use so many threads."""
    for name in THREAD_VARIABLES:
        os.environ[name] = str(threads)
    flags = os.environ.get("XLA_FLAGS", "").replace(ONE_THREAD, "").strip()
    os.environ["XLA_FLAGS"] = f"{flags} {ONE_THREAD}".strip() if threads == 1 else flags
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["DEV"] = TINYGRAD_DEVICE


def keep_to(threads: int) -> None:
    """Let this process run on so many processors only, where the system can: JAX 0.10 takes all it
    may, whatever its flags say."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


class Lazy:
    """A package that is imported when something of it is used: a peer that takes no part, or is not
    installed, is not."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


torch: Any = Lazy("torch")
jax: Any = Lazy("jax")
tinygrad: Any = Lazy("tinygrad")


def installed(names: Sequence[str] = tuple(PACKAGES)) -> tuple[list[str], list[str]]:
    """Those of the peers that can run here, and for each of the others why it cannot.

    Raises:
        ValueError: a name that is no peer.
    """
    full = ["torch.compile" if name == "compile" else name for name in names]
    if unknown := [name for name in full if name not in PACKAGES]:
        raise ValueError(f"no such peer: {', '.join(unknown)}; there are {', '.join(PACKAGES)}")
    why = {name: lacks(name) for name in full}
    return [n for n in full if not why[n]], [f"{n} {why[n]}" for n in full if why[n]]


def has(name: str) -> bool:
    """Whether a peer's package is installed."""
    return importlib.util.find_spec(PACKAGES[name]) is not None


def lacks(name: str) -> str:
    """What a peer needs and does not find, as the end of a sentence; empty if nothing."""
    if not has(name):
        return "is not installed"
    compiler = os.environ.get("CC", "clang")
    if name == "tinygrad" and not shutil.which(compiler):
        return f"finds no compiler {compiler}"
    return ""


# --- a function of arrays, as each peer runs it ---------------------------------------------------


def with_numpy(function: Callable[..., Any], arrays: Sequence[Array], dtype: str = "") -> Run:
    """As it is."""
    return lambda: function(*arrays)


def with_torch(
    function: Callable[..., Any],
    arrays: Sequence[Array],
    dtype: str = "",
    compiled: bool = False,
    channels_last: bool = False,
) -> Run:
    """Eager PyTorch without gradients, unless the function asks for them; or compiled; or with
    images whose channels are innermost in memory, which its users may choose."""
    inputs = [torch.from_numpy(a) for a in arrays]
    if dtype:
        inputs = [t.to(getattr(torch, dtype)) if t.is_floating_point() else t for t in inputs]
    if channels_last:
        last = torch.channels_last
        inputs = [t.contiguous(memory_format=last) if t.ndim == 4 else t for t in inputs]
    called = torch.compile(function, dynamic=False) if compiled else function

    def run() -> Any:
        with torch.no_grad():
            return called(*inputs)

    return run


def with_jax(function: Callable[..., Any], arrays: Sequence[Array], dtype: str = "") -> Run:
    """Jitted."""
    numpy = jax.numpy
    inputs = [numpy.asarray(narrow(a), dtype if dtype and is_float(a) else None) for a in arrays]
    jitted = jax.jit(function)
    return lambda: jax.block_until_ready(jitted(*inputs))


def with_tinygrad(function: Callable[..., Any], arrays: Sequence[Array], dtype: str = "") -> Run:
    """By TinyJit, which only records at its second call: the first run here is three."""
    inputs = [tinygrad.Tensor(narrow(a)) for a in arrays]
    if dtype:
        inputs = [t.cast(dtype) if t.is_floating_point() else t for t in inputs]
    tinygrad.Tensor.realize(*inputs)

    def realized(*values: Any) -> Any:
        results = function(*values)
        several = isinstance(results, (list, tuple))
        tinygrad.Tensor.realize(*(results if several else (results,)))
        return results

    return recorded(tinygrad.TinyJit(realized), *inputs)


def recorded(step: Callable[..., Any], *inputs: Any, warm: bool = True) -> Run:
    """A function for TinyJit; if `warm`, the first run is three, so that it is recorded then."""
    device = tinygrad.Device[tinygrad.Device.DEFAULT]
    ready = [not warm]

    def run() -> Any:
        if not ready[0]:
            step(*inputs), step(*inputs)
            ready[0] = True
        results = step(*inputs)
        device.synchronize()
        return results

    return run


def narrow(a: Array) -> Array:
    """Integers of 32 bits: neither JAX nor tinygrad expects others."""
    return a.astype(np.int32) if a.dtype == np.int64 else a


def is_float(a: Array) -> bool:
    """Whether its type may be replaced by another float."""
    return a.dtype.kind == "f"
