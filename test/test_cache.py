"""The disk cache: damage, bounds, folders that cannot be written, and concurrent processes."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from mygrad.config import context
from mygrad.runtime.cache import DiskCache, default_cache


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("content", [b"", b"x", os.urandom(100_000)])
def test_what_is_put_is_got(tmp_path: Path, content: bytes) -> None:
    cache = DiskCache(tmp_path / "not" / "there")
    assert cache.get("key") is None
    cache.put("key", content)
    assert cache.get("key") == content
    assert cache.get("other key") is None
    assert DiskCache(tmp_path / "not" / "there").get("key") == content


def test_the_last_writer_wins(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    cache.put("key", b"one")
    cache.put("key", b"two")
    assert cache.get("key") == b"two"
    assert len(files(tmp_path)) == 1  # no temporary file stays


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b"",
        lambda b: b[:10],
        lambda b: b[:-1],
        lambda b: b + b"more",
        lambda b: b"other" + b,
        lambda b: b[:60] + bytes([b[60] ^ 1]) + b[61:],
        lambda b: bytes(len(b)),
        lambda b: b[:7] + bytes([b[7] + 1]) + b[8:],
    ],
    ids=[
        "empty",
        "header cut",
        "tail cut",
        "longer",
        "shifted",
        "bit flipped",
        "zeros",
        "other version",
    ],
)
def test_a_damaged_file_is_a_miss_and_is_replaced(tmp_path: Path, damage) -> None:
    cache = DiskCache(tmp_path)
    cache.put("key", b"content" * 20)
    (path,) = files(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get("key") is None
    cache.put("key", b"content again")
    assert cache.get("key") == b"content again"


def test_the_oldest_go_when_there_is_too_much(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, limit=10_000)
    for n in range(70):
        cache.put(f"key {n}", bytes(1000))
        for path in files(tmp_path):  # an earlier time for what is there
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 10))
    cache.put("one more", bytes(1000))
    for _ in range(70):
        cache.put("one more", bytes(1000))
    assert sum(p.stat().st_size for p in files(tmp_path)) <= 10_000
    assert cache.get("key 0") is None
    assert cache.get("one more") is not None


def test_reading_makes_a_file_young_again(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    cache.put("key", b"content")
    (path,) = files(tmp_path)
    os.utime(path, (1000, 1000))
    cache.get("key")
    assert path.stat().st_mtime > 1_000_000


def test_a_folder_that_cannot_be_made_costs_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = DiskCache(tmp_path / "file" / "folder")
    assert cache.get("key") is None
    with pytest.warns(RuntimeWarning, match="MYGRAD_CACHE"):
        cache.put("key", b"content")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put("key", b"content")
        assert cache.get("key") is None


def test_off_keeps_nothing(tmp_path: Path) -> None:
    with context(MYGRAD_CACHE="off"):
        cache = default_cache()
        cache.put("key", b"content")
        assert cache.get("key") is None
    with context(MYGRAD_CACHE=str(tmp_path)):
        default_cache().put("key", b"content")
        assert default_cache().get("key") == b"content"
    assert files(tmp_path)


WORKER = """
import sys
from mygrad.runtime.cache import DiskCache
cache, number = DiskCache(sys.argv[1], limit=200_000), int(sys.argv[2])
for n in range(100):
    key = f"key {n % 17}"
    found = cache.get(key)
    assert found is None or found == key.encode() * 500, "a part of a file"
    cache.put(key, key.encode() * 500)
"""


def test_processes_share_a_folder(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), str(n)],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            stderr=subprocess.PIPE,
        )
        for n in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=60)
        assert worker.returncode == 0, errors.decode()
    assert len(files(tmp_path)) == 17
