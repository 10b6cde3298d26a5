"""Modules and losses against PyTorch; the state of models; weight files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from peers import needs_torch, torch

from mygrad import Tensor, jit, nn
from mygrad import dtype as dt
from mygrad.errors import ConfigError, DataError, MissingPackageError, ShapeError
from mygrad.nn import state

pytestmark = pytest.mark.usefixtures("reference")


def values(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def close(found: Any, expected: Any, tolerance: float = 2e-5) -> None:
    found = found.numpy() if isinstance(found, Tensor) else found
    expected = expected.detach().numpy()
    assert found.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale)


def twins(make: Callable[[Any], Any]) -> tuple[Any, Any]:
    """A model of mygrad and the same of PyTorch, with the same weights."""
    torch.manual_seed(0)
    theirs = make(torch.nn)
    ours = make(nn)
    ours.load_state_dict({name: t.numpy() for name, t in theirs.state_dict().items()})
    return ours.train(), theirs.train()


class Case(NamedTuple):
    make: Callable[[Any], Any]
    shape: tuple[int, ...]


CASES = {
    "linear": Case(lambda m: m.Linear(5, 3), (2, 7, 5)),
    "linear without bias": Case(lambda m: m.Linear(1, 4, bias=False), (3, 1)),
    "linear of no rows": Case(lambda m: m.Linear(5, 3), (0, 5)),
    "conv1d": Case(lambda m: m.Conv1d(3, 4, 3, stride=2, padding=1), (2, 3, 9)),
    "conv2d": Case(lambda m: m.Conv2d(2, 3, 3), (2, 2, 6, 5)),
    "conv2d with everything": Case(
        lambda m: m.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
        (1, 4, 7, 6),
    ),
    "conv2d depthwise": Case(lambda m: m.Conv2d(3, 3, 3, padding=1, groups=3), (2, 3, 4, 4)),
    "conv2d 1x1": Case(lambda m: m.Conv2d(3, 5, 1, bias=False), (2, 3, 2, 3)),
    "transposed": Case(
        lambda m: m.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), (2, 3, 4, 3)
    ),
    "transposed groups": Case(lambda m: m.ConvTranspose2d(4, 2, 2, groups=2), (1, 4, 3, 3)),
    "batchnorm1d": Case(lambda m: m.BatchNorm1d(3), (5, 3)),
    "batchnorm1d of sequences": Case(lambda m: m.BatchNorm1d(3, eps=1e-2), (2, 3, 4)),
    "batchnorm2d": Case(lambda m: m.BatchNorm2d(3, momentum=0.3), (2, 3, 4, 2)),
    "batchnorm2d average": Case(lambda m: m.BatchNorm2d(2, momentum=None), (3, 2, 2, 2)),
    "batchnorm2d plain": Case(
        lambda m: m.BatchNorm2d(2, affine=False, track_running_stats=False), (3, 2, 2, 2)
    ),
    "layernorm": Case(lambda m: m.LayerNorm(7), (2, 3, 7)),
    "layernorm of two axes": Case(lambda m: m.LayerNorm((3, 5), eps=1e-3), (2, 3, 5)),
    "layernorm without bias": Case(lambda m: m.LayerNorm(4, bias=False), (2, 4)),
    "rmsnorm": Case(lambda m: m.RMSNorm(7, eps=1e-6), (2, 3, 7)),
    "groupnorm": Case(lambda m: m.GroupNorm(2, 6), (2, 6, 3, 2)),
    "instancenorm": Case(lambda m: m.InstanceNorm2d(3, affine=True), (2, 3, 4, 2)),
    "maxpool": Case(lambda m: m.MaxPool2d(2), (2, 3, 4, 5)),
    "maxpool with padding": Case(lambda m: m.MaxPool2d(3, stride=2, padding=1), (1, 2, 5, 6)),
    "avgpool": Case(lambda m: m.AvgPool2d((2, 3), stride=1), (2, 1, 4, 5)),
    "avgpool with padding": Case(lambda m: m.AvgPool2d(3, stride=2, padding=1), (1, 2, 5, 6)),
    "activations": Case(
        lambda m: m.Sequential(m.Tanh(), m.SiLU(), m.GELU(), m.LeakyReLU(0.1), m.Sigmoid()), (3, 5)
    ),
    "gelu by tanh": Case(lambda m: m.GELU(approximate="tanh"), (3, 5)),
    "flatten": Case(lambda m: m.Sequential(m.Identity(), m.Flatten(), m.ReLU()), (2, 3, 2, 2)),
    "small network": Case(
        lambda m: m.Sequential(
            m.Conv2d(1, 2, 3),
            m.BatchNorm2d(2),
            m.ReLU(),
            m.MaxPool2d(2),
            m.Flatten(),
            m.Linear(8, 3),
        ),
        (3, 1, 6, 6),
    ),
}


@needs_torch
@pytest.mark.parametrize("name", CASES)
def test_forward_and_gradients(name: str) -> None:
    ours, theirs = twins(CASES[name].make)
    x = values(CASES[name].shape)
    x_ours, x_theirs = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y_ours, y_theirs = ours(x_ours), theirs(x_theirs)
    close(y_ours, y_theirs)
    weight = values(tuple(y_theirs.shape), seed=1)  # a gradient that differs everywhere
    (y_ours * Tensor(weight)).sum().backward()
    (y_theirs * torch.tensor(weight)).sum().backward()
    close(x_ours.grad, x_theirs.grad, 1e-4)
    expected = dict(theirs.named_parameters())
    found = dict(ours.named_parameters())
    assert list(found) == list(expected)
    for parameter in expected:
        close(found[parameter].grad, expected[parameter].grad, 1e-4)


@needs_torch
@pytest.mark.parametrize("name", [n for n in CASES if "batchnorm" in n])
def test_batch_statistics_over_several_batches(name: str) -> None:
    ours, theirs = twins(CASES[name].make)
    for seed in range(3):
        x = values(CASES[name].shape, seed) * (seed + 1) + seed
        close(ours(Tensor(x)), theirs(torch.tensor(x)))
    buffers = dict(theirs.named_buffers())
    assert list(dict(ours.named_buffers())) == list(buffers)
    for buffer, found in ours.named_buffers():
        close(found, buffers[buffer])
        assert not found.requires_grad
    x = values(CASES[name].shape, 9)
    before = {n: b.numpy() for n, b in ours.named_buffers()}
    close(ours.eval()(Tensor(x)), theirs.eval()(torch.tensor(x)))
    for buffer, found in ours.named_buffers():
        np.testing.assert_array_equal(found.numpy(), before[buffer])  # evaluation learns nothing


def test_batchnorm_of_one_value_per_channel() -> None:
    norm = nn.BatchNorm1d(3)
    with pytest.raises(ShapeError, match="more than one value per channel"):
        norm.train()(Tensor.ones(1, 3))
    assert norm.eval()(Tensor.ones(1, 3)).shape == (1, 3)


def test_norms_of_16_bits_do_not_overflow() -> None:
    x = values((4, 6, 2, 2)) * 300  # squares beyond 65504
    for make in (lambda: nn.LayerNorm((6, 2, 2)), lambda: nn.RMSNorm(2), lambda: nn.GroupNorm(3, 6),
                 lambda: nn.BatchNorm2d(6).train()):  # fmt: skip
        narrow, wide = make()(Tensor(x, dtype=dt.float16)), make()(Tensor(x))
        assert narrow.dtype is dt.float16
        np.testing.assert_allclose(narrow.numpy(), wide.numpy(), rtol=2e-3, atol=2e-3)


@needs_torch
def test_embedding() -> None:
    ours, theirs = twins(lambda m: m.Embedding(7, 3, padding_idx=2))
    index = np.array([[0, 2, 6], [2, 2, 1]])
    y_ours, y_theirs = ours(Tensor(index)), theirs(torch.tensor(index))
    close(y_ours, y_theirs, 0)
    (y_ours * y_ours).sum().backward()
    (y_theirs * y_theirs).sum().backward()
    close(ours.weight.grad, theirs.weight.grad)


def test_embedding_padding_row_starts_at_zero() -> None:
    weight = nn.Embedding(5, 3, padding_idx=1).weight.numpy()
    assert (weight[1] == 0).all()
    assert (weight[[0, 2, 3, 4]] != 0).all()


# --- losses ---------------------------------------------------------------------------------------

LOSSES = {
    "mse": lambda m, **o: m.MSELoss(**o),
    "l1": lambda m, **o: m.L1Loss(**o),
    "smooth l1": lambda m, **o: m.SmoothL1Loss(beta=0.7, **o),
    "bce": lambda m, **o: m.BCEWithLogitsLoss(**o),
}
CLASS_LOSSES = {
    "nll": lambda m, **o: m.Sequential(m.LogSoftmax(1), m.NLLLoss(**o)),
    "cross entropy": lambda m, **o: m.CrossEntropyLoss(**o),
    "smoothed": lambda m, **o: m.CrossEntropyLoss(label_smoothing=0.1, **o),
}


def compare_losses(ours: Any, theirs: Any, x: np.ndarray, target: np.ndarray) -> None:
    x_ours, x_theirs = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    loss, expected = ours(x_ours, Tensor(target)), theirs(x_theirs, torch.tensor(target))
    close(loss, expected)
    loss.sum().backward()
    expected.sum().backward()
    close(x_ours.grad, x_theirs.grad)


@needs_torch
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str, reduction: str) -> None:
    x, target = values((3, 5)) * 3, values((3, 5), seed=1)
    if name == "bce":
        target = (target > 0).astype(np.float32)
        x[0, :2] = 60.0, -60.0  # exp overflows or vanishes in a careless formula
    ours, theirs = (LOSSES[name](m, reduction=reduction) for m in (nn, torch.nn))
    compare_losses(ours, theirs, x, target)


@needs_torch
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4), (1, 2)])
@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_class_losses(name: str, shape: tuple[int, ...], reduction: str) -> None:
    x = values(shape) * 4
    labels = np.random.default_rng(1).integers(0, shape[1], shape[:1] + shape[2:])
    if labels.size > 1:
        labels.reshape(-1)[1] = -100  # ignored
    module_ours, module_theirs = (
        CLASS_LOSSES[name](m, reduction=reduction) for m in (nn, torch.nn)
    )
    if name == "nll":  # Sequential takes one argument
        compare_losses(
            lambda a, b: module_ours[1](module_ours[0](a), b),
            lambda a, b: module_theirs[1](module_theirs[0](a), b),
            x,
            labels,
        )
    else:
        compare_losses(module_ours, module_theirs, x, labels)


def test_losses_refuse_shapes_that_would_broadcast() -> None:
    with pytest.raises(ShapeError, match=r"MSELoss: got input \(3, 1\) and target \(3,\)"):
        nn.MSELoss()(Tensor.ones(3, 1), Tensor.ones(3))
    with pytest.raises(ShapeError, match=r"nll_loss: got target \(4,\)"):
        nn.NLLLoss()(Tensor.ones(3, 4), Tensor.zeros(4, dtype=dt.int64))
    with pytest.raises(ConfigError, match="reduction='average', expected mean, sum, none"):
        nn.L1Loss(reduction="average")


# --- modules --------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        self.first = nn.Linear(3, 4)
        self.blocks = [nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), nn.BatchNorm1d(4)]
        self.heads = {"a": nn.Linear(4, 2)}
        self.tied = self.first
        self.scale = Tensor([2.0], requires_grad=True)
        self.constant = Tensor([1.0])
        self.itself = self
        self.name, self.function = "net", lambda x: x

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, *self.blocks, self.heads["a"]):
            x = layer(x)
        return x * self.scale


def test_names() -> None:
    net = Net()
    parameters = [n for n, _ in net.named_parameters()]
    assert parameters == [
        "first.weight", "first.bias", "blocks.0.0.weight", "blocks.0.0.bias", "blocks.1.weight",
        "blocks.1.bias", "heads.a.weight", "heads.a.bias", "scale",
    ]  # fmt: skip
    buffers = [n for n, _ in net.named_buffers()]
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert buffers == [*(f"blocks.1.{n}" for n in statistics), "constant"]
    assert set(net.state_dict()) == {*parameters, *buffers, "tied.weight", "tied.bias"}
    children = ["first", "blocks.0", "blocks.1", "heads.a", "tied", "itself"]
    assert [n for n, _ in net.named_children()] == children
    assert len(net.modules()) == 7
    assert net.num_parameters() == 12 + 4 + 16 + 4 + 4 + 4 + 8 + 2 + 1
    assert net.parameters() == state.get_parameters(net)


def test_any_object_is_a_model() -> None:
    class Slotted:
        __slots__ = ("missing", "w")

        def __init__(self) -> None:
            self.w = Tensor([1.0], requires_grad=True)

    class Pair(NamedTuple):
        left: Any
        right: Any

    tree = {
        "a": [SimpleNamespace(x=Slotted())],
        "b": Pair(Tensor([1.0]), nn.Linear(1, 1, bias=False)),
    }
    assert list(state.get_state_dict(tree)) == ["a.0.x.w", "b.left", "b.right.weight"]
    assert len(state.get_parameters(tree)) == 2


def test_train_and_eval() -> None:
    net = Net()
    assert not net.training
    with Tensor.train():
        assert net.training
    net.train()
    assert all(m.training for m in net.modules())
    net.eval()
    with Tensor.train():  # an explicit choice stays
        assert not any(m.training for m in net.modules())


def test_jit_notices_the_mode() -> None:
    traced = []
    norm = nn.BatchNorm1d(2)

    @jit
    def f(x: Tensor) -> Tensor:
        traced.append(norm.training)
        return norm(x)

    x = Tensor(values((5, 2)) + 3)
    evaluated = f(x).numpy()
    with Tensor.train():
        trained = f(x).numpy()
    assert abs(trained.mean()) < 1e-5 < abs(evaluated.mean())
    norm.train()
    f(x)
    statistics = norm.running_mean.numpy()
    norm.eval()
    f(x)
    np.testing.assert_array_equal(norm.running_mean.numpy(), statistics)
    assert traced == [False, True, True, False]
    for mode in (True, False):  # all are known by now
        f(Tensor(values((5, 2))))
        norm.train(mode)
    assert len(traced) == 4


def test_a_mode_set_inside_of_jit_is_part_of_it() -> None:
    traced = []
    norm = nn.BatchNorm1d(2).eval()

    @jit
    def step(x: Tensor) -> Tensor:
        traced.append(norm.train().training)
        return norm(x)

    x = Tensor(values((5, 2)))
    first = step(x).numpy()
    norm.eval()
    np.testing.assert_array_equal(step(x).numpy(), first)
    assert traced == [True]


def test_dropout() -> None:
    Tensor.manual_seed(1)
    x = Tensor.ones(100, 100)
    y = nn.Dropout(0.25).train()(x).numpy()
    assert set(np.unique(y)) == {np.float32(0.0), np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 0.02  # 4.6 standard deviations
    assert (nn.Dropout(0.25).eval()(x).numpy() == 1).all()
    assert (nn.Dropout(0.0).train()(x).numpy() == 1).all()
    assert (nn.Dropout(1.0).train()(x).numpy() == 0).all()
    with pytest.raises(ValueError, match=r"p=1.5, expected a probability"):
        nn.Dropout(1.5)


def test_repr() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.Sequential(nn.ReLU()))
    assert repr(model).splitlines() == [
        "Sequential(",
        "  (0): Conv2d(3, 8, (3, 3), stride=(2, 2), bias=False)",
        "  (1): Sequential(",
        "    (0): ReLU()",
        "  )",
        ")",
    ]


def test_sequential() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), lambda x: x * 2)
    assert len(model) == 3
    assert isinstance(model[1], nn.ReLU)
    assert [type(layer).__name__ for layer in model] == ["Linear", "ReLU", "function"]
    x = values((4, 2))
    expected = np.maximum(x @ model[0].weight.numpy().T + model[0].bias.numpy(), 0) * 2
    np.testing.assert_allclose(model(Tensor(x)).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_module_without_forward() -> None:
    with pytest.raises(NotImplementedError, match="Module has no forward"):
        nn.Module()(1)


def test_zero_grad() -> None:
    layer = nn.Linear(2, 2)
    layer(Tensor.ones(1, 2)).sum().backward()
    assert layer.weight.grad is not None
    layer.zero_grad()
    assert layer.weight.grad is None


def test_initial_values() -> None:
    """As PyTorch's: uniform in +-1 / sqrt(fan_in) has variance 1 / (3 fan_in)."""
    Tensor.manual_seed(0)
    for layer, fan_in in ((nn.Linear(64, 300), 64), (nn.Conv2d(16, 300, 2, groups=4), 16)):
        weight = layer.weight.numpy()
        assert np.abs(weight).max() <= fan_in**-0.5
        assert np.abs(weight).max() > 0.98 * fan_in**-0.5
        assert abs(weight.mean()) < 0.02 * fan_in**-0.5
        assert abs(weight.var() * 3 * fan_in - 1) < 0.05
        assert np.abs(layer.bias.numpy()).max() <= fan_in**-0.5
    table = nn.Embedding(200, 100).weight.numpy()
    assert abs(table.mean()) < 0.03
    assert abs(table.std() - 1) < 0.03


def test_seed_decides_initial_values() -> None:
    made = []
    for seed in (5, 5, 6):
        Tensor.manual_seed(seed)
        made.append(nn.Linear(3, 3).weight.numpy())
    assert (made[0] == made[1]).all()
    assert (made[0] != made[2]).any()


# --- state ----------------------------------------------------------------------------------------


def test_load_state_dict_is_strict() -> None:
    model = nn.Linear(2, 3)
    good = {"weight": np.ones((3, 2)), "bias": np.ones(3)}
    with pytest.raises(DataError, match=r"missing bias; unexpected nothing"):
        model.load_state_dict({"weight": good["weight"]})
    with pytest.raises(DataError, match=r"missing nothing; unexpected extra"):
        model.load_state_dict({**good, "extra": np.ones(1)})
    before = model.weight.numpy()
    with pytest.raises(ShapeError, match=r"bias \(2,\) for \(3,\)"):
        model.load_state_dict({**good, "bias": np.ones(2)})
    np.testing.assert_array_equal(model.weight.numpy(), before)  # nothing was assigned
    model.load_state_dict({"weight": good["weight"], "extra": 1}, strict=False)
    assert (model.weight.numpy() == 1).all()
    assert model.weight.requires_grad
    assert model.weight.dtype is dt.float32


def test_load_state_dict_of_another_model_shares_nothing() -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    b.load_state_dict(a.state_dict())
    a.weight.assign(a.weight.detach() + 1)
    np.testing.assert_allclose(b.weight.numpy() + 1, a.weight.numpy(), rtol=1e-6)


@pytest.mark.parametrize("dtype", dt.ALL, ids=lambda d: d.name)
def test_safetensors_round_trip(tmp_path: Path, dtype: dt.DType) -> None:
    pytest.importorskip("safetensors")
    path = tmp_path / "new" / "weights.safetensors"
    numbers = Tensor(np.arange(6).reshape(2, 3) % 2, dtype=dtype)
    made = {"x": numbers, "scalar": numbers[0, 1], "empty": Tensor(np.zeros((0, 3)), dtype=dtype)}
    state.safe_save(made, path)
    loaded = state.safe_load(path)
    assert list(loaded) == sorted(made) or set(loaded) == set(made)
    for name, tensor in made.items():
        assert loaded[name].dtype is dtype
        np.testing.assert_array_equal(loaded[name].numpy(), tensor.numpy())
        assert loaded[name].shape == tensor.shape
    assert [p.name for p in path.parent.iterdir()] == ["weights.safetensors"]


def test_safetensors_of_other_programs(tmp_path: Path) -> None:
    numpy_format = pytest.importorskip("safetensors.numpy")
    theirs = {"w": values((2, 3)), "i": np.arange(3)}
    numpy_format.save_file(theirs, tmp_path / "theirs.safetensors")
    for name, tensor in state.safe_load(tmp_path / "theirs.safetensors").items():
        np.testing.assert_array_equal(tensor.numpy(), theirs[name])
    state.safe_save(
        {n: Tensor(v) for n, v in theirs.items()}, tmp_path / "ours.safetensors", {"a": "b"}
    )
    for name, array in numpy_format.load_file(tmp_path / "ours.safetensors").items():
        np.testing.assert_array_equal(array, theirs[name])


def test_safetensors_damage(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    path = tmp_path / "w.safetensors"
    state.safe_save({"w": Tensor(values((4, 4)))}, path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:4], whole[:-1], b"\xff" * 40, whole[:8] + b"[" + whole[9:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"w\.safetensors.*delete it and get it again"):
            state.safe_load(path)
    with pytest.raises(DataError, match=r"nowhere.*No such file"):
        state.safe_load(tmp_path / "nowhere")


def test_safetensors_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'mygrad\[examples\]'"):
        state.safe_save({}, tmp_path / "w")
    with pytest.raises(MissingPackageError, match="safe_load: got no package safetensors"):
        state.safe_load(tmp_path / "w")
