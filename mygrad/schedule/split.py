"""Sums to sums of partial sums, where one pass is too long or too narrow; long scans to scans of
blocks.

    SUM(x, (n, h, w))  ->  SUM(CONTIGUOUS(SUM(x as (n1, n2, h, w), (n2, h, w))), (n1))
    SUM(x, n)          ->  the same of the first n1 * n2 elements, + SUM(the others, n)
    SCAN(x, n)         ->  SCAN(x as (n1, n2), n2), rows begin with SCAN(SUM(x, n2), n1) before them

- *Narrow*: so few results that threads would have nothing to share. The partial results are shared
  instead; combining them in a fixed order keeps results the same for every number of threads. So
  for every operator: a maximum and a product are divided as a sum is.
- *Long*: every result sweeps over operands that do not fit in cache, and the results are many (the
  weight gradient of a convolution). One block of the operands at a time stays in cache for all
  results. Where all operands are read as if the axes of the sum were one, the schedule of its
  kernel divides that: such a sum is only kept apart from what uses it.

Sums in blocks are also more accurate than one long sum. The blocks of a scan are shared by threads;
they are the same for every number of threads, and so are the results.
"""

from __future__ import annotations

from collections.abc import Sequence

from mygrad import dtype as dt
from mygrad import expr, graph, movement
from mygrad.expr import Expr
from mygrad.graph import Node
from mygrad.helpers import Shape, ceildiv, prod
from mygrad.ops import ALU, MOVEMENT, SOURCE, Op
from mygrad.schedule import winograd
from mygrad.schedule.homes import flat
from mygrad.schedule.steps import Units

FEW_RESULTS = 16  # results that cannot keep all threads busy
LANES = 16  # results side by side that one thread computes together: a line of memory
FEW_LINES = 4  # such lines: two threads sum 128 columns as fast as they read them, but not 64
LONG_SUM = 1 << 16  # elements from which a second kernel pays
PARTS = 128  # partial results of a narrow reduction, at most
LONG_SCAN = 1 << 18  # elements from which a scan is divided
SCANNED = 4096  # elements of a block of it
CACHE = 1 << 19  # bytes of operands that stay in cache while all results are computed
WHOLE = "a long sum that its kernel divides: partial results wait in memory"
NAMES = {Op.ADD: "sums: one sum", Op.MUL: "products: one product", Op.MAX: "maxima: one maximum"}
REUSE = 8  # reads of an operand from which keeping it in cache pays


def split_sums(roots: Sequence[Node], device: str, units: Units = lambda device: ()) -> list[Node]:
    """The roots, computed on `device` if no buffer says otherwise, with every such sum split; new
    nodes keep the user's line. `units` are the matrix units of devices."""
    return graph.rewrite(roots, lambda node, done: _parted(node, done, device, units))


def _parted(node: Node, done: dict[Node, Node], device: str, units: Units) -> Node:
    result = graph.on_operands(node, done)
    axis, parts = _parts(result) if _is_long(result) else (0, 1)
    if parts > 1 and (tiled := _tiled(result, device, units, axis, parts)):
        parts = tiled
    if parts > 1 and not _is_narrow(result) and _is_one(result.src[0], result.arg[1]):
        return graph.contiguous(result, WHOLE)
    if parts > 1:
        return _split(result, axis, parts)
    if result.op is Op.SCAN and (blocks := _blocks(result)) > 1:
        return _split_scan(result, blocks)
    return result


def _is_long(node: Node) -> bool:
    return node.op is Op.REDUCE and node.src[0].size >= LONG_SUM


def _is_narrow(node: Node) -> bool:
    """Whether threads would have nothing to share, and each partial result is worth its memory."""
    each = node.src[0].size // (node.size * PARTS)
    if node.size <= FEW_RESULTS:
        return each >= REUSE
    return each >= 4 * REUSE and _shared(node) <= FEW_LINES and _is_side_by_side(node)


def _shared(node: Node) -> int:
    """What threads can share of a narrow reduction: results, or lines of them, since the lanes of
    a vector compute these together."""
    return node.size if node.size <= FEW_RESULTS else ceildiv(node.size, LANES)


def _is_side_by_side(node: Node) -> bool:
    """Whether the results of a reduction lie side by side in what is read."""
    x, axes = node.src[0], node.arg[1]
    kept = [a for a in range(len(x.shape)) if a not in axes]
    large = [steps for array, steps, _ in _reads(x, kept) if array.size * REUSE > x.size]
    return bool(large) and all(any(abs(s or 0) == 1 for s in steps) for steps in large)


def _tiled(node: Node, device: str, units: Units, axis: int, parts: int) -> int:
    """Into how many parts, or more, a sum is divided along an axis if winograd.py will compute it;
    0 if not."""
    x, (op, axes), device = node.src[0], node.arg, node.device or device
    if op is not Op.ADD or x.op is not Op.MUL or not winograd.is_on(device):
        return 0
    index = _index(x.shape)
    factors = []
    for slot, factor in enumerate(x.src):
        at = index
        while factor.op in MOVEMENT:
            at, _ = movement.index(factor.op, factor.src[0].shape, factor.arg, at)
            factor = factor.src[0]
        if factor.dtype is not dt.float32:
            return 0
        kind = factor.src[0].dtype if factor.op is Op.CAST else factor.dtype
        loaded = expr.load(slot, kind, flat(at, factor.shape))
        factors.append(
            loaded if kind is dt.float32 else expr.alu(Op.CAST, loaded, dtype=dt.float32)
        )
    summed = [index[a] for a in axes if index[a].op is Op.AXIS]
    total = expr.reduce(op, expr.alu(Op.MUL, *factors), summed)
    outer = [a for a in index if a.op is Op.AXIS and a not in summed]
    extent = x.shape[axis]
    return winograd.parts_of(total, outer, len(index), extent, parts, units(device))


def _parts(node: Node) -> tuple[int, int]:
    """The axis of a reduction that is divided, and into how many parts; 1: not at all."""
    x, (op, axes) = node.src[0], node.arg
    if _is_narrow(node):
        least = FEW_RESULTS // _shared(node) + 1
        first = _farthest(x, [a for a in axes if x.shape[a] >= least] or axes)
        return first, _count(x.shape[first], least)
    first = _farthest(x, axes)
    extent = x.shape[first]
    if extent < 2 or op is not Op.ADD:
        return first, 1
    operands = _operands(x)
    nbytes = sum(o.size * o.dtype.itemsize for o in operands)
    again = all(o.size * REUSE <= x.size for o in operands)
    again = again and any(o.dtype.itemsize >= 4 for o in operands)  # narrow ones are packed
    inner = prod(x.shape[a] for a in axes if a != first)
    worth = node.size * REUSE <= x.size // extent  # partial results are few beside the work
    if again and worth and inner >= 4 * REUSE and nbytes > 2 * CACHE:
        return first, _divisor(extent, min(extent, nbytes // CACHE))
    return first, 1


def _count(extent: int, least: int) -> int:
    """Into how many parts a narrow reduction is divided: as many equal ones as there may be, or,
    where there are not even `least`, so that the fewest elements are left over."""
    equal = _divisor(extent, PARTS)
    if equal >= min(least, extent):
        return equal
    return min(range(PARTS, PARTS // 2, -1), key=lambda parts: extent % parts)


def _farthest(x: Node, axes: Sequence[int]) -> int:
    """The axis whose steps go farthest in the arrays that are summed; so the parts of a sum read
    what lies together. The first of equal ones."""
    if len(axes) == 1:
        return axes[0]
    reach = dict.fromkeys(axes, 0)
    for array, steps, _ in _reads(x, axes):
        for a, step in zip(axes, steps, strict=True):
            reach[a] += abs(step or 0) * array.dtype.itemsize
    return max(axes, key=lambda a: reach[a])


def _is_one(x: Node, axes: Sequence[int]) -> bool:
    """Whether all that is summed is read along the axes as if they were one, and all of it."""

    def along(steps: Sequence[int | None]) -> bool:
        inner = zip(steps[1:], axes[1:], strict=True)
        after = [None if step is None else step * x.shape[a] for step, a in inner]
        return None not in steps and list(steps[:-1]) == after

    return all(not guarded and along(steps) for _, steps, guarded in _reads(x, axes))


def _index(shape: Shape) -> tuple[Expr, ...]:
    """An axis for each extent, or the constant 0 for extents of 1."""
    return tuple(expr.axis(a, n) if n > 1 else expr.const(0) for a, n in enumerate(shape))


def _reads(x: Node, axes: Sequence[int]) -> list[tuple[Node, list[int | None], bool]]:
    """The arrays that x is computed from: how far a step along each axis goes, None where that is
    no constant, and whether only a part of them is read."""
    index = _index(x.shape)
    work, seen, found = [(x, index, False)], set(), []
    while work:
        node, at, guarded = work.pop()
        if (node, at) in seen:
            continue
        seen.add((node, at))
        if node.op in ALU and node.size * REUSE > x.size:
            work += [(s, at, guarded) for s in node.src]
        elif node.op in MOVEMENT:
            below, valid = movement.index(node.op, node.src[0].shape, node.arg, at)
            work.append((node.src[0], below, guarded or valid is not None))
        elif node.op not in SOURCE or node.op is Op.BUFFER:  # smaller ones are arrays of their own
            place = flat(at, node.shape)
            found.append((node, [expr.stride(place, index[a]) for a in axes], guarded))
    return found


def _divisor(extent: int, most: int) -> int:
    return next(d for d in range(min(most, extent), 0, -1) if extent % d == 0)


def _operands(x: Node) -> list[Node]:
    """The arrays that a product reads, seen through movement and arithmetic of its own size."""
    found: dict[Node, None] = {}
    seen: set[Node] = set()
    work = [x]
    while work:
        node = work.pop()
        if node in seen:
            continue
        seen.add(node)
        same = node.size * REUSE > x.size
        if (node.op in ALU and same) or node.op in MOVEMENT:
            work += node.src
        elif node.op is Op.CAST and node.src[0].dtype.itemsize < node.dtype.itemsize:
            work += node.src  # the array has narrow numbers, which are widened as they are read
        elif node.op is not Op.CONST:
            found[node] = None
    return list(found)


def _split(node: Node, first: int, parts: int) -> Node:
    """The reduction in so many equal parts, and of what is left over."""
    x, (op, axes) = node.src[0], node.arg
    length = x.shape[first] // parts
    shape = (*x.shape[:first], parts, length, *x.shape[first + 1 :])
    blocks = graph.move(Op.RESHAPE, _between(x, first, 0, parts * length), shape)
    partial = graph.reduce(op, blocks, tuple(a + (a >= first) for a in axes))
    kept = graph.contiguous(partial, f"{parts} partial {NAMES[op]} would be too long or too narrow")
    result = graph.reduce(op, kept, (first - sum(a < first for a in axes),))
    if parts * length == x.shape[first]:
        return result
    rest = graph.reduce(op, _between(x, first, parts * length, x.shape[first]), axes)
    return graph.alu(op, result, rest)


def _between(x: Node, axis: int, start: int, stop: int) -> Node:
    """A part of an axis."""
    whole = [(0, n) for n in x.shape]
    return graph.move(Op.SHRINK, x, (*whole[:axis], (start, stop), *whole[axis + 1 :]))


def _blocks(node: Node) -> int:
    """Into how many blocks a scan is divided; 1 where its other axes keep threads busy, and where
    no whole number of blocks covers the axis: the result of a longer one would have to be copied,
    which takes longer than what the threads save."""
    extent = node.shape[node.arg[1]]
    if extent < LONG_SCAN or node.size > FEW_RESULTS * extent or node.dtype.kind == "b":
        return 1
    return _divisor(extent, extent // SCANNED)


def _split_scan(node: Node, count: int) -> Node:
    x, (op, axis) = node.src[0], node.arg
    before, after, length = x.shape[:axis], x.shape[axis + 1 :], x.shape[axis] // count
    shape = (*before, count, length, *after)

    def spread(y: Node, *own: int) -> Node:
        return graph.move(Op.EXPAND, graph.move(Op.RESHAPE, y, (*before, *own, *after)), shape)

    def number(extent: int, *own: int) -> Node:
        ones = (1,) * len(before), (1,) * len(after)
        column = graph.move(Op.RESHAPE, graph.iota(extent), (*ones[0], *own, *ones[1]))
        return graph.move(Op.EXPAND, column, shape)

    blocks = graph.move(Op.RESHAPE, x, shape)
    totals = graph.scan(op, graph.reduce(op, blocks, (axis + 1,)), axis)
    widths = tuple((int(a == axis), 0) for a in range(len(x.shape)))
    kept = tuple((0, n) for n in totals.shape)
    earlier = graph.move(Op.SHRINK, graph.move(Op.PAD, totals, widths), kept)
    zero = graph.const(0, dt.index, shape)
    begins = graph.alu(
        Op.AND,
        graph.alu(Op.EQ, number(length, 1, length), zero),
        graph.alu(Op.LT, zero, number(count, count, 1)),
    )
    begun = graph.alu(op, spread(earlier, count, 1), blocks)
    result = graph.scan(op, graph.alu(Op.WHERE, begins, begun, blocks), axis + 1)
    return graph.move(Op.RESHAPE, result, x.shape)
