"""Nodes of scalar expressions: interned, with interval bounds, free axes and a stable order.

The language is described in `expr.py`, which is what other modules import; `algebra.py` and
`logic.py` hold the rules that simplify. This file only makes nodes.

Bounds: where `low` and `high` of an index expression are known, neither the expression nor any part
of the sums and products it consists of wraps around, so it may be treated as a mathematical
integer. Values of unknown range (a loaded int64) have no bounds, and only rules that hold modulo
2^64 apply to them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from mygrad import dtype as dt
from mygrad.dtype import DType
from mygrad.helpers import KeyedRef
from mygrad.ops import Op

Bounds = tuple[int | None, int | None]
Linear = tuple[dict["Expr", int], int]

UNKNOWN: Bounds = (None, None)
INT_MIN, INT_MAX = int(dt.index.min), int(dt.index.max)
_NO_AXES: frozenset[Expr] = frozenset()


class Expr:
    """One interned expression node. Build them with the functions of `expr.py`, never directly."""

    __slots__ = (
        "__weakref__",
        "arg",
        "axes",
        "binds",
        "digest",
        "dtype",
        "form",
        "high",
        "low",
        "op",
        "rank",
        "src",
    )

    op: Op
    src: tuple[Expr, ...]
    arg: Any
    dtype: DType
    low: int | None  # interval bounds of integer and bool expressions; None when unknown
    high: int | None
    axes: (
        frozenset[Expr] | None
    )  # free axes; None for an AXIS, whose set would hold the node itself
    binds: bool  # whether a REDUCE or SCAN is inside
    form: Linear | None  # cached linear form of sums (algebra.py); never changed in place
    digest: bytes | None  # cached content hash
    rank: tuple[int, Any] | None  # cached sorting key

    def __repr__(self) -> str:
        return PRINTER[0](self)

    # index arithmetic reads as arithmetic
    def __add__(self, other: Expr | int) -> Expr:
        return OPERATORS[Op.ADD](self, wrap(other))

    __radd__ = __add__

    def __sub__(self, other: Expr | int) -> Expr:
        return OPERATORS[Op.ADD](self, OPERATORS[Op.MUL](wrap(other), const(-1)))

    def __rsub__(self, other: int) -> Expr:
        return wrap(other) - self

    def __mul__(self, other: Expr | int) -> Expr:
        return OPERATORS[Op.MUL](self, wrap(other))

    __rmul__ = __mul__

    def __neg__(self) -> Expr:
        return OPERATORS[Op.MUL](self, const(-1))

    def __floordiv__(self, other: Expr | int) -> Expr:
        return OPERATORS[Op.IDIV](self, wrap(other))

    def __mod__(self, other: Expr | int) -> Expr:
        return OPERATORS[Op.MOD](self, wrap(other))

    def __lt__(self, other: Expr | int) -> Expr:
        return OPERATORS[Op.LT](self, wrap(other))

    def __ge__(self, other: Expr | int) -> Expr:
        return OPERATORS[Op.LT](wrap(other) - 1, self)

    def __and__(self, other: Expr) -> Expr:
        return OPERATORS[Op.AND](self, other)

    def __or__(self, other: Expr) -> Expr:
        return OPERATORS[Op.OR](self, other)


OPERATORS: dict[Op, Callable[[Expr, Expr], Expr]] = {}  # filled by algebra.py and logic.py
PRINTER: list[Callable[[Expr], str]] = [object.__repr__]  # replaced by expr.py


# --- interning ------------------------------------------------------------------------------------


_interned: dict[tuple[Any, ...], KeyedRef[Expr]] = {}


def _forget(entry: KeyedRef[Expr]) -> None:
    if _interned.get(entry.key) is entry:
        del _interned[entry.key]


def make(op: Op, src: tuple[Expr, ...], arg: Any, dtype: DType, bounds: Bounds = UNKNOWN) -> Expr:
    """The node with these fields; the same object whenever they are the same."""
    # bit-exact constants: 0.0, -0.0, 0 and False are different keys
    key = (op, dtype, repr(arg)) if op is Op.CONST and dtype.is_float else (op, src, arg, dtype)
    entry = _interned.get(key)
    if entry is not None:
        found = entry()
        if found is not None:
            return found
    made = Expr.__new__(Expr)
    made.op, made.src, made.arg, made.dtype = op, src, arg, dtype
    made.low, made.high = bounds
    made.form = made.digest = made.rank = None
    made.binds = op is Op.REDUCE or op is Op.SCAN
    made.axes = None if op is Op.AXIS else _NO_AXES
    if src:
        _inherit(made)
    entry = KeyedRef(made, _forget)
    entry.key = key
    _interned[key] = entry
    return made


def free_axes(e: Expr) -> frozenset[Expr]:
    """The AXIS expressions the value depends on, without those bound by REDUCE and SCAN."""
    return frozenset((e,)) if e.axes is None else e.axes


def _inherit(e: Expr) -> None:
    """Set what a node has from its operands: free axes, and whether something inside binds axes."""
    axes = _NO_AXES
    for s in e.src:
        more = s.axes
        if more is None:
            more = frozenset((s,))
        if more is not axes and not more <= axes:
            axes = more if axes <= more else axes | more
        if s.binds:
            e.binds = True
    if e.op is Op.REDUCE:
        axes = axes.difference(e.arg[1])
    elif e.op is Op.SCAN:
        axes = (axes - {e.arg[2]}) | {e.arg[1]}
    e.axes = axes


# --- leaves ---------------------------------------------------------------------------------------

_KEPT_CONSTANTS = 1 << 14
_constants: dict[
    float, Expr
] = {}  # index constants that are kept alive: they are half of all look-ups


def const(value: bool | int | float, dtype: DType = dt.index) -> Expr:
    """A constant; by default an index. Integers wrap into the range of their type."""
    if dtype is dt.index:
        found = _constants.get(value)
        return found if found is not None else _index_constant(int(value))
    if dtype.kind == "b":
        value = bool(value)
        return make(Op.CONST, (), value, dtype, (int(value), int(value)))
    if dtype.is_float:
        return make(Op.CONST, (), float(value), dtype)
    value = int(value)
    if not dtype.min <= value <= dtype.max:
        value = (value - int(dtype.min)) % (1 << dtype.bits) + int(dtype.min)
    return make(Op.CONST, (), value, dtype, (value, value))


def _index_constant(value: int) -> Expr:
    if not INT_MIN <= value <= INT_MAX:
        value = (value - INT_MIN) % (1 << 64) + INT_MIN
    made = make(Op.CONST, (), value, dt.index, (value, value))
    if len(_constants) < _KEPT_CONSTANTS:
        _constants[value] = made
    return made


def wrap(value: Expr | int) -> Expr:
    """An index constant, or the expression itself."""
    return value if isinstance(value, Expr) else const(value)


def axis(id: int, extent: int) -> Expr:
    """The loop index `id`, 0 <= index < extent."""
    return make(Op.AXIS, (), (id, extent), dt.index, (0, max(extent - 1, 0)))


def param(name: str, low: int, high: int) -> Expr:
    """A run-time integer."""
    return make(Op.PARAM, (), (name, low, high), dt.index, (low, high))


def var(name: str, dtype: DType) -> Expr:
    """A name bound by a statement (codegen/stmt.py): a Let, or a cell of an accumulator."""
    return make(Op.VAR, (), name, dtype, (0, 1) if dtype.kind == "b" else UNKNOWN)


def is_true(e: Expr) -> bool:
    """Whether a bool expression is known to hold everywhere."""
    return e.dtype.kind == "b" and e.low == 1


def is_false(e: Expr) -> bool:
    """Whether a bool expression is known to hold nowhere."""
    return e.dtype.kind == "b" and e.high == 0


# --- operations as they are, not simplified -------------------------------------------------------


def plain(op: Op, src: tuple[Expr, ...], dtype: DType | None = None) -> Expr:
    """The node of an operation of ops.ALU, without simplification."""
    if dtype is None:
        if op is Op.LT or op is Op.EQ:
            dtype = dt.bool_
        else:
            dtype = src[1].dtype if op is Op.WHERE else src[0].dtype
    if dtype is not dt.index:
        return make(op, src, None, dtype, (0, 1) if dtype.kind == "b" else UNKNOWN)
    return make(op, src, None, dtype, bounds_of(op, src, [(s.low, s.high) for s in src]))


def bounds_of(op: Op, src: tuple[Expr, ...], known: list[Bounds]) -> Bounds:
    """Interval of an index operation whose operands have the intervals `known`."""
    if op is Op.CAST:
        source, (low, high) = src[0].dtype, known[0]
        if source.is_float or (low is None and source is dt.uint64):
            return UNKNOWN
        return (int(source.min), int(source.max)) if low is None else _checked((low, high))
    pairs = [(low, high) for low, high in known if low is not None and high is not None]
    if op is Op.MOD and len(pairs) >= 1 and known[1][0] is not None and known[1][0] > 0:
        return _modulo_bounds(known[0], known[1])
    if len(pairs) != len(known) or op not in _INTERVAL:
        return UNKNOWN
    return _checked(_INTERVAL[op](pairs))


def _modulo_bounds(a: Bounds, d: Bounds) -> Bounds:
    highest = d[1] - 1  # type: ignore[operator]
    if a[0] is not None and a[1] is not None and a[0] >= 0:
        highest = min(highest, a[1])
    return 0, highest


def _checked(bounds: Bounds) -> Bounds:
    low, high = bounds
    if low is None or high is None or low < INT_MIN or high > INT_MAX:
        return UNKNOWN
    return bounds


Interval = tuple[int, int]


def _quotients(known: list[Interval]) -> Bounds:
    (low, high), (least, most) = known
    if least <= 0:
        return UNKNOWN
    corners = (low // least, low // most, high // least, high // most)
    return min(corners), max(corners)


def _products(known: list[Interval]) -> Bounds:
    (a, b), (c, d) = known
    corners = (a * c, a * d, b * c, b * d)
    return min(corners), max(corners)


_INTERVAL: dict[Op, Callable[[list[Interval]], Bounds]] = {
    Op.ADD: lambda known: (known[0][0] + known[1][0], known[0][1] + known[1][1]),
    Op.NEG: lambda known: (-known[0][1], -known[0][0]),
    Op.MUL: _products,
    Op.IDIV: _quotients,
    Op.MAX: lambda known: (max(known[0][0], known[1][0]), max(known[0][1], known[1][1])),
    Op.WHERE: lambda known: (min(known[1][0], known[2][0]), max(known[1][1], known[2][1])),
}


def add_plain(a: Expr, b: Expr) -> Expr:
    """plain(ADD) of index expressions, on the short path: most nodes are made here."""
    if a.low is None or b.low is None or a.high is None or b.high is None:
        return make(Op.ADD, (a, b), None, dt.index)
    low, high = a.low + b.low, a.high + b.high
    return make(
        Op.ADD,
        (a, b),
        None,
        dt.index,
        (low, high) if low >= INT_MIN and high <= INT_MAX else UNKNOWN,
    )


def scale_plain(a: Expr, factor: int) -> Expr:
    """plain(MUL) of an index expression and a constant, on the short path."""
    by = const(factor)
    if a.low is None or a.high is None:
        return make(Op.MUL, (a, by), None, dt.index)
    low, high = a.low * by.arg, a.high * by.arg
    if low > high:
        low, high = high, low
    return make(
        Op.MUL,
        (a, by),
        None,
        dt.index,
        (low, high) if low >= INT_MIN and high <= INT_MAX else UNKNOWN,
    )


# --- a stable order -------------------------------------------------------------------------------


def order(e: Expr) -> tuple[int, Any]:
    """A sorting key that depends on the content of the expression alone, not on the process: axes
    first, by number, then run-time integers by name, then the rest by content hash.
    """
    if e.rank is None:
        if e.op is Op.AXIS:
            e.rank = 0, e.arg
        else:
            e.rank = (1, e.arg) if e.op is Op.PARAM else (2, digest(e))
    return e.rank


def digest(e: Expr) -> bytes:
    """A hash of the content of the expression that is equal in all processes. Work is linear in the
    number of nodes, and cached on them.
    """
    work = [e]
    while work:
        node = work[-1]
        pending = [s for s in node.src if s.digest is None]
        if node.digest is None and pending:
            work += pending
            continue
        work.pop()
        if node.digest is None:
            node.digest = _hash(node)
    assert e.digest is not None
    return e.digest


def _hash(e: Expr) -> bytes:
    arg = e.arg
    if e.op is Op.REDUCE:
        arg = (arg[0], *(a.arg for a in arg[1]))
    elif e.op is Op.SCAN:
        arg = (arg[0], arg[1].arg, arg[2].arg)
    state = hashlib.blake2b(f"{e.op.name} {e.dtype.name} {arg!r}".encode(), digest_size=16)
    for s in e.src:
        state.update(s.digest)  # type: ignore[arg-type]
    return state.digest()
