"""A catalogue of what users do wrong: each is refused by the right class, with the right words.

Every user error is a MygradError and also the builtin that a Python programmer would catch.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mygrad import Tensor, context, jit, nn
from mygrad import dtype as dt
from mygrad import errors as e
from mygrad.helpers import optional_import


def ones(*shape: int, dtype: Any = dt.float32) -> Tensor:
    return Tensor(np.ones(shape), dtype=dtype)


class Wrong(tuple):
    """(what to call, error class, builtin class, fragments of the message)."""

    def __new__(cls, call: Callable[[], Any], error: type, builtin: type, *parts: str) -> Wrong:
        return super().__new__(cls, (call, error, builtin, parts))


SHAPES = {
    "add": Wrong(lambda: ones(2, 3) + ones(4), e.ShapeError, ValueError, "add", "(2, 3)", "(4,)"),
    "where": Wrong(
        lambda: (ones(2) > 0).where(ones(3), 0.0), e.ShapeError, ValueError, "where", "(2,)", "(3,)"
    ),
    "matmul": Wrong(
        lambda: ones(2, 3) @ ones(4, 5), e.ShapeError, ValueError, "matmul", "(2, 3)", "(4, 5)"
    ),
    "matmul of a number": Wrong(
        lambda: ones(2) @ Tensor(1.0), e.ShapeError, ValueError, "matmul", "()"
    ),
    "reshape": Wrong(
        lambda: ones(2, 3).reshape(4), e.ShapeError, ValueError, "reshape", "(2, 3)", "(4,)"
    ),
    "reshape with two -1": Wrong(
        lambda: ones(4).reshape(-1, -1), e.ShapeError, ValueError, "reshape", "-1"
    ),
    "expand": Wrong(lambda: ones(2, 3).expand(2, 4), e.ShapeError, ValueError, "expand", "(2, 4)"),
    "permute": Wrong(
        lambda: ones(2, 3).permute(0, 0), e.ShapeError, ValueError, "permute", "(0, 0)"
    ),
    "cat": Wrong(
        lambda: Tensor.cat(ones(2, 3), ones(2, 4)), e.ShapeError, ValueError, "cat", "(2, 4)"
    ),
    "stack": Wrong(
        lambda: Tensor.stack(ones(2), ones(3)), e.ShapeError, ValueError, "stack", "(3,)"
    ),
    "ragged data": Wrong(lambda: Tensor([[1], [1, 2]]), e.ShapeError, ValueError, "Tensor"),
    "item": Wrong(lambda: ones(2).item(), e.ShapeError, ValueError, "item", "(2,)", "one element"),
    "bool": Wrong(lambda: bool(ones(2)), e.ShapeError, ValueError, "bool", "(2,)", ".any()"),
    "len": Wrong(lambda: len(Tensor(1.0)), e.ShapeError, ValueError, "len", "at least one axis"),
    "assign": Wrong(
        lambda: ones(2).assign(ones(3)), e.ShapeError, ValueError, "assign", "(3,)", "(2,)"
    ),
    "conv2d channels": Wrong(
        lambda: ones(1, 3, 5, 5).conv2d(ones(4, 2, 3, 3)), e.ShapeError, ValueError, "conv2d", "3"
    ),
    "conv2d window": Wrong(
        lambda: ones(1, 1, 2, 2).conv2d(ones(1, 1, 3, 3)), e.ShapeError, ValueError, "conv2d"
    ),
    "cross_entropy": Wrong(
        lambda: ones(3, 4).cross_entropy(ones(2, dtype=dt.int64)),
        e.ShapeError, ValueError, "cross_entropy", "(3, 4)", "(2,)",
    ),
    "negative extent": Wrong(lambda: Tensor.zeros(2, -1), e.ShapeError, ValueError, "zeros", "-1"),
    "repeated axes": Wrong(
        lambda: ones(2, 2).sum(axis=(0, -2)), e.ShapeError, ValueError, "sum", "(0, -2)"
    ),
    "layer": Wrong(
        lambda: nn.Linear(3, 2)(ones(4, 5)), e.ShapeError, ValueError, "Linear", "(..., 3)"
    ),
    "convolution layer": Wrong(
        lambda: nn.Conv2d(3, 2, 3)(ones(4, 5)), e.ShapeError, ValueError, "Conv2d", "(4, 5)",
        "(N, 3, spatial, spatial)",
    ),
    "conv2d bias": Wrong(
        lambda: ones(1, 1, 4, 4).conv2d(ones(1, 1, 3, 3), ones(5)),
        e.ShapeError, ValueError, "conv2d", "(5,)", "1 output channels",
    ),
    "kernel size": Wrong(
        lambda: nn.Conv2d(1, 1, 0), e.ShapeError, ValueError, "Conv2d: kernel_size", "1 or more"
    ),
    "kernel sizes": Wrong(
        lambda: nn.MaxPool2d((2, 2, 2)), e.ShapeError, ValueError, "MaxPool2d: kernel_size", "(2,"
    ),
    "groups": Wrong(
        lambda: nn.Conv2d(3, 4, 3, groups=2), e.ShapeError, ValueError, "Conv2d", "2 groups"
    ),
    "norm layer": Wrong(
        lambda: nn.LayerNorm(3)(ones(4, 5)), e.ShapeError, ValueError, "LayerNorm", "(4, 5)", "(3,)"
    ),
    "batch norm": Wrong(
        lambda: nn.BatchNorm2d(3)(ones(4, 5)), e.ShapeError, ValueError, "BatchNorm2d", "(4, 5)",
    ),
    "group_norm of no groups": Wrong(
        lambda: ones(2, 4).group_norm(0), e.ShapeError, ValueError, "group_norm", "0 groups"
    ),
    "cat of nothing": Wrong(lambda: Tensor.cat(), e.ShapeError, ValueError, "cat", "no tensors"),
    "stack of nothing": Wrong(
        lambda: Tensor.stack(), e.ShapeError, ValueError, "stack", "no tensors"
    ),
    "arange of nan": Wrong(
        lambda: Tensor.arange(float("nan")), e.ShapeError, ValueError, "arange", "nan", "finite"
    ),
    "pool to nothing": Wrong(
        lambda: ones(1, 1, 4, 4).adaptive_avg_pool2d(0),
        e.ShapeError, ValueError, "adaptive_avg_pool2d", "0", "1 or more",
    ),
    "more than memory has addresses": Wrong(
        lambda: Tensor.zeros(1 << 40, 1 << 40).contiguous().realize().numpy(),
        e.MygradError, Exception, "free memory",
    ),
    "group norm": Wrong(
        lambda: nn.GroupNorm(2, 3), e.ShapeError, ValueError, "GroupNorm", "3 channels in 2 groups"
    ),
    "backward of many": Wrong(
        lambda: Tensor([1.0, 2.0], requires_grad=True).exp().backward(),
        (e.ShapeError, e.GradientError), Exception, "backward", "(2,)",
    ),
}  # fmt: skip

INDICES = {
    "index": Wrong(lambda: ones(3)[3], e.IndexRangeError, IndexError, "3"),
    "negative index": Wrong(lambda: ones(3)[-4], e.IndexRangeError, IndexError, "-4"),
    "too many indices": Wrong(lambda: ones(3)[0, 0], e.MygradError, IndexError, "2"),
    "sum axis": Wrong(
        lambda: ones(2, 3).sum(axis=2),
        e.IndexRangeError,
        IndexError,
        "sum",
        "axis 2",
        "-2 <= axis < 2",
    ),
    "softmax axis": Wrong(
        lambda: ones(2, 3).softmax(axis=-3), e.IndexRangeError, IndexError, "softmax", "axis -3"
    ),
    "transpose axis": Wrong(
        lambda: ones(2, 3).transpose(0, 5), e.IndexRangeError, IndexError, "transpose", "axis 5"
    ),
    "squeeze axis": Wrong(
        lambda: ones(2, 1).squeeze(4), e.IndexRangeError, IndexError, "squeeze", "axis 4"
    ),
    "flatten axis": Wrong(
        lambda: ones(2, 3).flatten(5), e.IndexRangeError, IndexError, "flatten", "axis 5"
    ),
    "place on the host": Wrong(
        lambda: ones(3).gather(0, [3]), e.IndexRangeError, IndexError, "gather", "3", "0 <= index"
    ),
    "place before the start": Wrong(
        lambda: ones(3).scatter(0, [-1], 1.0), e.IndexRangeError, IndexError, "scatter", "-1"
    ),
    "label on the host": Wrong(
        lambda: ones(2, 3).cross_entropy([0, 5]),
        e.IndexRangeError,
        IndexError,
        "cross_entropy",
        "label 5",
        "0 <= label < 3",
    ),
    "slice of floats": Wrong(lambda: ones(3)[0.5:], e.DTypeError, TypeError, "0.5 in a slice"),
    "float index": Wrong(lambda: ones(3)[ones(1)], e.DTypeError, TypeError, "float32"),
}

TYPES = {
    "unknown": Wrong(lambda: Tensor([1], dtype="float99"), e.DTypeError, TypeError, "float99"),
    "complex data": Wrong(lambda: Tensor(np.ones(2) * 1j), e.DTypeError, TypeError, "complex128"),
    "text data": Wrong(lambda: Tensor(["a"]), e.DTypeError, TypeError, "Tensor"),
    "shift of a float": Wrong(lambda: ones(2) << 1, e.DTypeError, TypeError, "float32"),
    "and of a float": Wrong(lambda: ones(2) & 1, e.DTypeError, TypeError, "float32"),
    "no common type": Wrong(
        lambda: ones(1, dtype=dt.uint64) + ones(1, dtype=dt.int8),
        e.DTypeError, TypeError, "uint64", "int8", ".cast(",
    ),
    "bitcast": Wrong(
        lambda: ones(1).bitcast(dt.int64), e.DTypeError, TypeError, "bitcast", "float32", "int64"
    ),
    "assign": Wrong(
        lambda: ones(2).assign(ones(2, dtype=dt.int32)),
        e.DTypeError, TypeError, "assign", "int32", "float32",
    ),
    "integer leaf": Wrong(
        lambda: Tensor([1], requires_grad=True), e.DTypeError, TypeError, "requires_grad", "int64"
    ),
    "axis": Wrong(
        lambda: ones(2, 3).sum(axis=1.5), e.DTypeError, TypeError, "sum", "axis 1.5", "an integer"
    ),
    "axes": Wrong(
        lambda: ones(2, 3).sum(axis=(0, None)), e.DTypeError, TypeError, "sum", "axis None"
    ),
    "axis by name": Wrong(lambda: ones(2).softmax("a"), e.DTypeError, TypeError, "softmax", "'a'"),
    "axis of cat": Wrong(
        lambda: Tensor.cat(ones(2), ones(2), axis=0.5), e.DTypeError, TypeError, "cat", "axis 0.5"
    ),
    "seed": Wrong(
        lambda: Tensor.manual_seed(1.5), e.DTypeError, TypeError, "manual_seed", "seed 1.5"
    ),
    "stride": Wrong(
        lambda: ones(1, 1, 4, 4).conv2d(ones(1, 1, 3, 3), stride=1.5),
        e.DTypeError, TypeError, "conv2d", "1.5", "an integer",
    ),
    "groups": Wrong(
        lambda: ones(1, 2, 4, 4).conv2d(ones(2, 1, 3, 3), groups=2.0),
        e.DTypeError, TypeError, "conv2d", "groups 2.0",
    ),
    "topk": Wrong(lambda: ones(3).topk(1.5), e.DTypeError, TypeError, "topk", "k 1.5"),
    "integer logits": Wrong(
        lambda: ones(2, 3, dtype=dt.int32).cross_entropy(Tensor([0, 1])),
        e.DTypeError, TypeError, "cross_entropy", "int32",
    ),
    "gradient of text": Wrong(
        lambda: Tensor([1.0], requires_grad=True).sum().gradient("a"),
        e.DTypeError, TypeError, "gradient", "str", "a tensor",
    ),
    "array into a layer": Wrong(
        lambda: nn.Linear(2, 2)(np.ones((1, 2))), e.DTypeError, TypeError, "ndarray", "Tensor(...)"
    ),
    "index of a float": Wrong(lambda: [1, 2][ones(1)], e.DTypeError, TypeError, "float32"),
}  # fmt: skip

DEVICES = {
    "unknown device": Wrong(
        lambda: Tensor([1.0], device="tpu"), e.DeviceError, RuntimeError, "tpu", "cpu"
    ),
    "to an unknown device": Wrong(
        lambda: ones(1).to("warp"), e.DeviceError, RuntimeError, "warp", "cpu"
    ),
    "an optimiser of two devices": Wrong(
        lambda: nn.optim.SGD(
            [Tensor([1.0], device=d, requires_grad=True) for d in ("cpu", "reference")]
        ),
        e.DeviceError, RuntimeError, "SGD", "cpu and reference", "one optimiser for each",
    ),
    "mixed devices": Wrong(
        lambda: Tensor([1.0], device="cpu") + Tensor([1.0], device="reference"),
        e.DeviceError, RuntimeError, "cpu", "reference", ".to(",
    ),
}  # fmt: skip

GRADIENTS = {
    "backward of a constant": Wrong(
        lambda: ones(1).sum().backward(), e.GradientError, RuntimeError, "backward", "requires_grad"
    ),
    "optimiser without parameters": Wrong(
        lambda: nn.optim.SGD([]), e.GradientError, RuntimeError, "SGD", "no parameters"
    ),
}

SETTINGS = {
    "reduction": Wrong(
        lambda: nn.MSELoss(reduction="max"), e.ConfigError, ValueError, "MSELoss", "'max'", "mean"
    ),
    "a number among weights": Wrong(
        lambda: nn.state.safe_save({"a": 5}, "unused.safetensors"),
        e.DataError, ValueError, "safe_save", "int as 'a'", "Tensors",
    ),
    "split": Wrong(lambda: nn.datasets.mnist("x"), e.DataError, ValueError, "'x'", "'train'"),
    "probability": Wrong(
        lambda: nn.Dropout("a"), e.ConfigError, ValueError, "Dropout", "'a'", "a probability"
    ),
    "learning rate": Wrong(
        lambda: nn.optim.SGD([Tensor([1.0], requires_grad=True)], lr=float("nan")),
        e.ConfigError, ValueError, "SGD", "lr=nan", "0 or more",
    ),
    "dataset": Wrong(
        lambda: nn.DataLoader(5), e.DataError, ValueError, "DataLoader", "type int", "len()"
    ),
    "batch size": Wrong(
        lambda: nn.DataLoader((np.ones(3),), 0), e.DataError, ValueError, "DataLoader", "0"
    ),
    "lengths": Wrong(
        lambda: nn.TensorDataset(np.ones(3), np.ones(2)), e.DataError, ValueError, "(3,)", "(2,)"
    ),
    "package": Wrong(
        lambda: optional_import("no_such_package", "opencl", "opencl"),
        e.MissingPackageError, ImportError, "no_such_package", "pip install 'mygrad[opencl]'",
    ),
}  # fmt: skip

CATALOGUE = {
    f"{kind}: {name}": wrong
    for kind, table in (
        ("shape", SHAPES),
        ("index", INDICES),
        ("type", TYPES),
        ("device", DEVICES),
        ("gradient", GRADIENTS),
        ("setting", SETTINGS),
    )
    for name, wrong in table.items()
}


@pytest.mark.parametrize("name", CATALOGUE)
def test_refused(name: str) -> None:
    call, error, builtin, parts = CATALOGUE[name]
    with pytest.raises(error) as caught:
        call()
    assert isinstance(caught.value, e.MygradError)
    assert isinstance(caught.value, builtin)
    text = str(caught.value)
    assert ": got " in text
    assert ", expected " in text
    assert "\n" not in text
    for part in parts:
        assert part in text


def test_errors_are_ordinary_errors() -> None:
    for error in vars(e).values():
        if isinstance(error, type) and error is not e.MygradError:
            assert issubclass(error, e.MygradError)
            assert len(error.__mro__) > len(e.MygradError.__mro__) + 1 or error is e.InternalError
            assert error.__doc__


# --- memory ---------------------------------------------------------------------------------------


def test_reading_freed_memory() -> None:
    x = ones(3)
    x.realize()
    x.free()
    with pytest.raises(e.BufferError_, match=r"free\(\) was called on it"):
        x.numpy()
    with pytest.raises(e.BufferError_, match=r"free\(\) was called on it"):
        (x + 1).numpy()


# --- jit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("item", lambda x: x.sum().item()),
        ("numpy", lambda x: x.numpy()),
        ("tolist", lambda x: x.tolist()),
        ("bool", lambda x: x if x.sum() > 0 else -x),
    ],
)
def test_values_inside_of_jit(name: str, use: Callable[[Tensor], Any]) -> None:
    with pytest.raises(e.CaptureError, match=rf"{name}: got a call inside a jitted function"):
        jit(use)(ones(3))


def test_a_tensor_that_escapes_from_jit() -> None:
    kept = []

    @jit
    def f(x: Tensor) -> Tensor:
        kept.append(x * 2)
        return x + 1

    assert f(ones(2)).tolist() == [2.0, 2.0]
    with pytest.raises(e.MygradError, match="jitted function"):
        kept[0].numpy()


def test_a_failed_capture_leaves_no_trace() -> None:
    state = ones(2)

    def f(x: Tensor) -> Tensor:
        state.assign(state + x)
        return x @ ones(5)

    with pytest.raises(e.ShapeError):
        jit(f)(ones(2))
    assert state.tolist() == [1.0, 1.0]
    assert jit(lambda x: x + state)(ones(2)).tolist() == [2.0, 2.0]


# --- the environment ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "parts"),
    [
        ("MYGRAD_DEVICE", "abacus", ("DeviceError", "abacus", "cpu")),
        ("DEBUG", "lots", ("ConfigError", "DEBUG", "'lots'", "an integer from 0 to 5")),
        ("MYGRAD_THREADS", "-3", ("ConfigError", "MYGRAD_THREADS", "'-3'")),
        ("MYGRAD_DEVISE", "cpu", ("ConfigError", "MYGRAD_DEVISE", "MYGRAD_DEVICE")),
        ("MYGRAD_DATA", "/nowhere", ("DataError", "MYGRAD_DATA", "/nowhere")),
    ],
)
def test_environment(variable: str, value: str, parts: tuple[str, ...]) -> None:
    program = (
        "from mygrad import Tensor, nn\n(Tensor([1.0]) + 1).numpy()\nnn.datasets.mnist('train')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, variable: value},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    for part in parts:
        assert part in last


@pytest.mark.parametrize("checked", [False, True])
def test_labels_and_places_in_tensors_are_looked_at_in_checked_mode(checked: bool) -> None:
    """Else they give 0, or write nothing; what is to be ignored is no error."""
    logits, table = Tensor([[0.0, 0.0], [1.0, 1.0]]), Tensor([[1.0], [2.0]])
    calls: list[tuple[Callable[[], Tensor], Any]] = [
        (lambda: logits.cross_entropy(Tensor([5, 0]), reduction="none") * 0, [0.0, 0.0]),
        (lambda: logits.log_softmax(1).nll_loss(Tensor([5, 0]), reduction="none") * 0, [0.0, 0.0]),
        (lambda: table[Tensor([2])], [[0.0]]),
        (lambda: table.gather(0, Tensor([[-1]])), [[0.0]]),
        (lambda: table.scatter(0, Tensor([[2]]), 5.0), [[1.0], [2.0]]),
        (lambda: Tensor([2]).one_hot(2), [[0, 0]]),
    ]
    with context(CHECK=checked):
        assert round(logits.cross_entropy(Tensor([-100, 1])).item(), 4) == 0.6931
        for call, value in calls:
            if checked:
                with pytest.raises(e.IndexRangeError):
                    call()
            else:
                assert call().tolist() == value
