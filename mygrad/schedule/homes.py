"""Where does each value live? The choice of homes, which *is* scheduling.

The graph is visited consumers first. When a node is reached, every place that reads it is known as
a *demand*: which kernel, at which index over the kernel's axes, under which condition, inside which
loops. From the demands follow the homes it can have:

    inline     computed wherever it is read: movement always, elementwise values when cheaper
    register   a reduction computed inside the loops of the one kernel that reads it, when each
               of its elements belongs to one point of the kernel's outer axes (softmax, norms,
               epilogues of a matmul)
    buffer     memory: the node is the root of a kernel of its own, or one more output of a
               kernel that computes it anyway

Every kernel keeps the reason why it exists. The numbers behind the choices stand in cost.py.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from mygrad import expr, movement
from mygrad.expr import Expr
from mygrad.graph import Node, toposort
from mygrad.helpers import Shape, prod, strides_of
from mygrad.ops import MOVEMENT, SOURCE, Op
from mygrad.schedule import cost
from mygrad.schedule.facts import STEPS, Known, gather, is_epilogue

Index = tuple[Expr, ...]
MEMO = 1 << 14  # reads whose questions are answered once: layers and steps of time ask the same


@dataclass(eq=False)
class Group:
    """A kernel being formed. `index` says which element of `root` a point of `axes` computes;
    `outputs` maps every stored node to its index over the axes; `reads` are the groups whose
    results it loads."""

    root: Node
    axes: tuple[Expr, ...]
    index: Index
    reason: str
    outputs: dict[Node, Index] = field(default_factory=dict)
    reads: set[Group] = field(default_factory=set)
    number: int = 0  # the bit of this group in `above`
    above: int = 0  # the groups that read this one, directly or not
    rows: list[frozenset[Expr]] = field(
        default_factory=list
    )  # axes of inner reductions, a nested chain
    heavy: int = 0  # elements that a reduction reads which reads its operands many times
    initial: bool = False  # computes the first operand of a SCATTER, in the place of the result
    fresh_axes: int = 0

    def new_axes(self, shape: Iterable[int]) -> Index:
        """An unused axis per extent, or the constant 0 for extents of 1."""
        made = []
        for extent in shape:
            made.append(expr.const(0) if extent == 1 else expr.axis(self.fresh_axes, extent))
            self.fresh_axes += extent != 1
        return tuple(made)

    def read(self, other: Group) -> None:
        """Note that this group loads what another computes; that one, and all that it reads, then
        have this one and its readers above them."""
        self.reads.add(other)
        work = [(other, self.above | 1 << self.number)]
        while work:
            group, above = work.pop()
            if above & ~group.above:
                group.above |= above
                work += [(g, group.above) for g in group.reads]

    def depends_on(self, others: Iterable[Group]) -> bool:
        """Whether this group reads, directly or not, what one of the others computes."""
        return any(g is self or g.above >> self.number & 1 for g in others)


@dataclass(frozen=True)
class Demand:
    """One read of a node: by which group, at which index, under which condition, inside which
    loops.

    `combiner` is the reduction operator if only movement stands between this read and that
    reduction.
    """

    group: Group
    index: Index
    conditional: bool
    scope: frozenset[Expr]
    combiner: Op | None = None

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.group, self.index, self.conditional, self.scope, self.combiner))

    @cached_property
    def evaluations(self) -> float:
        """How often a node is computed for this read of it, if that is not of memory."""
        return _evaluations(self.index, self.scope, self.group.axes)


class Homes:
    """The result: `group_of` maps every node that lives in a buffer to the group that computes it;
    `groups` holds all groups, in no order."""

    def __init__(
        self,
        roots: Sequence[Node],
        inline: frozenset[Node] = frozenset(),
        known: Known | None = None,
    ) -> None:
        self.roots = frozenset(roots)
        self.inline = inline  # elementwise values that shall not be stored
        self.order = toposort(roots)
        self.readers = Counter(s for node in self.order for s in node.src)
        self.known = gather(self.order, roots) if known is None else known
        self.must, self.facts, self.own = self.known.must, self.known.facts, self.known.own
        self.cuts = set(self.known.cuts)
        # each demand once, in order of arrival
        self.demands: dict[Node, dict[Demand, None]] = defaultdict(dict)
        self.group_of: dict[Node, Group] = {}
        self.groups: list[Group] = []
        # of what is stored: its reads by other kernels; of kernels: what they read of it
        self.read_by: dict[Node, list[Demand]] = {}
        self.loads: dict[Group, set[Node]] = defaultdict(set)
        self.inside: dict[Group, set[Node]] = defaultdict(set)  # what they compute
        for node in reversed(self.order):
            if node.op not in SOURCE or (node in self.must and node.op is not Op.BUFFER):
                self._place(node)
        self._order_stores()
        self._merge_siblings()

    # --- one node ---------------------------------------------------------------------------------

    def _place(self, node: Node) -> None:
        demands = list(self.demands.pop(node, {}))
        if node in self.must:
            self._store(node, demands, self.must[node])
        elif node.op in MOVEMENT:
            self._pass_on(node, demands)
        elif node.op is Op.REDUCE:
            self._place_reduce(node, demands)
        else:
            self._place_elementwise(node, demands)

    def _place_elementwise(self, node: Node, demands: list[Demand]) -> None:
        times = sum(d.evaluations for d in demands)
        once = times <= node.size and len({d.group for d in demands}) == 1
        once = once and not self._orphans_cost(node, demands)
        if self._is_narrowed_sum(node) and not self._stays_in_register(node.src[0], demands):
            self.cuts.add(node)
            self._store(node, demands, "a reduction that is stored as it is rounded")
            return
        if once or node in self.inline or _widens(node):
            self._pass_on(node, demands)
            return
        inline, stored = self._inline_cost(node, demands), self._stored_cost(node, demands)
        if inline <= stored:
            self._pass_on(node, demands)
        else:
            self._store(
                node,
                demands,
                f"read {times / max(node.size, 1):.3g} times an element: keeping it "
                f"costs {stored / 1e3:.3g} us, computing it again {inline / 1e3:.3g} us",
            )

    def _inline_cost(self, node: Node, demands: list[Demand]) -> float:
        """Every reader computes it from its leaves. Reductions among those that could have ended in
        this node must then be stored instead."""
        total = sum(self._again(node, mine) for mine in _by_group(demands).values())
        return total + self._orphans_cost(node, demands)

    def _orphans_cost(self, node: Node, demands: list[Demand]) -> float:
        """What storing the reductions costs that could have ended in this node, if it is computed
        at several places."""
        alone = [x for x in self.own[node].leaves if x.op is Op.REDUCE and x in self.known.inside]
        orphans = [x for x in alone if x.size >= node.size]
        if not orphans or self._one_row_kernel(demands, node):
            return 0.0
        return sum(cost.LAUNCH + cost.moving(x.size, x.dtype.itemsize) for x in orphans)

    def _again(self, node: Node, demands: list[Demand]) -> float:
        """Computing the node in one kernel for these demands; what it reads stays in cache between
        them."""
        times = [d.evaluations for d in demands]
        return cost.computing(sum(times), self.own[node].operations) + cost.moving(
            max(times), self._leaf_bytes(node), node.size
        )

    def _leaf_bytes(self, node: Node) -> float:
        """Bytes read to compute an element from its leaves."""
        found = self.known.leaf_bytes.get(node)
        if found is None:
            size = max(node.size, 1)
            found = sum(min(x.size, size) / size * x.dtype.itemsize for x in self.own[node].leaves)
            self.known.leaf_bytes[node] = found
        return found

    def _stored_cost(self, node: Node, demands: list[Demand]) -> float:
        """One kernel computes and writes it, the others read it."""
        readers = _by_group(demands)
        home = self._home_group(node, demands)
        total = cost.moving(node.size, node.dtype.itemsize)
        if home is not None:
            mine = readers.pop(home.group)
            total += self._again(node, mine) + self._orphans_cost(node, mine)
        elif is_epilogue(node, self.own[node]):
            total += cost.computing(node.size, self.own[node].operations)
        else:
            total += cost.LAUNCH + cost.computing(node.size, self.own[node].operations)
            total += cost.moving(node.size, self._leaf_bytes(node))
        reads = [max(d.evaluations for d in mine) for mine in readers.values()]
        return total + sum(cost.moving(n, node.dtype.itemsize, node.size) for n in reads)

    def _one_row_kernel(self, demands: list[Demand], node: Node) -> bool:
        return (
            len({(d.group, d.index) for d in demands}) == 1
            and _covered(demands[0], node) is not None
        )

    def _place_reduce(self, node: Node, demands: list[Demand]) -> None:
        if self._merges(node, demands):
            self._pass_on(node, demands)
            return
        groups = {d.group for d in demands}
        if len(groups) == 1:
            why_not = self._why_not_register(node, demands)
            if why_not is None:
                self._enter_rows(node, demands[0])
                self._pass_on(node, demands[:1])
                return
        else:
            why_not = f"{len(groups)} kernels read it"
        self._store(node, demands, f"a reduction that cannot stay in registers: {why_not}")

    def _is_narrowed_sum(self, node: Node) -> bool:
        """Whether a value is a reduction rounded to a narrower type, and nothing else reads it."""
        x = node.src[0]
        narrow = node.op is Op.CAST and node.dtype.itemsize < x.dtype.itemsize
        return narrow and x.op is Op.REDUCE and self.readers[x] == 1

    def _stays_in_register(self, node: Node, demands: list[Demand]) -> bool:
        """Whether one kernel reads a reduction, so that it can compute it in its own loops."""
        one = len({d.group for d in demands}) == 1
        return one and self._why_not_register(node, demands) is None

    def _merges(self, node: Node, demands: list[Demand]) -> bool:
        """A sum of sums, with at most zero padding between them, is one sum."""
        if len(demands) != 1 or demands[0].combiner is not node.arg[0]:
            return False
        only_sums = node.arg[0] is Op.ADD or not demands[0].conditional
        again = cost.AGAIN_HEAVY if self._is_heavy(node) else cost.AGAIN
        return only_sums and cost.extents(demands[0].scope) <= again * node.size

    def _why_not_register(self, node: Node, demands: list[Demand]) -> str | None:
        first = demands[0]
        if any(d.index != first.index for d in demands):
            return "it is read at several places"
        rows = _covered(first, node)
        if rows is None:
            return "its elements would be computed again and again in its reader's loops"
        group = first.group
        if not _joinable(group):
            return f"{group.root.op.name.lower()} runs in its own loops"
        if len(rows) < len(group.axes):
            if cost.extents(rows) < cost.EPILOGUE_ROWS and _work(node) > cost.SMALL:
                return f"only {cost.extents(rows)} rows to share among threads"
            if group.heavy > cost.ROW_SUM * _work(node):
                return "a product that holds it would have to go row by row"
        elif node.op is Op.REDUCE and self._is_heavy(node) and group.heavy:
            return "its reader already holds a large reduction"
        if not _nested(rows, group.rows):
            return "its rows cut across the rows of another reduction"
        return None

    def _is_heavy(self, node: Node) -> bool:
        leaves = self.facts[node.src[0]].leaves
        return _work(node) > 2 * max((x.size for x in leaves), default=0)

    def _enter_rows(self, node: Node, demand: Demand) -> None:
        rows = _covered(demand, node)
        assert rows is not None
        demand.group.rows.append(rows)
        if node.op is Op.REDUCE and len(rows) == len(demand.group.axes):
            demand.group.heavy = self._is_heavy(node) * _work(node)

    # --- buffers ----------------------------------------------------------------------------------

    def _store(self, node: Node, demands: list[Demand], reason: str) -> None:
        home = self._home_group(node, demands)
        if home is not None:
            group = home.group
            self._enter_rows(node, home)
            group.outputs[node] = home.index
            mine = [home] if node.op is Op.REDUCE else [d for d in demands if d.group is group]
        else:
            group = self._new_group(
                node, reason, node.src[1].shape if node.op is Op.SCATTER else node.shape
            )
            mine = [Demand(group, group.index, False, frozenset(group.axes))]
        self.group_of[node] = group
        self.read_by[node] = [d for d in demands if d.group is not group]
        for d in self.read_by[node]:
            d.group.read(group)
            self.loads[d.group].add(node)
        if node.op not in STEPS and node.op not in SOURCE:
            self._pass_on(node, mine)
        elif node.op in STEPS:
            for s in node.src:
                self.demands[s][Demand(group, (), True, frozenset())] = None
        if node.op is Op.SCATTER:
            first = self._new_group(
                node, "a scatter starts from a copy of its first operand", node.shape
            )
            first.initial = True
            group.read(first)
            mine = [Demand(first, first.index, False, frozenset(first.axes))]
            self.demands[node.src[0]].update(dict.fromkeys(mine))

    def _new_group(self, node: Node, reason: str, shape: Shape) -> Group:
        group = Group(node, (), (), reason, number=len(self.groups))
        if node.op not in STEPS:
            group.index = group.new_axes(shape)
            group.axes = tuple(i for i in group.index if i.op is Op.AXIS)
        group.outputs[node] = group.index
        group.heavy = self._is_heavy(node) * _work(node) if node.op is Op.REDUCE else 0
        self.groups.append(group)
        return group

    def _home_group(self, node: Node, demands: list[Demand]) -> Demand | None:
        """A demand at which some kernel computes all of the node anyway, so that storing it there
        costs one write; and which does not make kernels depend on each other in a circle."""
        if node in self.cuts or node.size == 0:
            return None
        readers = _by_group(demands)
        for group, mine in readers.items():
            others = set(readers) - {group}
            home = self._home_in(node, mine)
            if home is not None and not (others and group.depends_on(others)):
                return home
        return None

    def _home_in(self, node: Node, demands: list[Demand]) -> Demand | None:
        """A demand of one group at which it can store the node. A reduction must be read there
        only; anything else is computed again at the other places, so that those must be few."""
        if node.op is Op.REDUCE:
            return demands[0] if self._why_not_register(node, demands) is None else None
        if len(demands) > cost.PLACES:
            return None
        return next((d for d in demands if self._why_not_register(node, [d]) is None), None)

    # --- after: what the visit could not see ------------------------------------------------------

    def _order_stores(self) -> None:
        """A STORE into a buffer runs after everything that reads the buffer's old content."""
        for node in self.order:
            if node.op is Op.STORE:
                mine = self.group_of[node]
                for group in {d.group for d in self.demands[node.src[0]]} - {mine}:
                    mine.read(group)

    def _merge_siblings(self) -> None:
        """Reductions over the same loops that read the same array become outputs of one kernel."""
        readers: dict[Group, set[Group]] = defaultdict(set)
        for group in self.groups:
            for other in group.reads:
                readers[other].add(group)
        # reductions that kernels begin with, by their loops and an array that they read
        kept: dict[tuple[Shape, Shape, tuple[int, ...], Node], list[Group]] = defaultdict(list)
        number = {group: i for i, group in enumerate(self.groups)}
        gone: set[Group] = set()
        for group in self.groups:
            root = group.root
            if root.op is not Op.REDUCE or group.initial or group.heavy:
                continue
            leaves = self.facts[root.src[0]].leaves
            large = [x for x in leaves if x.size * 2 >= _work(root)]
            places = [kept[root.shape, root.src[0].shape, root.arg[1], x] for x in large]
            near = {k for place in places for k in place[-cost.SIBLINGS :]}
            ordered = sorted(near, key=number.__getitem__)  # sets of groups have no order
            target = next((k for k in ordered if _independent(k, group)), None)
            if target is not None:
                self._absorb(target, group, readers)
                gone.add(group)
            else:
                for place in places:
                    place.append(group)
        self.groups = [g for g in self.groups if g not in gone]

    def _absorb(self, target: Group, group: Group, readers: dict[Group, set[Group]]) -> None:
        target.outputs.update(group.outputs)
        target.above |= group.above
        for other in target.reads | group.reads:
            target.read(other)
        target.rows += group.rows
        for node in group.outputs:
            self.group_of[node] = target
        for other in group.reads:
            readers[other].remove(group)
            readers[other].add(target)
        for other in readers.pop(group, ()):
            other.reads.remove(group)
            other.reads.add(target)
            readers[target].add(other)

    # --- what reading a node demands of its operands ----------------------------------------------

    def _pass_on(self, node: Node, demands: Iterable[Demand]) -> None:
        for d in demands:
            self.inside[d.group].add(node)
            for source, demand in _operand_demands(node, d):
                self.demands[source].setdefault(demand)

    def add_copy(self, copy: Node, reader: Group) -> None:
        """Give `copy`, a padded copy of something that is in memory, a buffer and a group."""
        if copy not in self.group_of:
            name = reader.root.op.name.lower()
            reason = f"a zero-padded copy, so that {name} reads without conditions"
            self.group_of[copy] = self._new_group(copy, reason, copy.shape)


def _independent(a: Group, b: Group) -> bool:
    return not a.depends_on({b}) and not b.depends_on({a})


def _joinable(group: Group) -> bool:
    return group.root.op not in STEPS and group.root.op not in (Op.SCATTER, Op.SCAN, Op.STORE)


def _work(node: Node) -> int:
    """Elements a reduction reads."""
    return node.src[0].size if node.op is Op.REDUCE else node.size


def _by_group(demands: Iterable[Demand]) -> dict[Group, list[Demand]]:
    groups: dict[Group, list[Demand]] = {}
    for d in demands:
        groups.setdefault(d.group, []).append(d)
    return groups


@lru_cache(maxsize=MEMO)
def _evaluations(index: Index, scope: frozenset[Expr], axes: Index) -> float:
    free = frozenset().union(*(expr.free_axes(i) for i in index)) if index else frozenset()
    own = cost.extents(free)
    inside_reduction = any(a in free and a not in axes for a in scope)
    return cost.evaluations(own, cost.extents(scope | free)) if inside_reduction else own


def flat(index: Sequence[Expr], shape: Shape) -> Expr:
    """The row-major element number of an index."""
    total = expr.const(0)
    for i, step in zip(index, strides_of(shape), strict=True):
        total = total + i * step
    return total


def _covered(d: Demand, node: Node) -> frozenset[Expr] | None:
    """The group axes whose points are the elements of the node, one to one; None where it is not
    so."""
    if d.conditional or (not d.index and node.shape):
        return None
    axes = _axes_in_order(d.index, node.shape)
    return None if axes is None or any(a not in d.group.axes for a in axes) else axes


@lru_cache(maxsize=MEMO)
def _axes_in_order(index: Index, shape: Shape) -> frozenset[Expr] | None:
    """The axes of an index whose points are the elements of an array, one to one and in order."""
    terms, constant = expr.linear(flat(index, shape))
    if constant or any(t.op is not Op.AXIS for t in terms):
        return None
    reach = 1
    for axis, step in sorted(terms.items(), key=lambda item: item[1]):
        if step != reach:
            return None
        reach *= axis.arg[1]
    return frozenset(terms) if reach == max(prod(shape), 1) else None


def _widens(node: Node) -> bool:
    """Whether a value is a narrower float, widened: then that is what may be stored."""
    if node.op is not Op.CAST or not (node.dtype.is_float and node.src[0].dtype.is_float):
        return False
    return node.dtype.itemsize > node.src[0].dtype.itemsize


def _nested(rows: frozenset[Expr], chain: list[frozenset[Expr]]) -> bool:
    return all(rows <= other or other <= rows for other in chain)


def _operand_demands(node: Node, d: Demand) -> list[tuple[Node, Demand]]:
    if node.op in MOVEMENT:
        index, valid = movement.index(node.op, node.src[0].shape, node.arg, d.index)
        conditional = d.conditional or valid is not None
        return [(node.src[0], Demand(d.group, index, conditional, d.scope, d.combiner))]
    if node.op is Op.REDUCE:
        axes = node.arg[1]
        bound = d.group.new_axes(node.src[0].shape[a] for a in axes)
        index = insert(d.index, axes, bound)
        free = frozenset().union(*(expr.free_axes(i) for i in index))
        return [(node.src[0], Demand(d.group, index, d.conditional, free, node.arg[0]))]
    if node.op is Op.SCAN:
        return [(node.src[0], _apart(d))]
    if node.op is Op.GATHER:
        picked = _opaque(d.index)
        index = (*d.index[: node.arg], picked, *d.index[node.arg + 1 :])
        return [
            (node.src[1], _apart(d)),
            (node.src[0], Demand(d.group, index, True, d.scope)),
        ]
    if node.op is Op.SCATTER:
        return [(s, _apart(d)) for s in node.src[1:]]
    apart = _apart(d)
    return [(s, apart) for s in node.src]


def _apart(d: Demand) -> Demand:
    """The same read, with more than movement between it and a reduction. As a rule it is that
    already: a formula passes one demand on from step to step."""
    return d if d.combiner is None else Demand(d.group, d.index, d.conditional, d.scope)


def _opaque(index: Index) -> Expr:
    """Some number that depends on all of an index: what a gather reads at, before it is known."""
    total = expr.const(0)
    for n, i in enumerate(index):
        total = total + i * (2 * n + 1)
    return expr.load("gathered", expr.dt.index, total)


def insert(index: Index, axes: Sequence[int], bound: Index) -> Index:
    """An index with `bound` inserted so that it stands at positions `axes` of the result."""
    result = list(index)
    for a, b in zip(axes, bound, strict=True):
        result.insert(a, b)
    return tuple(result)
