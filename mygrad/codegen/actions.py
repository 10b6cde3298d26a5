"""Schedules: the loops of a kernel in order, and the actions that transform them.

    Schedule = kernel
               loops   (LoopAxis, ...)    outermost first; all output and reduce axes, or parts
               stages  (Stage, ...)       operands that are copied into scratch memory
               kept    (number, ...)      repeats (keeping.py) that are computed once
               tensor  (Tensorize)        what of a sum of products matrix units compute, if any
    LoopAxis = (name, axis, root, stride, kind)       kind: seq | parallel | unroll | vector
    action   = Split | Reorder | Vectorize | Unroll | Parallel | Stage | Keep | Defer | Stream
             | Tensorize

An axis of the kernel (the root) is the sum of its loops, each times its stride: after `Split("i0",
8)`, i0 = 8 * i0o + i0i. Only the last tile of a root may be short (ragged); lowering peels it off.

The algorithm stays as it is: every action changes the order in which points are visited and nothing
else, so a schedule is a tuple of actions, which can be printed, hashed, stored and replayed:

>>> schedule = apply(start(kernel), (Split("i0", 8), Unroll("i0i")))

Loops are named after the kernel's axes, `i3` being the axis with id 3; a split appends `o` and `i`.
Axes of extent 0 and 1 have no loop. Each computation of a kernel (a store, a reduction) uses the
loops of its own axes, in the order of the schedule; a reduction is placed where all the free axes
of its body are bound.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mygrad.codegen.keeping import repeats
from mygrad.errors import InternalError, message
from mygrad.expr import Expr, axis, const
from mygrad.helpers import ceildiv
from mygrad.kernel import Kernel, axis_sets, bound_axes, ordered_axes, scan_axes
from mygrad.ops import Op

TILE_KINDS = frozenset({"unroll", "vector"})
MAX_UNROLL = 64
MAX_TILE = 64 * MAX_UNROLL  # lanes of all copies of the longest vector


class ScheduleError(InternalError, ValueError):
    """An action that is not legal on this schedule."""


@dataclass(frozen=True, slots=True)
class LoopAxis:
    """A loop over part of a root axis: root = sum of (axis * stride) over the loops of the root."""

    name: str
    axis: Expr
    root: Expr
    stride: int = 1
    kind: str = "seq"

    @property
    def extent(self) -> int:
        """Iterations of a whole run of this loop."""
        return self.axis.arg[1]

    @property
    def is_tile(self) -> bool:
        """Whether the iterations run in lockstep."""
        return self.kind in TILE_KINDS


@dataclass(frozen=True)
class Schedule:
    """A kernel and how its loops run."""

    kernel: Kernel
    loops: tuple[LoopAxis, ...]
    next_id: int
    stages: tuple[Stage, ...] = ()
    kept: tuple[int, ...] = ()
    deferred: tuple[str, ...] = ()  # unrolled loops that stores run through one by one
    tensor: Tensorize | None = None
    streams: tuple[int, ...] = ()  # slots whose stores go past the caches

    def loop(self, name: str, op: str = "schedule") -> LoopAxis:
        """The loop of that name.

        Raises:
            ScheduleError: there is none.
        """
        for loop in self.loops:
            if loop.name == name:
                return loop
        names = ", ".join(loop.name for loop in self.loops)
        raise ScheduleError(message(op, repr(name), f"one of {names}"))

    def parts(self, root: Expr) -> list[LoopAxis]:
        """The loops of a root axis, the largest stride first."""
        return sorted((p for p in self.loops if p.root is root), key=lambda p: -p.stride)

    def __str__(self) -> str:
        lines = [f"{p.name}: {p.kind}[{p.extent}] stride {p.stride}" for p in self.loops]
        lines += [str(s) for s in self.stages] + [str(self.tensor)] * bool(self.tensor)
        lines += [f"keep {n}: {repeats(self.kernel)[n]}" for n in self.kept]
        lines += [f"deferred: {', '.join(self.deferred)}"] * bool(self.deferred)
        return "\n".join(lines + [f"stream: b{slot}" for slot in self.streams])


def start(kernel: Kernel) -> Schedule:
    """The schedule that runs everything sequentially: output axes as the kernel lists them, then
    the axes of reductions."""
    roots = [a for a in (*kernel.axes, *bound_axes(kernel)) if a.arg[1] > 1]
    ids = [a.arg[0] for a in (*kernel.axes, *bound_axes(kernel, scans=True))]
    loops = tuple(LoopAxis(f"i{a.arg[0]}", a, a) for a in roots)
    return Schedule(kernel, loops, max(ids, default=-1) + 1)


def apply(schedule: Schedule, actions: Iterable[Action]) -> Schedule:
    """The schedule after all actions, in order.

    Raises:
        ScheduleError: an action is not legal.
    """
    for action in actions:
        schedule = action.apply(schedule)
    return schedule


def _with_kind(s: Schedule, loop: LoopAxis, kind: str) -> Schedule:
    new = replace(loop, kind=kind)
    return replace(s, loops=tuple(new if p is loop else p for p in s.loops))


def _refuse(condition: bool, action: Action, why: str) -> None:
    if condition:
        raise ScheduleError(f"{action}: {why}")


def _check_runs_in_lockstep(s: Schedule, loop: LoopAxis, action: Action) -> None:
    _refuse(loop.kind != "seq", action, f"the loop is {loop.kind} already")
    _refuse(loop.root in ordered_axes(s.kernel), action, "the iterations of a scatter run in order")
    finer = [p for p in s.loops if p.root is loop.root and p.stride < loop.stride]
    _refuse(
        any(not p.is_tile for p in finer), action, "a sequential loop runs over a part of its step"
    )


@dataclass(frozen=True, slots=True)
class Split:
    """Divide a loop into an outer and an inner one.

    for i in range(n)
    ->  for io in range(ceil(n / factor)): for ii in range(factor), i = io * factor + ii

    Where one inner loop covers everything there is no outer one. A tile may be longer than the
    loop; scratch memory has cells for all of it, so that there is a limit.
    """

    axis: str
    factor: int

    def apply(self, s: Schedule) -> Schedule:
        """The schedule after the action."""
        loop = s.loop(self.axis, "Split")
        _refuse(loop.kind != "seq", self, f"the loop is {loop.kind} already")
        _refuse(self.factor < 2, self, "the factor must be 2 or more")
        most = max(2 * loop.extent, MAX_TILE)
        _refuse(self.factor > most, self, f"the factor must be {most} or less")
        coarser = any(p.root is loop.root and p.stride > loop.stride for p in s.loops)
        _refuse(
            coarser and loop.extent % self.factor != 0,
            self,
            f"the factor must divide {loop.extent}, or every step would have a short tile",
        )
        outer_extent = ceildiv(loop.extent, self.factor)
        outer = LoopAxis(
            loop.name + "o", axis(s.next_id, outer_extent), loop.root, loop.stride * self.factor
        )
        inner = LoopAxis(loop.name + "i", axis(s.next_id + 1, self.factor), loop.root, loop.stride)
        made = [outer, inner] if outer_extent > 1 else [inner]
        loops: list[LoopAxis] = []
        for p in s.loops:
            loops += made if p is loop else [p]
        return replace(s, loops=tuple(loops), next_id=s.next_id + 2)


@dataclass(frozen=True, slots=True)
class Reorder:
    """Put the named loops into this order, outermost first, in the places they take up together.

    for a: for b: for c:  ->  Reorder(("c", "a"))  ->  for c: for b: for a
    """

    axes: tuple[str, ...]

    def apply(self, s: Schedule) -> Schedule:
        """The schedule after the action."""
        chosen = [s.loop(name, "Reorder") for name in self.axes]
        _refuse(len(set(self.axes)) != len(self.axes), self, "a loop is named twice")
        upcoming = iter(chosen)
        loops = tuple(next(upcoming) if p in chosen else p for p in s.loops)
        last: dict[Expr, int] = {}
        for p in loops:
            _refuse(
                last.get(p.root, p.stride + 1) < p.stride,
                self,
                f"{p.name} must stay outside of the loops over its parts",
            )
            last[p.root] = p.stride
        return replace(s, loops=loops)


@dataclass(frozen=True, slots=True)
class Vectorize:
    """Run the iterations of an innermost part (stride 1, extent a power of two) as lanes of a
    vector.

    for ii in range(16): f(ii)  ->  f(<0 .. 15>)
    """

    axis: str

    def apply(self, s: Schedule) -> Schedule:
        """The schedule after the action."""
        loop = s.loop(self.axis, "Vectorize")
        _check_runs_in_lockstep(s, loop, self)
        _refuse(loop.stride != 1, self, "only the part of stride 1 can be lanes")
        _refuse(
            loop.extent & (loop.extent - 1) != 0, self, f"extent {loop.extent} is no power of two"
        )
        vectors = {p.root for p in s.loops if p.kind == "vector"}
        for roots in axis_sets(s.kernel):
            _refuse(
                loop.root in roots and bool(roots & vectors),
                self,
                "a computation would run over two vector axes",
            )
        return _with_kind(s, loop, "vector")


@dataclass(frozen=True, slots=True)
class Unroll:
    """Run the iterations of a loop in lockstep, as copies.

    for ii in range(2): f(ii)  ->  f(0), f(1)
    """

    axis: str

    def apply(self, s: Schedule) -> Schedule:
        """The schedule after the action."""
        loop = s.loop(self.axis, "Unroll")
        _check_runs_in_lockstep(s, loop, self)
        _refuse(
            loop.extent > MAX_UNROLL, self, f"extent {loop.extent} is more than {MAX_UNROLL} copies"
        )
        _refuse(loop.root in scan_axes(s.kernel), self, "a scan runs in order")
        return _with_kind(s, loop, "unroll")


@dataclass(frozen=True, slots=True)
class Parallel:
    """Share the iterations of an output loop among threads; it moves to the outside.

    for i in range(n): f(i)  ->  parallel for i in range(n): f(i)
    """

    axis: str

    def apply(self, s: Schedule) -> Schedule:
        """The schedule after the action."""
        loop = s.loop(self.axis, "Parallel")
        _refuse(loop.kind != "seq", self, f"the loop is {loop.kind} already")
        _refuse(loop.root not in s.kernel.axes, self, "threads cannot share a reduction")
        _refuse(loop.root in scan_axes(s.kernel), self, "a scan runs in order")
        _refuse(
            loop.root in ordered_axes(s.kernel), self, "the iterations of a scatter run in order"
        )
        _refuse(
            any(p.kind == "parallel" for p in s.loops), self, "there is a parallel loop already"
        )
        coarser = [p for p in s.loops if p.root is loop.root and p.stride > loop.stride]
        _refuse(bool(coarser), self, f"{coarser and coarser[0].name} must stay outside of it")
        new = replace(loop, kind="parallel")
        return replace(s, loops=(new, *(p for p in s.loops if p is not loop)))


@dataclass(frozen=True, slots=True)
class Stage:
    """Copy what the loads of a buffer read inside one iteration of loop `at` into scratch memory,
    laid out as a row-major array over the loops `layout`, all of them inside of `at`; read it from
    there. At "" the copy is made once, outside of all loops (by every thread for itself).
    `transposed`: in square blocks where lanes are far apart and another axis is contiguous.

    for no: for mo: for k: f(B[k * n + no * 8 + ni])
    ->  Stage(1, "no", ("k", "ni"))  ->
    for no:
        for k: for ni: S[k * 8 + ni] = B[k * n + no * 8 + ni]
        for mo: for k: f(S[k * 8 + ni])
    """

    slot: int
    at: str
    layout: tuple[str, ...]
    transposed: bool = False

    def apply(self, s: Schedule) -> Schedule:
        """The schedule after the action."""
        for name in (*[self.at] * bool(self.at), *self.layout):
            s.loop(name, "Stage")
        _refuse(not self.layout, self, "there is nothing to copy without a loop to copy over")
        _refuse(len(set(self.layout)) != len(self.layout), self, "a loop is named twice")
        inside = self.at and s.loop(self.at).is_tile
        _refuse(bool(inside), self, "a copy cannot run inside of a tile")
        read = {e.arg for e in s.kernel.nodes if e.op is Op.LOAD}
        _refuse(self.slot not in read, self, "the kernel reads no such buffer")
        _refuse(s.kernel.buffers[self.slot].written, self, "the buffer is written by this kernel")
        _refuse(any(t.slot == self.slot for t in s.stages), self, "the buffer is staged already")
        return replace(s, stages=(*s.stages, self))


@dataclass(frozen=True, slots=True)
class Keep:
    """Compute a value that several nests of a row need once: number `number` of the kernel's
    repeats (`keeping.repeats`). The reduction that needs it first puts it into scratch memory, one
    cell for each of its points, where the later nests read it.

    for i: { acc = sum over k of exp(x[i, k]);  for j: out[i, j] = exp(x[i, j]) / acc }
    ->  Keep(0)  ->
    for i: { for k: { S[k] = exp(x[i, k]);  acc += S[k] };  for j: out[i, j] = S[j] / acc }
    """

    number: int

    def apply(self, s: Schedule) -> Schedule:
        """The schedule after the action."""
        count = len(repeats(s.kernel))
        _refuse(not 0 <= self.number < count, self, f"the kernel has {count} repeats")
        _refuse(self.number in s.kept, self, "the value is kept already")
        _refuse(s.tensor is not None, self, "the nests of the kernel are tensorized")
        return replace(s, kept=(*s.kept, self.number))


@dataclass(frozen=True, slots=True)
class Defer:
    """Store the results of a tile after it, in sequential loops over its unrolled loops `axes`; the
    reductions of the tile hand their results over in scratch memory. A long expression after a
    reduction is then written out once, and not once for every copy.

    tile mi: { acc = sum(...); C[mi] = f(acc) }
    ->  Defer(("mi",))  ->
    tile mi: { acc = sum(...); S[mi] = acc };  for mi: C[mi] = f(S[mi])
    """

    axes: tuple[str, ...]

    def apply(self, s: Schedule) -> Schedule:
        """The schedule after the action."""
        for name in self.axes:
            loop = s.loop(name, "Defer")
            _refuse(loop.kind != "unroll", self, f"{name} is not unrolled")
            _refuse(loop.root not in s.kernel.axes, self, f"{name} is part of a reduction")
        _refuse(bool(s.deferred), self, "stores are deferred already")
        return replace(s, deferred=self.axes)


@dataclass(frozen=True, slots=True)
class Stream:
    """Write an output past the caches: whole vectors go to memory without the lines being read
    first, and without driving out what is still needed. A hint: elsewhere stores are ordinary.
    """

    slot: int

    def apply(self, s: Schedule) -> Schedule:
        """The schedule after the action."""
        mine = [store for store in s.kernel.stores if store.slot == self.slot]
        read = {e.arg for e in s.kernel.nodes if e.op is Op.LOAD}
        _refuse(not mine, self, "the kernel does not store there")
        _refuse(any(store.mode != "set" for store in mine), self, "a store adds to old values")
        _refuse(self.slot in read, self, "the kernel reads it, so that it is in the caches anyway")
        return replace(s, streams=(*s.streams, self.slot))


@dataclass(frozen=True, slots=True)
class Tensorize:
    """Compute the sum of products of the kernel by matrix units: the loops `rows` and `columns`
    (parts of output axes) and `depth` (of the sum's) become one statement, the innermost last. The
    operands are packed for it, the one that has the rows inside of loop `left`, the other one
    inside of loop `right`; "" is outside of all loops. The result goes through scratch memory, from
    which the loops `rows` and `columns` store it. `pairs` packs the left operand as the right one,
    in pairs of steps, for units that read it so.

    for mo: for no: for mi: for ni: C[m, n] = f(sum over k of A[m, k] * B[k, n])
    ->  Tensorize(("mi",), ("ni",), ("k",), "mo", "")  ->
    pack B;  for mo: { pack A[mo];  for no: { S = A[mo] * B[no];  for mi: for ni: C[m, n] = f(S) } }
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    depth: tuple[str, ...]
    left: str = ""
    right: str = ""
    pairs: bool = False

    def apply(self, s: Schedule) -> Schedule:
        """The schedule after the action."""
        for name in (*self.rows, *self.columns):
            output = s.loop(name, "Tensorize").root in s.kernel.axes
            _refuse(not output, self, f"{name} is part of a reduction")
        for name in self.depth:
            loop = s.loop(name, "Tensorize")
            _refuse(loop.root in s.kernel.axes, self, f"{name} is no part of a reduction")
            _refuse(loop.kind != "seq", self, f"{name} is {loop.kind}")
        for name in (self.left, self.right):
            inside = name and s.loop(name, "Tensorize").is_tile
            _refuse(bool(inside), self, "operands cannot be packed inside of a tile")
        _refuse(s.tensor is not None or bool(s.stages), self, "other operands are staged already")
        _refuse(bool(s.kept), self, "values of its nests are kept")
        return replace(s, tensor=self)


Action = Split | Reorder | Vectorize | Unroll | Parallel | Stage | Keep | Defer | Stream | Tensorize


def definition(s: Schedule, root: Expr) -> Expr:
    """A root axis as the sum of its loops.

    >>> definition(apply(start(kernel), [Split("i0", 8)]), i0)
    ((i5 * 8) + i6)
    """
    total = const(0)
    for part in s.parts(root):
        total = total + part.axis * part.stride
    return total
