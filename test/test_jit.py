"""jit: capture, replay, state, fresh results and random numbers, and what is refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from mygrad import Tensor, jit, realize
from mygrad.errors import BufferError_, CaptureError


def test_replay_gives_new_results_each_time() -> None:
    calls = []

    @jit
    def double(x: Tensor) -> Tensor:
        calls.append(x.shape)
        return x * 2 + 1

    first, second = double(Tensor([1.0, 2.0])), double(Tensor([3.0, 4.0]))
    assert first.tolist() == [3, 5]
    assert second.tolist() == [7, 9]
    assert calls == [(2,)]
    assert double(Tensor([1.0, 2.0, 3.0])).tolist() == [3, 5, 7]
    assert double(Tensor([1, 2])).tolist() == [3, 5]
    assert len(calls) == 3


def test_state_is_found_and_updated() -> None:
    total = Tensor([0.0, 0.0])
    scale = Tensor(2.0)

    @jit
    def add(x: Tensor) -> Tensor:
        total.assign(total + x * scale)
        return total.sum()

    x = Tensor([1.0, 2.0])
    assert [add(x).item() for _ in range(3)] == [6, 12, 18]
    assert total.tolist() == [6, 12]
    scale.assign(Tensor(0.5))  # changed outside: read at the next call
    assert add(x).item() == 19.5
    total.assign(Tensor([100.0, 0.0]))
    assert add(x).item() == 101.5


def test_values_seen_before_an_update_stay() -> None:
    w = Tensor([1.0, 2.0])
    kept = w.detach()
    lazy = w * 10

    @jit
    def step() -> None:
        w.assign(w + 1)

    step()
    step()
    assert w.tolist() == [3, 4]
    assert kept.tolist() == [1, 2]
    assert lazy.tolist() == [10, 20]


def test_assigning_an_argument() -> None:
    @jit
    def increment(x: Tensor) -> Tensor:
        x.assign(x + 1)
        return x

    x = Tensor([1.0])
    assert increment(x).tolist() == [2]
    assert increment(x).tolist() == [3]
    assert x.tolist() == [3]


def test_random_numbers_are_fresh() -> None:
    @jit
    def noise() -> Tensor:
        return Tensor.rand(100)

    a, b = noise().numpy(), noise().numpy()
    assert not np.array_equal(a, b)
    assert a.std() > 0.2
    assert b.std() > 0.2


class Pair(NamedTuple):
    a: Tensor
    b: list


def test_trees_and_static_arguments() -> None:
    calls = []

    @jit
    def f(pair: Pair, *, power: int, names: dict) -> dict:
        calls.append(power)
        return {"result": [pair.a**power, (names["x"] + pair.b[0],)], "power": power}

    one = Tensor([2.0])
    result = f(Pair(one, [one]), power=2, names={"x": one})
    assert result["result"][0].tolist() == [4]
    assert result["result"][1][0].tolist() == [4]
    assert result["power"] == 2
    assert f(Pair(one, [one]), power=3, names={"x": one})["result"][0].tolist() == [8]
    f(Pair(one, [one]), power=3, names={"x": one})
    assert calls == [2, 3]
    # the same tensor twice is another program than two tensors
    f(Pair(one, [Tensor([5.0])]), power=3, names={"x": one})
    assert len(calls) == 3


def test_one_and_true_are_different_static_arguments() -> None:
    f = jit(lambda x, flag: x + 1 if flag is True else x - 1)
    assert f(Tensor([1.0]), True).tolist() == [2]
    assert f(Tensor([1.0]), 1).tolist() == [0]


def test_training_mode_is_part_of_the_key() -> None:
    f = jit(lambda x: x.dropout(0.5))
    x = Tensor.ones(1000)
    assert f(x).sum().item() == 1000
    with Tensor.train():
        assert 0 < (f(x).numpy() == 0).sum() < 1000


def test_methods_and_gradients() -> None:
    class Model:
        def __init__(self) -> None:
            self.w = Tensor([1.0, 2.0], requires_grad=True)

        @jit
        def step(self, x: Tensor) -> Tensor:
            self.w.grad = None
            loss = (self.w * x).square().sum()
            loss.backward()
            self.w.assign((self.w - self.w.grad * 0.1).detach())
            return loss

    model, w, x = Model(), np.array([1.0, 2.0], np.float32), np.array([1.0, 3.0], np.float32)
    for _ in range(3):
        expected = ((w * x) ** 2).sum()
        w = w - 0.2 * w * x * x
        assert model.step(Tensor(x)).item() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(model.w.numpy(), w, rtol=1e-5)


def test_arguments_handed_through_and_repeated() -> None:
    f = jit(lambda x, y: (x, y, x, x.reshape(2, 1), 3))
    x, y, again, column, three = f(Tensor([1.0, 2.0]), Tensor([3.0]))
    assert x.tolist() == again.tolist() == [1, 2]
    assert y.tolist() == [3]
    assert column.tolist() == [[1], [2]]
    assert three == 3


def test_an_argument_that_is_not_read_is_not_computed() -> None:
    @jit
    def double(x: Tensor, unread: Tensor) -> Tensor:
        return x * 2.0

    for _ in range(3):
        graph_of_twos = Tensor([1.0, 1.0]).realize() + 1.0
        unread = Tensor([5.0]).realize() + 1.0
        assert double(graph_of_twos, unread).tolist() == [4.0, 4.0]
    assert realize.resident(unread._node) is None
    assert realize.resident(graph_of_twos._node) is not None


def test_nested_functions_are_one_capture() -> None:
    inner = jit(lambda x: x + 1)
    outer = jit(lambda x: inner(x) * inner(x))
    assert outer(Tensor([2.0])).tolist() == [9]
    assert inner(Tensor([2.0])).tolist() == [3]


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.item(),
        lambda x: x.numpy(),
        lambda x: bool(x),
        lambda x: float(x),
        lambda x: x.tolist(),
    ],
)
def test_values_are_refused_at_the_users_line(read: object) -> None:
    @jit
    def f(x: Tensor) -> object:
        return read(x.sum())  # type: ignore[operator]

    with pytest.raises(CaptureError, match="inside a jitted function"):
        f(Tensor([1.0]))
    assert jit(lambda x: x + 1)(Tensor([1.0])).tolist() == [2]  # nothing is left behind


def test_an_escaped_tensor_cannot_be_read() -> None:
    escaped = []

    @jit
    def f(x: Tensor) -> Tensor:
        escaped.append(x * 2)
        return x

    f(Tensor([1.0]))
    with pytest.raises(BufferError_, match="made inside a jitted function"):
        escaped[0].numpy()


def test_a_failing_function_leaves_everything_as_it_was() -> None:
    w = Tensor([1.0])

    @jit
    def f(x: Tensor) -> Tensor:
        w.assign(w + x)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        f(Tensor([1.0]))
    assert w.tolist() == [1]


def test_unhashable_static_argument() -> None:
    with pytest.raises(CaptureError, match="wrap arrays in Tensor"):
        jit(lambda x, y: x)(Tensor([1.0]), np.zeros(3))


def test_state_of_another_shape() -> None:
    w = Tensor([1.0, 2.0])
    f = jit(lambda x: x + w)
    f(Tensor([1.0, 2.0]))
    w.node = Tensor([1.0, 2.0, 3.0]).node
    with pytest.raises(CaptureError, match="state of shape"):
        f(Tensor([1.0, 2.0]))


def test_a_function_without_tensors() -> None:
    assert jit(lambda x: 3)(Tensor([1.0])) == 3
    assert jit(lambda: None)() is None


def in_threads(*calls: Callable[[], object]) -> list[object]:
    """What the calls return, each in a thread of its own."""
    results: list[object] = [None] * len(calls)

    def call(i: int) -> None:
        try:
            results[i] = calls[i]()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(calls))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return results


def test_threads_may_capture_and_compute_at_the_same_time() -> None:
    @jit
    def slow(x: Tensor) -> Tensor:
        time.sleep(0.1)
        return x * 3

    def eager() -> float:
        time.sleep(0.03)
        return (Tensor([1.0, 2.0]) * 2).sum().item()

    calls = [lambda: slow(Tensor([1.0])).tolist(), lambda: slow(Tensor([1.0, 2.0])).tolist()]
    assert in_threads(*calls, eager) == [[3.0], [3.0, 6.0], 6.0]


def test_threads_may_replay_at_the_same_time() -> None:
    @jit
    def product(x: Tensor) -> Tensor:
        return (x @ x).sum()

    def loop(i: int) -> bool:
        values = (float(i + k) for k in range(20))
        return all(product(Tensor(np.full((4, 4), v))).item() == 64 * v * v for v in values)

    assert in_threads(*[lambda i=i: loop(i) for i in range(3)]) == [True] * 3  # type: ignore[misc]


def test_gradient_left_behind_says_what_to_do() -> None:
    w = Tensor([1.0, 2.0], requires_grad=True)

    @jit
    def step(x: Tensor) -> Tensor:
        loss = (w * x).sum()
        loss.backward()
        return loss

    assert step(Tensor([1.0, 1.0])).item() == 3
    with pytest.raises(BufferError_, match="zero_grad"):
        w.grad.tolist()  # type: ignore[union-attr]
    w.grad = None
    (w * 2).sum().backward()
    assert w.grad is not None
    assert w.grad.tolist() == [2, 2]


def test_an_error_of_the_function_leaves_state_as_it_was() -> None:
    w = Tensor([1.0])

    @jit
    def step(x: Tensor) -> Tensor:
        w.assign(w + x)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        step(Tensor([1.0]))
    assert w.tolist() == [1.0]
