"""Datasets: found on this machine or downloaded once, and checked before anyone computes with them.

A file is looked for in this order:

    1. the `folder` that the caller names: it must be there
    2. the folder of the setting MYGRAD_DATA, e.g. $MYGRAD_DATA/mnist/train-images-idx3-ubyte.gz
    3. the cache, $MYGRAD_CACHE/data
    4. public mirrors, one after the other; kept in the cache, unless that is off

A download must have the official checksum. A file that someone put into a folder need not (it may
have been recompressed): it is held to its structure.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import sys
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mygrad.config import config
from mygrad.errors import DataError, DownloadError, message
from mygrad.helpers import atomic_write, prod

Array = np.ndarray[Any, Any]
_TIMEOUT = 20.0  # seconds without a byte from a mirror


@dataclass(frozen=True)
class Resource:
    """A file of a dataset: where it lies in a data folder, who offers it, and what it must be."""

    path: str  # relative, with /
    mirrors: tuple[str, ...]  # the folders that offer it, with a trailing /
    nbytes: int
    sha256: str

    @property
    def name(self) -> str:
        """The file's name without folders."""
        return self.path.rpartition("/")[2]


_MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)


def _mnist_file(name: str, nbytes: int, sha256: str) -> Resource:
    return Resource(f"mnist/{name}-ubyte.gz", _MNIST_MIRRORS, nbytes, sha256)


# split -> (images, labels)
MNIST: dict[str, tuple[Resource, Resource]] = {
    "train": (
        _mnist_file(
            "train-images-idx3",
            9912422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        _mnist_file(
            "train-labels-idx1",
            28881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
    ),
    "test": (
        _mnist_file(
            "t10k-images-idx3",
            1648877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        _mnist_file(
            "t10k-labels-idx1",
            4542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
}


def mnist(split: str, folder: str | os.PathLike[str] | None = None) -> tuple[Array, Array]:
    """MNIST (LeCun, Cortes and Burges 1998): images uint8 (N, 28, 28) and labels uint8 (N,).

    `split` is "train" (60,000) or "test" (10,000); `folder` holds the official .gz files, directly
    or in a subfolder `mnist`.

    >>> images, labels = mnist("test", "examples/data")
    >>> images.shape, labels[:3].tolist()
    ((10000, 28, 28), [7, 2, 1])

    Raises:
        DataError: a file is missing from `folder`, or damaged.
        DownloadError: not on this machine, and no mirror gave it.
    """
    if split not in MNIST:
        raise DataError(message("mnist", f"split {split!r}", " or ".join(map(repr, MNIST))))
    images, labels = (_read_idx(resource, folder) for resource in MNIST[split])
    names = " and ".join(resource.name for resource in MNIST[split])
    if images.dtype != np.uint8 or images.shape[1:] != (28, 28) or labels.dtype != np.uint8:
        raise DataError(
            message(
                f"mnist: {names}",
                f"images {images.dtype} {images.shape} and labels {labels.dtype} {labels.shape}",
                "uint8 images (N, 28, 28) and uint8 labels (N,)",
                "replace the files by the official ones",
            )
        )
    if labels.shape != images.shape[:1] or (labels > 9).any():
        raise DataError(
            message(
                f"mnist: {names}",
                f"{images.shape[0]} images, labels {labels.shape} up to {labels.max(initial=0)}",
                "one label from 0 to 9 for each image",
                "replace the files by the official ones",
            )
        )
    return images, labels


def _read_idx(resource: Resource, folder: str | os.PathLike[str] | None) -> Array:
    data, origin = read(resource, folder)
    return parse_idx(gunzip(data, origin), origin)


def find(resource: Resource, folder: str | os.PathLike[str] | None = None) -> Path | None:
    """The file on this machine, by the order above; None if only a mirror could give it.

    Raises:
        DataError: the named folder lacks the file, or the folder of MYGRAD_DATA does not exist.
    """
    if folder is not None:
        return _in_named_folder(resource, Path(folder))
    candidates = []
    if config.MYGRAD_DATA:
        offline = Path(config.MYGRAD_DATA).expanduser()
        if not offline.is_dir():
            raise DataError(
                message(
                    "MYGRAD_DATA",
                    f"{offline}, no such folder",
                    "a folder with datasets",
                    "correct the setting or remove it",
                )
            )
        candidates.append(offline / resource.path)
    cached = _cache_path(resource)
    if cached is not None:
        candidates.append(cached)
    return next((path for path in candidates if path.is_file()), None)


def _in_named_folder(resource: Resource, folder: Path) -> Path:
    for path in (folder / resource.path, folder / resource.name):
        if path.is_file():
            return path
    raise DataError(
        message(
            resource.name,
            f"no such file in {folder}",
            f"{resource.path} or {resource.name}",
            "put it there, or leave the folder out to download it",
        )
    )


def _cache_path(resource: Resource) -> Path | None:
    if config.MYGRAD_CACHE == "off":
        return None
    return Path(config.MYGRAD_CACHE).expanduser() / "data" / resource.path


def read(resource: Resource, folder: str | os.PathLike[str] | None = None) -> tuple[bytes, str]:
    """The bytes of a file and where they came from (a path or an address), by the order above.

    Raises:
        DataError: see `find`.
        DownloadError: not on this machine, and no mirror gave it.
    """
    path = find(resource, folder)
    if path is not None:
        return path.read_bytes(), str(path)
    data, address = _download(resource)
    cached = _cache_path(resource)
    if cached is not None:
        atomic_write(cached, data)
    return data, address


def _download(resource: Resource) -> tuple[bytes, str]:
    failures = []
    for mirror in resource.mirrors:
        address = mirror + resource.name
        print(f"downloading {address} ({resource.nbytes / 1e6:.1f} MB)", file=sys.stderr)
        try:
            with urllib.request.urlopen(address, timeout=_TIMEOUT) as response:
                data: bytes = response.read(resource.nbytes + 1)
        except (OSError, ValueError) as error:  # URLError and timeouts are OSErrors
            failures.append(f"{address}: {error}")
            continue
        found = hashlib.sha256(data).hexdigest()
        if found == resource.sha256:
            return data, address
        failures.append(f"{address}: {len(data)} bytes with sha256 {found}")
    raise DownloadError(
        message(
            f"download of {resource.name}",
            "; ".join(failures),
            f"{resource.nbytes} bytes with sha256 {resource.sha256}",
            f"put {resource.path} into a folder and set MYGRAD_DATA to that folder",
        )
    )


def _damaged(origin: str, got: str, expected: str) -> DataError:
    return DataError(
        message(origin, got, expected, "the file is damaged: delete it and get it again")
    )


def gunzip(data: bytes, origin: str) -> bytes:
    """Decompressed bytes; `origin` names the file in errors.

    Raises:
        DataError: not a gzip file, cut short, or with a wrong checksum inside.
    """
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(origin, f"{len(data)} bytes ({error})", "a whole gzip file") from None


# type code in the third byte of an idx file -> big-endian NumPy type
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def parse_idx(data: bytes, origin: str = "idx") -> Array:
    """The array in the bytes of an idx file (the format of MNIST), in native byte order.

        0 0 type ndim   extent * ndim (uint32, big-endian)   elements, row-major (big-endian)

    Raises:
        DataError: bytes that are not exactly one idx array; `origin` names the file.
    """
    if len(data) < 4 or data[0] or data[1] or data[2] not in _IDX_TYPES or not data[3]:
        raise _damaged(
            origin,
            f"first bytes {data[:4].hex(' ') or 'none'}",
            "the header of an idx file: 00 00, a type code, a number of axes",
        )
    dtype, ndim = np.dtype(_IDX_TYPES[data[2]]), data[3]
    start = 4 + 4 * ndim
    if len(data) < start:
        raise _damaged(origin, f"{len(data)} bytes", f"{ndim} extents in the first {start} bytes")
    shape = struct.unpack(f">{ndim}I", data[4:start])
    expected = start + prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise _damaged(origin, f"{len(data)} bytes", f"{expected} bytes for shape {shape}")
    return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))
