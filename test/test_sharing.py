"""Kernels that differ only in where they read: one kernel, the same values."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import array, buffer, read

from mygrad import Tensor, interpret, jit, realize
from mygrad import graph as g
from mygrad.errors import ShapeError
from mygrad.graph import Node
from mygrad.kernel import Kernel, verify
from mygrad.ops import Op
from mygrad.schedule.schedule import schedule


def part(x: Node, start: int, length: int) -> Node:
    return g.move(Op.SHRINK, x, ((start, start + length),))


def scaled(x: Node, y: Node, place: int) -> Node:
    """x times the element of y at a place."""
    one = g.move(Op.EXPAND, part(y, place, 1), x.shape)
    return g.alu(Op.MUL, x, one)


def kernels_of(roots: list[Node]) -> list[Kernel]:
    found = {s.what for s in schedule(roots, "cpu").steps if isinstance(s.what, Kernel)}
    for kernel in found:
        verify(kernel)
    return list(found)


def check(roots: list[Node]) -> None:
    for root, result in zip(roots, realize.realize(roots), strict=True):
        np.testing.assert_array_equal(realize.to_numpy(result), interpret.evaluate(root, read))


@pytest.mark.parametrize("device", ["cpu", "reference"])
@pytest.mark.parametrize("places", [(0, 3, 7), (4, 3, 2, 1, 8), (0, 0, 5, 6)])
def test_one_kernel_for_several_places(places: tuple[int, ...], device: str) -> None:
    y = buffer(9, device=device)
    roots = [scaled(buffer(6 + 0 * i, device=device, seed=i), y, p) for i, p in enumerate(places)]
    (kernel,) = kernels_of(roots)
    assert kernel.params == (("place1", min(places), max(places)),)
    constants = [s.constants for s in schedule(roots, "cpu").steps]
    assert constants == [(("place1", p),) for p in places]
    check(roots)


def test_two_places_of_one_array_move_together() -> None:
    y, x = buffer(30), [buffer(4, seed=i) for i in range(4)]
    roots = [
        g.alu(Op.ADD, g.alu(Op.MUL, v, part(y, 5 * i, 4)), part(y, 5 * i + 3, 4))
        for i, v in enumerate(x)
    ]
    assert len(kernels_of(roots)) == 1
    check(roots)


def test_places_of_two_arrays_that_move_apart() -> None:
    y, z, x = buffer(9), buffer(9, seed=7), [buffer(5, seed=i) for i in range(3)]
    roots = [scaled(scaled(v, y, i), z, 8 - 2 * i) for i, v in enumerate(x)]
    (kernel,) = kernels_of(roots)
    assert len(kernel.params) == 2
    check(roots)


def test_a_place_that_all_share_stays_a_constant() -> None:
    y, z, x = buffer(9), buffer(9, seed=7), [buffer(5, seed=i) for i in range(3)]
    roots = [scaled(scaled(v, y, i), z, 4) for i, v in enumerate(x)]
    (kernel,) = kernels_of(roots)
    assert len(kernel.params) == 1
    check(roots)


def test_few_kernels_stay_as_they_are() -> None:
    y = buffer(9)
    roots = [scaled(buffer(6, seed=i), y, i) for i in range(2)]
    assert [k.params for k in kernels_of(roots)] == [(), ()]
    check(roots)


def test_different_work_is_not_shared() -> None:
    y = buffer(20)
    roots = [
        g.alu(Op.ADD, scaled(buffer(6, seed=i), y, i), scaled(buffer(6), y, 3 * i))
        for i in range(4)
    ]
    check(roots)  # in each, two reads of y whose distance differs
    assert len(kernels_of(roots)) > 1


def test_a_table_looked_up_at_a_place() -> None:
    """The place is inside of the index of another load."""
    table, index = buffer(10), realize.from_numpy(np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3]))
    roots = [g.gather(table, part(index, i, 3), 0) for i in range(6)]
    assert len(kernels_of(roots)) == 1
    check(roots)


def test_variables_of_the_user_beside_places() -> None:
    n = g.variable("n", 0, 9)
    y = buffer(9)
    roots = []
    for i in range(3):
        x = scaled(buffer(6, seed=i), y, i)
        roots.append(
            g.alu(Op.MUL, x, g.move(Op.EXPAND, g.move(Op.RESHAPE, g.cast(n, x.dtype), (1,)), (6,)))
        )
    for value in (2, 5):
        for i, result in enumerate(realize.realize(roots, {"n": value})):
            np.testing.assert_allclose(
                realize.to_numpy(result), array(6, seed=i) * array(9)[i] * value, rtol=1e-6
            )
    with pytest.raises(ShapeError, match="variable n"):
        realize.realize(roots, {"n": 10})


def test_a_loop_over_time_is_one_kernel() -> None:
    @jit
    def run(x: Tensor, w: Tensor) -> Tensor:
        h = Tensor.zeros(4, 8)
        for t in range(10):
            h = (x[t] + h @ w).tanh()
        return h

    x, w = Tensor(array(10, 4, 8)), Tensor(array(8, 8, seed=1))
    h = np.zeros((4, 8), np.float32)
    for t in range(10):
        h = np.tanh(x.numpy()[t] + h @ w.numpy())
    np.testing.assert_allclose(run(x, w).numpy(), h, rtol=1e-5, atol=1e-6)
    (captured,) = next(iter(run.captured.values()))
    launches = [one for p in captured.prepared.outline.parts for one in p.launches]  # type: ignore[union-attr]
    assert len(launches) == 10
    assert len({one.name for one in launches}) <= 3  # the first step has no h yet
