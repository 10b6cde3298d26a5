"""The driver: the one module that sees every stage, from graph nodes to memory.

realize(nodes)     compute nodes; BUFFER nodes that hold the results
plan(*tensors)     what would run, without running it
prepare(nodes)     the same up to, but without, running: a Prepared program, cached by structure
from_numpy(array)  a BUFFER node with a copy of the array
to_numpy(node)     the values of a node as a NumPy array of its own
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mygrad import compiler, explain, graph, interpret
from mygrad import dtype as dt
from mygrad.capture import Lazy
from mygrad.config import config
from mygrad.dtype import DType
from mygrad.errors import BufferError_, DTypeError, ShapeError, message
from mygrad.graph import HostCall, Node
from mygrad.kernel import Kernel
from mygrad.ops import Op
from mygrad.program import Buffer, Launch
from mygrad.runtime import device as devices
from mygrad.runtime.base import LaunchSequence
from mygrad.schedule.schedule import Memory, Schedule, Step, key, schedule

ALIASES = frozenset({Op.RESHAPE, Op.CONTIGUOUS, Op.DETACH})  # of a BUFFER: the same memory


@dataclass
class Segment:
    """Consecutive kernels of one device, as one launch sequence. `memories` are the plan's memories
    behind the sequence's slots; if a kernel touches the device's arena, that is one more, the last.
    """

    device: str
    steps: list[Step]
    memories: list[int]
    in_arena: bool
    sequence: LaunchSequence


class Prepared:
    """A schedule with everything compiled: what `run` needs besides the input buffers.

    What a run looks up is resolved here, once, because a small program takes microseconds.
    """

    def __init__(self, plan: Schedule, parts: list[Segment | Step]) -> None:
        self.schedule = plan
        self.parts = parts
        self.owned = [i for i, m in enumerate(plan.memories) if m.kind in ("result", "separate")]
        self._makers = [
            _maker(m.device, m.dtype, _size(m)) for m in map(plan.memories.__getitem__, self.owned)
        ]
        self._arenas = [(d, _maker(d, dt.uint8, n)) for d, n in plan.arena_bytes.items()]
        kernels = [s.what for s in plan.steps if isinstance(s.what, Kernel)]
        self._variables = sorted({variable for k in kernels for variable in k.params})
        self._sources = [
            (m.kind == "input", m.number if m.kind == "input" else i)
            for i, m in enumerate(plan.memories)
        ]

    def run(self, inputs: Sequence[Buffer], params: Mapping[str, int]) -> list[Buffer]:
        """Run on these inputs; one buffer per root. `params` gives every VARIABLE a value.

        Raises:
            ShapeError: a variable without a value, or with one outside of its range.
        """
        for name, low, high in self._variables:
            if name not in params or not low <= params[name] <= high:
                got = params.get(name, "no value")
                raise ShapeError(message(f"variable {name}", got, f"{low} <= {name} <= {high}"))
        held = {i: make() for i, make in zip(self.owned, self._makers, strict=True)}
        arenas = {device: make() for device, make in self._arenas}
        sources = self._sources

        def find(i: int) -> Buffer:
            is_input, number = sources[i]
            return inputs[number] if is_input else held[number]

        if config.DEBUG or config.MYGRAD_DUMP:
            explain.begin(self.schedule)
        for part in self.parts:
            if isinstance(part, Segment):
                memories = [find(i).memory for i in part.memories]
                if any(m is None for m in memories):
                    memory_of(next(b for b in map(find, part.memories) if b.memory is None))
                if part.in_arena:
                    memories.append(arenas[part.device].memory)
                self._launch(part, memories, params)
            else:
                with explain.timing(part, self.schedule):
                    _host_step(part, self.schedule, lambda i: memory_of(find(i)))
        return [find(i) for i in self.schedule.results]

    def _launch(self, part: Segment, memories: list[Any], params: Mapping[str, int]) -> None:
        if config.DEBUG >= 2:
            explain.timed(part.steps, part.sequence.time(memories, params))
        else:
            part.sequence.run(memories, params)


def _maker(device: str, dtype: DType, size: int) -> Callable[[], Buffer]:
    """A function that allocates such a buffer."""
    runtime = devices.get(device)
    allocate, release, nbytes = runtime.allocate, runtime.release, max(size * dtype.itemsize, 1)

    def make() -> Buffer:
        made = Buffer(device, dtype, size)
        made.memory, made.release = allocate(nbytes), release
        return made

    return make


KEPT = 4096  # prepared programs; the oldest goes first
_prepared: dict[Hashable, Prepared] = {}


def prepare(nodes: Sequence[Node]) -> tuple[Prepared, list[Buffer]]:
    """Schedule and compile, or find that in the cache; also the input buffers of the run."""
    structure, buffers = key(nodes)
    device = _device(nodes)
    found = _prepared.get((structure, device))
    if found is None:
        if len(_prepared) >= KEPT:  # a loop over ever new shapes must not hold all of them
            del _prepared[next(iter(_prepared))]
        found = _prepared[structure, device] = assemble(schedule(nodes, device))
    return found, [b.arg for b in buffers]


def _device(nodes: Sequence[Node]) -> str:
    """Where nodes are computed that no buffer ties to a device."""
    placed = [n.device for n in nodes if n.device is not None]
    return placed[0] if placed and len(placed) == len(nodes) else devices.default()


def plan(*values: Lazy) -> explain.Plan:
    """What would run to compute these tensors together, without running or compiling anything.

    Each step (`plan.kernels`) has a name, the reason why it is a kernel of its own, its bytes and
    flops, the user's line, and on request its text, schedule actions, source and machine code;
    `plan.peak_bytes` is the memory needed beside the inputs. What is in memory already takes no
    step.

    >>> print(plan(Tensor([1.0, 2.0]).exp()))      # doctest: +SKIP

    Raises:
        DTypeError: a value is no tensor.
    """
    for value in values:
        if not isinstance(value, Lazy):
            raise DTypeError(message("plan", type(value).__name__, "tensors", "plan(*tensors)"))
    nodes = list(dict.fromkeys(v.node for v in values))
    pending = [n for n in nodes if resident(n) is None]
    if not pending:
        return explain.Plan((), 0)
    return explain.plan_of(schedule(pending, _device(pending)))


def assemble(plan: Schedule) -> Prepared:
    """Compile the kernels of a schedule and join neighbours on one device into launch sequences."""
    explain.begin(plan)
    executables: dict[tuple[str, Kernel], Any] = {}
    for device in dict.fromkeys(s.device for s in plan.steps if isinstance(s.what, Kernel)):
        kernels = [s.what for s in plan.steps if isinstance(s.what, Kernel) and s.device == device]
        loaded = compiler.executables(list(dict.fromkeys(kernels)), device)
        executables.update({(device, k): e for k, e in loaded.items()})
    parts: list[Segment | Step] = []
    run: list[Step] = []
    for step in [*plan.steps, None]:
        if run and (
            step is None or not isinstance(step.what, Kernel) or step.device != run[0].device
        ):
            parts.append(_segment(plan, run, executables))
            run = []
        if step is not None and isinstance(step.what, Kernel):
            run.append(step)
        elif step is not None:
            parts.append(step)
    return Prepared(plan, parts)


def _segment(
    plan: Schedule, steps: list[Step], executables: dict[tuple[str, Kernel], Any]
) -> Segment:
    device = steps[0].device
    touched = [i for s in steps for i in s.arguments]
    used = dict.fromkeys(i for i in touched if plan.memories[i].kind != "temporary")
    in_arena = any(plan.memories[i].kind == "temporary" for i in touched)
    slot = {i: n for n, i in enumerate(used)}
    launches = []
    for step in steps:
        kernel, program = step.what, executables[device, step.what]  # type: ignore[index]
        assert isinstance(kernel, Kernel)
        places = []
        for number in program.buffers:
            i = step.arguments[number]
            places.append((slot[i], 0) if i in slot else (len(slot), plan.memories[i].number))
        launches.append(
            Launch(
                program.executable,
                tuple(places),
                program.params,
                program.parallel,
                kernel.name,
                step.location,
            )
        )
    return Segment(device, steps, list(used), in_arena, devices.get(device).sequence(launches))


def _host_step(step: Step, plan: Schedule, find: Callable[[int], Any]) -> None:
    """HOST, SORT and COPY: through NumPy, after all earlier launches."""
    *sources, target = step.arguments
    values = [_values(plan.memories[i], find(i)) for i in sources]
    about = plan.memories[target]
    if isinstance(step.what, HostCall):
        result = interpret.call_host(step.what, values)
    else:
        result = interpret.argsort(values[0], *step.arg) if step.what == "sort" else values[0]
    if result.size:
        data = np.ascontiguousarray(dt.to_storage(result, about.dtype))
        devices.get(about.device).write(find(target), data)


def _values(about: Memory, memory: Any) -> np.ndarray[Any, Any]:
    stored = np.empty(about.shape, about.dtype.storage)
    if stored.size:
        devices.get(about.device).read(memory, stored)
    return dt.from_storage(stored, about.dtype)


def realize(nodes: Sequence[Node], params: Mapping[str, int] | None = None) -> list[Node]:
    """Compute `nodes`; the result is one BUFFER node of the same shape for each."""
    results = [resident(n) for n in nodes]
    pending = list(dict.fromkeys(n for n, r in zip(nodes, results, strict=True) if r is None))
    if pending:
        prepared, inputs = prepare(pending)
        made = prepared.run(inputs, params or {})
        computed = {n: graph.buffer(b, n.shape) for n, b in zip(pending, made, strict=True)}
        results = [computed[n] if r is None else r for n, r in zip(nodes, results, strict=True)]
    return results  # type: ignore[return-value]


def resident(node: Node) -> Node | None:
    """A BUFFER node with the values of `node`, if they are in memory already."""
    shape = node.shape
    while node.op in ALIASES:
        node = node.src[0]
    return graph.buffer(node.arg, shape) if node.op is Op.BUFFER else None


def _size(about: Memory) -> int:
    return about.nbytes // about.dtype.itemsize


def memory_of(buffer: Buffer) -> Any:
    """The memory of a buffer.

    Raises:
        BufferError_: it was freed, or never written.
    """
    if buffer.memory is None:
        why = buffer.why_unreadable or "it was never written"
        raise BufferError_(
            message("read", f"a tensor without memory: {why}", "a tensor with values")
        )
    return buffer.memory


def allocate(device: str, dtype: DType, size: int) -> Buffer:
    """A buffer with memory, not initialised."""
    return _maker(device, dtype, size)()


def from_numpy(
    array: np.ndarray[Any, Any], dtype: DType | None = None, device: str | None = None
) -> Node:
    """A BUFFER node on `device` (default: the default device) with a copy of `array`, converted to
    `dtype` (default: the array's own)."""
    dtype = dtype or dt.parse(array.dtype)
    device = devices.default() if device is None else devices.canonical(device)
    made = allocate(device, dtype, array.size)
    if array.size:
        devices.get(device).write(made.memory, np.ascontiguousarray(dt.to_storage(array, dtype)))
    return graph.buffer(made, array.shape)


def to_numpy(node: Node) -> np.ndarray[Any, Any]:
    """The values of `node` as a new array of its shape (bfloat16 as float32)."""
    result = realize([node])[0]
    out = np.empty(result.shape, result.dtype.storage)
    if out.size:
        devices.get(result.arg.device).read(memory_of(result.arg), out)
    return dt.from_storage(out, result.dtype)
