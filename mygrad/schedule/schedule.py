"""The whole way from a graph to an ordered list of steps with planned memory.

    schedule(roots) -> Schedule
        steps      kernels, host calls and copies between devices, in order
        memories   every array the steps touch: inputs, results, intermediates in an arena
        results    which memory holds each root

What a Schedule is stands in steps.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from mygrad import graph
from mygrad.config import config, context
from mygrad.errors import DeviceError, InternalError
from mygrad.graph import Node
from mygrad.ops import Op
from mygrad.schedule import bands, masks, memory, panels, remat, winograd
from mygrad.schedule.build import Builder, Built
from mygrad.schedule.homes import STEPS, Group, Homes
from mygrad.schedule.joins import join_parts
from mygrad.schedule.overwrite import overwrite
from mygrad.schedule.revise import choose_homes
from mygrad.schedule.sharing import share
from mygrad.schedule.simplify import simplify
from mygrad.schedule.split import split_sums
from mygrad.schedule.steps import (
    JOIN,
    Memory,
    Schedule,
    Step,
    Threads,
    Units,
    inputs,
    is_host_step,
    local_bytes_of,
)

PIPELINE = (
    "simplify the graph",
    "join what is computed in parts",
    "split long sums",
    "choose homes",
    "build kernels",
    "share kernels",
    "order",
    "say masks wherever they hold",
    "multiply less in sums over windows",
    "form bands",
    "lay out operands as panels",
    "update state where it is",
    "meet the memory budget",
    "plan memory",
)


def schedule(
    roots: Sequence[Node],
    device: str,
    memory_budget: int | None = None,
    in_place: Sequence[tuple[int, int]] = (),
    threads: Threads = lambda device: 1,
    units: Units = lambda device: (),
) -> Schedule:
    """Choose homes, build kernels, order them and plan their memory. Nodes that no buffer ties to a
    device are computed on `device`. With `memory_budget`, `peak_bytes` is at most that. `in_place`
    are pairs of a root and an input, by their numbers: the root may take the place of the input.
    `threads` of devices have a say in `peak_bytes`, and in nothing else if there is no budget.
    `units` are their matrix units, which products of narrow numbers are left to.

    Raises:
        DeviceError: the budget cannot be met.
    """
    slots = {node: i for i, node in enumerate(inputs(roots))}
    simple = [_unshaped(r) for r in split_sums(join_parts(simplify(roots)), device, units)]
    homes = choose_homes([r for r in simple if r.op is not Op.BUFFER])
    built: dict[Group, Built | None] = {}
    while len(built) < len(homes.groups):  # building may add groups: padded copies
        for group in list(homes.groups):
            if group not in built:
                built[group] = (
                    None
                    if group.root.op in STEPS or _is_empty(group)
                    else Builder(homes, group).build()
                )
    kernels = share([b for b in built.values() if b is not None])
    built |= zip([g for g, b in built.items() if b is not None], kernels, strict=True)
    _link(homes, built)
    at = {slot: node for node, slot in slots.items()}
    _read_first(homes, built, [(simple[r], at[slot]) for r, slot in in_place])
    planner = _Planner(_ordered(homes, built), slots, device, threads, units)
    try:
        return planner.plan(simple, memory_budget, in_place)
    except DeviceError:  # the budget is too small: tiles take more memory than sums
        if not config.MYGRAD_WINOGRAD:
            raise
        with context(MYGRAD_WINOGRAD=0):
            return schedule(roots, device, memory_budget, in_place, threads, units)


def _unshaped(root: Node) -> Node:
    """What lies in memory as a root does: its shape is the concern of who reads it."""
    while root.op is Op.RESHAPE and root.src[0].op is not Op.BUFFER:
        root = root.src[0]
    return root


def _is_empty(group: Group) -> bool:
    return all(0 in node.shape for node in group.outputs)


def _sources(group: Group, kernel: Built | None) -> Sequence[Node]:
    """The arrays that a group touches."""
    return group.root.src if kernel is None else kernel.arguments


def _link(homes: Homes, built: dict[Group, Built | None]) -> None:
    """Tell groups what they read: building may have added copies."""
    for group, kernel in built.items():
        for node in _sources(group, kernel):
            if node in homes.group_of and node not in group.outputs:
                group.read(homes.group_of[node])


def _read_first(
    homes: Homes, built: dict[Group, Built | None], pairs: Iterable[tuple[Node, Node]]
) -> None:
    """Let what replaces an input run after all that reads it, if that makes no circle."""
    readers: dict[Node, list[Group]] = {}
    for group, kernel in built.items():
        for node in _sources(group, kernel):
            readers.setdefault(node, []).append(group)
    for root, replaced in pairs:
        if root not in homes.group_of:
            continue
        group = homes.group_of[root]
        for reader in readers.get(replaced, ()):
            if reader is not group and not reader.depends_on({group}):
                group.read(reader)


def _ordered(homes: Homes, built: dict[Group, Built | None]) -> list[tuple[Group, Built | None]]:
    """Operands first; otherwise what takes the fewest steps first, so that gradients are used as
    soon as they are there and little waits in memory."""
    depth: dict[Node, int] = {}
    for node in homes.order:
        depth[node] = 1 + max((depth[s] for s in node.src), default=0)
    roots = sorted((n for n in homes.order if n in homes.roots), key=depth.__getitem__)
    position = {node: i for i, node in enumerate(graph.toposort(roots))}
    rank = {
        g: position.get(g.root, position.get(g.root.src[0], 0) if g.root.src else 0) for g in built
    }
    done: dict[Group, bool] = {}
    result: list[Group] = []
    work = sorted(built, key=lambda g: -rank[g])
    while work:
        group = work[-1]
        if group not in done:
            done[group] = False
            work += sorted((g for g in group.reads if g not in done), key=lambda g: -rank[g])
            continue
        work.pop()
        if not done[group]:
            done[group] = True
            if any(not done.get(g) for g in group.reads):
                raise InternalError(
                    f"schedule: kernels depend on each other in a circle at {group.root!r}"
                )
            result.append(group)
    return [(g, built[g]) for g in result]


class _Planner:
    """Numbers memories and plans the arena for groups in order."""

    def __init__(
        self,
        groups: list[tuple[Group, Built | None]],
        slots: dict[Node, int],
        device: str,
        threads: Threads,
        units: Units,
    ) -> None:
        self.groups = groups
        self.slots = slots
        self.device = device
        self.threads = threads
        self.units = units
        self.number: dict[Node, int] = {}
        self.nodes: list[Node] = []

    def plan(
        self, roots: Sequence[Node], budget: int | None, in_place: Sequence[tuple[int, int]]
    ) -> Schedule:
        """The finished schedule."""
        planned = [s for s in (self._step(*pair) for pair in self.groups) if s is not None]
        results = tuple(self._memory(r.src[0] if r.op is Op.STORE else r) for r in roots)
        separate = {i for s in planned if is_host_step(s) and s.what != JOIN for i in s.arguments}
        arrays = [self._describe(node, i in results) for i, node in enumerate(self.nodes)]
        for i in separate:
            if arrays[i].kind == "temporary":
                arrays[i] = replace(arrays[i], kind="separate")
        steps, arrays = winograd.apply(masks.apply(planned, arrays), arrays, self.units)
        steps, arrays = bands.form(steps, arrays)
        steps, arrays = panels.lay_out(steps, arrays)
        inputs_at = {m.number: i for i, m in enumerate(arrays) if m.kind == "input"}
        pairs = [(results[r], inputs_at[slot]) for r, slot in in_place if slot in inputs_at]
        steps, place = overwrite(steps, arrays, results, pairs)
        for i, source in place.items():
            arrays[i] = arrays[source]
        results = tuple(place.get(i, i) for i in results)
        if budget is not None:
            steps, arrays = remat.fit(steps, arrays, budget, self.threads)
        arenas = self._place(steps, arrays)
        work = tuple(s for s in steps if s.what != JOIN)
        local = local_bytes_of(work, self.threads)
        return Schedule(work, tuple(arrays), results, arenas, local)

    def _memory(self, node: Node) -> int:
        if node not in self.number:
            self.number[node] = len(self.nodes)
            self.nodes.append(node)
        return self.number[node]

    def _step(self, group: Group, kernel: Built | None) -> Step | None:
        node = group.root
        if kernel is not None:
            arguments = tuple(self._memory(n) for n in kernel.arguments)
            return Step(
                kernel.kernel,
                arguments,
                self._device(node),
                None,
                group.reason,
                node.location,
                kernel.constants,
            )
        if node.op not in STEPS:
            for output in group.outputs:  # empty: nothing to compute, but it exists
                self._memory(output)
            return None
        arguments = tuple(self._memory(n) for n in (*node.src, node))
        what = node.arg if node.op is Op.HOST else node.op.name.lower()
        return Step(what, arguments, self._device(node), node.arg, group.reason, node.location)

    def _place(self, steps: Sequence[Step], arrays: list[Memory]) -> dict[str, int]:
        """Give every temporary array its place in the arena of its device; the size of each
        arena."""
        if config.MYGRAD_GUARD:  # each has memory of its own, between guard pages
            for i in {i for s in steps for i in s.arguments if arrays[i].kind == "temporary"}:
                arrays[i] = replace(arrays[i], kind="separate")
        planned = memory.plan(steps, arrays)
        for i, offset in planned.offsets.items():
            arrays[i] = replace(arrays[i], number=offset)
        return planned.nbytes

    def _device(self, node: Node) -> str:
        return node.device or self.device

    def _describe(self, node: Node, is_result: bool) -> Memory:
        device = self._device(node)
        if node.op is Op.BUFFER:
            return Memory("input", self.slots[node], node.dtype, node.shape, device)
        kind = "result" if is_result else "temporary"
        return Memory(kind, 0, node.dtype, node.shape, device)
