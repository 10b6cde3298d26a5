"""Small tools that know nothing of tensors: shapes, user source locations, content keys."""

from __future__ import annotations

import gc
import hashlib
import importlib
import math
import os
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from types import CodeType
from typing import Any, NamedTuple, Protocol, TypeVar

from mygrad.errors import MissingPackageError, message

Shape = tuple[int, ...]

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_is_internal: dict[str, bool] = {}  # by file name


class Location(NamedTuple):
    """A line of the user's program."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


UNKNOWN = Location("<unknown>", 0)


Place = tuple[CodeType, int]  # of an instruction: cheaper to take than a line, and then kept often


def user_place() -> Place | Location:
    """The innermost instruction on the call stack that is not inside mygrad."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        internal = _is_internal.get(code.co_filename)
        if internal is None:
            internal = _is_internal[code.co_filename] = code.co_filename.startswith(_PACKAGE)
        if not internal:
            return code, frame.f_lasti
        frame = frame.f_back  # type: ignore[assignment]
    return UNKNOWN


def located(place: Place) -> Location:
    """The line of an instruction."""
    code, instruction = place
    line = code.co_firstlineno
    for start, end, number in code.co_lines():
        if start <= instruction < end and number is not None:
            line = number
    return Location(code.co_filename, line)


_T = TypeVar("_T")


class KeyedRef(weakref.ref[_T]):
    """A weak reference that knows its key in a table of interned objects; WeakValueDictionary does
    the same more slowly."""

    __slots__ = ("key",)
    key: tuple[Any, ...]


@contextmanager
def without_collections() -> Iterator[None]:
    """No cyclic garbage collections meanwhile: passes over large graphs make objects by the
    hundred thousand, nearly all of which live until the end, and every collection would look at
    all of them. Also a decorator."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def prod(values: Iterable[int]) -> int:
    """Product of integers; 1 when there are none."""
    return math.prod(values)


def strides_of(shape: Shape) -> Shape:
    """Row-major strides in elements: (2, 3, 4) -> (12, 4, 1)."""
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def ceildiv(a: int, b: int) -> int:
    """Smallest integer not below a / b, for b > 0."""
    return -(-a // b)


def round_up(a: int, multiple: int) -> int:
    """Smallest multiple of `multiple` not below a."""
    return ceildiv(a, multiple) * multiple


def power_of_two(n: int) -> int:
    """The smallest power of two not below n, for n > 0."""
    return 1 << (n - 1).bit_length()


BUSY = 0.95  # share of the time for which threads that share a loop should be busy


def busy(trips: int, threads: int, each: int = 1) -> float:
    """The share of the time for which threads are busy that take equal numbers of trips, or of so
    many trips `each` time.

    >>> busy(21, 2), busy(21, 2, each=4)  # 11 and 10; three times 4, and twice 4 and 1
    (0.9545454545454546, 0.875)
    """
    most = min(ceildiv(ceildiv(trips, each), threads) * each, trips)
    return trips / (most * threads)


class _HasOperands(Protocol):
    @property
    def src(self) -> tuple[Any, ...]: ...


_Walked = TypeVar("_Walked", bound=_HasOperands)


def operands_first(roots: Iterable[_Walked]) -> list[_Walked]:
    """Everything reachable from the roots through `src`, operands first; without recursion."""
    done: dict[_Walked, None] = {}
    for root in roots:
        if root in done:
            continue
        path = [(root, iter(root.src))]  # down to here, each with the operands still to look at
        while path:
            node, operands = path[-1]
            for s in operands:
                if s not in done:
                    path.append((s, iter(s.src)))
                    break
            else:
                path.pop()
                done[node] = None
    return list(done)


def content_key(*parts: object) -> str:
    """A stable hexadecimal key of the `str` of the parts, for names and cache files."""
    return hashlib.sha256("\x00".join(map(str, parts)).encode()).hexdigest()[:24]


def picker(places: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """A function that takes the elements at these places out of a sequence, in one step of Python.

    >>> picker([2, 0])("abc"), picker([1])("abc"), picker([])("abc")
    (('c', 'a'), ('b',), ())
    """
    if len(places) > 1:
        return itemgetter(*places)
    return lambda values: tuple([values[i] for i in places])


class _LazyModule:
    """A module that is imported when something of it is first asked for."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def lazy_module(name: str) -> Any:
    """The module `name`, imported when something of it is first asked for. It stands beside an
    import under TYPE_CHECKING, where a start must not pay for what it may never use."""
    return _LazyModule(name)


def optional_import(name: str, purpose: str, extra: str) -> Any:
    """An optional package, imported when it is needed.

    >>> optional_import("no_such_package", "safe_save", "examples")
    Traceback (most recent call last):
    ...
    mygrad.errors.MissingPackageError: ...

    Raises:
        MissingPackageError: it is not installed; says which extra of mygrad brings it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            message(
                purpose,
                f"no package {name} ({error})",
                "it to be installed",
                f"pip install 'mygrad[{extra}]'",
            )
        ) from error


def atomic_write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file whole or not at all: readers and crashes never see half of it."""
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".partial-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's 0600 would hide the file from other users
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def quantity(n: float) -> str:
    """A number with three digits and a unit prefix: 12345678 -> 12.3M."""
    for unit in ("", "k", "M", "G"):
        if abs(n) < 999.5:
            return f"{n:.3g}{unit}"
        n /= 1000
    return f"{n:.3g}T" if abs(n) < 999.5 else f"{n:.0f}T"
