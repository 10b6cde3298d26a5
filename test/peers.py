"""PyTorch, the oracle of many tests. Where it is missing, what stands in for it skips the test that
calls anything of it."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest


class _Missing:
    """Stands for a package and for all that is in it, so that tables of its functions can be made.

    Without `__eq__` and friends: a test that only names its constants must call something, too.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Missing()

    def __call__(self, *arguments: Any, **options: Any) -> NoReturn:
        pytest.skip("PyTorch is not installed")


try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = F = _Missing()

has_torch = not isinstance(torch, _Missing)
needs_torch = pytest.mark.skipif(not has_torch, reason="PyTorch is not installed")
