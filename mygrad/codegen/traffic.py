"""The bytes that a nest of loops moves into each cache, and the order of loops that moves fewest.

Each access has a *footprint* inside of a loop: the bytes that it touches in one iteration. Windows
that slide over each other count once:

    X[h * 34 + w], h < 3 rows, w < 34 columns  ->  (2 * 34 + 33 + 1) elements

Going outwards from the innermost loop, footprints grow until they do not fit in the cache together.
Inside of that loop everything is fetched once. What it does not change stays where it is from
one iteration to the next; all the rest is fetched again in every iteration of the loops around it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from mygrad.codegen.actions import LoopAxis
from mygrad.codegen.tiling import Access, Nest
from mygrad.expr import Expr
from mygrad.helpers import prod
from mygrad.program import Target

NEAR = 32.0  # bytes that come from the second cache in a cycle
FAR = 8.0  # bytes that come from beyond it
MOST = 5  # loops of which all orders are tried
WORTH = 0.95  # of the traffic: another order must move less than this


def footprint(access: Access, points: dict[Expr, int]) -> int:
    """Bytes that an access touches while each axis takes so many values; other axes stand still."""
    steps = [(abs(access.strides.get(a) or 0), n) for a, n in points.items() if n > 1]
    run, runs = 1, 1  # elements next to each other, and how many such runs
    for step, n in sorted(s for s in steps if s[0]):
        if step <= run:
            run += step * (n - 1)
        else:
            runs *= n
    unknown = prod(n for a, n in points.items() if access.strides.get(a, 0) is None)
    return run * runs * unknown * access.itemsize


class Traffic:
    """Costs of the orders of the loops of a nest around a body. Footprints are kept: many orders
    have the same loops inside."""

    def __init__(self, nest: Nest, body: dict[Expr, int], target: Target) -> None:
        self.accesses = [x for x in nest.accesses if not x.stores]
        self.body = body
        self.caches = ((target.l1_bytes * 3 // 4, NEAR), (target.l2_bytes * 3 // 4, FAR))
        self.known: dict[frozenset[LoopAxis], list[int]] = {}

    def footprints(self, inside: Sequence[LoopAxis]) -> list[int]:
        """Of each access, inside of some of the loops."""
        key = frozenset(inside)
        if key not in self.known:
            points = dict(self.body)
            for p in inside:
                points[p.root] = min(points[p.root] * p.extent, p.root.arg[1])
            self.known[key] = [footprint(x, points) for x in self.accesses]
        return self.known[key]

    def cost(self, loops: Sequence[LoopAxis]) -> float:
        """Cycles to move what the loops read, outermost loop first."""
        return sum(self.moved(loops, room) / speed for room, speed in self.caches)

    def moved(self, loops: Sequence[LoopAxis], room: int) -> float:
        """Bytes that come into a cache with so much room."""
        fits = [n for n in range(len(loops) + 1) if sum(self.footprints(loops[n:])) <= room]
        total = 0.0
        for number, access in enumerate(self.accesses):
            at = min(fits, default=len(loops))
            if fits:  # what a loop does not change stays; what it changes slides along
                while at and access.strides.get(loops[at - 1].root, 0) == 0:
                    at -= 1
                at = max(at - 1, 0)
            again = prod(p.extent for p in loops[:at])
            total += self.footprints(loops[at:])[number] * float(again)
        return total


def cheapest_order(
    nest: Nest,
    loops: Sequence[LoopAxis],
    body: dict[Expr, int],
    target: Target,
    copying: Callable[[Sequence[LoopAxis]], float] = lambda _: 0.0,
) -> list[LoopAxis]:
    """The loops in the order that moves fewest bytes, or as they are if none is much better; `body`
    says how many values each axis takes inside of them, and `copying` how many cycles copies cost
    besides. Loops that change all operands stay where they are."""
    loads = [x for x in nest.accesses if not x.stores]
    free = [n for n, p in enumerate(loops) if any(x.strides.get(p.root, 0) == 0 for x in loads)]
    free = free[-MOST:]
    traffic = Traffic(nest, body, target)
    best, least = list(loops), (traffic.cost(loops) + copying(loops)) * WORTH
    for order in _orders([loops[n] for n in free]):
        taken = list(loops)
        for n, p in zip(free, order, strict=True):
            taken[n] = p
        cost = traffic.cost(taken) + copying(taken)
        if cost < least:
            best, least = taken, cost
    return best


def _orders(loops: list[LoopAxis]) -> Iterator[tuple[LoopAxis, ...]]:
    """All orders with the parts of an axis from coarse to fine."""
    for order in itertools.permutations(loops):
        pairs = itertools.combinations(order, 2)
        if all(p.root is not q.root or p.stride > q.stride for p, q in pairs):
            yield order
