"""Prepared programs on disk: a later process with the same program schedules and compiles nothing.

    load(structure, device) -> Outline | None      save(structure, device, outline)

What is kept is the outline; it names its kernels by the keys under which the disk cache has their
code, so that programs share them. The key of a program is the structure of its graph with the
memory budget and what may be overwritten, the device with its target, MYGRAD_GUARD and
MYGRAD_WINOGRAD, and the text of everything that has a say in what becomes of a graph. A program
that is damaged, or whose kernels are gone, is a miss. Programs of several devices, or that call
functions of the user, are not kept, nor are those of devices whose binaries are not. With TUNE none
is looked for.
"""

from __future__ import annotations

import pickle
from collections.abc import Hashable
from pathlib import Path

from mygrad import compiler
from mygrad.config import config
from mygrad.helpers import content_key
from mygrad.prepared import Outline, Segment
from mygrad.runtime import cache
from mygrad.runtime import device as devices

# what makes or differentiates graphs, and so has no say in what becomes of them
_ABOVE = ("autograd", "nn", "tensor")
_LIMIT = 128 << 20  # bytes of programs on disk
_UNREADABLE = (pickle.UnpicklingError, AttributeError, EOFError, ImportError, IndexError, TypeError)
_version: list[str] = []


def load(structure: Hashable, device: str) -> Outline | None:
    """The program of a graph with this structure, its kernels loaded; None if it is not there."""
    runtime = devices.get(device)
    if not runtime.caches_binaries or config.TUNE:  # with TUNE, kernels are to be searched
        return None
    content = cache.folder("programs", _LIMIT).get(_key(structure, device))
    if content is None:
        return None
    try:
        outline: Outline = pickle.loads(content)  # as trusted as the machine code beside it
    except _UNREADABLE:
        return None
    segments = [p for p in outline.parts if isinstance(p, Segment)]
    keys = list(dict.fromkeys(e for s in segments for one in s.launches for e in one.executables))
    found = compiler.load(keys, device)
    if found is None:
        return None
    # the kernel may have been tuned since: its launches are those of what was loaded
    return outline.with_executables(lambda key: found[key].entry)


def save(structure: Hashable, device: str, outline: Outline) -> None:
    """Keep a program, whose executables are the keys of its kernels."""
    places = {m.device for m in outline.memories} | {p.device for p in outline.parts}
    whole = all(isinstance(p, Segment) or isinstance(p.what, str) for p in outline.parts)
    if whole and places == {device} and devices.get(device).caches_binaries:
        cache.folder("programs", _LIMIT).put(_key(structure, device), pickle.dumps(outline))


def _key(structure: Hashable, device: str) -> str:
    if not _version:
        here = Path(__file__).parent
        files = sorted(f for f in here.rglob("*.py") if f.relative_to(here).parts[0] not in _ABOVE)
        _version.append(content_key(*(f.read_text() for f in files)))
    target = devices.get(device).target
    settings = config.MYGRAD_GUARD, config.MYGRAD_WINOGRAD
    return content_key(repr(structure), device, target, settings, _version[0])
