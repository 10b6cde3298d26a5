"""Simplification of one alu operation, by the number type of its operands.

Index and bool operations go to the index algebra. Other integers get constant folding and
identities. Floats are only touched where the result is the same bit for bit: constants of correctly
rounded operations, x * 1, x / 1, x + -0.0 and the like; never x + 0.0 (which maps -0.0 to 0.0) or x
* 0 (which loses NaN and inf).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from mygrad import dtype as dt
from mygrad.algebra import add, floordiv, is_bounded, is_const, maximum, modulo, mul, negative
from mygrad.dtype import DType
from mygrad.logic import both, differs, either, equal, invert, less, where
from mygrad.numeric import evaluate_alu, value_dtype
from mygrad.ops import TRANSCENDENTAL, Op
from mygrad.scalar import Expr, const, plain

Rule = Callable[..., "Expr | None"]


def simplify(op: Op, src: tuple[Expr, ...], dtype: DType | None = None) -> Expr:
    """The operation on these operands, simplified; `dtype` matters for casts only."""
    first = src[0]
    if op is Op.WHERE:
        return where(*src)
    if op is Op.CAST or op is Op.BITCAST:
        assert dtype is not None
        return _convert(op, first, dtype)
    if first.dtype is dt.index:
        rule = _INDEX.get(op)
    elif first.dtype.kind == "b":
        rule = _BOOL.get(op)
    elif first.dtype.is_float:
        rule = _FLOAT.get(op)
    else:
        rule = _INTEGER.get(op)
    found = rule(*src) if rule is not None else None
    if found is None and (op is Op.LT or op is Op.EQ):
        found = _of_choice(op, *src)
    foldable = found is None and is_const(first) and op not in TRANSCENDENTAL
    if foldable and all(is_const(s) for s in src):
        found = _fold(op, src, plain(op, src).dtype)
    return plain(op, src) if found is None else found


def _of_choice(op: Op, a: Expr, b: Expr) -> Expr | None:
    """A comparison of a constant with one of two constants: the condition that chooses."""
    choice, other = (b, a) if is_const(a) else (a, b)
    if choice.op is not Op.WHERE or not all(map(is_const, (*choice.src[1:], other))):
        return None
    sides = [(other, x) if choice is b else (x, other) for x in choice.src[1:]]
    yes, no = (_fold(op, side, dt.bool_) for side in sides)
    return None if yes is None or no is None else where(choice.src[0], yes, no)


def _fold(op: Op, src: tuple[Expr, ...], dtype: DType) -> Expr | None:
    """The constant that the operation gives; None where NaN leaves its bits undetermined."""
    if any(s.dtype.is_float and math.isnan(s.arg) for s in src):
        return None
    if op is Op.MAX and all(s.dtype.is_float and s.arg == 0 for s in src) and src[0] is not src[1]:
        return None  # which of 0.0 and -0.0 is larger is left to the machine
    value = evaluate_alu(op, [value_dtype(s.dtype).type(s.arg) for s in src], dtype).item()
    return None if dtype.is_float and math.isnan(value) else const(value, dtype)


# --- casts ----------------------------------------------------------------------------------------


def _convert(op: Op, x: Expr, dtype: DType) -> Expr:
    if dtype is x.dtype:
        return x
    if is_const(x) and (op is Op.CAST or dt.bfloat16 not in (x.dtype, dtype)):
        found = _fold(op, (x,), dtype)
        if found is not None:
            return found
    if (
        x.op is op is Op.BITCAST and x.dtype.kind != "b"
    ):  # as bool, bytes other than 0 and 1 are lost
        return _convert(op, x.src[0], dtype)
    if x.op is op is Op.CAST and _skips(x.src[0].dtype, x.dtype, dtype):
        return _convert(op, x.src[0], dtype)
    return plain(op, (x,), dtype)


def _holds(wide: DType, narrow: DType) -> bool:
    """Whether every value of `narrow` is a value of `wide`."""
    if narrow.kind == "b" or wide is narrow:
        return True
    if wide.kind == "b":
        return False
    if narrow.is_float:
        return wide.is_float and wide.itemsize > narrow.itemsize
    if wide.is_float:
        return narrow.bits <= _MANTISSA[wide.name]
    return wide.min <= narrow.min and wide.max >= narrow.max


_MANTISSA = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}


def _skips(source: DType, middle: DType, target: DType) -> bool:
    """Whether casting through `middle` changes nothing: it holds the value exactly, and the cast
    from it goes by the same rule (floats saturate where integers wrap; integers may be rounded by
    way of another float).
    """
    if not _holds(middle, source):
        return False
    rounds_or_wraps = not source.is_float and middle.is_float and target.kind != "b"
    return not rounds_or_wraps or _holds(target, source)


# --- identities, a table for each kind of number --------------------------------------------------


def _shift_left(a: Expr, n: Expr) -> Expr | None:
    return mul(a, const(1 << n.arg)) if is_const(n) and 0 <= n.arg < 63 else None


def _shift_right(a: Expr, n: Expr) -> Expr | None:
    usable = is_const(n) and 0 <= n.arg < 63 and is_bounded(a)
    return floordiv(a, const(1 << n.arg)) if usable else None


def _mask(a: Expr, b: Expr) -> Expr | None:
    if a is b:
        return a
    if is_const(a):
        a, b = b, a
    low_bits = is_const(b) and b.arg >= 0 and b.arg & (b.arg + 1) == 0 and b.arg < 1 << 62
    return modulo(a, const(b.arg + 1)) if low_bits and is_bounded(a) and not is_const(a) else None


_INDEX: dict[Op, Rule] = {
    Op.ADD: add,
    Op.MUL: mul,
    Op.NEG: negative,
    Op.IDIV: floordiv,
    Op.MOD: modulo,
    Op.MAX: maximum,
    Op.LT: less,
    Op.EQ: equal,
    Op.SHL: _shift_left,
    Op.SHR: _shift_right,
    Op.AND: _mask,
    Op.OR: lambda a, b: a if a is b else None,
    Op.XOR: lambda a, b: const(0) if a is b else None,
}
_BOOL: dict[Op, Rule] = {
    Op.ADD: either,
    Op.MUL: both,
    Op.MAX: either,
    Op.AND: both,
    Op.OR: either,
    Op.XOR: differs,
    Op.EQ: lambda a, b: invert(differs(a, b)),
    Op.LT: lambda a, b: both(invert(a), b),
}


def _is(e: Expr, value: float) -> bool:
    """Whether the expression is this constant, sign of zero included."""
    return is_const(e) and e.arg == value and math.copysign(1.0, e.arg) == math.copysign(1.0, value)


def _neutral(value: float, a: Expr, b: Expr) -> Expr | None:
    if _is(b, value):
        return a
    return b if _is(a, value) else None


def _right_neutral(value: float, a: Expr, b: Expr) -> Expr | None:
    return a if _is(b, value) else None


def _twice(op: Op, a: Expr) -> Expr | None:
    return a.src[0] if a.op is op else None


_FLOAT: dict[Op, Rule] = {
    Op.ADD: lambda a, b: _neutral(-0.0, a, b),
    Op.MUL: lambda a, b: _neutral(1.0, a, b),
    Op.DIV: lambda a, b: _right_neutral(1.0, a, b),
    Op.NEG: lambda a: _twice(Op.NEG, a),
    Op.TRUNC: lambda a: a if a.op is Op.TRUNC else None,
    Op.MAX: lambda a, b: a if a is b else None,
    Op.LT: lambda a, b: const(False, dt.bool_) if a is b else None,
}


def _integer_times(a: Expr, b: Expr) -> Expr | None:
    zero = a if _is(a, 0) else b
    return zero if _is(zero, 0) else _neutral(1, a, b)


def _integer_and(a: Expr, b: Expr) -> Expr | None:
    zero = a if _is(a, 0) else b
    return zero if _is(zero, 0) or a is b else None


_INTEGER: dict[Op, Rule] = {
    Op.ADD: lambda a, b: _neutral(0, a, b),
    Op.MUL: _integer_times,
    Op.IDIV: lambda a, b: _right_neutral(1, a, b),
    Op.NEG: lambda a: _twice(Op.NEG, a),
    Op.MAX: lambda a, b: a if a is b else None,
    Op.AND: _integer_and,
    Op.OR: lambda a, b: a if a is b else _neutral(0, a, b),
    Op.XOR: lambda a, b: const(0, a.dtype) if a is b else _neutral(0, a, b),
    Op.SHL: lambda a, b: _right_neutral(0, a, b),
    Op.SHR: lambda a, b: _right_neutral(0, a, b),
    Op.LT: lambda a, b: const(False, dt.bool_) if a is b else None,
    Op.EQ: lambda a, b: const(True, dt.bool_) if a is b else None,
}
