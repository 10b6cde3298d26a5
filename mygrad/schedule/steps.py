"""Schedules: what the scheduler makes of a graph. They are ordered, and their memory is planned.

    Schedule = steps       kernels, bands of them, host calls and copies between devices, in order
               memories    every array the steps touch: inputs, results, intermediates in an arena
               results     which memory holds each root

A Schedule refers to no node and no buffer, so it serves every graph of the same structure (`key`):
its inputs are numbered in the order in which `key` meets the BUFFER nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mygrad import graph
from mygrad.dtype import DType
from mygrad.graph import HostCall, Node
from mygrad.helpers import UNKNOWN, Location, Place, Shape, content_key, located, prod
from mygrad.ops import Op
from mygrad.program import BLOCK, LOCAL, UNIT, Buffer, local_memory

if TYPE_CHECKING:
    from mygrad.kernel import BufferInfo, Kernel

JOIN = "join"  # a step that is no work: its operands lie in its result
Threads = Callable[[str], int]  # how many share the work of a device
Units = Callable[[str], tuple[str, ...]]  # the matrix units of a device (`program.Target.units`)


@dataclass(frozen=True)
class Memory:
    """An array of a plan. `kind`: input (the `number`-th BUFFER), result (made anew for each run,
    kept by the user), separate (made anew for each run: host calls touch it), or temporary (at byte
    `number` of the device's arena)."""

    kind: str
    number: int
    dtype: DType
    shape: Shape
    device: str

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        size = self.dtype.itemsize
        for extent in self.shape:
            size *= extent
        return size


@dataclass(frozen=True)
class Part:
    """A kernel of a Band, run in the blocks from `first` up to, not with, `end`. `arguments` are
    (argument of the band, 0), or (LOCAL, byte) for arrays that only the band knows; `constants` as
    those of a Step."""

    kernel: Kernel
    arguments: tuple[tuple[int, int], ...]
    first: int
    end: int
    constants: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Band:
    """Kernels that one thread runs for one block of rows of one unit, before it goes on to the next
    block: what they hand to each other stays in its cache, in `local_bytes` of its own.

        for unit in range(units):           # shared by threads
            for block in range(blocks):     # too, if nothing is added up over them: `apart`
                for part in parts:          # where part.first <= block < part.end
                    part.kernel             # with the parameters UNIT and BLOCK
    """

    name: str
    parts: tuple[Part, ...]
    buffers: tuple[BufferInfo, ...]  # of the step's arguments
    units: int
    blocks: int
    apart: bool
    local_bytes: int
    flops: int = field(default=0, compare=False)
    bytes: int = field(default=0, compare=False)

    def named(self, stem: str) -> Band:
        """The band with a name that begins with `stem` and tells it from all others."""
        key = content_key(*((p.kernel.name, p.arguments, p.first, p.end) for p in self.parts))
        return replace(self, name=f"{stem}_{key[:8]}")

    def __str__(self) -> str:
        shared = "unit, block" if self.apart else "unit"
        lines = [
            f"band {self.name}, {self.local_bytes} local bytes",
            f"  for unit < {self.units}, block < {self.blocks}   threads share: {shared}",
        ]
        for part in self.parts:
            places = (f"local+{at}" if i == LOCAL else f"b{i}" for i, at in part.arguments)
            when = f" for block in [{part.first}, {part.end})"
            always = (part.first, part.end) == (0, self.blocks)
            lines.append(f"    {part.kernel.name}({', '.join(places)}){when * (not always)}")
        return "\n".join(lines)

    @property
    def params(self) -> tuple[tuple[str, int, int], ...]:
        """What a user must give: the parameters of the kernels that nothing here determines."""
        found: dict[tuple[str, int, int], None] = {}
        for part in self.parts:
            own = {UNIT, BLOCK, *dict(part.constants)}
            found.update(dict.fromkeys(p for p in part.kernel.params if p[0] not in own))
        return tuple(found)


@dataclass(frozen=True)
class Step:
    """One step. `what` is a Kernel, a Band, a HostCall, or the word "sort" or "copy" with `arg`;
    `arguments` number the memories: those of the kernel's slots, or the operands and last the
    result. `constants` are the values of those parameters of the kernel that no user gives."""

    what: Kernel | Band | HostCall | str
    arguments: tuple[int, ...]
    device: str
    arg: Any = None
    reason: str = ""
    location: Location = UNKNOWN
    constants: tuple[tuple[str, int], ...] = ()


def is_host_step(step: Step) -> bool:
    """Whether a step runs on the host, and not as a kernel."""
    return isinstance(step.what, (HostCall, str))


def kernels_of(step: Step) -> list[Kernel]:
    """The kernels that a step runs, each once."""
    if isinstance(step.what, Band):
        return list(dict.fromkeys(part.kernel for part in step.what.parts))
    return [] if is_host_step(step) else [step.what]  # type: ignore[list-item]


@dataclass(frozen=True)
class Schedule:
    """An ordered, planned program; see the module's docstring."""

    steps: tuple[Step, ...]
    memories: tuple[Memory, ...]
    results: tuple[int, ...]
    arena_bytes: dict[str, int]
    local_bytes: int  # of all threads

    @property
    def peak_bytes(self) -> int:
        """Memory the plan needs beside its inputs: arenas and results, what host steps touch, and
        what threads have for themselves in bands. Not counted is the scratch of kernels: what is
        too large for the stack is allocated while one runs."""
        return peak_of(self.memories, self.arena_bytes, self.local_bytes)


def peak_of(memories: Sequence[Memory], arena_bytes: Mapping[str, int], local_bytes: int) -> int:
    """Memory that a program needs beside its inputs; see `Schedule.peak_bytes`."""
    made = [m.nbytes for m in memories if m.kind in ("result", "separate")]
    return sum(arena_bytes.values()) + sum(made) + local_bytes


def local_bytes_of(steps: Sequence[Step], threads: Threads) -> int:
    """Memory that threads have for themselves; it is the same for all bands of a run."""
    bands = [(s.what.local_bytes, threads(s.device)) for s in steps if isinstance(s.what, Band)]
    return max((local_memory(*band) for band in bands), default=0)


def inputs(roots: Sequence[Node]) -> list[Node]:
    """The BUFFER nodes below the roots, in the order of a Schedule's inputs."""
    return [n for n in graph.toposort(roots) if n.op is Op.BUFFER]


Structure = tuple[tuple[Any, ...], ...]  # a row for each node, and last the numbers of the roots


def key(roots: Sequence[Node]) -> tuple[Structure, list[Node]]:
    """What a schedule depends on, hashable: the structure of the graph with buffers abstracted to
    slots. Also the BUFFER nodes in slot order."""
    number: dict[Node, int] = {}
    rows: list[tuple[Any, ...]] = []
    buffers: list[Node] = []
    for node in graph.toposort(roots):
        number[node] = len(rows)
        if node.op is Op.BUFFER:
            buffers.append(node)
            rows.append((node.shape, node.dtype, node.device))
        elif node.op is Op.DETACH:
            number[node] = number[node.src[0]]  # only gradients see it
        else:
            arg = repr(node.arg) if node.op is Op.CONST else node.arg
            rows.append((node.op, arg, node.shape, node.dtype, *[number[s] for s in node.src]))
    rows.append(tuple(number[r] for r in roots))
    return tuple(rows), buffers


def places(roots: Sequence[Node]) -> list[Location | Place]:
    """For each row of the graph's structure where its node was made."""
    return [n.where for n in graph.toposort(roots) if n.op is not Op.DETACH]


def rebuild(structure: Structure, where: Sequence[Location | Place]) -> list[Node]:
    """The roots of a graph of this structure, on buffers without memory, made at these places."""
    *rows, roots = structure
    nodes: list[Node] = []
    try:
        for row, place in zip(rows, where, strict=True):
            graph.attribute_to(place if isinstance(place, Location) else located(place))
            nodes.append(_node_of(row, nodes))
    finally:
        graph.attribute_to(None)
    return [nodes[number] for number in roots]


def _node_of(row: tuple[Any, ...], nodes: Sequence[Node]) -> Node:
    if not isinstance(row[0], Op):
        shape, dtype, device = row
        return graph.buffer(Buffer(device, dtype, prod(shape)), shape)
    op, arg, shape, dtype, *src = row
    if op is Op.CONST:
        arg = arg == "True" if dtype.kind == "b" else (float if dtype.is_float else int)(arg)
    return graph.restore(op, arg, tuple(nodes[number] for number in src), shape, dtype)
