"""Arrays that are joined from others: the parts are computed where they shall lie.

    x0, x1 ... each padded to its place on an axis, and chosen or added there
        ->  JOIN(x0, x1, ...)                  and movement, if the axis is not the first
    SUM(a0 * b0) + SUM(a1 * b1) + ...          products that were broadcast alike
        ->  SUM(JOIN(a0, a1, ...) * JOIN(b0, b1, ...))

So a recurrent network stacks its states, and the gradients of its steps, without touching them
again; and the gradient of a weight that every step uses is one product over all steps, where a
product for each step would write and read the whole gradient every time.

A part lies in one JOIN only. Sums of products use the JOIN that their operands are in anyway, or a
run of its parts, and make a new one where there is none. What is padded counts as nothing: where
-0.0 meets the zero of a pad, the sum would be 0.0, and the JOIN keeps -0.0.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mygrad import graph
from mygrad.config import config
from mygrad.graph import Node
from mygrad.ops import ALU, MOVEMENT, Op
from mygrad.schedule.facts import STEPS
from mygrad.schedule.memory import ALIGNMENT
from mygrad.schedule.simplify import move_operand

LEAST = 8  # parts from which computing them in place pays
SMALL = 4096  # bytes that a part has at least
REUSE = 8  # reads of each operand in a product that is worth joining

Path = tuple[tuple[Op, Any], ...]  # movement, the last one first


class _Tile(NamedTuple):
    """A part of an array and where it begins on the axis."""

    start: int
    part: Node


class _Term(NamedTuple):
    """A summed product: what is multiplied, and how both were broadcast."""

    node: Node
    left: Node
    right: Node
    alike: tuple[Any, ...]
    paths: tuple[Path, Path]


@dataclass(eq=False)
class _List:
    """The parts of one JOIN."""

    parts: list[Node]


def join_parts(roots: Sequence[Node]) -> list[Node]:
    """The roots with such arrays joined; new nodes keep the user's line."""
    if config.MYGRAD_GUARD:  # every array stands alone between guard pages
        return list(roots)
    return _Joiner(roots).run()


class _Joiner:
    def __init__(self, roots: Sequence[Node]) -> None:
        self.roots = roots
        self.order = graph.toposort(roots)
        self.number = {node: i for i, node in enumerate(self.order)}
        self.readers = Counter(s for node in self.order for s in node.src)
        self.readers.update(roots)
        whole = (s for n in self.order if n.op in STEPS or n.op is Op.STORE for s in n.src)
        self.fixed = {*roots, *whole}  # these have memories of their own
        self.list_of: dict[Node, _List] = {}
        self.joined: dict[Node, tuple[_List, Node]] = {}  # what is joined: its parts, one of them
        self.sums: dict[Node, tuple[list[Node], list[list[_Term]]]] = {}

    def run(self) -> list[Node]:
        """See `join_parts`."""
        self.look()
        if not self.joined and not self.sums:
            return list(self.roots)
        return graph.rewrite(self.roots, self.new)

    def look(self) -> None:
        """Find what is joined, then the sums that can use it. Consumers first: of sums of sums the
        largest."""
        inner: set[Node] = set()
        for node in reversed(self.order):
            if node not in inner and node.op in (Op.ADD, Op.WHERE) and node not in self.fixed:
                inner |= self.find_join(node)
        for node in reversed(self.order):
            if node.op is Op.ADD and node not in inner and node not in self.joined:
                inner |= self.find_sum(node)

    def new(self, node: Node, done: dict[Node, Node]) -> Node:
        """What takes the place of a node."""
        if node in self.joined:
            return self.join(node, done)
        if node in self.sums:
            return self.sum(node, done)
        if node.op is Op.PERMUTE and node.src[0] in self.sums:
            return self.sum(node.src[0], done, node.arg)
        return graph.on_operands(node, done)

    def leaves(self, node: Node) -> tuple[list[Node], set[Node]]:
        """The operands of a sum of many, in order, and the additions below it that nothing else
        reads."""
        found, inner, work = [], set(), list(reversed(node.src))
        while work:
            x = work.pop()
            if x.op is Op.ADD and self.readers[x] == 1:
                inner.add(x)
                work += reversed(x.src)
            else:
                found.append(x)
        return found, inner

    # --- arrays that are tiled --------------------------------------------------------------------

    def find_join(self, node: Node) -> set[Node]:
        """Note a node that is joined from parts; the nodes in between."""
        if node.op is Op.ADD:
            leaves, inner = self.leaves(node)
            found = _padded(leaves)
        else:
            found, inner = self.chosen(node)
        if found is None:
            return inner if node.op is Op.ADD else set()
        axis, tiles = found
        tiles.sort()
        extent = node.shape[axis] // len(tiles)
        if any(t.start != i * extent for i, t in enumerate(tiles)):
            return inner
        parts = [_below(t.part) for t in tiles]
        if extent * len(tiles) == node.shape[axis] and self.may_join(parts):
            self.joined[node] = self.new_list(parts), tiles[0].part
        return inner

    def chosen(self, node: Node) -> tuple[tuple[int, list[_Tile]] | None, set[Node]]:
        """The parts that a tree of WHEREs chooses from by the place on one axis."""
        first = _halves(node)
        if first is None:
            return None, set()
        axis, tiles, inner = first[0], [], {node}
        work = [(0, first[1]), (first[2], first[3])]
        while work:
            start, x = work.pop()
            halves = _halves(x) if self.readers[x] == 1 else None
            if halves is not None and halves[0] == axis:
                inner.add(x)
                work += [(start, halves[1]), (start + halves[2], halves[3])]
            else:
                tiles.append(_Tile(start, x))
        return (axis, tiles), inner

    def may_join(self, parts: Sequence[Node]) -> bool:
        """Whether these can be computed in one memory: alike, by kernels, not asked for
        themselves, and nowhere else yet."""
        first = parts[0]
        nbytes = first.size * first.dtype.itemsize
        return (
            len(set(parts)) == len(parts) >= LEAST
            and nbytes >= SMALL
            and nbytes % ALIGNMENT == 0
            and all(
                (p.op in ALU or p.op is Op.REDUCE)
                and p.shape == first.shape
                and p.dtype is first.dtype
                and p.device == first.device
                and p not in self.fixed
                and p not in self.list_of
                for p in parts
            )
        )

    def new_list(self, parts: list[Node]) -> _List:
        made = _List(parts)
        self.list_of.update(dict.fromkeys(parts, made))
        return made

    def join(self, node: Node, done: dict[Node, Node]) -> Node:
        """The joined array in the place of a node."""
        made, part = self.joined[node]
        axis = next(a for a, n in enumerate(node.shape) if n != part.shape[a])
        x = graph.join([done[p] for p in made.parts])
        x = graph.move(Op.RESHAPE, x, (len(made.parts), *part.shape))
        axes = (*range(1, axis + 1), 0, *range(axis + 1, len(node.shape) + 1))
        return graph.move(Op.RESHAPE, graph.move(Op.PERMUTE, x, axes), node.shape)

    # --- sums of products -------------------------------------------------------------------------

    def find_sum(self, node: Node) -> set[Node]:
        """Note a sum of many products that are broadcast alike; the additions in it."""
        leaves, inner = self.leaves(node)
        alike: dict[tuple[Any, ...], list[_Term]] = defaultdict(list)
        for leaf in leaves:
            term = self.term(leaf)
            if term is not None:
                alike[term.alike].append(term)
        found = [terms for terms in alike.values() if self.in_order(terms, node)]
        taken = {t.node for terms in found for t in terms}
        if found and node not in self.sums:
            self.sums[node] = [x for x in leaves if x not in taken], found
        return inner

    def term(self, leaf: Node) -> _Term | None:
        """What a sum of a product multiplies, if it reads its operands many times."""
        if leaf.op is not Op.REDUCE or leaf.arg[0] is not Op.ADD or self.readers[leaf] > 1:
            return None
        x = leaf.src[0]
        if x.op is not Op.MUL or self.readers[x] > 1:
            return None
        pair = sorted(map(_path, x.src), key=lambda found: repr((found[1], found[0].shape)))
        (left, lifted), (right, raised) = pair
        if any(op not in _LIFT for op, _ in (*lifted, *raised)):
            return None
        if any(p.size * REUSE > x.size for p in (left, right)):
            return None
        alike = (leaf.arg, x.shape, x.dtype, lifted, left.shape, raised, right.shape)
        return _Term(leaf, left, right, alike, (lifted, raised))

    def in_order(self, terms: list[_Term], root: Node) -> bool:
        """Whether the operands on both sides can be runs of JOINs; sorts the terms accordingly, and
        makes the JOINs that are missing."""
        sides = [[t.left for t in terms], [t.right for t in terms]]
        lists = [self.list_of.get(side[0]) for side in sides]
        known = next((i for i in (0, 1) if lists[i] is not None), None)
        if known is None:
            terms.sort(key=lambda t: self.number[t.left])
        else:
            parts = lists[known].parts  # type: ignore[union-attr]
            place = {p: i for i, p in enumerate(parts)}
            if any(p not in place for p in sides[known]):
                return False
            terms.sort(key=lambda t: place[t[1 + known]])
        sides = [[t.left for t in terms], [t.right for t in terms]]
        for side, made in zip(sides, lists, strict=True):
            if made is None and not self.may_join(side):
                return False
            if made is not None and not self.is_run(side, made, root):
                return False
        if lists == [None, None] and set(sides[0]) & set(sides[1]):
            return False
        for side, made in zip(sides, lists, strict=True):
            if made is None:
                self.new_list(side)
        return True

    def is_run(self, side: list[Node], made: _List, root: Node) -> bool:
        """Whether these are neighbours in a JOIN, none of whose parts needs the sum."""
        start = made.parts.index(side[0]) if side[0] in made.parts else -1
        return (
            len(side) >= LEAST
            and made.parts[start : start + len(side)] == side
            and all(self.number[p] < self.number[root] for p in made.parts)
        )

    def sum(self, node: Node, done: dict[Node, Node], order: Sequence[int] = ()) -> Node:
        """The sum in the place of a node, or of that node with its axes in another order: products
        are computed as they are read."""
        rest, found = self.sums[node]
        parts = [done[x] for x in rest]
        for terms in found:
            left = self.run_of([t.left for t in terms], terms[0].paths[0], done)
            right = self.run_of([t.right for t in terms], terms[0].paths[1], done)
            axes = (0, *(a + 1 for a in terms[0].node.arg[1]))
            product = graph.alu(Op.MUL, left, right)
            parts.append(graph.reduce(Op.ADD, product, axes))
        if order:
            moved = [graph.move(Op.PERMUTE, part, tuple(order)) for part in parts]
            parts = [move_operand(x) if x.op is Op.PERMUTE else x for x in moved]
        total = parts[0]
        for part in parts[1:]:
            total = graph.alu(Op.ADD, total, part)
        return total

    def run_of(self, side: list[Node], path: Path, done: dict[Node, Node]) -> Node:
        """A run of the parts of a JOIN, broadcast as each of them was."""
        parts = self.list_of[side[0]].parts
        start, count = parts.index(side[0]), len(side)
        x = graph.join([done[p] for p in parts])
        x = graph.move(Op.SHRINK, x, ((start, start + count), *((0, n) for n in x.shape[1:])))
        for op, arg in reversed(path):
            if op is Op.EXPAND:  # new axes stand behind that of the parts
                new = len(arg) + 1 - len(x.shape)
                x = graph.move(Op.RESHAPE, x, (count, *(1,) * new, *x.shape[1:]))
            x = graph.move(op, x, _LIFT[op](count, arg))
        return x


# movement of each part as movement of all
_LIFT = {
    Op.RESHAPE: lambda count, arg: (count, *arg),
    Op.EXPAND: lambda count, arg: (count, *arg),
    Op.PERMUTE: lambda count, arg: (0, *(a + 1 for a in arg)),
}


def _path(node: Node) -> tuple[Node, Path]:
    """What a node moves, and how."""
    path = []
    while node.op in MOVEMENT:
        path.append((node.op, node.arg))
        node = node.src[0]
    return node, tuple(path)


def _below(node: Node) -> Node:
    """The node that this one only reshapes."""
    while node.op is Op.RESHAPE:
        node = node.src[0]
    return node


def _padded(leaves: Sequence[Node]) -> tuple[int, list[_Tile]] | None:
    """The parts of a sum of arrays that are padded along one axis."""
    if len(leaves) < LEAST or any(x.op is not Op.PAD for x in leaves):
        return None
    axes = {a for x in leaves for a, widths in enumerate(x.arg) if widths != (0, 0)}
    shapes = {x.src[0].shape for x in leaves}
    if len(axes) != 1 or len(shapes) != 1:
        return None
    axis = axes.pop()
    return axis, [_Tile(x.arg[axis][0], x.src[0]) for x in leaves]


def _halves(node: Node) -> tuple[int, Node, int, Node] | None:
    """The axis along which a WHERE chooses between two arrays, the first one, its extent, the
    second one."""
    if node.op is not Op.WHERE:
        return None
    condition, left, right = node.src
    if left.op is not Op.PAD or right.op is not Op.PAD:
        return None
    axes = {a for x in (left, right) for a, widths in enumerate(x.arg) if widths != (0, 0)}
    if len(axes) != 1:
        return None
    axis = axes.pop()
    m, n = left.src[0].shape[axis], right.src[0].shape[axis]
    if left.arg[axis] != (0, n) or right.arg[axis] != (m, 0):
        return None
    column = tuple(m + n if a == axis else 1 for a in range(len(node.shape)))
    x = condition.src[0] if condition.op is Op.EXPAND else condition
    if x.shape != column or not _is_before(_below(x), m):
        return None
    return axis, left.src[0], m, right.src[0]


def _is_before(node: Node, m: int) -> bool:
    """Whether this is i < m."""
    if node.op is not Op.LT:
        return False
    place, bound = node.src
    return place.op is Op.IOTA and bound.op is Op.CONST and bound.arg == m
