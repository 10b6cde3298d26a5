"""nan, infinities, zeros with signs, denormals and huge numbers, compiled, against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mygrad import Tensor

NAN, INF = np.nan, np.inf
ALL = np.float32(
    [NAN, INF, -INF, 0.0, -0.0, 1e-40, -1e-40, 1, -1, 0.5, 1.5, 2.5, -0.5, -2.5, 3e38, -3e38, 88.8]
)
ROWS = [ALL, ALL[1:], ALL[3:], np.float32([-INF] * 3), np.float32([INF, INF, 1]), ALL[[7, 0, 0]]]
Array = np.ndarray[Any, Any]


def log_sum_exp(x: Array) -> Array:
    top = x.max()
    if not np.isfinite(top):
        return top
    return top + np.log(np.exp(x - top).sum())


ELEMENTWISE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Array], Any]]] = {
    "neg": (lambda x: -x, np.negative),
    "abs": (lambda x: x.abs(), np.abs),
    "sign": (lambda x: x.sign(), np.sign),
    "relu": (lambda x: x.relu(), lambda x: np.where(x > 0, x, np.where(np.isnan(x), x, 0))),
    "clamp": (lambda x: x.clamp(-1, 1), lambda x: np.clip(x, -1, 1)),
    "round": (lambda x: x.round(), np.round),
    "floor": (lambda x: x.floor(), np.floor),
    "ceil": (lambda x: x.ceil(), np.ceil),
    "trunc": (lambda x: x.trunc(), np.trunc),
    "exp": (lambda x: x.exp(), np.exp),
    "log": (lambda x: x.log(), np.log),
    "sqrt": (lambda x: x.sqrt(), np.sqrt),
    "tanh": (lambda x: x.tanh(), np.tanh),
    "over": (lambda x: 1 / x, lambda x: 1 / x),
    "square": (lambda x: x * x, lambda x: x * x),
    "is nan": (lambda x: x.isnan(), np.isnan),
}
REDUCE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Array], Any]]] = {
    "max": (lambda x: x.max(), np.max),
    "min": (lambda x: x.min(), np.min),
    "argmax": (lambda x: x.argmax(), np.argmax),
    "argmin": (lambda x: x.argmin(), np.argmin),
    "sort": (lambda x: x.sort()[0], lambda x: np.sort(x, kind="stable")),
    "logsumexp": (lambda x: x.logsumexp(0), log_sum_exp),
}


def same(got: Array, wanted: Any) -> None:
    np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=1e-45)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise(name: str) -> None:
    ours, theirs = ELEMENTWISE[name]
    with np.errstate(all="ignore"):
        got, wanted = ours(Tensor(ALL)).numpy(), theirs(ALL)
    same(got, wanted)
    if got.dtype == np.float32 and name not in ("relu", "sign"):  # where the sign of 0 is defined
        certain = ~np.isnan(wanted)
        assert (np.signbit(got) == np.signbit(wanted))[certain].all()


@pytest.mark.parametrize("name", REDUCE)
def test_rows(name: str) -> None:
    ours, theirs = REDUCE[name]
    for row in ROWS:
        with np.errstate(all="ignore"):
            same(ours(Tensor(row)).numpy(), theirs(row))


def test_running_sums() -> None:
    """Neighbours are added first, so that rounding is that of some order of adding: what is not a
    number, or infinite, is where it is in any order, and errors are relative to what was added."""
    for row in ROWS:
        with np.errstate(all="ignore"):
            got, wanted = Tensor(row).cumsum(0).numpy(), np.cumsum(row, dtype=np.float64)
            added = np.cumsum(np.abs(row), dtype=np.float64)
            finite = np.isfinite(wanted) & (added < np.finfo(np.float32).max)
            np.testing.assert_array_equal(got[~np.isfinite(wanted)], wanted[~np.isfinite(wanted)])
            error = np.abs(got[finite] - wanted[finite])
            assert (error <= len(row) * np.finfo(np.float32).eps * added[finite]).all()


def test_softmax() -> None:
    assert Tensor([INF, 0.0]).softmax(0).isnan().any().item()
    assert Tensor([-INF, 0.0]).softmax(0).tolist() == [0.0, 1.0]
    assert Tensor([-INF, 3e38, 3e38]).softmax(0).tolist() == [0.0, 0.5, 0.5]
    assert Tensor([-INF, -INF]).softmax(0).isnan().all().item()
