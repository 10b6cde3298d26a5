"""Register tiles: which copies of an axis share enough to pay."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mygrad.codegen.actions import Split, Stage, Stream, Vectorize, apply, start
from mygrad.codegen.analysis import Plan, default_actions
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


def transposed(rows: int, columns: int, *, beside: bool = False) -> Kernel:
    """b1[i, j] = b0[j, i], plus b2[i, j] if asked for."""
    i, j = axis(0, rows), axis(1, columns)
    place, size = i * columns + j, rows * columns
    value = load(0, float32, j * rows + i)
    if beside:
        value = alu(Op.ADD, value, load(2, float32, place))
    buffers = [BufferInfo(float32, size), BufferInfo(float32, size, True)]
    buffers += [BufferInfo(float32, size)] * beside
    return Kernel("k", (i, j), (Store(1, place, value),), tuple(buffers))


@pytest.mark.parametrize("beside", [False, True])
def test_what_lanes_read_apart_is_turned_in_squares(beside: bool) -> None:
    """Also beside an operand that lies as the result does, and where the last square is ragged."""
    actions = default_actions(transposed(100, 40, beside=beside), TARGET)
    assert {a.axis: a.factor for a in actions if isinstance(a, Split)} == {"i0": 16, "i1": 16}
    assert Vectorize("i1i") in actions
    (copy,) = (a for a in actions if isinstance(a, Stage))
    assert (copy.slot, copy.layout, copy.transposed) == (0, ("i0i", "i1i"), True)


def test_squares_go_past_the_caches_as_whole_lines() -> None:
    large = transposed(4096, 4096)
    assert any(isinstance(a, Stream) for a in default_actions(large, TARGET))
    narrow = replace(TARGET, vector_bytes=32)  # rows of squares are halves of lines
    assert not any(isinstance(a, Stream) for a in default_actions(large, narrow))


def test_a_few_rows_are_no_square() -> None:
    """Fewer rows than lanes are read as they lie."""
    assert not [a for a in default_actions(transposed(9, 4096), TARGET) if isinstance(a, Stage)]


def product(m: int, n: int, k: int) -> Kernel:
    i, j, r = axis(0, m), axis(1, n), axis(2, k)
    body = summed(load(0, float32, i * k + r), load(1, float32, r * n + j))
    infos = (
        BufferInfo(float32, m * k),
        BufferInfo(float32, k * n),
        BufferInfo(float32, m * n, True),
    )
    return Kernel("k", (i, j), (Store(2, i * n + j, reduce(Op.ADD, body, (r,))),), infos)


@pytest.mark.parametrize(("l1", "most"), [(32 << 10, 10), (48 << 10, 14)])
def test_rows_that_fall_on_each_other_are_as_many_as_have_a_place(l1: int, most: int) -> None:
    """A way of the first cache for each, and two more, which do no harm."""
    tile = Plan(product(1024, 1024, 1024), replace(TARGET, l1_bytes=l1)).tile
    assert 4 <= tile.copies[axis(0, 1024)] <= most
    assert (
        Plan(product(512, 512, 512), replace(TARGET, l1_bytes=l1)).tile.copies[axis(0, 512)] == 14
    )


def rows_times_vector(m: int, n: int) -> Kernel:
    i, r = axis(0, m), axis(1, n)
    body = summed(load(0, float32, i * n + r), load(1, float32, r))
    infos = (BufferInfo(float32, m * n), BufferInfo(float32, n), BufferInfo(float32, m, True))
    return Kernel("k", (i,), (Store(2, i, reduce(Op.ADD, body, (r,))),), infos)


def test_rows_in_memory_are_read_as_the_target_fetches_ahead() -> None:
    """One by one, or several together; what a cache holds is read several rows at a time."""
    one = replace(TARGET, streams=1)
    i = axis(0, 8192)
    assert Plan(rows_times_vector(8192, 768), TARGET).tile.copies.get(i, 1) > 1
    assert Plan(rows_times_vector(8192, 768), one).tile.copies.get(i, 1) == 1
    assert Plan(rows_times_vector(128, 768), one).tile.copies.get(axis(0, 128), 1) > 1


def sum_of_rows(m: int, n: int) -> Kernel:
    j, r = axis(0, n), axis(1, m)
    store = Store(1, j, reduce(Op.ADD, load(0, float32, r * n + j), (r,)))
    return Kernel("k", (j,), (store,), (BufferInfo(float32, m * n), BufferInfo(float32, n, True)))


def test_rows_in_memory_are_summed_from_one_end_to_the_other() -> None:
    """All sums of a row in registers; or strips of 16 rows, whose sums wait in the result."""
    assert Plan(sum_of_rows(16384, 384), TARGET).tile.copies == {axis(0, 384): 24}
    wide = default_actions(sum_of_rows(16384, 1536), TARGET)
    assert Split("i1", 16) in wide
    near = default_actions(sum_of_rows(600, 512), TARGET)  # a cache holds it
    assert Split("i1", 16) not in near
