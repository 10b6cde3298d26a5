"""This processor as code generators see it: vector width, registers, caches."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

from mygrad.config import config
from mygrad.program import Target

_SYSTEM_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_SYSTEM_CALL, _REQUEST, _TILE_DATA = 158, 0x1023, 18  # arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)
_FAR_AHEAD = "znver"  # processors of AMD: they fetch ahead in one row as fast as in several
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
        units=_matrix_units(set(features.split(","))) if config.MYGRAD_AMX else (),
        vector_bytes=width,
        vector_registers=registers,
        l1_bytes=sizes.get(1, 32 << 10),
        l2_bytes=sizes.get(2, 1 << 20),
        streams=1 if name.startswith(_FAR_AHEAD) else 8,
        threads=threads,
    )


def _vectors(features: set[str]) -> tuple[int, int]:
    """Bytes of a vector register, and how many there are."""
    if "+avx512f" in features:
        return 64, 32
    if "+avx2" in features:
        return 32, 16
    return 16, 32 if "+neon" in features else 16


def _matrix_units(features: set[str]) -> tuple[str, ...]:
    """What multiplies matrices here. Linux gives a process tile registers when it asks for them;
    asking again does no harm. Processors that have tiles take longer for dot products of pairs than
    for widening them; those of AMD, which have none, do twice as many as products of float32."""
    known = (("+amx-bf16", "amx_bf16"), ("+amx-int8", "amx_int8"))
    units = tuple(unit for feature, unit in known if feature in features)
    if "+avx512bf16" in features and not units:
        return ("dot_bf16",)
    if not units or "+amx-tile" not in features:
        return ()
    try:
        refused = ctypes.CDLL(None).syscall(_SYSTEM_CALL, _REQUEST, _TILE_DATA)
    except (OSError, AttributeError):
        return ()
    return () if refused else units


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
