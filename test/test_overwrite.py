"""State that is updated in place: the same values as without, and whoever holds old ones keeps
them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from graphs import array
from hypothesis import given, settings
from hypothesis import strategies as st

from mygrad import Tensor, graph, jit, nn
from mygrad.jit import Captured


def captured(run: jit) -> Captured:
    """The only capture of a jitted function."""
    ((found,),) = run.captured.values()
    return found


def overwritten(run: jit) -> int:
    """How many tensors of state are updated in place."""
    return len(captured(run).prepared.overwrites)


def state(*shape: int, seed: int = 0) -> Tensor:
    return Tensor(array(*shape, seed=seed)).realize()


def address(t: Tensor) -> int:
    return int(t._node.arg.memory.address)


def test_state_stays_where_it_is() -> None:
    p = state(40, 3)
    before, where = p.numpy(), address(p)
    run = jit(lambda x: p.assign(p * 0.5 + x).sum())
    x = state(40, 3, seed=1)
    run(x)
    run(x)
    assert overwritten(run) == 1
    assert address(p) == where
    np.testing.assert_array_equal(p.numpy(), (before * 0.5 + x.numpy()) * 0.5 + x.numpy())


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_every_state_of_an_optimizer_is_updated_in_place(name: str) -> None:
    def trained(wrap: Callable[..., object]) -> tuple[list[np.ndarray], object]:
        Tensor.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
        extra = {"momentum": 0.9} if name == "SGD" else {}
        optimizer = getattr(nn.optim, name)(model.parameters(), lr=0.01, **extra)

        def step(x: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        run = wrap(step)
        x = state(32, 8)
        losses = [run(x).numpy() for _ in range(3)]  # type: ignore[operator]
        values = [p.numpy() for p in (*model.parameters(), *optimizer.state_dict().values())]
        return [*losses, *values], run

    expected, _ = trained(lambda step: step)
    found, run = trained(jit)
    assert isinstance(run, jit)
    assert overwritten(run) == len(captured(run).updates)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_whoever_holds_old_values_keeps_them() -> None:
    p = state(30)
    start = p.numpy()
    run = jit(lambda: p.assign(p + 1))
    alias, view, pending = p.detach(), p.reshape(5, 6).realize(), p * 2
    first = run()
    np.testing.assert_array_equal(alias.numpy(), start)
    np.testing.assert_array_equal(view.numpy(), start.reshape(5, 6))
    np.testing.assert_array_equal(pending.numpy(), start * 2)
    second = run()  # the result of the first call is the state itself
    np.testing.assert_array_equal(first.numpy(), start + 1)
    np.testing.assert_array_equal(second.numpy(), start + 1 + 1)
    np.testing.assert_array_equal(p.numpy(), start + 1 + 1)
    assert overwritten(run) == 1


def test_tensors_in_one_memory_part_before_they_differ() -> None:
    p = state(20)
    q = p.detach()
    start = p.numpy()

    @jit
    def run() -> None:
        old = p + 0
        p.assign(q + 1)
        q.assign(old * 2)

    for _ in range(2):
        run()
    a, b = start, start
    for _ in range(2):
        a, b = b + 1, a * 2
    np.testing.assert_array_equal(p.numpy(), a)
    np.testing.assert_array_equal(q.numpy(), b)


def test_what_is_read_elsewhere_is_not_overwritten() -> None:
    p, q = state(6, 6), state(6, 6, seed=1)
    expected = [p.numpy().T, q.numpy() @ q.numpy()]

    @jit
    def run() -> None:
        p.assign(p.transpose(0, 1))
        q.assign(q @ q)

    run()
    assert overwritten(run) == 0
    np.testing.assert_array_equal(p.numpy(), expected[0])
    np.testing.assert_allclose(q.numpy(), expected[1], rtol=1e-5)


def test_old_and_new_values_of_one_state_in_one_kernel() -> None:
    m, p = state(50), state(50, seed=1)
    old_m, old_p = m.numpy(), p.numpy()

    @jit
    def run() -> Tensor:
        before = m * 3.0
        m.assign(m * 0.5 + 1)
        p.assign(p - m * before)
        return before

    result = run()
    assert overwritten(run) == 2
    assert len(captured(run).prepared.schedule.steps) == 1
    new = old_m * np.float32(0.5) + 1
    np.testing.assert_allclose(m.numpy(), new, rtol=1e-6)
    np.testing.assert_allclose(p.numpy(), old_p - new * (old_m * 3), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(result.numpy(), old_m * 3)


def test_a_cache_is_written_and_not_copied() -> None:
    cache = state(64, 8)
    expected, where = cache.numpy(), address(cache)

    @jit
    def write(position: Tensor, row: Tensor) -> Tensor:
        cache[position] = row
        return cache.sum(0)

    for n in (3, 0, 63):
        row = state(8, seed=n)
        total = write(Tensor(n).realize(), row)
        expected[n] = row.numpy()
        np.testing.assert_allclose(total.numpy(), expected.sum(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(cache.numpy(), expected)
    assert address(cache) == where
    moved = sum(s.what.bytes for s in captured(write).prepared.schedule.steps)  # type: ignore[union-attr]
    assert moved < 3 * cache.nbytes  # the scatter counts as if it wrote all; nothing is copied


def test_old_values_that_are_returned_are_kept() -> None:
    m = state(50)
    old = m.numpy()

    @jit
    def run() -> Tensor:
        before = m * 1.0
        m.assign(m + 1)
        return before

    np.testing.assert_array_equal(run().numpy(), old)
    np.testing.assert_array_equal(m.numpy(), old + 1)
    assert overwritten(run) == 0


def test_programs_that_can_fail_in_the_middle_keep_their_state() -> None:
    calls: list[int] = []

    def fails(x: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) > 1:
            raise ValueError("on purpose")
        return x * 2

    p = state(4, 4)
    call = graph.HostCall(fails, "fails", (4, 4), p.dtype)

    @jit
    def run() -> Tensor:
        p.assign(p + 1)
        return Tensor._wrap(graph.host(call, p.node))  # type: ignore[return-value]

    run()
    assert overwritten(run) == 0
    before = p.numpy()
    with pytest.raises(ValueError, match="on purpose"):
        run()
    np.testing.assert_array_equal(p.numpy(), before)


UPDATES: list[Callable[[Tensor, Tensor, Tensor], Tensor]] = [
    lambda a, b, c: a + 1,
    lambda a, b, c: a * 0.5 + b,
    lambda a, b, c: b - c,
    lambda a, b, c: c,
    lambda a, b, c: a.flip(0) + a,
    lambda a, b, c: (a @ b).tanh(),
    lambda a, b, c: a - a.mean(0, keepdim=True) * c,
    lambda a, b, c: (b + c).cumsum(0) * 0.25,
    lambda a, b, c: (c > 0).where(a, b),
]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.permutations(range(3)), st.integers(0, len(UPDATES) - 1)),
        min_size=1,
        max_size=5,
    )
)
def test_any_sequence_of_assignments(program: list[tuple[list[int], int]]) -> None:
    def run_with(wrap: Callable[..., object]) -> list[np.ndarray]:
        states = [state(5, 5, seed=n) for n in range(3)]

        def body() -> list[Tensor]:
            for (i, j, k), n in program:
                states[i].assign(UPDATES[n](states[i], states[j], states[k]))
            return [states[0] + states[1]]

        run = wrap(body)
        found = []
        for _ in range(2):
            found += [t.numpy() for t in run()]  # type: ignore[operator]
        return [*found, *(s.numpy() for s in states)]

    for a, b in zip(run_with(jit), run_with(lambda f: f), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
