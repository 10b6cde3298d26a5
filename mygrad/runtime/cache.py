"""A folder of compiled binaries that any number of processes share.

    get(key) -> bytes | None      put(key, bytes)

A file is named by the hash of its key and carries a version and a checksum: a damaged, truncated or
foreign file is a miss and is replaced. Files appear by an atomic rename, so a reader sees the
whole of one or nothing. When the folder outgrows its bound, the files that were used longest ago
go. A folder that cannot be written to costs one warning, and from then on nothing is kept.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
import warnings
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from mygrad.config import config

VERSION = 1
_MAGIC = b"mygrad\x00" + bytes([VERSION])
_HEADER = struct.Struct("<8s32sQ")  # magic, checksum of the content, its length
_SUFFIX = ".bin"
_LOOK_EVERY = 64  # puts between two looks at the size of the folder


class DiskCache:
    """Binaries by key in `folder`, at most about `limit` bytes; `None` keeps nothing.

    >>> cache = DiskCache(None)
    >>> cache.put("key", b"binary"), cache.get("key")
    (None, None)
    """

    def __init__(self, folder: str | os.PathLike[str] | None, limit: int = 1 << 30) -> None:
        self.folder = None if folder is None else Path(folder).expanduser()
        self.limit = limit
        self._puts = 0

    def _path(self, key: str) -> Path | None:
        if self.folder is None:
            return None
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / (name[2:40] + _SUFFIX)

    def get(self, key: str) -> bytes | None:
        """The binary of a key, or None."""
        path = self._path(key)
        if path is None:
            return None
        content = None
        with suppress(OSError):  # missing, or in a folder that can only be read
            content = _unpack(path.read_bytes())
            if content is None:
                path.unlink()  # damaged: make room for a good one
            else:
                os.utime(path)
        return content

    def put(self, key: str, content: bytes) -> None:
        """Keep the binary of a key; the last of several writers wins."""
        path = self._path(key)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(
                path, _HEADER.pack(_MAGIC, hashlib.sha256(content).digest(), len(content)) + content
            )
            if self._puts % _LOOK_EVERY == 0:
                self._evict()
            self._puts += 1
        except OSError as error:
            warnings.warn(
                f"cache: {self.folder} cannot be written ({error}); compiled kernels are not "
                "kept; set MYGRAD_CACHE to another folder or to 'off'",
                RuntimeWarning,
                stacklevel=2,
            )
            self.folder = None

    def _evict(self) -> None:
        """Delete the files that were used longest ago until three quarters of the bound are
        left."""
        files = []
        for path in self.folder.glob(f"*/*{_SUFFIX}") if self.folder else ():
            with suppress(OSError):  # another process may be evicting too
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in files)
        if total <= self.limit:
            return
        for _, size, path in sorted(files):
            if total <= self.limit * 3 // 4:
                break
            with suppress(OSError):
                path.unlink()
            total -= size


def _unpack(data: bytes) -> bytes | None:
    """The content of a file, None if it is not whole."""
    if len(data) < _HEADER.size:
        return None
    magic, digest, length = _HEADER.unpack_from(data)
    content = data[_HEADER.size :]
    whole = (
        magic == _MAGIC and length == len(content) and digest == hashlib.sha256(content).digest()
    )
    return content if whole else None


def _write(path: Path, data: bytes) -> None:
    """Write a file so that nobody ever sees a part of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def folder(name: str, limit: int = 1 << 30) -> DiskCache:
    """The cache in the folder `name` of the one that MYGRAD_CACHE names; one that keeps nothing if
    that is "off"."""
    return _opened(config.MYGRAD_CACHE, name, limit)


@lru_cache(maxsize=64)
def _opened(root: str, name: str, limit: int) -> DiskCache:
    return DiskCache(None if root.lower() == "off" else Path(root).expanduser() / name, limit)


def default_cache() -> DiskCache:
    """The cache of compiled kernels."""
    return folder("kernels")
