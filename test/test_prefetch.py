"""Prefetches before sums: the lines that are met after them, each once, and no others."""

from __future__ import annotations

import itertools

from cpu_tools import program
from hypothesis import given
from hypothesis import strategies as st
from test_llvm import F, matmul_tile, seq, unroll, vector

from mygrad.codegen.llvm_prefetch import LINE, Fetch, fetches
from mygrad.codegen.stmt import Accumulator, Block, Let, Put, Scratch, Tile, Update
from mygrad.expr import Expr, alu, axis, load, var
from mygrad.ops import Op

OUTER, ROW, COPY, LANE, STEP, LATER = (axis(n, 64) for n in range(6))
TILE = (unroll(axis(1, 6)), vector(axis(4, 16)))


def sum_of(steps: int, *after: object) -> Block:
    """A sum over so many steps, and what follows it."""
    product = alu(Op.MUL, load(0, F, STEP), load(1, F, STEP))
    return (
        Accumulator("acc", F, Op.ADD, tuple(t.axis for t in TILE)),
        seq(axis(5, steps), steps, Update("acc", product)),
        *after,
    )


def found(block: Block, after: Block = ()) -> list[Fetch]:
    return fetches(block, after, TILE, dict.fromkeys(range(4), 4))


def place(row: int, lane: int) -> Expr:
    return OUTER * 1000 + TILE[0].axis * row + TILE[1].axis * lane + 7


@given(st.integers(-300, 300), st.integers(-300, 300))
def test_every_line_that_is_accessed_is_fetched_once(row: int, lane: int) -> None:
    put = Put(2, place(row, lane), var("acc", F))
    accessed = {4 * (row * i + lane * j) for i, j in itertools.product(range(6), range(16))}
    made = found(sum_of(4096, put))
    if len(made[0].places) == 0:
        assert len({a // LINE for a in accessed}) > 32  # one line an element: no tile
        return
    ((slot, first, places, written),) = made
    assert (slot, written) == (2, True)
    assert first is OUTER * 1000 + 7
    assert set(places) <= accessed
    assert all(b - a >= LINE for a, b in itertools.pairwise(places))
    assert all(any(p <= a < p + LINE for p in places) for a in accessed)


def test_what_results_are_combined_with_is_fetched_too() -> None:
    total = alu(Op.ADD, var("acc", F), load(3, F, place(500, 1)))
    made = found(sum_of(4096, Let("x", total), Put(2, place(500, 1), var("x", F))))
    assert {(f.slot, f.written, len(f.places)) for f in made} == {(2, True, 6), (3, False, 6)}
    # and what is read and written is fetched to be written, once
    total = alu(Op.ADD, var("acc", F), load(2, F, place(500, 1)))
    (only,) = found(sum_of(4096, Put(2, place(500, 1), total)))
    assert (only.slot, only.written) == (2, True)


def test_short_sums_do_not_pay_for_it() -> None:
    put = Put(2, place(500, 1), var("acc", F))
    assert found(sum_of(8, put))
    assert not found(sum_of(7, put))


def test_results_that_wait_in_scratch_memory_for_loops_after_the_tile() -> None:
    keep = Put("t", TILE[0].axis * 16 + TILE[1].axis, var("acc", F))
    later = axis(6, 6)
    value = load("t", F, later * 16 + TILE[1].axis)
    index = OUTER * 1000 + later * 500 + TILE[1].axis
    loop = seq(later, 6, Tile(TILE[1:], (Put(2, index, value),)))
    (only,) = found(sum_of(4096, keep), (Scratch("other", F, 4), loop))
    assert (only.slot, only.places) == (2, [2000 * n for n in range(6)])


def test_places_that_are_not_known_are_not_fetched() -> None:
    gathered = load(3, F, load(1, F, TILE[0].axis))
    streamed = Put(2, place(500, 1), alu(Op.ADD, var("acc", F), gathered), stream=True)
    assert [f.slot for f in found(sum_of(4096, streamed))] == [1]  # the indices alone
    # the next sum has its own
    put = Put(2, place(500, 1), var("acc", F))
    assert not found(sum_of(4096), (Tile(TILE, sum_of(4096, put)),))


def test_prefetches_in_the_text() -> None:
    text = program(matmul_tile(8, 48, 64)).source
    # a tile is 4 rows of 3 vectors, which are 96 bytes, or two lines
    assert text.count("call void @llvm.prefetch.p0(ptr") == 8
    assert "prefetch" not in program(matmul_tile(8, 48, 4)).source
