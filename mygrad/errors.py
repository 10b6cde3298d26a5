"""User errors and internal errors.

A user error says four things: the operation, what it got, what it expected and what to do about
it. Every user error also derives from the builtin a Python programmer would expect (`ValueError`,
`TypeError`, `IndexError` ...), so `except ValueError` works as it does with NumPy. An
`InternalError` is a defect of mygrad itself: no input of a user should reach one.
"""

from __future__ import annotations


class MygradError(Exception):
    """Base of every error that mygrad raises on purpose."""


class ShapeError(MygradError, ValueError):
    """Shapes, axes or extents that do not fit the operation."""


class DTypeError(MygradError, TypeError):
    """A number type that the operation does not take."""


class IndexRangeError(MygradError, IndexError):
    """An index outside of its axis."""


class DeviceError(MygradError, RuntimeError):
    """A device that is unknown, missing, mixed with another one, or that failed."""


class ConfigError(MygradError, ValueError):
    """A setting or environment variable with a value it cannot have."""


class CaptureError(MygradError, RuntimeError):
    """Something that `jit` cannot capture."""


class GradientError(MygradError, RuntimeError):
    """A gradient that was asked for and does not exist."""


class BufferError_(MygradError, RuntimeError):
    """Reading memory that was freed or never written."""


class DataError(MygradError, ValueError):
    """A dataset, weights or cache file that is missing or damaged."""


class DownloadError(DataError):
    """A dataset that is not on this machine and that no mirror gave."""


class MissingPackageError(MygradError, ImportError):
    """An optional package that is not installed."""


class CompileError(MygradError, RuntimeError):
    """A backend compiler refused generated code."""


class InternalError(MygradError, AssertionError):
    """A defect of mygrad: an invariant between passes does not hold."""


def message(op: str, got: object, expected: object, remedy: str = "") -> str:
    """One line in the form every user error has.

    >>> message("reshape", "(2, 3) to (4,)", "6 elements", "use -1 for one extent")
    'reshape: got (2, 3) to (4,), expected 6 elements; use -1 for one extent'
    """
    text = f"{op}: got {got}, expected {expected}"
    return f"{text}; {remedy}" if remedy else text
