"""Accumulators as LLVM text: stack cells, one for each point of their unrolled axes, vectors along
their vector axis. The pass `sroa` turns them into registers.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import permutations, product
from operator import mul
from typing import NamedTuple

from mygrad import dtype as dt
from mygrad.codegen.llvm_ops import fill, template
from mygrad.codegen.llvm_rows import shuffle
from mygrad.codegen.llvm_types import lane_mask, literal, mangled, register, scalar, splat
from mygrad.codegen.llvm_values import Emitter, Value
from mygrad.codegen.stmt import Accumulator, Combine, Running, Update
from mygrad.dtype import DType
from mygrad.errors import InternalError, message
from mygrad.expr import Expr, var
from mygrad.helpers import ceildiv, prod, strides_of
from mygrad.ops import Op
from mygrad.program import Target


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


class Accumulators:
    """The accumulators in scope. `vectors` are the axes of the function that are lanes of vectors,
    `across` names the accumulators whose lanes are combined; cells are made at the start of the
    function, by lines of `entry`."""

    def __init__(
        self,
        emitter: Emitter,
        vectors: frozenset[Expr],
        across: frozenset[str],
        entry: list[str],
    ) -> None:
        self.emitter, self.vectors, self.across, self.entry = emitter, vectors, across, entry
        self.cells: dict[str, _Cells] = {}
        emitter.leaf[Op.VAR] = self.current

    def declare(self, a: Accumulator) -> None:
        """Make the cells, or use them again, and set them to the identity."""
        em, base = self.emitter, self.emitter.name()
        unrolled = tuple(x for x in a.axes if x not in self.vectors)
        wide = [x for x in a.axes if x in self.vectors]
        lanes = wide[0].arg[1] if wide else 0
        count = prod(x.arg[1] for x in unrolled)
        cells = _Cells([f"{base}.{i}" for i in range(count)], a.dtype, a.op, unrolled, lanes)
        self.cells[a.name] = cells
        start = splat(_identity(a.op, a.dtype), scalar(a.dtype), lanes)
        self.entry.extend([f"  {name} = alloca {cells.type}, align 64\n" for name in cells.names])
        em.lines.extend([f"  store {cells.type} {start}, ptr {name}\n" for name in cells.names])
        em.written((key(a.name),))

    def registers(self, name: str, target: Target) -> int:
        """Vector registers that one cell of an accumulator takes up."""
        cells = self._named(name)
        return ceildiv(max(cells.lanes, 1) * cells.dtype.itemsize, target.vector_bytes)

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

    def current(self, e: Expr) -> Value:
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
            frozenset((key(e.arg),)),
            keep_scalar=True,
        )

    def update(self, update: Update) -> None:
        """Emit an Update statement; a product that is added becomes a fused multiply-add."""
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
        begin = len(em.lines)
        values = [em.widen(em.evaluate(source), cells.lanes) for source in sources]
        axes = em.merge([tuple(sorted(em.numbers.values()))])
        active = em.active if em.lane_axis is not None else min(cells.lanes, 1)
        if update.name not in self.across:
            active = cells.lanes  # nobody reads the others
        text = _update_text(cells.op, cells.dtype, cells.lanes, fused, active)
        pointers = em.spread(self._current(cells, cells.names, cells.axes), axes)
        steps = [
            text.format(r=em.name(), p=pointer, **dict(zip("bc", row, strict=False)))
            for pointer, *row in zip(pointers, *(em.spread(v, axes) for v in values), strict=True)
        ]
        if any(key(update.name) in v.reads for v in values):  # the cells as they were before
            em.lines.extend(steps)
        else:
            extents = tuple(em.extents[number] for number in axes)
            along = tuple(tuple(number in v.axes for number in axes) for v in values)
            steps = [steps[i] for i in _order_of_cells(extents, along)]
            em.lines[begin:] = _as_late_as_possible(em.lines[begin:], steps)
        em.written((key(update.name),))

    def running(self, running: Running) -> None:
        """Emit a Running statement."""
        em, cells = self.emitter, self._named(running.accumulator)
        if em.lane_axis is None or cells.lanes:
            raise InternalError(message("running", "no lanes to run along", "a vector axis"))
        value = em.widen(em.evaluate(running.value), em.lanes)
        axes = em.merge([tuple(sorted(em.numbers.values()))])
        text = _running_text(cells.op, cells.dtype, em.lanes, em.active)
        pointers, names = em.spread(self._current(cells, cells.names, cells.axes), axes), []
        for pointer, row in zip(pointers, em.spread(value, axes), strict=True):
            names.append(em.name())
            em.lines.append(text.format(r=names[-1], p=pointer, b=row))
        result = Value(names, scalar(cells.dtype), em.lanes, axes)
        em.define(var(running.name, cells.dtype), result)
        em.written((key(running.accumulator),))

    def combine(self, combine: Combine) -> None:
        """Emit a Combine statement."""
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
        if cells.dtype.is_float and cells.op is Op.MAX:
            text = _halving_text(cells.op, cells.dtype, cells.lanes)
        elif cells.dtype.is_float:
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


_ACROSS = {Op.ADD: ("add", "fadd"), Op.MUL: ("mul", "fmul"), Op.MAX: ("smax", "")}
_ACROSS_BOOL = {Op.ADD: "or", Op.MUL: "and", Op.MAX: "or"}


@cache
def _order_of_cells(extents: tuple[int, ...], along: tuple[tuple[bool, ...], ...]) -> list[int]:
    """The cells of a tile, by their numbers in row-major order, so that few operands are needed at
    the same time; `along` says for each operand which axes it depends on.

    2 columns, 14 rows: by columns, the 14 rows wait for the second column; by rows, 2 columns wait
    """

    def waiting(order: tuple[int, ...]) -> int:
        total = 0
        for depends in along:
            again = next((n for n, axis in enumerate(order) if not depends[axis]), len(order))
            total += prod(extents[axis] for axis in order[again:] if depends[axis])
        return total

    best = min(permutations(range(len(extents))), key=waiting)
    steps = strides_of(extents)
    points = product(*(range(extents[axis]) for axis in best))
    return [sum(steps[axis] * i for axis, i in zip(best, p, strict=True)) for p in points]


def _as_late_as_possible(lines: list[str], steps: list[str]) -> list[str]:
    """The steps, each behind those lines that it is the first one to need: LLVM keeps about the
    order that it is given, and has no registers for the operands of a whole tile.

    a0 = load    a1 = load    b = load       ->    a0 = load    b = load    c0 += a0 * b
    c0 += a0 * b    c1 += a1 * b                   a1 = load    c1 += a1 * b
    """
    waiting = {name: line for line in lines for name in _DEFINED.findall(line)}
    ordered: dict[str, None] = {}

    def put(line: str) -> None:
        for name in _NAME.findall(line):
            if needed := waiting.pop(name, ""):
                put(needed)
        ordered[line] = None

    for line in (*steps, *lines):
        put(line)
    return list(ordered)


_NAME = re.compile(r"%v\d+")
_DEFINED = re.compile(r"^  (%v\d+)\S* =", re.MULTILINE)


def key(accumulator: str) -> str:
    """An accumulator among the targets that values may have read."""
    return f"accumulator {accumulator}"


def _identity(op: Op, dtype: DType) -> str:
    return literal({Op.ADD: 0, Op.MUL: 1, Op.MAX: dtype.min}[op], dtype)


@cache
def _halving_text(op: Op, dtype: DType, lanes: int) -> str:
    """{r} = the lanes of {a} combined, halves with each other: LLVM's own maximum of lanes that
    may be NaN goes through general registers.

    a b c d  ->  ac bd  ->  acbd
    """
    text, now = "", "{a}"
    while lanes > 2:
        half, ty = lanes // 2, register(dtype, lanes)
        text += shuffle(f"{{r}}.l{half}", ty, now, "poison", list(range(half)))
        text += shuffle(f"{{r}}.h{half}", ty, now, "poison", list(range(half, lanes)))
        step = template(op, dtype, dtype, half)
        text += fill(step, f"{{r}}.{half}", f"{{r}}.l{half}", f"{{r}}.h{half}")
        now, lanes = f"{{r}}.{half}", half
    ty = register(dtype, lanes)
    for n in range(2):
        text += f"  {{r}}.e{n} = extractelement {ty} {now}, i64 {n}\n"
    return text + fill(template(op, dtype, dtype, 0), "{r}", "{r}.e0", "{r}.e1")


@cache
def _running_text(op: Op, dtype: DType, lanes: int, active: int) -> str:
    """{r} = cell {p} op the lanes of {b} up to each, which double in number with every step; the
    cell becomes the last. The next vector waits for one scalar operation only.

    a b c d  ->  a ab bc cd  ->  a ab abc abcd  ->  pa pab pabc pabcd
    """
    ty, one, now = register(dtype, lanes), register(dtype, 0), "{b}"
    start = splat(_identity(op, dtype), scalar(dtype), lanes)
    across, alone = template(op, dtype, dtype, lanes), template(op, dtype, dtype, 0)
    text = f"  {{r}}.p = load {one}, ptr {{p}}\n"
    if active < lanes:
        mask = lane_mask(active, lanes)
        text += f"  {{r}}.0 = select <{lanes} x i1> {mask}, {ty} {now}, {ty} {start}\n"
        now = "{r}.0"
    step = 1
    while step < active:
        order = [lanes + lane if lane < step else lane - step for lane in range(lanes)]
        text += shuffle(f"{{r}}.s{step}", ty, now, start, order)
        text += fill(across, f"{{r}}.{step}", f"{{r}}.s{step}", now)
        now, step = f"{{r}}.{step}", 2 * step
    text += (
        f"  {{r}}.e = extractelement {ty} {now}, i64 {lanes - 1}\n"
        f"  {{r}}.i = insertelement {ty} poison, {one} {{r}}.p, i64 0\n"
        + shuffle("{r}.w", ty, "{r}.i", "poison", [0] * lanes)
        + fill(across, "{r}", "{r}.w", now)
        + fill(alone, "{r}.n", "{r}.p", "{r}.e")
    )
    return text + f"  store {one} {{r}}.n, ptr {{p}}\n"


@cache
def _update_text(op: Op, dtype: DType, lanes: int, fused: bool, active: int) -> str:
    """cell {p} = cell op {b}, or cell + {b} * {c}; only in the first `active`
    lanes."""
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
