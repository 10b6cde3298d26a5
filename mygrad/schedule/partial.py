"""Sums over blocks: partial results of each block by one kernel, their combination by another.

    out[c] = f(SUM(x[b, s, c], (b, s)))   ->   parts[b, c] = SUM(x[b, s, c], s)
                                               out[c]      = f(SUM(parts[b, c], b))

Likewise of products and maxima. The order in which partial results are combined is fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mygrad import expr
from mygrad.expr import Expr
from mygrad.kernel import BufferInfo, Kernel, Store, store_axes
from mygrad.ops import Op
from mygrad.schedule.build import of_slots
from mygrad.schedule.steps import Memory, Step


def divide(
    step: Step, axes: tuple[Expr, ...], stores: Sequence[Store], block: Expr, first: int
) -> tuple[Step, Step, list[Memory]] | None:
    """The steps of partial and of combined results of a kernel with such axes and stores, and the
    arrays between them, which are numbered from `first` on; None if `block` is not an axis of its
    outermost reductions alone."""
    kernel = step.what
    assert isinstance(kernel, Kernel)
    infos, arguments = list(kernel.buffers), list(step.arguments)
    parts: list[Store] = []
    combined: list[Store] = []
    between: list[Memory] = []
    slots: dict[tuple[Expr, Expr, int], int] = {}  # of partial results
    for s in stores:
        sums, size = _sums(s.value, block), kernel.buffers[s.slot].size
        if not sums or s.valid is not None or block in store_axes(s):
            return None
        at, found = block * size + s.index, {}
        for e in sums:
            number = slots.setdefault((e, s.index, size), len(infos))
            if number == len(infos):
                infos.append(BufferInfo(e.dtype, block.arg[1] * size))
                arguments.append(first + len(between))
                shape = (block.arg[1], size)
                between.append(Memory("temporary", 0, e.dtype, shape, step.device))
                rest = [a for a in e.arg[1] if a is not block]
                value = expr.reduce(e.arg[0], e.src[0], rest) if rest else e.src[0]
                parts.append(Store(number, at, value))
            found[e] = expr.reduce(e.arg[0], expr.load(number, e.dtype, at), (block,))
        combined.append(replace(s, value=expr.substitute(s.value, found)))
    return (
        _made(step, (block, *axes), parts, infos, arguments, "partial results for each block"),
        _made(step, axes, combined, infos, arguments, "from partial results"),
        between,
    )


def _sums(value: Expr, block: Expr) -> list[Expr]:
    """The reductions of a value, if each of them goes over the blocks, and over nothing that does
    so itself; else none."""
    found: dict[Expr, None] = {}
    todo, seen = [value], set[Expr]()
    while todo:
        e = todo.pop()
        if e in seen:
            continue
        seen.add(e)
        if e.op is not Op.REDUCE:
            todo += e.src
        elif block not in e.arg[1] or any(
            x.op is Op.REDUCE and block in x.arg[1] for x in expr.toposort(e.src)
        ):
            return []
        else:
            found[e] = None
    return list(found)


def _made(
    step: Step,
    axes: Sequence[Expr],
    stores: Sequence[Store],
    infos: Sequence[BufferInfo],
    arguments: Sequence[int],
    why: str,
) -> Step:
    """A step of these stores, whose slots number `infos` and `arguments`."""
    free = frozenset[Expr]().union(*map(store_axes, stores))
    own = tuple(a for a in dict.fromkeys(axes) if a in free)
    old: Kernel = step.what  # type: ignore[assignment]
    kernel, used = of_slots(old.name.partition("_")[0], own, stores, infos)
    names = {name for name, *_ in kernel.params}
    return replace(
        step,
        what=replace(kernel, reason=old.reason, location=old.location),
        arguments=tuple(arguments[slot] for slot in used),
        reason=f"{step.reason}; {why}",
        constants=tuple(c for c in step.constants if c[0] in names),
    )
