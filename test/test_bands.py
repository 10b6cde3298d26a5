"""Bands: the same values block by block, and no array of all rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import guarded
import numpy as np
import pytest
from graphs import array, buffer, matmul, softmax
from peers import torch

from mygrad import Tensor, compiler, context, jit, nn, realize
from mygrad import graph as g
from mygrad.graph import Node
from mygrad.helpers import prod
from mygrad.kernel import Kernel
from mygrad.ops import Op
from mygrad.program import BLOCK
from mygrad.runtime import device as devices
from mygrad.runtime.cpu import CPU
from mygrad.schedule import bands as bands_
from mygrad.schedule import cost
from mygrad.schedule.schedule import schedule
from mygrad.schedule.steps import Band, Schedule, inputs, kernels_of


@pytest.fixture(params=["by units", "by steps"])
def small(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, cache: Path) -> None:
    """Arrays of 8 kB are large; programs on disk do not know of that, so there are none."""
    monkeypatch.setattr(bands_, "BY_UNITS", {"cpu"} if request.param == "by units" else set())
    monkeypatch.setattr(cost, "BAND_LOCAL", 4 << 10)
    monkeypatch.setattr(cost, "BAND_SHARE", 2)
    monkeypatch.setattr(cost, "BAND_BYTES", 8 << 10)
    monkeypatch.setattr(cost, "BAND_BLOCK", 16 << 10)
    monkeypatch.setattr(cost, "BAND_ROWS", 2)
    realize._prepared.clear()
    yield
    realize._prepared.clear()


def blocked(plan: Schedule) -> int:
    """Steps that run for one block, or block by block."""
    return len(bands(plan)) + sum(
        isinstance(s.what, Kernel) and BLOCK in dict(s.constants) for s in plan.steps
    )


def bands(plan: Schedule) -> list[Band]:
    return [s.what for s in plan.steps if isinstance(s.what, Band)]


def attention(shape: tuple[int, ...], keys: int, between: bool, **options: object) -> list[Tensor]:
    """The output and the gradients of query, key and value; `between`: more than attention lies
    before the loss."""
    *outer, _, width = shape
    q = Tensor(array(*shape)).requires_grad_()
    k, v = (Tensor(array(*outer, keys, width, seed=n)).requires_grad_() for n in (1, 2))
    out = q.scaled_dot_product_attention(k, v, **options)
    y = (out @ Tensor(array(width, width, seed=3))).softmax(-1) if between else out
    (y * Tensor(array(*shape, seed=4))).sum().backward()
    return [out, q.grad, k.grad, v.grad]


def theirs(shape: tuple[int, ...], keys: int, between: bool, **options: object) -> list[np.ndarray]:
    *outer, _, width = shape
    q = torch.from_numpy(array(*shape)).requires_grad_()
    k, v = (torch.from_numpy(array(*outer, keys, width, seed=n)).requires_grad_() for n in (1, 2))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)
    y = (out @ torch.from_numpy(array(width, width, seed=3))).softmax(-1) if between else out
    (y * torch.from_numpy(array(*shape, seed=4))).sum().backward()
    return [t.detach().numpy() for t in (out, q.grad, k.grad, v.grad)]


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize(
    ("shape", "keys", "options"),
    [
        ((1, 2, 64, 16), 64, {}),
        ((2, 3, 64, 16), 64, {"is_causal": True}),
        ((1, 1, 61, 8), 61, {"is_causal": True}),  # a block is left over
        ((2, 2, 48, 16), 80, {}),  # other keys than queries
        ((3, 40, 12), 40, {"scale": 0.3}),
    ],
)
def test_attention(
    small: None,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, ...],
    keys: int,
    options: dict[str, object],
    between: bool,
) -> None:
    monkeypatch.setattr(cost, "BAND_BYTES", prod(shape[:-1]) * keys * 4)
    found = attention(shape, keys, between, **options)
    plan = schedule([t._node for t in found], "cpu")
    *_, rows, _ = shape
    used = [plan.memories[i] for i in {i for s in plan.steps for i in s.arguments}]
    assert not [m for m in used if m.shape[-2:] == (rows, keys) and m.dtype.is_float]
    for got, want in zip(found, theirs(shape, keys, between, **options), strict=True):
        np.testing.assert_allclose(got.numpy(), want, rtol=2e-4, atol=2e-5)


def heads(count: int, rows: int, width: int = 16) -> list[Tensor]:
    return [Tensor(array(1, count, rows, width, seed=n)).requires_grad_() for n in range(4)]


def outputs(q: Tensor, k: Tensor, v: Tensor, w: Tensor) -> list[Tensor]:
    out = q.scaled_dot_product_attention(k, v, is_causal=True)
    return [out, *(out * w).sum().gradient(q, k, v)]


def test_attention_is_one_step() -> None:
    """Forward as well as forward and backward, for 1 MB of each head's 16 MB of scores."""
    q, k, v, w = (Tensor(np.zeros((1, 4, 2048, 32), np.float32)) for _ in range(4))
    (band,) = bands(schedule([q.scaled_dot_product_attention(k, v)._node], "cpu"))
    assert (band.units, band.apart, len(band.parts)) == (4, True, 3)
    assert band.local_bytes == 2 << 20
    for t in (q, k, v):
        t.requires_grad_()
    (band,) = bands(schedule([t._node for t in outputs(q, k, v, w)], "cpu"))
    products = [p for p in band.parts if p.kernel.flops > 1e6 and p.end == band.blocks]
    assert (band.units, band.apart, len(products)) == (4, False, 6)
    q, k, v, _ = (
        Tensor(np.zeros((1, 4, 2048, 32), np.float32), device="reference") for _ in "qkv_"
    )
    plan = schedule([q.scaled_dot_product_attention(k, v)._node], "reference")
    assert blocked(plan)
    assert not bands(plan)


def test_text_of_a_band() -> None:
    q, k, v, _ = (Tensor(np.zeros((1, 4, 2048, 32), np.float32)) for _ in range(4))
    step = realize.plan(q.scaled_dot_product_attention(k, v)).kernels[-1]
    head, *kernels = step.text.split("\n\n")
    lines = head.splitlines()
    assert lines[0] == f"band {step.name}, 2097152 local bytes"
    assert lines[1] == "  for unit < 4, block < 16   threads share: unit, block"
    assert [line.split("(")[0].strip() for line in lines[2:]] == [k.name for k in step.kernels]
    assert [k.split("(")[0] for k in kernels] == [f"kernel {k.name}" for k in step.kernels]
    assert step.actions
    assert step.machine_code
    assert step.source.count("define void") == 3


def test_short_attention_runs_head_by_head() -> None:
    """12 MB of scores, of which no cache of a thread holds all, but those of any head."""
    q, k, v = (Tensor(np.zeros((8, 6, 256, 64), np.float32)) for _ in range(3))
    (band,) = bands(schedule([q.scaled_dot_product_attention(k, v)._node], "cpu"))
    assert (band.units, band.blocks) == (48, 1)
    assert band.local_bytes <= 1 << 20
    few = [t[:2] for t in (q, k, v)]  # 3 MB
    assert not bands(schedule([few[0].scaled_dot_product_attention(*few[1:])._node], "cpu"))


def test_what_all_units_read_is_not_read_again_for_each() -> None:
    """19 MB of padded images that could stay in a cache: 64 times the weights of 16 channels, 2 MB,
    are little beside that. With more channels blocks are of several images, which read the weights
    once, until 16 times these are too much as well."""
    x = Tensor(np.zeros((64, 64, 32, 32), np.float32))
    for channels, wanted in ((16, [(64, 1)]), (64, [(1, 16)]), (512, [])):
        y = x.conv2d(Tensor(np.zeros((channels, 64, 3, 3), np.float32)), padding=1)
        with context(MYGRAD_WINOGRAD=0):
            found = bands(schedule([y._node], "cpu"))
        assert [(b.units, b.blocks) for b in found] == wanted


def test_what_is_made_again_for_no_band_is_rather_kept() -> None:
    """The sum over heads cannot be in their band."""
    q, k, v = (Tensor(np.zeros((48, 256, 64), np.float32)) for _ in range(3))
    weights = (q @ k.transpose(1, 2)).softmax(-1)
    out = weights @ v
    later = (out.sum() * weights).sum(0)
    plan = schedule([out._node, later._node], "cpu")
    assert bands(plan)
    assert not any("made again" in s.reason for s in plan.steps)


def in_threads(count: int) -> CPU:
    with context(MYGRAD_THREADS=count):
        return CPU()


def check_threads(monkeypatch: pytest.MonkeyPatch, make: Callable[[], list[Tensor]]) -> None:
    """The same bits for every number of threads."""
    found = {}
    for threads in (1, 2, 3, 7):
        runtime = in_threads(threads)
        monkeypatch.setattr(devices, "get", lambda name, runtime=runtime: runtime)
        realize._prepared.clear()
        compiler._loaded.clear()
        made = make()
        Tensor.realize(*made)
        found[threads] = [t.numpy().tobytes() for t in made]
    assert all(f == found[1] for f in found.values())
    realize._prepared.clear()
    compiler._loaded.clear()


@pytest.mark.parametrize(("count", "rows"), [(1, 64), (2, 61), (5, 64)])
def test_threads_share_units_and_change_no_bit(
    small: None, monkeypatch: pytest.MonkeyPatch, count: int, rows: int
) -> None:
    """Also more threads than units: then all of them share each kernel."""
    monkeypatch.setattr(cost, "BAND_BYTES", count * rows * rows * 4)
    check_threads(monkeypatch, lambda: outputs(*heads(count, rows)))


def test_from_disk(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "BAND_BYTES", 3 * 64 * 64 * 4)
    found = []
    for _ in range(2):
        realize._prepared.clear()
        before = realize.statistics["from disk"]
        made = outputs(*heads(3, 64))
        Tensor.realize(*made)
        found.append(
            ([t.numpy().tobytes() for t in made], realize.statistics["from disk"] - before)
        )
    (first, _), (second, from_disk) = found
    assert from_disk
    assert first == second


def test_what_runs_is_timed(small: None, capsys: pytest.CaptureFixture[str]) -> None:
    q, k, v, _ = heads(8, 64)
    out = q.scaled_dot_product_attention(k, v)
    (name,) = {step.name for step in realize.plan(out).kernels if step.band} or {""}
    with context(DEBUG=2):
        out.realize()
    lines = [line for line in capsys.readouterr().err.splitlines() if "FLOP/s" in line]
    assert [line for line in lines if name in line]


def test_memory_that_overlaps(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that is given one array for several of its inputs."""
    monkeypatch.setattr(cost, "BAND_BYTES", 2 * 64 * 64 * 4)
    x = Tensor(array(1, 2, 64, 16))
    run = jit(lambda q, k, v: q.scaled_dot_product_attention(k, v))
    y = Tensor(array(1, 2, 64, 16, seed=1))
    run(x, y, Tensor(array(1, 2, 64, 16, seed=2)))
    run(x, y, Tensor(array(1, 2, 64, 16, seed=2)))
    t = torch.from_numpy(array(1, 2, 64, 16))
    want = torch.nn.functional.scaled_dot_product_attention(t, t, t)
    np.testing.assert_allclose(run(x, x, x).numpy(), want.numpy(), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("mode", [1, 2])
def test_between_guard_pages(small: None, monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    monkeypatch.setattr(cost, "BAND_BYTES", 3 * 61 * 61 * 4)

    def run() -> list[np.ndarray]:
        with context(MYGRAD_GUARD=mode):
            runtime = CPU()
            devices.get = lambda name: runtime
            return [t.numpy() for t in outputs(*heads(3, 61))]

    want = [t.numpy() for t in outputs(*heads(3, 61))]
    realize._prepared.clear()
    for got, expected in zip(guarded.in_child(run), want, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_the_memory_of_long_attention_grows_with_its_length_alone() -> None:
    peaks = {}
    for rows in (2048, 4096):
        found = attention((1, 2, rows, 64), rows, True)
        peaks[rows] = schedule([t._node for t in found], "cpu").peak_bytes
    assert peaks[4096] < 4096 * 4096 * 4  # of one of eight such arrays
    assert peaks[4096] < 2.5 * peaks[2048]


def rows_and_sums(rows: int) -> list[Node]:
    """A product by rows, and a sum over them that blocks must add up."""
    a, b = buffer(rows, 20), buffer(20, 48)
    p = softmax(matmul(a, b))
    return [g.reduce(Op.MAX, p, (1,)), matmul(g.move(Op.PERMUTE, p, (1, 0)), a)]


@pytest.mark.parametrize("rows", [16, 64, 67, 128, 131])
@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_sums_over_rows_add_blocks_up(small: None, rows: int, device: str) -> None:
    a, b = array(rows, 20), array(20, 48)
    x, y = Tensor(a, device=device), Tensor(b, device=device)
    p = (x @ y).softmax(-1)
    top, total = p.max(1), p.T @ x
    if rows > 42:
        assert blocked(schedule([top._node, total._node], device)) or rows in (67, 131)
    e = np.exp(a @ b - (a @ b).max(1, keepdims=True))
    want = e / e.sum(1, keepdims=True)
    Tensor.realize(top, total)
    np.testing.assert_allclose(top.numpy(), want.max(1), rtol=1e-4)
    np.testing.assert_allclose(total.numpy(), want.T @ a, rtol=1e-3, atol=1e-4)


def test_small_arrays_need_no_band() -> None:
    plan = schedule(rows_and_sums(128), "reference")
    assert not blocked(plan)


def test_what_the_user_keeps_stays_whole(small: None) -> None:
    scores = matmul(buffer(64, 20), buffer(20, 48))
    p = softmax(scores)
    plan = schedule([scores, p, g.reduce(Op.ADD, matmul(p, buffer(48, 8)), (1,))], "reference")
    for i in plan.results:
        assert plan.memories[i].kind == "result"


# --- readers --------------------------------------------------------------------------------------


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Arrays of 2 kB are large enough to be read from a cache, and a block costs nothing."""
    monkeypatch.setattr(cost, "BAND_BYTES", 8 << 10)
    monkeypatch.setattr(cost, "BAND_LOCAL", 16 << 10)
    monkeypatch.setattr(cost, "BAND_ALONE", 1 << 10)
    monkeypatch.setattr(cost, "BAND_ROWS", 2)
    monkeypatch.setattr(cost, "BAND_CALL", 0.0)
    realize._prepared.clear()
    yield
    realize._prepared.clear()


def parts_of(plan: Schedule) -> list[tuple[int, int]]:
    """(blocks, results) of each array of partial results."""
    in_bands = {i for s in plan.steps if isinstance(s.what, Band) for i in bands_.written_by(s)}
    combined = [s for s in plan.steps if s.reason.endswith("from partial results")]
    found = {i for s in combined for i in s.arguments} & in_bands
    return [plan.memories[i].shape for i in sorted(found)]


def plan_of(*tensors: Tensor) -> Schedule:
    return schedule([t._node for t in tensors], "cpu")


def conv_with_statistics(
    images: int, channels: int, out: int, size: int, **options: int
) -> tuple[list[Tensor], list[np.ndarray]]:
    """What a norm of a convolution needs, and what it must be."""
    x, w = array(images, channels, size, size), array(out, channels, 3, 3, seed=1)
    y = Tensor(x).conv2d(Tensor(w), **options).relu()
    pads = [(0, 0)] * 2 + [(options.get("padding", 0),) * 2] * 2
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(x, pads).astype(np.float64), (3, 3), (2, 3)
    )
    windows = windows[:, :, :: options.get("stride", 1), :: options.get("stride", 1)]
    want = np.maximum(np.einsum("nchwij,ocij->nohw", windows, w), 0)
    made = [y, y.sum((0, 2, 3)), (y.square().sum((0, 2, 3)) + 1).sqrt()]
    return made, [want, want.sum((0, 2, 3)), np.sqrt(np.square(want).sum((0, 2, 3)) + 1)]


@pytest.mark.parametrize("winograd", [0, 1])
@pytest.mark.parametrize(("images", "stride"), [(64, 1), (256, 2)])
def test_statistics_are_summed_where_their_array_is_made(
    winograd: int, images: int, stride: int
) -> None:
    """Block by block, from 12.8 MB; what is centred needs the mean of all, and reads all again."""
    x = Tensor(np.zeros((images, 32, 28, 28), np.float32))
    y = x.conv2d(Tensor(np.zeros((64, 32, 3, 3), np.float32)), stride=stride, padding=1)
    norm = nn.BatchNorm2d(64).train()
    with context(MYGRAD_WINOGRAD=winograd):
        plan = plan_of(norm(y), norm.running_mean, norm.running_var)
    ((blocks, results),) = parts_of(plan)
    (band,) = (b for b in bands(plan) if b.blocks == blocks)
    assert results == 64
    assert band.apart
    sums = band.parts[-1].kernel
    assert [b.size for b in sums.buffers if b.written] == [blocks * 64]
    (at,) = (n for n, s in enumerate(plan.steps) if s.what is band)
    assert plan.steps[at + 1].reason.endswith("from partial results")
    assert len(plan.steps[at + 2 :]) == 2  # the variance, and the result
    heavy = [k for s in plan.steps for k in kernels_of(s) if k.flops > 1e7 / blocks]
    assert sum(k.name.startswith(("products", "reduce")) for k in heavy) == 1  # not made again


def test_rows_of_a_product_are_summed_with_it() -> None:
    """A kernel alone is cut for that, unless a cache holds its result, or it reads too much again:
    here 4 MB for each block of half a megabyte."""
    for rows, width, wanted in ((16384, 384, [(64, 384)]), (4096, 384, []), (8192, 1024, [])):
        x, w = (Tensor(np.zeros((n, width), np.float32)) for n in (rows, width))
        y = x @ w
        assert parts_of(plan_of(y, y.sum(0))) == wanted


def test_a_product_is_not_cut_for_other_products() -> None:
    x, w = (Tensor(np.zeros((n, 384), np.float32)) for n in (16384, 384))
    y = x @ w
    assert not bands(plan_of(y, y.T @ x))


def test_a_kernel_that_computes_for_all_rows_is_not_repeated_for_each_block() -> None:
    """The sums over columns would be."""
    x = Tensor(np.zeros((512, 32, 400), np.float32))
    y = x * x.sum((0, 2), keepdim=True)
    assert not bands(plan_of(y, y.sum((0, 2))))


def test_an_update_of_state_stays_in_place() -> None:
    """Whether it would be read by a sum, or reads a product."""
    x, w, p = (Tensor(np.zeros(s, np.float32)) for s in ((16384, 128), (128, 384), (16384, 384)))
    state = p * 0.9
    assert not bands(plan_of(state, state.sum(0)))
    y = (x @ w).contiguous()
    state, total = p - y.softmax(1), y.sum(0)
    roots = [state._node, total._node]
    plan = schedule(roots, "cpu", in_place=[(0, inputs(roots).index(p._node))])
    assert len(parts_of(plan)) == 1
    assert plan.memories[plan.results[0]].kind == "input"


def test_large_results_come_no_earlier(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that the end needs would wait beside what is as large; not beside what is less. A sum
    may come at any time."""
    monkeypatch.setattr(bands_, "form", lambda steps, arrays: (steps, arrays))
    for width, together in ((64, False), (8, True)):
        y = Tensor(array(256, 32)) @ Tensor(array(32, 64))
        z = y[:, :width]
        for _ in range(2):
            z = (z @ Tensor(array(width, width))).contiguous()
        copy = y.softmax(1).contiguous()
        plan = plan_of(z.sum(1) @ (copy @ Tensor(array(64, 64))), y.sum(0))
        former = bands_._Former(list(plan.steps), list(plan.memories))
        (i,) = bands_.written_by(plan.steps[0])
        found = {
            plan.memories[s.arguments[-1]].shape: former.may_follow(0, n, i)
            for n, s in enumerate(plan.steps[1:], 1)
            if i in s.arguments
        }
        assert found.pop((64,))
        assert found.pop((256, 64)) == together


def test_partial_results_are_few(near: None) -> None:
    """Of images alone they would be as many as what is summed."""
    y = Tensor(array(64, 4, 8, 8)).conv2d(Tensor(array(5, 4, 3, 3, seed=1)))
    assert not parts_of(plan_of(y, y.sum(0)))
    assert parts_of(plan_of(y, y.sum((0, 2, 3))))


SHAPES = [  # and whether there are blocks of as many images each
    (1, 3, 3, 12, {}, False),
    (2, 1, 1, 40, {}, False),
    (13, 3, 24, 8, {"padding": 1}, False),
    (13, 3, 24, 5, {}, True),
    (13, 3, 5, 9, {}, True),
    (31, 2, 3, 17, {"stride": 2}, True),
    (12, 3, 3, 8, {"padding": 1}, True),
    (64, 4, 1, 16, {"padding": 1}, True),
    (0, 3, 5, 9, {}, False),
]


@pytest.mark.parametrize("winograd", [0, 1])
@pytest.mark.parametrize(("images", "channels", "out", "size", "options", "even"), SHAPES)
def test_statistics_of_convolutions(
    near: None,
    images: int,
    channels: int,
    out: int,
    size: int,
    options: dict[str, int],
    even: bool,
    winograd: int,
) -> None:
    with context(MYGRAD_WINOGRAD=winograd):
        made, wanted = conv_with_statistics(images, channels, out, size, **options)
        found = parts_of(plan_of(*made))
        assert {results for _, results in found} == ({out} if even else set())
        Tensor.realize(*made)
    for got, want in zip(made, wanted, strict=True):
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rows", [32, 61, 64, 96])
def test_partial_results_of_all_kinds(near: None, rows: int) -> None:
    """Sums, products, maxima, of which one kernel makes several, and what is made of them; a prime
    number of rows makes blocks of one, for which partial results are too many."""
    a, b = array(rows, 4), array(4, 48, seed=1)
    y = (Tensor(a) @ Tensor(b)).tanh()
    want = np.tanh(a.astype(np.float64) @ b)
    made = [y, y.sum(0), y.max(0), (y.square().sum(0) + 1).sqrt(), (1 + y / 64).prod(0), y.sum()]
    wanted = [want, want.sum(0), want.max(0), np.sqrt((want**2).sum(0) + 1)]
    wanted += [(1 + want / 64).prod(0), want.sum()]
    assert bool(parts_of(plan_of(*made))) == (rows != 61)
    Tensor.realize(*made)
    for got, value in zip(made, wanted, strict=True):
        np.testing.assert_allclose(got.numpy(), value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("images", [8, 15, 64])
def test_partial_results_do_not_depend_on_threads(
    near: None, monkeypatch: pytest.MonkeyPatch, images: int
) -> None:
    def statistics() -> list[Tensor]:
        made, _ = conv_with_statistics(images, 3, 5, 12, padding=1)
        assert parts_of(plan_of(*made))
        return made

    check_threads(monkeypatch, statistics)


def test_a_budget_holds_with_readers(near: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "BAND_ALONE", 8 << 10)
    x, w = Tensor(array(16, 4, 16, 16)), Tensor(array(8, 4, 3, 3, seed=1)).requires_grad_()

    def run(x: Tensor, w: Tensor) -> list[Tensor]:
        y = x.conv2d(w, padding=1)
        y = (y - y.mean((0, 2, 3), keepdim=True)).relu().conv2d(w[:, :1].expand(8, 8, 3, 3))
        return [y.sum((0, 2, 3)), *y.square().mean().gradient(w)]

    want = run(x, w)
    plan = plan_of(*want)
    assert parts_of(plan)
    budget = int(plan.peak_bytes * 0.9)
    bounded = schedule([t._node for t in want], "cpu", budget)
    assert bounded.peak_bytes <= budget
    step = jit(run, memory_budget=budget)
    for _ in range(3):
        got = step(x, w)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-4, atol=1e-5)
