"""Small programs: what starting a computation costs."""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

import numpy as np

from bench import peers
from bench.arrays import candidates, random, workload
from bench.measure import OURS, Candidates, Make, Workload
from bench.peers import Lazy, jax, tinygrad
from mygrad import Tensor

CHAIN = 50


def eager_add() -> Candidates:
    """x + y of 16 elements, computed at once."""
    x, y = random(16), random(16, seed=1)

    def ours() -> peers.Run:
        a, b = Tensor(x).realize(), Tensor(y).realize()
        return lambda: (a + b).realize()

    def with_jax() -> peers.Run:
        a, b = jax.numpy.asarray(x), jax.numpy.asarray(y)
        return lambda: jax.block_until_ready(a + b)

    def with_tinygrad() -> peers.Run:
        a, b = tinygrad.Tensor(x).realize(), tinygrad.Tensor(y).realize()
        device = tinygrad.Device[tinygrad.Device.DEFAULT]

        def run() -> Any:
            result = (a + b).realize()
            device.synchronize()
            return result

        return run

    return {
        OURS: ours,
        "numpy": lambda: lambda: x + y,
        "torch": partial(peers.with_torch, operator.add, [x, y]),
        "jax": with_jax,
        "tinygrad": with_tinygrad,
    }


def jitted_add() -> Candidates:
    """x + y of 16 elements, captured once."""
    who: dict[str, Any] = dict.fromkeys(["numpy", "torch", "jax", "tinygrad"], operator.add)
    return candidates([random(16), random(16, seed=1)], operator.add, compiled=True, **who)


def fifty_kernels(count: int = CHAIN) -> Candidates:
    """50 dependent products of 16x16, each with a tanh: nothing can merge them."""
    arrays = [random(16, 16), *(random(16, 16, seed=i, scale=0.1) for i in range(1, count + 1))]

    def tensors(x: Any, *weights: Any) -> Any:
        for w in weights:
            x = (x @ w).tanh()
        return x

    def arrays_of(numpy: Any) -> Any:
        def chain(x: Any, *weights: Any) -> Any:
            for w in weights:
                x = numpy.tanh(x @ w)
            return x

        return chain

    return candidates(
        arrays,
        tensors,
        numpy=arrays_of(np),
        torch=tensors,
        jax=arrays_of(Lazy("jax.numpy")),
        tinygrad=tensors,
        compiled=True,
    )


def build_nodes(count: int = 1000) -> Candidates:
    """1,000 dependent additions put into the graph, none computed (PyTorch and NumPy compute
    them)."""

    def chain(a: Any, b: Any) -> None:
        for _ in range(count):
            a = a + b

    def ours() -> peers.Run:
        a, b = (Tensor(random(16, seed=i)).realize() for i in range(2))
        return lambda: chain(a, b)

    def with_tinygrad() -> peers.Run:
        a, b = (tinygrad.Tensor(random(16, seed=i)).realize() for i in range(2))
        return lambda: chain(a, b)

    made: dict[str, Make] = {OURS: ours, "tinygrad": with_tinygrad}
    arrays = [random(16), random(16, seed=1)]
    made["numpy"] = partial(peers.with_numpy, chain, arrays)
    made["torch"] = partial(peers.with_torch, chain, arrays)
    return made


WORKLOADS: tuple[Workload, ...] = (
    workload("eager add 16", eager_add, (), ()),
    workload("jitted add 16", jitted_add, (), ()),
    workload("50 tiny kernels", fifty_kernels, (), (5,)),
    workload("build 1000 nodes", build_nodes, (), (10,)),
)
