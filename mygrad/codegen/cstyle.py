"""Statements to text of the C family. What differs between its languages is data in `dialects.py`.

    render(function, target) -> str

Tiles become text: a value that depends on unroll axes is written once for each of their points,
with the point in its name (`x_0_3`); a value that depends on the vector axis has a vector type. A
vector axis whose extent the language has no type for is written as copies, like an unroll axis.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from mygrad import dtype as dt
from mygrad.codegen import stmt as st
from mygrad.codegen.cstyle_values import Name, Point, Values
from mygrad.codegen.cstyle_words import Text, bare, lane, pick
from mygrad.codegen.dialects import DIALECTS, Dialect
from mygrad.dtype import DType
from mygrad.errors import InternalError
from mygrad.expr import Expr
from mygrad.ops import Op
from mygrad.program import Target

LARGE_ARRAY = (
    16 << 10
)  # bytes; larger private arrays live in shared memory, not on a thread's stack

_MODES = {"add": Op.ADD, "max": Op.MAX, "mul": Op.MUL}


def render(function: st.Function, target: Target) -> str:
    """The source of a function in the language of the target.

    Raises:
        InternalError: the statements break an invariant of stmt.py, or the language has no dialect.
    """
    if target.language not in DIALECTS:
        raise InternalError(f"cstyle: no dialect for {target.language}")
    return _Renderer(function, DIALECTS[target.language]).source()


class _Renderer(Values):
    def __init__(self, function: st.Function, dialect: Dialect) -> None:
        super().__init__(function, dialect)
        self.shared: list[str] = []  # arrays that must be declared at the top of the kernel

    def source(self) -> str:
        pointers = [
            f"{self.dialect.global_space} {'' if written else 'const '}"
            f"{self.dialect.memory_types[dtype]} *b{slot}"
            for slot, (dtype, _, written) in enumerate(self.function.buffers)
        ]
        self.uses_double = any(dtype is dt.float64 for dtype, _, _ in self.function.buffers)
        arguments = pointers + [f"const {self.ctype(dt.index)} n_{p}" for p in self.function.params]
        self.block(self.function.body)
        head = f"{self.dialect.kernel} {self.function.name}({', '.join(arguments)}) {{"
        prologue = self.dialect.prologue
        if self.uses_double:
            prologue = self.dialect.double_prologue + prologue
        definitions = "".join(f"\n{text}\n" for text in self.helpers.values())
        return prologue + definitions + "\n" + "\n".join([head, *self.shared, *self.lines, "}", ""])

    def block(self, body: st.Block) -> None:
        """The statements of a block; what they name is unknown after it."""
        names, arrays = dict(self.names), dict(self.arrays)
        self.forget()
        for statement in body:
            _STATEMENTS[type(statement)](self, statement)
            if not isinstance(statement, st.Let):
                self.forget()
        self.names, self.arrays = names, arrays
        self.forget()

    def nested(self, head: str, body: st.Block) -> None:
        self.line(head)
        self.depth += 1
        self.block(body)
        self.depth -= 1
        self.line("}")

    def loop(self, s: st.Loop) -> None:
        low, high = (self.value(bound, {}).text for bound in (s.low, s.high))
        i, long = f"i{s.axis.arg[0]}", self.ctype(dt.index)
        if s.kind == "parallel":  # every thread takes an equal run of iterations
            thread, threads = self.dialect.thread, self.dialect.threads
            count = self.atom(Text(high if low == "0L" else f"{high} - {low}"), dt.index).text
            start = "" if low == "0L" else f"{low} + "
            high = self.variable(
                Text(f"{start}{count} * ({thread} + 1) / {threads}"), dt.index
            ).text
            low = f"{start}{count} * {thread} / {threads}"
        self.nested(f"for ({long} {i} = {bare(low)}; {i} < {bare(high)}; {i}++) {{", s.body)

    def tile(self, s: st.Tile) -> None:
        outer = dict(self.tiles)
        self.tiles.update((t.axis, t) for t in s.axes)
        if sum(a in self.vectors for a in self.tiles) > 1:
            raise InternalError("cstyle: two vector axes in scope")
        self.nested("{", s.body)
        self.tiles = outer

    def declare(self, name: Name, at: Point, value: str, constant: bool = True) -> None:
        target = self.named(name, at)
        self.line(
            f"{'const ' if constant else ''}{self.ctype(name.dtype, target.lanes)} {target.text} = "
            f"{bare(value)};"
        )

    def label(self, name: str) -> str:
        return f"{name}_" if name in self.dialect.reserved or name.startswith("_t") else name

    def let(self, s: st.Let) -> None:
        vector, dtype = self.vector_of(s.value), s.value.dtype
        name = Name(self.label(s.name), dtype, self.unrolled(s.value), vector)
        for at in self.copies(s.value):
            value = self.value(s.value, at)
            lanes = 1 if vector is None else vector.arg[1]
            self.declare(name, at, self.splat(value, dtype, lanes))
        self.names[s.name] = name

    def accumulator(self, s: st.Accumulator) -> None:
        axes = tuple(a for a in s.axes if a not in self.vectors)
        vector = next((a for a in s.axes if a in self.vectors), None)
        name = Name(self.label(s.name), s.dtype, axes, vector, s.op)
        identity = Text(self.literal(_identity(s.op, s.dtype), s.dtype))
        value = self.splat(identity, s.dtype, 1 if vector is None else vector.arg[1])
        for numbers in itertools.product(*(range(a.arg[1]) for a in axes)):
            self.declare(name, dict(zip(axes, numbers, strict=True)), value, constant=False)
        self.names[s.name] = name

    def update(self, s: st.Update) -> None:
        name = self.names[s.name]
        vector = next((a for a in self.tiles if a in self.vectors), None)
        if vector is not None and name.vector is not vector:
            raise InternalError(f"cstyle: accumulator {s.name} lacks the vector axis of its update")
        for at in self.points(self.tiles):
            cell = self.cell(name, at)
            result = self.accumulated(name, cell, s.value, at)
            if vector is not None and self.tiles[vector].active < cell.lanes:
                result = self.only_active(cell, result, name.dtype, self.tiles[vector].active)
            self.line(f"{cell.text} = {bare(result)};")

    def accumulated(self, name: Name, cell: Text, value: Expr, at: Point) -> str:
        """cell op value; a product that is added becomes one fused operation."""
        assert name.op is not None
        if name.op is Op.ADD and value.op is Op.MUL and name.dtype in (dt.float32, dt.float64):
            factors = [self.splat(self.value(f, at), f.dtype, cell.lanes) for f in value.src]
            return self.fill(
                "@multiply_add($a, $b, $c)",
                name.dtype,
                cell.lanes,
                a=bare(factors[0]),
                b=bare(factors[1]),
                c=cell.text,
            )
        operand = self.splat(self.value(value, at), name.dtype, cell.lanes)
        return self.combined(name.op, name.dtype, cell.text, operand, cell.lanes)

    def combined(self, op: Op, dtype: DType, a: str, b: str, lanes: int) -> str:
        text = self.operation(op, dtype, dtype, [a, b], lanes)
        return f"({self.rounded(op, text, dtype, lanes)})"

    def only_active(self, cell: Text, result: str, dtype: DType, active: int) -> str:
        """The result in active lanes, the old cell in the others."""
        mask = ", ".join("1" if k < active else "0" for k in range(cell.lanes))
        condition = f"({self.ctype(dt.bool_, cell.lanes)})({mask})"
        return self.operation(Op.WHERE, dtype, dtype, [condition, result, cell.text], cell.lanes)

    def combine(self, s: st.Combine) -> None:
        cells = self.names[s.accumulator]
        assert cells.op is not None
        rest = tuple(a for a in cells.axes if a not in s.axes)
        gone = [a for a in cells.axes if a in s.axes]
        vector = None if cells.vector in s.axes else cells.vector
        name = Name(self.label(s.name), cells.dtype, rest, vector)
        for numbers in itertools.product(*(range(a.arg[1]) for a in rest)):
            at = dict(zip(rest, numbers, strict=True))
            others = itertools.product(*(range(a.arg[1]) for a in gone))
            texts = [
                self.named(cells, at | dict(zip(gone, point, strict=True))) for point in others
            ]
            lanes = texts[0].lanes
            if cells.vector is not None and vector is None:
                whole = self.chain(cells, [t.text for t in texts], lanes)
                atom = self.atom(Text(whole, lanes), cells.dtype)
                texts, lanes = [Text(f"{atom.text}.s{lane(k)}") for k in range(lanes)], 1
            self.declare(name, at, self.chain(cells, [t.text for t in texts], lanes))
        self.names[s.name] = name

    def running(self, s: st.Running) -> None:
        """Lane after lane."""
        cells = self.names[s.accumulator]
        assert cells.op is not None
        vector = next(a for a in self.tiles if a in self.vectors)
        lanes, active = vector.arg[1], self.tiles[vector].active
        axes = tuple(a for a in self.tiles if a not in self.vectors)
        name = Name(self.label(s.name), cells.dtype, axes, vector)
        for at in self.points(self.tiles):
            value = self.splat(self.value(s.value, at), cells.dtype, lanes)
            self.declare(name, at, value, constant=False)
            cell, made = self.cell(cells, at).text, self.named(name, at).text
            for k in range(active):
                here = f"{made}.s{lane(k)}"
                self.line(f"{cell} = {bare(self.combined(cells.op, cells.dtype, cell, here, 1))};")
                self.line(f"{here} = {cell};")
        self.names[s.name] = name

    def chain(self, cells: Name, texts: list[str], lanes: int) -> str:
        """All texts combined, pairwise."""
        assert cells.op is not None
        while len(texts) > 1:
            pairs = [
                self.combined(cells.op, cells.dtype, a, b, lanes)
                for a, b in zip(texts[::2], texts[1::2], strict=False)
            ]
            texts = pairs + texts[len(pairs) * 2 :]
        return texts[0]

    def scratch(self, s: st.Scratch) -> None:
        dtype = self.dialect.array_types.get(s.dtype) or self.dialect.memory_types[s.dtype]
        label = f"{self.label(s.name)}_{next(self.numbers)}"
        shared = s.memory == "shared" or s.size * s.dtype.itemsize > LARGE_ARRAY
        declaration = f"{dtype} {label}[{max(s.size, 1)}];"
        if shared:
            self.shared.append(f"    {self.dialect.shared_space} {declaration}")
        else:
            self.line(declaration)
        pointer, pointee = label, self.dialect.memory_types[s.dtype]
        space = f"{self.dialect.shared_space} " if shared else ""
        if pointee != dtype:
            pointer = f"(({space}{pointee} *){label})"
        self.arrays[s.name] = s.dtype, pointer, space

    def put(self, s: st.Put) -> None:
        roots = [r for r in (s.index, s.value, s.valid) if r is not None]
        vector = next((v for v in map(self.vector_of, roots) if v is not None), None)
        for at in self.copies(*roots):
            valid = None if s.valid is None else self.value(s.valid, at)
            value = self.value(s.value, at)
            if vector is None:
                self.store(s, self.value(s.index, at).text, value.text, valid)
            elif self.is_whole(s, valid, vector):
                base = self.value(self.base(s.index), at)
                lanes = vector.arg[1]
                text = self.splat(value, s.value.dtype, lanes)
                put = self.access(self.dialect.stores, s.target, base.text, lanes, v=bare(text))
                self.line(_guarded(valid, put + ";"))
            else:
                self.put_lanes(s, value, valid, at)

    def is_whole(self, s: st.Put, valid: Text | None, vector: Expr) -> bool:
        """Whether a vector is stored to consecutive elements without exception."""
        tile = self.tiles[vector]
        return (
            s.mode == "set"
            and tile.active == tile.extent
            and (valid is None or valid.lanes == 1)
            and self.step(s.index, vector) == 1
        )

    def put_lanes(self, s: st.Put, value: Text, valid: Text | None, at: Point) -> None:
        value = self.atom(value, s.value.dtype)
        valid = None if valid is None else self.atom(valid, dt.bool_)
        base = self.value(self.base(s.index), at)
        for k, index in enumerate(self.lane_indices(s.index, base)):
            condition = None if valid is None else Text(pick(valid, k))
            self.store(s, index, pick(value, k), condition)

    def store(self, s: st.Put, index: str, value: str, valid: Text | None) -> None:
        """One element."""
        dtype, _, _ = self.pointer(s.target)
        if s.mode != "set":
            old = self.access(self.dialect.loads, s.target, index)
            value = self.mixed(s.mode, dtype, old, value)
        self.line(
            _guarded(valid, self.access(self.dialect.stores, s.target, index, v=bare(value)) + ";")
        )

    def mixed(self, mode: str, dtype: DType, old: str, new: str) -> str:
        """The old content of an element combined with an update."""
        if mode == "min":
            return self.fill("@minimum($a, $b)", dtype, 1, a=old, b=new)
        return self.combined(_MODES[mode], dtype, old, new, 1)

    def condition(self, s: st.If) -> None:
        outer = self.pinned
        for at in list(self.copies(s.condition)):
            self.pinned = outer | at
            self.nested(f"if ({bare(self.value(s.condition, at).text)}) {{", s.body)
            if s.otherwise:
                self.lines.pop()
                self.nested("} else {", s.otherwise)
        self.pinned = outer

    def barrier(self, _: st.Barrier) -> None:
        self.line(self.dialect.barrier)


_STATEMENTS: dict[type, Callable[[_Renderer, Any], None]] = {
    st.Loop: _Renderer.loop,
    st.Tile: _Renderer.tile,
    st.Let: _Renderer.let,
    st.Accumulator: _Renderer.accumulator,
    st.Update: _Renderer.update,
    st.Combine: _Renderer.combine,
    st.Running: _Renderer.running,
    st.Scratch: _Renderer.scratch,
    st.Put: _Renderer.put,
    st.If: _Renderer.condition,
    st.Barrier: _Renderer.barrier,
}


def _identity(op: Op, dtype: DType) -> bool | int | float:
    return {Op.ADD: 0, Op.MUL: 1, Op.MAX: dtype.min}[op]


def _guarded(valid: Text | None, statement: str) -> str:
    return statement if valid is None else f"if ({bare(valid.text)}) {statement}"
