"""Schedules next to a given one: what a search looks at.

    neighbours(kernel, actions)   lists of actions that differ from `actions` in one decision

A decision is one of: the factor of a split; a further split, which blocks a sequential loop; the
order of two loops that follow one another; a copy of an operand left out, made elsewhere, laid out
in another order, or made in squares or not; a kept row or deferred stores left out; which loop
threads share, if any; a loop that is unrolled, or no longer. Lanes, stores past the caches and
matrix units stay as they are. Every list is legal as a sequence of actions
(`actions.apply` accepts it); whether it can be lowered is known when that is tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mygrad.codegen.actions import (
    Action,
    Defer,
    Keep,
    Parallel,
    Reorder,
    Schedule,
    ScheduleError,
    Split,
    Stage,
    Unroll,
    apply,
    start,
)
from mygrad.kernel import Kernel

Actions = tuple[Action, ...]

BLOCKS = (4, 16, 64, 256)  # factors that a sequential loop is tried to be divided by
COPIES = 8  # iterations up to which a sequential loop is tried to be unrolled


def neighbours(kernel: Kernel, actions: Actions) -> Iterator[Actions]:
    """The legal lists of actions that differ from `actions` in one decision, in a fixed order and
    without repetition.

    >>> from mygrad.codegen.actions import Split
    >>> next(neighbours(kernel, (Split("i0", 8),)))
    (Split(axis='i0', factor=4),)
    """
    seen = {actions}
    scheduled = apply(start(kernel), actions)
    for candidates in (
        _factors(actions),
        _stages(actions, scheduled),
        _blocks(kernel, actions),
        _orders(actions, scheduled),
        _threads(actions, scheduled),
        _copies(actions, scheduled),
    ):
        for candidate in candidates:
            if candidate not in seen and _is_legal(kernel, candidate):
                seen.add(candidate)
                yield candidate


def _is_legal(kernel: Kernel, actions: Actions) -> bool:
    try:
        apply(start(kernel), actions)
    except ScheduleError:
        return False
    return True


def _put(actions: Actions, n: int, *new: Action) -> Actions:
    """The list with action `n` replaced."""
    return (*actions[:n], *new, *actions[n + 1 :])


def _factors(actions: Actions) -> Iterator[Actions]:
    for n, action in enumerate(actions):
        if isinstance(action, Split):
            f = action.factor
            for other in (f // 2, f * 2, f - 1, f + 1, f * 3 // 2, f * 2 // 3):
                if other > 1:
                    yield _put(actions, n, replace(action, factor=other))


def _stages(actions: Actions, scheduled: Schedule) -> Iterator[Actions]:
    places = ["", *(p.name for p in scheduled.loops if not p.is_tile)]
    for n, action in enumerate(actions):
        if isinstance(action, Stage):
            yield _put(actions, n)
            yield _put(actions, n, replace(action, transposed=not action.transposed))
            for at in places:
                yield _put(actions, n, replace(action, at=at))
            for i in range(len(action.layout) - 1):
                yield _put(actions, n, replace(action, layout=_swapped(action.layout, i)))
        elif isinstance(action, Keep | Defer):
            yield _put(actions, n)


def _blocks(kernel: Kernel, actions: Actions) -> Iterator[Actions]:
    """A sequential loop is divided just before the loops are put in order; the new outer loop goes
    to any place further out. Later actions that name the loop name its parts."""
    place = next((n for n, a in enumerate(actions) if _comes_late(a)), len(actions))
    before, after = actions[:place], actions[place:]
    scheduled = apply(start(kernel), actions)
    order = tuple(p.name for p in scheduled.loops)
    if after and isinstance(after[0], Reorder):
        after = after[1:]
    for loop in apply(start(kernel), before).loops:
        if loop.kind != "seq" or loop.name not in order:
            continue
        parts = (loop.name + "o", loop.name + "i")
        where = order.index(loop.name)
        rest = tuple(_renamed(a, loop.name, parts) for a in after)
        for factor in (b for b in BLOCKS if 2 * b <= loop.extent):
            for out in range(where + 1):
                loops = (*order[:out], parts[0], *order[out:where], parts[1], *order[where + 1 :])
                yield (*before, Split(loop.name, factor), Reorder(loops), *rest)


def _comes_late(action: Action) -> bool:
    return isinstance(action, Reorder | Parallel | Stage | Keep | Defer)


def _renamed(action: Action, name: str, parts: tuple[str, str]) -> Action:
    """The action on the parts of a divided loop: threads share the outer one, copies are made in
    the inner one and laid out over both."""
    if isinstance(action, Parallel) and action.axis == name:
        return Parallel(parts[0])
    if isinstance(action, Stage):
        layout = tuple(n for old in action.layout for n in (parts if old == name else (old,)))
        return replace(action, at=parts[1] if action.at == name else action.at, layout=layout)
    return action


def _orders(actions: Actions, scheduled: Schedule) -> Iterator[Actions]:
    """Two loops that follow one another change places."""
    place = next((n for n, a in enumerate(actions) if isinstance(a, Reorder)), None)
    if place is None:
        late = next((n for n, a in enumerate(actions) if _comes_late(a)), len(actions))
        order = tuple(p.name for p in apply(start(scheduled.kernel), actions[:late]).loops)
        before, after = actions[:late], actions[late:]
    else:
        found = actions[place]
        order = found.axes if isinstance(found, Reorder) else ()
        before, after = actions[:place], actions[place + 1 :]
    for i in range(len(order) - 1):
        yield (*before, Reorder(_swapped(order, i)), *after)


def _swapped(names: tuple[str, ...], i: int) -> tuple[str, ...]:
    return (*names[:i], names[i + 1], names[i], *names[i + 2 :])


def _threads(actions: Actions, scheduled: Schedule) -> Iterator[Actions]:
    rest = tuple(a for a in actions if not isinstance(a, Parallel))
    place = next((n for n, a in enumerate(rest) if isinstance(a, Stage | Keep | Defer)), len(rest))
    yield rest
    for loop in scheduled.loops:
        if loop.kind == "seq" and loop.root in scheduled.kernel.axes:
            yield (*rest[:place], Parallel(loop.name), *rest[place:])


def _copies(actions: Actions, scheduled: Schedule) -> Iterator[Actions]:
    for n, action in enumerate(actions):
        if isinstance(action, Unroll):
            yield _put(actions, n)
    for loop in scheduled.loops:
        if loop.kind == "seq" and loop.extent <= COPIES:
            yield (*actions, Unroll(loop.name))
