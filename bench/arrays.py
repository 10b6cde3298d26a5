"""Functions of arrays as candidates: the same arrays, and the function that users of each library
would write."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from bench import peers
from bench.measure import OURS, Candidates, Make, Workload
from bench.peers import Array, torch
from mygrad import Tensor, jit

Function = Callable[..., Any]
COPIED = 1 << 24  # elements of the copy that bandwidth is measured by


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    """Normal float32 values."""
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return values * np.float32(scale)


def integers(below: int, *shape: int, seed: int = 1) -> Array:
    """Integers from 0 to below - 1."""
    return np.random.default_rng(seed).integers(0, below, shape)


def candidates(
    arrays: list[Array],
    mygrad: Function,
    *,
    dtype: str = "",
    compiled: bool = False,
    last: bool = False,
    gradient: bool = False,
    **functions: Function,
) -> dict[str, Make]:
    """A function of arrays in every library: jitted in mygrad, as it is in the peers. `compiled`
    adds torch.compile, `last` PyTorch with channels last, `dtype` casts the float arrays first, and
    with `gradient` mygrad's function asks for gradients."""
    made: dict[str, Make] = {OURS: partial(ours, mygrad, arrays, dtype, gradient)}
    adapters = {
        "numpy": peers.with_numpy,
        "torch": peers.with_torch,
        "jax": peers.with_jax,
        "tinygrad": peers.with_tinygrad,
    }
    for who, function in functions.items():
        made[who] = partial(adapters[who], function, arrays, dtype)
    if "torch" in functions and compiled:
        made["torch.compile"] = partial(
            peers.with_torch, functions["torch"], arrays, dtype, compiled=True
        )
    if "torch" in functions and last:
        made["torch/channels last"] = partial(
            peers.with_torch, functions["torch"], arrays, dtype, channels_last=True
        )
    return made


def ours(
    function: Function, arrays: list[Array], dtype: str = "", gradient: bool = False
) -> peers.Run:
    """Jitted in mygrad."""
    tensors = [Tensor(a) for a in arrays]
    if dtype:
        tensors = [t.cast(dtype) if t.is_floating_point() else t for t in tensors]
    Tensor.realize(*tensors)
    if gradient:
        tensors = [t.requires_grad_() if t.is_floating_point() else t for t in tensors]
    step = jit(function)
    return lambda: step(*tensors)


def copy() -> Make:
    """A copy of 64 MiB, by the library that copies with all threads if there is one."""

    def make() -> peers.Run:
        source, target = random(COPIED), np.empty(COPIED, np.float32)
        if not peers.has("torch"):
            return lambda: np.copyto(target, source)
        a, b = torch.from_numpy(source), torch.from_numpy(target)
        return lambda: b.copy_(a)

    return make


def beside_copy(made: dict[str, Make]) -> Candidates:
    """With a copy that is timed in the same rounds, for what memory bounds."""
    return made | {"@copy": copy()}


def with_gradient(loss: Function, arrays: list[Array], both: bool) -> dict[str, Make]:
    """PyTorch's loss (if `both`) and gradient for the first array, eager and compiled."""

    def make(compiled: bool) -> peers.Run:
        leaf = torch.from_numpy(arrays[0]).requires_grad_()
        others = [torch.from_numpy(a) for a in arrays[1:]]
        called = torch.compile(loss, dynamic=False) if compiled else loss

        def run() -> Any:
            value = called(leaf, *others)
            (gradient,) = torch.autograd.grad(value, leaf)
            return [value, gradient] if both else gradient

        return run

    return {"torch": partial(make, False), "torch.compile": partial(make, True)}


def workload(
    name: str, make: Function, full: tuple[Any, ...], small: tuple[Any, ...], **about: Any
) -> Workload:
    """A function of numbers, with those of the full and of the small version."""
    return Workload(name, partial(make, *full), partial(make, *small), **about)
