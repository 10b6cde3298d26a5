"""Statements as LLVM text: the renderer of the cpu.

    define void @NAME(ptr %args, i64 %tid, i64 %nthreads)

`args` are slots of 8 bytes: a pointer for each of `function.buffers`, then an i64 for each of
`function.params`. Thread `tid` of `nthreads` does its share of the parallel loops. The work is in
an inner function with noalias parameters: different buffers are different memory.

Tiles, vectors, masks and the sharing of loads are written out here and in llvm_values.py and
llvm_memory.py, accumulators in llvm_accumulators.py; what is left to LLVM is to choose instructions
and registers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from mygrad.codegen import llvm_amx, llvm_dot, llvm_prefetch, vmath
from mygrad.codegen.llvm_accumulators import Accumulators, key
from mygrad.codegen.llvm_memory import NONTEMPORAL, PREAMBLE, Array, Memory
from mygrad.codegen.llvm_types import memory
from mygrad.codegen.llvm_values import Emitter, Target, Value
from mygrad.codegen.stmt import (
    STRAIGHT,
    Accumulator,
    Barrier,
    Block,
    Combine,
    Function,
    If,
    Let,
    Loop,
    Product,
    Put,
    Running,
    Scratch,
    Stmt,
    Tile,
    TileAxis,
    Update,
    inside,
    is_straight,
)
from mygrad.codegen.tensorize import DOT, unit_of
from mygrad.errors import InternalError, message
from mygrad.expr import Expr, stride, toposort, var
from mygrad.helpers import prod, round_up
from mygrad.ops import Op
from mygrad.program import Target as Machine

TURNS = 4  # iterations of a loop over sums that are written out before it turns, at most
STACK_BYTES = 2 << 20  # scratch up to here is on the stack, which stays warm between calls


def render(function: Function, target: Machine) -> str:
    """The LLVM module of a function.

    Raises:
        InternalError: the statements break a rule of `stmt.py`.
    """
    return _Renderer(function, target).module()


class _Renderer:
    """The state of rendering one function."""

    def __init__(self, function: Function, target: Machine) -> None:
        self.function, self.target = function, target
        self.emitter = Emitter(frozenset(target.features.split(",")))
        self.memory = Memory(self.emitter)
        self.entry: list[str] = []  # done once, at the start
        self.exit: list[str] = []
        self.declared: set[Scratch] = set()
        self.stack_bytes = 0
        self.around: tuple[TileAxis, ...] = ()  # of the tiles in scope
        self.tiles = False  # whether tile registers of AMX are used
        self.dots = False  # and dot products of pairs
        vectors = _vector_axes(function.body)
        across = _combined_across(function.body, vectors)
        self.accumulators = Accumulators(self.emitter, vectors, across, self.entry)
        self.emitter.leaf[Op.PARAM] = self._param

    def module(self) -> str:
        """The text of the whole module."""
        for slot, (dtype, _, written) in enumerate(self.function.buffers):
            self.memory.arrays[slot] = Array(Value([f"%b{slot}"], "ptr"), dtype, written)
        self._block(self.function.body)
        text = "".join([*self.entry, *self.emitter.scopes[0].lines])
        streams = NONTEMPORAL in text
        if streams:  # such stores wait in buffers of their own: other threads must see them
            self.exit.append("  fence seq_cst\n")
        tiles = self.tiles  # every thread sets up its own
        if tiles:
            text = llvm_amx.BEGIN + text
            self.exit.append(llvm_amx.END)
        body = "".join(["entry:\n", text, *self.exit, "  ret void\n"])
        headers = llvm_amx.HEADER * tiles, llvm_dot.HEADER * self.dots
        parts = [PREAMBLE, *headers, vmath.helpers(body)]
        parts += [_outer(self.function), _inner(self.function, body)]
        return "".join([*parts, "!0 = !{i32 1}\n"] if streams else parts)

    def _param(self, e: Expr) -> Value:
        if e.arg[0] not in self.function.params:
            raise InternalError(message("llvm", f"the parameter {e.arg[0]}", self.function.params))
        return Value([f"%p{self.function.params.index(e.arg[0])}"], "i64")

    # --- statements ----------------------------------------------------------------------------

    def _block(self, block: Block, after: Block = ()) -> None:
        """`after` is what follows the block within the innermost loop around it."""
        sums = False
        for n, statement in enumerate(block):
            if isinstance(statement, Accumulator) and not sums:
                self._prefetch(block[n:], after)
            sums = isinstance(statement, Accumulator)
            if isinstance(statement, Tile):
                self._tile(statement, block[n + 1 :] + after)
            else:
                _STATEMENTS[type(statement)](self, statement)

    def _tile(self, tile: Tile, after: Block) -> None:
        around = self.around
        self.around = (*around, *tile.axes)
        with self.emitter.tile(tile.axes):
            self._block(tile.body, after)
        self.around = around

    def _prefetch(self, block: Block, after: Block) -> None:
        """Ask for what the results of a sum meet when it is done."""
        em, sizes = self.emitter, {n: b[0].itemsize for n, b in enumerate(self.function.buffers)}
        for fetch in llvm_prefetch.fetches(block, after, self.around, sizes):
            pointer = self.memory.address(fetch.slot, fetch.first).pointer.names[0]
            for place in fetch.places:
                at, kind = em.name(), int(fetch.written)
                em.lines.append(
                    f"  {at} = getelementptr i8, ptr {pointer}, i64 {place}\n"
                    f"  call void @llvm.prefetch.p0(ptr {at}, i32 {kind}, i32 3, i32 1)\n"
                )

    def _let(self, let: Let) -> None:
        em, value = self.emitter, self.emitter.evaluate(let.value)
        # the name keeps its value whatever is stored later
        em.define(
            var(let.name, let.value.dtype),
            Value(value.names, value.element, value.lanes, value.axes),
        )

    def _scratch(self, scratch: Scratch) -> None:
        """Memory for a scratch array. In loops that were peeled it is declared again, and is the
        same memory: addresses within it are computed once for all of them."""
        if scratch not in self.declared:
            self.declared.add(scratch)
            self.memory.arrays[scratch.name] = self._new_scratch(scratch)
        self.emitter.written((scratch.name,))

    def _new_scratch(self, scratch: Scratch) -> Array:
        nbytes, name = max(scratch.size, 1) * scratch.dtype.itemsize, self.emitter.name()
        if self.stack_bytes + nbytes <= STACK_BYTES:
            self.stack_bytes += nbytes
            self.entry.append(
                f"  {name} = alloca [{max(scratch.size, 1)} x {memory(scratch.dtype)}], align 64\n"
            )
        else:
            self.entry.append(
                f"  {name} = call ptr @aligned_alloc(i64 64, i64 {round_up(nbytes, 64)})\n"
            )
            self.exit.append(f"  call void @free(ptr {name})\n")
        return Array(Value([name], "ptr"), scratch.dtype, True)

    def _barrier(self, barrier: Barrier) -> None:
        """A group is one thread here."""

    def _put(self, put: Put) -> None:
        self.memory.store(put)

    def _product(self, product: Product) -> None:
        """Operands are packed in scratch memory, where values have no other names."""
        em = self.emitter
        arrays = (product.target, product.left, product.right)
        pointers = [self.memory.address(name, at).pointer.names[0] for name, at in arrays]
        kind = self.memory.array(product.left[0]).dtype
        if unit_of(kind, self.target.units) == DOT:
            self.dots = True
            em.lines.append(llvm_dot.product_text(product, pointers, em.label))
        else:
            self.tiles = True
            em.lines.append(llvm_amx.product_text(product, kind, pointers, em.label))
        em.written((product.target[0],))

    # --- control flow --------------------------------------------------------------------------

    def _loop(self, loop: Loop) -> None:
        em = self.emitter
        low, high = self._bound(loop.low), self._bound(loop.high)
        em.written(_writes(loop))
        trips = _trips(loop)
        if loop.kind == "parallel":
            low, high = self._share(low, high)
        elif trips is not None:
            at_once = self._at_once(loop, trips)
            if at_once >= trips:
                for i in range(loop.low.arg, loop.high.arg):
                    with em.scope(em.lines, sure=True):
                        em.define(loop.axis, Value([str(i)], "i64"))
                        self._block(loop.body)
                return
            if at_once > 1:
                middle = str(loop.high.arg - trips % at_once)
                self._loop_text(loop, low, middle, at_once)
                low = middle
        if low != high:
            self._loop_text(loop, low, high)

    def _at_once(self, loop: Loop, trips: int) -> int:
        """Iterations that are written out one after the other. A loop over sums that is short is
        written out: its iterations share loads. A long one makes turns of a few iterations, if they
        share none: a turn costs as much as some multiply-adds."""
        found = self._updates(loop) if trips > 1 else None
        if found is None:
            return 1
        updates, cells = found
        if is_straight(trips, trips * updates, cells, self.target.vector_registers):
            return trips
        turn = min(TURNS, STRAIGHT // updates) if updates and not cells else 1
        return max(turn, 1) if trips >= 2 * turn else 1

    def _updates(self, loop: Loop) -> tuple[int, int] | None:
        """Updates of accumulators in an iteration, and the vector registers of the accumulators if
        iterations share loads, 0 if not; None for a loop that does more."""
        em, updates, shares = self.emitter, 0, False
        taken: dict[str, int] = {}  # vector registers of each accumulator
        unrolled = tuple(em.numbers)
        work: list[tuple[Stmt, int, tuple[Expr, ...]]] = [(s, 1, unrolled) for s in loop.body]
        while work:
            s, times, axes = work.pop()
            if isinstance(s, Update) and s.name in self.accumulators.cells:
                copies = prod(a.arg[1] for a in axes)
                updates += times * copies
                taken[s.name] = copies * self.accumulators.registers(s.name, self.target)
                shares = shares or _slides(s.value, loop.axis, axes)
            elif isinstance(s, Tile):
                inner = (t.axis for t in s.axes if t.kind == "unroll")
                work += [(one, times, (*axes, *inner)) for one in s.body]
            elif isinstance(s, Loop) and (trips := _trips(s)) is not None:
                work += [(one, times * max(trips, 0), axes) for one in s.body]
            else:
                return None
        return updates, sum(taken.values()) if shares else 0

    def _loop_text(self, loop: Loop, low: str, high: str, turns: int = 1) -> None:
        """`turns` iterations at a time."""
        em, at = self.emitter, self.emitter.label("loop")
        index, following, again = em.name(), em.name(), em.name()
        lines: list[str] = []
        sure = (
            loop.kind != "parallel"
            and loop.low.high is not None
            and loop.high.low is not None
            and (loop.low.high < loop.high.low)
        )
        for turn in range(turns):
            with em.scope(lines, sure):
                number = index
                if turn:
                    number = em.name()
                    lines.append(f"  {number} = add nsw i64 {index}, {turn}\n")
                em.define(loop.axis, Value([number], "i64"))
                self._block(loop.body)
        enter = f"  br label %{at}.body\n"
        if not sure:
            enter = (
                f"  {index}.any = icmp slt i64 {low}, {high}\n"
                f"  br i1 {index}.any, label %{at}.body, label %{at}.exit\n"
            )
        em.lines.append(
            f"  br label %{at}\n{at}:\n{enter}{at}.body:\n"
            f"  {index} = phi i64 [ {low}, %{at} ], [ {following}, %{at}.next ]\n"
        )
        em.lines.extend(lines)
        em.lines.append(
            f"  br label %{at}.next\n{at}.next:\n"
            f"  {following} = add nsw i64 {index}, {turns}\n"
            f"  {again} = icmp slt i64 {following}, {high}\n"
            f"  br i1 {again}, label %{at}.body, label %{at}.exit\n{at}.exit:\n"
        )

    def _bound(self, bound: Expr) -> str:
        value = self.emitter.evaluate(bound)
        names = self.emitter.spread(value, ()) if self.emitter.fixed else value.names
        if value.lanes or len(names) != 1:
            raise InternalError(
                message("loop", f"the bound {bound!r}", "one that no tile axis is in")
            )
        return names[0]

    def _share(self, low: str, high: str) -> tuple[str, str]:
        """The part of a range that this thread does: equal shares, in order."""
        em, r = self.emitter, self.emitter.name()
        em.lines.append(
            f"  {r}.n = sub nsw i64 {high}, {low}\n"
            f"  {r}.c = call i64 @llvm.smax.i64(i64 {r}.n, i64 0)\n"
            f"  {r}.a = mul nsw i64 {r}.c, %tid\n  {r}.b = add nsw i64 {r}.a, {r}.c\n"
            f"  {r}.f = udiv i64 {r}.a, %nthreads\n  {r}.t = udiv i64 {r}.b, %nthreads\n"
            f"  {r}.low = add nsw i64 {low}, {r}.f\n  {r}.high = add nsw i64 {low}, {r}.t\n"
        )
        return f"{r}.low", f"{r}.high"

    def _if(self, branch: If) -> None:
        em, condition = self.emitter, self.emitter.evaluate(branch.condition)
        if condition.lanes:
            raise InternalError(message("if", "a condition on a vector axis", "one for all lanes"))
        axes = em.merge([condition.axes])
        for name, point in zip(em.spread(condition, axes), em.points(axes), strict=True):
            with em.fix(axes, point):
                self._branch(name, branch.body, branch.otherwise)

    def _branch(self, condition: str, body: Block, otherwise: Block) -> None:
        em, at = self.emitter, self.emitter.label("if")
        if condition in ("true", "false"):
            with em.scope(em.lines):
                self._block(body if condition == "true" else otherwise)
            return
        texts: list[list[str]] = [[], []]
        for lines, block in zip(texts, (body, otherwise), strict=True):
            with em.scope(lines):
                self._block(block)
        # only now: index arithmetic of the branches may have been hoisted before it
        em.lines.append(f"  br i1 {condition}, label %{at}.yes, label %{at}.no\n{at}.yes:\n")
        em.lines.extend(texts[0])
        em.lines.append(f"  br label %{at}.on\n{at}.no:\n")
        em.lines.extend(texts[1])
        em.lines.append(f"  br label %{at}.on\n{at}.on:\n")


_STATEMENTS: dict[type, Callable[[_Renderer, Any], None]] = {
    Loop: _Renderer._loop,
    Let: _Renderer._let,
    If: _Renderer._if,
    Accumulator: lambda renderer, s: renderer.accumulators.declare(s),
    Update: lambda renderer, s: renderer.accumulators.update(s),
    Combine: lambda renderer, s: renderer.accumulators.combine(s),
    Running: lambda renderer, s: renderer.accumulators.running(s),
    Scratch: _Renderer._scratch,
    Put: _Renderer._put,
    Product: _Renderer._product,
    Barrier: _Renderer._barrier,
}


# --- questions about statements ------------------------------------------------------------------


def _trips(loop: Loop) -> int | None:
    """Iterations of a loop, where they are known."""
    known = loop.low.op is Op.CONST and loop.high.op is Op.CONST
    return loop.high.arg - loop.low.arg if known else None


def _slides(value: Expr, along: Expr, axes: Iterable[Expr]) -> bool:
    """Whether the next iteration along an axis loads again what copies along other axes load."""
    indices = [e.src[0] for e in toposort([value]) if e.op is Op.LOAD]
    steps = [(stride(i, along), {a: stride(i, a) for a in axes}) for i in indices]
    return any(
        step and other and step % other == 0 and abs(step // other) < a.arg[1]
        for step, others in steps
        for a, other in others.items()
    )


def _writes(statement: Stmt) -> frozenset[Target]:
    """The arrays and accumulators that a statement changes."""
    found: set[Target] = set()
    work = [statement]
    while work:
        one = work.pop()
        work += inside(one)
        if isinstance(one, Put):
            found.add(one.target)
        elif isinstance(one, Product):
            found.add(one.target[0])
        elif isinstance(one, (Update, Accumulator)):
            found.add(key(one.name))
        elif isinstance(one, Running):
            found.add(key(one.accumulator))
    return frozenset(found)


def _vector_axes(block: Block) -> frozenset[Expr]:
    """The axes that are lanes of vectors."""
    found, work = set(), list(block)
    while work:
        one = work.pop()
        work += inside(one)
        if isinstance(one, Tile):
            found |= {t.axis for t in one.axes if t.kind == "vector"}
    return frozenset(found)


def _combined_across(block: Block, vectors: frozenset[Expr]) -> frozenset[str]:
    """The accumulators whose lanes are combined with each other."""
    found, work = set(), list(block)
    while work:
        one = work.pop()
        work += inside(one)
        if isinstance(one, Combine) and not vectors.isdisjoint(one.axes):
            found.add(one.accumulator)
    return frozenset(found)


# --- the functions around the text ---------------------------------------------------------------


def _outer(function: Function) -> str:
    """The entry, which unpacks the arguments."""
    kinds = ["ptr"] * len(function.buffers) + ["i64"] * len(function.params)
    lines = [f"define void @{function.name}(ptr %args, i64 %tid, i64 %nthreads) nounwind {{\n"]
    for i, kind in enumerate(kinds):
        lines.append(
            f"  %s{i} = getelementptr i64, ptr %args, i64 {i}\n"
            f"  %a{i} = load {kind}, ptr %s{i}, align 8\n"
        )
    given = "".join(f"{kind} %a{i}, " for i, kind in enumerate(kinds))
    lines.append(
        f"  tail call void @{function.name}.body({given}i64 %tid, i64 %nthreads)\n  ret void\n}}\n"
    )
    return "".join(lines)


def _inner(function: Function, body: str) -> str:
    """The work. Vectors of 512 bits stay whole also where LLVM would rather halve them. The stack
    is aligned: LLVM does so by itself only for what is allocated there, not for registers that it
    spills, and one that lies across two pages costs more than all else that a loop does."""
    taken = "".join(
        f"ptr noalias {'' if written else 'readonly '}%b{slot}, "
        for slot, (_, _, written) in enumerate(function.buffers)
    )
    taken += "".join(f"i64 %p{i}, " for i in range(len(function.params)))
    heap = (
        "declare ptr @aligned_alloc(i64, i64)\ndeclare void @free(ptr)\n"
        if "@aligned_alloc" in body
        else ""
    )
    return (
        f"{heap}define internal void @{function.name}.body({taken}i64 %tid, i64 %nthreads) "
        f'noinline nounwind alignstack(64) "prefer-vector-width"="512" {{\n{body}}}\n'
    )
