"""Training steps: the same network, weights, batch and optimiser everywhere.

Run one alone:  python -m bench --only nanogpt --threads 1 --peers torch
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench import models
from bench.libraries import Mixed, Ours, Theirs, torch
from bench.measure import Run
from mygrad import Tensor, jit, nn

Array = np.ndarray
State = dict[str, Array]


@dataclass
class Task:
    """What is trained: a network of models.py, its inputs and target, and an optimiser by its name
    and settings, which both libraries share. Integers as the target are labels, floats an image."""

    model: Callable[[Any], Any]
    inputs: tuple[Array, ...]
    target: Array
    optimizer: str = "Adam"
    settings: dict[str, float] = field(default_factory=lambda: {"lr": 1e-3})
    train: bool = True

    def state(self) -> State:
        """Initial weights, the same at each call."""
        Tensor.manual_seed(1)
        made = self.model(Ours).state_dict()
        Tensor.realize(*made.values())
        return {name: value.numpy() for name, value in made.items()}

    @property
    def labelled(self) -> bool:
        """Whether the target is labels."""
        return self.target.dtype.kind == "i"


def ours(task: Task, state: State, lib: Any = Ours) -> Run:
    """One jitted step of mygrad; gives the loss."""
    model = task.model(lib)
    model.load_state_dict(state)
    model.train()
    optimizer = getattr(nn.optim, task.optimizer)(model.parameters(), **task.settings)

    @jit
    def step(target: Tensor, *inputs: Tensor) -> Tensor:
        optimizer.zero_grad()
        y = model(*inputs).float()
        if task.labelled:
            loss = y.reshape(-1, y.shape[-1]).cross_entropy(target.reshape(-1))
        else:
            loss = y.mse_loss(target)
        loss.backward()
        optimizer.step()
        return loss

    target, *inputs = (Tensor(a).realize() for a in (task.target, *task.inputs))
    return lambda: step(target, *inputs)


def ours_mixed(task: Task, state: State) -> Run:
    """The same with float32 weights and bfloat16 products."""
    return ours(task, state, Mixed)


def theirs(
    task: Task,
    state: State,
    compiled: bool = False,
    channels_last: bool = False,
    autocast: bool = False,
) -> Run:
    """One step of PyTorch; gives the loss."""
    functional = torch.nn.functional
    model = task.model(Theirs)
    model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()})
    model.train()
    target, *inputs = (torch.from_numpy(a) for a in (task.target, *task.inputs))
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        inputs[0] = inputs[0].to(memory_format=torch.channels_last)
    made = getattr(torch.optim, task.optimizer)
    optimizer = made(model.parameters(), **task.settings, fused=True)
    network = torch.compile(model, dynamic=False) if compiled else model

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = network(*inputs)
        y = y.float()
        if task.labelled:
            loss = functional.cross_entropy(y.reshape(-1, y.shape[-1]), target.reshape(-1))
        else:
            loss = functional.mse_loss(y, target)
        loss.backward()
        optimizer.step()
        return loss

    return step


# --- the tasks ------------------------------------------------------------------------------------


def image(*shape: int, seed: int = 0) -> Array:
    """Standard normal float32 values."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def labels(*shape: int, classes: int = 10, seed: int = 1) -> Array:
    """Integers below `classes`."""
    return np.random.default_rng(seed).integers(0, classes, shape)


def mlp(batch: int = 128, hidden: int = 512) -> Task:
    """A perceptron with two hidden layers."""
    return Task(lambda lib: models.mlp(lib, hidden), (image(batch, 784),), labels(batch))


def mnist_cnn(batch: int = 512) -> Task:
    """The convolutional network for MNIST."""
    return Task(models.mnist_cnn, (image(batch, 1, 28, 28),), labels(batch))


def resnet18(batch: int = 64, width: int = 64, blocks: int = 2) -> Task:
    """ResNet-18 for images of CIFAR's size."""
    return Task(
        lambda lib: models.resnet18(lib, width, blocks),
        (image(batch, 3, 32, 32),),
        labels(batch),
        "SGD",
        {"lr": 0.01, "momentum": 0.9},
    )


def char_lstm(batch: int = 32, length: int = 64, hidden: int = 256) -> Task:
    """Two LSTM layers on characters."""
    tokens = labels(batch, length, classes=65)
    target = labels(batch, length, classes=65, seed=2)
    return Task(lambda lib: models.char_lstm(lib, hidden), (tokens,), target)


def nanogpt(
    layers: int = 6, width: int = 384, heads: int = 6, length: int = 256, batch: int = 8
) -> Task:
    """nanoGPT on characters."""
    return Task(
        lambda lib: models.gpt(lib, layers, width, heads, length, 65),
        (labels(batch, length, classes=65),),
        labels(batch, length, classes=65, seed=2),
        "AdamW",
        {"lr": 1e-3, "weight_decay": 0.01},
    )


def unet(batch: int = 32, width: int = 32, size: int = 32) -> Task:
    """The denoiser of a diffusion model."""
    angles = np.arange(batch)[:, None] * 10 * np.exp(-np.arange(32) / 32 * 9)
    time = np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)
    images = image(batch, 3, size, size)
    return Task(lambda lib: models.unet(lib, width), (images, time), image(*images.shape, seed=2))
