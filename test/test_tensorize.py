"""Sums of products by matrix units: statements against the meaning of kernels, and AMX against
NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import stmt_interpreter as interpreter
from llvmlite import binding

from mygrad import Tensor, codegen
from mygrad import dtype as dt
from mygrad.codegen import stmt
from mygrad.codegen.actions import Schedule, ScheduleError, Split, Tensorize, apply, start
from mygrad.codegen.tensorize import default_actions
from mygrad.config import context
from mygrad.expr import Expr, alu, axis, const, load, reduce
from mygrad.kernel import BufferInfo, Kernel, Store, verify
from mygrad.ops import Op
from mygrad.program import Target
from mygrad.runtime.cpu_target import host_target

UNITS = ("amx_bf16", "amx_int8")
TARGET = Target("llvm", "test", units=UNITS, vector_bytes=64, vector_registers=32)
DOT = Target("llvm", "test", units=("dot_bf16",), vector_bytes=64, vector_registers=32)
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


LAYOUTS = ("nn", "nt", "tn", "tt")


@pytest.mark.parametrize(
    ("shape", "layout", "target"),
    [
        *(((33, 65, 70), layout, TINY) for layout in LAYOUTS),
        *(((48, 64, 32), layout, TARGET) for layout in LAYOUTS),
        *(((47, 63, 60), layout, DOT) for layout in LAYOUTS),
        ((31, 33, 40), "nn", TARGET),
        ((100, 10, 70), "nt", TARGET),
        ((16, 257, 31), "tn", TARGET),
        ((33, 40, 700), "nn", TINY),
    ],
    ids=str,
)
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
    for shape in ((2, 33, 34, 700), (2, 65, 40, 64)):
        batch, m, n, k = shape
        kernel = matmul(m, n, k, batch)
        function = statements(kernel, TINY)
        arrays = arrays_of(kernel)
        x, y = (dt.from_storage(a, dt.bfloat16).astype(np.float64) for a in arrays[1:])
        interpreter.run(function, arrays)
        want = x.reshape(batch, m, k) @ y.reshape(batch, k, n)
        np.testing.assert_array_equal(arrays[0].reshape(batch, m, n), want)


def test_int8() -> None:
    kernel = matmul(33, 40, 70, kind=dt.int8)
    function = statements(kernel, TARGET)
    arrays = arrays_of(kernel)
    x, y = arrays[1].reshape(33, 70), arrays[2].reshape(70, 40)
    interpreter.run(function, arrays)
    np.testing.assert_array_equal(arrays[0].reshape(33, 40), x.astype(np.int64) @ y)


def test_what_is_not_for_the_unit() -> None:
    """Other types, vectors, sums that are too small, and machines without a unit."""
    assert not default_actions(matmul(64, 64, 64, kind=dt.bfloat16), Target("llvm", "test"))
    assert not default_actions(matmul(64, 64, 64, kind=dt.int16), TARGET)
    assert not default_actions(matmul(1, 512, 512), TARGET)
    assert not default_actions(matmul(16, 16, 16), TARGET)


@pytest.mark.parametrize("shape", [(47, 65, 90), (40, 32, 60), (100, 16, 700)], ids=str)
def test_dot_products(shape: tuple[int, int, int]) -> None:
    """The text has a product for each register of results and pair of the depth, in the order of
    the panels; LLVM accepts it. What it computes is tested where a processor has them."""
    kernel = matmul(*shape)
    program = codegen.compile(kernel, DOT)
    assert "dpbf16ps" in program.source
    assert "tdpbf16ps" not in program.source
    binding.parse_assembly(program.source).verify()
    assert "dpbf16ps" not in codegen.compile(matmul(8, 99, 64), DOT).source  # mostly zeros


# --- the cpu device, with a matrix unit or without ------------------------------------------------


@pytest.mark.parametrize("name", ["i1", "i3"])
def test_steps_of_a_product_are_inside_of_it(name: str) -> None:
    """Loops around it run over no part of them. (Found by the fuzzer: seed 101, case 1842.)"""
    kernel = matmul(33, 34, 70)
    parts = {"i1": ("i1",), "i2": ("i2",), "i3": ("i3",)}

    def scheduled(part: str) -> Schedule:
        rows, columns, depth = (parts | {name: (name + part,)}).values()
        return apply(start(kernel), (Split(name, 4), Tensorize(rows, columns, depth)))

    stmt.verify(codegen.lower(scheduled("i")))
    with pytest.raises(ScheduleError, match="parts of its steps"):
        codegen.lower(scheduled("o"))


def rounded(values: np.ndarray) -> np.ndarray:
    """The values as bfloat16 holds them."""
    return dt.from_storage(dt.to_storage(values, dt.bfloat16), dt.bfloat16)


def close(got: np.ndarray, x: np.ndarray, y: np.ndarray, out: float = 0.0) -> None:
    """Within what float32 sums of exact products may lose, and `out` for a rounded result."""
    want = x.astype(np.float64) @ y.astype(np.float64)
    terms = np.abs(x).astype(np.float64) @ np.abs(y)
    bound = terms * x.shape[-1] * 2.0**-24 + np.abs(want) * out + 1e-30
    assert (np.abs(got - want) <= bound).all()


@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(1, 65, 300), (7, 31, 257), (65, 65, 64), (257, 33, 129), (47, 16, 90), (100, 112, 700)],
)
def test_matmul_of_awkward_shapes(m: int, n: int, k: int) -> None:
    rng = np.random.default_rng(m)
    a, b = rng.standard_normal((m, k)), rng.standard_normal((n, k))
    a, b = a.astype(np.float32), b.astype(np.float32)
    x, w = Tensor(a).cast("bfloat16"), Tensor(b).cast("bfloat16")
    wide = (x.float() @ w.float().T).numpy()
    close(wide, rounded(a), rounded(b).T)
    with context(MYGRAD_CACHE="off"):
        narrow = (x @ w.T).realize()  # 65 columns: a last store of one lane
    close(narrow.float().numpy(), rounded(a), rounded(b).T, 2.0**-8)


def test_values_at_the_extremes() -> None:
    a, b = np.ones((40, 64), np.float32), np.ones((64, 40), np.float32)
    a[0, 0], a[1, 1], a[2, 2], b[3, 3] = np.nan, np.inf, 3e38, -np.inf
    with np.errstate(all="ignore"):
        want = rounded(a) @ rounded(b)
    got = (Tensor(a).cast("bfloat16").float() @ Tensor(b).cast("bfloat16").float()).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize(("stride", "padding", "size"), [(1, 1, 9), (2, 1, 16), (1, 0, 7)])
def test_convolution_and_its_gradients(stride: int, padding: int, size: int) -> None:
    """Operands are small integers, so that every sum is exact."""
    rng = np.random.default_rng(size)
    x = rng.integers(-3, 4, (3, 20, size, size)).astype(np.float32)
    w = rng.integers(-3, 4, (24, 20, 3, 3)).astype(np.float32) / 4
    results = []
    for kind in ("float32", "bfloat16"):
        a, b = (Tensor(values, dtype=kind, requires_grad=True).realize() for values in (x, w))
        y = a.float().conv2d(b.float(), stride=stride, padding=padding)
        (y * y.detach().sign()).sum().backward()
        results.append([t.float().numpy() for t in (y, a.grad, b.grad)])
    for exact, got in zip(*results, strict=True):
        np.testing.assert_array_equal(got, rounded(exact) if exact is not results[0][0] else exact)


def test_int8_on_the_device() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-128, 128, shape, dtype=np.int8) for shape in ((65, 300), (300, 47)))
    got = (Tensor(a).cast("int32") @ Tensor(b).cast("int32")).numpy()
    np.testing.assert_array_equal(got, a.astype(np.int64) @ b.astype(np.int64))


def test_the_setting_and_the_fallback() -> None:
    """Without the unit the target has none, and products are those of float32."""
    with context(MYGRAD_AMX=False):
        assert host_target("x", "+amx-tile,+amx-bf16,+avx512f", 1).units == ()
    assert host_target("x", "+amx-tile,+avx512f", 1).units == ()
    assert host_target("x", "+amx-bf16,+avx512f", 1).units == ()
    assert host_target("x", "+avx512bf16,+avx512f", 1).units == ("dot_bf16",)
    assert host_target("x", "+avx512bf16,+amx-bf16,+avx512f", 1).units == ()  # it is slow there
    with context(MYGRAD_AMX=False):
        assert host_target("x", "+avx512bf16,+avx512f", 1).units == ()
    kernel = matmul(33, 40, 70)
    function = codegen.lower(codegen.schedule(kernel, Target("llvm", "test", vector_bytes=64)))
    assert "product" not in stmt.text(function)
    arrays = arrays_of(kernel)
    x, y = (dt.from_storage(a, dt.bfloat16).astype(np.float64) for a in arrays[1:])
    interpreter.run(function, arrays)
    want = x.reshape(33, 70) @ y.reshape(70, 40)
    np.testing.assert_array_equal(arrays[0].reshape(33, 40), want)
