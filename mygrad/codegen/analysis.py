"""The default schedule of a kernel, from the kernel and the target alone."""

from __future__ import annotations

from mygrad.codegen.actions import Action, Parallel, Reorder, Split, Vectorize, apply, start
from mygrad.expr import Expr, free_axes, stride
from mygrad.helpers import prod
from mygrad.kernel import Kernel, all_nodes, axis_sets, ordered_axes, scan_axes, store_axes
from mygrad.ops import Op
from mygrad.program import Target

SMALL = 10_000  # operations below which one thread is faster than several


def default_actions(kernel: Kernel, target: Target) -> tuple[Action, ...]:
    """Vectorise the contiguous axis of the first store, share the outermost axis among threads."""
    actions: list[Action] = []
    loads = [e for e in all_nodes(kernel) if e.op is Op.LOAD]
    fixed = scan_axes(kernel) | ordered_axes(kernel)
    lanes = target.vector_bytes // 4
    for s in kernel.stores:
        for a in store_axes(s) - fixed:
            if stride(s.index, a) == 1 and lanes > 1 and not actions and a.arg[1] > lanes and all(
                    stride(e.src[0], a) in (0, 1) for e in loads if a in free_axes(e)):
                actions += [Split(f"i{a.arg[0]}", lanes), Vectorize(f"i{a.arg[0]}i")]
    work = sum(prod(a.arg[1] for a in axes) for axes in axis_sets(kernel))
    if target.threads > 1 and work > SMALL:
        outer = apply(start(kernel), actions).loops
        for p in outer:
            if p.root in kernel.axes and p.root not in fixed and p.kind == "seq" and p.stride * p.extent >= p.root.arg[1]:
                actions.append(Parallel(p.name))
                break
    return tuple(actions)
