"""Cuts below reductions: the value stays the same, and the reduction covers what is read alone."""

from __future__ import annotations

import numpy as np

from mygrad import Tensor, graph
from mygrad import dtype as dt
from mygrad.graph import Node
from mygrad.ops import Op
from mygrad.schedule.cuts import cut_early


def table() -> Node:
    return graph.cast(graph.move(Op.RESHAPE, graph.iota(30), (5, 6)), dt.float32)


def test_a_cut_of_a_sum_is_a_sum_of_a_cut() -> None:
    cut = graph.move(Op.SHRINK, graph.reduce(Op.ADD, table(), (1,)), ((1, 4),))
    (result,) = cut_early([cut])
    assert result.op is Op.REDUCE
    assert result.shape == (3,)
    assert result.src[0].op is Op.SHRINK
    assert result.src[0].arg == ((1, 4), (0, 6))


def test_a_sum_that_others_read_stays_whole() -> None:
    total = graph.reduce(Op.ADD, table(), (1,))
    cut = graph.move(Op.SHRINK, total, ((1, 4),))
    assert cut_early([total, cut]) == [total, cut]


def test_values() -> None:
    x = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    found = Tensor(x).sum(1)[1:, 2:4]
    np.testing.assert_array_equal(found.numpy(), x.sum(1)[1:, 2:4])
