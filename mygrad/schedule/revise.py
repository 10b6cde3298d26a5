"""A second look at homes: which stored values would better be computed again.

Homes are chosen value by value, consumers first, when it is not yet known what else will be stored.
So the steps of one formula can all end up in memory, each for itself cheaper to keep than to
compute from the leaves, although the one below it is stored as well (a gelu and its gradient: the
input, its exp, the sigmoid ...). Afterwards it is known: a stored elementwise value whose operands
its readers find in memory goes, if computing it from those costs less than writing and reading it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mygrad.graph import Node
from mygrad.ops import ALU, MOVEMENT, SOURCE, Op
from mygrad.schedule import cost
from mygrad.schedule.facts import weight_of
from mygrad.schedule.homes import Group, Homes

LOOKS = 4  # at most: what one takes away can make another value worth storing


def choose_homes(roots: Sequence[Node]) -> Homes:
    """The homes of all nodes, after looking again."""
    homes = Homes(roots)
    inline: frozenset[Node] = frozenset()
    for _ in range(LOOKS):
        more = _Revision(homes).inline()
        if not more:
            break
        inline |= more
        homes = Homes(roots, inline, homes.known)
    return homes


@dataclass
class _Revision:
    homes: Homes

    def inline(self) -> frozenset[Node]:
        """The values that shall not be stored. Consumers first, so that each is judged with what
        lies below it still in memory."""
        found: set[Node] = set()
        for node in reversed(self.homes.order):
            if self.may_go(node) and self.gain(node, found) > 0:
                found.add(node)
        return frozenset(found)

    def may_go(self, node: Node) -> bool:
        """Whether a node is not tiny, elementwise, and was stored to save time only."""
        homes = self.homes
        return (
            node.op in ALU
            and node.size > cost.TINY
            and node in homes.group_of
            and node not in homes.must
            and node not in homes.cuts
        )

    def gain(self, node: Node, gone: set[Node]) -> float:
        """Nanoseconds saved if the readers of a node compute it themselves; negative if one of them
        would have to compute a reduction."""
        below = self.below(node, gone)
        if below is None:
            return -1.0
        operations, leaves = below
        itemsize = node.dtype.itemsize
        total = cost.KEPT * cost.moving(node.size, itemsize)
        readers: dict[Group, list[float]] = {}
        for d in self.homes.read_by[node]:
            readers.setdefault(d.group, []).append(d.evaluations)
        for group, times in readers.items():
            computed = self.homes.inside[group]
            new = sum(weight for x, weight in operations.items() if x not in computed)
            total -= cost.computing(sum(times), new)
            total += cost.moving(max(times), itemsize, node.size)
            for leaf in leaves - self.homes.loads[group]:
                part = min(leaf.size, node.size) / node.size
                total -= cost.moving(max(times), part * leaf.dtype.itemsize, leaf.size)
        return total

    def below(self, node: Node, gone: set[Node]) -> tuple[dict[Node, float], set[Node]] | None:
        """What computing an element takes: operations with their weights, and arrays in memory.
        None if a reduction is among them that lives in a register of the kernel that stores the
        node now."""
        homes, leaves = self.homes, set()
        operations = {node: cost.weight(node.op)}
        seen = {node}
        work = list(node.src)
        while work:
            x = work.pop()
            if x in seen:
                continue
            seen.add(x)
            if (x in homes.group_of and x not in gone) or x.op is Op.BUFFER:
                leaves.add(x)
            elif x.op in ALU or x.op in MOVEMENT:
                operations[x] = weight_of(x) * min(1.0, x.size / node.size)
                work += x.src
            elif x.op not in SOURCE:
                return None
        return operations, leaves
