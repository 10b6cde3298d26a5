"""This processor as code generators see it: vector width, registers, caches."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from mygrad.program import Target

_SYSTEM_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def host_target(name: str, features: str, threads: int, caches: Path = _SYSTEM_CACHES) -> Target:
    """The target of a processor with these LLVM features ("+avx2,-avx512f"). `name` goes into the
    keys of compiled kernels, so it says more than the processor: also which compiler."""
    width, registers = _vectors(set(features.split(",")))
    sizes = _cache_sizes(caches)
    return Target(
        language="llvm",
        name=name,
        features=features,
        vector_bytes=width,
        vector_registers=registers,
        l1_bytes=sizes.get(1, 32 << 10),
        l2_bytes=sizes.get(2, 1 << 20),
        threads=threads,
    )


def _vectors(features: set[str]) -> tuple[int, int]:
    """Bytes of a vector register, and how many there are."""
    if "+avx512f" in features:
        return 64, 32
    if "+avx2" in features:
        return 32, 16
    return 16, 32 if "+neon" in features else 16


def _cache_sizes(folder: Path) -> dict[int, int]:
    """Bytes by level of the data caches, as far as the system tells."""
    sizes: dict[int, int] = {}
    for cache in sorted(folder.glob("index*")):
        with suppress(OSError, ValueError, KeyError):
            if (cache / "type").read_text().strip() == "Instruction":
                continue
            size = (cache / "size").read_text().strip()
            level = int((cache / "level").read_text())
            sizes[level] = int(size[:-1]) * _UNITS[size[-1]] if size[-1] in _UNITS else int(size)
    return sizes
