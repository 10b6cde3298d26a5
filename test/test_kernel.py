"""Kernels: their text and what `verify` finds wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mygrad import dtype as dt
from mygrad.errors import InternalError
from mygrad.expr import alu, axis, const, load, param, reduce, scan, var
from mygrad.kernel import BufferInfo, Kernel, Store, axis_sets, bound_axes, text, verify
from mygrad.ops import Op

F = dt.float32
I, J, K, B = axis(0, 4), axis(1, 5), axis(2, 6), axis(3, 4)  # noqa: E741
X = load(1, F, I)
BUFFERS = (BufferInfo(F, 4, True), BufferInfo(F, 24))
PLAIN = Kernel("plain", (I, J), (Store(0, I, X),), BUFFERS)


def with_store(**changes: object) -> Kernel:
    return replace(PLAIN, stores=(replace(PLAIN.stores[0], **changes),))


def test_text_names_what_occurs_twice() -> None:
    e = alu(Op.EXP, X)
    kernel = with_store(value=alu(Op.ADD, e, e))
    assert text(kernel).split("\n") == [
        "kernel plain(b0: float32[4] out, b1: float32[24])",
        "  for i0 < 4, i1 < 5",
        "  t0 = exp(b1[i0])",
        "  b0[i0] = (t0 + t0)",
    ]


def test_text_says_mode_condition_order_and_parameters() -> None:
    store = Store(0, I, X, I < 3, "add", (I,))
    kernel = replace(PLAIN, stores=(store,), params=(("n", 1, 9),))
    shown = text(kernel)
    assert "n in [1, 9]" in shown
    assert "b0[i0] add= b1[i0] if (i0 < 3)  in order of i0" in shown


def test_text_tells_conversions_apart() -> None:
    """The text of a kernel is the key of the disk cache."""
    shown = {
        text(with_store(value=alu(Op.CAST, alu(op, X, dtype=dtype), dtype=F)))
        for op in (Op.CAST, Op.BITCAST)
        for dtype in (dt.int32, dt.uint32)
    }
    assert len(shown) == 4


def test_text_of_a_deep_kernel_stays_short() -> None:
    value = X
    for _ in range(5_000):
        value = alu(Op.ADD, value, value)
    assert len(text(with_store(value=value))) < 300_000


def test_axes_of_computations() -> None:
    total = reduce(Op.ADD, load(1, F, I * 6 + K), (K,))
    kernel = with_store(value=total)
    assert bound_axes(kernel) == [K]
    assert axis_sets(kernel) == (frozenset({I}), frozenset({I, K}))


@pytest.mark.parametrize(
    "kernel",
    [
        PLAIN,
        with_store(value=reduce(Op.ADD, load(1, F, I * 6 + K), (K,))),
        with_store(value=scan(Op.ADD, load(1, F, B), I, B)),
        with_store(value=load(0, F, I)),
        with_store(index=I + param("n", 0, 9)),
    ],
)
def test_well_formed(kernel: Kernel) -> None:
    verify(kernel)


BAD = {
    "no axes of the kernel": with_store(value=load(1, F, K)),
    "store mode": with_store(mode="xor"),
    "does not exist": with_store(slot=7),
    "not marked as written": with_store(slot=1, index=I * 2),
    "is stored": with_store(value=const(1, dt.int32)),
    "wrong type": with_store(valid=const(1)),
    "an index in": with_store(index=I + 4),
    "which does not exist": with_store(value=load(5, F, I)),
    "loaded as": with_store(value=alu(Op.CAST, load(1, dt.int8, I), dtype=F)),
    "binds an axis": with_store(value=reduce(Op.ADD, load(1, F, I + J), (J,))),
    "runs along no axis": with_store(value=scan(Op.ADD, load(1, F, J), I, J)),
    "only statements": with_store(value=var("x", F)),
    "another index": with_store(value=load(0, F, 3 - I)),
    "one id": replace(PLAIN, axes=(I, axis(0, 9))),
}


@pytest.mark.parametrize("problem", list(BAD))
def test_not_well_formed(problem: str) -> None:
    with pytest.raises(InternalError, match=problem):
        verify(BAD[problem])
