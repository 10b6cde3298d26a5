"""The scheduler: how many kernels, where values live, and that the result is the graph's."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import (
    array,
    buffer,
    conv,
    expand,
    full,
    index,
    layer_norm,
    matmul,
    pad,
    read,
    relu,
    reshape,
    row,
    softmax,
    sub,
    zeros,
)

from mygrad import Tensor, interpret, nn, realize
from mygrad import dtype as dt
from mygrad import graph as g
from mygrad.autograd.gradient import gradient
from mygrad.errors import ShapeError
from mygrad.graph import HostCall, Node
from mygrad.helpers import prod
from mygrad.kernel import Kernel
from mygrad.ops import Op
from mygrad.program import Buffer
from mygrad.schedule import memory
from mygrad.schedule.schedule import schedule
from mygrad.schedule.steps import key

X = buffer(64, 30)


def check(*roots: Node, kernels: int | None = None, atol: float = 1e-5) -> None:
    """The roots, computed together, equal the interpreter; and take so many steps."""
    plan = schedule(roots, "reference")
    if kernels is not None:
        assert len(plan.steps) == kernels, [s.reason for s in plan.steps]
    for root, result in zip(roots, realize.realize(roots), strict=True):
        expected = interpret.evaluate(root, read)
        np.testing.assert_allclose(realize.to_numpy(result), expected, rtol=1e-5, atol=atol)


CASES = {
    "elementwise": (1, lambda: [relu(g.alu(Op.ADD, buffer(5, 7), full(1, buffer(5, 7))))]),
    "softmax": (1, lambda: [softmax(buffer(64, 100))]),
    "softmax of few long rows": (3, lambda: [softmax(buffer(2, 40000))]),
    "layer norm": (1, lambda: [layer_norm(buffer(64, 100))]),
    "matmul with epilogue": (1, lambda: [relu(matmul(buffer(37, 20), buffer(20, 19)))]),
    "two matmuls": (
        2,
        lambda: [matmul(relu(matmul(buffer(37, 20), buffer(20, 19))), buffer(19, 8))],
    ),
    "two convolutions": (
        2,
        lambda: [conv(relu(conv(buffer(2, 3, 12, 12), buffer(4, 3, 3, 3))), buffer(5, 4, 3, 3))],
    ),
    "gather": (1, lambda: [g.gather(buffer(9, 6), index([3, 1, -1, 99], (9, 6)), 0)]),
    "scan with epilogue": (2, lambda: [relu(g.scan(Op.ADD, buffer(7, 11), 1))]),
    "sort": (3, lambda: [g.gather(buffer(7, 11), g.sort(relu(buffer(7, 11)), 1), 1)]),
    "sums over the same loops": (
        1,
        lambda: [g.reduce(Op.ADD, X, (0,)), g.reduce(Op.ADD, g.alu(Op.MUL, X, X), (0,))],
    ),
    "two results of one chain": (1, lambda: [relu(X), g.alu(Op.EXP, relu(X))]),
    "sum of a transposed": (
        1,
        lambda: [g.reduce(Op.ADD, g.move(Op.PERMUTE, buffer(4, 5, 6), (2, 0, 1)), (1,))],
    ),
    "reshape splits an axis": (
        1,
        lambda: [reshape(g.move(Op.PERMUTE, buffer(4, 6), (1, 0)), (2, 3, 4))],
    ),
    "empty": (1, lambda: [g.reduce(Op.ADD, buffer(0, 4), (0,)), buffer(0, 4)]),
    "a constant": (1, lambda: [g.const(2.5, dt.float32, (3, 4))]),
    "counting": (1, lambda: [g.cast(g.iota(10), dt.float32)]),
    "flip and pad": (1, lambda: [pad(g.move(Op.FLIP, buffer(4, 5), (1,)), (1, 0), (2, 3))]),
    "scatter": (
        2,
        lambda: [g.scatter(zeros(10, 6), index([3, 1, 3, 99], (10, 6)), buffer(4, 6), 0, "add")],
    ),
    "a contiguous in between": (2, lambda: [g.alu(Op.EXP, g.contiguous(relu(buffer(5, 5))))]),
}


@pytest.mark.parametrize("name", CASES)
def test_kernels(name: str) -> None:
    kernels, build = CASES[name]
    check(*build(), kernels=kernels)


def test_a_padded_operand_is_copied_once() -> None:
    x = pad(relu(conv(buffer(2, 3, 12, 12), buffer(4, 3, 3, 3))), (0, 0), (0, 0), (1, 1), (1, 1))
    root = conv(x, buffer(5, 4, 3, 3))
    plan = schedule([root], "reference")
    assert "zero-padded copy" in plan.steps[1].reason
    assert not [e for e in loads(plan.steps[2].what) if len(e.src) == 2]
    check(root, kernels=3)


def loads(kernel: object) -> list:
    assert isinstance(kernel, Kernel)
    return [e for s in kernel.stores for e in g_toposort(s.value) if e.op is Op.LOAD]


def g_toposort(value: object) -> list:
    from mygrad import expr  # noqa: PLC0415

    return expr.toposort([value])  # type: ignore[list-item]


def test_shared_work_is_kept_when_it_is_dear() -> None:
    x = g.alu(Op.EXP, g.alu(Op.SIN, buffer(300, 300)))
    transposed = g.move(Op.PERMUTE, x, (1, 0))
    check(g.reduce(Op.ADD, x, (1,)), matmul(transposed, buffer(300, 20)), kernels=3, atol=1e-4)


def test_every_kernel_has_a_reason_and_a_line() -> None:
    plan = schedule([softmax(conv(buffer(2, 3, 12, 12), buffer(4, 3, 3, 3)))], "reference")
    assert all(s.reason for s in plan.steps)
    assert all(s.location.file.endswith("graphs.py") for s in plan.steps)


def test_row_statistics_are_outputs_of_the_row_kernel() -> None:
    x = buffer(64, 100)
    largest = g.reduce(Op.MAX, x, (1,))
    result = sub(x, expand(reshape(largest, (64, 1)), (64, 100)))
    check(result, largest, kernels=1)


def test_no_circle_between_kernels() -> None:
    """a is read by b and, with b's total, by c: c must not compute a for b."""
    a = g.alu(Op.EXP, buffer(50, 50))
    total = expand(g.reduce(Op.ADD, a, (0, 1)), (50, 50))
    check(g.alu(Op.DIV, a, total), a)


def test_host_calls_and_stores() -> None:
    x = buffer(4, 5)
    call = HostCall(lambda v: v * 2, "double", (4, 5), dt.float32)
    check(relu(g.host(call, relu(x))), kernels=3)
    target = buffer(4, 5, seed=1)
    before = read(target.arg).copy()
    reader = g.alu(Op.EXP, target)
    stored, seen = realize.realize([g.store(target, relu(x)), reader])
    np.testing.assert_allclose(realize.to_numpy(seen).ravel(), np.exp(before), rtol=1e-5)
    assert stored.arg is target.arg
    np.testing.assert_array_equal(realize.to_numpy(target), np.maximum(array(4, 5), 0))


def test_a_long_chain_is_cut() -> None:
    x = buffer(16)
    for _ in range(2000):
        x = g.alu(Op.ADD, x, full(1, x))
    plan = schedule([x], "reference")
    assert 4 <= len(plan.steps) <= 20
    assert "operations in one expression" in plan.steps[0].reason


@pytest.mark.parametrize("depth", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_deep_graphs_need_no_stack(depth: int) -> None:
    x = buffer(4)
    for i in range(depth):
        x = g.alu(Op.NEG, x) if i % 2 else g.alu(Op.TRUNC, x)
    assert len(schedule([x], "reference").steps) >= 1


def test_key_abstracts_buffers_and_marks() -> None:
    a, b = (softmax(buffer(4, 5, seed=s)) for s in (1, 2))
    assert key([a])[0] == key([b])[0]
    assert key([a])[0] != key([softmax(buffer(5, 4))])[0]
    assert key([g.detach(relu(a), 1)])[0] == key([relu(a)])[0]
    assert key([g.const(0.0, dt.float32)])[0] != key([g.const(-0.0, dt.float32)])[0]


def test_memory_is_reused() -> None:
    x = buffer(1000)
    for _ in range(10):
        x = g.contiguous(g.alu(Op.EXP, x))
    plan = schedule([x], "reference")
    assert len(plan.steps) == 10
    assert sum(plan.arena_bytes.values()) == 2 * 4096


def test_place_never_overlaps() -> None:
    rng = np.random.default_rng(0)
    needs = [
        memory.Lifetime(int(rng.integers(1, 5000)), int(f), int(f + rng.integers(0, 9)))
        for f in rng.integers(0, 40, 200)
    ]
    offsets, size = memory.place(needs)
    for i, a in enumerate(needs):
        assert offsets[i] + a.nbytes <= size
        for j, b in enumerate(needs[:i]):
            if a.first <= b.last and b.first <= a.last:
                assert offsets[i] + a.nbytes <= offsets[j] or offsets[j] + b.nbytes <= offsets[i]


def test_a_sum_to_a_scalar_is_shared_among_threads() -> None:
    x = buffer(300, 700)
    plan = schedule([g.reduce(Op.ADD, x, (0, 1))], "reference")
    assert len(plan.steps) == 2
    assert "partial sums" in plan.steps[0].reason
    check(g.reduce(Op.ADD, x, (0, 1)), kernels=2, atol=1e-2)


@pytest.mark.parametrize(
    ("shape", "axis", "kernels"),
    [((1 << 18,), 0, 3), ((2, 1 << 18), 1, 3), ((1 << 18, 3), 0, 3), ((262147,), 0, 1)],
)
def test_a_long_scan_is_shared_among_threads(
    shape: tuple[int, ...], axis: int, kernels: int
) -> None:
    """A prime length has no blocks."""
    x = buffer(*shape)
    check(g.scan(Op.ADD, x, axis), kernels=kernels, atol=2e-2)
    check(g.scan(Op.MAX, x, axis), kernels=kernels)
    whole = g.cast(g.alu(Op.MUL, x, g.const(100.0, dt.float32, shape)), dt.int64)
    total = g.scan(Op.ADD, whole, axis)
    check(g.move(Op.RESHAPE, g.alu(Op.ADD, total, total), (x.size,)))


def test_a_long_sum_with_reuse_goes_in_blocks() -> None:
    """The weight gradient of a convolution: many results, each over all of two large arrays."""
    x, w = buffer(32, 8, 40, 40), buffer(16, 8, 3, 3)
    loss = g.reduce(Op.ADD, conv(x, w), (0, 1, 2, 3))
    (grad,) = gradient([loss], [buffer()], [w])
    assert grad is not None
    check(grad, atol=1e-1)
    y = buffer(32, 16, 38, 38)
    (grad,) = gradient([conv(x, w)], [y], [w])
    assert grad is not None
    plan = schedule([grad], "reference")
    assert [len(plan.steps), "partial sums" in plan.steps[0].reason] == [2, True]
    check(grad, atol=1e-2)


def test_a_long_sum_whose_axes_are_one_is_kept_whole() -> None:
    """The weight gradient of rows in batches: one product over all rows. Where the axes of the sum
    lie in another order in one operand, there are partial sums."""
    shape = (8, 64, 96, 512)

    def summed(x: Node, order: tuple[int, ...]) -> Node:
        left = expand(reshape(g.move(Op.PERMUTE, x, order), (8, 64, 96, 1)), shape)
        right = expand(reshape(buffer(8, 64, 512), (8, 64, 1, 512)), shape)
        total = g.reduce(Op.ADD, g.alu(Op.MUL, left, right), (0, 1))
        return g.alu(Op.ADD, total, full(1.0, total))

    whole = summed(buffer(8, 64, 96), (0, 1, 2))
    check(whole, kernels=2, atol=1e-2)
    assert "divides" in schedule([whole], "reference").steps[0].reason
    parts = summed(buffer(64, 8, 96), (1, 0, 2))
    check(parts, kernels=2, atol=1e-2)
    assert "partial sums" in schedule([parts], "reference").steps[0].reason


def test_row_reduction_of_rows() -> None:
    x = buffer(40, 30)
    check(g.alu(Op.MUL, row(Op.ADD, x), row(Op.MAX, softmax(x))))


def count(*tensors: Tensor) -> int:
    return len(schedule([t.node for t in tensors], "reference").steps)


def random(*shape: int, requires_grad: bool = False) -> Tensor:
    return Tensor(array(*shape), requires_grad=requires_grad)


def test_softmax_and_its_gradient_are_a_kernel_each() -> None:
    x, g = random(64, 100, requires_grad=True), random(64, 100)
    y = x.softmax(-1)
    assert count(y) == 1
    y.backward(g)
    assert count(x.grad) == 1


def test_log_softmax_and_its_gradient_are_a_kernel_each() -> None:
    x = random(64, 100, requires_grad=True)
    y = x.log_softmax(-1)
    assert count(y) == 1
    y.backward(random(64, 100))
    assert count(x.grad) == 1


def test_rms_norm_is_one_kernel_and_its_gradients_two() -> None:
    norm, x = nn.RMSNorm(100), random(64, 100, requires_grad=True)
    y = norm(x)
    assert count(y) == 1
    y.backward(random(64, 100))
    assert count(x.grad) == 1
    assert count(x.grad, norm.weight.grad) == 2


def test_layer_norm_is_one_kernel_and_its_gradients_two() -> None:
    norm, x = nn.LayerNorm(100), random(64, 100, requires_grad=True)
    y = norm(x)
    assert count(y) == 1
    y.backward(random(64, 100))
    assert count(x.grad, norm.weight.grad, norm.bias.grad) == 2


def test_cross_entropy_with_its_gradient_is_two_kernels() -> None:
    x = random(64, 100, requires_grad=True)
    loss = x.cross_entropy(Tensor(np.arange(64) % 100))
    loss.backward()
    assert count(loss, x.grad) == 2


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_cross_entropy_of_many_classes_stores_nothing_but_its_gradient(device: str) -> None:
    rows, classes = 4096, 32_000
    x, y = (
        Tensor._wrap(g.buffer(Buffer(device, dtype, prod(shape)), shape))  # without memory
        for dtype, shape in ((dt.float32, (rows, classes)), (dt.int64, (rows,)))
    )
    loss = x.requires_grad_().cross_entropy(y)
    loss.backward()
    plan = schedule([loss.node, x.grad.node], device)
    assert len(plan.steps) == 2
    assert plan.peak_bytes < x.nbytes + 16 * rows


def test_a_variable_is_bound_at_the_run() -> None:
    n = g.variable("n", 1, 9)
    x = g.alu(Op.MUL, buffer(7), expand(g.cast(n, dt.float32), (7,)))
    for value in (2, 5):
        (result,) = realize.realize([x], {"n": value})
        np.testing.assert_allclose(realize.to_numpy(result), array(7) * value)
    with pytest.raises(ShapeError, match="variable n: got no value"):
        realize.realize([x])
    with pytest.raises(ShapeError, match="variable n: got 10, expected 1 <= n <= 9"):
        realize.realize([x], {"n": 10})


def test_arena_never_holds_two_things_at_once() -> None:
    rng = np.random.default_rng(0)
    for count in (0, 1, 2, 40):
        ends = rng.integers(0, 20, (count, 2))
        needs = [
            memory.Lifetime(int(rng.choice([1, 256, 300, 5000])), int(min(e)), int(max(e)))
            for e in ends
        ]
        offsets, total = memory.place(needs)
        spans = [(o, o + n.nbytes, n) for o, n in zip(offsets, needs, strict=True)]
        for i, (start, stop, a) in enumerate(spans):
            assert start % memory.ALIGNMENT == 0
            assert stop <= total
            for other, end, b in spans[:i]:
                together = a.first <= b.last and b.first <= a.last
                assert not together or stop <= other or end <= start
