"""Scalar expressions inside statements as LLVM text: scopes, copies, vectors, and sharing.

    Value   the registers of an expression: one name for each combination of the unrolled tile
            axes that it depends on, each of them a scalar or a vector
    Scope   an open block of statements: where its text goes, and which values die when it closes

An expression is emitted once per scope and copy, in the outermost scope in which its operands
live; what is not cheap index arithmetic, and loads that could fail, only as far out as it is
certain to be needed. Values that read memory or accumulators are forgotten when something is
stored there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager

from mygrad import dtype as dt
from mygrad.codegen.llvm_ops import template
from mygrad.codegen.llvm_types import literal, scalar
from mygrad.codegen.stmt import TileAxis
from mygrad.errors import InternalError, message
from mygrad.expr import Expr, const, linear
from mygrad.ops import ALU, Op

Target = int | str  # what a value may have read: a buffer slot, a scratch array, an accumulator
Axes = tuple[int, ...]  # numbers of unrolled tile axes, ascending
NOTHING: frozenset[Target] = frozenset()


class Value:
    """Registers, one name per copy in row-major order over `axes`; vectors if `lanes`."""

    __slots__ = ("axes", "depth", "element", "lanes", "names", "reads", "wide")

    def __init__(
        self,
        names: list[str],
        element: str,
        lanes: int = 0,
        axes: Axes = (),
        depth: int = 0,
        reads: frozenset[Target] = NOTHING,
    ) -> None:
        self.names = names
        self.element = element  # the register type of one lane
        self.lanes = lanes
        self.axes = axes
        self.depth = depth  # of the scope in which the names are defined
        self.reads = reads
        self.wide: Value | None = None  # the same, in every lane of a vector


class Scope:
    """An open block: its lines of text, the keys of the values that are defined in it, and the
    outermost scope that surely runs into it."""

    __slots__ = ("floor", "lines", "owned")

    def __init__(self, lines: list[str], floor: int) -> None:
        self.lines = lines
        self.floor = floor
        self.owned: list[Hashable] = []


class Emitter:
    """Writes expressions. `leaf[op]` emits what is not arithmetic: loads, and names of
    accumulators."""

    def __init__(self, features: frozenset[str] = frozenset()) -> None:
        self.features = features  # of the target
        self.scopes = [Scope([], 0)]
        self.values: dict[Hashable, Value] = {}
        self.leaf: dict[Op, Callable[[Expr], Value]] = {}
        self.extents: list[int] = []  # of unrolled axes, by number
        self.numbers: dict[Expr, int] = {}  # the unrolled axes in scope
        self.fixed: dict[int, int] = {}  # those that stand for one copy here
        self.lane_axis: Expr | None = None
        self.lanes = 0
        self.active = 0
        self._readers: dict[Target, list[Hashable]] = {}
        self._positions: dict[tuple[Axes, Axes, tuple[tuple[int, int], ...]], list[int]] = {}
        self._count = itertools.count()

    # --- scopes --------------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """The number of the innermost scope."""
        return len(self.scopes) - 1

    @property
    def lines(self) -> list[str]:
        """Where text goes now."""
        return self.scopes[-1].lines

    @property
    def floor(self) -> int:
        """The outermost scope to which what is computed here may be moved at no risk."""
        return self.scopes[-1].floor

    def name(self) -> str:
        """A new register."""
        return f"%v{next(self._count)}"

    def label(self, what: str) -> str:
        """A new label, without its percent sign."""
        return f"{what}{next(self._count)}"

    @contextmanager
    def scope(self, lines: list[str], sure: bool = False) -> Iterator[None]:
        """A block whose text is appended to `lines` and whose values die at its end. `sure`: it
        runs at least once whenever the block around it does."""
        self.scopes.append(Scope(lines, self.floor if sure else len(self.scopes)))
        yield
        for key in self.scopes.pop().owned:
            self.values.pop(key, None)

    @contextmanager
    def tile(self, axes: tuple[TileAxis, ...]) -> Iterator[None]:
        """The scope of a tile: its axes have values inside."""
        before = dict(self.numbers), self.lane_axis, self.lanes, self.active
        hidden: dict[Hashable, Value] = {
            t.axis: self.values[t.axis] for t in axes if t.axis in self.values
        }
        with self.scope(self.lines, sure=True):
            for axis in axes:
                if axis.kind == "vector":
                    self._enter_vector(axis)
                else:
                    self._enter_unroll(axis)
            yield
            self.numbers, self.lane_axis, self.lanes, self.active = before
        self.values.update(hidden)

    def _enter_vector(self, axis: TileAxis) -> None:
        if self.lane_axis not in (None, axis.axis):
            raise InternalError(message("tile", "a second vector axis", "at most one in scope"))
        self.lane_axis, self.lanes, self.active = axis.axis, axis.extent, axis.active
        lanes = "<" + ", ".join(f"i64 {lane}" for lane in range(axis.extent)) + ">"
        self.define(axis.axis, Value([lanes], "i64", axis.extent))

    def _enter_unroll(self, axis: TileAxis) -> None:
        number = self.numbers.get(axis.axis)
        if number is None or self.extents[number] != axis.extent:
            number = len(self.extents)
            self.extents.append(axis.extent)
        self.numbers[axis.axis] = number
        names = [str(point) for point in range(axis.extent)]
        self.define(axis.axis, Value(names, "i64", axes=(number,)))

    @contextmanager
    def fix(self, axes: Axes, point: tuple[int, ...]) -> Iterator[None]:
        """A scope in which some unrolled axes stand for one copy only."""
        before = dict(self.fixed)
        self.fixed.update(zip(axes, point, strict=True))
        yield
        self.fixed = before

    def define(self, key: Hashable, value: Value, depth: int | None = None) -> Value:
        """Bind a key to registers that live in the scope `depth`, by default the innermost."""
        value.depth = self.depth if depth is None else depth
        self.values[key] = value
        self.scopes[value.depth].owned.append(key)
        for target in value.reads:
            self._readers.setdefault(target, []).append(key)
        return value

    def written(self, targets: Iterable[Target]) -> None:
        """Forget every value that depends on the old content of these."""
        for target in targets:
            for key in self._readers.pop(target, ()):
                self.values.pop(key, None)

    # --- copies --------------------------------------------------------------------------------

    def merge(self, axes: Iterable[Axes]) -> Axes:
        """The unrolled axes of something that depends on all of these."""
        merged: Axes | None = None
        for some in axes:
            if merged is None:
                merged = some
            elif some != merged:
                merged = tuple(sorted({*merged, *some}))
        merged = merged or ()
        return tuple(a for a in merged if a not in self.fixed) if self.fixed else merged

    def copies(self, axes: Axes) -> int:
        """How many copies something over these axes has."""
        count = 1
        for number in axes:
            count *= self.extents[number]
        return count

    def points(self, axes: Axes) -> Iterator[tuple[int, ...]]:
        """The coordinates of the copies, in row-major order."""
        return itertools.product(*(range(self.extents[number]) for number in axes))

    def positions(self, outer: Axes, inner: Axes) -> list[int]:
        """For every copy over `outer`, the copy over `inner` with the same coordinates."""
        key = (outer, inner, tuple(self.fixed.items()))
        found = self._positions.get(key)
        if found is None:
            found = []
            for point in self.points(outer):
                at = {**self.fixed, **dict(zip(outer, point, strict=True))}
                position = 0
                for number in inner:
                    position = position * self.extents[number] + at[number]
                found.append(position)
            self._positions[key] = found
        return found

    def spread(self, value: Value, axes: Axes) -> list[str]:
        """The names of a value for every copy over `axes`."""
        if value.axes == axes:
            return value.names
        names = value.names
        return [names[position] for position in self.positions(axes, value.axes)]

    def widen(self, value: Value, lanes: int) -> Value:
        """The value in every lane of a vector."""
        if value.lanes or not lanes:
            return value
        if value.wide is None or value.wide.lanes != lanes:
            ty, lines = f"<{lanes} x {value.element}>", self.scopes[value.depth].lines
            names = [self._splat(name, value.element, ty, lines) for name in value.names]
            value.wide = Value(names, value.element, lanes, value.axes, value.depth, value.reads)
        return value.wide

    def _splat(self, name: str, element: str, ty: str, lines: list[str]) -> str:
        if not name.startswith("%"):
            return f"splat ({element} {name})"
        one, wide = self.name(), self.name()
        lines.append(
            f"  {one} = insertelement {ty} poison, {element} {name}, i64 0\n"
            f"  {wide} = shufflevector {ty} {one}, {ty} poison, {ty.split(' x ')[0]} x i32> "
            "zeroinitializer\n"
        )
        return wide

    # --- expressions ---------------------------------------------------------------------------

    def place(self, operands: list[Value], to: int) -> int:
        """The outermost scope, not further out than `to`, in which all operands live."""
        if self.fixed and any(n in self.fixed for v in operands for n in v.axes):
            return self.depth  # one copy has been picked, which is only true here
        return max((to, *(v.depth for v in operands)))

    def evaluate(self, root: Expr) -> Value:
        """The registers that hold an expression, emitting what is missing."""
        found = self.values.get(root)
        if found is not None:
            return found
        work = [root]
        while work:
            e = work[-1]
            if e in self.values:
                work.pop()
                continue
            missing = [s for s in self._operands(e) if s not in self.values]
            if missing:
                work += missing[::-1]
            else:
                work.pop()
                self._emit(e)
        return self.values[root]

    def _operands(self, e: Expr) -> Iterable[Expr]:
        return (*linear(e.src[0])[0], *e.src[1:]) if e.op is Op.LOAD else e.src

    def _emit(self, e: Expr) -> None:
        if e.op is Op.CONST:
            self.define(e, Value([literal(e.arg, e.dtype)], scalar(e.dtype)), 0)
        elif e.op in ALU:
            self._emit_alu(e)
        elif e.op in self.leaf:
            value = self.leaf[e.op](e)
            self.define(e, value, value.depth)
        else:
            raise InternalError(message("llvm", f"the unbound expression {e!r}", "a bound one"))

    def _emit_alu(self, e: Expr) -> None:
        op, src = _strengthen(e)
        operands = [self.values.get(s) or self.evaluate(s) for s in src]
        lanes = max(v.lanes for v in operands)
        one_condition = op is Op.WHERE and lanes > 0 and operands[0].lanes == 0
        reads = (
            frozenset().union(*(v.reads for v in operands))
            if any(v.reads for v in operands)
            else NOTHING
        )
        dtype, result = src[-1].dtype, e.dtype
        if lanes and op in _NARROW and all(fits_int32(s) for s in src):
            operands = [self.narrow(s, v) for s, v in zip(src, operands, strict=True)]
            dtype, result = dt.int32, dt.bool_ if result is dt.bool_ else dt.int32
        safe = one_condition if op is Op.WHERE else _is_safe(op, e, src)
        text = template(op, dtype, result, lanes, safe, self.features)
        to = 0 if _has_bounds(e) else self.floor
        value = self.apply(
            text,
            operands,
            scalar(result),
            lanes,
            reads=reads,
            keep_scalar=one_condition,
            to=to,
        )
        if result is not e.dtype:
            wide = template(Op.CAST, result, e.dtype, lanes)
            value = self.apply(wide, [value], scalar(e.dtype), lanes, reads=reads, to=to)
        self.define(e, value, value.depth)

    def narrow(self, e: Expr, value: Value) -> Value:
        """An index in 32 bits, which vectors divide and compare in half the time or less."""
        found = self.values.get(("int32", e))
        if found is None:
            text = template(Op.CAST, dt.index, dt.int32, value.lanes)
            found = self.apply(text, [value], "i32", value.lanes, reads=value.reads, to=0)
            self.define(("int32", e), found, found.depth)
        return found

    def apply(
        self,
        text: str,
        operands: list[Value],
        element: str,
        lanes: int,
        reads: frozenset[Target] = NOTHING,
        keep_scalar: bool = False,
        to: int | None = None,
    ) -> Value:
        """Instantiate a template for every copy of its operands, in the outermost scope in which
        they live, but not further out than the scope `to` (by default the innermost one).
        `keep_scalar`: the first operand is not widened."""
        axes = self.merge([v.axes for v in operands])
        depth = self.place(operands, self.depth if to is None else to)
        wide = [
            v if keep_scalar and i == 0 else self.widen(v, lanes) for i, v in enumerate(operands)
        ]
        columns = [self.spread(v, axes) for v in wide]
        lines, names = self.scopes[depth].lines, []
        for row in zip(*columns, strict=True):
            name = self.name()
            lines.append(text.format(r=name, **dict(zip("abc", row, strict=False))))
            names.append(name)
        return Value(names, element, lanes, axes, depth, reads)


_NARROW = frozenset({Op.LT, Op.EQ, Op.IDIV, Op.MOD})


def fits_int32(e: Expr) -> bool:
    """Whether an index always fits in 32 bits."""
    return _has_bounds(e) and e.low >= -(1 << 31) and e.high < 1 << 31  # type: ignore[operator]


def _has_bounds(e: Expr) -> bool:
    """Whether this is index arithmetic: it cannot wrap around, and is cheap enough to hoist."""
    low, high = e.low, e.high
    return (
        e.dtype is dt.index
        and low is not None
        and high is not None
        and (low >= -(1 << 63) and high < 1 << 63)
    )


def _strengthen(e: Expr) -> tuple[Op, tuple[Expr, ...]]:
    """The same value by cheaper operations: floor division by a power of two, and a MAX whose first
    operand is not NaN."""
    op, src = e.op, e.src
    if op in (Op.IDIV, Op.MOD) and src[1].op is Op.CONST and src[1].arg > 0:
        divisor = src[1].arg
        if divisor & (divisor - 1) == 0:
            if op is Op.IDIV:
                return Op.SHR, (src[0], const(divisor.bit_length() - 1, e.dtype))
            return Op.AND, (src[0], const(divisor - 1, e.dtype))
    if op is Op.MAX and src[1].op is Op.CONST:
        return op, (src[1], src[0])
    return op, src


def _is_safe(op: Op, e: Expr, src: tuple[Expr, ...]) -> bool:
    """What `template` calls safe."""
    if op in (Op.ADD, Op.MUL, Op.NEG):
        return _has_bounds(e)
    if op is Op.MAX:
        return src[0].op is Op.CONST and src[0].arg == src[0].arg
    if op in (Op.IDIV, Op.MOD):
        # by a constant: lanes that do not exist may hold a divisor outside of its bounds
        dividend, divisor = src
        return (
            divisor.op is Op.CONST
            and divisor.arg > 0
            and (divisor.dtype.kind == "u" or (dividend.low is not None and dividend.low >= 0))
        )
    if op in (Op.SHL, Op.SHR):
        return src[1].op is Op.CONST and 0 <= src[1].arg < e.dtype.bits
    return False
