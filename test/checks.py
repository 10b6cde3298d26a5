"""Instruments that test files share: one-line checks against NumPy, PyTorch and differences.

    check_op(lambda x, y: x @ y, (3, 5), (5, 7))             against PyTorch, forward and backward
    check_op(lambda x: x.tanh(), (3,), numpy_fn=np.tanh)     against NumPy and numeric derivatives
    check_gradient(lambda x: x.tanh(), (3, 5))               against numeric derivatives alone

and the same below the Tensor, on graph nodes, computed by the interpreter:

    x = leaf(array); value_of(node)
    check_vjp(lambda x: graph.scan(Op.MUL, x, 0), array)     first and second derivatives
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from peers import has_torch, torch

import mygrad
from mygrad import dtype as dt
from mygrad import graph, interpret
from mygrad.autograd.gradient import gradient
from mygrad.dtype import DType
from mygrad.graph import Node
from mygrad.ops import Op
from mygrad.program import Buffer

Array = np.ndarray[Any, Any]
Operand = Array | tuple[int, ...]  # an array, or the shape of a random one

# (relative, absolute) tolerance of results by type
TOLERANCE = {
    "float64": (1e-9, 1e-11),
    "float32": (2e-5, 2e-6),
    "float16": (5e-3, 1e-3),
    "bfloat16": (4e-2, 1e-2),
}

SHAPES = ((), (1,), (0,), (7,), (2, 3), (3, 1, 5), (0, 3), (5, 13), (2, 3, 1, 4))


def awkward_shapes(rank: int | None = None) -> list[tuple[int, ...]]:
    """Shapes that break things: no axes, no elements, extents of one, primes."""
    return [shape for shape in SHAPES if rank is None or len(shape) == rank]


def random_array(shape: tuple[int, ...], seed: int = 0, low: float = -2, high: float = 2) -> Array:
    """Uniform float64 numbers, the same for the same arguments."""
    return np.random.default_rng([seed, *shape]).uniform(low, high, shape)


def assert_close(got: Any, expected: Any, rtol: float, atol: float, what: str = "") -> None:
    """Equal shapes, values within the tolerance, NaN and infinities in the same places."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    if expected.dtype.kind == "f":
        got, expected = got.astype(np.float64), expected.astype(np.float64)
    np.testing.assert_allclose(got, expected, rtol, atol, equal_nan=True, err_msg=what)


# --- Tensor functions ----------------------------------------------------------------------------


def check_op(
    fn: Callable[..., Any],
    *operands: Operand,
    torch_fn: Callable[..., Any] | None = None,
    numpy_fn: Callable[..., Any] | None = None,
    dtype: str = "float32",
    grad: bool = True,
    rtol: float | None = None,
    atol: float | None = None,
    low: float = -2,
    high: float = 2,
    seed: int = 0,
) -> None:
    """Check a function of Tensors against its counterparts, forward and backward.

    Shapes stand for random operands in [low, high) of `dtype`; float arrays are converted to it,
    integer and bool arrays are taken as they are and have no gradient. Without `torch_fn` and
    `numpy_fn` the function itself is given PyTorch tensors, and the check is skipped where PyTorch
    is missing. Dtypes must be PyTorch's, too. `numpy_fn` gets float64 arrays; its gradient is
    differentiated numerically.
    """
    arrays = _operands(operands, low, high, seed)
    rtol, atol = _tolerance(dtype, rtol, atol)
    if torch_fn is None and numpy_fn is None:
        torch_fn = fn
    if numpy_fn is None and not has_torch:
        pytest.skip("PyTorch is not installed")
    tensors = [_tensor(a, dtype, grad) for a in arrays]
    # the oracles see what the tensors hold, after rounding to their type
    seen = [
        t.detach().numpy().astype(np.float64) if a.dtype.kind == "f" else a
        for t, a in zip(tensors, arrays, strict=True)
    ]
    result = fn(*tensors)
    value = result.numpy()
    weights = random_array(value.shape, seed + 1)
    found = _backward(result, weights, tensors, dtype) if grad else []
    if numpy_fn is not None:
        assert_close(value, numpy_fn(*seen), rtol, atol, "forward, NumPy")
        if grad:
            expected = numeric_gradient(numpy_fn, seen, weights)
            _compare_gradients(found, expected, max(rtol, 1e-5), max(atol, 1e-5), "NumPy")
    if torch_fn is not None and has_torch:
        inputs = [_torch_tensor(a, dtype, grad) for a in arrays]
        output = torch_fn(*inputs)
        assert result.dtype.name == str(output.dtype).removeprefix("torch.")
        assert_close(value, _torch_numpy(output), rtol, atol, "forward, PyTorch")
        if grad:
            output.backward(torch.tensor(weights).to(output.dtype))
            expected = [None if t.grad is None else _torch_numpy(t.grad) for t in inputs]
            _compare_gradients(found, expected, rtol, atol, "PyTorch")


def check_gradient(
    fn: Callable[..., Any],
    *operands: Operand,
    low: float = -2,
    high: float = 2,
    seed: int = 0,
    rtol: float = 1e-5,
    atol: float = 1e-7,
) -> None:
    """Check the gradients of a function of float64 Tensors against differences of itself."""
    arrays = _operands(operands, low, high, seed)
    tensors = [_tensor(a, "float64", True) for a in arrays]
    result = fn(*tensors)
    weights = random_array(tuple(result.shape), seed + 1)
    found = _backward(result, weights, tensors, "float64")

    def plain(*values: Array) -> Array:
        return fn(*[_tensor(v, "float64", False) for v in values]).numpy()

    _compare_gradients(found, numeric_gradient(plain, arrays, weights), rtol, atol, "numeric")


def numeric_gradient(
    fn: Callable[..., Any],
    arrays: Sequence[Array],
    weights: Array | None = None,
    step: float = 1e-5,
) -> list[Array | None]:
    """The gradient of `sum(weights * fn(*arrays))` by central differences; None for
    arrays without floats.

    The error is about step**2 times the third derivative, plus 1e-16 / step of rounding.
    """
    work = [np.array(a, np.float64) if a.dtype.kind == "f" else a for a in arrays]

    def total() -> float:
        value = np.asarray(fn(*work), np.float64)
        return float((value if weights is None else value * weights).sum())

    gradients: list[Array | None] = []
    for array in work:
        if array.dtype.kind != "f":
            gradients.append(None)
            continue
        found = np.zeros(array.shape)
        for place in np.ndindex(array.shape):
            before = array[place]
            array[place] = before + step
            above = total()
            array[place] = before - step
            found[place] = (above - total()) / (2 * step)
            array[place] = before
        gradients.append(found)
    return gradients


def _operands(operands: Sequence[Operand], low: float, high: float, seed: int) -> list[Array]:
    return [
        random_array(o, seed + 10 * i, low, high) if isinstance(o, tuple) else np.asarray(o)
        for i, o in enumerate(operands)
    ]


def _tolerance(dtype: str, rtol: float | None, atol: float | None) -> tuple[float, float]:
    default = TOLERANCE.get(dtype, (0.0, 0.0))
    return default[0] if rtol is None else rtol, default[1] if atol is None else atol


def _tensor(array: Array, dtype: str, grad: bool) -> Any:
    if array.dtype.kind != "f":
        return mygrad.Tensor(array)
    return mygrad.Tensor(array, dtype=dtype, requires_grad=grad)


def _backward(
    result: Any, weights: Array, tensors: Sequence[Any], dtype: str
) -> list[Array | None]:
    (result * mygrad.Tensor(weights, dtype=dtype)).sum().backward()
    return [None if t.grad is None else t.grad.numpy() for t in tensors]


def _compare_gradients(
    found: Sequence[Array | None],
    expected: Sequence[Array | None],
    rtol: float,
    atol: float,
    oracle: str,
) -> None:
    for i, (got, want) in enumerate(zip(found, expected, strict=True)):
        if want is None:
            continue
        # no gradient at all says the same as a gradient of zeros
        got = np.zeros_like(want) if got is None else got
        assert_close(got, want, rtol, atol, f"gradient of operand {i}, {oracle}")


def _torch_tensor(array: Array, dtype: str, grad: bool) -> Any:
    if array.dtype.kind != "f":
        return torch.tensor(array)
    return torch.tensor(array).to(getattr(torch, dtype)).requires_grad_(grad)


def _torch_numpy(tensor: Any) -> Array:
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()


# --- graph nodes ---------------------------------------------------------------------------------


def leaf(array: Any, dtype: DType | None = None) -> Node:
    """A BUFFER node that holds a copy of the array, on no real device; `value_of` can read it."""
    array = np.asarray(array)
    dtype = dtype or dt.parse(array.dtype)
    memory = Buffer("test", dtype, array.size)
    memory.memory = np.array(dt.to_storage(array, dtype)).reshape(-1)
    return graph.buffer(memory, array.shape)


def value_of(node: Node, **variables: int) -> Array:
    """The values of a graph over leaves, by the interpreter."""
    return interpret.evaluate(node, lambda memory: memory.memory, variables)


def check_vjp(
    build: Callable[..., Node],
    *arrays: Array,
    order: int = 2,
    step: float = 1e-5,
    rtol: float = 1e-5,
    atol: float = 1e-6,
) -> None:
    """Check derivatives of a graph in float64 against central differences, up to `order`.

    The derivative of order n + 1 is checked as the gradient of a random projection of the one of
    order n.
    """
    arrays = tuple(np.asarray(a, np.float64) if a.dtype.kind == "f" else a for a in arrays)
    leaves = [leaf(a) for a in arrays]
    floats = [x for x in leaves if x.dtype.is_float]
    current = build(*leaves)
    for n in range(order):
        weights = random_array(current.shape, 100 + n)
        found = gradient([current], [leaf(weights)], floats)
        expected = [
            g
            for g in numeric_gradient(_function(current, leaves), arrays, weights, step)
            if g is not None
        ]
        for x, got, want in zip(floats, found, expected, strict=True):
            value = np.zeros(x.shape) if got is None else value_of(got)
            assert got is None or (got.shape, got.dtype) == (x.shape, x.dtype)
            assert_close(value, want, rtol, atol, f"derivative {n + 1}")
        current = _project([g for g in found if g is not None], 200 + n)


def _function(node: Node, leaves: Sequence[Node]) -> Callable[..., Array]:
    def run(*values: Array) -> Array:
        held = {
            x.arg: np.ascontiguousarray(v).reshape(-1) for x, v in zip(leaves, values, strict=True)
        }
        return interpret.evaluate(node, lambda memory: held.get(memory, memory.memory))

    return run


def _project(nodes: Sequence[Node], seed: int) -> Node:
    """One number that every element of the nodes has a share in."""
    total = graph.const(0, dt.float64)
    for i, node in enumerate(nodes):
        weighted = graph.alu(Op.MUL, node, leaf(random_array(node.shape, seed + 10 * i)))
        total = graph.alu(Op.ADD, total, graph.reduce(Op.ADD, weighted, range(len(node.shape))))
    return total
