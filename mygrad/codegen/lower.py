"""Lowering: a scheduled kernel becomes statements.

The rule that places code: every value is computed in the outermost scope where its free axes are
bound. For a reduction that scope is where its loops open; it holds the accumulator, a nest of loops
of its own, and the result for everything that comes after. Reductions of one scope that do not need
each other and have the same loops share them. Stores over several sets of axes share the loops they
have in common.

This file decides what stands in which scope (`scope.py`); `emit.py` turns the tree of scopes into
loops and tiles.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mygrad import dtype as dt
from mygrad.codegen import panels
from mygrad.codegen.actions import LoopAxis, Schedule, ScheduleError
from mygrad.codegen.prepare import (
    Handover,
    Kept,
    Staged,
    axes_of,
    combine,
    defer_stores,
    in_blocks,
    prepare,
    staged_values,
)
from mygrad.codegen.scope import Pending, Scope
from mygrad.codegen.stmt import Combine, If, Let, Put, Running, Stmt, Update
from mygrad.domain import NONE, conditions, masked, terms_of
from mygrad.expr import (
    Expr,
    both,
    const,
    equal,
    free_axes,
    less,
    linear,
    load,
    rebuild,
    reduce,
    toposort,
    var,
)
from mygrad.kernel import Store, roots_of
from mygrad.ops import Op

_LEAVES = frozenset({Op.CONST, Op.AXIS, Op.PARAM, Op.VAR})


class Placer:
    """Fills a tree of scopes with the stores of a scheduled kernel."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.root = Scope()
        self.tensor = panels.tensor_of(schedule)
        stored = panels.hand_over(schedule, self.tensor) if self.tensor else schedule
        prepared, kept = prepare(stored)
        self.stores, self.handovers = defer_stores(schedule, prepared)
        self.kept = {k.scratch.name: k for k in kept}
        self.deferred = frozenset(schedule.deferred)
        self.order = {p.axis: n for n, p in enumerate(schedule.loops)}
        self.loop_of = {p.axis: p for p in schedule.loops}
        self.tile_axes = frozenset(p.axis for p in schedule.loops if p.is_tile)
        self.next_id = schedule.next_id + 1  # of axes that only copies have
        self.names: dict[str, int] = {}
        self.unnamed: set[Expr] = set()  # values that exist in one branch only
        roots = [e for store in self.stores for e in roots_of(store)]
        roots += [h.value for h in self.handovers]
        self.staged: dict[Expr, Staged] = staged_values(schedule, roots)
        self.terms = terms_of(roots)
        self._count_uses(toposort(roots))
        for k in kept:  # it is put into scratch memory, too
            self.uses[k.value] = self.uses.get(k.value, 0) + 1

    def _count_uses(self, nodes: list[Expr]) -> None:
        self.uses: dict[Expr, int] = {}
        self.pure: set[Expr] = set()  # made of loop indices alone
        affine = [store.index for store in self.stores]
        for found in (*self.terms.values(), *(conditions(s.valid) for s in self.stores)):
            self.unnamed |= found  # bounds.py looks for them
            affine += (side for c in found for side in c.src)
        for e in nodes:
            for s in set(e.src):
                self.uses[s] = self.uses.get(s, 0) + 1
            if e.op is Op.LOAD:
                affine.append(e.src[0])
            elif e.op not in (Op.REDUCE, Op.SCAN) and all(s in self.pure for s in e.src):
                self.pure.add(e)
        self.affine: set[Expr] = (
            set()
        )  # sums and multiples inside of indices, which keep their strides
        while affine:
            e = affine.pop()
            if e not in self.affine and e.op in (Op.ADD, Op.MUL):
                self.affine.add(e)
                affine += e.src

    def run(self) -> Scope:
        """The tree of scopes with every store in place."""
        for store in self.stores:
            for e in roots_of(store):
                self.uses[e] = self.uses.get(e, 0) + 1
        if self.tensor is not None:
            panels.place(self, self.tensor)
        for handover in self.handovers:
            self.place_handover(handover)
        for store in self.stores:
            self.place_store(store)
        return self.root

    def fresh(self, prefix: str) -> str:
        """A new name."""
        number = self.names.get(prefix, 0)
        self.names[prefix] = number + 1
        return f"{prefix}{number}"

    def number(self) -> int:
        """The number of a new axis."""
        self.next_id += 1
        return self.next_id - 1

    def loops(self, axes: Iterable[Expr]) -> list[LoopAxis]:
        """The loops over these axes in the order of the schedule."""
        # the bound axis of a scan that became a reduction is not in the schedule
        found = [self.loop_of.get(a) or LoopAxis(f"i{a.arg[0]}", a, a) for a in axes]
        return sorted(found, key=lambda p: self.order.get(p.axis, len(self.order)))

    # --- stores -----------------------------------------------------------------------------------

    def place_store(self, store: Store) -> None:
        """Put a store where all of its axes are bound."""
        blocked = self.blocked_reduction(store)
        if blocked is not None:
            self.place_blocked(store, *blocked)
            return
        scope = self.store_scope(
            axes_of(store), store.ordered_axes, _scan_axis(store), deferred=bool(self.handovers)
        )
        scope.add(self.put(store, scope), conditions(store.valid))

    def place_handover(self, handover: Handover) -> None:
        """Put the result of a reduction into scratch memory, declared just outside of the deferred
        loops."""
        scope = self.store_scope(free_axes(handover.value), (), None)
        outside = next(s for s in scope.path if s.loop and s.loop.name in self.deferred).depth - 1
        scope.path[outside].copies.append((handover.scratch, {}))
        value = self.place(handover.value, scope)
        needed = frozenset.intersection(*(conditions(s.valid) for s in self.stores))
        scope.add(Put(handover.scratch.name, handover.index, value), needed)

    def store_scope(
        self,
        axes: Iterable[Expr],
        ordered: tuple[Expr, ...],
        scanned: Expr | None,
        deferred: bool = False,
    ) -> Scope:
        """Parallel loops first, ordered ones after the other sequential ones, a scan innermost."""

        root = self.loop_of[scanned].root if scanned is not None else None

        def rank(p: LoopAxis) -> int:
            if p.root is root:
                return 3
            if p.kind == "parallel":
                return 0
            return 2 if p.axis in ordered or (p.is_tile and scanned is not None) else 1

        loops = sorted(self.loops(axes), key=rank)
        if deferred:
            loops = [replace(p, kind="seq") if p.name in self.deferred else p for p in loops]
        return self.enter(self.root, loops, self.root.nests)

    def enter(self, scope: Scope, loops: Iterable[LoopAxis], nests: dict[LoopAxis, Scope]) -> Scope:
        """The scope inside of these loops, with the operands that are staged on the way copied
        there."""
        inner = scope.inside(loops, nests)
        for at in inner.path[scope.depth + (scope.loop is not None) :]:
            for staged in self.staged.values():
                if staged.at is at.loop and all(c is not staged.scratch for c, _ in at.copies):
                    self.copy(staged, at)
        return inner

    def copy(self, staged: Staged, at: Scope) -> None:
        """A nest in `at` that copies an operand into scratch memory, contiguous lanes at a time."""
        if any(s.loop and s.loop.is_tile for s in at.path):
            raise ScheduleError(f"stage of b{staged.load.arg}: a copy cannot run inside of a tile")
        missing = {p.axis for p in staged.layout} ^ {
            a for a in free_axes(staged.value) if a not in at.positions
        }
        if missing:
            raise ScheduleError(
                f"stage of b{staged.load.arg}: the layout must be the loops inside of the place "
                f"of the copy that it depends on, and differs by {missing}"
            )
        nests: dict[LoopAxis, Scope] = {}
        at.copies.append((staged.scratch, nests))
        loops, index, value = in_blocks(
            self.schedule, staged, self.copy_order(staged), self.next_id
        )
        self.next_id += 2
        self.tile_axes |= {p.axis for p in loops if p.is_tile}
        read = [e.src[0] for e in toposort([value]) if e.op is Op.LOAD]
        self.affine |= {e for e in toposort([index, *read]) if e.op in (Op.ADD, Op.MUL)}
        scope = at.inside(loops, nests)
        # the operands, because the value itself is what is read from the copy
        src = tuple(self.place(e, scope) for e in value.src)
        scope.add(Put(staged.scratch.name, index, rebuild(value, src)))

    def copy_order(self, staged: Staged) -> list[LoopAxis]:
        """The loops of a copy: each thread copies what it reads; along lines of memory, which a
        processor fetches ahead; the parts of an axis the largest first."""
        steps = linear(staged.load.src[0])[0]

        def key(p: LoopAxis) -> tuple[int, ...]:
            along = -abs(steps.get(p.axis, 0))
            return (p.kind != "parallel", p.is_tile, along, self.order[p.axis])

        ordered = sorted(staged.layout, key=key)
        parts = {p.root: iter(sorted(ordered, key=lambda q: -q.stride)) for p in ordered}
        return [next(q for q in parts[p.root] if q.root is p.root) for p in ordered]

    def is_copied(self, e: Expr, scope: Scope) -> bool:
        """Whether a value is staged on the way to this scope. The nest of another copy can have
        loops of the same axes, and no copy in them."""
        staged = self.staged.get(e)
        if staged is None:
            return False
        return any(c is staged.scratch for s in scope.path for c, _ in s.copies)

    def put(self, store: Store, scope: Scope) -> Put:
        """The store with its values in place."""
        valid = None if store.valid is None else self.place(store.valid, scope)
        return Put(
            store.slot,
            self.place(store.index, scope),
            self.place(store.value, scope),
            valid,
            store.mode,
            store.slot in self.schedule.streams,
        )

    def blocked_reduction(self, store: Store) -> tuple[Expr, list[LoopAxis]] | None:
        """The reduction of which some loops are scheduled outside of sequential loops of the
        store."""
        sequential = [self.order[p.axis] for p in self.loops(axes_of(store)) if p.kind == "seq"]
        last = max(sequential, default=-1)
        for e in toposort(roots_of(store)):
            if e.op is Op.REDUCE:
                outside = [
                    p
                    for p in self.loops(e.arg[1])
                    if self.order.get(p.axis, last) < last and not p.is_tile
                ]
                if outside:
                    self.check_blocked(store, e)
                    return e, outside
        return None

    def check_blocked(self, store: Store, e: Expr) -> None:
        """Partial results live in the output: it must be the only one, and depend on this sum
        alone."""

        def refuse(condition: bool, why: str) -> None:
            if condition:
                raise ScheduleError(
                    f"a loop of {e.arg[0]} outside of the loops of its store: {why}"
                )

        nodes = toposort(roots_of(store))
        refuse(len(self.stores) != 1, "the kernel has several stores")
        refuse(store.mode != "set" or store.valid is not None, "the store is no plain one")
        refuse(
            any(n.op in (Op.REDUCE, Op.SCAN) and n is not e for n in nodes),
            "it is not the only one",
        )
        refuse(
            e.dtype is not store.value.dtype, "the partial result has another type than the output"
        )
        refuse(free_axes(e) != axes_of(store), "it does not have all axes of the store")
        refuse(any(n.op is Op.LOAD and n.arg == store.slot for n in nodes), "the output is read")

    def place_blocked(self, store: Store, e: Expr, outside: list[LoopAxis]) -> None:
        """for k: for i: out[i] = a if k == 0; out[i] + a if k > 0; epilogue(out[i] + a) if k is the
        last."""
        op, axes = e.arg
        inner = tuple(a for a in axes if all(p.axis is not a for p in outside))
        part = reduce(op, e.src[0], inner) if inner else e.src[0]
        # the loops outside too, because the body may be the same in all of their iterations
        around = free_axes(part) | axes_of(store) | {p.axis for p in outside}
        scope = self.store_scope(around, (), None)
        index = self.place(store.index, scope)
        here = self.place(part, scope)
        before = load(store.slot, store.value.dtype, index)
        first, last = const(True, dt.bool_), const(True, dt.bool_)
        for root in {p.root: None for p in outside}:
            parts = [p for p in outside if p.root is root]
            position = sum((p.axis * p.stride for p in parts), start=const(0))
            after = position + min(p.stride for p in parts)
            first = both(first, equal(position, const(0)))
            last = both(last, less(const(root.arg[1] - 1), after))
        total = combine(op, before, here)
        name = self.fresh("x")
        scope.values[e] = var(name, e.dtype)
        self.unnamed = {n for n in toposort([store.value]) if e in toposort([n])}
        later: tuple[Stmt, ...] = (Put(store.slot, index, total),)
        if store.value is not e:
            finish = (Let(name, total), Put(store.slot, index, self.place(store.value, scope)))
            later = (If(last, finish, later),)
        scope.add(If(first, (Put(store.slot, index, here),), later))

    # --- values -----------------------------------------------------------------------------------

    def place(self, root: Expr, scope: Scope) -> Expr:
        """The expression as it stands in `scope`, everything that belongs further out being bound
        there."""
        done: dict[Expr, Expr] = {}
        for e in self.pending(root, scope, done):
            home = scope.path[scope.level(e)]
            done[e] = self.place_node(e, home, scope, done)
            if self.uses.get(e, 0) > 1 and self.worth_a_name(e):
                done[e] = self.bind(e, home, done[e])
        level = scope.level(root)
        if level < scope.depth and self.worth_a_name(root):
            return self.bind(root, scope.path[level], done[root])
        return done[root]

    def pending(self, root: Expr, scope: Scope, done: dict[Expr, Expr]) -> list[Expr]:
        """What is not yet bound on the path, operands first; bodies of reductions and scans, and
        what is staged, are not entered."""
        order: list[Expr] = []
        state: dict[Expr, bool] = {}
        work = [root]
        while work:
            e = work[-1]
            known = state.get(e)
            if known is None:
                home = scope.path[scope.level(e)]
                if e in home.values:
                    done[e] = home.values[e]
                    state[e] = True
                    work.pop()
                    continue
                state[e] = False
                if e.op not in (Op.REDUCE, Op.SCAN) and not self.is_copied(e, scope):
                    work += [s for s in reversed(e.src) if s not in state]
                filled = self.filled_by(e)
                if filled is not None and filled not in state:
                    self.check_row(e, filled, scope)
                    work.append(filled)
            else:
                work.pop()
                if not known:
                    state[e] = True
                    order.append(e)
        return order

    def place_node(self, e: Expr, home: Scope, scope: Scope, done: dict[Expr, Expr]) -> Expr:
        """One expression whose operands are placed."""
        if e.op in _LEAVES:
            return e
        if e.op is Op.REDUCE:
            return self.place_reduce(e, home)
        if e.op is Op.SCAN:
            return self.place_scan(e, home)
        if self.is_copied(e, scope):
            return self.staged[e].read
        src, phase = [], 0
        for s in e.src:
            level = scope.level(s)
            outer = scope.path[level]
            value = done[s]
            if level < home.depth and self.worth_a_name(s):
                value = self.bind(s, outer, value)
            if level == home.depth:
                phase = max(phase, home.phase_of.get(s, 0))
            src.append(value)
        home.phase_of[e] = phase
        if all(a is b for a, b in zip(src, e.src, strict=True)):
            return e
        return rebuild(e, tuple(src))

    def worth_a_name(self, e: Expr) -> bool:
        """Whether a value that is shared or belongs further out is bound there; index arithmetic
        over tile axes is not, because renderers want to see its strides."""
        if e.op in _LEAVES or e.op in (Op.REDUCE, Op.SCAN) or e in self.affine or e in self.unnamed:
            return False
        return not (e in self.pure and free_axes(e) & self.tile_axes)

    def bind(self, e: Expr, home: Scope, value: Expr) -> Expr:
        """The name of `e` in its home."""
        found = home.values.get(e)
        if found is None:
            if value.op in _LEAVES:
                return value
            name = self.fresh("x")
            found = home.values[e] = var(name, e.dtype)
            home.phase(home.phase_of.get(e, 0)).lets.append(Let(name, value))
        return found

    # --- reductions and scans ---------------------------------------------------------------------

    def place_reduce(self, e: Expr, home: Scope) -> Expr:
        """Open the loops of a reduction in its home; its result is a name from there on."""
        op, axes = e.arg
        number = self.reduce_phase(e, home)
        phase = home.phase(number)
        loops = self.loops(axes)
        own = tuple(p.axis for p in loops if p.is_tile)
        name = self.fresh("acc")
        phase.accumulators.append(Pending(name, e.dtype, op, own))
        scope = self.enter(home, loops, phase.nests)
        result = var(name, e.dtype)
        if own:
            result = var(self.fresh("r"), e.dtype)
            phase.combines.append(Combine(result.arg, name, own))
        home.values[e] = result
        home.phase_of[e] = number + 1
        for kept in self.kept.values():
            if kept.body is e.src[0]:
                self.keep(kept, home, scope)
        needed = self.terms.get(e, NONE)
        scope.add(Update(name, self.place(masked(e, needed), scope)), needed)
        return result

    def keep(self, kept: Kept, home: Scope, scope: Scope) -> None:
        """Put a value into its scratch row, declared outside of the blocks of its reduction, and
        just outside of the rows that run in lockstep."""
        row = home.path[home.level(kept.filled)]
        tiles = [s for s in row.path if s.loop and s.loop.is_tile]
        if any(s.loop and s.loop.axis not in free_axes(kept.index) for s in tiles):
            raise ScheduleError(f"keep {kept.scratch.name}: the loops of the row must be outermost")
        at = row.path[tiles[0].depth - 1] if tiles else row
        if all(c is not kept.scratch for c, _ in at.copies):
            at.copies.append((kept.scratch, {}))
        self.affine |= {e for e in toposort([kept.index]) if e.op in (Op.ADD, Op.MUL)}
        scope.add(Put(kept.scratch.name, kept.index, self.place(kept.value, scope)))

    def check_row(self, e: Expr, filled: Expr, scope: Scope) -> None:
        """A row is read inside of the loops of the reduction that fills it."""
        if scope.level(e) < scope.level(filled):
            raise ScheduleError(f"keep {e.arg}: the loops of the row must be outermost")

    def filled_by(self, e: Expr) -> Expr | None:
        """The reduction that fills the scratch row which `e` reads, if it does."""
        kept = self.kept.get(e.arg) if e.op is Op.LOAD and isinstance(e.arg, str) else None
        return kept.filled if kept else None

    def reduce_phase(self, e: Expr, home: Scope) -> int:
        """The first phase in which every reduction of the same scope that `e` needs has its
        result."""
        number = 0
        for node in toposort(e.src):
            n = self.filled_by(node) or node
            if n.op is not Op.REDUCE or not all(a in home.positions for a in free_axes(n)):
                continue
            if home.level(n) == home.depth:
                if n not in home.values:
                    self.place_reduce(n, home)
                number = max(number, home.phase_of[n])
        return number

    def place_scan(self, e: Expr, home: Scope) -> Expr:
        """Carry an accumulator along the loops of a scan: updated first, read by what follows."""
        op, along, _ = e.arg
        loop, name = self.loop_of[along], self.fresh("acc")
        outside = next(s for s in home.path if s.loop and s.loop.root is loop.root).depth - 1
        home.path[outside].phase(0).accumulators.append(Pending(name, e.dtype, op, ()))
        value = self.place(e.src[0], home)
        number = home.phase_of.get(e.src[0], 0)
        home.phase_of[e] = number
        result = name
        step: Stmt = Update(name, value)
        if loop.kind == "vector":
            result = self.fresh("r")
            step = Running(result, name, value)
        home.values[e] = var(result, e.dtype)
        home.phase(number).lets.append(step)
        return home.values[e]


def _scan_axis(store: Store) -> Expr | None:
    for e in toposort(roots_of(store)):
        if e.op is Op.SCAN:
            return e.arg[1]
    return None
