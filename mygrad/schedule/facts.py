"""What can be known of values before their homes are chosen.

    gather(order, roots) -> Known
        must    nodes that live in memory whatever it costs, with the reason
        cuts    those of them that no reader may compute inside of its own loops
        own     of every node, what computing an element from its leaves takes
        facts   the same as its readers see it: a node that will be stored is a leaf to them
        inside  the nodes that one formula alone reads

The leaves of a node are the arrays and reductions that its expression ends in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mygrad.graph import Node
from mygrad.helpers import prod
from mygrad.ops import ALU, MOVEMENT, Op
from mygrad.schedule import cost

# not loop nests: whole steps of a plan, or no work at all
STEPS = frozenset({Op.HOST, Op.SORT, Op.COPY, Op.JOIN})

NEAR = 64  # steps of a formula within which all uses of a value meet

# the operations of an expression, each once, by their size and weight
Members = Mapping[tuple[int, float], frozenset[Node]]


@dataclass(frozen=True)
class Facts:
    """`count` is the number of operations in an expression, shared ones once. `operations` is what
    they cost for an element, with smaller operands counted as if computed once and shared."""

    count: int
    operations: float
    leaves: frozenset[Node]


@dataclass
class Known:
    """See the head of this file."""

    must: dict[Node, str] = field(default_factory=dict)
    cuts: set[Node] = field(default_factory=set)
    own: dict[Node, Facts] = field(default_factory=dict)
    facts: dict[Node, Facts] = field(default_factory=dict)
    inside: frozenset[Node] = frozenset()
    leaf_bytes: dict[Node, float] = field(default_factory=dict)  # read for an element; filled later


def gather(order: Sequence[Node], roots: Iterable[Node]) -> Known:
    """The facts of all nodes of a graph; `order` has operands first."""
    return _Gatherer(order, roots).known


def is_epilogue(node: Node, facts: Facts) -> bool:
    """Whether a reduction of the same size ends in this node, so that it would be stored rather
    than that."""
    return node.op in ALU and any(x.op is Op.REDUCE and x.size >= node.size for x in facts.leaves)


class _Gatherer:
    def __init__(self, order: Sequence[Node], roots: Iterable[Node]) -> None:
        self.known = Known(must=dict.fromkeys(roots, "asked for"))
        self.readers = Counter(s for node in order for s in node.src)
        self.waiting = Counter(self.readers)  # reads to come, after which members are forgotten
        self.members: dict[Node, Members] = {}
        known = self.known
        known.inside = _inside_formulas(order, frozenset(known.must))
        for node in order:
            self.force(node)
        for node in order:
            facts = known.own[node] = self.cut(node) if node.op in ALU else self.look_at(node)
            guessed = self.readers[node] > 1 and node not in known.inside
            if node in known.must or (guessed and is_epilogue(node, facts)):
                self.end(node, node)  # what reads it finds it stored
            else:
                known.facts[node] = facts
            for s in node.src:
                self.waiting[s] -= 1
                if not self.waiting[s]:
                    self.members.pop(s, None)

    def force(self, node: Node) -> None:
        """Memory for what an operation needs in memory: itself or its operands."""
        must = self.known.must
        reason = _forced(node)
        if reason:
            must.setdefault(node, reason)
            self.known.cuts.add(node)
        if node.op in STEPS or node.op is Op.STORE:
            for s in node.src:
                if s.op is not Op.BUFFER:
                    must.setdefault(s, f"{node.op.name.lower()} reads whole arrays")

    def cut(self, node: Node) -> Facts:
        """End an expression that became too long: at the node, or rather at operands that are
        smaller than it. What is known of the node afterwards."""
        known = self.known
        while True:
            facts = self.look_at(node)
            if facts.count > cost.MAX_OPERATIONS:
                reason = f"more than {cost.MAX_OPERATIONS} operations in one expression"
            elif len(facts.leaves) > cost.MAX_LEAVES:
                reason = f"more than {cost.MAX_LEAVES} arrays in one expression"
            else:
                return facts
            paths = [moved(s) for s in node.src]
            smaller = [
                p for p in paths if 2 * p[-1].size <= node.size and known.facts[p[-1]].count > 0
            ]
            path = max(smaller, key=lambda p: len(known.facts[p[-1]].leaves), default=[node])
            known.must.setdefault(path[-1], reason)
            known.cuts.add(path[-1])
            if path[-1] is node:
                return facts
            for x in path:
                self.end(x, path[-1])

    def end(self, node: Node, leaf: Node) -> None:
        """Readers of the node see an array."""
        self.known.facts[node] = Facts(0, 0.0, frozenset((leaf,)))
        self.members[node] = {}

    def look_at(self, node: Node) -> Facts:
        """What its operands make of a node."""
        computed = node.op in ALU or node.op is Op.GATHER
        if not computed and node.op not in MOVEMENT:
            source = node.op in (Op.CONST, Op.IOTA, Op.VARIABLE)
            self.members[node] = {}
            return Facts(0, 0.0, frozenset() if source else frozenset((node,)))
        members: dict[tuple[int, float], frozenset[Node]] = {}
        for s in node.src:
            for key, found in self.members[s].items():
                members[key] = members[key] | found if key in members else found
        first, *others = (self.known.facts[s].leaves for s in node.src)
        leaves = first.union(*others)
        weight = weight_of(node) * (1.0 if leaves else cost.INDEX)
        if weight or computed:
            key = (node.size, weight)
            members[key] = members.get(key, frozenset()) | {node}
        self.members[node] = members
        size = max(node.size, 1)
        operations = sum(len(m) * weight * min(1.0, n / size) for (n, weight), m in members.items())
        return Facts(sum(map(len, members.values())), operations, leaves)


def _inside_formulas(order: Sequence[Node], ends: frozenset[Node]) -> frozenset[Node]:
    """The values of which all uses meet again in one elementwise value: steps of a formula, or what
    one begins with, which nothing else reads. `ends` are read from outside.

    e = exp(x);  t = (1 - e) / (1 + e)  ->  e, 1 - e and 1 + e, which meet in t
    """
    meets: dict[Node, Node | None] = {}  # where all uses of a value meet; None: not in a formula
    depth: dict[Node, int] = {}  # of the chain of meetings
    for node in reversed(order):
        at = meets[node] = None if node in ends else meets.get(node)
        depth[node] = 0 if at is None else depth[at] + 1
        for s in node.src:
            user = node if node.op in ALU else None
            meets[s] = _meeting(meets[s], user, meets, depth) if s in meets else user
    return frozenset(node for node, at in meets.items() if at is not None)


def _meeting(
    a: Node | None, b: Node | None, meets: Mapping[Node, Node | None], depth: Mapping[Node, int]
) -> Node | None:
    """The first value in which the uses of two values meet, if it is near."""
    for _ in range(NEAR):
        if a is b or a is None or b is None:
            return a if a is b else None
        if depth[a] >= depth[b]:
            a = meets[a]
        else:
            b = meets[b]
    return None


def weight_of(node: Node) -> float:
    """Operations that an element of a node counts for. Movement is an index and costs nothing, but
    for elements that are repeated side by side: every kernel that reads them divides its axes, and
    has its lanes along none of them."""
    if node.op in MOVEMENT:
        return cost.REPEAT if _repeats(node) else 0.0
    return cost.weight(node.op)


def _repeats(node: Node) -> bool:
    """Whether a RESHAPE merges an axis that was expanded with one in front of it."""
    x = node.src[0]
    if node.op is not Op.RESHAPE or x.op is not Op.EXPAND:
        return False
    starts = {prod(node.shape[a:]) for a in range(len(node.shape))}
    small = (1,) * (len(x.shape) - len(x.src[0].shape)) + x.src[0].shape
    return any(
        n > small[a] and prod(x.shape[a:]) not in starts and prod(x.shape[:a]) > 1
        for a, n in enumerate(x.shape)
    )


def moved(node: Node) -> list[Node]:
    """The node, and what it is seen through movement, down to what is no movement."""
    path = [node]
    while path[-1].op in MOVEMENT:
        path.append(path[-1].src[0])
    return path


def _forced(node: Node) -> str:
    if node.op in STEPS:
        return f"{node.op.name.lower()} is a step of its own"
    if node.op in (Op.SCATTER, Op.SCAN, Op.STORE):
        return f"{node.op.name.lower()} writes in its own order"
    if node.op is Op.CONTIGUOUS:
        return node.arg or "contiguous() asks for memory"
    return ""
