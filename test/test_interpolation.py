"""Short sums over windows by values of polynomials: exact in fractions, shared in kernels."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

from mygrad import dtype as dt
from mygrad import expr
from mygrad.expr import Expr
from mygrad.ops import ALU
from mygrad.schedule.interpolation import DATA, POINTS, Matrix, both, evaluation, reading


def times(matrix: Matrix, vector: Sequence[Fraction]) -> list[Fraction]:
    return [sum((a * b for a, b in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]


def loads(size: int) -> list[list[Expr]]:
    """A square of loads from slot 0."""
    return [
        [expr.load(0, dt.float32, expr.const(i * size + j)) for j in range(size)]
        for i in range(size)
    ]


@pytest.mark.parametrize("taps", range(1, POINTS + 1))
def test_six_products_are_the_sum_over_a_window(taps: int) -> None:
    rng = np.random.default_rng(taps)
    x, g = ([Fraction(int(n), 7) for n in rng.integers(-50, 50, k)] for k in (POINTS, taps))
    values = [a * b for a, b in zip(times(evaluation(taps), g), times(DATA, x), strict=True)]
    results = POINTS + 1 - taps
    direct = [sum(x[p + k] * g[k] for k in range(taps)) for p in range(results)]
    assert times(reading(results), values) == direct


def test_data_and_results_have_factors_without_rounding() -> None:
    for matrix in (DATA, reading(2), reading(3), reading(4)):
        assert all(Fraction(float(np.float32(float(f)))) == f for row in matrix for f in row)


@pytest.mark.parametrize("matrix", [DATA, evaluation(3), evaluation(5), reading(4), reading(2)])
def test_grids_of_expressions_are_transformed_on_both_sides(matrix: Matrix) -> None:
    size = len(matrix[0])
    x = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    done = both([matrix, matrix], loads(size))
    got = np.array([[expr.evaluate(e, {}, {0: x.ravel()}) for e in row] for row in done])
    m = np.array(matrix, float)
    np.testing.assert_allclose(got, m @ x @ m.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("matrix", [DATA, reading(4)])
def test_opposite_places_share_their_halves(matrix: Matrix) -> None:
    """Fewer operations than factors: each alone would be a multiplication and an addition."""
    size = len(matrix[0])
    done = both([matrix, matrix], loads(size))
    floats = [e for e in expr.toposort(e for row in done for e in row) if e.dtype is dt.float32]
    factors = sum(bool(f) for row in matrix for f in row) * (size + len(matrix))
    assert sum(e.op in ALU for e in floats) < 2 * factors
