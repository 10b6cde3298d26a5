"""Random numbers: the generator's known answers, repeatability, and simple statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
from interpreted import interpreted  # noqa: F401

from mygrad import Tensor, dtypes, graph, interpret
from mygrad.capture import Capture
from mygrad.errors import DTypeError, ShapeError
from mygrad.tensor.random import threefry

pytestmark = pytest.mark.usefixtures("interpreted")


@pytest.fixture(autouse=True)
def _manual_seed() -> None:
    Tensor.manual_seed(7)


# counter, key, result: from Random123's kat_vectors
KNOWN = [
    (20, 0x00000000, 0x00000000, 0x00000000, 0x00000000, 0x6B200159, 0x99BA4EFE),
    (20, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0x1CB996FC, 0xBB002BE7),
    (20, 0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xC4923A9C, 0x483DF7A0),
    (13, 0x00000000, 0x00000000, 0x00000000, 0x00000000, 0x9D1C5EC6, 0x8BD50731),
    (13, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFD36D048, 0x2D17272C),
    (13, 0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xBA3E4725, 0xF27D669E),
]


@pytest.mark.parametrize(("rounds", "c0", "c1", "k0", "k1", "r0", "r1"), KNOWN)
def test_threefry_known_answers(
    rounds: int, c0: int, c1: int, k0: int, k1: int, r0: int, r1: int
) -> None:
    c0_, c1_, k0_, k1_ = (graph.const(v, dtypes.uint32, (1,)) for v in (c0, c1, k0, k1))
    found = threefry((c0_, c1_), (k0_, k1_), rounds)
    assert [int(interpret.evaluate(node)[0]) for node in found] == [r0, r1]


def test_same_seed_same_numbers() -> None:
    first = Tensor.rand(5).numpy(), Tensor.randn(5).numpy()
    Tensor.manual_seed(7)
    again = Tensor.rand(5).numpy(), Tensor.randn(5).numpy()
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(Tensor.rand(5).numpy(), Tensor.rand(5).numpy())
    Tensor.manual_seed((7 << 32) + 7)
    assert not np.array_equal(Tensor.rand(5).numpy(), first[0])


def test_numbers_are_the_same_in_every_version() -> None:
    assert (Tensor.rand(3) * 2**24).long().tolist() == [10000596, 13923620, 7221075]


def test_uniform_statistics() -> None:
    x = Tensor.rand(200, 100).numpy()
    assert 0 <= x.min() < 0.001
    assert 0.999 < x.max() < 1
    assert abs(x.mean() - 0.5) < 0.01
    assert abs(x.var() - 1 / 12) < 0.002
    counts = np.histogram(x, 50, (0, 1))[0]
    chi_square = ((counts - 400) ** 2 / 400).sum()
    assert 20 < chi_square < 95  # 49 degrees of freedom
    assert abs(np.corrcoef(x[:-1].ravel(), x[1:].ravel())[0, 1]) < 0.03


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_uniform_never_reaches_one(dtype: str) -> None:
    x = Tensor.rand(20000, dtype=dtype)
    assert x.dtype.name == dtype
    assert x.max().item() < 1
    assert x.min().item() >= 0
    assert abs(x.double().mean().item() - 0.5) < 0.01


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_normal_statistics(dtype: str) -> None:
    x = Tensor.randn(20000, dtype=dtype).numpy().astype(np.float64)
    assert abs(x.mean()) < 0.03
    assert abs(x.std() - 1) < 0.02
    assert abs((x**3).mean()) < 0.08
    assert abs((x**4).mean() - 3) < 0.2
    within = [(np.abs(x) < s).mean() for s in (1, 2, 3)]
    np.testing.assert_allclose(within, [math.erf(s / math.sqrt(2)) for s in (1, 2, 3)], atol=0.01)


def test_ranges_and_scales() -> None:
    x = Tensor.uniform(4000, low=-3, high=-1).numpy()
    assert x.min() >= -3
    assert x.max() < -1
    y = Tensor.normal(4000, mean=5, std=0.1).numpy()
    assert abs(y.mean() - 5) < 0.01
    w = Tensor.kaiming_uniform(40, 30, 3, 3).numpy()
    assert abs(w.std() - math.sqrt(2 / 270)) < 2e-3
    w = Tensor.kaiming_normal(40, 100).numpy()
    assert abs(w.std() - math.sqrt(2 / 100)) < 1e-2
    assert abs(Tensor.glorot_uniform(60, 40).numpy()).max() <= math.sqrt(6 / 100)
    assert abs(Tensor.scaled_uniform(10, 10).numpy()).max() <= 0.1
    assert Tensor.glorot_normal(10, 20).shape == (10, 20)


def test_randint() -> None:
    x = Tensor.randint(6000, low=-2, high=4)
    assert x.dtype is dtypes.int64
    counts = np.bincount(x.numpy() + 2)
    assert len(counts) == 6
    assert abs(counts - 1000).max() < 150
    wide = Tensor.randint(100, low=-(2**40), high=2**40).numpy()
    assert wide.min() < -(2**38)
    assert wide.max() > 2**38
    with pytest.raises(ShapeError):
        Tensor.randint(3, low=1, high=1)


def test_randperm() -> None:
    x = Tensor.randperm(50).tolist()
    assert sorted(x) == list(range(50))
    assert x != list(range(50))
    assert Tensor.randperm(0).shape == (0,)


def test_dropout() -> None:
    x = Tensor.ones(10000, requires_grad=True)
    assert x.dropout(0.3) is x
    with Tensor.train():
        y = x.dropout(0.3)
    assert not Tensor.training
    kept = y.numpy() != 0
    assert abs(kept.mean() - 0.7) < 0.02
    np.testing.assert_allclose(y.numpy()[kept], 1 / 0.7, 1e-6)
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), kept / 0.7, 1e-6)
    assert x.dropout(1.0, training=True).sum().item() == 0
    with pytest.raises(ShapeError):
        x.dropout(1.5)


def test_bernoulli_and_multinomial() -> None:
    assert abs(Tensor.full((5000,), 0.2).bernoulli().mean().item() - 0.2) < 0.02
    p = Tensor([1.0, 0.0, 3.0])
    draws = np.bincount(p.multinomial(4000, replacement=True).numpy(), minlength=3)
    assert draws[1] == 0
    assert abs(draws[2] - 3000) < 120
    rows = Tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    assert sorted(rows.multinomial(3).numpy()[0].tolist()) == [0, 1, 2]
    assert rows.multinomial(1).numpy()[1].tolist() == [1]
    with pytest.raises(ShapeError):
        p.multinomial(4)


def test_gumbel_softmax() -> None:
    logits = Tensor([[0.0, 1.0, 2.0]], requires_grad=True)
    hard = logits.gumbel_softmax(hard=True)
    assert sorted(hard.tolist()[0]) == pytest.approx([0, 0, 1])
    hard[0, 0].backward()
    assert np.isfinite(logits.grad.numpy()).all()


def test_keys_are_fresh_for_each_replay() -> None:
    with Capture(lambda lazy: lazy._node) as capture:
        Tensor.rand(3)
        Tensor.rand(3)
    assert len(capture.fresh) == 2
    first, second = (make() for _, make in capture.fresh)
    assert first.tolist() != second.tolist()
    assert first.dtype == np.uint32


def test_errors() -> None:
    with pytest.raises(DTypeError):
        Tensor.rand(3, dtype="int32")
    with pytest.raises(ShapeError):
        Tensor.rand(-1)
    assert Tensor.rand(0, 3).shape == (0, 3)
    assert Tensor.rand().shape == ()
