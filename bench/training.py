"""Training steps: the same network, weights, batch and optimiser everywhere.

Run one alone:  python -m bench --only nanogpt --threads 1 --peers torch
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from bench import functional, models
from bench.arrays import integers, random
from bench.libraries import Mixed, Ours, Theirs
from bench.measure import OURS, Candidates, Make, Workload
from bench.peers import Run, torch
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
    function: Callable[..., Any] | None = None  # the same in functional.py, for JAX and tinygrad

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
            loss = torch.nn.functional.cross_entropy(y.reshape(-1, y.shape[-1]), target.reshape(-1))
        else:
            loss = torch.nn.functional.mse_loss(y, target)
        loss.backward()
        optimizer.step()
        return loss

    return step


# --- the tasks ------------------------------------------------------------------------------------


def mlp(batch: int = 128, hidden: int = 512) -> Task:
    """A perceptron with two hidden layers."""
    return Task(
        lambda lib: models.mlp(lib, hidden),
        (random(batch, 784),),
        integers(10, batch),
        function=functional.mlp,
    )


def mnist_cnn(batch: int = 512) -> Task:
    """The convolutional network for MNIST."""
    return Task(
        models.mnist_cnn,
        (random(batch, 1, 28, 28),),
        integers(10, batch),
        function=functional.mnist_cnn,
    )


def resnet18(batch: int = 64, width: int = 64, blocks: int = 2) -> Task:
    """ResNet-18 for images of CIFAR's size."""
    return Task(
        lambda lib: models.resnet18(lib, width, blocks),
        (random(batch, 3, 32, 32),),
        integers(10, batch),
        "SGD",
        {"lr": 0.01, "momentum": 0.9},
        partial(functional.resnet18, blocks=blocks),
    )


def char_lstm(batch: int = 32, length: int = 64, hidden: int = 256) -> Task:
    """Two LSTM layers on characters."""
    tokens = integers(65, batch, length)
    target = integers(65, batch, length, seed=2)
    return Task(lambda lib: models.char_lstm(lib, hidden), (tokens,), target)


def nanogpt(
    layers: int = 6, width: int = 384, heads: int = 6, length: int = 256, batch: int = 8
) -> Task:
    """nanoGPT on characters."""
    return Task(
        lambda lib: models.gpt(lib, layers, width, heads, length, 65),
        (integers(65, batch, length),),
        integers(65, batch, length, seed=2),
        "AdamW",
        {"lr": 1e-3, "weight_decay": 0.01},
        partial(functional.gpt, layers=layers, heads=heads),
    )


def unet(batch: int = 32, width: int = 32, size: int = 32) -> Task:
    """The denoiser of a diffusion model."""
    angles = np.arange(batch)[:, None] * 10 * np.exp(-np.arange(32) / 32 * 9)
    time = np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)
    images = random(batch, 3, size, size)
    return Task(lambda lib: models.unet(lib, width), (images, time), random(*images.shape, seed=2))


# --- the list -------------------------------------------------------------------------------------

SMALL = {  # arguments for --quick
    "MLP step": {"batch": 16, "hidden": 64},
    "MNIST CNN step": {"batch": 4},
    "MNIST CNN step 128": {"batch": 4},
    "ResNet-18 step": {"batch": 16, "width": 8, "blocks": 1},
    "char-LSTM step": {"batch": 4, "length": 8, "hidden": 32},
    "nanoGPT step": {"layers": 2, "width": 32, "heads": 2, "length": 16, "batch": 2},
    "UNet step": {"batch": 2, "width": 8, "size": 16},
}
TASKS: dict[str, tuple[Callable[..., Task], dict[str, int], float]] = {
    # arguments, and flops of a step: 6 per weight and sample in products and convolutions
    "MLP step": (mlp, {}, 6 * 128 * (784 * 512 + 512 * 512 + 5120)),
    "MNIST CNN step": (mnist_cnn, {"batch": 512}, 6 * 512 * 13.21e6),
    "MNIST CNN step 128": (mnist_cnn, {"batch": 128}, 6 * 128 * 13.21e6),
    "ResNet-18 step": (resnet18, {}, 6 * 64 * 555.4e6),
    "char-LSTM step": (char_lstm, {}, 6 * 2048 * (2 * 1024 * 512 + 256 * 65)),
    "nanoGPT step": (nanogpt, {}, 6 * 2048 * (6 * 12 * 384 * 384 + 384 * 65 + 12 * 384 * 256)),
    "UNet step": (unet, {}, 6 * 32 * 150e6),
}
MIXED = ("nanoGPT step", "ResNet-18 step")


def candidates(name: str, small: bool) -> Candidates:
    """Every library's step of a task."""
    make, arguments, _ = TASKS[name]
    task = make(**(SMALL[name] if small else arguments))
    state = task.state()
    made: dict[str, Make] = {
        OURS: lambda: ours(task, state),
        "torch": lambda: theirs(task, state),
        "torch.compile": lambda: theirs(task, state, compiled=True),
    }
    if task.inputs[0].ndim == 4:
        made["torch/channels last"] = lambda: theirs(task, state, channels_last=True)
    if task.function:
        made["jax"] = lambda: functional.with_jax(task, state)
        made["tinygrad"] = lambda: functional.with_tinygrad(task, state)
    return made


def mixed(name: str, small: bool) -> Candidates:
    """A step with float32 weights and bfloat16 products, beside our own in float32."""
    make, arguments, _ = TASKS[name]
    task = make(**(SMALL[name] if small else arguments))
    state = task.state()
    return {
        OURS: lambda: ours_mixed(task, state),
        "torch": lambda: theirs(task, state, autocast=True),
        "torch.compile": lambda: theirs(task, state, autocast=True, compiled=True),
        "@our float32 step": lambda: ours(task, state),
    }


# of the losses of three steps: with Adam, rounding grows about tenfold in a step, and PyTorch's two
# layouts of one convolutional network are as far from each other as from us
DRIFT = 2e-2

WORKLOADS = (
    *(
        Workload(
            name,
            partial(candidates, name, False),
            partial(candidates, name, True),
            flops,
            tolerance=DRIFT,
            steps=3,
        )
        for name, (_, _, flops) in TASKS.items()
    ),
    *(
        Workload(
            f"{name} bf16",
            partial(mixed, name, False),
            partial(mixed, name, True),
            TASKS[name][2],
            tolerance=DRIFT,
            steps=3,
        )
        for name in MIXED
    ),
)
