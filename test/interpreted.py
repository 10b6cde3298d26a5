"""A fixture that computes tensors by the graph interpreter instead of compiling them.

Tests of what an operation *means* use it: they are about formulas, and a hundred small graphs are
interpreted in the time that one takes to compile. That devices compute what the interpreter says is
the business of other tests.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from mygrad import interpret, realize
from mygrad.graph import Node
from mygrad.program import Buffer
from mygrad.runtime import device as devices

COMPILED = os.environ.get("TEST_COMPILED", "0") == "1"


def _read(memory: Buffer) -> np.ndarray[Any, Any]:
    out = np.empty(memory.size, memory.dtype.storage)
    if out.size:
        devices.get(memory.device).read(realize.memory_of(memory), out)
    return out


def _realize(nodes: Sequence[Node], params: Mapping[str, int] | None = None) -> list[Node]:
    wanted = [n for n in dict.fromkeys(nodes) if realize.resident(n) is None]
    values = dict(zip(wanted, interpret.evaluate_all(wanted, _read, params), strict=True))
    return [
        realize.resident(n) or realize.from_numpy(values[n], n.dtype, n.device or "reference")
        for n in nodes
    ]


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    if COMPILED:
        return
    monkeypatch.setattr(realize, "realize", _realize)
    monkeypatch.setattr(devices.Device, "_chosen", "reference")
