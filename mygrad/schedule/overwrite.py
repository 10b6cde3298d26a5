"""State that is updated where it is: a result takes the place of the input that it replaces.

    r[i] = p[i] - lr * g[i], and nothing needs p afterwards   ->   p[i] = p[i] - lr * g[i]

So an optimiser reads and writes each moment once, in memory that is in the cache already, and a
cache of keys and values is not copied for every token. It can be done where all kernels that touch
the input come before the first that writes the result, or are that one, which then reads the input
at the index of its store and nowhere else. A kernel that only copied the input is not needed any
more (a scatter into state begins with one). Programs with host calls, which can fail in the middle,
keep their state whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from mygrad import expr
from mygrad.expr import Expr
from mygrad.graph import HostCall
from mygrad.kernel import Kernel, named, renumbered, roots_of, stem_of
from mygrad.ops import Op
from mygrad.schedule.bands import users_of, written_by
from mygrad.schedule.steps import Memory, Step


def overwrite(
    steps: Sequence[Step],
    arrays: Sequence[Memory],
    results: Sequence[int],
    pairs: Iterable[tuple[int, int]],
) -> tuple[list[Step], dict[int, int]]:
    """The steps with results in the place of inputs, for those of the `pairs` (result, input)
    where that is possible; also which memory took the place of which. An input that is among the
    `results`, unchanged, is kept."""
    done = list(steps)
    place: dict[int, int] = {}
    made: dict[tuple[Kernel, int, int], Kernel | None] = {}  # equal kernels stay equal
    if any(isinstance(s.what, HostCall) for s in done):
        return done, place
    for result, source in pairs:
        taken = result in place or source in place.values() or source in results
        if taken or not _alike(arrays[result], arrays[source]):
            continue
        users = users_of(done)
        first = min(users.get(result, [-1]))
        if first < 0 or any(at > first for at in users.get(source, ())):
            continue
        step = done[first]
        if result not in written_by(step):
            continue
        if source in step.arguments:
            merged = _merged(step, result, source, made)
            if merged is None:
                continue
            done[first] = step = merged
        place[result] = source
        done = [_renamed(s, result, source) for s in done]
        if _is_copy(step.what):
            del done[first]
    return done, place


def _alike(result: Memory, source: Memory) -> bool:
    """Whether one can be the other."""
    kinds = (result.kind, source.kind) == ("result", "input")
    about = [(m.dtype, m.nbytes, m.device) for m in (result, source)]
    return kinds and about[0] == about[1]


def _renamed(step: Step, result: int, source: int) -> Step:
    if result not in step.arguments:
        return step
    arguments = tuple(source if i == result else i for i in step.arguments)
    return replace(step, arguments=arguments)


def _merged(
    step: Step, result: int, source: int, made: dict[tuple[Kernel, int, int], Kernel | None]
) -> Step | None:
    """The step with one argument for both; None where its kernel reads the input elsewhere."""
    kernel = step.what
    if not isinstance(kernel, Kernel):
        return None
    written, read = step.arguments.index(result), step.arguments.index(source)
    key = (kernel, written, read)
    if key not in made:
        made[key] = _with_one_slot(kernel, written, read)
    found = made[key]
    if found is None:
        return None
    arguments = tuple(i for slot, i in enumerate(step.arguments) if slot != read)
    what = replace(found, reason=kernel.reason, location=kernel.location)
    return replace(step, what=what, arguments=arguments)


def _with_one_slot(kernel: Kernel, written: int, read: int) -> Kernel | None:
    """The kernel that reads slot `read` from slot `written`; every element that is read must be
    part of what the store to that element computes, and is then known before it is stored."""
    own = [s for s in kernel.stores if s.slot == written]
    if any(s.mode != "set" or s.valid is not None or s.ordered_axes for s in own):
        return None
    nodes = expr.toposort([e for s in kernel.stores for e in roots_of(s)])
    loads = [e for e in nodes if e.op is Op.LOAD and e.arg == read]
    inside = {s.index: frozenset(expr.toposort([s.value])) for s in own}
    if any(len(e.src) > 1 or e not in inside.get(e.src[0], ()) for e in loads):
        return None
    if any(e.op in (Op.REDUCE, Op.SCAN) and _reads(e, read) for e in nodes):
        return None
    slots = [slot for slot in range(len(kernel.buffers)) if slot != read]
    number = {slot: n for n, slot in enumerate(slots)}
    number[read] = number[written]
    buffers = tuple(kernel.buffers[slot] for slot in slots)
    stores = renumbered(kernel.stores, number)
    return named(replace(kernel, stores=stores, buffers=buffers), stem_of(kernel))


def _reads(e: Expr, slot: int) -> bool:
    return any(n.op is Op.LOAD and n.arg == slot for n in expr.toposort(e.src))


def _is_copy(kernel: object) -> bool:
    """Whether a kernel only stores what is there."""
    if not isinstance(kernel, Kernel) or len(kernel.stores) != 1:
        return False
    (store,) = kernel.stores
    here = expr.load(store.slot, store.value.dtype, store.index)
    return store.value is here and store.mode == "set" and store.valid is None
