"""exp, log and sin against extended precision: the promised errors, and every special value."""

from __future__ import annotations

import cpu_tools
import numpy as np
import pytest
from cpu_tools import elementwise

from mygrad import dtype as dt
from mygrad import numeric
from mygrad.codegen import llvm_ops, vmath
from mygrad.dtype import DType
from mygrad.expr import alu, load
from mygrad.ops import Op

EXACT = {Op.EXP: np.exp, Op.LOG: np.log, Op.SIN: np.sin}
BOUNDS = {  # as stated in vmath.py, and a little for what was not tried there
    (Op.EXP, dt.float32): 1.1,
    (Op.LOG, dt.float32): 1.1,
    (Op.SIN, dt.float32): 2.15,
    (Op.EXP, dt.float64): 1.25,
    (Op.LOG, dt.float64): 0.95,
    (Op.SIN, dt.float64): 2.15,
}
SPECIAL = [
    0.0,
    -0.0,
    np.inf,
    -np.inf,
    np.nan,
    1.0,
    -1.0,
    np.e,
    np.pi,
    1e30,
    -1e30,
    65536.0,
    2.0**24,
    1e5,
]


def apply(op: Op, dtype: DType, x: np.ndarray, lanes: int) -> np.ndarray:
    return elementwise(lambda i: alu(op, load(0, dtype, i)), [x], [dtype], dtype, lanes)


def ulps(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Distance from the exact value in units in the last place; 0 where both are the same special
    value."""
    with np.errstate(all="ignore"):
        nearest = exact.astype(got.dtype)
        same = (got == nearest) | (np.isnan(got) & np.isnan(nearest))
        unit = np.spacing(np.minimum(np.abs(nearest), np.finfo(got.dtype).max))
        distance = np.abs(got.astype(np.longdouble) - exact) / unit
        # beyond the largest number the unit stays that of the largest number
        limit = np.minimum(np.abs(exact), np.longdouble(2) ** np.finfo(got.dtype).maxexp)
        overflow = np.isinf(nearest) & np.isfinite(got)
        distance = np.where(overflow, (limit - np.abs(got).astype(np.longdouble)) / unit, distance)
        return np.where(same, 0, distance).astype(np.float64)


def arguments(op: Op, dtype: DType) -> np.ndarray:
    rng = np.random.default_rng(7)
    bits = rng.integers(0, 1 << dtype.bits, 60_000, dtype=np.uint64)
    some = [bits.astype(f"u{dtype.itemsize}").view(dtype.storage), rng.standard_normal(20_000)]
    tiny = np.finfo(dtype.storage).smallest_subnormal
    some += [np.array(SPECIAL), np.arange(-300, 300) * tiny, 1 + np.arange(-300, 300) * 1e-7]
    edges = {
        Op.EXP: [rng.uniform(-750, 720, 20_000), rng.uniform(-110, 95, 20_000)],
        Op.LOG: [rng.uniform(0.5, 2, 20_000)],
        Op.SIN: [
            rng.uniform(-70000, 70000, 20_000),
            rng.integers(-20000, 20000, 20_000) * np.pi,
            rng.integers(-20000, 20000, 20_000) * np.pi + np.pi / 2,
            np.exp(rng.uniform(0, 80, 2000)),
        ],
    }
    return np.concatenate([s.astype(dtype.storage) for s in some + edges[op]])


@pytest.mark.parametrize("dtype", [dt.float32, dt.float64], ids=lambda d: d.name)
@pytest.mark.parametrize("op", list(EXACT))
def test_the_stated_errors_hold_over_the_whole_range(op: Op, dtype: DType) -> None:
    with np.errstate(all="ignore"):
        x = arguments(op, dtype)
        exact = EXACT[op](x.astype(np.longdouble))
    got = apply(op, dtype, x, 16)
    errors = ulps(got, exact)
    worst = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
    assert errors[worst] <= BOUNDS[op, dtype], (x[worst], got[worst], exact[worst])


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 60, reason="longdouble is double here")
def test_the_oracle_is_more_exact_than_double() -> None:
    assert float(np.exp(np.longdouble(1)) - np.longdouble(np.e)) != 0.0


@pytest.mark.parametrize("lanes", [0, 4, 8])
@pytest.mark.parametrize("dtype", [dt.float32, dt.float64], ids=lambda d: d.name)
@pytest.mark.parametrize("op", list(EXACT))
def test_every_width_gives_the_same_bits(op: Op, dtype: DType, lanes: int) -> None:
    x = arguments(op, dtype)[::37]
    want, got = (apply(op, dtype, x, n).view(f"u{dtype.itemsize}") for n in (16, lanes))
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(got[~np.isnan(x)], want[~np.isnan(x)])


@pytest.mark.parametrize("dtype", [dt.float32, dt.float64], ids=lambda d: d.name)
def test_special_values(dtype: DType) -> None:
    inf, nan = np.inf, np.nan
    table = {
        Op.EXP: ([0.0, -0.0, inf, -inf, nan, 800.0, -800.0], [1, 1, inf, 0, nan, inf, 0]),
        Op.LOG: ([0.0, -0.0, inf, -inf, nan, 1.0, -1.0], [-inf, -inf, inf, nan, nan, 0, nan]),
        Op.SIN: ([0.0, -0.0, inf, -inf, nan], [0.0, -0.0, nan, nan, nan]),
    }
    for op, (x, want) in table.items():
        for lanes in (0, 8):
            got = apply(op, dtype, np.array(x, dtype.storage), lanes)
            np.testing.assert_array_equal(got, np.array(want, dtype.storage))
            signed = ~np.isnan(got)
            np.testing.assert_array_equal(np.signbit(got)[signed], np.signbit(want)[signed])


@pytest.mark.parametrize("dtype", [dt.float16, dt.bfloat16], ids=lambda d: d.name)
@pytest.mark.parametrize("op", list(EXACT))
def test_all_values_of_the_short_types(op: Op, dtype: DType) -> None:
    """Through float32, so the result is the nearest one but for near ties."""
    stored = np.arange(1 << 16, dtype=np.uint16).view(dtype.storage)
    x = dt.from_storage(stored, dtype)
    got = dt.from_storage(apply(op, dtype, stored, 16), dtype)
    want = numeric.evaluate_alu(op, [x], dtype)
    differ = ~((got == want) | (np.isnan(got) & np.isnan(want)))
    assert differ.sum() <= 8
    np.testing.assert_allclose(
        got[differ], want[differ], rtol=2.0 ** (-7 if dtype is dt.bfloat16 else -9)
    )


def test_helpers_are_only_those_that_are_called() -> None:
    assert vmath.helpers("nothing") == ""
    assert vmath.helpers("call <8 x float> @far_sin.v8f32(").count("define") == 1


@pytest.mark.parametrize("dtype", [dt.float32, dt.float64], ids=str)
def test_scaling_by_an_instruction_gives_the_same_bits(
    dtype: DType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """exp ends in one instruction where the processor has it, or in two products of powers."""
    if "+avx512f" not in cpu_tools.device().target.features.split(","):
        pytest.skip("the processor has no such instruction")
    low, high = (-110, 95) if dtype is dt.float32 else (-760, 720)
    x = np.concatenate([np.linspace(low, high, 5000), SPECIAL]).astype(dtype.storage)
    lanes = 64 // dtype.itemsize
    name = "float" if dtype is dt.float32 else "double"
    assert "scalef" in vmath.exp(name, lanes, frozenset({"+avx512f"}))
    quick = apply(Op.EXP, dtype, x, lanes)
    monkeypatch.setattr(vmath, "_SCALE", {})
    llvm_ops.template.cache_clear()
    plain = apply(Op.EXP, dtype, x, lanes)
    llvm_ops.template.cache_clear()
    assert quick.tobytes() == plain.tobytes()
