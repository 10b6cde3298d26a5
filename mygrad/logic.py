"""Comparisons and conditions: the bool side of the index algebra.

A comparison of index expressions with known bounds has positive coefficients on either side and no
common factor: `2*i - 4*j < 6` is `i < 2*j + 3`. So equal conditions are one node, and `bound_on`
reads each as a range of a sum, which can be compared with others. A conjunction is kept flat, in a
stable order, without conditions that the others imply. "Not" is XOR with true, or the opposite
comparison.
"""

from __future__ import annotations

from math import gcd

from mygrad import dtype as dt
from mygrad.algebra import difference, from_linear, interval, is_bounded, is_const
from mygrad.helpers import ceildiv
from mygrad.ops import Op
from mygrad.scalar import OPERATORS, Expr, Linear, const, is_false, is_true, order, plain

_CACHE_ENTRIES = 1 << 16
_LARGE = 1 << 62
_TRUE, _FALSE = const(True, dt.bool_), const(False, dt.bool_)
Bound = tuple[Expr, int, int]
_results: dict[tuple[Op, Expr, Expr], Expr] = {}
_bounds: dict[Expr, Bound | None] = {}


# --- comparisons ----------------------------------------------------------------------------------


def less(a: Expr, b: Expr) -> Expr:
    """a < b for index expressions."""
    if a is b:
        return _FALSE
    return _cached(Op.LT, a, b)


def equal(a: Expr, b: Expr) -> Expr:
    """a == b for index expressions."""
    if a is b:
        return _TRUE
    return _cached(Op.EQ, a, b)


def _cached(op: Op, a: Expr, b: Expr) -> Expr:
    key = (op, a, b)
    found = _results.get(key)
    if found is None:
        if len(_results) >= _CACHE_ENTRIES:
            _results.clear()
        found = _results[key] = _RULES[op](a, b)
    return found


def _less(a: Expr, b: Expr) -> Expr:
    if is_const(a) and is_const(b):
        return const(a.arg < b.arg, dt.bool_)
    if not is_bounded(a) or not is_bounded(b):
        return plain(Op.LT, (a, b))
    terms, constant = difference(a, b)
    limit = -constant  # sum(terms) < limit
    while terms:
        low, high = interval(terms, 0)
        if high < limit:
            return _TRUE
        if low >= limit:
            return _FALSE
        reduced = _drop_small(terms, limit)
        if reduced is None:
            return _less_canonical(a, b, terms, limit)
        terms, limit = reduced
    return const(limit > 0, dt.bool_)


def _drop_small(terms: dict[Expr, int], limit: int) -> Linear | None:
    """A smaller equivalent of sum(terms) < limit: d*s + r < limit is s < (limit - r) / d, and often
    all values of r round to the same integer. None if there is none.
    """
    common = gcd(*terms.values())
    for d in sorted({abs(c) for c in terms.values()} | {common}, reverse=True):
        if d == 1:
            break
        fine = {t: c for t, c in terms.items() if c % d}
        low, high = interval(fine, 0)
        bound = ceildiv(limit - low, d)
        if bound == ceildiv(limit - high, d):
            return {t: c // d for t, c in terms.items() if not c % d}, bound
    return None


def _less_canonical(a: Expr, b: Expr, terms: dict[Expr, int], limit: int) -> Expr:
    if len(terms) == 1:
        ((term, coefficient),) = terms.items()
        if term.op is Op.IDIV and is_const(term.src[1]) and abs(coefficient) == 1:
            inner, divisor = term.src[0], term.src[1].arg
            if divisor > 0 and abs(limit * divisor) < _LARGE:
                # x // d < n is x < n*d; -(x // d) < n is (1 - n)*d <= x
                return (
                    less(inner, const(limit * divisor))
                    if coefficient > 0
                    else less(const((1 - limit) * divisor - 1), inner)
                )
    return _sides(Op.LT, terms, limit) or plain(Op.LT, (a, b))


def _sides(op: Op, terms: dict[Expr, int], limit: int) -> Expr | None:
    """sum(terms) op limit with only positive coefficients on either side; None if a side could
    wrap.
    """
    left = from_linear({t: c for t, c in terms.items() if c > 0}, 0)
    right = from_linear({t: -c for t, c in terms.items() if c < 0}, 0)
    if is_const(left) and left.arg == 0:
        left = const(-limit)
    else:
        right = right + limit
    fits = is_bounded(left) and is_bounded(right) and abs(limit) < _LARGE
    return plain(op, (left, right)) if fits else None


def _equal(a: Expr, b: Expr) -> Expr:
    terms, constant = difference(a, b)
    if not terms:
        return const(constant % (1 << 64) == 0, dt.bool_)
    if not is_bounded(a) or not is_bounded(b):
        return plain(Op.EQ, (a, b) if order(a) <= order(b) else (b, a))
    common = gcd(*terms.values())
    if constant % common:
        return _FALSE
    if terms[min(terms, key=order)] < 0:
        common = -common
    terms, target = {t: c // common for t, c in terms.items()}, -constant // common
    low, high = interval(terms, 0)
    if not low < target < high:
        return _equal_end(terms, target, low, high)
    return _equal_digits(terms, target) or _sides(Op.EQ, terms, target) or plain(Op.EQ, (a, b))


def _equal_end(terms: dict[Expr, int], target: int, low: int, high: int) -> Expr:
    """sum(terms) == target at or beyond an end of the range: a comparison, or false."""
    if target < low or target > high:
        return _FALSE
    total = from_linear(terms, 0)
    return less(total, const(target + 1)) if target == low else less(const(target - 1), total)


def _equal_digits(terms: dict[Expr, int], target: int) -> Expr | None:
    """d*s + r == target where r can have one value only: both are known. None if that fails."""
    for d in sorted({abs(c) for c in terms.values()} - {1}, reverse=True):
        fine = {t: c for t, c in terms.items() if c % d}
        low, high = interval(fine, 0)
        if not fine or high - low >= d:
            continue
        rest = low + (target - low) % d  # the smallest value from low on with the right remainder
        if rest > high:
            return _FALSE
        coarse = {t: c // d for t, c in terms.items() if not c % d}
        return both(
            equal(from_linear(coarse, 0), const((target - rest) // d)),
            equal(from_linear(fine, 0), const(rest)),
        )
    return None


# --- conditions -----------------------------------------------------------------------------------


def invert(a: Expr) -> Expr:
    """not a, for bool expressions."""
    if is_const(a):
        return _FALSE if a.arg else _TRUE
    if a.op is Op.XOR and a.src[1] is _TRUE:
        return a.src[0]
    if (
        a.op is Op.LT
        and a.src[0].dtype is dt.index
        and is_bounded(a.src[0])
        and is_bounded(a.src[1])
    ):
        return less(a.src[1], a.src[0] + 1)
    return plain(Op.XOR, (a, _TRUE))


def differs(a: Expr, b: Expr) -> Expr:
    """a xor b, for bool expressions."""
    if a is b:
        return _FALSE
    if is_const(a) or is_const(b):
        constant, other = (a, b) if is_const(a) else (b, a)
        return invert(other) if constant.arg else other
    return plain(Op.XOR, (a, b) if order(a) <= order(b) else (b, a))


def both(a: Expr, b: Expr) -> Expr:
    """a and b, for bool expressions."""
    if is_true(a) or is_false(b) or a is b:
        return b
    if is_true(b) or is_false(a):
        return a
    return _cached(Op.AND, a, b)


def either(a: Expr, b: Expr) -> Expr:
    """a or b, for bool expressions."""
    if is_true(a) or is_false(b) or a is b:
        return a
    if is_true(b) or is_false(a):
        return b
    return _cached(Op.OR, a, b)


def conjuncts(e: Expr) -> list[Expr]:
    """The conditions whose conjunction `e` is."""
    return _flatten(Op.AND, e)


def _flatten(op: Op, *roots: Expr) -> list[Expr]:
    found: dict[Expr, None] = {}
    work = list(reversed(roots))
    while work:
        e = work.pop()
        if e.op is op and e.dtype.kind == "b":
            work += reversed(e.src)
        else:
            found[e] = None
    return list(found)


def _join(op: Op, parts: list[Expr]) -> Expr:
    parts.sort(key=order)
    result = parts[0]
    for part in parts[1:]:
        result = plain(op, (result, part))
    return result


def bound_on(e: Expr) -> Bound | None:
    """(sum, low, high) if the condition is low <= sum <= high for a bounded sum with a
    positive first coefficient; else None."""
    if (e.op is not Op.LT and e.op is not Op.EQ) or e.src[0].dtype is not dt.index:
        return None
    if e not in _bounds:
        if len(_bounds) >= _CACHE_ENTRIES:
            _bounds.clear()
        _bounds[e] = _bound_on(e)
    return _bounds[e]


def _bound_on(e: Expr) -> Bound | None:
    a, b = e.src
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return None
    if is_const(b):
        return (a, a.low, b.arg - 1) if e.op is Op.LT else (a, b.arg, b.arg)
    if is_const(a):
        return (b, a.arg + 1, b.high) if e.op is Op.LT else (b, a.arg, a.arg)
    terms, constant = difference(a, b)
    if not terms:
        return None
    positive = terms[min(terms, key=order)] > 0
    total = from_linear(terms if positive else {t: -c for t, c in terms.items()}, 0)
    if total.low is None or total.high is None:
        return None
    if e.op is Op.EQ:
        value = -constant if positive else constant
        return total, value, value
    return (total, total.low, -constant - 1) if positive else (total, constant + 1, total.high)


def _conjunction(a: Expr, b: Expr) -> Expr:
    parts = _flatten(Op.AND, a, b)
    present = set(parts)
    if any(e.op is Op.XOR and _opposite(e) in present for e in parts):
        return _FALSE
    kept = [e for e in parts if e.op is not Op.OR or not _absorbed(e, Op.OR, present)]
    ranges = ranges_of(kept)
    if any(low > high for low, high in ranges.values()):
        return _FALSE
    bounded = [e for e in kept if bound_on(e) is not None]
    if len(ranges) < len(bounded):  # several conditions on one sum: say their intersection
        said = set(bounded)
        kept = [e for e in kept if e not in said]
        for total, (low, high) in ranges.items():
            kept += _as_conditions(total, low, high)
    return _join(Op.AND, list(dict.fromkeys(kept))) if kept else _TRUE


def ranges_of(parts: list[Expr]) -> dict[Expr, tuple[int, int]]:
    """The range of every sum that the conditions bound, where all of them hold."""
    ranges: dict[Expr, tuple[int, int]] = {}
    for e in parts:
        bound = bound_on(e)
        if bound is not None:
            total, low, high = bound
            before = ranges.get(total, (low, high))
            ranges[total] = max(low, before[0]), min(high, before[1])
    return ranges


def _as_conditions(total: Expr, low: int, high: int) -> list[Expr]:
    """low <= total <= high as the fewest comparisons."""
    assert total.low is not None
    assert total.high is not None
    if low == high:
        return conjuncts(equal(total, const(low)))
    found = [less(const(low - 1), total)] if low > total.low else []
    return [*found, less(total, const(high + 1))] if high < total.high else found


def _opposite(e: Expr) -> Expr | None:
    return e.src[0] if e.op is Op.XOR and e.src[1] is _TRUE else None


def _absorbed(e: Expr, inner: Op, present: set[Expr]) -> bool:
    """a and (a or b) = a, and the other way round."""
    return e.op is inner and any(part in present for part in _flatten(inner, e))


def _disjunction(a: Expr, b: Expr) -> Expr:
    parts = _flatten(Op.OR, a, b)
    present = set(parts)
    if any(_opposite(e) in present for e in parts):
        return _TRUE
    below: dict[Expr, int] = {}  # sum -> largest limit of "sum <= limit"
    above: dict[Expr, int] = {}  # sum -> smallest limit of "limit <= sum"
    kept = []
    for e in parts:
        bound = bound_on(e) if e.op is Op.LT else None
        if bound is None:
            if not _absorbed(e, Op.AND, present):
                kept.append(e)
        elif bound[1] == bound[0].low:
            below[bound[0]] = max(bound[2], below.get(bound[0], bound[2]))
        else:
            above[bound[0]] = min(bound[1], above.get(bound[0], bound[1]))
    if any(above[total] <= limit + 1 for total, limit in below.items() if total in above):
        return _TRUE
    kept += [less(total, const(limit + 1)) for total, limit in below.items()]
    kept += [less(const(limit - 1), total) for total, limit in above.items()]
    return _join(Op.OR, list(dict.fromkeys(kept)))


def where(condition: Expr, a: Expr, b: Expr) -> Expr:
    """a where the condition holds, else b."""
    if is_true(condition) or a is b:
        return a
    if is_false(condition):
        return b
    opposite = _opposite(condition)
    if opposite is not None:
        return where(opposite, b, a)
    if a.op is Op.WHERE and (a.src[0] is condition or a.src[2] is b):
        # c ? (c ? x : y) : b = c ? x : b      c ? (d ? x : b) : b = c and d ? x : b
        same = a.src[0] is condition
        return where(condition if same else both(condition, a.src[0]), a.src[1], b)
    if b.op is Op.WHERE and (b.src[0] is condition or b.src[1] is a):
        # c ? a : (c ? x : y) = c ? a : y      c ? a : (d ? a : y) = c or d ? a : y
        same = b.src[0] is condition
        return where(condition if same else either(condition, b.src[0]), a, b.src[2])
    if a.dtype.kind == "b" and (is_const(a) or is_const(b)):
        return _where_bool(condition, a, b)
    return plain(Op.WHERE, (condition, a, b))


def _where_bool(condition: Expr, a: Expr, b: Expr) -> Expr:
    if is_const(a):
        return either(condition, b) if a.arg else both(invert(condition), b)
    return either(invert(condition), a) if b.arg else both(condition, a)


def minimum(a: Expr, b: Expr) -> Expr:
    """The smaller of two index expressions."""
    return where(less(a, b), a, b)


_RULES = {Op.LT: _less, Op.EQ: _equal, Op.AND: _conjunction, Op.OR: _disjunction}
OPERATORS |= {Op.LT: less, Op.AND: both, Op.OR: either}
