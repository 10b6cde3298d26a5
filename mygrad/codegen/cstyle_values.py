"""Values of statements as text of the C family: their copies, what they share, how they load.

A value has one copy for each point of the unroll axes it depends on, and is a vector if it depends
on the vector axis. It is computed once, into a variable (`_t7`), where more than one place or more
than one copy uses it, and is written in place otherwise.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from mygrad import dtype as dt
from mygrad import expr as ex
from mygrad.codegen import stmt as st
from mygrad.codegen.cstyle_words import Text, Words, bare, pick
from mygrad.codegen.dialects import Dialect
from mygrad.dtype import DType
from mygrad.errors import InternalError
from mygrad.expr import Expr
from mygrad.ops import ALU, Op

Point = Mapping[Expr, int]  # the current copy: a number for each unroll axis in scope

SHORT = 72  # characters of an expression that is still written in place
_PLAIN = {Op.ADD: "+", Op.MUL: "*", Op.IDIV: "/", Op.MOD: "%"}


@dataclass(frozen=True)
class Name:
    """What a VAR means: copies over the unroll `axes` in order, vectors if `vector` is an axis."""

    label: str
    dtype: DType
    axes: tuple[Expr, ...]
    vector: Expr | None = None
    op: Op | None = None  # of an accumulator


class Values(Words):
    """Text of values at a place in a function: the tile axes, names and arrays in scope there."""

    def __init__(self, function: st.Function, dialect: Dialect) -> None:
        super().__init__(dialect)
        self.function = function
        self.lines: list[str] = []
        self.depth = 1
        self.numbers = itertools.count(1)
        self.tiles: dict[Expr, st.TileAxis] = {}  # in scope
        self.pinned: dict[Expr, int] = {}  # unroll axes inside of a condition that depends on them
        self.names: dict[str, Name] = {}
        self.arrays: dict[str, tuple[DType, str, str]] = {}  # scratch, as `pointer` gives it
        self.vectors = vector_axes(function.body, dialect)
        self.forget()

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def forget(self) -> None:
        """Drop what was computed: what follows may not see the same memory or accumulators."""
        self.known: dict[tuple[Expr, tuple[int, ...]], Text] = {}
        self.depends: dict[Expr, frozenset[Expr]] = {}
        self.orders: dict[Expr, tuple[list[Expr], frozenset[Expr]]] = {}
        self.bases: dict[Expr, Expr] = {}

    # --- dependence on tile axes ----------------------------------------------------------------

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
        ranges = [
            [self.pinned[a]] if a in self.pinned else range(self.tiles[a].active) for a in chosen
        ]
        for numbers in itertools.product(*ranges):
            yield dict(zip(chosen, numbers, strict=True))

    def copies(self, *values: Expr | None) -> Iterator[dict[Expr, int]]:
        """Every point of the unroll axes that some of the values depend on."""
        return self.points(frozenset().union(*(self.axes_of(v) for v in values if v is not None)))

    # --- values ---------------------------------------------------------------------------------

    def operands(self, e: Expr) -> tuple[Expr, ...]:
        """What is computed before `e`: of a load along the vector axis the index of lane 0."""
        return (self.base(e.src[0]), *e.src[1:]) if e.op is Op.LOAD else e.src

    def base(self, index: Expr) -> Expr:
        """The index of lane 0 where the other lanes follow in constant steps, else itself."""
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
        self.line(f"const {self.ctype(dtype, value.lanes)} {name} = {bare(value.text)};")
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
        return (
            Text(f"{found.text}.s0") if found.lanes > 1 and name.vector not in self.tiles else found
        )

    def named(self, name: Name, at: Point) -> Text:
        """The variable of one copy."""
        label = "_".join([name.label, *(str(at.get(a, 0)) for a in name.axes)])
        return Text(label, 1 if name.vector is None else name.vector.arg[1])

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

    # --- memory ---------------------------------------------------------------------------------

    def pointer(self, target: int | str) -> tuple[DType, str, str]:
        """Element type, pointer and address space of a buffer or scratch array."""
        if isinstance(target, str):
            return self.arrays[target]
        return self.function.buffers[target][0], f"b{target}", f"{self.dialect.global_space} "

    def access(
        self,
        table: Mapping[tuple[str, bool], str],
        target: int | str,
        index: str,
        lanes: int = 1,
        **texts: str,
    ) -> str:
        """A load or store of the dialect."""
        dtype, pointer, space = self.pointer(target)
        template = table.get((dtype.name, lanes > 1)) or table[("", lanes > 1)]
        return self.fill(template, dtype, lanes, p=pointer, i=bare(index), q=space, **texts)

    def load(self, e: Expr, src: list[Text], at: Point) -> Text:
        index, valid = src[0], src[1] if len(src) > 1 else None
        vector = self.vector_of(e)
        zero = self.literal(0, e.dtype)
        if vector is None:
            text = self.access(self.dialect.loads, e.arg, index.text)
            return Text(text if valid is None else self.choice(valid, text, zero, e.dtype))
        tile = self.tiles[vector]
        if (
            tile.active == tile.extent
            and self.step(e.src[0], vector) == 1
            and (valid is None or valid.lanes == 1)
        ):
            text = self.access(self.dialect.loads, e.arg, index.text, tile.extent)
            none = self.splat(Text(zero), e.dtype, tile.extent)
            return Text(text if valid is None else f"({valid.text} ? {text} : {none})", tile.extent)
        lanes = [
            self.access(self.dialect.loads, e.arg, i) for i in self.lane_indices(e.src[0], index)
        ]
        if valid is not None:
            valid = self.atom(valid, dt.bool_)
            lanes = [f"({pick(valid, k)} ? {text} : {zero})" for k, text in enumerate(lanes)]
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
            return [pick(atom, k) for k in range(self.tiles[vector].active)]
        return [
            atom.text if k * step == 0 else f"{atom.text} + {k * step}"
            for k in range(self.tiles[vector].active)
        ]

    def active_vector(self) -> Expr:
        """The vector axis in scope."""
        return next(a for a in self.tiles if a in self.vectors)

    def atom(self, value: Text, dtype: DType) -> Text:
        """The value as a name or number, to be written several times."""
        return value if re.fullmatch(r"\w+", value.text) else self.variable(value, dtype)


def vector_axes(body: st.Block, dialect: Dialect) -> frozenset[Expr]:
    """The vector axes of a function that the dialect has vector types for."""
    found: set[Expr] = set()
    work: list[st.Stmt] = list(body)
    while work:
        s = work.pop()
        if isinstance(s, st.Tile):
            found.update(t.axis for t in s.axes if t.kind == "vector" and t.extent in dialect.lanes)
        work += st.inside(s)
    return frozenset(found)


def _cannot_wrap(e: Expr) -> bool:
    """Whether an index operation means what C's does, which may not overflow and truncates."""
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
