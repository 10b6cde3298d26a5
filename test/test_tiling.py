"""Register tiles: which copies of an axis share enough to pay."""

from __future__ import annotations

from mygrad.codegen.actions import apply, start
from mygrad.codegen.analysis import Plan
from mygrad.dtype import float32
from mygrad.expr import Expr, alu, axis, load, reduce
from mygrad.kernel import BufferInfo, Kernel, Store
from mygrad.ops import Op
from mygrad.program import Target

TARGET = Target("llvm", "test", vector_bytes=64, vector_registers=32, l2_bytes=2 << 20)
N, J, K, R = axis(0, 32), axis(1, 8), axis(2, 4), axis(3, 1024)


def summed(*factors: Expr) -> Expr:
    value = factors[0]
    for f in factors[1:]:
        value = alu(Op.MUL, value, f)
    return value


def copies(axes: tuple[Expr, ...], *stores: Store, sizes: tuple[int, ...]) -> dict[Expr, int]:
    """The copies of each axis that the default schedule makes."""
    buffers = tuple(
        BufferInfo(float32, n, any(s.slot == slot for s in stores)) for slot, n in enumerate(sizes)
    )
    return Plan(Kernel("k", axes, stores, buffers), TARGET).tile.copies


def test_rows_that_share_scalars_only_are_taken_one_at_a_time() -> None:
    """A norm with a gain for each channel: the gain waits in a register, and several rows would be
    as many streams, far apart."""
    row = N * 32768 + J * 4096 + K * 1024 + R
    body = summed(load(0, float32, row), load(1, float32, row), load(2, float32, J * 4 + K))
    store = Store(3, N * 8 + J, reduce(Op.ADD, body, (K, R)))
    found = copies((N, J), store, sizes=(1 << 20, 1 << 20, 32, 256))
    assert found.get(N, 1) == found.get(J, 1) == 1
    assert found[R] > 1  # the latency is hidden along the row


def test_rows_that_share_vectors_are_taken_together() -> None:
    """A product of rows with rows: each vector that is loaded meets several."""
    a, b = load(0, float32, N * 1024 + R), load(1, float32, J * 1024 + R)
    store = Store(2, N * 8 + J, reduce(Op.ADD, summed(a, b), (R,)))
    found = copies((N, J), store, sizes=(1 << 15, 1 << 13, 256))
    assert found[N] * found[J] >= 8


def test_the_largest_steps_decide_the_order_of_reductions() -> None:
    """A sum over images and places of two large arrays and a small one, in which the image is the
    nearer step: the places are still the inner loop."""
    place = N * 32768 + K * 1024 + R
    body = summed(load(0, float32, place), load(1, float32, place), load(2, float32, N * 8))
    store = Store(3, K, reduce(Op.ADD, body, (N, R)))
    buffers = tuple(BufferInfo(float32, n, n == 4) for n in (1 << 20, 1 << 20, 256, 4))
    kernel = Kernel("k", (K,), (store,), buffers)
    scheduled = apply(start(kernel), Plan(kernel, TARGET).actions())
    order = [p.root for p in scheduled.loops]
    assert order.index(N) < order.index(R)
