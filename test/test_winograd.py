"""Sums over windows with fewer multiplications: the values are those of the sums, for all shapes,
paddings and gradients; they are used where they pay, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from graphs import array
from hypothesis import given, settings
from hypothesis import strategies as st
from test_threads import each_machine

from mygrad import Tensor, jit, nn
from mygrad.config import context
from mygrad.errors import DeviceError
from mygrad.expr import stride
from mygrad.ops import Op
from mygrad.schedule import cost, winograd
from mygrad.schedule.schedule import schedule
from mygrad.schedule.steps import Band, Schedule, kernels_of

Array = np.ndarray[Any, Any]
KINDS = {"taps", "data", "products", "results"}


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every sum that can be computed so is."""
    monkeypatch.setattr(cost, "WORTH", 1e9)
    with context(MYGRAD_CACHE="off"):
        yield


def plan_of(*results: Tensor, device: str = "cpu", units: tuple[str, ...] = ()) -> Schedule:
    return schedule([r._node for r in results], device, units=lambda device: units)


def kinds(plan: Schedule) -> set[str]:
    """What kernels of tiles a plan has."""
    names = (k.name.partition("_")[0] for s in plan.steps for k in kernels_of(s))
    return {n for n in names if n in KINDS}


def windows(x: Array, w: Array, padding: int, groups: int = 1) -> Array:
    """A convolution in float64, offset by offset."""
    x, w = x.astype(float), w.astype(float)
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    height, width = (n - k + 1 for n, k in zip(x.shape[2:], w.shape[2:], strict=True))
    x = x.reshape(len(x), groups, -1, *x.shape[2:])
    w = w.reshape(groups, -1, *w.shape[1:])
    total = np.zeros((len(x), groups, w.shape[1], height, width))
    for i in range(w.shape[3]):
        for j in range(w.shape[4]):
            part = x[..., i : i + height, j : j + width]
            total += np.einsum("ngchw,goc->ngohw", part, w[..., i, j])
    return total.reshape(len(x), -1, height, width)


def gradients(x: Array, w: Array, g: Array, padding: int) -> tuple[Array, Array]:
    """Of the sum of g times a convolution in one group, for x and w."""
    k = w.shape[2:]
    flipped = w[:, :, ::-1, ::-1].swapaxes(0, 1)
    wide = np.pad(g.astype(float), ((0, 0), (0, 0), *((n - 1, n - 1) for n in k)))
    of_x = windows(wide, flipped, 0)
    inner = tuple(slice(padding, n - padding) for n in of_x.shape[2:])
    of_w = windows(x.swapaxes(0, 1), g.swapaxes(0, 1), padding).swapaxes(0, 1)
    return of_x[(slice(None), slice(None), *inner)], of_w


def near(got: Array, want: Array) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    groups=st.integers(1, 2),
    window=st.tuples(st.integers(3, 5), st.integers(3, 5)),
    size=st.tuples(st.integers(5, 14), st.integers(5, 14)),
    padding=st.integers(0, 2),
)
def test_forward(
    batch: int,
    channels: tuple[int, int],
    groups: int,
    window: tuple[int, int],
    size: tuple[int, int],
    padding: int,
) -> None:
    c, o = (n * groups for n in channels)
    x, w = array(batch, c, *size), array(o, c // groups, *window, seed=1)
    with pytest.MonkeyPatch.context() as patch, context(MYGRAD_CACHE="off"):
        patch.setattr(cost, "WORTH", 1e9)
        result = Tensor(x).conv2d(Tensor(w), padding=padding, groups=groups)
        long = all(n + 2 * padding - k + 1 >= k for n, k in zip(size, window, strict=True))
        assert kinds(plan_of(result)) == (KINDS if long else kinds(plan_of(result)))
        near(result.numpy(), windows(x, w, padding, groups))


@pytest.mark.parametrize(
    "shape", [(2, 3, 4, 9, 11, 3, 1), (1, 4, 2, 8, 8, 5, 2), (2, 6, 5, 12, 10, 4, 1)]
)
@pytest.mark.usefixtures("always")
def test_gradients(shape: tuple[int, ...]) -> None:
    n, c, o, height, width, k, padding = shape
    x, w = array(n, c, height, width), array(o, c, k, k, seed=1)
    mine = [Tensor(a).requires_grad_() for a in (x, w)]
    y = mine[0].conv2d(mine[1], padding=padding)
    g = array(*y.shape, seed=2)
    found = y.gradient(*mine, gradient=Tensor(g))
    for made, want in zip(found, gradients(x, w, g, padding), strict=True):
        assert kinds(plan_of(made)) == KINDS
        near(made.numpy(), want)


@pytest.mark.usefixtures("always")
def test_what_is_done_before_and_after_is_part_of_the_kernels() -> None:
    x, w, b, r = (
        array(2, 8, 10, 10),
        array(8, 8, 3, 3, seed=1),
        array(8, seed=2),
        array(2, 8, 10, 10, seed=3),
    )
    y = Tensor(x).relu().conv2d(Tensor(w), Tensor(b), padding=1)
    result = (y + Tensor(r)).relu()
    plan = plan_of(result)
    assert kinds(plan) == KINDS
    stored = [s.what for s in plan.steps if kernels_of(s)[0].name.startswith("epilogue")]
    (kernel,) = stored
    assert len(kernel.buffers) == 4  # the result, sums, bias, residual
    want = windows(np.maximum(x, 0), w, 1) + b[:, None, None] + r
    near(result.numpy(), np.maximum(want, 0))


@pytest.mark.usefixtures("always")
def test_kernels_mean_the_same_to_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "ON", frozenset({"reference"}))
    x, w = array(2, 3, 7, 9), array(4, 3, 3, 3, seed=1)
    with context(MYGRAD_DEVICE="reference"):
        mine = [Tensor(a).requires_grad_() for a in (x, w)]
        y = mine[0].conv2d(mine[1], padding=1)
        assert kinds(plan_of(y, device="reference")) == KINDS
        near(y.numpy(), windows(x, w, 1))
        g = array(*y.shape, seed=2)
        found = y.gradient(*mine, gradient=Tensor(g))
        for made, want in zip(found, gradients(x, w, g, 1), strict=True):
            near(made.numpy(), want)


@pytest.mark.usefixtures("always")
def test_tiles_that_reach_out_read_nothing_there() -> None:
    x, w, r = array(2, 3, 7, 9), array(4, 3, 3, 3, seed=1), array(2, 4, 7, 9, seed=2)
    y = (Tensor(x).conv2d(Tensor(w), padding=1) + Tensor(r)).relu()
    kernels = [k for s in plan_of(y).steps for k in kernels_of(s)]
    near(y.numpy(), np.maximum(windows(x, w, 1) + r, 0))
    assert kernels[-1].name.startswith("epilogue")
    for kernel in kernels:
        for e in kernel.nodes:
            if e.op is Op.LOAD and len(e.src) == 1:
                assert 0 <= e.src[0].low <= e.src[0].high < kernel.buffers[e.arg].size, kernel


@pytest.mark.usefixtures("always")
def test_gradients_of_gradients() -> None:
    torch = pytest.importorskip("torch")
    x, w = array(2, 3, 8, 8), array(4, 3, 3, 3, seed=1)

    def norm(x: Any, w: Any, conv: Any, gradient: Any) -> Any:
        return (gradient(conv(x, w).tanh().sum(), x) ** 2).sum()

    mine = [Tensor(a).requires_grad_() for a in (x, w)]
    norm(
        *mine,
        lambda a, b: a.conv2d(b, padding=1),
        lambda y, a: y.gradient(a, create_graph=True)[0],
    ).backward()
    his = [torch.tensor(a.astype(float), requires_grad=True) for a in (x, w)]
    norm(
        *his,
        lambda a, b: torch.nn.functional.conv2d(a, b, padding=1),
        lambda y, a: torch.autograd.grad(y, a, create_graph=True)[0],
    ).backward()
    for a, b in zip(mine, his, strict=True):
        near(a.grad.numpy(), b.grad.numpy())


@pytest.mark.usefixtures("always")
def test_a_nan_reaches_its_tile_and_no_other() -> None:
    x = array(1, 2, 16, 16)
    x[0, 0, 5, 6] = np.nan
    w = array(3, 2, 3, 3, seed=1)
    got = Tensor(x).conv2d(Tensor(w), padding=1).numpy()
    touched = np.isnan(got).any(axis=(0, 1))
    assert np.isnan(got[:, :, 4:7, 5:8]).all()  # where the window meets it
    assert touched.sum() <= 64
    assert not touched[:, 12:].any()
    assert not touched[12:].any()


# --- the choice -----------------------------------------------------------------------------------


def conv(n: int, c: int, o: int, size: int, kernel: int, **settings: Any) -> Tensor:
    groups = settings.get("groups", 1)
    x, w = Tensor.zeros(n, c, size, size).contiguous(), Tensor.zeros(o, c // groups, kernel, kernel)
    return x.realize().conv2d(w.contiguous().realize(), **settings)


def test_it_is_taken_where_it_pays() -> None:
    for n, c, size in ((32, 64, 32), (64, 128, 16), (64, 256, 8), (64, 512, 4)):
        assert kinds(plan_of(conv(n, c, c, size, 3, padding=1))) == KINDS, (n, c, size)
    for made in (
        conv(32, 256, 64, 32, 1),
        conv(32, 64, 128, 32, 3, padding=1, stride=2),
        conv(32, 64, 64, 32, 3, padding=2, dilation=2),
        conv(32, 128, 128, 32, 3, padding=1, groups=128),
        conv(64, 1, 32, 28, 5),
        conv(64, 3, 64, 32, 3, padding=1),
    ):
        assert not kinds(plan_of(made)), made.shape


def test_it_can_be_turned_off() -> None:
    made = conv(32, 64, 64, 32, 3, padding=1)
    with context(MYGRAD_WINOGRAD=0):
        assert not kinds(plan_of(made))


def test_a_setting_in_between_is_another_program() -> None:
    x, w = Tensor(array(8, 64, 16, 16)), Tensor(array(64, 64, 3, 3, seed=1))
    y = jit(lambda x, w: x.conv2d(w, padding=1))
    fast = y(x, w).numpy()
    with context(MYGRAD_WINOGRAD=0):
        direct = y(x, w).numpy()
    assert fast.tobytes() != direct.tobytes()
    near(fast, direct)


def test_narrow_numbers_are_left_to_matrix_units_that_are_faster() -> None:
    """Four times fewer products of float32 are more than dot products save, but not AMX."""
    x, w = (Tensor(array(32, 64, 16, 16)).bfloat16(), Tensor(array(64, 64, 3, 3)).bfloat16())
    root = x.conv2d(w, padding=1)
    for units, tiled in (((), True), (("dot_bf16",), True), (("amx_bf16", "amx_int8"), False)):
        assert bool(kinds(plan_of(root, units=units))) == tiled, units
    want = x.float().conv2d(w.float(), padding=1).numpy()
    with context(MYGRAD_WINOGRAD=1):
        np.testing.assert_allclose(root.float().numpy(), want, rtol=2**-7, atol=1e-5)


def test_other_devices_compute_the_sum() -> None:
    with context(MYGRAD_DEVICE="reference"):
        assert not kinds(plan_of(conv(32, 64, 64, 32, 3, padding=1), device="reference"))


def test_tiles_of_an_image_stay_in_a_cache() -> None:
    """One band from the padded copy to the results: no array of tiles exists as a whole."""
    x, w = Tensor(array(32, 64, 32, 32)), Tensor(array(64, 64, 3, 3, seed=1))
    result = x.conv2d(w, padding=1)
    plan = plan_of(result)
    (band,) = (s.what for s in plan.steps if isinstance(s.what, Band))
    assert [p.kernel.name.partition("_")[0] for p in band.parts][-4:] == [
        "data",
        "products",
        "results",
        "epilogue",
    ]
    assert band.local_bytes <= cost.BAND_LOCAL
    assert band.blocks == 32
    assert plan.peak_bytes < 2 * x.nbytes
    near(result.numpy()[:2], windows(x.numpy()[:2], w.numpy(), 1))


def test_state_is_updated_where_it_is() -> None:
    """Also where a kernel stores several elements of it: in each one its own."""
    x, start = Tensor(array(16, 64, 8, 8)), 0.1 * array(64, 64, 3, 3, seed=1)
    found = []
    for setting in (0, 1):
        with context(MYGRAD_WINOGRAD=setting):
            w = Tensor(start).realize().requires_grad_()
            optimizer = nn.optim.SGD([w], lr=0.1, momentum=0.9)

            @jit
            def step(x: Tensor, w: Tensor = w, optimizer: nn.optim.SGD = optimizer) -> Tensor:
                optimizer.zero_grad()
                loss = (x.conv2d(w, padding=1) ** 2).mean()
                loss.backward()
                optimizer.step()
                return loss

            for _ in range(3):
                step(x)
            ((captured,),) = step.captured.values()
            assert len(captured.prepared.overwrites) == 2  # the weight and its momentum
            assert bool(kinds(captured.prepared.schedule)) == setting
            found.append(w.numpy())
    near(found[1], found[0])


def test_a_small_budget_is_met_without_tiles() -> None:
    made = conv(64, 256, 256, 8, 3, padding=1)
    peaks = []
    for setting in (0, 1):
        with context(MYGRAD_WINOGRAD=setting):
            peaks.append(plan_of(made).peak_bytes)
    assert peaks[0] < peaks[1]
    plan = schedule([made._node], "cpu", memory_budget=peaks[0])
    assert plan.peak_bytes <= peaks[0]
    assert not kinds(plan)
    assert kinds(schedule([made._node], "cpu", memory_budget=peaks[1])) == KINDS
    with pytest.raises(DeviceError):
        schedule([made._node], "cpu", memory_budget=1000)


def test_the_gradient_of_a_weight_is_not_split_before() -> None:
    """Of many images with small tiles: one product over all, no partial sums."""
    x, w = (
        Tensor(array(*shape)).requires_grad_() for shape in ((64, 128, 16, 16), (128, 128, 3, 3))
    )
    y = x.conv2d(w, padding=1)
    made = y.gradient(w, gradient=Tensor(array(*y.shape)))[0]
    plan = plan_of(made)
    assert kinds(plan) == KINDS
    assert not any("partial sums" in s.reason for s in plan.steps)


@pytest.mark.usefixtures("always")
def test_threads_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = array(8, 32, 20, 20), array(32, 32, 3, 3, seed=1)
    found = []
    for _ in each_machine(monkeypatch):
        mine = [Tensor(a).requires_grad_() for a in (x, w)]
        y = mine[0].conv2d(mine[1], padding=1)
        made = [y, *y.gradient(*mine, gradient=Tensor(array(*y.shape, seed=2)))]
        assert kinds(plan_of(*made)) == KINDS
        found.append([t.numpy().tobytes() for t in made])
    assert all(f == found[0] for f in found[1:])


def test_channels_lie_side_by_side() -> None:
    """What tiles read and write has channels as its nearest axis: data and taps are lined for that
    unless they lie so, and the epilogue puts results where they belong."""
    x, w = Tensor(array(16, 32, 16, 16)), Tensor(array(64, 32, 3, 3, seed=1))
    near_x = Tensor(array(16, 16, 16, 32)).permute(0, 3, 1, 2)
    for data, count in ((x, 2), (near_x, 1)):
        plan = plan_of(data.conv2d(w))
        kernels = [k for s in plan.steps for k in kernels_of(s)]
        assert sum(k.name.startswith("lined") for k in kernels) == count
        assert kernels[-1].name.startswith("epilogue")
        for kernel in kernels:
            if kernel.name.startswith(("data", "products", "results")):
                for e in kernel.nodes:
                    lanes = kernel.axes[-1]
                    assert e.op is not Op.LOAD or stride(e.src[0], lanes) in (0, 1), kernel


def test_the_gradient_of_a_weight_is_divided_so_that_its_tiles_stay_near() -> None:
    """Two images at a time, of 512: 256 partial results, which a band computes one by one."""
    x, w = array(512, 32, 24, 24), array(32, 32, 5, 5, seed=1)
    leaf = Tensor(w).requires_grad_()
    y = Tensor(x).conv2d(leaf)
    (gradient,) = y.gradient(leaf, gradient=Tensor(array(*y.shape, seed=2)))
    plan = plan_of(gradient)
    band = next(s.what for s in plan.steps if isinstance(s.what, Band))
    assert {p.kernel.name.partition("_")[0] for p in band.parts} >= KINDS
    assert band.blocks == 256
    assert band.local_bytes <= cost.BAND_LOCAL
