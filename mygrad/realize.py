"""The driver: the one module that sees every stage, from graph nodes to memory.

    realize(nodes)     compute nodes; BUFFER nodes that hold the results
    from_numpy(array)  a BUFFER node with a copy of the array
    to_numpy(node)     the values of a node as a NumPy array of its own
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mygrad import dtype as dt
from mygrad import graph
from mygrad.dtype import DType
from mygrad.errors import BufferError_, message
from mygrad.graph import Node
from mygrad.ops import Op
from mygrad.program import Buffer
from mygrad.runtime import device as devices


def from_numpy(array: np.ndarray[Any, Any], dtype: DType | None = None, device: str | None = None) -> Node:
    """A BUFFER node on `device` (default: the default device) with a copy of `array`, converted to `dtype`
    (default: the array's own)."""
    dtype = dtype or dt.parse(array.dtype)
    device = device or devices.default()
    data = np.ascontiguousarray(dt.to_storage(array, dtype))
    memory = allocate(device, dtype, array.size)
    if array.size:
        devices.get(device).write(memory.memory, data)
    return graph.buffer(memory, array.shape)


def allocate(device: str, dtype: DType, size: int) -> Buffer:
    """A buffer with memory, not initialised."""
    runtime = devices.get(device)
    made = Buffer(device, dtype, size)
    made.memory, made.release = runtime.allocate(max(made.nbytes, 1)), runtime.release
    return made


def to_numpy(node: Node) -> np.ndarray[Any, Any]:
    """The values of `node` as a new array of its shape (bfloat16 as float32)."""
    result = realize([node])[0]
    memory: Buffer = result.arg
    if memory.memory is None:
        raise BufferError_(message("read", f"a tensor without memory ({memory.why_unreadable})",
                                   "a computed tensor"))
    out = np.empty(result.shape, result.dtype.storage)
    if out.size:
        devices.get(memory.device).read(memory.memory, out)
    return dt.from_storage(out, result.dtype)


def realize(nodes: Sequence[Node]) -> list[Node]:
    """Compute `nodes`; the result is one BUFFER node of the same shape for each."""
    from mygrad import interpret  # noqa: PLC0415  (stand-in until the scheduler is in place)

    return [n if n.op is Op.BUFFER else from_numpy(interpret.evaluate(n), n.dtype, n.device) for n in nodes]
