"""Scalar expressions of kernels, and the index algebra.

    Expr = CONST(value)                        arg = Python value
         | AXIS(id, extent)                    a loop index, 0 <= index < extent; id is unique in a kernel
         | PARAM(name, low, high)              a run-time integer, low <= value <= high
         | LOAD(slot)(index[, valid])          element `index` of buffer `slot`; 0 where valid is false
         | alu(Expr, ...)                      the operations of ops.ALU, with their meaning
         | REDUCE(op, axes)(body)              combine the body over all values of `axes` (AXIS expressions)
         | SCAN(op, axis, bound)(body)         combine the body over bound = 0 .. axis inclusive; `bound` is an
                                               AXIS that only the body uses, with axis's extent

Invariants: expressions are interned, so `is` is equality; index expressions have dtype `dtype.index`; a
bound axis (of REDUCE, SCAN) does not occur outside of its body; `low` and `high` of an integer expression
bound its value for all values of its axes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from mygrad import dtype as dt
from mygrad.dtype import DType
from mygrad.errors import InternalError
from mygrad.ops import ALU, Op

_interned: weakref.WeakValueDictionary[tuple[Any, ...], Expr] = weakref.WeakValueDictionary()


class Expr:
    """One interned expression node. Build them with the functions below, never directly."""

    __slots__ = ("__weakref__", "_axes", "arg", "dtype", "high", "low", "op", "src")

    op: Op
    src: tuple[Expr, ...]
    arg: Any
    dtype: DType
    low: int | None  # interval bounds of integer and bool expressions; None when unknown
    high: int | None
    _axes: frozenset[Expr] | None

    def __repr__(self) -> str:
        return text(self)

    # index arithmetic reads as arithmetic
    def __add__(self, other: Expr | int) -> Expr:
        return add(self, wrap(other))

    __radd__ = __add__

    def __sub__(self, other: Expr | int) -> Expr:
        return add(self, mul(wrap(other), wrap(-1)))

    def __rsub__(self, other: int) -> Expr:
        return wrap(other) - self

    def __mul__(self, other: Expr | int) -> Expr:
        return mul(self, wrap(other))

    __rmul__ = __mul__

    def __floordiv__(self, other: Expr | int) -> Expr:
        return floordiv(self, wrap(other))

    def __mod__(self, other: Expr | int) -> Expr:
        return modulo(self, wrap(other))

    def __lt__(self, other: Expr | int) -> Expr:
        return less(self, wrap(other))

    def __ge__(self, other: Expr | int) -> Expr:
        return less(wrap(other) - 1, self)


def wrap(value: Expr | int) -> Expr:
    """An index constant, or the expression itself."""
    return value if isinstance(value, Expr) else const(value)


# --- construction ------------------------------------------------------------------------------------


def _make(op: Op, src: tuple[Expr, ...], arg: Any, dtype: DType,
          bounds: tuple[int | None, int | None] = (None, None)) -> Expr:
    # bit-exact constants: 0.0, -0.0, 0 and False are different keys
    key = (op, dtype, repr(arg)) if op is Op.CONST else (op, src, arg, dtype)
    found = _interned.get(key)
    if found is not None:
        return found
    made = Expr.__new__(Expr)
    made.op, made.src, made.arg, made.dtype = op, src, arg, dtype
    made.low, made.high = bounds
    made._axes = None
    _interned[key] = made
    return made


def const(value: bool | int | float, dtype: DType = dt.index) -> Expr:
    """A constant; by default an index."""
    if dtype.kind == "b":
        value = bool(value)
    elif dtype.is_float:
        value = float(value)
    else:
        value = int(value)
    bounds = (None, None) if dtype.is_float else (int(value), int(value))
    return _make(Op.CONST, (), value, dtype, bounds)


def axis(id: int, extent: int) -> Expr:
    """The loop index `id`, 0 <= index < extent."""
    return _make(Op.AXIS, (), (id, extent), dt.index, (0, max(extent - 1, 0)))


def param(name: str, low: int, high: int) -> Expr:
    """A run-time integer."""
    return _make(Op.PARAM, (), (name, low, high), dt.index, (low, high))


def load(slot: int | str, dtype: DType, index: Expr, valid: Expr | None = None) -> Expr:
    """Element `index` of buffer `slot`, or of the scratch array of that name; 0 where `valid` is false."""
    src = (index,) if valid is None or is_true(valid) else (index, valid)
    bounds = (0, 1) if dtype.kind == "b" else (None, None)
    return _make(Op.LOAD, src, slot, dtype, bounds)


def reduce(op: Op, body: Expr, axes: Iterable[Expr]) -> Expr:
    """Combine `body` over all values of `axes` with ADD, MUL or MAX."""
    return _make(Op.REDUCE, (body,), (op, tuple(axes)), body.dtype)


def scan(op: Op, body: Expr, axis: Expr, bound: Expr) -> Expr:
    """Combine `body` over bound = 0 .. axis inclusive."""
    return _make(Op.SCAN, (body,), (op, axis, bound), body.dtype)


def var(name: str, dtype: DType) -> Expr:
    """A name bound by a statement (codegen/stmt.py): a Let, or the current cell of an accumulator."""
    return _make(Op.VAR, (), name, dtype, (0, 1) if dtype.kind == "b" else (None, None))


def is_true(e: Expr) -> bool:
    """Whether a bool expression is known to hold everywhere."""
    return e.dtype.kind == "b" and e.low == 1


def is_false(e: Expr) -> bool:
    """Whether a bool expression is known to hold nowhere."""
    return e.dtype.kind == "b" and e.high == 0


def alu(op: Op, *src: Expr, dtype: DType | None = None) -> Expr:
    """An operation of ops.ALU on operands that already agree in dtype; `dtype` is the target of casts.

    Integer and bool operations are simplified through the index algebra; float operations only where the
    value is unchanged bit for bit.
    """
    if op in _ALGEBRA:
        return _ALGEBRA[op](*src) if _in_algebra(op, src) else _plain(op, src, dtype)
    return _plain(op, src, dtype)


def _in_algebra(op: Op, src: tuple[Expr, ...]) -> bool:
    if op is Op.WHERE:
        return True
    return src[0].dtype is dt.index or (src[0].dtype.kind == "b" and op in (Op.AND, Op.OR))


def _plain(op: Op, src: tuple[Expr, ...], dtype: DType | None = None) -> Expr:
    if dtype is None:
        if op in (Op.LT, Op.EQ):
            dtype = dt.bool_
        else:
            dtype = src[1].dtype if op is Op.WHERE else src[0].dtype
    if op in (Op.CAST, Op.BITCAST) and dtype is src[0].dtype:
        return src[0]
    return _make(op, src, None, dtype, _bounds(op, src, dtype))


def _bounds(op: Op, src: tuple[Expr, ...], dtype: DType) -> tuple[int | None, int | None]:
    """Interval of the result; only for index arithmetic and bool, where wrapping cannot happen."""
    if dtype.kind == "b":
        return 0, 1
    if op is Op.CAST and dtype is dt.index and src[0].dtype.itemsize < 8 and not src[0].dtype.is_float:
        return (src[0].low if src[0].low is not None else int(src[0].dtype.min),
                src[0].high if src[0].high is not None else int(src[0].dtype.max))
    if dtype is not dt.index or any(s.low is None or s.high is None for s in src):
        return None, None
    return _interval(op, src)


def _interval(op: Op, src: tuple[Expr, ...]) -> tuple[int | None, int | None]:
    los, his = [s.low for s in src], [s.high for s in src]
    if op is Op.ADD:
        return los[0] + los[1], his[0] + his[1]  # type: ignore[operator]
    if op is Op.NEG:
        return -his[0], -los[0]  # type: ignore[operator]
    if op is Op.MUL:
        corners = [a * b for a in (los[0], his[0]) for b in (los[1], his[1])]  # type: ignore[operator]
        return min(corners), max(corners)
    if op is Op.MAX:
        return max(los[0], los[1]), max(his[0], his[1])  # type: ignore[type-var]
    if op is Op.IDIV and los[1] is not None and los[1] > 0:
        corners = [a // b for a in (los[0], his[0]) for b in (los[1], his[1])]  # type: ignore[operator]
        return min(corners), max(corners)
    if op is Op.MOD and los[1] is not None and los[1] > 0:
        return 0, his[1] - 1  # type: ignore[operator]
    if op is Op.WHERE:
        return min(los[1], los[2]), max(his[1], his[2])  # type: ignore[type-var]
    return None, None


# --- index algebra: canonical sums of products ---------------------------------------------------------


def linear(e: Expr) -> tuple[dict[Expr, int], int]:
    """e = sum(coefficient * term) + constant, with terms that are not themselves sums or multiples."""
    terms: dict[Expr, int] = {}
    constant = 0
    work = [(e, 1)]
    while work:
        node, factor = work.pop()
        if node.op is Op.CONST:
            constant += factor * node.arg
        elif node.op is Op.ADD:
            work += [(node.src[1], factor), (node.src[0], factor)]
        elif node.op is Op.MUL and node.src[1].op is Op.CONST:
            work.append((node.src[0], factor * node.src[1].arg))
        else:
            terms[node] = terms.get(node, 0) + factor
    return {t: c for t, c in terms.items() if c}, constant


def from_linear(terms: dict[Expr, int], constant: int) -> Expr:
    """The canonical expression of a linear form: terms in a fixed order, the constant last."""
    result: Expr | None = None
    for term in sorted(terms, key=_order):
        if terms[term] == 0:
            continue
        product = term if terms[term] == 1 else _plain(Op.MUL, (term, const(terms[term])))
        result = product if result is None else _plain(Op.ADD, (result, product))
    if result is None:
        return const(constant)
    return result if constant == 0 else _plain(Op.ADD, (result, const(constant)))


def _order(e: Expr) -> tuple[int, Any]:
    if e.op is Op.AXIS:
        return 0, e.arg
    return (1, e.arg) if e.op is Op.PARAM else (2, text(e))


def add(a: Expr, b: Expr) -> Expr:
    """a + b for index expressions."""
    terms, constant = linear(a)
    more, extra = linear(b)
    for term, coefficient in more.items():
        terms[term] = terms.get(term, 0) + coefficient
    return from_linear(terms, constant + extra)


def mul(a: Expr, b: Expr) -> Expr:
    """a * b for index expressions."""
    if a.op is Op.CONST:
        a, b = b, a
    if b.op is not Op.CONST:
        return _plain(Op.MUL, (a, b))
    terms, constant = linear(a)
    return from_linear({t: c * b.arg for t, c in terms.items()}, constant * b.arg)


def floordiv(a: Expr, b: Expr) -> Expr:
    """a // b for index expressions."""
    if b.op is not Op.CONST or b.arg <= 0:
        return _plain(Op.IDIV, (a, b))
    d = b.arg
    if d == 1:
        return a
    if a.low is not None and a.high is not None and a.low // d == a.high // d:
        return const(a.low // d)
    whole, rest = _divide(a, d)
    if whole is not None:
        return add(whole, floordiv(rest, b))
    if a.op is Op.IDIV and a.src[1].op is Op.CONST and a.src[1].arg > 0:  # (x // c) // d = x // (c*d)
        return floordiv(a.src[0], const(a.src[1].arg * d))
    return _plain(Op.IDIV, (a, b))


def modulo(a: Expr, b: Expr) -> Expr:
    """a % b for index expressions."""
    if b.op is not Op.CONST or b.arg <= 0:
        return _plain(Op.MOD, (a, b))
    d = b.arg
    if a.low is not None and a.high is not None and a.low // d == a.high // d:
        return add(a, const(-(a.low // d) * d))
    whole, rest = _divide(a, d)
    if whole is not None:
        return modulo(rest, b)
    return _plain(Op.MOD, (a, b))


def _divide(a: Expr, d: int) -> tuple[Expr | None, Expr]:
    """a = d * whole + rest, taking every multiple of d into whole; None when there is none."""
    terms, constant = linear(a)
    whole = {t: c // d for t, c in terms.items() if c % d == 0}
    rest = {t: c for t, c in terms.items() if c % d}
    if not whole and not constant // d:
        return None, a
    return from_linear(whole, constant // d), from_linear(rest, constant % d)


def less(a: Expr, b: Expr) -> Expr:
    """a < b for index expressions."""
    difference = add(a, mul(b, const(-1)))
    if difference.high is not None and difference.high < 0:
        return const(True, dt.bool_)
    if difference.low is not None and difference.low >= 0:
        return const(False, dt.bool_)
    return _plain(Op.LT, (a, b))


def equal(a: Expr, b: Expr) -> Expr:
    """a == b for index expressions."""
    difference = add(a, mul(b, const(-1)))
    if difference.op is Op.CONST:
        return const(difference.arg == 0, dt.bool_)
    if (difference.low or 0) > 0 or (difference.high is not None and difference.high < 0):
        return const(False, dt.bool_)
    return _plain(Op.EQ, (a, b))


def both(a: Expr, b: Expr) -> Expr:
    """a and b, for bool expressions."""
    if is_true(a) or is_false(b) or a is b:
        return b
    if is_true(b) or is_false(a):
        return a
    return _plain(Op.AND, (a, b))


def either(a: Expr, b: Expr) -> Expr:
    """a or b, for bool expressions."""
    if is_true(a) or is_false(b) or a is b:
        return a
    if is_true(b) or is_false(a):
        return b
    return _plain(Op.OR, (a, b))


def where(condition: Expr, a: Expr, b: Expr) -> Expr:
    """a where the condition holds, else b."""
    if is_true(condition) or a is b:
        return a
    return b if is_false(condition) else _plain(Op.WHERE, (condition, a, b))


_ALGEBRA: dict[Op, Callable[..., Expr]] = {
    Op.ADD: add, Op.MUL: mul, Op.IDIV: floordiv, Op.MOD: modulo, Op.LT: less, Op.EQ: equal,
    Op.AND: both, Op.OR: either, Op.WHERE: where,
}


# --- questions and substitution ------------------------------------------------------------------------


def toposort(roots: Iterable[Expr]) -> list[Expr]:
    """Every expression reachable from the roots, operands first; without recursion."""
    order: list[Expr] = []
    state: dict[Expr, bool] = {}  # False: operands pending, True: done
    work = list(roots)[::-1]
    while work:
        e = work[-1]
        if state.get(e) is None:
            state[e] = False
            work += [s for s in reversed(e.src) if s not in state]
        else:
            work.pop()
            if not state[e]:
                state[e] = True
                order.append(e)
    return order


def free_axes(e: Expr) -> frozenset[Expr]:
    """The AXIS expressions the value depends on, without those bound by REDUCE and SCAN."""
    if e._axes is None:
        for node in toposort([e]):
            if node._axes is None:
                node._axes = _free(node)
    assert e._axes is not None
    return e._axes


def _free(e: Expr) -> frozenset[Expr]:
    if e.op is Op.AXIS:
        return frozenset((e,))
    inner: frozenset[Expr] = frozenset().union(*(s._axes for s in e.src))  # type: ignore[arg-type]
    if e.op is Op.REDUCE:
        return inner - frozenset(e.arg[1])
    if e.op is Op.SCAN:
        return (inner - {e.arg[2]}) | {e.arg[1]}
    return inner


def rebuild(e: Expr, src: tuple[Expr, ...], rename: Callable[[Expr], Expr] = lambda a: a) -> Expr:
    """The same operation on other operands, simplified again; `rename` maps the axes in arg."""
    if e.op in ALU:
        return alu(e.op, *src, dtype=e.dtype)
    if e.op is Op.LOAD:
        return load(e.arg, e.dtype, *src)
    if e.op is Op.REDUCE:
        return reduce(e.arg[0], src[0], tuple(rename(a) for a in e.arg[1]))
    if e.op is Op.SCAN:
        return scan(e.arg[0], src[0], rename(e.arg[1]), rename(e.arg[2]))
    raise InternalError(f"rebuild: {e.op} has no operands")


def substitute(e: Expr, mapping: dict[Expr, Expr]) -> Expr:
    """Replace expressions everywhere (also in the axis lists of REDUCE and SCAN, where the replacement
    must be an AXIS again) and simplify what changes."""
    done: dict[Expr, Expr] = dict(mapping)
    for node in toposort([e]):
        if node in done:
            continue
        src = tuple(done[s] for s in node.src)
        renamed = node.op in (Op.REDUCE, Op.SCAN) and any(a in mapping for a in _bound_axes(node))
        if renamed or any(new is not old for new, old in zip(src, node.src, strict=True)):
            done[node] = rebuild(node, src, lambda a: mapping.get(a, a))
        else:
            done[node] = node
    return done[e]


def _bound_axes(e: Expr) -> tuple[Expr, ...]:
    return e.arg[1] if e.op is Op.REDUCE else e.arg[1:]


def stride(e: Expr, axis: Expr) -> int | None:
    """How far an index moves when `axis` advances by one: its coefficient; None where that is no constant."""
    if axis not in free_axes(e):
        return 0
    terms, _ = linear(e)
    if any(axis in free_axes(t) for t in terms if t is not axis):
        return None
    return terms.get(axis, 0)


# --- printing --------------------------------------------------------------------------------------------

_INFIX = {Op.ADD: "+", Op.MUL: "*", Op.DIV: "/", Op.IDIV: "//", Op.MOD: "%", Op.LT: "<", Op.EQ: "==",
          Op.AND: "&", Op.OR: "|", Op.XOR: "^", Op.SHL: "<<", Op.SHR: ">>"}


def text(e: Expr) -> str:
    """The expression on one line. Shared parts are repeated, so this is for small expressions and indices;
    `kernel.text` names shared parts."""
    done: dict[Expr, str] = {}
    for node in toposort([e]):
        done[node] = describe(node, [done[s] for s in node.src])
    return done[e]


def describe(e: Expr, src: list[str]) -> str:
    """One node given the texts of its operands."""
    if e.op is Op.CONST:
        return repr(e.arg) if e.dtype is dt.index else f"{e.arg!r}:{e.dtype.name}"
    if e.op is Op.AXIS:
        return f"i{e.arg[0]}"
    if e.op in (Op.PARAM, Op.VAR):
        return str(e.arg[0] if e.op is Op.PARAM else e.arg)
    if e.op is Op.LOAD:
        name = e.arg if isinstance(e.arg, str) else f"b{e.arg}"
        return f"{name}[{src[0]}]" if len(src) == 1 else f"{name}[{src[0]} if {src[1]}]"
    if e.op is Op.REDUCE:
        axes = ", ".join(f"i{a.arg[0]}<{a.arg[1]}" for a in e.arg[1])
        return f"{e.arg[0].name.lower()}[{axes}]({src[0]})"
    if e.op is Op.SCAN:
        return f"scan_{e.arg[0].name.lower()}[i{e.arg[2].arg[0]}<=i{e.arg[1].arg[0]}]({src[0]})"
    if e.op in _INFIX:
        return f"({src[0]} {_INFIX[e.op]} {src[1]})"
    name = e.dtype.name if e.op is Op.CAST else e.op.name.lower()
    return f"{name}({', '.join(src)})"
