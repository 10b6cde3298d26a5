"""Values that a kernel would compute more than once over the same range, under names of its own.

    out[i, j] = exp(x[i, j] + t) / add[k](exp(x[i, k] + t))

The sum and the store each compute the exponentials of row i, one over the axis k and the other one
over j. The first nest that needs them can keep them in a scratch row (the action `Keep`), and the
later ones read them there.

A *repeat* is such a value: in the nest of a reduction (`filled`) it depends on all axes that are
reduced, and for each of them a later nest has an axis of its own, of the same extent, with which it
computes the same. The reduction is done once for each point of axes that the later nests have too
(the rows). Values that only a part of a larger repeat needs are no repeats themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from mygrad.expr import Expr, free_axes, substitute, toposort
from mygrad.helpers import prod
from mygrad.kernel import Kernel, roots_of, store_axes
from mygrad.ops import ALU, Op
from mygrad.program import Target
from mygrad.schedule.cost import weight

WORTH = 6.0  # operations from which on a value is not computed again, but written and read
READ = 1.0  # operations that a load counts for, and twice as many under a condition
INNER = 4  # axes of a nest inside of the rows up to which all orders of them are tried


@dataclass(frozen=True)
class Repeat:
    """A value of a reduction's nest, and each `(value, axes)` of later nests that is the same if
    their axes take the places of `axes`."""

    filled: Expr
    value: Expr
    axes: tuple[Expr, ...]
    reads: tuple[tuple[Expr, tuple[Expr, ...]], ...]

    @property
    def size(self) -> int:
        """Elements of a row."""
        return prod(a.arg[1] for a in self.axes)

    @property
    def nbytes(self) -> int:
        """Bytes of a row."""
        return self.size * self.value.dtype.itemsize

    def __str__(self) -> str:
        axes = ", ".join(map(str, self.axes))
        return f"{self.value.op.name.lower()} over {axes}, {self.value.dtype.name}[{self.size}]"


@dataclass
class _Nest:
    """A store, or a reduction: everything it computes itself, and the axes in scope."""

    filled: Expr | None
    nodes: list[Expr]
    axes: frozenset[Expr]
    own: set[Expr] = field(init=False)

    def __post_init__(self) -> None:
        self.own = set(self.nodes)


@lru_cache(maxsize=256)
def repeats(kernel: Kernel) -> tuple[Repeat, ...]:
    """The repeats of a kernel that are worth keeping, in the order in which they are computed.

    out[i, j] = exp(x[i, j] + t) / add[k](exp(x[i, k] + t))  ->  one, exp(x[i, k] + t), axes (k,)
    """
    nodes = kernel.nodes
    if not any(weight(e.op) >= WORTH / 2 for e in nodes) or any(e.op is Op.SCAN for e in nodes):
        return ()
    nests = _nests(kernel, nodes)
    found: list[Repeat] = []
    read: set[Expr] = set()
    for n, nest in enumerate(nests):
        if nest.filled is None:
            break
        for repeat in _repeats_of(nest, nests[n + 1 :], read):
            read |= {value for value, _ in repeat.reads}
            found.append(repeat)
    return tuple(found)


def keeps(kernel: Kernel, target: Target) -> tuple[int, ...]:
    """The numbers of the repeats whose rows fit, together, in a quarter of the second cache."""
    taken: list[int] = []
    room = target.l2_bytes // 4
    for number, repeat in enumerate(repeats(kernel)):
        if repeat.nbytes <= room:
            room -= repeat.nbytes
            taken.append(number)
    return tuple(taken)


def _nests(kernel: Kernel, nodes: Sequence[Expr]) -> list[_Nest]:
    """The reductions, operands first, then the stores."""
    nests = []
    for e in nodes:
        if e.op is Op.REDUCE:
            axes = free_axes(e.src[0]) | frozenset(e.arg[1])
            nests.append(_Nest(e, own_nodes([e.src[0]]), axes))
    for store in kernel.stores:
        nests.append(_Nest(None, own_nodes(roots_of(store)), store_axes(store)))
    return nests


def own_nodes(roots: Iterable[Expr], known: Container[Expr] = ()) -> list[Expr]:
    """Everything that is computed in a nest itself, consumers first: without the bodies of its
    reductions, and without the operands of what is `known`."""
    seen: dict[Expr, None] = {}
    work = list(roots)
    while work:
        e = work.pop()
        if e not in seen:
            seen[e] = None
            if e.op is not Op.REDUCE and e not in known:
                work += e.src
    return list(seen)


def _repeats_of(nest: _Nest, later: list[_Nest], read: set[Expr]) -> Iterator[Repeat]:
    """The repeats that one reduction fills; what it reads itself it does not fill."""
    assert nest.filled is not None
    reduced = frozenset(a for a in nest.filled.arg[1] if a.arg[1] > 1)
    rows, axes = free_axes(nest.filled), tuple(sorted(reduced, key=lambda a: a.arg[0]))
    mine = toposort(nest.filled.src)[::-1]
    costly = [
        e
        for e in mine
        if e in nest.own and e.op in ALU and reduced <= free_axes(e) and _cost(e, reduced) >= WORTH
    ]
    places = [(n, names) for n in later for names in _names(axes, rows, n)] if costly else []
    hidden = _inside([e for e in costly if e in read])
    for e in costly:
        if e in hidden:
            continue
        same = [(substitute(e, dict(zip(axes, to, strict=True))), to, n) for n, to in places]
        reads = {value: to for value, to, n in same if value in n.own}
        if reads:
            hidden |= _inside([e])
            yield Repeat(nest.filled, e, axes, tuple(reads.items()))


def _names(
    axes: tuple[Expr, ...], rows: frozenset[Expr], nest: _Nest
) -> Iterator[tuple[Expr, ...]]:
    """The axes of a nest that can take the places of the given ones."""
    inner = sorted(
        (a for a in nest.axes - rows if a not in axes and a.arg[1] > 1), key=lambda a: a.arg[0]
    )
    if not rows <= nest.axes or len(inner) > INNER:
        return
    extents = [a.arg[1] for a in axes]
    for names in itertools.permutations(inner, len(axes)):
        if [a.arg[1] for a in names] == extents:
            yield names


def _inside(values: list[Expr]) -> set[Expr]:
    return set(own_nodes(values))


def _cost(e: Expr, axes: frozenset[Expr]) -> float:
    """Operations of one evaluation, without what is the same for a whole row."""
    loads = frozenset(n for n in own_nodes([e]) if n.op is Op.LOAD)
    total = READ * sum(len(n.src) for n in loads)
    for n in own_nodes([e], loads):
        if n.op in ALU and not free_axes(n).isdisjoint(axes):
            total += weight(n.op)
    return total
