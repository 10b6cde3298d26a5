"""The driver: the one module that sees every stage, from graph nodes to memory.

realize(nodes)     compute nodes; BUFFER nodes that hold the results
plan(*tensors)     what would run, without running it
prepare(nodes)     the same up to, but without, running: a Prepared program, cached by structure
from_numpy(array)  a BUFFER node with a copy of the array
copy(buffer)       a buffer with the same content
to_numpy(node)     the values of a node as a NumPy array of its own
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from mygrad import compiler, graph, stored
from mygrad import dtype as dt
from mygrad.capture import Lazy
from mygrad.compiler import Executable
from mygrad.config import config
from mygrad.dtype import DType
from mygrad.errors import DTypeError, message
from mygrad.graph import Node
from mygrad.helpers import Location, lazy_module, without_collections
from mygrad.ops import Op
from mygrad.prepared import Outline, Prepared, Segment, maker, memory_of
from mygrad.program import BLOCK, LOCAL, UNIT, Buffer, Launch, Rounds
from mygrad.runtime import device as devices
from mygrad.schedule.steps import (
    Band,
    Schedule,
    Step,
    Structure,
    is_host_step,
    kernels_of,
    key,
    places,
    rebuild,
)

if TYPE_CHECKING:
    from mygrad import explain
    from mygrad.kernel import BufferInfo, Kernel
    from mygrad.schedule import schedule as scheduler
else:
    explain, scheduler = lazy_module("mygrad.explain"), lazy_module("mygrad.schedule.schedule")

ALIASES = frozenset({Op.RESHAPE, Op.CONTIGUOUS, Op.DETACH})  # of a BUFFER: the same memory

KEPT = 4096  # prepared programs; the oldest goes first
_prepared: dict[Hashable, Prepared] = {}
statistics = {"scheduled": 0, "from disk": 0}  # programs


def prepare(
    nodes: Sequence[Node],
    memory_budget: int | None = None,
    in_place: Sequence[tuple[int, Buffer]] = (),
) -> tuple[Prepared, list[Buffer]]:
    """Schedule and compile, or find that in memory or on disk; also the input buffers of the
    run. With `memory_budget`, the program needs at most so many bytes beside its inputs. `in_place`
    are pairs of the number of a node and a buffer that it may overwrite (`Prepared.overwrites`)."""
    structure, buffers = key(nodes)
    device = _device(nodes)
    slots = {id(b.arg): slot for slot, b in enumerate(buffers)}
    pairs = tuple((n, slots[id(b)]) for n, b in in_place if id(b) in slots)
    about = (memory_budget, pairs)
    place = structure, device, about, config.MYGRAD_WINOGRAD
    found = _prepared.get(place)
    if found is None:
        if len(_prepared) >= KEPT:  # a loop over ever new shapes must not hold all of them
            del _prepared[next(iter(_prepared))]
        found = _prepare(nodes, structure, device, about)
        _prepared[place] = found
    return found, [b.arg for b in buffers]


@without_collections()
def _prepare(
    nodes: Sequence[Node],
    structure: Structure,
    device: str,
    about: tuple[int | None, tuple[tuple[int, int], ...]],
) -> Prepared:
    found = stored.load((structure, about), device)
    if found is not None:
        statistics["from disk"] += 1
        where = places(nodes)
        return Prepared(
            found,
            lambda: _scheduled(rebuild(structure, where), device, *about),
        )
    statistics["scheduled"] += 1
    plan = _scheduled(nodes, device, *about)
    outline = assemble(plan)
    stored.save((structure, about), device, outline.with_executables(lambda e: (e.key, e.parallel)))
    return Prepared(outline.with_executables(lambda e: e.entry), lambda: plan)


def _device(nodes: Sequence[Node]) -> str:
    """Where nodes are computed that no buffer ties to a device."""
    placed = [n.device for n in nodes]
    return devices.default() if not placed or None in placed else str(placed[0])


def _scheduled(
    nodes: Sequence[Node],
    device: str,
    memory_budget: int | None = None,
    in_place: Sequence[tuple[int, int]] = (),
) -> scheduler.Schedule:
    """The schedule for the devices that there are."""
    return scheduler.schedule(
        nodes,
        device,
        memory_budget,
        in_place,
        lambda name: devices.get(name).target.threads,
        lambda name: devices.get(name).target.units,
    )


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
    return explain.plan_of(_scheduled(pending, _device(pending)))


def assemble(plan: Schedule) -> Outline:
    """Compile the kernels of a schedule and join neighbours on one device into launch sequences."""
    explain.begin(plan)
    kernels: dict[str, list[Kernel]] = {}  # by device
    for step in plan.steps:
        kernels.setdefault(step.device, []).extend(kernels_of(step))
    executables = {
        device: compiler.executables(list(dict.fromkeys(found)), device)
        for device, found in kernels.items()
        if found
    }
    parts: list[Segment | Step] = []
    position = 0
    for (device, on_host), run in groupby(plan.steps, lambda s: (s.device, is_host_step(s))):
        steps = list(run)
        parts += steps if on_host else [_segment(plan, position, steps, executables[device])]
        position += len(steps)
    return Outline(
        plan.memories,
        plan.results,
        plan.arena_bytes,
        plan.local_bytes,
        _variables(plan),
        tuple(parts),
    )


def _variables(plan: Schedule) -> tuple[tuple[str, int, int], ...]:
    found = set()
    for step in plan.steps:
        if not is_host_step(step):
            given = dict(step.constants)
            found |= {v for v in step.what.params if v[0] not in given}  # type: ignore[union-attr]
    return tuple(sorted(found))


def _segment(
    plan: Schedule, first: int, steps: list[Step], executables: Mapping[Kernel, Executable]
) -> Segment:
    touched = [i for s in steps for i in s.arguments]
    used = dict.fromkeys(i for i in touched if plan.memories[i].kind != "temporary")
    in_arena = any(plan.memories[i].kind == "temporary" for i in touched)
    slot = {i: n for n, i in enumerate(used)}
    launches = []
    for step in steps:
        places = [
            (slot[i], 0) if i in slot else (len(slot), plan.memories[i].number)
            for i in step.arguments
        ]
        if isinstance(step.what, Band):
            launches.append(_rounds(step.what, places, step.location, executables))
        else:
            kernel: Kernel = step.what  # type: ignore[assignment]
            made = _launch(kernel, executables[kernel], places, step.constants, step.location)
            launches.append(made)
    return Segment(steps[0].device, first, tuple(used), in_arena, tuple(launches))


def _launch(
    kernel: Kernel,
    program: Executable,
    places: Sequence[tuple[int, int]],
    constants: Sequence[tuple[str, int]],
    location: Location,
) -> Launch:
    given = dict(constants)
    infos = [kernel.buffers[number] for number in program.buffers]
    return Launch(
        program,
        tuple(places[number] for number in program.buffers),
        tuple(given.get(name, name) for name in program.params),
        program.parallel,
        kernel.name,
        location,
        _touches(infos),
    )


def _rounds(
    band: Band,
    places: Sequence[tuple[int, int]],
    location: Location,
    executables: Mapping[Kernel, Executable],
) -> Launch:
    parts = []
    for p in band.parts:
        own = [(LOCAL, at) if i == LOCAL else places[i] for i, at in p.arguments]
        launch = _launch(p.kernel, executables[p.kernel], own, p.constants, location)
        parts.append((launch, p.first, p.end))
    found = dict.fromkeys(p for launch, _, _ in parts for p in launch.params)
    return Launch(
        Rounds(tuple(parts), band.units, band.blocks, band.apart, band.local_bytes),
        tuple(places),
        tuple(p for p in found if isinstance(p, str) and p not in (UNIT, BLOCK)),
        True,
        band.name,
        location,
        _touches(band.buffers),
    )


def _touches(infos: Sequence[BufferInfo]) -> tuple[tuple[int, bool], ...]:
    return tuple((info.size * info.dtype.itemsize, info.written) for info in infos)


def realize(nodes: Sequence[Node], params: Mapping[str, int] | None = None) -> list[Node]:
    """Compute `nodes`; the result is one BUFFER node of the same shape for each."""
    results = {n: resident(n) for n in nodes}
    pending = [n for n, result in results.items() if result is None]
    if pending:
        prepared, inputs = prepare(pending)
        for node, made in zip(pending, prepared.run(inputs, params or {}), strict=True):
            results[node] = graph.buffer(made, node.shape)
    return [results[n] for n in nodes]  # type: ignore[misc]


def resident(node: Node) -> Node | None:
    """A BUFFER node with the values of `node`, if they are in memory already."""
    shape = node.shape
    while node.op in ALIASES:
        node = node.src[0]
    return graph.buffer(node.arg, shape) if node.op is Op.BUFFER else None


def allocate(device: str, dtype: DType, size: int) -> Buffer:
    """A buffer with memory, not initialised."""
    return maker(device, dtype, size)()


def copy(buffer: Buffer) -> Buffer:
    """A new buffer with the same content."""
    made = allocate(buffer.device, buffer.dtype, buffer.size)
    if buffer.size:
        runtime, content = devices.get(buffer.device), np.empty(buffer.nbytes, np.uint8)
        runtime.read(memory_of(buffer), content)
        runtime.write(made.memory, content)
    return made


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
