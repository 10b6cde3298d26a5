"""Leaves, detach, no_grad, computed values, assignment, and derivatives of functions."""

from __future__ import annotations

import copy
import gc
import pickle

import numpy as np
import pytest
from checks import check_gradient
from interpreted import interpreted  # noqa: F401

from mygrad import Tensor, grad, value_and_grad
from mygrad.errors import DTypeError, GradientError, ShapeError

pytestmark = pytest.mark.usefixtures("interpreted")


def leaf(*values: float) -> Tensor:
    return Tensor(list(values), requires_grad=True)


def test_backward_accumulates_into_the_same_tensor() -> None:
    x = leaf(1.0, 2.0)
    (x * x).sum().backward()
    first = x.grad
    (x * 3).sum().backward()
    assert x.grad is first
    assert x.grad.tolist() == [5, 7]
    assert not x.grad.requires_grad


def test_leaves_of_equal_value_are_two() -> None:
    a, b = Tensor.zeros(2, requires_grad=True), Tensor.zeros(2, requires_grad=True)
    (a * 2 + b * 3).sum().backward()
    assert a.grad.tolist() == [2, 2]
    assert b.grad.tolist() == [3, 3]
    Tensor.realize(a, b)
    a.grad = b.grad = None
    (a * 2 + b * 3).sum().backward()
    assert (a.grad.tolist(), b.grad.tolist()) == ([2, 2], [3, 3])


def test_a_leaf_shares_its_value_but_not_its_gradient() -> None:
    a = leaf(1.0)
    b = Tensor(a.detach(), requires_grad=True)
    c = Tensor(a)  # follows a
    (a * 2 + b * 3 + c * 4).sum().backward()
    assert (a.grad.item(), b.grad.item(), c.grad) == (6, 3, None)


def test_reading_a_value_keeps_its_history() -> None:
    x = leaf(1.0, 2.0)
    y = (x * x).realize()
    z = (y * y).sum()
    assert z.item() == 17
    z.backward()
    assert x.grad.tolist() == [4, 32]


def test_gradient_through_a_chain_of_computed_values() -> None:
    x = leaf(1.5)
    y = x
    for _ in range(30):
        y = (y * 1.01).realize()
    y.sum().backward()
    np.testing.assert_allclose(x.grad.item(), 1.01**30, 1e-5)


def test_detach_of_a_computed_value_stops() -> None:
    x = leaf(3.0)
    y = x * x
    d = y.detach()
    Tensor.realize(y, d)
    (y * d + d * x).sum().backward()
    assert x.grad.item() == 6 * 9 + 9
    assert not d.requires_grad


def test_detach_of_lazy_values_stops() -> None:
    x = leaf(3.0)
    ((x * x).detach() * x).sum().backward()
    assert x.grad.item() == 9


def test_no_grad_results_are_constants() -> None:
    x = leaf(3.0)
    outside = x * x
    with Tensor.no_grad():
        inside = outside * x  # 27
        same = x * x
        with Tensor.enable_grad():
            on_again = x * 2
    assert not inside.requires_grad
    assert not same.requires_grad
    assert on_again.requires_grad
    (inside * x + same * x + outside).sum().backward()
    assert x.grad.item() == 27 + 9 + 6


def test_no_grad_as_decorator() -> None:
    x = leaf(1.0)

    @Tensor.no_grad()
    def step() -> Tensor:
        return x * 2

    assert not step().requires_grad
    assert (x * 2).requires_grad


def test_updated_leaf_stays_a_leaf() -> None:
    x = leaf(1.0)
    for lazily in (True, False):
        for _ in range(3):
            x.grad = None
            (x * x).sum().backward()
            with Tensor.no_grad():
                x.assign(x - x.grad * 0.1)
            if not lazily:
                x.realize()
    assert x.requires_grad
    assert x.is_leaf
    np.testing.assert_allclose(x.item(), 0.8**6, 1e-6)


def test_assigned_leaf_does_not_see_its_past() -> None:
    x = leaf(2.0)
    x.assign(x * x)  # with gradients on: still a leaf, of value 4
    (x * x).sum().backward()
    assert x.grad.item() == 8


def test_gradient_reaches_a_leaf_assigned_after_use() -> None:
    x = leaf(2.0)
    loss = (x * x).sum()
    x.assign(Tensor([5.0]))
    loss.backward()
    assert x.grad.item() == 4


def test_frozen_tensor_never_carries() -> None:
    running = Tensor([0.0], requires_grad=False)
    x = leaf(1.0)
    running.assign(running + x)
    assert not running.requires_grad
    y = Tensor([0.0])
    y.assign(x * 2)
    assert y.requires_grad
    assert y.is_leaf is False


def test_retain_grad() -> None:
    x = leaf(2.0)
    y = x * x
    y.retain_grad()
    (y * 3).sum().backward()
    assert (y.grad.item(), x.grad.item()) == (3, 12)


def test_dead_leaves_are_skipped() -> None:
    x = leaf(1.0)
    y = leaf(2.0) * x
    gc.collect()
    y.sum().backward()
    assert x.grad.item() == 2


def test_backward_with_a_gradient() -> None:
    x = leaf(1.0, 2.0)
    (x * x).backward(Tensor([1.0, 10.0]))
    assert x.grad.tolist() == [2, 40]


def test_gradient_does_not_touch_grad() -> None:
    x, y = leaf(2.0), leaf(3.0)
    loss = (x * x).sum()
    dx, dy = loss.gradient(x, y)
    assert (dx.item(), dy.tolist(), x.grad) == (4, [0], None)


def test_second_derivatives() -> None:
    x = leaf(2.0)
    (g,) = (x**3).sum().gradient(x, create_graph=True)
    (h,) = g.sum().gradient(x)
    assert (g.item(), h.item()) == (12, 12)


def test_errors() -> None:
    x = leaf(1.0, 2.0)
    with pytest.raises(GradientError, match="no leaf"):
        Tensor([1.0]).backward()
    with pytest.raises(GradientError, match="reduce it"):
        (x * 2).backward()
    with pytest.raises(ShapeError):
        (x * 2).backward(Tensor([1.0]))
    with pytest.raises(DTypeError, match="float"):
        Tensor([1], requires_grad=True)
    with pytest.raises(GradientError):
        x.sum().gradient(Tensor([1.0]))


def test_integer_steps_carry_nothing() -> None:
    x = leaf(1.5, 2.5)
    assert not (x > 2).requires_grad
    assert not x.long().requires_grad
    assert not x.argmax().requires_grad
    (x.long().float() * x).sum().backward()
    assert x.grad.tolist() == [1, 2]


def test_copies_and_pickles_of_leaves() -> None:
    x = leaf(1.0)
    for other in (copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        assert other.requires_grad
        (other * 2 + x).sum().backward()
        assert other.grad.item() == 2
    assert x.grad.item() == 2
    half = pickle.loads(pickle.dumps(Tensor([1.5], dtype="bfloat16")))
    assert (half.dtype.name, half.tolist()) == ("bfloat16", [1.5])


# --- functions -----------------------------------------------------------------------------------


def test_grad_of_a_function() -> None:
    x = Tensor([1.0, 2.0])
    value, g = value_and_grad(lambda x: (x**3).sum())(x)
    assert (value.item(), g.tolist()) == (9, [3, 12])
    assert not value.requires_grad
    assert not g.requires_grad
    assert x.grad is None


def test_grad_of_several_arguments_and_trees() -> None:
    params = {"w": Tensor([2.0]), "b": [Tensor([1.0])]}
    g = grad(lambda p, x: (p["w"] * x + p["b"][0]).sum())(params, Tensor([5.0]))
    assert (g["w"].item(), g["b"][0].item()) == (5, 1)
    x = Tensor([3.0])
    gx, gy = grad(lambda x, y: (x * x * y).sum(), argnums=(0, 1))(x, x)
    assert (gx.item(), gy.item()) == (18, 9)


def test_grad_with_more_results() -> None:
    (value, more), g = value_and_grad(lambda x: ((x * x).sum(), x + 1), has_aux=True)(Tensor([2.0]))
    assert (value.item(), more.item(), g.item()) == (4, 3, 4)


def test_nested_grad() -> None:
    def cube(x: Tensor) -> Tensor:
        return x**3

    assert grad(grad(cube))(Tensor(2.0)).item() == 12
    assert grad(grad(grad(cube)))(Tensor(2.0)).item() == 6


def test_grad_inside_of_backward() -> None:
    x = leaf(2.0)
    g = grad(lambda y: (y * y * y).sum())(x)
    g.sum().backward()
    assert x.grad.item() == 12


def test_functional_training_keeps_no_graphs() -> None:
    w = Tensor([1.0])
    for _ in range(3):
        w = w - grad(lambda w: (w * w).sum())(w) * 0.1
        assert not w.requires_grad
    np.testing.assert_allclose(w.item(), 0.8**3, 1e-6)


def test_grad_inside_no_grad() -> None:
    with Tensor.no_grad():
        assert grad(lambda x: (x * x).sum())(Tensor([3.0])).item() == 6


def test_grad_of_what_does_not_depend() -> None:
    assert grad(lambda x: Tensor(1.0))(Tensor([3.0])).tolist() == [0]
    with pytest.raises(DTypeError):
        grad(lambda x: x.sum())(Tensor([1]))


def test_numeric_check_of_a_network() -> None:
    def network(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        hidden = (x @ w).layernorm().gelu()
        return (hidden @ v).cross_entropy(Tensor([1, 0, 2]))

    check_gradient(network, (3, 4), (4, 5), (5, 3))


def test_deep_graphs_do_not_recurse() -> None:
    x = leaf(1.0)
    y = x
    for _ in range(3000):
        y = y * 1.0001
    y.sum().backward()
    np.testing.assert_allclose(x.grad.item(), 1.0001**3000, 1e-3)
