"""Where values live: what is gathered before, who reads whom, and the second look."""

from __future__ import annotations

import numpy as np
from graphs import array, buffer, expand, matmul, reshape
from hypothesis import given, settings
from hypothesis import strategies as st

from mygrad import Tensor
from mygrad import dtype as dt
from mygrad import graph as g
from mygrad.graph import Node
from mygrad.helpers import prod
from mygrad.ops import Op
from mygrad.schedule import cost, facts
from mygrad.schedule.homes import Group, Homes
from mygrad.schedule.revise import choose_homes
from mygrad.schedule.schedule import schedule
from mygrad.schedule.simplify import simplify


def stored(*roots: Node) -> list[Node]:
    """What lives in memory besides the roots."""
    return [n for n in choose_homes(roots).group_of if n not in roots]


# --- facts ----------------------------------------------------------------------------------------


def test_operations_that_operands_share_count_once() -> None:
    x = buffer(4)
    for _ in range(6):
        x = g.alu(Op.MUL, x, x)  # 2 ** 6 - 1 if they were counted along each path
    known = facts.gather(g.toposort([x]), [])
    assert known.own[x].count == 6
    assert known.own[x].operations == 6.0


def test_small_operands_count_as_computed_once() -> None:
    small = g.alu(Op.EXP, buffer(8))
    wide = g.alu(Op.ADD, expand(reshape(small, (1, 8)), (100, 8)), buffer(100, 8))
    known = facts.gather(g.toposort([wide]), [])
    assert known.own[wide].count == 2
    assert known.own[wide].operations == 1 + cost.weight(Op.EXP) / 100


def chain(length: int, shape: tuple[int, ...] = (64, 8)) -> Node:
    """A sum of many arrays."""
    x = buffer(*shape)
    for n in range(length):
        x = g.alu(Op.ADD, x, buffer(*shape, seed=n + 1))
    return x


def test_an_expression_of_many_arrays_ends_at_its_small_operand() -> None:
    """Not at the product inside of the matmul, which has many times its elements."""
    product = matmul(chain(cost.MAX_LEAVES - 1), buffer(8, 500))
    small = 64 * 8
    assert all(n.size <= small for n in stored(product))
    plan = schedule([product], "reference")
    assert plan.arena_bytes.get("reference", 0) <= 64 * 8 * 4 + 64


def test_a_chain_of_one_size_ends_anyway() -> None:
    x = chain(3 * cost.MAX_LEAVES)
    assert len(stored(x)) >= 2


# --- permuted reductions --------------------------------------------------------------------------


def transpose(x: Node) -> Node:
    return g.move(Op.PERMUTE, x, (1, 0))


def test_a_permuted_product_is_computed_in_the_order_in_which_it_is_read() -> None:
    a, b = buffer(6, 5), buffer(5, 7)
    (found,) = simplify([transpose(matmul(a, b))])
    assert found.op is Op.REDUCE
    assert found.shape == (7, 6)
    expected = (array(6, 5) @ array(5, 7)).T
    np.testing.assert_allclose(Tensor(array(6, 5)).matmul(Tensor(array(5, 7))).T.numpy(), expected)


def test_a_reduction_with_two_readers_is_not_computed_twice() -> None:
    product = matmul(buffer(6, 5), buffer(5, 7))
    found = simplify([transpose(product), product])
    assert found[0].op is Op.PERMUTE
    assert found[0].src[0] is found[1]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_permuted_reductions_keep_their_value(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.sampled_from([1, 2, 3, 5]), min_size=2, max_size=4))
    axes = data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1, max_size=len(shape) - 1))
    kept = len(shape) - len(axes)
    order = data.draw(st.permutations(range(kept)))
    x = np.arange(prod(shape), dtype=np.float32).reshape(shape)
    got = Tensor(x).sum(tuple(sorted(axes))).permute(*order).numpy()
    np.testing.assert_array_equal(got, x.sum(tuple(sorted(axes))).transpose(order))


def test_of_a_sum_only_what_is_read_is_computed() -> None:
    product = matmul(buffer(6, 5), buffer(5, 7))
    window = ((1, 4), (0, 6))
    (found,) = simplify([g.move(Op.SHRINK, g.cast(product, dt.bfloat16), window)])
    assert found.op is Op.CAST
    assert found.src[0].op is Op.REDUCE
    assert found.shape == (3, 6)
    got = Tensor(array(6, 5)).matmul(Tensor(array(5, 7)))[1:4, :6].numpy()
    np.testing.assert_allclose(got, (array(6, 5) @ array(5, 7))[1:4, :6], rtol=1e-6)


# --- narrow floats --------------------------------------------------------------------------------


def test_widened_values_are_stored_narrow() -> None:
    """Of a float32 product of rounded operands: the rounded ones, and the rounded result."""
    a, b = (g.cast(g.cast(buffer(64, 64, seed=n), dt.bfloat16), dt.float32) for n in (0, 1))
    inner = g.cast(g.cast(matmul(a, b), dt.bfloat16), dt.float32)
    kept = stored(matmul(inner, b))
    assert kept
    assert {n.dtype for n in kept} == {dt.bfloat16}


# --- of sums only what is read --------------------------------------------------------------------


def test_a_cut_of_a_sum_is_a_sum_of_a_cut() -> None:
    cut = g.move(Op.SHRINK, g.reduce(Op.ADD, buffer(5, 6), (1,)), ((1, 4),))
    (found,) = simplify([cut])
    assert found.op is Op.REDUCE
    assert found.src[0].op is Op.SHRINK
    assert found.src[0].arg == ((1, 4), (0, 6))


def test_a_sum_that_others_read_stays_whole() -> None:
    total = g.reduce(Op.ADD, buffer(5, 6), (1,))
    cut = g.move(Op.SHRINK, total, ((1, 4),))
    assert simplify([total, cut]) == [total, cut]


def test_a_sum_over_strided_windows_stays_whole() -> None:
    spread = g.move(Op.UNWINDOW, buffer(4, 3), (0, 9, 2, 1))
    cut = g.move(Op.SHRINK, g.reduce(Op.ADD, spread, (1,)), ((1, 8),))
    assert simplify([cut]) == [cut]


# --- who reads whom -------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(edges=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=24))
def test_dependences_are_those_of_a_search(edges: list[tuple[int, int]]) -> None:
    groups = [Group(buffer(1), (), (), "", number=n) for n in range(9)]
    reads: dict[int, set[int]] = {n: set() for n in range(9)}

    def reached(start: int) -> set[int]:
        seen, work = {start}, [start]
        while work:
            work += new if (new := list(reads[work.pop()] - seen)) else []
            seen.update(work)
        return seen

    for a, b in edges:
        if a in reached(b):
            continue  # that would be a circle
        reads[a].add(b)
        groups[a].read(groups[b])
    for a in range(9):
        for b in range(9):
            assert groups[a].depends_on([groups[b]]) == (b in reached(a))


# --- the second look ------------------------------------------------------------------------------


def training(rows: int, inner: int, width: int) -> list[Node]:
    """Two layers with a gelu between them, and the gradients of both weights."""
    x = Tensor(array(rows, inner))
    w, v = (Tensor(array(width, inner, seed=n)).requires_grad_() for n in (1, 2))
    y = x.linear(w).gelu(approximate="tanh").matmul(v)
    y.square().sum().backward()
    return simplify([t.grad._node for t in (w, v)])


def test_steps_of_one_formula_are_not_all_kept() -> None:
    """gelu and its gradient share five values; what they are computed from is enough."""
    rows, inner, width = 256, 96, 512
    roots = training(rows, inner, width)
    before = [n for n in Homes(roots).group_of if n.size == rows * width]
    after = [n for n in choose_homes(roots).group_of if n.size == rows * width]
    assert len(after) < len(before)
    assert len(after) <= 3  # the argument of gelu, its value, and its gradient


# --- the weight of a recurrent network ------------------------------------------------------------


def test_a_weight_that_is_used_at_each_time_has_a_gradient_of_its_size() -> None:
    batch, width, times = 16, 64, 12
    w = Tensor(array(width, width) * 0.1).requires_grad_()
    h = Tensor(array(batch, width, seed=1))
    for _ in range(times):
        h = h.matmul(w).tanh()
    h.sum().backward()
    plan = schedule([w.grad._node], "reference")
    assert max(m.nbytes for m in plan.memories) <= 4 * width * max(batch, width)


# --- movement that costs --------------------------------------------------------------------------


def doubled(x: Node, times: int = 2) -> Node:
    """Every element of (n, m) as often, side by side."""
    n, m = x.shape
    return reshape(expand(reshape(x, (n, m, 1)), (n, m, times)), (n, m * times))


def test_only_elements_repeated_side_by_side_count() -> None:
    x = buffer(6, 4)
    assert facts.weight_of(doubled(x)) == cost.REPEAT
    assert facts.weight_of(doubled(x).src[0]) == 0
    rows = expand(reshape(x, (1, 24)), (3, 24))
    assert facts.weight_of(reshape(rows, (72,))) == 0  # one copy after the other
    apart = expand(reshape(x, (6, 1, 4, 1)), (6, 3, 4, 5))
    assert facts.weight_of(reshape(apart, (6, 3, 20))) == cost.REPEAT
    assert facts.weight_of(reshape(apart, (6, 3, 4, 5, 1))) == 0  # still an axis of its own
    assert facts.weight_of(reshape(x, (24,))) == 0


def test_what_is_repeated_and_read_often_is_stored() -> None:
    """As an upsampled image that is joined with another: each kernel that computes it would have
    its lanes along no axis."""
    other = buffer(256, 256, seed=1)

    def readers(image: Node) -> tuple[Node, list[Node]]:
        joined = g.alu(Op.ADD, image, other)
        return joined, [g.reduce(Op.MAX, joined, (1,)), g.reduce(Op.MAX, joined, (0,))]

    joined, roots = readers(doubled(buffer(256, 128)))
    assert joined in choose_homes(roots).group_of
    joined, roots = readers(buffer(256, 256, seed=4))
    assert joined not in choose_homes(roots).group_of


def test_the_second_look_takes_small_values_too() -> None:
    """The steps of a formula of 8192 elements, as a gate of a recurrent network: what its readers
    can compute from what is in memory is not stored."""
    x = buffer(32, 256)
    e = g.alu(Op.EXP, x)
    shifted = g.alu(Op.ADD, e, g.const(1.0, e.dtype, e.shape))
    value = g.alu(Op.DIV, e, shifted)
    readers = [
        matmul(g.alu(Op.MUL, v, buffer(32, 256, seed=n)), buffer(256, 64, seed=9 + n))
        for n, v in enumerate((value, e, shifted))
    ]
    assert shifted not in choose_homes([*readers, value]).group_of
    assert value.size < cost.SMALL
