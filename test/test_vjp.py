"""Derivatives of every primitive: against central differences in float64, and against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from checks import assert_close, awkward_shapes, check_vjp, leaf, random_array, value_of
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import needs_torch, torch

from mygrad import dtype as dt
from mygrad import graph, ops, realize
from mygrad.autograd.gradient import gradient
from mygrad.autograd.vjp import NOT_DIFFERENTIABLE, VJP
from mygrad.errors import GradientError
from mygrad.graph import HostCall, Node
from mygrad.helpers import UNKNOWN
from mygrad.ops import Op


def test_every_primitive_has_a_row_or_is_listed():
    listed = set(VJP) | set(NOT_DIFFERENTIABLE) | {Op.HOST}
    assert listed == set(ops.GRAPH)
    assert not set(VJP) & set(NOT_DIFFERENTIABLE)
    for op, row in VJP.items():
        arity = {**ops.ARITY, Op.GATHER: 2, Op.SCATTER: 3, Op.STORE: 2}.get(op, 1)
        assert len(row) == arity, op


# --- alu -----------------------------------------------------------------------------------------

UNARY = {Op.NEG: (-2, 2), Op.SQRT: (0.3, 3), Op.EXP: (-2, 2), Op.LOG: (0.3, 3), Op.SIN: (-9, 9)}


@pytest.mark.parametrize("op", UNARY)
@pytest.mark.parametrize("shape", awkward_shapes())
def test_unary(op, shape):
    check_vjp(lambda x: graph.alu(op, x), random_array(shape, 0, *UNARY[op]), order=3)


@pytest.mark.parametrize("op", [Op.ADD, Op.MUL, Op.DIV, Op.MAX])
@pytest.mark.parametrize("shape", awkward_shapes())
def test_binary(op, shape):
    check_vjp(
        lambda x, y: graph.alu(op, x, y), random_array(shape, 0), random_array(shape, 1, 0.5, 2)
    )


@pytest.mark.parametrize("op", [Op.ADD, Op.MUL, Op.DIV])
def test_both_operands_are_the_same_node(op):
    check_vjp(lambda x: graph.alu(op, x, x), random_array((7,), 0, 0.5, 2))


def test_cast_where_and_chains():
    condition = np.array([True, False, True, True, False])
    check_vjp(
        lambda c, x, y: graph.alu(Op.WHERE, c, graph.alu(Op.MUL, x, x), graph.alu(Op.SIN, y)),
        condition,
        random_array((5,)),
        random_array((5,), 1),
    )
    x = leaf(random_array((5,)), dt.float16)
    (g,) = gradient([graph.cast(x, dt.float32)], [graph.const(1.5, dt.float32, (5,))], [x])
    assert g.dtype is dt.float16
    np.testing.assert_array_equal(value_of(g), np.full(5, 1.5))


def test_sine_of_large_numbers_keeps_its_digits():
    values = np.array([1e3, -1e4, 12345.678, 1e5], np.float32)
    x = leaf(values)
    (g,) = gradient([graph.alu(Op.SIN, x)], [graph.const(1, dt.float32, (4,))], [x])
    np.testing.assert_allclose(value_of(g), np.cos(values.astype(np.float64)), atol=5e-7)


def test_maximum_shares_ties_and_relu_does_not():
    values = np.array([-1.0, -0.0, 0.0, 2.0, 3.0])
    x, y = leaf(values), leaf(np.array([-1.0, 0.0, 1.0, 1.0, 4.0]))
    ones = graph.const(1, dt.float64, (5,))
    gx, gy = gradient([graph.alu(Op.MAX, x, y)], [ones], [x, y])
    np.testing.assert_array_equal(value_of(gx), [0.5, 0.5, 0, 1, 0])
    np.testing.assert_array_equal(value_of(gy), [0.5, 0.5, 1, 0, 1])
    zero = graph.const(0, dt.float64, (5,))
    for operands in ((x, zero), (zero, x)):
        (g,) = gradient([graph.alu(Op.MAX, *operands)], [ones], [x])
        np.testing.assert_array_equal(value_of(g), [0, 0, 0, 1, 1])


def test_relu_keeps_only_its_output():
    x = leaf(random_array((5,)))
    before = graph.alu(Op.MUL, x, x)
    out = graph.alu(Op.MAX, before, graph.move(Op.EXPAND, graph.const(0.5, dt.float64), (5,)))
    seed = leaf(np.ones(5))
    (g,) = gradient([out], [seed], [before])
    # `out` is kept for the mask; the graph reaches `before` through it alone
    (mask,) = (n for n in graph.toposort([g]) if n.op is Op.LT)
    assert mask.src[1] is out
    assert before not in g.src


# --- combine -------------------------------------------------------------------------------------

REDUCTIONS = [
    ((7,), (0,)),
    ((1,), (0,)),
    ((3, 5), (1,)),
    ((3, 5), (0,)),
    ((2, 3, 4), (0, 2)),
    ((2, 3, 2), (0, 1, 2)),
    ((3, 1, 2), (1,)),
    ((0,), (0,)),
    ((0, 3), (0,)),
    ((3, 0), (0,)),
    ((1, 1), (0, 1)),
]


@pytest.mark.parametrize(("shape", "axes"), REDUCTIONS)
@pytest.mark.parametrize("op", [Op.ADD, Op.MUL, Op.MAX])
def test_reduce(op, shape, axes):
    if op is Op.MAX and 0 in shape:  # -inf has no differences
        x = leaf(random_array(shape))
        node = graph.reduce(op, x, axes)
        (g,) = gradient([node], [graph.const(1, dt.float64, node.shape)], [x])
        assert value_of(g).shape == shape
        return
    check_vjp(lambda x: graph.reduce(op, x, axes), random_array(shape))


@pytest.mark.parametrize("zeros", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "build",
    [lambda x: graph.reduce(Op.MUL, x, (0,)), lambda x: graph.scan(Op.MUL, x, 0)],
    ids=["prod", "cumprod"],
)
def test_products_with_zeros(build, zeros):
    values = random_array((5, 2), 3)
    values[[1, 3, 4][:zeros], 0] = 0
    check_vjp(build, values, order=3, step=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (8,), (9,), (3, 5), (2, 1, 3), (0,), (0, 2)])
@pytest.mark.parametrize("op", [Op.ADD, Op.MUL, Op.MAX])
def test_scan(op, shape):
    for axis in range(len(shape)):
        check_vjp(lambda x, axis=axis: graph.scan(op, x, axis), random_array(shape))


def test_gradients_of_products_do_not_divide_by_what_underflows():
    values = np.array([1e-200, 1e-200, 1e150, 1e150, 5.0])
    x = leaf(values)
    (g,) = gradient([graph.reduce(Op.MUL, x, (0,))], [None], [x])
    assert value_of(graph.reduce(Op.MUL, graph.move(Op.SHRINK, x, ((0, 2),)), (0,))) == 0
    np.testing.assert_allclose(value_of(g)[:2], 5e100)


def test_maximum_of_equal_elements_is_shared():
    values = np.array([[1.0, 3, 3], [2, 2, 2], [0, 5, 1]])
    x = leaf(values)
    (g,) = gradient([graph.reduce(Op.MAX, x, (1,))], [leaf(np.array([1.0, 6, 1]))], [x])
    np.testing.assert_allclose(value_of(g), [[0, 0.5, 0.5], [2, 2, 2], [0, 1, 0]])


# --- movement ------------------------------------------------------------------------------------

MOVES = [
    (Op.RESHAPE, (2, 6), (3, 4)),
    (Op.RESHAPE, (2, 3), (6,)),
    (Op.RESHAPE, (), (1, 1)),
    (Op.RESHAPE, (0, 3), (3, 0, 2)),
    (Op.PERMUTE, (2, 3, 4), (2, 0, 1)),
    (Op.PERMUTE, (2, 0, 3), (1, 2, 0)),
    (Op.EXPAND, (1, 3), (4, 3)),
    (Op.EXPAND, (3, 1), (2, 3, 5)),
    (Op.EXPAND, (), (3,)),
    (Op.EXPAND, (1,), (0,)),
    (Op.PAD, (2, 3), ((1, 2), (0, 1))),
    (Op.PAD, (0,), ((2, 1),)),
    (Op.SHRINK, (5, 4), ((1, 4), (0, 2))),
    (Op.SHRINK, (3,), ((1, 1),)),
    (Op.FLIP, (3, 4), (1,)),
    (Op.FLIP, (3, 4), (0, 1)),
    (Op.WINDOW, (7,), (0, 3, 1, 1)),
    (Op.WINDOW, (2, 8, 2), (1, 3, 2, 1)),
    (Op.WINDOW, (9,), (0, 2, 3, 4)),
    (Op.WINDOW, (5,), (0, 1, 2, 1)),
    (Op.WINDOW, (5,), (0, 5, 1, 1)),
    (Op.UNWINDOW, (5, 3), (0, 7, 1, 1)),
    (Op.UNWINDOW, (2, 3, 2), (1, 7, 2, 3)),
    (Op.UNWINDOW, (3, 2), (0, 4, 2, 1)),
    (Op.UNWINDOW, (2, 2), (0, 9, 2, 3)),
    (Op.UNWINDOW, (0, 2), (0, 3, 1, 1)),
]


@pytest.mark.parametrize(("op", "shape", "arg"), MOVES)
def test_movement(op, shape, arg):
    check_vjp(lambda x: graph.move(op, graph.alu(Op.MUL, x, x), arg), random_array(shape))


# --- index ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "index", "axis"),
    [
        ((5,), [0, 4, 4, 2], 0),
        ((5,), [0, -1, 5, 2, 2], 0),
        ((3, 2), [[2, 0], [2, 1], [0, 9], [1, 1]], 0),
        ((2, 3), [[0, 0], [2, 1]], 1),
        ((4,), [], 0),
        ((0,), [0, 1], 0),
    ],
)
def test_gather(shape, index, axis):
    index = np.array(index, np.int64)
    check_vjp(
        lambda x, i: graph.gather(graph.alu(Op.MUL, x, x), i, axis), random_array(shape), index
    )


SCATTERS = [
    ((5,), [0, 4, 4, 2, 4, 0, 4], 0),
    ((4,), [1, -1, 4, 1, 0], 0),
    ((3, 2), [[2, 0], [2, 1], [0, 9], [2, 1]], 0),
    ((2, 3), [[0, 0, 1, 0], [2, 1, 2, 2]], 1),
    ((4,), [], 0),
    ((0,), [0, 1], 0),
    ((1,), [0], 0),
]


@pytest.mark.parametrize(("shape", "index", "axis"), SCATTERS)
@pytest.mark.parametrize("mode", ops.SCATTER_MODES)
def test_scatter(mode, shape, index, axis):
    index = np.array(index, np.int32)

    def build(x: Node, i: Node, y: Node) -> Node:
        result = graph.scatter(graph.alu(Op.SIN, x), i, y, axis, mode)
        return graph.alu(Op.MUL, result, result)

    check_vjp(build, random_array(shape), index, random_array(index.shape, 1))


@pytest.mark.parametrize("zeros", [(), (0,), (2,), (0, 2), (0, 1, 2, 3)])
def test_scatter_product_with_zeros(zeros):
    x, y = random_array((3,)), random_array((6,), 1)
    y[list(zeros)] = 0
    x[1] = 0 if len(zeros) == 1 else 1
    index = np.array([1, 0, 1, 1, 7, 0])
    check_vjp(
        lambda x, i, y: graph.scatter(x, i, y, 0, "mul"), x, index, y, order=3, step=1e-4, atol=1e-5
    )


@needs_torch
@pytest.mark.parametrize("mode", ["max", "min"])
def test_scatter_shares_ties_as_pytorch(mode):
    x, index, y = np.array([1.0, 2, 3]), np.array([0, 0, 1, 2, 2]), np.array([1.0, 1, 2, 3, -3])
    nodes = leaf(x), leaf(y)
    out = graph.scatter(nodes[0], leaf(index), nodes[1], 0, mode)
    found = gradient([out], [leaf(np.array([1.0, 2, 3]))], nodes)
    tx, ty = torch.tensor(x, requires_grad=True), torch.tensor(y, requires_grad=True)
    result = tx.scatter_reduce(0, torch.tensor(index), ty, f"a{mode}")
    result.backward(torch.tensor([1.0, 2, 3], dtype=torch.float64))
    for got, want in zip(found, (tx.grad, ty.grad), strict=True):
        np.testing.assert_allclose(value_of(got), want.numpy())


# --- memory and calls ----------------------------------------------------------------------------


def test_memory_operations_pass_the_gradient():
    x, target = leaf(random_array((5,))), leaf(np.zeros(5))
    squared = graph.alu(Op.MUL, x, x)
    for y in (
        graph.contiguous(squared),
        graph.store(target, squared),
        graph.copy(squared, "elsewhere"),
    ):
        seed = graph.copy(leaf(np.ones(5)), "elsewhere") if y.op is Op.COPY else leaf(np.ones(5))
        (g,) = gradient([y], [seed], [x])
        assert g.device == "test"
        np.testing.assert_allclose(value_of(g), 2 * value_of(x))


def test_host_call_brings_its_own_rule():
    def cube(rule):
        return HostCall(lambda a: a**3, "cube", (4,), dt.float64, rule)

    def rule(node: Node, g: Node) -> tuple[Node]:
        x = node.src[0]
        return (
            graph.alu(
                Op.MUL,
                g,
                graph.alu(Op.MUL, graph.const(3, dt.float64, (4,)), graph.alu(Op.MUL, x, x)),
            ),
        )

    check_vjp(lambda x: graph.host(cube(rule), x), random_array((4,)), order=3)
    x = leaf(random_array((4,)))
    y = graph.host(cube(None), x)
    assert y.location != UNKNOWN
    with pytest.raises(GradientError, match=r"cube: got .*test_vjp\.py:\d+.* expected .*; .*vjp"):
        gradient([y], [leaf(np.ones(4))], [x])


# --- the driver ----------------------------------------------------------------------------------


def test_no_dependence_is_none():
    x, y, z = (leaf(random_array((3,), i)) for i in range(3))
    through_integers = graph.cast(graph.cast(z, dt.int32), dt.float64)
    out = graph.alu(Op.ADD, graph.alu(Op.MUL, x, graph.alu(Op.TRUNC, y)), through_integers)
    found = gradient(
        [out], [leaf(np.ones(3))], [x, y, z, leaf(np.zeros(2)), leaf(np.array([1, 2]))]
    )
    assert [g is None for g in found] == [False, True, True, True, True]


def test_input_within_input_and_output_as_input():
    x = leaf(random_array((3,)))
    h = graph.alu(Op.EXP, x)
    y = graph.alu(Op.MUL, h, h)
    seed = leaf(np.array([1.0, 2, 3]))
    gx, gh, gy = gradient([y], [seed], [x, h, y])
    e = np.exp(value_of(x))
    assert gy is seed
    np.testing.assert_allclose(value_of(gh), 2 * e * [1, 2, 3])
    np.testing.assert_allclose(value_of(gx), 2 * e * e * [1, 2, 3])


def test_several_outputs_add_up_and_stop_stops():
    x = leaf(random_array((3,)))
    h, ones = graph.alu(Op.EXP, x), leaf(np.ones(3))
    a, b = graph.alu(Op.MUL, h, x), graph.alu(Op.SIN, x)
    (g,) = gradient([a, b, a], [ones, ones, ones], [x])
    v = value_of(x)
    np.testing.assert_allclose(value_of(g), 2 * (np.exp(v) + v * np.exp(v)) + np.cos(v))
    g, gh = gradient([a], [ones], [x, h], stop=[h])
    np.testing.assert_allclose(value_of(g), np.exp(v))
    np.testing.assert_allclose(value_of(gh), v)
    assert gradient([h], [ones], [x], stop=[h]) == [None]


def test_detached_values_are_constants_and_marked_ones_are_leaves():
    values = random_array((3,))
    x, ones = leaf(values), graph.const(1, dt.float64, (3,))
    squared = graph.alu(Op.MUL, x, x)
    out = graph.alu(Op.MUL, squared, graph.detach(squared))
    (g,) = gradient([out], [ones], [x])
    np.testing.assert_allclose(value_of(g), 2 * values**3)
    assert gradient([graph.detach(squared)], [ones], [x]) == [None]
    # two leaves of one value
    a, b = graph.detach(squared, 1), graph.detach(squared, 2)
    found = gradient([graph.alu(Op.MUL, a, graph.alu(Op.SIN, b))], [ones], [a, b, x])
    np.testing.assert_allclose(value_of(found[0]), np.sin(values**2))
    np.testing.assert_allclose(value_of(found[1]), values**2 * np.cos(values**2))
    assert found[2] is None
    (second,) = gradient([found[0]], [ones], [b])
    np.testing.assert_allclose(value_of(second), np.cos(values**2))


def test_the_gradient_of_a_sum_is_one_constant():
    x = leaf(random_array((3, 4)))
    (g,) = gradient([graph.reduce(Op.ADD, x, (0, 1))], [None], [x])
    assert g is graph.const(1, dt.float64, (3, 4))
    y = leaf(random_array((3, 4), 1))
    (g,) = gradient([graph.reduce(Op.ADD, graph.alu(Op.MUL, x, y), (0, 1))], [None], [x])
    assert g is y


def test_the_same_call_builds_the_same_graph():
    x, y = leaf(random_array((3,))), leaf(random_array((3,), 1))
    out = graph.alu(Op.MAX, graph.alu(Op.MUL, x, y), graph.alu(Op.DIV, x, y))
    first, second = (gradient([out], [x], [x, y]) for _ in range(2))
    assert first[0] is second[0]
    assert first[1] is second[1]


def test_gradients_belong_to_the_line_of_their_operation():
    x = leaf(random_array((3,)))
    first = graph.alu(Op.MUL, x, leaf(random_array((3,), 1)))
    second = graph.alu(Op.EXP, first)
    seed = leaf(np.ones(3))
    before = set(graph.toposort([second, seed]))
    (g,) = gradient([second], [seed], [x])
    made = [n for n in graph.toposort([g]) if n not in before]
    assert [n.location for n in made] == [second.location, first.location]
    later = graph.alu(Op.SIN, g)
    assert later.location.line > g.location.line + 5


def test_errors_name_shapes_and_remedy():
    x = leaf(random_array((2, 3)))
    with pytest.raises(GradientError, match=r"shape \(2, 3\) without a seed.*one element.*sum"):
        gradient([x], [None], [x])
    with pytest.raises(GradientError, match=r"seed of shape \(3,\).*shape \(2, 3\)"):
        gradient([x], [leaf(np.ones(3))], [x])
    with pytest.raises(GradientError, match=r"int64.*float"):
        gradient([leaf(np.array(3))], [None], [x])
    with pytest.raises(GradientError, match="1 seeds for 2 outputs"):
        gradient([x, x], [None], [x])


# --- what networks are made of -----------------------------------------------------------------


def _along(x: Node, like: Node) -> Node:
    """A row of reduced values next to what it was reduced from."""
    return graph.move(Op.EXPAND, graph.move(Op.RESHAPE, x, (*x.shape, 1)), like.shape)


def _softmax(x: Node) -> Node:
    top = graph.detach(graph.reduce(Op.MAX, x, (1,)))
    e = graph.alu(Op.EXP, graph.alu(Op.ADD, x, graph.alu(Op.NEG, _along(top, x))))
    return graph.alu(Op.DIV, e, _along(graph.reduce(Op.ADD, e, (1,)), x))


def _normalise(x: Node) -> Node:
    def mean(y: Node) -> Node:
        count = graph.const(x.shape[1], dt.float64, (x.shape[0],))
        return _along(graph.alu(Op.DIV, graph.reduce(Op.ADD, y, (1,)), count), x)

    centred = graph.alu(Op.ADD, x, graph.alu(Op.NEG, mean(x)))
    variance = mean(graph.alu(Op.MUL, centred, centred))
    return graph.alu(Op.DIV, centred, graph.alu(Op.SQRT, variance))


def _matmul(x: Node, y: Node) -> Node:
    (m, k), n = x.shape, y.shape[1]
    left = graph.move(Op.EXPAND, graph.move(Op.RESHAPE, x, (m, k, 1)), (m, k, n))
    right = graph.move(Op.EXPAND, graph.move(Op.RESHAPE, y, (1, k, n)), (m, k, n))
    return graph.reduce(Op.ADD, graph.alu(Op.MUL, left, right), (1,))


def _convolve(x: Node, w: Node) -> Node:
    """Channels-first, one image: padding 1, stride 2, dilation 2 on the last axis."""
    (c, _, _), (o, _, kh, kw) = x.shape, w.shape
    x = graph.move(Op.PAD, x, ((0, 0), (1, 1), (1, 1)))
    x = graph.move(Op.WINDOW, graph.move(Op.WINDOW, x, (1, kh, 2, 1)), (3, kw, 2, 2))
    _, h, _, v, _ = x.shape
    shape = (o, c, h, kh, v, kw)
    wide = graph.move(Op.EXPAND, graph.move(Op.RESHAPE, w, (o, c, 1, kh, 1, kw)), shape)
    return graph.reduce(Op.ADD, graph.alu(Op.MUL, graph.move(Op.EXPAND, x, shape), wide), (1, 3, 5))


COMPOSED = {
    "softmax": (_softmax, (3, 4)),
    "normalise": (_normalise, (2, 5)),
    "matmul": (_matmul, (2, 3), (3, 4)),
    "attention": (lambda q, k, v: _matmul(_softmax(_matmul(q, k)), v), (2, 3), (3, 4), (4, 2)),
    "convolution": (_convolve, (2, 4, 5), (3, 2, 3, 2)),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_composed(name):
    build, *shapes = COMPOSED[name]
    check_vjp(build, *[random_array(shape, i) for i, shape in enumerate(shapes)], atol=5e-6)


def _rows(op: Op, x: Node) -> Node:
    return _along(graph.reduce(op, x, (1,)), x)


def _windows(x: Node) -> Node:
    padded = graph.move(Op.PAD, x, ((0, 0), (1, 1)))
    return graph.reduce(Op.ADD, graph.move(Op.WINDOW, padded, (1, 3, 1, 1)), (2,))


PLACES = np.array([[2, 0, 2], [1, 1, 7]])

# steps from two (2, 3) arrays to a third
STEPS = {
    "add": lambda a, b: graph.alu(Op.ADD, a, b),
    "mul": lambda a, b: graph.alu(Op.MUL, a, b),
    "max": lambda a, b: graph.alu(Op.MAX, a, b),
    "sin": lambda a, b: graph.alu(Op.SIN, a),
    "exp": lambda a, b: graph.alu(Op.EXP, graph.alu(Op.SIN, b)),
    "where": lambda a, b: graph.alu(Op.WHERE, graph.alu(Op.LT, a, b), graph.alu(Op.NEG, a), b),
    "sum": lambda a, b: _rows(Op.ADD, a),
    "prod": lambda a, b: _rows(Op.MUL, b),
    "amax": lambda a, b: _rows(Op.MAX, a),
    "cumprod": lambda a, b: graph.scan(Op.MUL, a, 1),
    "cumsum": lambda a, b: graph.scan(Op.ADD, b, 0),
    "cummax": lambda a, b: graph.scan(Op.MAX, a, 1),
    "mix": lambda a, b: graph.move(Op.RESHAPE, graph.move(Op.PERMUTE, a, (1, 0)), (2, 3)),
    "flip": lambda a, b: graph.move(Op.FLIP, b, (0,)),
    "window": lambda a, b: _windows(a),
    "gather": lambda a, b: graph.gather(a, leaf(PLACES), 1),
    "put": lambda a, b: graph.scatter(a, leaf(PLACES), b, 1, "set"),
    "times": lambda a, b: graph.scatter(a, leaf(PLACES), b, 1, "mul"),
}


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(STEPS)), *[st.integers(0, 9)] * 2), min_size=2, max_size=5
    )
)
@settings(max_examples=100)
def test_random_compositions(steps):
    def build(x: Node, y: Node) -> Node:
        values = [x, y]
        for name, i, j in steps:
            values.append(STEPS[name](values[-1 - i % len(values)], values[-1 - j % len(values)]))
        return values[-1]

    arrays = random_array((2, 3), 4, -1, 1), random_array((2, 3), 5, -1, 1)
    check_vjp(build, *arrays, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", COMPOSED)
def test_composed_on_the_default_device(name):
    """Compiled gradients are what the interpreter says they are."""
    build, *shapes = COMPOSED[name]
    arrays = [random_array(shape, i) for i, shape in enumerate(shapes)]
    found = []
    for make in (leaf, realize.from_numpy):
        inputs = [make(a) for a in arrays]
        out = build(*inputs)
        found.append([out, *gradient([out], [make(random_array(out.shape, 9))], inputs)])
    for compiled, plain in zip(realize.realize(found[1]), found[0], strict=True):
        assert_close(realize.to_numpy(compiled), value_of(plain), 1e-9, 1e-11, name)


# --- PyTorch -------------------------------------------------------------------------------------

COUNTERPARTS = {
    "amax": (lambda x: graph.reduce(Op.MAX, x, (1,)), lambda t: t.amax(1)),
    "cummax": (lambda x: graph.scan(Op.MAX, x, 1), lambda t: t.cummax(1).values),
    "cumprod": (lambda x: graph.scan(Op.MUL, x, 1), lambda t: t.cumprod(1)),
    "cumsum": (lambda x: graph.scan(Op.ADD, x, 1), lambda t: t.cumsum(1)),
    "prod": (lambda x: graph.reduce(Op.MUL, x, (1,)), lambda t: t.prod(1)),
    "unfold": (lambda x: graph.move(Op.WINDOW, x, (1, 3, 2, 1)), lambda t: t.unfold(1, 3, 2)),
    "maximum": (
        lambda x: graph.alu(Op.MAX, x, graph.move(Op.FLIP, x, (1,))),
        lambda t: torch.maximum(t, t.flip(1)),
    ),
    "sqrt": (lambda x: graph.alu(Op.SQRT, x), lambda t: t.sqrt()),
    "log": (lambda x: graph.alu(Op.LOG, x), lambda t: t.log()),
}


@needs_torch
@pytest.mark.parametrize("name", COUNTERPARTS)
def test_against_pytorch_with_ties_and_zeros(name):
    build, counterpart = COUNTERPARTS[name]
    values = np.array([[1.0, 0, 2, 2, 1, 2, 0], [3, 3, 1, 1, 5, 3, 5]])
    x, t = leaf(values), torch.tensor(values, requires_grad=True)
    out, expected = build(x), counterpart(t)
    weights = random_array(out.shape)
    (g,) = gradient([out], [leaf(weights)], [x])
    expected.backward(torch.tensor(weights))
    assert_close(value_of(g), t.grad.numpy(), 1e-12, 1e-12, name)
