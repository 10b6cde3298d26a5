"""Number types: promotion against PyTorch, weak scalars, limits, and the bits of bfloat16."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers import needs_torch, torch

from mygrad import dtype as dt
from mygrad.errors import DTypeError

every = pytest.mark.parametrize("dtype", dt.ALL, ids=lambda d: d.name)


# --- promotion ---------------------------------------------------------------------------------


@needs_torch
@pytest.mark.parametrize(
    "pair", list(itertools.product(dt.ALL, dt.ALL)), ids=lambda p: f"{p[0].name}-{p[1].name}"
)
def test_promotion_follows_pytorch(pair):
    a, b = pair
    try:
        expected = torch.promote_types(getattr(torch, a.name), getattr(torch, b.name))
    except RuntimeError:  # PyTorch does not promote the wide unsigned types
        assert {a.kind, b.kind} & {"u"}
        return
    assert dt.promote(a, b).name == str(expected).removeprefix("torch.")


def test_promotion_is_a_join():
    """Commutative, idempotent, never narrower, and total but for uint64 with signed types."""
    for a, b in itertools.product(dt.ALL, dt.ALL):
        if {a.kind, b.kind} == {"i", "u"} and dt.uint64 in (a, b):
            with pytest.raises(DTypeError, match=r"promotion: got .*uint64.*expected.*; cast"):
                dt.promote(a, b)
            continue
        c = dt.promote(a, b)
        assert c is dt.promote(b, a)
        assert dt.promote(c, a) is dt.promote(c, b) is c
        assert dt.promote(a, a) is a
        if not c.is_float or a.is_float:
            assert c.min <= a.min
            assert a.max <= c.max


def test_promotion_of_wide_unsigned_integers():
    assert dt.promote(dt.uint16, dt.int8) is dt.int32
    assert dt.promote(dt.uint32, dt.int16) is dt.int64
    assert dt.promote(dt.uint32, dt.uint8) is dt.uint32
    assert dt.promote(dt.uint64, dt.float16) is dt.float16
    assert dt.promote(dt.uint64, dt.bool_) is dt.uint64


@needs_torch
@every
@pytest.mark.parametrize("value", [True, 3, 2.5], ids=["bool", "int", "float"])
def test_python_scalars_are_weak_as_in_pytorch(dtype, value):
    expected = torch.result_type(torch.zeros(3).to(getattr(torch, dtype.name)), value)
    assert dt.promote_scalar(dtype, value).name == str(expected).removeprefix("torch.")


def test_types_of_scalars():
    assert [dt.of_scalar(v) for v in (True, 1, 1.0)] == [dt.bool_, dt.int64, dt.float32]
    assert dt.of_scalar(np.bool_(True)) is dt.bool_
    assert dt.of_scalar(np.int8(1)) is dt.int64
    assert dt.of_scalar(math.nan) is dt.float32


# --- names and limits --------------------------------------------------------------------------


@every
def test_names_copies_and_limits(dtype):
    assert dt.parse(dtype) is dt.parse(dtype.name) is dtype
    assert pickle.loads(pickle.dumps(dtype)) is copy.deepcopy(dtype) is dtype
    assert repr(dtype) == f"mygrad.{dtype.name}"
    assert dtype.storage.itemsize == dtype.itemsize
    assert dtype.is_float + dtype.is_int + (dtype.kind == "b") == 1
    if dtype.is_float:
        assert (dtype.min, dtype.max) == (-math.inf, math.inf)
    elif dtype.is_int:
        limits = np.iinfo(dtype.storage)
        assert (dtype.min, dtype.max, dtype.bits) == (limits.min, limits.max, limits.bits)
    else:
        assert (dtype.min, dtype.max, dtype.bits) == (0, 1, 1)


@pytest.mark.parametrize("dtype", [d for d in dt.ALL if d is not dt.bfloat16], ids=lambda d: d.name)
def test_numpy_types_are_understood(dtype):
    for value in (dtype.storage, dtype.storage.type, dtype.storage.newbyteorder(">")):
        assert dt.parse(value) is dtype
    assert dt.parse(np.zeros(2, dtype.storage).dtype) is dtype


def test_other_spellings():
    assert [dt.parse(t) for t in (float, int, bool)] == [dt.float32, dt.int64, dt.bool_]
    names = {
        "half": dt.float16,
        "float": dt.float32,
        "double": dt.float64,
        "int": dt.int32,
        "long": dt.int64,
    }
    assert {name: dt.parse(name) for name in names} == names
    assert dt.parse(np.dtype("float64")) is dt.float64, "though np.dtype('float64') == float"


@pytest.mark.parametrize(
    "value", ["float8", "complex64", np.complex128, np.dtype("U3"), object, None, 3, [1]]
)
def test_unknown_types_are_refused_with_the_known_ones(value):
    with pytest.raises(DTypeError, match=r"dtype: got .*, expected bool, int8, .*float64"):
        dt.parse(value)


# --- bfloat16 ----------------------------------------------------------------------------------


def test_every_bfloat16_survives_the_round_trip():
    bits = np.arange(2**16, dtype=np.uint16)
    values = dt.from_storage(bits, dt.bfloat16)
    nan = np.isnan(values)
    assert nan.sum() == 2 * 127
    back = dt.to_storage(values, dt.bfloat16)
    np.testing.assert_array_equal(back[~nan], bits[~nan])
    assert np.isnan(dt.from_storage(back, dt.bfloat16)[nan]).all()


def test_bits_of_known_numbers():
    values = [0.0, -0.0, 1.0, -2.0, math.inf, -math.inf, 3.140625, 2.0**-133]
    stored = dt.to_storage(np.array(values), dt.bfloat16)
    assert stored.tolist() == [0, 0x8000, 0x3F80, 0xC000, 0x7F80, 0xFF80, 0x4049, 0x0001]
    assert stored.dtype == np.uint16


def test_ties_go_to_even_and_large_numbers_to_infinity():
    one, ulp = 0x3F80, 2.0**-7
    values = [1 + ulp / 2, 1 + ulp * 1.5, 1 + ulp * 0.5001, 1 + ulp * 0.4999, 3.4e38, 3.38e38]
    stored = dt.to_storage(np.array(values), dt.bfloat16)
    assert stored.tolist() == [one, one + 2, one + 1, one, 0x7F80, 0x7F7E]


def test_nans_with_few_bits_stay_nan():
    bits = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0x7F80FFFF], np.uint32)
    values = dt.from_storage(dt.to_storage(bits.view(np.float32), dt.bfloat16), dt.bfloat16)
    assert np.isnan(values).all()
    assert np.signbit(values).tolist() == [False, True, False, False]


@needs_torch
@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_rounding_to_bfloat16_as_pytorch(values):
    array = np.array(values, np.float32)
    got = dt.from_storage(dt.to_storage(array, dt.bfloat16), dt.bfloat16)
    expected = torch.tensor(array).bfloat16().float().numpy()
    np.testing.assert_array_equal(got.view(np.uint32)[~np.isnan(array)],
                                  expected.view(np.uint32)[~np.isnan(array)])  # fmt: skip
    assert (np.isnan(got) == np.isnan(array)).all()


@every
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_storage_keeps_shapes_and_values(dtype, shape):
    values = np.ones(shape, np.float32 if dtype is dt.bfloat16 else dtype.storage)
    stored = dt.to_storage(values, dtype)
    assert (stored.shape, stored.dtype) == (shape, dtype.storage)
    back = dt.from_storage(stored, dtype)
    assert back.dtype == values.dtype
    np.testing.assert_array_equal(back, values)
