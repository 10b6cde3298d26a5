"""Groups to kernels: the expression of every output over the axes of its group.

Going down from an output, movement rewrites the index, elementwise operations become expressions, a
reduction binds new axes, and a value with a home in a buffer becomes a LOAD. Reductions over the
same extents of the same rows that do not depend on each other get the *same* axes, which tells the
code generator to share their loops.

Visits are generators run by a trampoline (`_lower`): a rule yields the reads it needs, (node,
index, valid), and is sent their expressions. So graphs of any depth need no recursion.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from mygrad import expr, graph, movement
from mygrad.dtype import DType
from mygrad.expr import Expr
from mygrad.graph import Node
from mygrad.kernel import BufferInfo, Kernel, Store, named, renumbered, roots_of, store_axes
from mygrad.ops import ALU, MOVEMENT, Op
from mygrad.schedule import cost, reshape_axes
from mygrad.schedule.facts import moved
from mygrad.schedule.homes import Group, Homes, Index, flat, insert

Read = tuple[Node, Index, Expr | None]
Visit = Generator[Read, Expr, Expr]
PAD_REUSE = 8  # reads of an element within a reduction from which a zero-padded copy pays


@dataclass(frozen=True)
class Built:
    """A kernel and, for each of its buffer slots, the node whose memory it is. `constants` are
    values of parameters of the kernel (see sharing.py)."""

    kernel: Kernel
    arguments: tuple[Node, ...]
    constants: tuple[tuple[str, int], ...] = ()


class Builder:
    """Builds the kernel of one group."""

    def __init__(self, homes: Homes, group: Group) -> None:
        self.homes = homes
        self.group = group
        self.slots: dict[Node, int] = {}
        self.memo: dict[Read, Expr] = {}
        self.reads: dict[Expr, tuple[Node, Index, Expr]] = {}  # conditional loads, for padding
        # by condition: what is reshaped on the way to a load, and at which index
        self.shaped: dict[Expr, list[tuple[Node, Index]]] = {}
        self.axes_of: dict[tuple[Index, tuple[int, ...], int], Index] = {}
        self.next_axis = 0

    @cached_property
    def levels(self) -> dict[Node, int]:
        """How deep reductions nest below each node that the group computes itself."""
        return _reduce_levels(self.homes, self.group)

    def build(self) -> Built:
        """The kernel and its arguments."""
        self.next_axis = max((a.arg[0] for a in self.group.axes), default=-1) + 1
        computed = [self._store(node, index) for node, index in self.group.outputs.items()]
        padded = tuple(self._pad_once(computed))
        infos = tuple((n.dtype, n.size) for n in self.slots)
        kind, rows = self.group.root.op, bool(self.group.rows)
        kernel = _kernel(self._ordered_axes(), padded, infos, kind, rows)
        reason, line = self.group.reason, self.group.root.location
        return Built(replace(kernel, reason=reason, location=line), tuple(self.slots))

    def _ordered_axes(self) -> Index:
        """Rows of inner reductions first, so that those are computed once per row."""
        chain = sorted(self.group.rows, key=len)
        ordered: list[Expr] = []
        for rows in [*chain, frozenset(self.group.axes)]:
            ordered += [a for a in self.group.axes if a in rows and a not in ordered]
        return tuple(ordered)

    def _store(self, node: Node, index: Index) -> Store:
        if node.op is Op.SCATTER and not self.group.initial:
            return self._scatter(node, index)
        target = node.src[0] if node.op is Op.STORE else node
        source = {Op.STORE: 1, Op.SCATTER: 0, Op.CONTIGUOUS: 0}.get(node.op)
        value = self._lower((node if source is None else node.src[source], index, None))
        return Store(self._slot(target), flat(index, node.shape), value)

    def _scatter(self, node: Node, index: Index) -> Store:
        axis, mode = node.arg
        place = self._index_value(node.src[1], index)
        value = self._lower((node.src[2], index, None))
        target = (*index[:axis], place, *index[axis + 1 :])
        inside = expr.both(place >= 0, expr.less(place, expr.const(node.shape[axis])))
        ordered = (index[axis],) if index[axis].op is Op.AXIS else ()
        valid = None if expr.is_true(inside) else inside
        return Store(self._slot(node), flat(target, node.shape), value, valid, mode, ordered)

    def _index_value(self, node: Node, index: Index) -> Expr:
        value = self._lower((node, index, None))
        return expr.alu(Op.CAST, value, dtype=expr.dt.index)

    def _slot(self, node: Node) -> int:
        return self.slots.setdefault(node, len(self.slots))

    # --- values -----------------------------------------------------------------------------------

    def _lower(self, read: Read) -> Expr:
        stack: list[tuple[Read, Visit]] = []
        if read not in self.memo:
            stack.append((read, self._visit(*read)))
        answer: Expr | None = None
        while stack:
            current, visit = stack[-1]
            try:
                wanted = visit.send(answer)  # type: ignore[arg-type]
            except StopIteration as stop:
                self.memo[current] = answer = stop.value
                stack.pop()
                continue
            answer = self.memo.get(wanted)
            if answer is None:
                stack.append((wanted, self._visit(*wanted)))
        return self.memo[read]

    def _visit(self, node: Node, index: Index, valid: Expr | None) -> Visit:
        home = self.homes.group_of.get(node)
        if node.op is Op.BUFFER or (
            home is not None and (home is not self.group or self._is_target(node))
        ):
            return _now(self._load(node, index, valid))
        if node.op in ALU:
            return _alu(node, index, valid)
        if node.op in MOVEMENT:
            if node.op is Op.RESHAPE and valid is not None:
                self.shaped.setdefault(valid, []).append((node, index))
            return _move(node, index, valid)
        return RULES[node.op](self, node, index, valid)

    def _is_target(self, node: Node) -> bool:
        return (
            node.op is Op.SCATTER
        )  # the initial group of a scatter never reads it; others load it

    def _load(self, node: Node, index: Index, valid: Expr | None) -> Expr:
        if valid is not None and _always_inside(index, node):
            valid = None  # what makes it invalid lies elsewhere; `_move` sees to the zero
        loaded = expr.load(self._slot(node), node.dtype, flat(index, node.shape), valid)
        if len(loaded.src) == 2:
            self.reads[loaded] = (node, index, loaded.src[1])
        return loaded

    def reduce_axes(self, node: Node, index: Index) -> Index:
        """The axes a reduction binds: the same for reductions of one level over the same rows and
        extents."""
        extents = tuple(node.src[0].shape[a] for a in node.arg[1])
        key = (index, extents, self.levels[node])
        if key not in self.axes_of:
            made = []
            for extent in extents:
                made.append(expr.const(0) if extent == 1 else expr.axis(self.next_axis, extent))
                self.next_axis += extent != 1
            self.axes_of[key] = tuple(made)
        return self.axes_of[key]

    # --- padding ----------------------------------------------------------------------------------

    def _pad_once(self, stores: list[Store]) -> list[Store]:
        """Conditional loads that a reduction repeats many times read a zero-padded copy instead,
        which the inner loops then read without conditions."""
        mapping: dict[Expr, Expr] = {}
        for reduction in expr.toposort(s.value for s in stores):
            if reduction.op is not Op.REDUCE:
                continue
            body = reduction.src[0]
            space = cost.extents(expr.free_axes(body))
            for loaded in expr.toposort([body]):
                if loaded in self.reads and loaded not in mapping:
                    node, index, valid = self.reads[loaded]
                    if space >= PAD_REUSE * node.size:
                        padded = self._padded(node, index, valid)
                        if padded is not None:
                            mapping[loaded] = padded
        if not mapping:
            return stores
        stores = [replace(s, value=expr.substitute(s.value, mapping)) for s in stores]
        return self._renumber(stores)

    def _padded(self, node: Node, index: Index, valid: Expr) -> Expr | None:
        """A load from a zero-padded copy of a node, or of what reshapes it, so that the condition
        is the bounds of an index."""
        seen = [(x, at) for x, at in self.shaped.get(valid, ()) if moved(x)[-1] is node]
        for x, at in [(node, index), *seen]:
            widths = _widths(x, at, valid)
            if widths is not None:
                copy = graph.move(Op.PAD, x, widths)
                self.homes.add_copy(copy, self.group)
                place = tuple(i + before for i, (before, _) in zip(at, widths, strict=True))
                return expr.load(self._slot(copy), node.dtype, flat(place, copy.shape))
        return None

    def _renumber(self, stores: list[Store]) -> list[Store]:
        """Drop the slots that are no longer used."""
        used = {s.slot for s in stores}
        for s in stores:
            used |= {e.arg for e in expr.toposort(roots_of(s)) if e.op is Op.LOAD}
        if len(used) == len(self.slots):
            return stores
        number = {old: new for new, old in enumerate(sorted(used))}
        self.slots = {n: number[i] for n, i in self.slots.items() if i in number}
        return list(renumbered(stores, number))


def _widths(node: Node, index: Index, valid: Expr) -> tuple[tuple[int, int], ...] | None:
    """By how much an index reaches out of an array, if a condition says just that it must not."""
    needed: set[Expr] = set()
    widths = []
    for at, extent in zip(index, node.shape, strict=True):
        if at.low is None or at.high is None:
            return None
        widths.append((max(0, -at.low), max(0, at.high - extent + 1)))
        inside = (at >= 0, expr.less(at, expr.const(extent)))
        needed |= {c for c in inside if not expr.is_true(c)}
    return tuple(widths) if set(expr.conjuncts(valid)) == needed else None


# --- rules ----------------------------------------------------------------------------------------


def _now(value: Expr) -> Visit:
    """A visit that needs nothing."""
    return value
    yield  # makes this a generator


def _alu(node: Node, index: Index, valid: Expr | None) -> Visit:
    values = []
    for s in node.src:
        values.append((yield s, index, valid))
    return expr.alu(node.op, *values, dtype=node.dtype)


def _move(node: Node, index: Index, valid: Expr | None) -> Visit:
    inner, condition = movement.index(node.op, node.src[0].shape, node.arg, index)
    if condition is None:
        return (yield node.src[0], inner, valid)
    both = condition if valid is None else expr.both(valid, condition)
    value = yield node.src[0], inner, both
    if _vanishes(value, both):
        return value
    return expr.where(condition, value, _zero(value))


def _zero(value: Expr) -> Expr:
    return expr.const(0, value.dtype)


def _always_inside(index: Index, node: Node) -> bool:
    return all(
        at.low is not None and at.high is not None and at.low >= 0 and at.high < extent
        for at, extent in zip(index, node.shape, strict=True)
    )


def _vanishes(e: Expr, condition: Expr, depth: int = 8) -> bool:
    """Whether a value is 0 wherever the condition fails: a load under it, or a product or sum of
    such.

    Zero times anything is taken as 0 here: a padded operand hides what it meets, even inf and nan.
    """
    if e.op is Op.LOAD:
        return len(e.src) == 2 and _implies(e.src[1], condition)
    if depth == 0:
        return False
    if e.op is Op.MUL:
        return any(_vanishes(s, condition, depth - 1) for s in e.src)
    if e.op in (Op.CAST, Op.NEG) or (e.op is Op.REDUCE and e.arg[0] is Op.ADD):
        return _vanishes(e.src[0], condition, depth - 1)
    return e.op is Op.ADD and all(_vanishes(s, condition, depth - 1) for s in e.src)


def _implies(strong: Expr, weak: Expr) -> bool:
    return set(expr.conjuncts(weak)) <= set(expr.conjuncts(strong))


def _constant(b: Builder, node: Node, index: Index, valid: Expr | None) -> Visit:
    return expr.const(node.arg, node.dtype)
    yield


def _iota(b: Builder, node: Node, index: Index, valid: Expr | None) -> Visit:
    return expr.alu(Op.CAST, index[0], dtype=node.dtype)
    yield


def _variable(b: Builder, node: Node, index: Index, valid: Expr | None) -> Visit:
    return expr.param(*node.arg)
    yield


def _reduce(b: Builder, node: Node, index: Index, valid: Expr | None) -> Visit:
    op, axes = node.arg
    bound = b.reduce_axes(node, index)
    body = yield node.src[0], insert(index, axes, bound), valid
    mine = tuple(a for a in bound if a.op is Op.AXIS)
    if not mine:
        return body
    return merge_sums(op, body, mine)


def merge_sums(op: Op, body: Expr, axes: tuple[Expr, ...]) -> Expr:
    """A reduction whose body is a reduction by the same operator, maybe zero padded, is one
    reduction."""
    if body.op is Op.REDUCE and body.arg[0] is op:
        return expr.reduce(op, body.src[0], axes + body.arg[1])
    if (
        op is Op.ADD
        and body.op is Op.WHERE
        and body.src[1].op is Op.REDUCE
        and body.src[1].arg[0] is op
        and body.src[2].op is Op.CONST
        and body.src[2].arg == 0
    ):
        inner = body.src[1]
        masked = expr.where(body.src[0], inner.src[0], body.src[2])
        return expr.reduce(op, masked, axes + inner.arg[1])
    return expr.reduce(op, body, axes)


def _scan(b: Builder, node: Node, index: Index, valid: Expr | None) -> Visit:
    op, axis = node.arg
    at = index[axis]
    if at.op is not Op.AXIS:  # an extent of 1
        return (yield node.src[0], index, valid)
    bound = expr.axis(b.next_axis, at.arg[1])
    b.next_axis += 1
    body = yield node.src[0], (*index[:axis], bound, *index[axis + 1 :]), valid
    return expr.scan(op, body, at, bound)


def _gather(b: Builder, node: Node, index: Index, valid: Expr | None) -> Visit:
    axis, extent = node.arg, node.src[0].shape[node.arg]
    picked = yield node.src[1], index, valid
    place = expr.alu(Op.CAST, picked, dtype=expr.dt.index)
    inside = expr.both(place >= 0, expr.less(place, expr.const(extent)))
    both = inside if valid is None else expr.both(valid, inside)
    guard = None if expr.is_true(both) else both
    value = yield node.src[0], (*index[:axis], place, *index[axis + 1 :]), guard
    if expr.is_true(inside) or _vanishes(value, inside):
        return value
    return expr.where(inside, value, _zero(value))


def _through(b: Builder, node: Node, index: Index, valid: Expr | None) -> Visit:
    return (yield node.src[-1], index, valid)


RULES: dict[Op, Callable[..., Visit]] = {
    Op.CONST: _constant,
    Op.IOTA: _iota,
    Op.VARIABLE: _variable,
    Op.REDUCE: _reduce,
    Op.SCAN: _scan,
    Op.GATHER: _gather,
    Op.CONTIGUOUS: _through,
    Op.STORE: _through,
}


def _reduce_levels(homes: Homes, group: Group) -> dict[Node, int]:
    """How deep reductions nest below each node that the group computes itself."""
    levels: dict[Node, int] = {}
    work = [s for node in group.outputs for s in (node.src if node.op is Op.SCATTER else (node,))]
    while work:
        node = work[-1]
        if node in levels:
            work.pop()
            continue
        home = homes.group_of.get(node)
        if node.op is Op.BUFFER or (home is not None and home is not group):
            levels[node] = 0
            continue
        waiting = [s for s in node.src if s not in levels]
        if waiting:
            work += waiting
        else:
            below = max((levels[s] for s in node.src), default=0)
            levels[node] = below + (node.op is Op.REDUCE)
    return levels


# --- the kernel -----------------------------------------------------------------------------------


@lru_cache(maxsize=1 << 10)  # layers that are equal come here with the same stores
def _kernel(
    axes: Index,
    stores: tuple[Store, ...],
    infos: tuple[tuple[DType, int], ...],
    kind: Op,
    rows: bool,
) -> Kernel:
    axes, stores = reshape_axes.simplify(axes, stores)
    written = {s.slot for s in stores}
    buffers = tuple(BufferInfo(*info, slot in written) for slot, info in enumerate(infos))
    kernel = Kernel("", axes, stores, buffers, _params(stores))
    flops, nbytes = work(kernel)
    return replace(named(kernel, _name(kind, rows, kernel)), flops=flops, bytes=nbytes)


def of_slots(
    stem: str, axes: tuple[Expr, ...], stores: Sequence[Store], infos: Sequence[BufferInfo]
) -> tuple[Kernel, tuple[int, ...]]:
    """A kernel of stores whose slots number `infos`, and those of the slots that it uses."""
    axes, stores = reshape_axes.simplify(axes, tuple(stores))
    loads = (e for e in expr.toposort(r for s in stores for r in roots_of(s)) if e.op is Op.LOAD)
    written = {s.slot for s in stores}
    used = sorted(written | {e.arg for e in loads})
    kernel = Kernel(
        "",
        axes,
        renumbered(stores, {slot: n for n, slot in enumerate(used)}),
        tuple(replace(infos[slot], written=slot in written) for slot in used),
        _params(stores),
    )
    flops, nbytes = work(kernel)
    kernel = named(kernel, f"{stem}_{'x'.join(str(a.arg[1]) for a in axes) or 1}")
    return replace(kernel, flops=flops, bytes=nbytes), tuple(used)


def _params(stores: tuple[Store, ...]) -> tuple[tuple[str, int, int], ...]:
    found = {e.arg for s in stores for e in expr.toposort(roots_of(s)) if e.op is Op.PARAM}
    return tuple(sorted(found))


def work(kernel: Kernel) -> tuple[int, int]:
    """Floating-point operations, and bytes of every element that is read or written, counted
    once."""
    flops, touched = 0, dict.fromkeys((s.slot for s in kernel.stores), 0)
    for store in kernel.stores:
        size = kernel.buffers[store.slot].size
        points = cost.extents(store_axes(store)) if store.mode == "set" else size
        touched[store.slot] = min(size, touched[store.slot] + points)
    read: dict[int, int] = {}
    for e in kernel.nodes:
        if e.op is Op.LOAD:
            points = cost.extents(expr.free_axes(e))
            read[e.arg] = min(kernel.buffers[e.arg].size, read.get(e.arg, 0) + points)
        elif e.op is Op.REDUCE and e.dtype.is_float:
            flops += cost.extents(expr.free_axes(e.src[0]) | frozenset(e.arg[1]))
        elif e.op in ALU and e.dtype.is_float and e.op not in (Op.CAST, Op.BITCAST):
            flops += cost.extents(expr.free_axes(e))
    nbytes = sum(
        n * kernel.buffers[slot].dtype.itemsize
        for part in (touched, read)
        for slot, n in part.items()
    )
    return flops, nbytes


def _name(root: Op, rows: bool, kernel: Kernel) -> str:
    value = kernel.stores[0].value
    bound: dict[Expr, None] = {}
    kind = root.name.lower() if root in (Op.SCATTER, Op.SCAN) else "elementwise"
    for e in expr.toposort([value]):
        if e.op is Op.REDUCE:
            kind = "reduce" if e is value else "rows" if rows else kind
            bound |= dict.fromkeys(e.arg[1])
    extents = [a.arg[1] for a in kernel.axes] + [a.arg[1] for a in bound]
    return "_".join([kind, "x".join(map(str, extents)) or "1"])
