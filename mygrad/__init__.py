"""mygrad: a lazy tensor compiler that one person can read."""

from mygrad import dtype as dtypes
from mygrad.config import context
from mygrad.jit import jit
from mygrad.realize import plan
from mygrad.runtime.device import Device
from mygrad.tensor import Tensor, autocast, grad, value_and_grad

__all__ = [
    "Device",
    "Tensor",
    "autocast",
    "context",
    "dtypes",
    "grad",
    "jit",
    "plan",
    "value_and_grad",
]
