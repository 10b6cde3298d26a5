"""Products of matrices, attention and convolutions: bounded by arithmetic."""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

import numpy as np

from bench.arrays import candidates, random, workload
from bench.measure import Candidates, Workload
from bench.peers import Run, jax, torch

# --- products -------------------------------------------------------------------------------------


def matmul(a: tuple[int, ...], b: tuple[int, ...], dtype: str = "") -> Candidates:
    """a @ b; of bfloat16 NumPy has none."""
    who: dict[str, Any] = dict.fromkeys(
        ["torch", "jax", "tinygrad"] + ["numpy"] * (not dtype), operator.matmul
    )
    return candidates([random(*a), random(*b, seed=1)], operator.matmul, dtype=dtype, **who)


def transposed(n: int, first: bool) -> Candidates:
    """a.T @ b if `first`, else a @ b.T."""

    def product(x: Any, y: Any) -> Any:
        return x.T @ y if first else x @ y.T

    who: dict[str, Any] = dict.fromkeys(["numpy", "torch", "jax", "tinygrad"], product)
    return candidates([random(n, n), random(n, n, seed=1)], product, **who)


# --- convolutions ---------------------------------------------------------------------------------


def convolution(
    n: int,
    c: int,
    o: int,
    size: int,
    kernel: int,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    wanted: str = "forward",
) -> Candidates:
    """Of (n, c, size, size): the result (`forward`), or the gradient for the `data` or the
    `weight` alone."""
    out = (size + 2 * padding - kernel) // stride + 1
    arrays = [
        random(n, c, size, size),
        random(o, c // groups, kernel, kernel, seed=1, scale=0.05),
        random(n, o, out, out, seed=2),
    ]
    settings = {"stride": stride, "padding": padding, "groups": groups}
    if wanted == "forward":
        arrays = arrays[:2]
    which = 0 if wanted == "data" else 1

    def theirs(x: Any, w: Any, g: Any = None) -> Any:
        if g is None:
            return torch.nn.functional.conv2d(x, w, None, **settings)
        pair = [stride] * 2, [padding] * 2, [1, 1], False, [0, 0]
        mask = [which == 0, which == 1, False]
        backward = torch.ops.aten.convolution_backward
        return backward(g, x, w, None, *pair, groups, mask)[which]

    def jitted(x: Any, w: Any, g: Any = None) -> Any:
        def forward(x: Any, w: Any) -> Any:
            return jax.lax.conv_general_dilated(
                x, w, (stride,) * 2, [(padding,) * 2] * 2, feature_group_count=groups
            )

        return forward(x, w) if g is None else jax.vjp(forward, x, w)[1](g)[which]

    def tensors(x: Any, w: Any, g: Any = None) -> Any:  # mygrad and tinygrad
        y = x.conv2d(w, **settings)
        return y if g is None else y.gradient((x, w)[which], gradient=g)[0]

    gradient = wanted != "forward"
    return candidates(
        arrays, tensors, torch=theirs, jax=jitted, tinygrad=tensors, last=True, gradient=gradient
    )


# --- attention ------------------------------------------------------------------------------------


def attention(batch: int, heads: int, length: int, width: int, gradient: bool) -> Candidates:
    """Causal, of (batch, heads, length, width); with `gradient` also those of q, k and v."""
    shape = (batch, heads, length, width)
    arrays = [random(*shape, seed=n) for n in range(4 if gradient else 3)]

    def ours(q: Any, k: Any, v: Any, g: Any = None) -> Any:
        y = q.scaled_dot_product_attention(k, v, is_causal=True)
        return y if g is None else [y, *y.gradient(q, k, v, gradient=g)]

    def forward(q: Any, k: Any, v: Any) -> Any:
        # jax has heads behind times
        turned = [x.swapaxes(1, 2) for x in (q, k, v)]
        return jax.nn.dot_product_attention(*turned, is_causal=True).swapaxes(1, 2)

    def jitted(q: Any, k: Any, v: Any, g: Any = None) -> Any:
        if g is None:
            return forward(q, k, v)
        y, back = jax.vjp(forward, q, k, v)
        return [y, *back(g)]

    made = candidates(arrays, ours, gradient=gradient, jax=jitted)

    def make() -> Run:
        sdpa = torch.nn.functional.scaled_dot_product_attention
        inputs = [torch.from_numpy(a).requires_grad_(gradient) for a in arrays[:3]]
        if not gradient:
            return lambda: sdpa(*inputs, is_causal=True)
        g = torch.from_numpy(arrays[3])

        def run() -> Any:
            y = sdpa(*inputs, is_causal=True)
            return [y, *torch.autograd.grad(y, inputs, g)]

        return run

    return made | {"torch": make}


# --- the list -----------------------------------------------------------------------------------

SIZES = (256, 512, 1024, 2048, 1000, 257)
CONV = {"n": 32, "c": 64, "o": 64, "size": 32, "kernel": 3, "padding": 1}
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "conv 3x3 64": CONV,
    "conv 3x3 64 data gradient": CONV | {"wanted": "data"},
    "conv 3x3 64 weight gradient": CONV | {"wanted": "weight"},
    "conv 1x1 64": CONV | {"c": 256, "kernel": 1, "padding": 0},
    "conv 3x3 strided 64": CONV | {"o": 128, "stride": 2},
    "conv 5x5 32": {"n": 64, "c": 32, "o": 32, "size": 24, "kernel": 5},
    "conv 5x5 1": {"n": 64, "c": 1, "o": 32, "size": 28, "kernel": 5},
    "conv depthwise 3x3 128": CONV | {"c": 128, "o": 128, "groups": 128},
}


def small_convolution(settings: dict[str, Any]) -> dict[str, Any]:
    """A version for `--quick`."""
    groups = settings.get("groups", 1)
    channels = {k: min(settings[k], 8) for k in ("c", "o")}
    return settings | channels | {"n": 2, "size": 12, "groups": min(groups, 8)}


def convolution_flops(settings: dict[str, Any]) -> int:
    """Multiplications and additions; of either gradient, too."""
    s = {"stride": 1, "padding": 0, "groups": 1} | settings
    out = (s["size"] + 2 * s["padding"] - s["kernel"]) // s["stride"] + 1
    return 2 * s["n"] * s["o"] * out * out * s["c"] // s["groups"] * s["kernel"] ** 2


def _product(
    name: str, a: tuple[int, ...], b: tuple[int, ...], small: int, dtype: str = ""
) -> Workload:
    shape = (2, small, small) if len(a) == 3 else (small, small)
    return Workload(
        name,
        partial(matmul, a, b, dtype),
        partial(matmul, shape, shape, dtype),
        flops=2 * int(np.prod(a)) * b[-1],
        tolerance=2e-2 if dtype else 1e-3,
    )


WORKLOADS = (
    *(_product(f"matmul {n}", (n, n), (n, n), 64 + n % 2) for n in SIZES),
    workload("matmul NT 1024", transposed, (1024, False), (64, False), flops=2 * 1024**3),
    workload("matmul TN 1024", transposed, (1024, True), (64, True), flops=2 * 1024**3),
    _product("matmul batched 64x256x64x256", (64, 256, 64), (64, 64, 256), 16),
    *(
        workload(
            f"attention {length}{' and gradient' if gradient else ''}",
            attention,
            (batch, 6, length, 64, gradient),
            (1, 2, 100, 8, gradient),
            # 2 products of half a square, and 5 behind them
            flops=batch * 6 * length * length * 64 * (7 if gradient else 2),
        )
        for batch, length in ((8, 256), (1, 2048))
        for gradient in (False, True)
    ),
    *(_product(f"matmul bf16 {n}", (n, n), (n, n), 64, "bfloat16") for n in (512, 1024, 2048)),
    *(
        Workload(
            name,
            partial(convolution, **settings),
            partial(convolution, **small_convolution(settings)),
            flops=convolution_flops(settings),
        )
        for name, settings in CONVOLUTIONS.items()
    ),
)
