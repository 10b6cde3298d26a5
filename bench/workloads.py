"""The workloads: for each, the same computation in mygrad and in every installed peer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.measure import Run
from bench.peers import optional
from mygrad import Tensor, jit, nn

torch = optional("torch")
Candidates = dict[str, Run]
Array = np.ndarray


def random(*shape: int, seed: int = 0) -> Array:
    """Standard normal float32 values."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def three(
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    numpy: Callable[..., Any] | None,
    *arrays: Array,
) -> Candidates:
    """A function of arrays, jitted in mygrad, as it is in the peers."""
    tensors = [Tensor(a).realize() for a in arrays]
    step = jit(ours)
    runs: Candidates = {"mygrad": lambda: step(*tensors)}
    if numpy is not None:
        runs["numpy"] = lambda: numpy(*arrays)
    if torch is not None:
        copies = [torch.from_numpy(a) for a in arrays]
        runs["torch"] = lambda: theirs(*copies)
    return runs


# --- small programs: what starting costs ----------------------------------------------------------


def eager_add() -> Candidates:
    """x + y of 16 elements, computed at once."""
    x, y = random(16), random(16, seed=1)
    a, b = Tensor(x).realize(), Tensor(y).realize()
    runs: Candidates = {"mygrad": lambda: (a + b).realize(), "numpy": lambda: x + y}
    if torch is not None:
        p, q = torch.from_numpy(x), torch.from_numpy(y)
        runs["torch"] = lambda: p + q
    return runs


def jitted_add() -> Candidates:
    """x + y of 16 elements, captured once."""
    return three(
        lambda a, b: a + b, lambda a, b: a + b, lambda a, b: a + b, random(16), random(16, seed=1)
    )


def fifty_kernels() -> Candidates:
    """50 dependent tiny operations that must stay 50 kernels."""

    def ours(x: Tensor) -> Tensor:
        for i in range(50):
            x = (x * 0.5 + float(i)).contiguous()
        return x

    def theirs(x: Any) -> Any:
        for i in range(50):
            x = x * 0.5 + float(i)
        return x

    return three(ours, theirs, theirs, random(64))


def build_nodes() -> Candidates:
    """1,000 dependent additions put into the graph, none computed (PyTorch computes them)."""
    a, b = Tensor(random(16)).realize(), Tensor(random(16, seed=1)).realize()

    def ours() -> None:
        x = a
        for _ in range(1000):
            x = x + b

    runs: Candidates = {"mygrad": ours}
    if torch is not None:
        p, q = torch.from_numpy(random(16)), torch.from_numpy(random(16, seed=1))

        def theirs() -> None:
            x = p
            for _ in range(1000):
                x = x + q

        runs["torch"] = theirs
    return runs


# --- kernels --------------------------------------------------------------------------------------


def matmul(n: int) -> Candidates:
    """Square matrix product."""
    a, b = random(n, n), random(n, n, seed=1)
    return three(lambda x, y: x @ y, lambda x, y: x @ y, lambda x, y: x @ y, a, b)


def convolution(n: int, c: int, o: int, size: int, kernel: int) -> Candidates:
    """Square convolution without padding."""
    x, w = random(n, c, size, size), random(o, c, kernel, kernel, seed=1)
    return three(lambda a, b: a.conv2d(b), lambda a, b: torch.conv2d(a, b), None, x, w)


def softmax() -> Candidates:
    """Rows of 1024."""

    def plain(x: Array) -> Array:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    return three(lambda x: x.softmax(-1), lambda x: x.softmax(-1), plain, random(4096, 1024))


def layer_norm() -> Candidates:
    """Rows of 1024."""
    return three(
        lambda x: x.layernorm(),
        lambda x: torch.nn.functional.layer_norm(x, (1024,)),
        None,
        random(4096, 1024),
    )


def total() -> Candidates:
    """Sum of 16M elements."""
    return three(lambda x: x.sum(), lambda x: x.sum(), lambda x: x.sum(), random(4096, 4096))


def gelu_chain() -> Candidates:
    """gelu(x * a + b) * sigmoid(x), 4M elements."""
    return three(
        lambda x: (x * 1.5 + 0.5).gelu() * x.sigmoid(),
        lambda x: torch.nn.functional.gelu(x * 1.5 + 0.5, approximate="tanh") * x.sigmoid(),
        None,
        random(2048, 2048),
    )


# --- training steps -------------------------------------------------------------------------------


def _mnist_layers(layers: Any) -> list[Any]:
    return [
        layers.Conv2d(1, 32, 5),
        layers.ReLU(),
        layers.Conv2d(32, 32, 5),
        layers.ReLU(),
        layers.BatchNorm2d(32),
        layers.MaxPool2d(2),
        layers.Conv2d(32, 64, 3),
        layers.ReLU(),
        layers.Conv2d(64, 64, 3),
        layers.ReLU(),
        layers.BatchNorm2d(64),
        layers.MaxPool2d(2),
        layers.Flatten(),
        layers.Linear(576, 10),
    ]


def _mlp_layers(layers: Any) -> list[Any]:
    return [
        layers.Linear(784, 512),
        layers.ReLU(),
        layers.Linear(512, 512),
        layers.ReLU(),
        layers.Linear(512, 10),
    ]


def training(
    layers_of: Callable[[Any], list[Any]], batch: int, *sample: int, theirs: bool = True
) -> Candidates:
    """A step of Adam on one batch; losses are compared. PyTorch takes part if `theirs`."""
    x = random(batch, *sample)
    y = np.random.default_rng(1).integers(0, 10, batch)
    model = nn.Sequential(*layers_of(nn))
    runs: Candidates = {"mygrad": _our_step(model, Tensor(x).realize(), Tensor(y).realize())}
    if torch is not None and theirs:
        runs["torch"] = _torch_step(layers_of, model, x, y)
    return runs


def _our_step(model: nn.Module, x: Tensor, y: Tensor) -> Run:
    optimizer = nn.optim.Adam(model.parameters(), lr=1e-3)

    @jit
    def step(x: Tensor, y: Tensor) -> Tensor:
        model.train()
        optimizer.zero_grad()
        loss = model(x).cross_entropy(y)
        loss.backward()
        optimizer.step()
        return loss

    return lambda: step(x, y)


def _torch_step(layers_of: Callable[[Any], list[Any]], model: nn.Module, x: Array, y: Array) -> Run:
    twin = torch.nn.Sequential(*layers_of(torch.nn))
    twin.load_state_dict({k: torch.tensor(v.numpy()) for k, v in model.state_dict().items()})
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-3)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)

    def step() -> Any:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(twin(inputs), labels)
        loss.backward()
        optimizer.step()
        return loss

    return step


WORKLOADS: dict[str, Callable[[], Candidates]] = {
    "eager add 16": eager_add,
    "jitted add 16": jitted_add,
    "50 tiny kernels": fifty_kernels,
    "build 1000 nodes": build_nodes,
    "matmul 256": lambda: matmul(256),
    "matmul 512": lambda: matmul(512),
    "matmul 1024": lambda: matmul(1024),
    "matmul 2048": lambda: matmul(2048),
    "matmul 1000": lambda: matmul(1000),
    "conv 3x3 64": lambda: convolution(32, 64, 64, 34, 3),
    "conv 5x5 32": lambda: convolution(64, 32, 32, 24, 5),
    "conv 5x5 1": lambda: convolution(64, 1, 32, 28, 5),
    "softmax": softmax,
    "layer norm": layer_norm,
    "sum 16M": total,
    "gelu chain 4M": gelu_chain,
    "MLP step": lambda: training(_mlp_layers, 128, 784),
    "MNIST CNN step": lambda: training(_mnist_layers, 512, 1, 28, 28),
    "MNIST CNN step 128": lambda: training(_mnist_layers, 128, 1, 28, 28),
}
QUICK = ("eager add 16", "jitted add 16", "50 tiny kernels", "matmul 512", "softmax", "MLP step")
