"""Operators and elementwise functions against PyTorch, NumPy and Python, forward and backward."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from checks import assert_close, awkward_shapes, check_op, random_array
from hypothesis import given
from hypothesis import strategies as st
from interpreted import interpreted  # noqa: F401
from peers import F, torch

from mygrad import Tensor, dtypes
from mygrad.errors import DTypeError, ShapeError

pytestmark = pytest.mark.usefixtures("interpreted")

Function = Callable[..., Any]
NAN, INF = math.nan, math.inf


def method(name: str, *args: Any) -> Function:
    return lambda x: getattr(x, name)(*args)


# name: (low, high) where the function is smooth and PyTorch's method is the oracle
METHODS = {
    **dict.fromkeys(
        [
            "neg",
            "abs",
            "sign",
            "floor",
            "ceil",
            "round",
            "trunc",
            "frac",
            "exp",
            "exp2",
            "expm1",
            "sin",
            "cos",
            "atan",
            "sinh",
            "cosh",
            "tanh",
            "asinh",
            "sigmoid",
            "relu",
            "erf",
            "erfc",
            "square",
        ],
        (-3, 3),
    ),
    **dict.fromkeys(["sqrt", "rsqrt", "log", "log2", "log10"], (0.1, 3)),
    "reciprocal": (0.2, 3),
    "log1p": (-0.9, 3),
    "tan": (-1.4, 1.4),
    "asin": (-0.95, 0.95),
    "acos": (-0.95, 0.95),
    "atanh": (-0.95, 0.95),
    "acosh": (1.05, 4),
}

ACTIVATIONS: dict[str, tuple[Function, Function]] = {
    name: (method(name), getattr(F, name))
    for name in [
        "relu6",
        "leaky_relu",
        "elu",
        "selu",
        "celu",
        "gelu",
        "silu",
        "mish",
        "softplus",
        "hardtanh",
        "hardswish",
        "hardsigmoid",
        "softsign",
        "tanhshrink",
        "logsigmoid",
        "softshrink",
        "glu",
    ]
} | {
    "gelu tanh": (method("gelu", "tanh"), lambda x: F.gelu(x, approximate="tanh")),
    "softplus beta": (method("softplus", 2.0), lambda x: F.softplus(x, 2.0)),
    "celu alpha": (method("celu", 0.5), lambda x: F.celu(x, 0.5)),
    "quick_gelu": (method("quick_gelu"), lambda x: x * torch.sigmoid(1.702 * x)),
}


@pytest.mark.parametrize("name", METHODS)
def test_function(name: str) -> None:
    low, high = METHODS[name]
    check_op(method(name), (3, 13), low=low, high=high)
    check_op(method(name), (3, 13), low=low, high=high, dtype="float64")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name: str) -> None:
    fn, torch_fn = ACTIVATIONS[name]
    check_op(fn, (3, 14), torch_fn=torch_fn, low=-4, high=4)
    loose = name in ("hardsigmoid", "hardswish")  # PyTorch has float32 constants there
    check_op(
        fn,
        (3, 14),
        torch_fn=torch_fn,
        low=-4,
        high=4,
        dtype="float64",
        rtol=1e-6 if loose else None,
    )


@pytest.mark.parametrize("shape", awkward_shapes())
def test_shapes(shape: tuple[int, ...]) -> None:
    check_op(lambda x: (x.tanh() + x.sigmoid()) * 2 - 1 / (x + 5), shape)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "name", ["tanh", "erf", "exp2", "atan", "sigmoid", "softplus", "gelu", "expm1"]
)
def test_half_types(name: str, dtype: str) -> None:
    torch_fn = getattr(F, name) if name in ("softplus", "gelu") else None
    check_op(method(name), (3, 5), torch_fn=torch_fn, dtype=dtype, atol=1e-2)


# --- accuracy for small and large arguments ------------------------------------------------------

WIDE = np.concatenate(
    [s * 10.0 ** np.arange(-30, 4, 0.37) for s in (1, -1)]
    + [np.linspace(-9, 9, 301), [0.0, -0.0, INF, -INF, NAN]]
)
ULP = 1.2e-7


def wide_oracle(name: str, x: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    t = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    y = getattr(F, name)(t) if name in ("silu", "softplus") else getattr(torch, name)(t)
    (g,) = torch.autograd.grad(y.sum(), t)
    return y.detach().numpy(), g.numpy()


@pytest.mark.parametrize(
    ("name", "ulps"),
    [
        ("tanh", 12),
        ("sigmoid", 4),
        ("expm1", 6),
        ("log1p", 6),
        ("sinh", 8),
        ("asinh", 8),
        ("atan", 6),
        ("erf", 8),
        ("softplus", 8),
        ("exp2", 6),
        ("atanh", 8),
    ],
)
def test_relative_accuracy_everywhere(name: str, ulps: int) -> None:
    x = WIDE[(np.abs(WIDE) < 1) | (name != "atanh")].astype(np.float32)
    t = Tensor(x, requires_grad=True)
    y = getattr(t, name)()
    y.sum().backward()
    with np.errstate(over="ignore"):
        value, slope = (v.astype(np.float32) for v in wide_oracle(name, x))
    tiny = 1e-37  # float32 has no relative accuracy below
    assert_close(y.numpy(), value, ulps * ULP, tiny, name)
    finite = np.isfinite(x) & np.isfinite(slope) & np.isfinite(value)
    # 1 - y^2 and the like: the gradient of a saturated function is exact to an ulp of 1
    assert_close(t.grad.numpy()[finite], slope[finite], 20 * ULP, 2 * ULP, f"gradient of {name}")


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_large_angles(name: str) -> None:
    x = np.linspace(-3000, 3000, 777).astype(np.float32)
    expected = getattr(np, name)(x.astype(np.float64))
    assert_close(getattr(Tensor(x), name)().numpy(), expected.astype(np.float32), 0, 4e-7)


def test_saturated_gradients_are_no_nan() -> None:
    x = Tensor([-1e4, -100.0, 0.0, 100.0, 1e4], requires_grad=True)
    for name in (
        "sigmoid",
        "tanh",
        "silu",
        "softplus",
        "mish",
        "elu",
        "selu",
        "gelu",
        "logsigmoid",
        "erf",
    ):
        x.grad = None
        getattr(x, name)().sum().backward()
        assert np.isfinite(x.grad.numpy()).all(), name


# --- special values ------------------------------------------------------------------------------

SPECIAL = np.array(
    [0.0, -0.0, 1, -1, 0.5, -0.5, 1.5, 2.5, -2.5, 1e30, -1e30, INF, -INF, NAN, 3, -3], np.float32
)


@pytest.mark.parametrize(
    "name",
    [
        "floor",
        "ceil",
        "round",
        "trunc",
        "sign",
        "abs",
        "sqrt",
        "relu",
        "exp",
        "log",
        "tanh",
        "sigmoid",
        "isnan",
        "isinf",
        "isfinite",
        "neg",
        "square",
        "expm1",
    ],
)
def test_special_values(name: str) -> None:
    got = getattr(Tensor(SPECIAL), name)().numpy()
    expected = getattr(torch.tensor(SPECIAL), name)().numpy()
    if name == "sign":
        expected = np.sign(SPECIAL)  # PyTorch says 0 for NaN
    assert_close(got, expected, 1e-6, 0, name)
    if got.dtype.kind == "f" and name in ("floor", "ceil", "round", "trunc", "neg", "abs"):
        np.testing.assert_array_equal(np.signbit(got), np.signbit(expected))


PAIRS = [a.ravel() for a in np.meshgrid(SPECIAL, SPECIAL)]


@pytest.mark.parametrize(
    "name",
    [
        "maximum",
        "minimum",
        "lt",
        "le",
        "gt",
        "ge",
        "eq",
        "ne",
        "copysign",
        "logaddexp",
        "hypot",
        "atan2",
    ],
)
def test_special_pairs(name: str) -> None:
    a, b = PAIRS
    got = getattr(Tensor(a), name)(Tensor(b)).numpy()
    expected = getattr(torch.tensor(a), name)(torch.tensor(b)).numpy()
    if name == "hypot":  # C's rule that hypot(inf, NaN) is inf is not kept
        keep = ~(np.isnan(a) | np.isnan(b))
        got, expected = got[keep], expected[keep]
    assert_close(got, expected, 1e-6, 0, name)
    if name in ("copysign", "atan2"):
        number = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(got)[number], np.signbit(expected)[number])


@pytest.mark.parametrize("name", ["pow", "fmod", "remainder", "floor_divide"])
def test_special_pairs_of_inexact_functions(name: str) -> None:
    a, b = (p[(np.abs(PAIRS[0]) < 10) & (np.abs(PAIRS[1]) < 10)] for p in PAIRS)
    got = getattr(Tensor(a), name)(Tensor(b)).numpy()
    expected = getattr(torch.tensor(a), name)(torch.tensor(b)).numpy()
    keep = b != 0 if name in ("remainder", "floor_divide", "fmod") else b == b
    assert_close(got[keep], expected[keep], 1e-5, 0, name)


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, -1, -2, 7, 33, 0.5, -0.5, 2.5, -1.5, 2.0])
def test_powers_of_numbers(exponent: float) -> None:
    check_op(lambda x: x**exponent, (3, 5), low=0.3, high=2)
    if float(exponent).is_integer():
        check_op(lambda x: x**exponent, (3, 5), low=-1.6, high=-0.3)


def test_power_gradient_at_zero_is_finite() -> None:
    x = Tensor([0.0], requires_grad=True)
    (x**2.5 + x**3 + x.pow(Tensor([2.5]))).sum().backward()
    assert x.grad.tolist() == [0]


def test_integer_powers() -> None:
    base, exponent = np.array([2, -3, 0, 0, 1, -1, 7]), np.array([10, 3, 0, 5, 60, 61, 70])
    expected = np.array(
        [pow(int(a), int(b), 1 << 64) for a, b in zip(base, exponent, strict=True)], np.uint64
    )
    np.testing.assert_array_equal(
        Tensor(base).pow(Tensor(exponent)).numpy(), expected.view(np.int64)
    )
    assert (Tensor([3]) ** 4).tolist() == [81]
    assert (2 ** Tensor([3, 5])).tolist() == [8, 32]
    with pytest.raises(DTypeError, match="negative"):
        Tensor([3]) ** -1


# --- operators -----------------------------------------------------------------------------------

BINARY = [operator.add, operator.sub, operator.mul, operator.truediv]
SHAPE_PAIRS = [((3, 5), (5,)), ((3, 1), (1, 4)), ((), (2, 2)), ((0, 3), (3,)), ((2, 1, 3), (4, 1))]


@pytest.mark.parametrize("op", BINARY)
@pytest.mark.parametrize(("a", "b"), SHAPE_PAIRS)
def test_broadcasting(op: Function, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    check_op(op, a, b)


@pytest.mark.parametrize(
    "fn",
    [
        lambda a, b: a.maximum(b),
        lambda a, b: a.minimum(b),
        lambda a, b: a.atan2(b),
        lambda a, b: a.hypot(b),
        lambda a, b: a.logaddexp(b),
        lambda a, b: a.fmod(b),
        lambda a, b: a.remainder(b),
        lambda a, b: a.lerp(b, 0.3),
    ],
)
def test_binary_functions(fn: Function) -> None:
    check_op(fn, (3, 5), (5,))


@pytest.mark.parametrize("scalar", [2, -3, 0.5, True])
@pytest.mark.parametrize(
    "op", [*BINARY, operator.pow, operator.floordiv, operator.mod, operator.lt, operator.ge]
)
def test_scalars_on_both_sides(op: Function, scalar: float) -> None:
    x = random_array((7,), low=0.5, high=3).astype(np.float32)
    for fn in (lambda t: op(t, scalar), lambda t: op(scalar, t)):
        if (scalar, op) in ((-3, operator.pow), (True, operator.sub)):
            continue
        got, expected = fn(Tensor(x)), fn(torch.tensor(x))
        assert got.dtype.name == str(expected.dtype).removeprefix("torch.")
        assert_close(got.numpy(), expected.numpy(), 1e-5, 1e-6)


KINDS = [
    "bool",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
]


@pytest.mark.parametrize("a", KINDS)
def test_promotion_is_pytorchs(a: str) -> None:
    for b in KINDS:
        left, right = Tensor([1, 0]).cast(a), Tensor([1, 1]).cast(b)
        x, y = (
            torch.tensor([1, 0]).to(getattr(torch, a)),
            torch.tensor([1, 1]).to(getattr(torch, b)),
        )
        for op in (operator.add, operator.mul, operator.truediv):
            expected = op(x, y)
            got = op(left, right)
            assert got.dtype.name == str(expected.dtype).removeprefix("torch."), (a, b, op)
            assert got.float().tolist() == expected.float().tolist()
    for scalar in (True, 2, 2.5):
        expected = torch.ones(2, dtype=getattr(torch, a)) * scalar
        assert (Tensor([1, 1]).cast(a) * scalar).dtype.name == str(expected.dtype).removeprefix(
            "torch."
        )


INTEGERS = st.lists(st.integers(-128, 127), min_size=1, max_size=6)


@given(INTEGERS, INTEGERS)
def test_integer_arithmetic_wraps_and_floors(a: list[int], b: list[int]) -> None:
    n = min(len(a), len(b))
    x, y = np.array(a[:n], np.int8), np.array(b[:n], np.int8)
    s, t = Tensor(x), Tensor(y)
    u, v = torch.tensor(x), torch.tensor(y)
    for op in (
        operator.add,
        operator.sub,
        operator.mul,
        operator.and_,
        operator.or_,
        operator.xor,
        torch.maximum,
        torch.minimum,
        operator.lt,
        operator.le,
    ):
        name = {torch.maximum: "maximum", torch.minimum: "minimum"}.get(op)
        got = getattr(s, name)(t) if name else op(s, t)
        np.testing.assert_array_equal(got.numpy(), op(u, v).numpy())
    safe = (y != 0) & ~((x == -128) & (y == -1))
    for name in ("floor_divide", "remainder", "fmod"):
        got = getattr(s, name)(t).numpy()[safe]
        np.testing.assert_array_equal(got, getattr(u[safe], name)(v[safe]).numpy())
    got = s.div(t, rounding_mode="trunc").numpy()[safe]
    np.testing.assert_array_equal(got, torch.div(u[safe], v[safe], rounding_mode="trunc").numpy())
    np.testing.assert_array_equal((~s).numpy(), ~x)
    np.testing.assert_array_equal((s - 100).numpy(), (u - 100).numpy())


def test_integer_division_by_zero_is_zero() -> None:
    assert (Tensor([7, -7]) // 0).tolist() == [0, 0]
    assert (Tensor([7, -7]) % 0).tolist() == [0, 0]


def test_shifts_and_logic() -> None:
    x = np.array([1, -8, 5], np.int32)
    assert (Tensor(x) << 2).tolist() == (x << 2).tolist()
    assert (Tensor(x) >> 1).tolist() == (x >> 1).tolist()
    assert (Tensor(x) << 40).tolist() == [0, 0, 0]
    assert (1 << Tensor([0, 3])).tolist() == [1, 8]
    a, b = Tensor([True, True, False]), Tensor([True, False, False])
    assert (a & b).tolist() == [True, False, False]
    assert (a | b).tolist() == [True, True, False]
    assert (a ^ b).tolist() == [False, True, False]
    assert (~a).tolist() == [False, False, True]
    assert Tensor([2.0, 0.0]).logical_and(Tensor([1, 1])).tolist() == [True, False]
    assert Tensor([0.0, 3.0]).logical_not().tolist() == [True, False]
    assert (Tensor([200], dtype="uint8") - 201).tolist() == [255]


# --- choice --------------------------------------------------------------------------------------


def test_where_and_masked_fill() -> None:
    mask = np.array([[True, False, True]])
    check_op(
        lambda x, y: Tensor(mask).where(x, y),
        (4, 3),
        (3,),
        torch_fn=lambda x, y: torch.where(torch.tensor(mask), x, y),
    )
    check_op(
        lambda x: x.masked_fill(Tensor(mask), -INF).softmax(-1),
        (4, 3),
        torch_fn=lambda x: x.masked_fill(torch.tensor(mask), -INF).softmax(-1),
    )
    assert Tensor([True, False]).where(1, 2).dtype is dtypes.int64
    assert Tensor([True, False]).where(1.0, Tensor([1, 2], dtype="float16")).dtype is dtypes.float16


def test_clamp() -> None:
    for limits in ((-1, 1), (None, 0.5), (0.3, None), (1, -1)):
        check_op(lambda x, limits=limits: x.clamp(*limits), (3, 5))
    at_limits = Tensor([-1.0, 0.0, 1.0, NAN], requires_grad=True)
    at_limits.clamp(-1, 1).sum().backward()
    assert at_limits.grad.tolist() == [1, 1, 1, 1]
    check_op(lambda x, y: x.clamp(y), (3, 5), (5,))
    with pytest.raises(DTypeError):
        at_limits.clamp()


def test_gradients_at_corners_are_pytorchs() -> None:
    check_op(
        lambda x: x.relu() + x.abs() + x.relu6(),
        np.array([0.0, 6.0, -1.0]),
        torch_fn=lambda x: x.relu() + x.abs() + F.relu6(x),
    )
    check_op(lambda x, y: x.maximum(y), np.array([1.0, 2.0]), np.array([1.0, 0.0]))


def test_isclose() -> None:
    a, b = np.array([1, 1, INF, INF, NAN, NAN]), np.array([1 + 1e-9, 1.1, INF, 1, NAN, 1])
    for equal_nan in (False, True):
        expected = np.isclose(a, b, equal_nan=equal_nan)
        assert Tensor(a).isclose(Tensor(b), equal_nan=equal_nan).tolist() == expected.tolist()
    assert Tensor(a[:1]).allclose(Tensor(b[:1]))
    assert not Tensor(a).equal(Tensor(a))
    assert Tensor(a[:4]).equal(Tensor(a[:4]))


def test_numpy_operands() -> None:
    x = np.array([1.0, 2.0], np.float32)
    assert isinstance(x + Tensor(x), Tensor)
    assert (x * Tensor(x)).tolist() == [1, 4]
    assert (np.float32(2) * Tensor(x)).tolist() == [2, 4]
    assert Tensor(x).add([1, 2]).tolist() == [2, 4]


def test_errors() -> None:
    with pytest.raises(ShapeError, match=r"\(2,\) and \(3,\)"):
        Tensor([1, 2]) + Tensor([1, 2, 3])
    with pytest.raises(DTypeError):
        Tensor([1.0]) & Tensor([1.0])
    with pytest.raises(DTypeError):
        Tensor([True]) - Tensor([True])
    with pytest.raises(DTypeError):
        Tensor([1], dtype="uint64") + Tensor([1], dtype="int64")
    with pytest.raises(DTypeError, match="int8"):
        Tensor([1], dtype="int8") + 300


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["sigmoid", "silu", "gelu", "quick_gelu", "mish", "softplus"])
def test_activations_of_half_types_round_once(name: str, dtype: str) -> None:
    """The value and the gradient are those of float32, rounded at the end."""
    values = np.linspace(-9, 9, 101, dtype=np.float32)
    half = Tensor(values).cast(dtype).requires_grad_()
    wide = half.detach().float().requires_grad_()
    y, exact = getattr(half, name)(), getattr(wide, name)()
    assert y.dtype.name == dtype
    np.testing.assert_array_equal(y.float().numpy(), exact.cast(dtype).float().numpy())
    got, want = y.sum().gradient(half)[0], exact.sum().gradient(wide)[0]
    np.testing.assert_array_equal(got.float().numpy(), want.cast(dtype).float().numpy())
