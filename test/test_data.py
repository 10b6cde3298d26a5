"""Datasets (offline: mirrors are local folders) and loaders."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mygrad import Tensor
from mygrad import config as configuration
from mygrad.errors import DataError, DownloadError
from mygrad.nn import DataLoader, TensorDataset, datasets
from mygrad.nn.datasets import Resource, find, gunzip, mnist, parse_idx, read

EMBEDDED = Path(__file__).parent.parent / "examples" / "data"
TYPES = [(0x08, ">u1"), (0x09, ">i1"), (0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")]


def idx(array: np.ndarray, code: int = 0x08) -> bytes:
    """An independent writer of the format."""
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(dict(TYPES)[code]).tobytes()


# --- idx ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "dtype"), TYPES)
@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (2, 0, 3), (3, 1, 5)])
def test_idx_round_trip(code: int, dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    found = parse_idx(idx(array, code))
    np.testing.assert_array_equal(found, array)
    assert found.dtype == np.dtype(dtype).newbyteorder("=")
    assert found.shape == shape


@given(st.binary(max_size=40))
def test_idx_of_noise_is_an_array_or_a_data_error(data: bytes) -> None:
    try:
        found = parse_idx(data)
    except DataError:
        return
    assert idx(found, data[2]) == data


@given(st.integers(0, 27))
def test_idx_cut_short(length: int) -> None:
    with pytest.raises(DataError, match="delete it"):
        parse_idx(idx(np.zeros((4, 4)))[:length])


def test_idx_with_bytes_to_spare() -> None:
    with pytest.raises(DataError, match="29 bytes, expected 28 bytes"):
        parse_idx(idx(np.zeros((4, 4))) + b"x")


def test_gunzip_damage() -> None:
    whole = gzip.compress(b"hello" * 100)
    assert gunzip(whole, "f") == b"hello" * 100
    flipped = bytearray(whole)
    flipped[-6] ^= 1  # the checksum at the end
    for damaged in (b"no gzip", whole[:-3], whole[:20], bytes(flipped)):
        with pytest.raises(DataError, match=r"f: got .*expected a whole gzip file"):
            gunzip(damaged, "f")


# --- where files come from ------------------------------------------------------------------------


def offer(folder: Path, data: bytes, sha: str | None = None) -> Resource:
    """A resource whose only mirror is `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file.gz").write_bytes(data)
    sha = sha or hashlib.sha256(data).hexdigest()
    return Resource("set/file.gz", (folder.as_uri() + "/",), len(data), sha)


@pytest.fixture
def no_offline_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration.config, "MYGRAD_DATA", "")


@pytest.mark.usefixtures("no_offline_folder")
def test_download_is_checked_and_cached(cache: Path, tmp_path: Path) -> None:
    resource = offer(tmp_path / "mirror", b"content")
    assert find(resource) is None
    assert read(resource) == (b"content", resource.mirrors[0] + "file.gz")
    (tmp_path / "mirror" / "file.gz").unlink()
    assert read(resource) == (b"content", str(cache / "data" / "set" / "file.gz"))
    assert [p.name for p in (cache / "data" / "set").iterdir()] == [
        "file.gz"
    ]  # nothing half-written


@pytest.mark.usefixtures("no_offline_folder")
def test_cache_off_keeps_nothing(tmp_path: Path) -> None:
    resource = offer(tmp_path / "mirror", b"content")
    with configuration.context(MYGRAD_CACHE="off"):
        assert read(resource)[0] == b"content"
        assert find(resource) is None


@pytest.mark.usefixtures("no_offline_folder")
def test_second_mirror_is_tried(cache: Path, tmp_path: Path) -> None:
    good = offer(tmp_path / "good", b"content")
    bad = offer(tmp_path / "bad", b"contend")
    both = Resource(
        good.path, ("file:///nonexistent/", *bad.mirrors, *good.mirrors), 7, good.sha256
    )
    assert read(both) == (b"content", good.mirrors[0] + "file.gz")


@pytest.mark.usefixtures("no_offline_folder")
def test_no_mirror_gives_it(cache: Path, tmp_path: Path) -> None:
    bad = offer(tmp_path / "bad", b"contend", sha="0" * 64)
    resource = Resource(bad.path, ("file:///nonexistent/", *bad.mirrors), 7, "0" * 64)
    with pytest.raises(DownloadError) as caught:
        read(resource)
    text = str(caught.value)
    assert "file:///nonexistent/file.gz" in text
    assert hashlib.sha256(b"contend").hexdigest() in text
    assert "set MYGRAD_DATA" in text
    assert not (cache / "data").exists()


def test_order_of_places(cache: Path, tmp_path: Path) -> None:
    resource = offer(tmp_path / "mirror", b"mirror")
    places = {"cache": cache / "data", "offline": tmp_path / "offline", "named": tmp_path / "named"}
    for name, folder in places.items():
        (folder / "set").mkdir(parents=True)
        (folder / "set" / "file.gz").write_bytes(name.encode())
    with configuration.context(MYGRAD_DATA=str(places["offline"])):
        assert read(resource, places["named"])[0] == b"named"
        assert read(resource)[0] == b"offline"
        (places["offline"] / "set" / "file.gz").unlink()
        assert read(resource)[0] == b"cache"


def test_missing_places_are_errors(tmp_path: Path) -> None:
    resource = offer(tmp_path / "mirror", b"mirror")
    with pytest.raises(DataError, match=r"no such file in .*empty.*leave the folder out"):
        read(resource, tmp_path / "empty")
    with (
        configuration.context(MYGRAD_DATA=str(tmp_path / "nowhere")),
        pytest.raises(DataError, match=r"MYGRAD_DATA: got .*nowhere, no such folder"),
    ):
        read(resource)


# --- MNIST ----------------------------------------------------------------------------------------


def test_embedded_mnist_is_the_official_test_set() -> None:
    images, labels = mnist("test", EMBEDDED)
    assert (images.shape, images.dtype) == ((10000, 28, 28), np.uint8)
    # facts of the official files that are well known
    assert labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert np.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert abs(images.mean() / 255 - 0.1325) < 1e-4


def small_mnist(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    for name, array in (("t10k-images-idx3", images), ("t10k-labels-idx1", labels)):
        (folder / f"{name}-ubyte.gz").write_bytes(gzip.compress(idx(array)))


def test_mnist_of_a_folder(tmp_path: Path) -> None:
    small_mnist(tmp_path, np.full((3, 28, 28), 7), np.array([1, 2, 9]))
    images, labels = mnist("test", tmp_path)
    assert images.shape == (3, 28, 28)
    assert labels.tolist() == [1, 2, 9]


@pytest.mark.parametrize(
    ("images", "labels", "got"),
    [
        (np.zeros((3, 28, 27)), np.zeros(3), r"\(3, 28, 27\)"),
        (np.zeros((3, 28, 28)), np.zeros(2), r"3 images, labels \(2,\)"),
        (np.zeros((2, 28, 28)), np.array([1, 10]), "up to 10"),
        (np.zeros((3, 784)), np.zeros(3), r"\(3, 784\)"),
    ],
)
def test_mnist_that_does_not_fit(
    tmp_path: Path, images: np.ndarray, labels: np.ndarray, got: str
) -> None:
    small_mnist(tmp_path, images, labels)
    with pytest.raises(DataError, match=got):
        mnist("test", tmp_path)


def test_mnist_damaged_file_is_named(tmp_path: Path) -> None:
    small_mnist(tmp_path, np.zeros((3, 28, 28)), np.zeros(3))
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=f"{path}: got .*delete it and get it again"):
        mnist("test", tmp_path)


def test_mnist_unknown_split() -> None:
    with pytest.raises(DataError, match="split 'valid', expected 'train' or 'test'"):
        mnist("valid")


def test_official_checksums_are_well_formed() -> None:
    for resource in (r for split in datasets.MNIST.values() for r in split):
        assert len(bytes.fromhex(resource.sha256)) == 32
        assert all(m.startswith("https://") and m.endswith("/") for m in resource.mirrors)


# --- batches --------------------------------------------------------------------------------------


def epoch(loader: DataLoader) -> list[list[int]]:
    return [batch.numpy().tolist() for (batch,) in loader]


@pytest.mark.parametrize("n", [0, 1, 5, 6, 7])
@pytest.mark.parametrize("size", [1, 3, 10])
def test_every_sample_once(n: int, size: int) -> None:
    whole = DataLoader((np.arange(n),), size, shuffle=True)
    found = epoch(whole)
    assert len(found) == len(whole) == -(-n // size)
    assert sorted(i for batch in found for i in batch) == list(range(n))
    full = DataLoader((np.arange(n),), size, drop_last=True)
    assert [len(b) for b in epoch(full)] == [size] * len(full) == [size] * (n // size)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    data = (np.arange(50),)
    a, b, c = (DataLoader(data, 7, shuffle=True, seed=seed) for seed in (1, 1, 2))
    first, second = epoch(a), epoch(a)
    assert first != second
    assert (epoch(b), epoch(b)) == (first, second)
    assert epoch(c) != first
    assert epoch(DataLoader(data, 50)) == [list(range(50))]


@pytest.mark.parametrize("on_device", [False, True])
def test_fields_stay_together(on_device: bool) -> None:
    x, y = np.arange(24.0, dtype=np.float32).reshape(6, 2, 2), np.arange(6)
    arrays = (Tensor(x), Tensor(y)) if on_device else (x, y)
    seen = 0
    for images, labels in DataLoader(arrays, 4, shuffle=True):
        assert (images.dtype.name, labels.dtype.name) == ("float32", "int64")
        np.testing.assert_array_equal(images.numpy(), x[labels.numpy()])
        seen += len(labels)
    assert seen == 6


def test_any_dataset_with_len_and_index() -> None:
    class Squares:
        def __len__(self) -> int:
            return 5

        def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
            return np.full(2, i, np.float32), i * i

    got = [(x.numpy().tolist(), y.numpy().tolist()) for x, y in DataLoader(Squares(), 2)]
    assert got == [([[0, 0], [1, 1]], [0, 1]), ([[2, 2], [3, 3]], [4, 9]), ([[4, 4]], [16])]
    single = [batch.numpy().tolist() for (batch,) in DataLoader([3, 4, 5], 2)]
    assert single == [[3, 4], [5]]


def test_dataset_of_arrays() -> None:
    data = TensorDataset(np.arange(4), np.arange(8).reshape(4, 2))
    assert len(data) == 4
    assert [v.tolist() for v in data[1]] == [1, [2, 3]]
    for wrong in ((), (np.arange(3), np.arange(2)), (np.array(1.0),)):
        with pytest.raises(DataError, match="expected one or more arrays with the same first"):
            TensorDataset(*wrong)
    with pytest.raises(DataError, match="batch_size 0, expected at least 1"):
        DataLoader(data, 0)
