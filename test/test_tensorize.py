"""Sums of products by matrix units: statements against the meaning of kernels, and AMX against
NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import stmt_interpreter as interpreter

from mygrad import codegen
from mygrad import dtype as dt
from mygrad.codegen import stmt
from mygrad.codegen.tensorize import default_actions
from mygrad.expr import Expr, alu, axis, const, load, reduce
from mygrad.kernel import BufferInfo, Kernel, Store, verify
from mygrad.ops import Op
from mygrad.program import Target

UNITS = ("amx_bf16", "amx_int8")
TARGET = Target("llvm", "test", units=UNITS, vector_bytes=64, vector_registers=32)
# so small that there are blocks of everything
TINY = Target("llvm", "test", units=UNITS, vector_bytes=64, l2_bytes=32 << 10, threads=2)


def wide(e: Expr) -> Expr:
    return alu(Op.CAST, e, dtype=dt.float32 if e.dtype is dt.bfloat16 else dt.int32)


def matmul(
    m: int, n: int, k: int, batch: int = 1, layout: str = "nn", kind: dt.DType = dt.bfloat16
) -> Kernel:
    """(batch, m, k) times (batch, k, n), either stored transposed."""
    b, i, j, d = (axis(number, extent) for number, extent in enumerate((batch, m, n, k)))
    b = b if batch > 1 else const(0)
    left = i * k + d if layout[0] == "n" else d * m + i
    right = d * n + j if layout[1] == "n" else j * k + d
    x = load(1, kind, b * (m * k) + left)
    y = load(2, kind, b * (k * n) + right)
    total = reduce(Op.ADD, wide(x) * wide(y), (d,))
    axes = tuple(a for a in (b, i, j) if a.op is Op.AXIS)
    return Kernel(
        "matmul",
        axes,
        (Store(0, b * (m * n) + i * n + j, total),),
        (
            BufferInfo(total.dtype, batch * m * n, True),
            BufferInfo(kind, batch * m * k),
            BufferInfo(kind, batch * k * n),
        ),
    )


def arrays_of(kernel: Kernel, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    made = []
    for info in kernel.buffers:
        values = rng.integers(-9, 10, info.size)
        made.append(dt.to_storage(values / (8 if info.dtype.is_float else 1), info.dtype))
    return made


def statements(kernel: Kernel, target: Target) -> stmt.Function:
    verify(kernel)
    actions = default_actions(kernel, target)
    assert actions, "the kernel is not given to the unit"
    function = codegen.lower(codegen.schedule(kernel, target, actions))
    stmt.verify(function)
    assert "product" in stmt.text(function)
    return function


SHAPES = [(32, 32, 32), (64, 48, 96), (31, 33, 40), (100, 10, 70), (16, 257, 31), (33, 65, 700)]


@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("target", [TARGET, TINY], ids=["large", "tiny"])
def test_statements_of_a_matmul(shape: tuple[int, int, int], layout: str, target: Target) -> None:
    m, n, k = shape
    kernel = matmul(m, n, k, layout=layout)
    function = statements(kernel, target)
    arrays = arrays_of(kernel)
    x, y = (dt.from_storage(a, dt.bfloat16).astype(np.float64) for a in arrays[1:])
    x = x.reshape(m, k) if layout[0] == "n" else x.reshape(k, m).T
    y = y.reshape(k, n) if layout[1] == "n" else y.reshape(n, k).T
    interpreter.run(function, arrays)
    np.testing.assert_array_equal(arrays[0].reshape(m, n), x @ y)  # all sums are exact


def test_blocks_of_everything() -> None:
    """Panels of rows, columns and depth, and batches, on small caches."""
    for shape in ((3, 40, 33, 1400), (2, 65, 70, 96)):
        batch, m, n, k = shape
        kernel = matmul(m, n, k, batch)
        function = statements(kernel, TINY)
        arrays = arrays_of(kernel)
        x, y = (dt.from_storage(a, dt.bfloat16).astype(np.float64) for a in arrays[1:])
        interpreter.run(function, arrays)
        want = x.reshape(batch, m, k) @ y.reshape(batch, k, n)
        np.testing.assert_array_equal(arrays[0].reshape(batch, m, n), want)


def test_int8() -> None:
    kernel = matmul(33, 40, 130, kind=dt.int8)
    function = statements(kernel, TARGET)
    arrays = arrays_of(kernel)
    x, y = arrays[1].reshape(33, 130), arrays[2].reshape(130, 40)
    interpreter.run(function, arrays)
    np.testing.assert_array_equal(arrays[0].reshape(33, 40), x.astype(np.int64) @ y)
