"""The tensors of a model, by name: the one mechanism behind Module, optimisers and weight files.

A model is any tree of objects, lists, tuples and dicts with Tensors in it; a Module is only a
convenience.

    walk(obj)              every named value below obj
    get_state_dict(obj)    name -> Tensor, e.g. "layers.0.weight"
    get_parameters(obj)    the Tensors that require gradients, each once
    load_state_dict(obj, state)
    safe_save(state, path), safe_load(path)        the safetensors format
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from mygrad import dtype as dt
from mygrad.errors import DataError, ShapeError, message
from mygrad.helpers import atomic_write, optional_import
from mygrad.jit import jit
from mygrad.tensor import Tensor

# values whose attributes are no part of a model
_OPAQUE = (type, FunctionType, MethodType, BuiltinFunctionType, ModuleType, jit, np.ndarray)
_MAX_LISTED = 8  # names that an error message lists before it says "and n more"


def walk(
    obj: object, prefix: str = "", into: Callable[[object], bool] = lambda _: True
) -> Iterator[tuple[str, object]]:
    """Every value below `obj` with its dotted name, in the order in which the attributes were set.

    `into` says whether to descend into a value. A value that is reachable by two names is given
    under both; one that contains itself is entered once.
    """
    work: list[tuple[str, object, frozenset[int]]] = [(prefix, obj, frozenset())]
    while work:
        name, value, above = work.pop()
        if name != prefix:
            yield name, value
            if not into(value):
                continue
        if id(value) not in above:
            inside = above | {id(value)}
            start = f"{name}." if name else ""
            work += [(f"{start}{key}", v, inside) for key, v in reversed(_items(value))]


def _items(value: object) -> list[tuple[str, object]]:
    if isinstance(value, (str, bytes, Tensor, *_OPAQUE)):
        return []
    if isinstance(value, Mapping):
        return [(str(key), v) for key, v in value.items()]
    if isinstance(value, (list, tuple)):
        fields = getattr(value, "_fields", range(len(value)))  # a named tuple has names
        return [(str(key), v) for key, v in zip(fields, value, strict=True)]
    slots = [s for cls in type(value).__mro__ for s in _slots_of(cls) if hasattr(value, s)]
    return [*getattr(value, "__dict__", {}).items(), *((s, getattr(value, s)) for s in slots)]


def _slots_of(cls: type) -> tuple[str, ...]:
    slots = cls.__dict__.get("__slots__", ())
    slots = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(s for s in slots if not s.startswith("__"))


def get_state_dict(obj: object, prefix: str = "") -> dict[str, Tensor]:
    """Every Tensor below `obj` by name: parameters, running statistics, states of optimisers.

    >>> list(get_state_dict({"layers": [Linear(2, 3)]}))
    ['layers.0.weight', 'layers.0.bias']
    """
    return {name: value for name, value in walk(obj, prefix) if isinstance(value, Tensor)}


def get_parameters(obj: object) -> list[Tensor]:
    """The Tensors below `obj` that require gradients, each once."""
    return list({id(t): t for t in get_state_dict(obj).values() if is_parameter(t)}.values())


def is_parameter(tensor: Tensor) -> bool:
    """Whether `backward` leaves a gradient in it: a leaf, made with requires_grad=True."""
    return tensor.requires_grad and tensor.is_leaf


def load_state_dict(obj: object, state: Mapping[str, Any], strict: bool = True) -> None:
    """Assign the values of `state` (Tensors or NumPy arrays) to the Tensors of `obj` with those
    names.

    They are converted to the number type and moved to the device of the Tensor that takes them.
    With `strict=False` names that only one side has are left alone. Nothing is assigned if anything
    is wrong.

    Raises:
        DataError: names that are missing from `state` or that `obj` does not have (only if strict).
        ShapeError: values of another shape.
    """
    own = get_state_dict(obj)
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    if strict and (missing or unexpected):
        got = f"missing {_listed(missing)}; unexpected {_listed(unexpected)}"
        raise DataError(
            message("load_state_dict", got, "the names of the model", "or pass strict=False")
        )
    wrong = [
        f"{name} {np.shape(state[name])} for {t.shape}"
        for name, t in own.items()
        if name in state and np.shape(state[name]) != t.shape
    ]
    if wrong:
        raise ShapeError(message("load_state_dict", _listed(wrong), "the shapes of the model"))
    for name, tensor in own.items():
        if name in state:
            _assign(tensor, state[name])


def _assign(tensor: Tensor, value: Any) -> None:
    new = value.detach() if isinstance(value, Tensor) else Tensor(np.asarray(value))
    tensor.assign(new.to(tensor.device).cast(tensor.dtype))


def _listed(names: list[str]) -> str:
    if not names:
        return "nothing"
    more = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


# --- files ----------------------------------------------------------------------------------------


def safe_save(
    state: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write Tensors into a .safetensors file, whole or not at all.

    Raises:
        DataError: a value that is no Tensor.
        MissingPackageError: without the package safetensors.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor):
            got = f"{type(value).__name__} as {name!r}"
            raise DataError(message("safe_save", got, "Tensors", "wrap it in Tensor(...)"))
    safetensors = optional_import("safetensors", "safe_save", "examples")
    stored = {name: _stored(tensor) for name, tensor in state.items()}
    specs = {
        name: safetensors.TensorSpec(  # a bare address: `stored` keeps the memory alive
            dtype=state[name].dtype.name,
            shape=values.shape,
            data_ptr=values.ctypes.data,
            data_len=values.nbytes,
        )
        for name, values in stored.items()
    }
    atomic_write(path, safetensors.serialize(specs, dict(metadata) if metadata else None))


def _stored(tensor: Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(dt.to_storage(tensor.numpy(), tensor.dtype)).reshape(tensor.shape)


def safe_load(path: str | os.PathLike[str], device: str | None = None) -> dict[str, Tensor]:
    """The Tensors of a .safetensors file by name, on `device`.

    Raises:
        MissingPackageError: without the package safetensors.
        DataError: no such file, or one that is not in the format.
    """
    safetensors = optional_import("safetensors", "safe_load", "examples")
    try:
        with open(path, "rb") as file:
            entries = safetensors.deserialize(file.read())
    except OSError as error:
        got = error.strerror or str(error)
        raise DataError(message("safe_load", f"{path}: {got}", "a .safetensors file")) from None
    except safetensors.SafetensorError as error:
        raise DataError(
            message(
                "safe_load",
                f"{path}: {error}",
                "a whole .safetensors file",
                "the file is damaged: delete it and get it again",
            )
        ) from None
    return {name: _tensor(name, entry, path, device) for name, entry in entries}


_SAFETENSORS_TYPES = {
    "BOOL": dt.bool_,
    "I8": dt.int8,
    "I16": dt.int16,
    "I32": dt.int32,
    "I64": dt.int64,
    "U8": dt.uint8,
    "U16": dt.uint16,
    "U32": dt.uint32,
    "U64": dt.uint64,
    "F16": dt.float16,
    "BF16": dt.bfloat16,
    "F32": dt.float32,
    "F64": dt.float64,
}


def _tensor(
    name: str, entry: Mapping[str, Any], path: str | os.PathLike[str], device: str | None
) -> Tensor:
    dtype = _SAFETENSORS_TYPES.get(entry["dtype"])
    if dtype is None:
        known = ", ".join(_SAFETENSORS_TYPES)
        raise DataError(message("safe_load", f"{path}: {name} of type {entry['dtype']}", known))
    stored = np.frombuffer(bytearray(entry["data"]), dtype.storage).reshape(entry["shape"])
    return Tensor(dt.from_storage(stored, dtype), dtype=dtype, device=device)
