"""The tree of scopes that lowering fills: what stands where, before loops are written out.

    Scope = loop, phases, nests, leaves      one per loop of a nest (and one for the whole function)
    Phase = lets, accumulators, nests of reductions, combines

The phases of a scope are what must run one after the other: phase p + 1 uses reductions of phase p.
After the phases come the nests of stores, then the updates and stores of the scope itself. All
values are computed before any store of the same point, so loads see what was there before the
kernel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from mygrad.codegen.actions import LoopAxis, ScheduleError
from mygrad.codegen.stmt import Running, Scratch, Stmt, Update
from mygrad.domain import NONE, Conditions
from mygrad.dtype import DType
from mygrad.expr import Expr, free_axes
from mygrad.ops import Op


@dataclass(slots=True)
class Pending:
    """An accumulator whose tile axes are known when it is emitted; `own` are those of its
    reduction."""

    name: str
    dtype: DType
    op: Op
    own: tuple[Expr, ...]


@dataclass(slots=True)
class Phase:
    """What may run together before the next phase."""

    lets: list[Stmt] = field(default_factory=list)
    accumulators: list[Pending] = field(default_factory=list)
    nests: dict[LoopAxis, Scope] = field(default_factory=dict)
    combines: list[Stmt] = field(default_factory=list)


class Scope:
    """The inside of one loop of a nest. `path` are the scopes around it and itself, outermost
    first."""

    def __init__(self, loop: LoopAxis | None = None, parent: Scope | None = None) -> None:
        self.loop = loop
        self.path: tuple[Scope, ...] = (*parent.path, self) if parent else (self,)
        self.depth = len(self.path) - 1
        self.positions: dict[Expr, int] = dict(parent.positions) if parent else {}
        self.phases: list[Phase] = [Phase()]
        self.nests: dict[LoopAxis, Scope] = {}
        self.leaves: list[Stmt] = []
        self.needed: list[Conditions] = []  # of each leaf: outside of them it has no effect
        self.copies: list[tuple[Scratch, dict[LoopAxis, Scope]]] = []  # staged operands
        self.values: dict[Expr, Expr] = {}  # expression -> the name that holds it
        self.phase_of: dict[Expr, int] = {}
        if loop is not None:
            self.positions[loop.axis] = self.depth
            if loop.kind == "vector" and any(
                s.loop and s.loop.kind == "vector" for s in self.path[:-1]
            ):
                raise ScheduleError(f"{loop.name}: a computation would run over two vector axes")

    def phase(self, number: int) -> Phase:
        """Phase `number`, made if need be."""
        while len(self.phases) <= number:
            self.phases.append(Phase())
        return self.phases[number]

    def add(self, leaf: Stmt, needed: Conditions = NONE) -> None:
        """Put a statement at the end; outside of one of the conditions it has no effect."""
        self.leaves.append(leaf)
        self.needed.append(needed)

    def conditions(self) -> Conditions:
        """The conditions outside of which nothing in this scope has an effect. Whatever else
        stands here serves its leaves alone; a scan goes on, whether they are needed or not."""
        lets = (s for phase in self.phases for s in phase.lets)
        if any(isinstance(s, Update | Running) for s in lets):
            return NONE
        found = [*self.needed, *(s.conditions() for s in self.nests.values())]
        return frozenset.intersection(*found) if found else NONE

    def level(self, e: Expr) -> int:
        """The depth of the outermost scope of the path where all free axes of `e` are bound."""
        return max((self.positions[a] for a in free_axes(e)), default=0)

    def inside(self, loops: Iterable[LoopAxis], nests: dict[LoopAxis, Scope]) -> Scope:
        """The scope inside of these loops; the first of them opens in `nests`."""
        scope = self
        for loop in loops:
            if loop not in nests:
                nests[loop] = Scope(loop, scope)
            scope = nests[loop]
            nests = scope.nests
        return scope
