"""Train a convolutional network on MNIST, end to end.

    python examples/mnist.py                          MNIST, downloaded or from $MYGRAD_DATA
    python examples/mnist.py --embedded --epochs 3    the 10,000 images in examples/data
    python examples/mnist.py --compare-torch          beside PyTorch, same weights, same batches

Leaves the weights (safetensors), the loss curve and the misclassified digits (PNG) in --out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import Progress, parser, plot_losses, pyplot, write_json

from mygrad import Tensor, jit, nn
from mygrad.errors import DownloadError, MissingPackageError
from mygrad.helpers import optional_import

Array = np.ndarray[Any, Any]
EMBEDDED = Path(__file__).parent / "data"
EVALUATION_BATCH = 500


def network(layers: Any) -> Any:
    """(N, 1, 28, 28) -> logits (N, 10), of the layers of `mygrad.nn` or of `torch.nn`."""
    return layers.Sequential(
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
    )


class Trainer:
    """The network in mygrad, its jitted training step and its predictions."""

    def __init__(self, lr: float) -> None:
        self.model = network(nn)
        self.optimizer = nn.optim.Adam(self.model.parameters(), lr=lr)
        self.train_step = jit(self._train_step)
        self.predict = jit(self._predict)

    def _train_step(self, images: Tensor, labels: Tensor) -> Tensor:
        self.model.train()
        self.optimizer.zero_grad()
        loss = self.model(pixels(images)).cross_entropy(labels)
        loss.backward()
        self.optimizer.step()
        return loss

    def _predict(self, images: Tensor) -> Tensor:
        self.model.eval()
        with Tensor.no_grad():
            return self.model(pixels(images)).argmax(axis=1)

    def step(self, images: Array, labels: Array) -> float:
        """One step on a batch; the loss before it."""
        return float(self.train_step(Tensor(images), Tensor(labels)).item())

    def predictions(self, images: Array) -> Array:
        """The digit that the network sees in each image."""
        starts = range(0, len(images), EVALUATION_BATCH)
        batches = [images[i : i + EVALUATION_BATCH] for i in starts]
        return np.concatenate([self.predict(Tensor(batch)).numpy() for batch in batches])


def pixels(images: Tensor) -> Tensor:
    """uint8 (N, 28, 28) -> float32 (N, 1, 28, 28) from 0 to 1."""
    return images.float().reshape(-1, 1, 28, 28) / 255.0


class TorchTrainer:
    """The same network in PyTorch, started from the same weights."""

    def __init__(self, twin: Trainer, lr: float) -> None:
        self.torch = torch = optional_import("torch", "--compare-torch", "peers")
        self.model = network(torch.nn)
        weights = {name: torch.tensor(t.numpy()) for name, t in twin.model.state_dict().items()}
        self.model.load_state_dict(weights)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=lr)

    def _pixels(self, images: Array) -> Any:
        return self.torch.from_numpy(images).float().reshape(-1, 1, 28, 28) / 255.0

    def step(self, images: Array, labels: Array) -> float:
        """One step on a batch; the loss before it."""
        self.model.train()
        self.optimizer.zero_grad()
        logits = self.model(self._pixels(images))
        target = self.torch.from_numpy(labels.astype(np.int64))
        loss = self.torch.nn.functional.cross_entropy(logits, target)
        loss.backward()
        self.optimizer.step()
        return float(loss.item())

    def predictions(self, images: Array) -> Array:
        """The digit that the network sees in each image."""
        self.model.eval()
        with self.torch.no_grad():
            starts = range(0, len(images), EVALUATION_BATCH)
            batches = [self._pixels(images[i : i + EVALUATION_BATCH]) for i in starts]
            return np.concatenate([self.model(batch).argmax(1).numpy() for batch in batches])


def load_data(args: argparse.Namespace) -> tuple[str, Array, Array, Array, Array]:
    """(what it is, training images, training labels, test images, test labels)."""
    if not args.embedded:
        try:
            train = nn.datasets.mnist("train", args.data)
            test = nn.datasets.mnist("test", args.data)
        except DownloadError as error:
            print(f"MNIST is not here and could not be downloaded: {error}")
        else:
            return "MNIST", *train, *test
    images, labels = nn.datasets.mnist("test", EMBEDDED)
    print(
        "Using the embedded MNIST test file: its first 9,000 images to train on, its last 1,000 to "
        "test on.\nThe accuracy below is not comparable with that of the whole data set."
    )
    name = "embedded: 9,000 + 1,000 images of the MNIST test file"
    return name, images[:9000], labels[:9000], images[9000:], labels[9000:]


def batches(n: int, size: int, seed: int) -> list[Array]:
    """The indices of an epoch's batches, all of one size, in an order that the seed decides."""
    order = np.random.default_rng(seed).permutation(n)
    size = min(size, n)
    return [order[i : i + size] for i in range(0, n - size + 1, size)]


def timed_step(trainer: Any, images: Array, labels: Array) -> tuple[float, float]:
    """(loss, seconds) of one step."""
    start = time.perf_counter()
    loss = trainer.step(images, labels)
    return loss, time.perf_counter() - start


class Record:
    """What a run of one trainer gave: losses, times, accuracies."""

    def __init__(self, name: str, trainer: Any) -> None:
        self.name, self.trainer = name, trainer
        self.losses: list[float] = []
        self.seconds: list[float] = []  # of each step
        self.epoch_seconds: list[float] = []
        self.accuracies: list[float] = []
        self.predictions: Array = np.zeros(0, np.int64)

    def step(self, images: Array, labels: Array) -> None:
        loss, seconds = timed_step(self.trainer, images, labels)
        self.losses.append(loss)
        self.seconds.append(seconds)

    def finish_epoch(self, steps: int, images: Array, labels: Array) -> None:
        self.epoch_seconds.append(sum(self.seconds[-steps:]))
        self.predictions = self.trainer.predictions(images)
        self.accuracies.append(float((self.predictions == labels).mean()))

    @property
    def median_step(self) -> float:
        """Median seconds of a step, without the first ones, which compile."""
        return statistics.median(self.seconds[2:] or self.seconds)

    def results(self) -> dict[str, Any]:
        return {
            "test_accuracy": self.accuracies[-1],
            "test_accuracies": self.accuracies,
            "seconds_per_epoch": statistics.median(self.epoch_seconds),
            "first_step_seconds": self.seconds[0],
            "median_step_seconds": self.median_step,
            "steps": len(self.losses),
            "first_loss": self.losses[0],
            "last_loss": self.losses[-1],
        }


def train(args: argparse.Namespace, records: list[Record], data: tuple[Array, ...]) -> None:
    """Train all trainers side by side on the same batches, test after each epoch."""
    x_train, y_train, x_test, y_test = data
    steps_left = args.steps or len(x_train) * args.epochs
    for epoch in range(args.epochs):
        plan = batches(len(x_train), args.batch_size, args.seed + epoch)[:steps_left]
        if not plan:
            break
        bar = Progress(plan, f"epoch {epoch + 1}/{args.epochs}", len(plan))
        for number, indices in enumerate(bar):
            # take turns in going first, so that neither profits from the other's warm memory
            for record in records[:: 1 if number % 2 else -1]:
                record.step(x_train[indices], y_train[indices])
            bar.note(loss=records[0].losses[-1])
        steps_left -= len(plan)
        for record in records:
            record.finish_epoch(len(plan), x_test, y_test)
            print(
                f"epoch {epoch + 1}: {record.name}: loss {record.losses[-1]:.4f}, test accuracy "
                f"{record.accuracies[-1]:.2%}, {record.epoch_seconds[-1]:.1f} s"
            )


def save(args: argparse.Namespace, record: Record, images: Array, labels: Array) -> None:
    """Weights and pictures into the folder --out."""
    weights = args.out / "mnist.safetensors"
    try:
        nn.state.safe_save(record.trainer.model.state_dict(), weights)
        print(f"weights: {weights}")
    except MissingPackageError as error:
        print(f"weights not saved: {error}")
    plot_losses(args.out / "mnist_loss.png", record.losses, "MNIST, training loss")
    wrong = np.flatnonzero(record.predictions != labels)
    plot_wrong(args.out / "mnist_wrong.png", images, labels, record.predictions, wrong)


def plot_wrong(path: Path, images: Array, labels: Array, found: Array, wrong: Array) -> None:
    """A PNG of up to 40 misclassified digits, if matplotlib is installed."""
    plt = pyplot()
    if plt is None:
        return
    figure, grid = plt.subplots(5, 8, figsize=(8, 6))
    for cell in grid.flat:
        cell.axis("off")
    for cell, i in zip(grid.flat, wrong, strict=False):
        cell.imshow(images[i], cmap="gray_r")
        cell.set_title(f"{labels[i]} seen as {found[i]}", fontsize=7)
    figure.suptitle(f"{len(wrong)} of {len(labels)} test images misclassified")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(f"misclassified digits: {path}")


def options() -> argparse.Namespace:
    made = parser(
        "Train a convolutional network on MNIST.",
        epochs=5,
        batch_size=128,
        lr=1e-3,
        out=Path("out") / "mnist",
    )
    made.add_argument("--data", type=Path, help="folder with the official .gz files")
    made.add_argument("--embedded", action="store_true", help="use the images in examples/data")
    made.add_argument("--compare-torch", action="store_true", help="train in PyTorch as well")
    return made.parse_args()


def main() -> None:
    args = options()
    Tensor.manual_seed(args.seed)
    name, *data = load_data(args)
    print(f"{name}: {len(data[0])} training and {len(data[2])} test images")
    records = [Record("mygrad", Trainer(args.lr))]
    if args.compare_torch:
        records.append(Record("torch", TorchTrainer(records[0].trainer, args.lr)))
    train(args, records, tuple(data))
    results: dict[str, Any] = {
        "data": name,
        "train_images": len(data[0]),
        "test_images": len(data[2]),
        "parameters": records[0].trainer.model.num_parameters(),
        "batch_size": args.batch_size,
        "lr": args.lr,
        "seed": args.seed,
        **records[0].results(),
    }
    print(
        f"test accuracy {results['test_accuracy']:.2%}, "
        f"{results['seconds_per_epoch']:.2f} s per epoch, "
        f"first step {results['first_step_seconds']:.2f} s"
    )
    if args.compare_torch:
        results["torch"] = records[1].results()
        results["ratio_to_torch"] = records[0].median_step / records[1].median_step
        print(
            f"median step: mygrad {records[0].median_step * 1e3:.1f} ms, torch "
            f"{records[1].median_step * 1e3:.1f} ms, ratio {results['ratio_to_torch']:.2f}; "
            f"test accuracy {records[0].accuracies[-1]:.2%} and {records[1].accuracies[-1]:.2%}"
        )
    save(args, records[0], data[2], data[3])
    write_json(args.json, results)


if __name__ == "__main__":
    main()
