"""Statements to text of the C family. What differs between its languages is data in `dialects.py`.

    render(function, target) -> str

Tiles become text: a value that depends on unroll axes is written once for each of their points, with the
point in its name (`x_0_3`); a value that depends on the vector axis has a vector type. A vector axis whose
extent the language has no type for is written as copies, like an unroll axis. A value is computed once
(`_t7`) where more than one place, or more than one copy, uses it; one that is used once is written in place.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from string import Template
from typing import Any

import numpy as np

from mygrad import dtype as dt
from mygrad import expr as ex
from mygrad.codegen import stmt as st
from mygrad.codegen.dialects import DIALECTS, Dialect, Helper
from mygrad.dtype import DType
from mygrad.errors import InternalError
from mygrad.expr import Expr
from mygrad.ops import ALU, Op
from mygrad.program import Target

Point = Mapping[Expr, int]  # the current copy: a number for each unroll axis in scope

LARGE_ARRAY = 16 << 10  # bytes; larger private arrays live in shared memory, not on a thread's stack
SHORT = 72  # characters of an expression that is still written in place

_ROUNDED = frozenset({Op.ADD, Op.MUL, Op.DIV, Op.SQRT, Op.EXP, Op.LOG, Op.SIN, Op.CAST})
_MODES = {"add": Op.ADD, "max": Op.MAX, "mul": Op.MUL}


def render(function: st.Function, target: Target) -> str:
    """The source of a function in the language of the target.

    Raises:
        InternalError: the statements break an invariant of stmt.py, or the language is not of this family.
    """
    if target.language not in DIALECTS:
        raise InternalError(f"cstyle: no dialect for {target.language}")
    return _Renderer(function, DIALECTS[target.language]).source()


@dataclass(frozen=True)
class Text:
    """A C expression; `lanes` is 1 for a scalar."""

    text: str
    lanes: int = 1


@dataclass(frozen=True)
class Name:
    """What a VAR means: its copies over unroll `axes` in order, as vectors if `vector` is an axis."""

    label: str
    dtype: DType
    axes: tuple[Expr, ...]
    vector: Expr | None = None
    op: Op | None = None  # of an accumulator


class _Renderer:
    def __init__(self, function: st.Function, dialect: Dialect) -> None:
        self.function = function
        self.dialect = dialect
        self.lines: list[str] = []
        self.shared: list[str] = []  # arrays that must be declared at the top of the kernel
        self.helpers: dict[str, str] = {}  # name -> definition
        self.depth = 1
        self.numbers = itertools.count(1)
        self.tiles: dict[Expr, st.TileAxis] = {}  # in scope
        self.pinned: dict[Expr, int] = {}  # unroll axes inside of a condition that depends on them
        self.names: dict[str, Name] = {}
        self.arrays: dict[str, tuple[DType, str, str]] = {}  # scratch, as `pointer` gives it
        self.vectors = _vector_axes(function.body, dialect)
        self.uses_double = False
        self.forget()

    # --- the whole text --------------------------------------------------------------------------

    def source(self) -> str:
        pointers = [f"{self.dialect.global_space} {'' if written else 'const '}"
                    f"{self.dialect.memory_types[dtype]} *b{slot}"
                    for slot, (dtype, _, written) in enumerate(self.function.buffers)]
        self.uses_double = any(dtype is dt.float64 for dtype, _, _ in self.function.buffers)
        arguments = pointers + [f"const {self.ctype(dt.index)} n_{p}" for p in self.function.params]
        self.block(self.function.body)
        head = f"{self.dialect.kernel} {self.function.name}({', '.join(arguments)}) {{"
        prologue = self.dialect.prologue
        if self.uses_double:
            prologue = self.dialect.double_prologue + prologue
        definitions = "".join(f"\n{text}\n" for text in self.helpers.values())
        return prologue + definitions + "\n" + "\n".join([head, *self.shared, *self.lines, "}", ""])

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def forget(self) -> None:
        """Drop what was computed: what follows may not see the same memory or accumulators."""
        self.known: dict[tuple[Expr, tuple[int, ...]], Text] = {}
        self.depends: dict[Expr, frozenset[Expr]] = {}
        self.orders: dict[Expr, tuple[list[Expr], frozenset[Expr]]] = {}
        self.bases: dict[Expr, Expr] = {}

    # --- types -------------------------------------------------------------------------------------

    def ctype(self, dtype: DType, lanes: int = 1) -> str:
        self.uses_double |= dtype is dt.float64
        return self.dialect.types[dtype] + (str(lanes) if lanes > 1 else "")

    def fill(self, template: str, dtype: DType, lanes: int, **texts: str) -> str:
        """A template of the dialect for values of `dtype`."""
        n = str(lanes) if lanes > 1 else ""
        unsigned = self.dialect.unsigned[dtype]
        if lanes == 1 and dtype.itemsize < 4:  # C would promote to int, whose overflow is undefined
            unsigned = self.dialect.unsigned[dt.uint32]
        mask = self.dialect.types[{1: dt.int8, 2: dt.int16, 4: dt.int32, 8: dt.int64}[
            4 if dtype in (dt.float16, dt.bfloat16) else dtype.itemsize]]
        filled = Template(template).substitute(
            texts, T=self.ctype(dtype, lanes), U=unsigned + n, M=mask + n, n=n, bits=str(dtype.bits))
        return re.sub(r"@(\w+)", lambda found: self.helper(found[1], dtype, lanes), filled)

    def helper(self, name: str, dtype: DType, lanes: int) -> str:
        """The name of a helper function for `dtype`; defines it at its first use."""
        full = f"{name}_{self.ctype(dtype, lanes)}"
        if full not in self.helpers:
            text = self.typedef(name, full) if name in self.dialect.typedefs else self.function_text(
                self.dialect.helpers[name], name, full, dtype, lanes)
            text = self.fill(text, dtype, lanes)  # defines what it uses first
            self.helpers[full] = text
        return full

    def typedef(self, name: str, full: str) -> str:
        return f"{self.dialect.typedefs[name]} {full};"

    def function_text(self, helper: Helper, name: str, full: str, dtype: DType, lanes: int) -> str:
        body = helper.scalar if lanes == 1 else helper.vector
        letters = "abc"[: helper.parameters]
        if not body:
            scalar = self.helper(name, dtype, 1)
            parts = [f"{scalar}({', '.join(f'{x}.s{_lane(i)}' for x in letters)})" for i in range(lanes)]
            body = f"return ($T)({', '.join(parts)});"
        parameters = ", ".join(f"{helper.parameter_type} {x}" for x in letters)
        return f"static inline {helper.result_type} {full}({parameters}) {{\n    {body}\n}}"

    # --- dependence on tile axes ----------------------------------------------------------------------

    def _depends(self, e: Expr) -> frozenset[Expr]:
        if e.op is Op.AXIS:
            return frozenset((e,)) if e in self.tiles else frozenset()
        if e.op is Op.VAR:
            name = self.names[e.arg]
            axes = {*name.axes, name.vector} if name.vector is not None else set(name.axes)
            return frozenset(a for a in axes if a in self.tiles)
        return frozenset().union(*(self.depends[s] for s in e.src))

    def axes_of(self, e: Expr) -> frozenset[Expr]:
        """The tile axes in scope that a value depends on."""
        if e not in self.depends:
            for part in ex.toposort([e]):
                if part not in self.depends:
                    self.depends[part] = self._depends(part)
        return self.depends[e]

    def unrolled(self, e: Expr) -> tuple[Expr, ...]:
        """Those of them that are copies of text, in order of scope."""
        return tuple(a for a in self.tiles if a in self.axes_of(e) and a not in self.vectors)

    def vector_of(self, e: Expr) -> Expr | None:
        """The vector axis a value depends on."""
        return next((a for a in self.axes_of(e) if a in self.vectors), None)

    def points(self, axes: Iterable[Expr]) -> Iterator[dict[Expr, int]]:
        """Every point of unroll axes, row-major in order of scope."""
        chosen = [a for a in self.tiles if a in set(axes) and a not in self.vectors]
        ranges = [[self.pinned[a]] if a in self.pinned else range(self.tiles[a].active) for a in chosen]
        for numbers in itertools.product(*ranges):
            yield dict(zip(chosen, numbers, strict=True))

    def copies(self, *values: Expr | None) -> Iterator[dict[Expr, int]]:
        """Every point of the unroll axes that some of the values depend on."""
        return self.points(frozenset().union(*(self.axes_of(v) for v in values if v is not None)))

    # --- values ------------------------------------------------------------------------------------

    def operands(self, e: Expr) -> tuple[Expr, ...]:
        """What is computed before `e`: for a load along the vector axis the index of its first lane."""
        return (self.base(e.src[0]), *e.src[1:]) if e.op is Op.LOAD else e.src

    def base(self, index: Expr) -> Expr:
        """The index in lane 0, where those of the other lanes follow in constant steps; else the index."""
        if index not in self.bases:
            vector = self.vector_of(index)
            if vector is None or self.step(index, vector) is None:
                self.bases[index] = index
            else:
                self.bases[index] = ex.substitute(index, {vector: ex.const(0)})
        return self.bases[index]

    def step(self, index: Expr, vector: Expr) -> int | None:
        """How far the index moves from lane to lane; None where that is no constant."""
        if vector not in self.axes_of(index):
            return 0
        terms, _ = ex.linear(index)
        if any(vector in self.axes_of(t) for t in terms if t is not vector):
            return None
        return terms.get(vector, 0)

    def order(self, e: Expr) -> tuple[list[Expr], frozenset[Expr]]:
        """The parts of `e`, operands first, and those that are worth a variable."""
        if e not in self.orders:
            parts: dict[Expr, None] = {}
            uses: dict[Expr, int] = {}
            wider: set[Expr] = set()
            work = [(e, False)]
            while work:
                part, ready = work.pop()
                if ready:
                    parts[part] = None
                elif part not in uses:
                    uses[part] = 0
                    work.append((part, True))
                    work += [(s, False) for s in reversed(self.operands(part))]
            for part in parts:
                for s in self.operands(part):
                    uses[s] += 1
                    if self.unrolled(s) != self.unrolled(part):
                        wider.add(s)
            shared = frozenset(p for p in parts if p.src and (uses[p] > 1 or p in wider))
            self.orders[e] = list(parts), shared
        return self.orders[e]

    def value(self, e: Expr, at: Point) -> Text:
        """The text of a value at one point; writes variables for what is shared."""
        parts, shared = self.order(e)
        if len(self.unrolled(e)) < len(at):  # other points have the same value
            shared |= {e}
        local: dict[Expr, Text] = {}
        for part in parts:
            key = part, tuple(at[a] for a in self.unrolled(part))
            found = self.known.get(key)
            if found is None:
                found = self.one(part, [local[s] for s in self.operands(part)], at)
                if part.src and (part in shared or len(found.text) > SHORT):
                    found = self.atom(found, part.dtype)
                self.known[key] = found
            local[part] = found
        return local[e]

    def one(self, e: Expr, src: list[Text], at: Point) -> Text:
        if e.op is Op.CONST:
            return Text(self.literal(e.arg, e.dtype))
        if e.op is Op.AXIS:
            return self.axis(e, at)
        if e.op is Op.PARAM:
            return Text(f"n_{e.arg[0]}")
        if e.op is Op.VAR:
            return self.cell(self.names[e.arg], at)
        if e.op is Op.LOAD:
            return self.load(e, src, at)
        if e.op in ALU:
            return self.alu(e, src)
        raise InternalError(f"cstyle: {e.op} cannot occur in statements")

    def variable(self, value: Text, dtype: DType) -> Text:
        """A new constant that holds the value."""
        name = f"_t{next(self.numbers)}"
        self.line(f"const {self.ctype(dtype, value.lanes)} {name} = {_bare(value.text)};")
        return Text(name, value.lanes)

    def axis(self, e: Expr, at: Point) -> Text:
        if e not in self.tiles:
            return Text(f"i{e.arg[0]}")
        if e not in self.vectors:
            return Text(self.literal(at[e], dt.index))
        lanes = self.tiles[e].extent
        return Text(f"({self.ctype(dt.index, lanes)})({', '.join(map(str, range(lanes)))})", lanes)

    def cell(self, name: Name, at: Point) -> Text:
        """The value of a VAR at one point; of a vector whose axis is not in scope lane 0."""
        found = self.named(name, at)
        return Text(f"{found.text}.s0") if found.lanes > 1 and name.vector not in self.tiles else found

    def named(self, name: Name, at: Point) -> Text:
        """The variable of one copy."""
        label = "_".join([name.label, *(str(at.get(a, 0)) for a in name.axes)])
        return Text(label, 1 if name.vector is None else name.vector.arg[1])

    def literal(self, value: Any, dtype: DType) -> str:
        if dtype.is_float:
            return self.float_literal(float(value), dtype)
        suffix = ("u" if dtype.kind == "u" else "") + ("L" if dtype.itemsize == 8 else "")
        if value == -(2**63):  # the positive number would not be a long
            return "(-9223372036854775807L - 1)"
        if dtype.itemsize < 4:
            return f"(({self.ctype(dtype)}){int(value)})"
        return f"({value}{suffix})" if value < 0 else f"{value}{suffix}"

    def float_literal(self, value: float, dtype: DType) -> str:
        with np.errstate(all="ignore"):
            rounded = dt.from_storage(dt.to_storage(np.asarray(value), dtype), dtype)[()]
        if np.isnan(rounded) or np.isinf(rounded):
            text = "NAN" if np.isnan(rounded) else "INFINITY" if rounded > 0 else "(-INFINITY)"
            return f"({self.ctype(dtype)}){text}" if dtype is dt.float64 else text
        text = repr(float(rounded)) if dtype is dt.float64 else str(np.float32(rounded)) + "f"
        return f"({text})" if text.startswith("-") else text

    def splat(self, value: Text, dtype: DType, lanes: int) -> str:
        """The text with as many lanes."""
        if value.lanes == lanes:
            return value.text
        return f"({self.ctype(dtype, lanes)})({_bare(value.text)})"

    def alu(self, e: Expr, src: list[Text]) -> Text:
        lanes = max(s.lanes for s in src)
        texts = [self.splat(t, s.dtype, lanes) for t, s in zip(src, e.src, strict=True)]
        if e.op is Op.CAST:
            text = self.cast(texts[0], e.src[0].dtype, e.dtype, lanes)
        elif e.op is Op.BITCAST:
            text = self.bitcast(texts[0], e.src[0].dtype, e.dtype, lanes)
        elif lanes == 1 and _cannot_wrap(e):
            return Text(_index(e.op, texts[0], texts[1]))
        else:
            text = self.operation(e.op, e.src[-1].dtype, e.dtype, texts, lanes)
        return Text(f"({self.rounded(e.op, text, e.dtype, lanes)})", lanes)

    def operation(self, op: Op, operand: DType, dtype: DType, texts: list[str], lanes: int) -> str:
        """One operation of the dialect's table on texts with `lanes` lanes."""
        rows = self.dialect.scalar if lanes == 1 else self.dialect.vector
        row = rows.get((op, operand.kind)) or rows.get((op, "i" if operand.kind == "u" else "?"))
        if row is None:
            raise InternalError(f"cstyle: {op.name} is not an operation of {operand.name}")
        return self.fill(row, dtype, lanes, **dict(zip("abc", texts, strict=False)))

    def rounded(self, op: Op, text: str, dtype: DType, lanes: int) -> str:
        """Arithmetic of narrow floats happens in float and rounds after every operation."""
        if dtype not in (dt.float16, dt.bfloat16) or op not in _ROUNDED:
            return text
        return self.fill(f"@round_{dtype.name}({_bare(text)})", dtype, lanes)

    def cast(self, text: str, source: DType, dtype: DType, lanes: int) -> str:
        if source is dt.float64 and dtype is dt.float16:  # by way of float it would round twice
            return self.fill("@double_to_float16($a)", dtype, lanes, a=text)
        if self.ctype(source) == self.ctype(dtype) and dtype is not dt.bool_:
            return text
        kinds = source.kind.replace("u", "i"), dtype.kind.replace("u", "i")
        return self.fill(self.dialect.casts[(*kinds, lanes > 1)], dtype, lanes, a=text,
                         A=self.ctype(source))

    def bitcast(self, text: str, source: DType, dtype: DType, lanes: int) -> str:
        bits = dt.uint16 if source in (dt.float16, dt.bfloat16) else source
        if bits is not source:
            text = self.fill(f"@{source.name}_bits($a)", source, lanes, a=text)
        if dtype in (dt.float16, dt.bfloat16):
            text = self.fill(self.dialect.bits, dt.uint16, lanes, a=text)
            return self.fill(f"@{dtype.name}_value($a)", dtype, lanes, a=text)
        if dtype is dt.bool_:
            return self.cast(text, source, dtype, lanes)
        return self.fill(self.dialect.bits, dtype, lanes, a=text)

    # --- memory ------------------------------------------------------------------------------------

    def pointer(self, target: int | str) -> tuple[DType, str, str]:
        """Element type, pointer and address space of a buffer or scratch array."""
        if isinstance(target, str):
            return self.arrays[target]
        return self.function.buffers[target][0], f"b{target}", f"{self.dialect.global_space} "

    def access(self, table: Mapping[tuple[str, bool], str], target: int | str, index: str, lanes: int = 1,
               **texts: str) -> str:
        """A load or store of the dialect."""
        dtype, pointer, space = self.pointer(target)
        template = table.get((dtype.name, lanes > 1)) or table[("", lanes > 1)]
        return self.fill(template, dtype, lanes, p=pointer, i=_bare(index), q=space, **texts)

    def load(self, e: Expr, src: list[Text], at: Point) -> Text:
        index, valid = src[0], src[1] if len(src) > 1 else None
        vector = self.vector_of(e)
        zero = self.literal(0, e.dtype)
        if vector is None:
            text = self.access(self.dialect.loads, e.arg, index.text)
            return Text(text if valid is None else self.choice(valid, text, zero, e.dtype))
        tile = self.tiles[vector]
        if tile.active == tile.extent and self.step(e.src[0], vector) == 1 and (
                valid is None or valid.lanes == 1):
            text = self.access(self.dialect.loads, e.arg, index.text, tile.extent)
            none = self.splat(Text(zero), e.dtype, tile.extent)
            return Text(text if valid is None else f"({valid.text} ? {text} : {none})", tile.extent)
        lanes = [self.access(self.dialect.loads, e.arg, i) for i in self.lane_indices(e.src[0], index)]
        if valid is not None:
            valid = self.atom(valid, dt.bool_)
            lanes = [f"({_pick(valid, k)} ? {text} : {zero})" for k, text in enumerate(lanes)]
        lanes += [zero] * (tile.extent - tile.active)
        return Text(f"({self.ctype(e.dtype, tile.extent)})({', '.join(lanes)})", tile.extent)

    def choice(self, valid: Text, text: str, zero: str, dtype: DType) -> str:
        """A scalar that is not read where it is not valid."""
        narrow = f"({self.ctype(dtype)})" if dtype.itemsize < 4 else ""  # C makes an int of it
        return f"({narrow}({valid.text} ? {text} : {zero}))"

    def lane_indices(self, index: Expr, base: Text) -> list[str]:
        """The index of every active lane, given the text of its base."""
        vector = self.active_vector()
        step = self.step(index, vector)
        atom = self.atom(base, dt.index)
        if step is None:
            return [_pick(atom, k) for k in range(self.tiles[vector].active)]
        return [atom.text if k * step == 0 else f"{atom.text} + {k * step}"
                for k in range(self.tiles[vector].active)]

    def active_vector(self) -> Expr:
        """The vector axis in scope."""
        return next(a for a in self.tiles if a in self.vectors)

    def atom(self, value: Text, dtype: DType) -> Text:
        """The value as a name or number, to be written several times."""
        return value if re.fullmatch(r"\w+", value.text) else self.variable(value, dtype)

    # --- statements --------------------------------------------------------------------------------

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
            high = self.variable(Text(f"{start}{count} * ({thread} + 1) / {threads}"), dt.index).text
            low = f"{start}{count} * {thread} / {threads}"
        self.nested(f"for ({long} {i} = {_bare(low)}; {i} < {_bare(high)}; {i}++) {{", s.body)

    def tile(self, s: st.Tile) -> None:
        outer = dict(self.tiles)
        self.tiles.update((t.axis, t) for t in s.axes)
        if sum(a in self.vectors for a in self.tiles) > 1:
            raise InternalError("cstyle: two vector axes in scope")
        self.nested("{", s.body)
        self.tiles = outer

    def declare(self, name: Name, at: Point, value: str, constant: bool = True) -> None:
        target = self.named(name, at)
        self.line(f"{'const ' if constant else ''}{self.ctype(name.dtype, target.lanes)} {target.text} = "
                  f"{_bare(value)};")

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
            self.line(f"{cell.text} = {_bare(result)};")

    def accumulated(self, name: Name, cell: Text, value: Expr, at: Point) -> str:
        """cell op value; a product that is added becomes one fused operation."""
        assert name.op is not None
        if name.op is Op.ADD and value.op is Op.MUL and name.dtype in (dt.float32, dt.float64):
            factors = [self.splat(self.value(f, at), f.dtype, cell.lanes) for f in value.src]
            return self.fill("@multiply_add($a, $b, $c)", name.dtype, cell.lanes,
                             a=_bare(factors[0]), b=_bare(factors[1]), c=cell.text)
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
            texts = [self.named(cells, at | dict(zip(gone, point, strict=True))) for point in others]
            lanes = texts[0].lanes
            if cells.vector is not None and vector is None:
                whole = self.chain(cells, [t.text for t in texts], lanes)
                atom = self.atom(Text(whole, lanes), cells.dtype)
                texts, lanes = [Text(f"{atom.text}.s{_lane(k)}") for k in range(lanes)], 1
            self.declare(name, at, self.chain(cells, [t.text for t in texts], lanes))
        self.names[s.name] = name

    def chain(self, cells: Name, texts: list[str], lanes: int) -> str:
        """All texts combined, pairwise."""
        assert cells.op is not None
        while len(texts) > 1:
            pairs = [self.combined(cells.op, cells.dtype, a, b, lanes)
                     for a, b in zip(texts[::2], texts[1::2], strict=False)]
            texts = pairs + texts[len(pairs) * 2:]
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
                put = self.access(self.dialect.stores, s.target, base.text, lanes, v=_bare(text))
                self.line(_guarded(valid, put + ";"))
            else:
                self.put_lanes(s, value, valid, at)

    def is_whole(self, s: st.Put, valid: Text | None, vector: Expr) -> bool:
        """Whether a vector is stored to consecutive elements without exception."""
        tile = self.tiles[vector]
        return (s.mode == "set" and tile.active == tile.extent and (valid is None or valid.lanes == 1)
                and self.step(s.index, vector) == 1)

    def put_lanes(self, s: st.Put, value: Text, valid: Text | None, at: Point) -> None:
        value = self.atom(value, s.value.dtype)
        valid = None if valid is None else self.atom(valid, dt.bool_)
        base = self.value(self.base(s.index), at)
        for k, index in enumerate(self.lane_indices(s.index, base)):
            condition = None if valid is None else Text(_pick(valid, k))
            self.store(s, index, _pick(value, k), condition)

    def store(self, s: st.Put, index: str, value: str, valid: Text | None) -> None:
        """One element."""
        dtype, _, _ = self.pointer(s.target)
        if s.mode != "set":
            old = self.access(self.dialect.loads, s.target, index)
            value = self.mixed(s.mode, dtype, old, value)
        self.line(_guarded(valid, self.access(self.dialect.stores, s.target, index, v=_bare(value)) + ";"))

    def mixed(self, mode: str, dtype: DType, old: str, new: str) -> str:
        """The old content of an element combined with an update."""
        if mode == "min":
            return self.fill("@minimum($a, $b)", dtype, 1, a=old, b=new)
        return self.combined(_MODES[mode], dtype, old, new, 1)

    def condition(self, s: st.If) -> None:
        outer = self.pinned
        for at in list(self.copies(s.condition)):
            self.pinned = outer | at
            self.nested(f"if ({_bare(self.value(s.condition, at).text)}) {{", s.body)
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
    st.Scratch: _Renderer.scratch,
    st.Put: _Renderer.put,
    st.If: _Renderer.condition,
    st.Barrier: _Renderer.barrier,
}

_PLAIN = {Op.ADD: "+", Op.MUL: "*", Op.IDIV: "/", Op.MOD: "%"}


def _vector_axes(body: st.Block, dialect: Dialect) -> frozenset[Expr]:
    """The vector axes of a function that the dialect has vector types for."""
    found: set[Expr] = set()
    work: list[st.Stmt] = list(body)
    while work:
        s = work.pop()
        if isinstance(s, st.Tile):
            found.update(t.axis for t in s.axes if t.kind == "vector" and t.extent in dialect.lanes)
        if isinstance(s, (st.Tile, st.Loop, st.If)):
            work += s.body
        if isinstance(s, st.If):
            work += s.otherwise
    return frozenset(found)


def _cannot_wrap(e: Expr) -> bool:
    """Whether an index operation means the same as C's, which is undefined on overflow and truncates."""
    if e.op not in _PLAIN or e.dtype is not dt.index or e.low is None or e.high is None:
        return False
    if e.op in (Op.IDIV, Op.MOD):
        return (e.src[0].low or 0) >= 0 and e.src[0].low is not None and (e.src[1].low or 0) > 0
    return dt.index.min <= e.low and e.high <= dt.index.max


def _index(op: Op, a: str, b: str) -> str:
    """Index arithmetic on texts; the numbers of unrolled copies disappear into constants."""
    x, y = (int(t.strip("()L")) if re.fullmatch(r"\(?-?\d+L\)?", t) else None for t in (a, b))
    if x is not None and y is not None:
        result = {Op.ADD: x + y, Op.MUL: x * y, Op.IDIV: x // (y or 1), Op.MOD: x % (y or 1)}[op]
        return f"{result}L" if result >= 0 else f"({result}L)"
    unit = 0 if op is Op.ADD else 1
    if y == unit and op is not Op.MOD:
        return a
    if x == unit and op in (Op.ADD, Op.MUL):
        return b
    return f"({a} {_PLAIN[op]} {b})"


def _identity(op: Op, dtype: DType) -> bool | int | float:
    return {Op.ADD: 0, Op.MUL: 1, Op.MAX: dtype.min}[op]


def _lane(k: int) -> str:
    return "0123456789abcdef"[k]


def _pick(value: Text, k: int) -> str:
    """One lane of a vector that has a name."""
    return value.text if value.lanes == 1 else f"{value.text}.s{_lane(k)}"


def _bare(text: str) -> str:
    """The text without parentheses around all of it."""
    if not text.startswith("("):
        return text
    depth = 0
    for position, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[1:-1] if position == len(text) - 1 else text
    return text


def _guarded(valid: Text | None, statement: str) -> str:
    return statement if valid is None else f"if ({_bare(valid.text)}) {statement}"
