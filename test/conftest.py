"""Shared by all tests: fixed seeds, Hypothesis without deadlines, a cache of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from interpreted import COMPILED

from mygrad import Device
from mygrad.config import context

# machines that run tests are slow and shared: a deadline would measure them, not us
settings.register_profile("mygrad", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("mygrad")


@pytest.fixture(autouse=True)
def _seed() -> None:
    np.random.seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    """NumPy's generator, the same in every run."""
    return np.random.default_rng(0)


@pytest.fixture
def reference() -> Iterator[None]:
    """New tensors live on the interpreter of kernels: nothing is compiled, which saves minutes
    where formulas are tested and not code generators. TEST_COMPILED=1 compiles them all the same
    (see interpreted.py)."""
    Device.DEFAULT = None if COMPILED else "reference"
    yield
    Device.DEFAULT = None


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """An empty folder as MYGRAD_CACHE."""
    folder = tmp_path / "cache"
    with context(MYGRAD_CACHE=str(folder)):
        yield folder
