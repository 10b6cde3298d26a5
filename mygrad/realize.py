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
from mygrad import graph, interpret
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
    stored = _read(result.arg)[:result.size]
    return dt.from_storage(stored.reshape(result.shape), result.dtype)


def _read(memory: Buffer) -> np.ndarray[Any, Any]:
    """The stored elements of a buffer."""
    if memory.memory is None:
        raise BufferError_(message("read", f"a tensor without memory ({memory.why_unreadable})",
                                   "a computed tensor"))
    out = np.empty(memory.size, memory.dtype.storage)
    if out.size:
        devices.get(memory.device).read(memory.memory, out)
    return out


def realize(nodes: Sequence[Node]) -> list[Node]:
    """Compute `nodes`; the result is one BUFFER node of the same shape for each."""
    # a stand-in until the scheduler is in place: everything through the interpreter
    wanted = list(dict.fromkeys([*nodes, *(n for n in graph.toposort(nodes) if n.op is Op.STORE)]))
    done: dict[Node, Node] = {n: n for n in wanted if n.op is Op.BUFFER}
    missing = [n for n in wanted if n not in done]
    for node, value in zip(missing, interpret.evaluate_all(missing, _read), strict=True):
        done[node] = node.src[0] if node.op is Op.STORE else from_numpy(value, node.dtype, node.device)
        if node.op is Op.STORE and value.size:
            data = np.ascontiguousarray(dt.to_storage(value, node.dtype))
            devices.get(node.device).write(node.src[0].arg.memory, data)
    return [done[n] for n in nodes]
