"""Statements as LLVM text: the renderer of the cpu.

    define void @NAME(ptr %args, i64 %tid, i64 %nthreads)

`args` are slots of 8 bytes: a pointer for each of `function.buffers`, then an i64 for each of
`function.params`. Thread `tid` of `nthreads` does its share of the parallel loops. The work is in
an inner function with noalias parameters: different buffers are different memory.

Tiles, vectors, masks and the sharing of loads are written out here and in llvm_values.py and
llvm_memory.py; what is left to LLVM is to choose instructions and registers. Accumulators are
stack cells, which the pass `sroa` turns into registers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product
from operator import mul
from typing import Any, NamedTuple

from mygrad import dtype as dt
from mygrad.codegen import vmath
from mygrad.codegen.llvm_memory import PREAMBLE, Array, Memory
from mygrad.codegen.llvm_ops import fill, template
from mygrad.codegen.llvm_types import lane_mask, literal, mangled, memory, register, scalar, splat
from mygrad.codegen.llvm_values import Emitter, Target, Value
from mygrad.codegen.stmt import (
    Accumulator,
    Barrier,
    Block,
    Combine,
    Function,
    If,
    Let,
    Loop,
    Put,
    Scratch,
    Stmt,
    Tile,
    Update,
)
from mygrad.dtype import DType
from mygrad.errors import InternalError, message
from mygrad.expr import Expr, var
from mygrad.helpers import prod, strides_of
from mygrad.ops import Op
from mygrad.program import Target as Machine

STACK_BYTES = 2 << 20  # scratch up to here is on the stack, which stays warm between calls


def render(function: Function, target: Machine) -> str:
    """The LLVM module of a function.

    Raises:
        InternalError: the statements break a rule of `stmt.py`.
    """
    return _Renderer(function).module()


class _Cells(NamedTuple):
    """The stack cells of an accumulator, one for each point of its unrolled axes."""

    names: list[str]
    dtype: DType
    op: Op
    axes: tuple[Expr, ...]
    lanes: int

    @property
    def type(self) -> str:
        return register(self.dtype, self.lanes)


class _Renderer:
    """The state of rendering one function."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.emitter = Emitter()
        self.memory = Memory(self.emitter)
        self.cells: dict[str, _Cells] = {}
        self.entry: list[str] = []  # done once, at the start
        self.exit: list[str] = []
        self.stack_bytes = 0
        self.vectors = _vector_axes(function.body)
        self.emitter.leaf[Op.VAR] = self._cell_value
        self.emitter.leaf[Op.PARAM] = self._param

    def module(self) -> str:
        """The text of the whole module."""
        for slot, (dtype, _, written) in enumerate(self.function.buffers):
            self.memory.arrays[slot] = Array(Value([f"%b{slot}"], "ptr"), dtype, written)
        self._block(self.function.body)
        lines = ["entry:\n", *self.entry, *self.emitter.scopes[0].lines, *self.exit, "  ret void\n"]
        body = "".join(lines)
        return "".join(
            [PREAMBLE, vmath.helpers(body), _outer(self.function), _inner(self.function, body)]
        )

    def _param(self, e: Expr) -> Value:
        if e.arg[0] not in self.function.params:
            raise InternalError(message("llvm", f"the parameter {e.arg[0]}", self.function.params))
        return Value([f"%p{self.function.params.index(e.arg[0])}"], "i64")

    # --- statements ----------------------------------------------------------------------------

    def _block(self, block: Block) -> None:
        for statement in block:
            self._statement(statement)

    def _statement(self, statement: Stmt) -> None:
        _STATEMENTS[type(statement)](self, statement)

    def _tile(self, tile: Tile) -> None:
        with self.emitter.tile(tile.axes):
            self._block(tile.body)

    def _let(self, let: Let) -> None:
        em, value = self.emitter, self.emitter.evaluate(let.value)
        # the name keeps its value whatever is stored later
        em.define(
            var(let.name, let.value.dtype),
            Value(value.names, value.element, value.lanes, value.axes),
        )

    def _scratch(self, scratch: Scratch) -> None:
        nbytes, name = max(scratch.size, 1) * scratch.dtype.itemsize, self.emitter.name()
        if self.stack_bytes + nbytes <= STACK_BYTES:
            self.stack_bytes += nbytes
            self.entry.append(
                f"  {name} = alloca [{max(scratch.size, 1)} x {memory(scratch.dtype)}], align 64\n"
            )
        else:
            self.entry.append(
                f"  {name} = call ptr @aligned_alloc(i64 64, i64 {-(-nbytes // 64) * 64})\n"
            )
            self.exit.append(f"  call void @free(ptr {name})\n")
        self.memory.arrays[scratch.name] = Array(Value([name], "ptr"), scratch.dtype, True)
        self.emitter.written((scratch.name,))

    def _barrier(self, barrier: Barrier) -> None:
        """A group is one thread here."""

    def _put(self, put: Put) -> None:
        self.memory.store(put)

    # --- control flow --------------------------------------------------------------------------

    def _loop(self, loop: Loop) -> None:
        em = self.emitter
        low, high = self._bound(loop.low), self._bound(loop.high)
        em.written(_writes(loop))
        if loop.kind == "parallel":
            low, high = self._share(low, high)
        elif loop.low.op is Op.CONST and loop.high.op is Op.CONST:
            if loop.high.arg <= loop.low.arg:
                return
            if loop.high.arg == loop.low.arg + 1:
                with em.scope(em.lines, sure=True):
                    em.define(loop.axis, Value([low], "i64"))
                    self._block(loop.body)
                return
        self._loop_text(loop, low, high)

    def _loop_text(self, loop: Loop, low: str, high: str) -> None:
        em, at = self.emitter, self.emitter.label("loop")
        index, following, again = em.name(), em.name(), em.name()
        lines: list[str] = []
        sure = (
            loop.kind != "parallel"
            and loop.low.high is not None
            and loop.high.low is not None
            and (loop.low.high < loop.high.low)
        )
        with em.scope(lines, sure):
            em.define(loop.axis, Value([index], "i64"))
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
            f"  {following} = add nsw i64 {index}, 1\n"
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

    # --- accumulators --------------------------------------------------------------------------

    def _accumulator(self, a: Accumulator) -> None:
        em, base = self.emitter, self.emitter.name()
        unrolled = tuple(x for x in a.axes if x not in self.vectors)
        wide = [x for x in a.axes if x in self.vectors]
        lanes = wide[0].arg[1] if wide else 0
        count = prod(x.arg[1] for x in unrolled)
        cells = _Cells([f"{base}.{i}" for i in range(count)], a.dtype, a.op, unrolled, lanes)
        self.cells[a.name] = cells
        start = splat(_identity(a.op, a.dtype), scalar(a.dtype), lanes)
        self.entry += [f"  {name} = alloca {cells.type}, align 64\n" for name in cells.names]
        em.lines.extend([f"  store {cells.type} {start}, ptr {name}\n" for name in cells.names])
        em.written((_key(a.name),))

    def _named(self, name: str) -> _Cells:
        if name not in self.cells:
            raise InternalError(message("llvm", f"the accumulator {name}", "one that is declared"))
        return self.cells[name]

    def _current(self, cells: _Cells, names: list[str], kept: tuple[Expr, ...]) -> Value:
        """Of names in row-major order over the unrolled axes `kept` of an accumulator, those of the
        tile axes in scope; the first one along axes that are not."""
        em = self.emitter
        axes = tuple(sorted(em.numbers[x] for x in kept if x in em.numbers))
        place = {em.numbers[x]: n for n, x in enumerate(kept) if x in em.numbers}
        steps = strides_of(tuple(x.arg[1] for x in kept))
        factors = [steps[place[number]] for number in axes]
        picked = [names[sum(map(mul, point, factors))] for point in em.points(axes)]
        return Value(picked, "ptr", axes=axes)

    def _cell_value(self, e: Expr) -> Value:
        """The current cells of an accumulator."""
        em, cells = self.emitter, self._named(e.arg)
        if cells.dtype is not e.dtype:
            raise InternalError(message("llvm", f"{e.arg} of {e.dtype.name}", cells.dtype.name))
        pointers = self._current(cells, cells.names, cells.axes)
        text, lanes = f"  {{r}} = load {cells.type}, ptr {{a}}\n", cells.lanes
        if lanes and em.lane_axis is None:  # the first lane
            text, lanes = (
                fill(text, "{r}.v", "{a}")
                + (f"  {{r}} = extractelement {cells.type} {{r}}.v, i64 0\n"),
                0,
            )
        return em.apply(
            text,
            [pointers],
            scalar(cells.dtype),
            lanes,
            frozenset((_key(e.arg),)),
            keep_scalar=True,
        )

    def _update(self, update: Update) -> None:
        em, cells = self.emitter, self._named(update.name)
        if em.lane_axis is not None and not cells.lanes:
            raise InternalError(
                message("update", f"the scalar {update.name}", "one with the vector axis")
            )
        fused = (
            cells.op is Op.ADD
            and cells.dtype in (dt.float32, dt.float64)
            and (update.value.op is Op.MUL and update.value not in em.values)
        )
        sources = update.value.src if fused else (update.value,)
        values = [em.widen(em.evaluate(source), cells.lanes) for source in sources]
        axes = em.merge([tuple(sorted(em.numbers.values()))])
        active = em.active if em.lane_axis is not None else min(cells.lanes, 1)
        text = _update_text(cells.op, cells.dtype, cells.lanes, fused, active)
        pointers = em.spread(self._current(cells, cells.names, cells.axes), axes)
        for pointer, *row in zip(pointers, *(em.spread(v, axes) for v in values), strict=True):
            em.lines.append(
                text.format(r=em.name(), p=pointer, **dict(zip("bc", row, strict=False)))
            )
        em.written((_key(update.name),))

    def _combine(self, combine: Combine) -> None:
        em, cells = self.emitter, self._named(combine.accumulator)
        kept = tuple(x for x in cells.axes if x not in combine.axes)
        groups: dict[tuple[int, ...], list[str]] = {}
        for point, cell in zip(
            product(*(range(x.arg[1]) for x in cells.axes)), cells.names, strict=True
        ):
            at = tuple(i for i, x in zip(point, cells.axes, strict=True) if x in kept)
            groups.setdefault(at, []).append(cell)
        wanted = self._current(cells, [*map(str, range(len(groups)))], kept)
        wanted_axes = em.merge([wanted.axes])
        text = template(cells.op, cells.dtype, cells.dtype, cells.lanes)
        across = cells.lanes and any(x in self.vectors for x in combine.axes)
        members, names = list(groups.values()), []
        for group in em.spread(wanted, wanted_axes):
            loaded = [em.name() for _ in members[int(group)]]
            em.lines.extend(
                [
                    f"  {name} = load {cells.type}, ptr {cell}\n"
                    for name, cell in zip(loaded, members[int(group)], strict=True)
                ]
            )
            name = self._tree(loaded, text)
            names.append(self._across(name, cells) if across else name)
        em.define(
            var(combine.name, cells.dtype),
            Value(names, scalar(cells.dtype), 0 if across else cells.lanes, wanted_axes),
        )

    def _tree(self, names: list[str], text: str) -> str:
        """The names combined pairwise, which keeps the error of a sum low."""
        while len(names) > 1:
            pairs = list(zip(names[::2], names[1::2], strict=False))
            made = [self.emitter.name() for _ in pairs]
            self.emitter.lines.extend(
                [text.format(r=r, a=a, b=b) for r, (a, b) in zip(made, pairs, strict=True)]
            )
            names = made + names[2 * len(pairs) :]
        return names[0]

    def _across(self, name: str, cells: _Cells) -> str:
        """The lanes of a vector combined."""
        made, element = self.emitter.name(), scalar(cells.dtype)
        kind, floating = _ACROSS[cells.op]
        if cells.dtype.is_float:
            start = {
                Op.ADD: f"{element} {literal(-0.0, cells.dtype)}, ",
                Op.MUL: f"{element} {literal(1.0, cells.dtype)}, ",
            }.get(cells.op, "")
            text = (
                f"  {{r}} = call reassoc {element} @llvm.vector.reduce.{floating}."
                f"{mangled(element, cells.lanes)}({start}{cells.type} {{a}})\n"
            )
            if cells.dtype is dt.bfloat16:
                text = fill(text, "{r}.w", "{a}") + fill(
                    template(Op.CAST, dt.float32, dt.bfloat16, 0), "{r}", "{r}.w"
                )
        else:
            kind = _ACROSS_BOOL[cells.op] if cells.dtype.kind == "b" else kind
            kind = "umax" if kind == "smax" and cells.dtype.kind == "u" else kind
            text = (
                f"  {{r}} = call {element} @llvm.vector.reduce.{kind}."
                f"{mangled(element, cells.lanes)}({cells.type} {{a}})\n"
            )
        self.emitter.lines.append(text.format(r=made, a=name))
        return made


_STATEMENTS: dict[type, Callable[[_Renderer, Any], None]] = {
    Loop: _Renderer._loop,
    Tile: _Renderer._tile,
    Let: _Renderer._let,
    If: _Renderer._if,
    Accumulator: _Renderer._accumulator,
    Update: _Renderer._update,
    Combine: _Renderer._combine,
    Scratch: _Renderer._scratch,
    Put: _Renderer._put,
    Barrier: _Renderer._barrier,
}
_ACROSS = {Op.ADD: ("add", "fadd"), Op.MUL: ("mul", "fmul"), Op.MAX: ("smax", "fmaximum")}
_ACROSS_BOOL = {Op.ADD: "or", Op.MUL: "and", Op.MAX: "or"}


def _key(accumulator: str) -> str:
    """An accumulator among the targets that values may have read."""
    return f"accumulator {accumulator}"


def _identity(op: Op, dtype: DType) -> str:
    return literal({Op.ADD: 0, Op.MUL: 1, Op.MAX: dtype.min}[op], dtype)


@cache
def _update_text(op: Op, dtype: DType, lanes: int, fused: bool, active: int) -> str:
    """cell {p} = cell op {b}, or cell + {b} * {c}; only in the first `active` lanes if that is
    not 0."""
    ty, new = register(dtype, lanes), "{r}.n"
    if fused:
        kind = mangled(scalar(dtype), lanes)
        step = f"  {new} = call {ty} @llvm.fmuladd.{kind}({ty} {{b}}, {ty} {{c}}, {ty} {{r}})\n"
    else:
        step = fill(template(op, dtype, dtype, lanes), new, "{r}", "{b}")
    text = f"  {{r}} = load {ty}, ptr {{p}}\n{step}"
    if active < lanes:
        text += (
            f"  {{r}}.k = select <{lanes} x i1> {lane_mask(active, lanes)}, {ty} {new}, "
            f"{ty} {{r}}\n"
        )
        new = "{r}.k"
    return text + f"  store {ty} {new}, ptr {{p}}\n"


# --- questions about statements ------------------------------------------------------------------


def _inside(statement: Stmt) -> Block:
    if isinstance(statement, (Loop, Tile)):
        return statement.body
    return statement.body + statement.otherwise if isinstance(statement, If) else ()


def _writes(statement: Stmt) -> frozenset[Target]:
    """The arrays and accumulators that a statement changes."""
    found: set[Target] = set()
    work = [statement]
    while work:
        one = work.pop()
        work += _inside(one)
        if isinstance(one, Put):
            found.add(one.target)
        elif isinstance(one, (Update, Accumulator)):
            found.add(_key(one.name))
    return frozenset(found)


def _vector_axes(block: Block) -> frozenset[Expr]:
    """The axes that are lanes of vectors."""
    found, work = set(), list(block)
    while work:
        one = work.pop()
        work += _inside(one)
        if isinstance(one, Tile):
            found |= {t.axis for t in one.axes if t.kind == "vector"}
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
    """The work. Vectors of 512 bits stay whole also where LLVM would rather halve them."""
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
        f'noinline nounwind "prefer-vector-width"="512" {{\n{body}}}\n'
    )
