"""Batches: `for x, y in DataLoader((images, labels), batch_size=64, shuffle=True, seed=0): ...`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mygrad.errors import DataError, message
from mygrad.helpers import ceildiv
from mygrad.tensor import Tensor

Array = np.ndarray[Any, Any]


class TensorDataset:
    """Arrays or Tensors of one length, one of each per sample.

    Arrays stay in host memory, one batch at a time goes to the device; Tensors stay where they are.

    Raises:
        DataError: no arrays, or lengths that differ.
    """

    def __init__(self, *arrays: Array | Tensor) -> None:
        lengths = [len(array) if array.shape else -1 for array in arrays]
        if not arrays or len(set(lengths)) > 1 or -1 in lengths:
            raise DataError(
                message(
                    "TensorDataset",
                    f"shapes {[tuple(array.shape) for array in arrays]}",
                    "one or more arrays with the same first extent",
                )
            )
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, index: Any) -> tuple[Any, ...]:
        return tuple(array[index] for array in self.arrays)

    def batch(self, indices: Array) -> tuple[Tensor, ...]:
        """The samples at `indices` (int64, one axis), stacked."""
        return tuple(
            array[Tensor(indices)]
            if isinstance(array, Tensor)
            else Tensor(np.asarray(array)[indices])
            for array in self.arrays
        )


class DataLoader:
    """Iterates over the batches of a dataset, each a tuple of Tensors.

    Args:
        dataset: a TensorDataset, a sequence of arrays, or anything with `len` and integer indexing
            that gives a tuple of arrays or numbers for each sample.
        batch_size: samples per batch.
        shuffle: another order each epoch, by `seed` and the number of the epoch alone: a run that
            is repeated with the same seed sees the same batches.
        drop_last: leave out a last batch that is not full, so that every batch has one shape and
            `jit` captures once.

    Raises:
        DataError: a batch size below 1.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        if not hasattr(dataset, "__len__"):
            got = f"a dataset of type {type(dataset).__name__}"
            raise DataError(message("DataLoader", got, "arrays, or len() and dataset[i]"))
        if batch_size < 1:
            raise DataError(message("DataLoader", f"batch_size {batch_size}", "at least 1"))
        plain = isinstance(dataset, (tuple, list)) and all(hasattr(a, "shape") for a in dataset)
        self.dataset = TensorDataset(*dataset) if plain else dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.epoch = 0  # epochs begun so far

    def __len__(self) -> int:
        """Batches in an epoch."""
        n = len(self.dataset)
        return n // self.batch_size if self.drop_last else ceildiv(n, self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        order = np.arange(len(self.dataset))
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(order)
        self.epoch += 1
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield self._batch(order[start : start + self.batch_size])

    def _batch(self, indices: Array) -> tuple[Tensor, ...]:
        if isinstance(self.dataset, TensorDataset):
            return self.dataset.batch(indices)
        return _collate([self.dataset[int(i)] for i in indices])


def _collate(samples: Sequence[Any]) -> tuple[Tensor, ...]:
    if not isinstance(samples[0], tuple):
        samples = [(sample,) for sample in samples]
    return tuple(
        Tensor(np.stack([np.asarray(v) for v in field])) for field in zip(*samples, strict=True)
    )
