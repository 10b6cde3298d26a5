"""Normalisation, attention and losses against PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from checks import check_op, random_array
from interpreted import interpreted  # noqa: F401
from peers import F, torch

from mygrad import Tensor
from mygrad.errors import DTypeError, ShapeError

pytestmark = pytest.mark.usefixtures("interpreted")

TARGET = np.array([1, 0, -100, 2])
REDUCTIONS = ["mean", "sum", "none"]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(reduction: str, label_smoothing: float, weighted: bool) -> None:
    weight = np.array([0.5, 1, 2], np.float32) if weighted else None
    kwargs: dict[str, Any] = {"reduction": reduction, "label_smoothing": label_smoothing}
    check_op(
        lambda x: x.cross_entropy(
            Tensor(TARGET), None if weight is None else Tensor(weight), **kwargs
        ),
        (4, 3),
        torch_fn=lambda x: F.cross_entropy(
            x, torch.tensor(TARGET), None if weight is None else torch.tensor(weight), **kwargs
        ),
    )


def test_cross_entropy_of_other_shapes() -> None:
    pixels = np.array([[[0, 1], [2, -100], [1, 1]]])
    check_op(
        lambda x: x.cross_entropy(Tensor(pixels)),
        (1, 3, 3, 2),
        torch_fn=lambda x: F.cross_entropy(x, torch.tensor(pixels)),
    )
    check_op(
        lambda x: x.cross_entropy(Tensor(2)),
        (3,),
        torch_fn=lambda x: F.cross_entropy(x, torch.tensor(2)),
    )
    for smoothing in (0.0, 0.2):
        check_op(
            lambda x, p, s=smoothing: x.cross_entropy(p.softmax(1), label_smoothing=s),
            (4, 3),
            (4, 3),
            torch_fn=lambda x, p, s=smoothing: F.cross_entropy(x, p.softmax(1), label_smoothing=s),
        )


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32"])
def test_labels_of_any_integer_type(dtype: str) -> None:
    x, t = random_array((3, 4)), np.array([1, 3, 0])
    expected = F.cross_entropy(torch.tensor(x), torch.tensor(t)).item()
    assert Tensor(x).cross_entropy(Tensor(t, dtype=dtype)).item() == pytest.approx(expected)
    assert Tensor(x).log_softmax(1).nll_loss(Tensor(t, dtype=dtype)).item() == pytest.approx(
        expected
    )


def test_cross_entropy_of_large_logits_and_half() -> None:
    x = np.array([[1e4, 0, -1e4], [50, -50, 100]])
    check_op(
        lambda x: x.cross_entropy(Tensor([1, 2])),
        x,
        torch_fn=lambda x: F.cross_entropy(x, torch.tensor([1, 2])),
    )
    check_op(
        lambda x: x.cross_entropy(Tensor([1, 2])),
        (2, 3),
        dtype="bfloat16",
        torch_fn=lambda x: F.cross_entropy(x, torch.tensor([1, 2])),
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nll_loss(reduction: str) -> None:
    weight = np.array([0.5, 1, 2], np.float32)
    check_op(
        lambda x: x.nll_loss(Tensor(TARGET), Tensor(weight), reduction=reduction),
        (4, 3),
        torch_fn=lambda x: F.nll_loss(
            x, torch.tensor(TARGET), torch.tensor(weight), reduction=reduction
        ),
    )


PAIRS: dict[str, tuple[Any, Any]] = {
    "mse": (lambda x, y, r: x.mse_loss(y, r), lambda x, y, r: F.mse_loss(x, y, reduction=r)),
    "l1": (lambda x, y, r: x.l1_loss(y, r), lambda x, y, r: F.l1_loss(x, y, reduction=r)),
    "smooth": (
        lambda x, y, r: x.smooth_l1_loss(y, 0.3, r),
        lambda x, y, r: F.smooth_l1_loss(x, y, reduction=r, beta=0.3),
    ),
    "huber": (
        lambda x, y, r: x.huber_loss(y, 0.3, r),
        lambda x, y, r: F.huber_loss(x, y, reduction=r, delta=0.3),
    ),
    "bce": (
        lambda x, y, r: x.binary_cross_entropy(y, reduction=r),
        lambda x, y, r: F.binary_cross_entropy(x, y, reduction=r),
    ),
    "logits": (
        lambda x, y, r: (x * 4).binary_cross_entropy_with_logits(y, reduction=r),
        lambda x, y, r: F.binary_cross_entropy_with_logits(x * 4, y, reduction=r),
    ),
    "pos weight": (
        lambda x, y, r: x.binary_cross_entropy_with_logits(y, pos_weight=3.0, reduction=r),
        lambda x, y, r: F.binary_cross_entropy_with_logits(
            x, y, pos_weight=torch.tensor(3.0), reduction=r
        ),
    ),
    "kl": (lambda x, y, r: x.kl_div(y, reduction=r), lambda x, y, r: F.kl_div(x, y, reduction=r)),
    "kl log": (
        lambda x, y, r: x.kl_div(y, True, reduction=r),
        lambda x, y, r: F.kl_div(x, y, reduction=r, log_target=True),
    ),
}


@pytest.mark.filterwarnings("ignore:reduction")
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_pair_losses(name: str, reduction: str) -> None:
    ours, theirs = PAIRS[name]
    check_op(
        lambda x, y: ours(x, y, reduction),
        (4, 3),
        (4, 3),
        low=0.05,
        high=0.95,
        torch_fn=lambda x, y: theirs(x, y, reduction),
    )


def test_probabilities_of_zero_and_one() -> None:
    p, t = np.array([0.0, 1.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0, 0.0])
    got = Tensor(p).binary_cross_entropy(Tensor(t), reduction="none").tolist()
    assert (
        got == F.binary_cross_entropy(torch.tensor(p), torch.tensor(t), reduction="none").tolist()
    )
    assert Tensor([-1.0, -2.0]).kl_div(Tensor([0.0, 1.0]), reduction="batchmean").item() == 1.0


def test_loss_errors() -> None:
    x = Tensor.zeros(4, 3)
    for target in (Tensor([1, 2]), Tensor([[1], [2], [0], [1]]), Tensor.zeros(4, 2)):
        with pytest.raises(ShapeError):
            x.cross_entropy(target)
    with pytest.raises(DTypeError, match="reduction"):
        x.mse_loss(x, "avg")


# --- normalisation and attention -----------------------------------------------------------------


def test_layernorm() -> None:
    for ends in ((5,), (4, 5)):
        check_op(
            lambda x, w, b, e=ends: x.layernorm(e, w, b),
            (3, 4, 5),
            ends,
            ends,
            torch_fn=lambda x, w, b, e=ends: F.layer_norm(x, e, w, b),
        )
    check_op(
        lambda x: x.layernorm(), (3, 5), torch_fn=lambda x: F.layer_norm(x, (5,)), dtype="float16"
    )
    with pytest.raises(ShapeError):
        Tensor.zeros(3, 4).layernorm(3)


def test_rms_group_and_batch_norm() -> None:
    check_op(
        lambda x, w: x.rms_norm(w), (3, 5), (5,), torch_fn=lambda x, w: F.rms_norm(x, (5,), w, 1e-6)
    )
    check_op(
        lambda x, w, b: x.group_norm(2, w, b),
        (3, 4, 5, 2),
        (4,),
        (4,),
        torch_fn=lambda x, w, b: F.group_norm(x, 2, w, b),
    )
    check_op(lambda x: x.normalize(), (3, 4), torch_fn=F.normalize)
    mean, var = random_array((4,)), random_array((4,), 1, 0.5, 2)
    check_op(
        lambda x, w, b: x.batchnorm(
            w, b, Tensor(mean, "float32"), (Tensor(var, "float32") + 1e-5).rsqrt()
        ),
        (3, 4, 5),
        (4,),
        (4,),
        torch_fn=lambda x, w, b: F.batch_norm(
            x, torch.tensor(mean).float(), torch.tensor(var).float(), w, b
        ),
    )


@pytest.mark.parametrize("kind", ["plain", "causal", "bool", "float", "scale"])
def test_attention(kind: str) -> None:
    bools = np.tril(np.ones((5, 7), bool), 1)
    floats = random_array((2, 1, 5, 7)).astype(np.float32)
    kwargs: dict[str, Any] = {
        "plain": {},
        "causal": {"is_causal": True},
        "bool": {"attn_mask": bools},
        "float": {"attn_mask": floats},
        "scale": {"scale": 0.3},
    }[kind]
    to_torch = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in kwargs.items()}
    ours = {k: Tensor(v) if isinstance(v, np.ndarray) else v for k, v in kwargs.items()}
    check_op(
        lambda q, k, v: q.scaled_dot_product_attention(k, v, **ours),
        (2, 3, 5, 4),
        (2, 3, 7, 4),
        (2, 3, 7, 6),
        torch_fn=lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **to_torch),
    )


def test_attention_with_few_key_heads() -> None:
    check_op(
        lambda q, k, v: q.scaled_dot_product_attention(k, v, enable_gqa=True),
        (1, 4, 3, 2),
        (1, 2, 5, 2),
        (1, 2, 5, 2),
        torch_fn=lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
    )
    q = Tensor.zeros(1, 3, 2)
    with pytest.raises(ShapeError):
        q.scaled_dot_product_attention(q, q, attn_mask=Tensor.zeros(3, 3), is_causal=True)
