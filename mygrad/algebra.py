"""The index algebra: canonical sums, division and remainder. All functions take and give index
expressions.

A sum is kept as `sum(coefficient * term) + constant` with terms in a stable order; `linear` reads
it and `from_linear` builds it. The rules, for integers a, k >= 0, d > 0:

    (d*q + r) // d         = q + r // d                 (d*q + r) % d     = r % d
    (g*s + r) // (g*k)     = s // k   if 0 <= r < g     (g*s + r) % (g*k) = g*(s % k) + r
    (a // c + n) // d      = (a + n*c) // (c*d)         (a % (c*d)) % d   = a % d
    (a % (c*d)) // c       = (a // c) % d
    (a // c)*c + a % c     = a                          a - (a // c)*c    = a % c
    (a // c % d)*c + a % c = a % (c*d)

All but the ring rules need known bounds, which exclude wrapping (see scalar.py).
"""

from __future__ import annotations

from math import gcd

from mygrad.ops import Op
from mygrad.scalar import OPERATORS, Expr, Linear, add_plain, const, order, plain, scale_plain

_CACHE_ENTRIES = 1 << 16
_DISTRIBUTED_TERMS = 16  # products of sums beyond this many terms stay products
_FACTORS = 8  # products of more factors stay nested
_LARGE = 1 << 62
_results: dict[tuple[Op, Expr, Expr], Expr] = {}  # what add, mul, floordiv and modulo gave


def is_bounded(e: Expr) -> bool:
    """Whether the range of an integer expression is known, so that it does not wrap."""
    return e.low is not None and e.high is not None


def is_const(e: Expr) -> bool:
    """Whether the expression is a constant."""
    return e.op is Op.CONST


# --- sums -----------------------------------------------------------------------------------------


def linear(e: Expr) -> Linear:
    """e = sum(coefficient * term) + constant, with terms that are no sums or multiples."""
    terms, constant = form_of(e)
    return dict(terms), constant


def form_of(e: Expr) -> Linear:
    """`linear`, sharing its cached dictionary: the caller must not change it."""
    if e.form is not None:
        return e.form
    if e.op is Op.CONST:
        return {}, e.arg
    if e.op is not Op.ADD and e.op is not Op.MUL:
        return ({e: 1}, 0) if e.low is None or e.low != e.high or _is_empty_axis(e) else ({}, e.low)
    terms: dict[Expr, int] = {}
    constant = 0
    work = [(e, 1)]
    while work:
        node, factor = work.pop()
        if node.op is Op.ADD:
            work += [(node.src[1], factor), (node.src[0], factor)]
        elif node.op is Op.MUL and node.src[1].op is Op.CONST:
            work.append((node.src[0], factor * node.src[1].arg))
        elif node.op is Op.MUL:
            terms[node] = terms.get(node, 0) + factor
        else:
            inner, extra = form_of(node)
            constant += factor * extra
            for term, coefficient in inner.items():
                terms[term] = terms.get(term, 0) + factor * coefficient
    form = {t: c for t, c in terms.items() if c}, constant
    if e not in terms:  # a product of two terms is its own term: caching that would be a cycle
        e.form = form
    return form


def _is_empty_axis(e: Expr) -> bool:
    """An axis of extent 0 is no constant 0: it stays visible, because nothing runs at all."""
    return e.op is Op.AXIS and e.arg[1] == 0


def from_linear(terms: dict[Expr, int], constant: int) -> Expr:
    """The canonical expression of a linear form: terms in a fixed order, the constant last."""
    for t in terms:
        if t.op is Op.MOD or t.op is Op.IDIV:
            terms, constant = _recombine(terms, constant)
            break
    kept = [t for t, c in terms.items() if c]
    if not kept:
        return const(constant)
    if len(kept) > 1:
        kept.sort(key=order)
    result: Expr | None = None
    for term in kept:
        coefficient = terms[term]
        product = term if coefficient == 1 else scale_plain(term, coefficient)
        result = product if result is None else add_plain(result, product)
    assert result is not None
    if constant:
        result = add_plain(result, const(constant))
    if (
        result.form is None
        and result.low is not None
        and result not in terms
        and result.op is not Op.CONST
    ):
        result.form = {t: terms[t] for t in kept}, constant
    return result


def _recombine(terms: dict[Expr, int], constant: int) -> Linear:
    """Join quotients and remainders of the same division, until none is left."""
    work = list(terms)
    while work:
        t = work.pop()
        found = _partner(t, terms) if terms.get(t) else None
        if found is None:
            continue
        terms = dict(terms)
        joined, factor, *gone = found
        for term in gone:
            del terms[term]
        more, extra = form_of(joined)
        constant += factor * extra
        for term, coefficient in more.items():
            terms[term] = terms.get(term, 0) + factor * coefficient
        work = list(terms)
    return terms, constant


def _partner(t: Expr, terms: dict[Expr, int]) -> tuple[Expr, int, Expr, Expr] | None:
    """(joined, factor, t, u) such that the two terms t and u with their coefficients are factor *
    joined.
    """
    if (
        (t.op is not Op.MOD and t.op is not Op.IDIV)
        or not is_const(t.src[1])
        or not is_bounded(t.src[0])
    ):
        return None
    (a, divisor), factor = t.src, terms[t]
    if divisor.arg <= 0:
        return None
    if t.op is Op.IDIV:  # a - (a // c)*c = a % c
        if factor % divisor.arg == 0 and terms.get(a) == -(factor // divisor.arg) and is_bounded(a):
            return modulo(a, divisor), -(factor // divisor.arg), t, a
        return None
    quotient = floordiv(a, divisor)
    if terms.get(quotient) == factor * divisor.arg:  # (a // c)*c + a % c = a
        return a, factor, t, quotient
    for u, coefficient in terms.items():  # (a // c % d)*c + a % c = a % (c*d)
        if (
            u.op is Op.MOD
            and u.src[0] is quotient
            and coefficient == factor * divisor.arg
            and is_const(u.src[1])
        ):
            return modulo(a, const(divisor.arg * u.src[1].arg)), factor, t, u
    return None


def add(a: Expr, b: Expr) -> Expr:
    """a + b for index expressions."""
    if b.op is Op.CONST and b.arg == 0:
        return a
    if a.op is Op.CONST and a.arg == 0:
        return b
    key = (Op.ADD, a, b)
    found = _results.get(key)
    return found if found is not None else _remember(key, _add(a, b))


def _add(a: Expr, b: Expr) -> Expr:
    terms, constant = form_of(a)
    more, extra = form_of(b)
    if not more:  # only the constant changes: keep the rest as it is
        if not terms:
            return const(constant + extra)
        total = a.src[0] if a.op is Op.ADD and a.src[1].op is Op.CONST else a
        constant += extra
        return add_plain(total, const(constant)) if constant else total
    terms = dict(terms)
    for term, coefficient in more.items():
        terms[term] = terms.get(term, 0) + coefficient
    return from_linear(terms, constant + extra)


def mul(a: Expr, b: Expr) -> Expr:
    """a * b for index expressions."""
    if a.op is Op.CONST:
        a, b = b, a
    if b.op is Op.CONST:
        return a if b.arg == 1 else _scale(a, b)
    ours, theirs = form_of(a), form_of(b)
    if not ours[0] or not theirs[0]:
        return mul(const(ours[1]), b) if not ours[0] else mul(a, const(theirs[1]))
    single = len(ours[0]) == len(theirs[0]) == 1 and not ours[1] and not theirs[1]
    small = (len(ours[0]) + 1) * (len(theirs[0]) + 1) <= _DISTRIBUTED_TERMS
    if single or (small and is_bounded(a) and is_bounded(b)):
        return _distribute(ours, theirs)
    return _product(a, b)


def _scale(a: Expr, by: Expr) -> Expr:
    key = (Op.MUL, a, by)
    found = _results.get(key)
    if found is None:
        terms, constant = form_of(a)
        found = from_linear({t: c * by.arg for t, c in terms.items()}, constant * by.arg)
        _remember(key, found)
    return found


def _distribute(a: Linear, b: Linear) -> Expr:
    """The product of two sums, term by term."""
    terms: dict[Expr, int] = {}
    for t, c in a[0].items():
        terms[t] = terms.get(t, 0) + c * b[1]
        for u, d in b[0].items():
            product = _product(t, u)
            terms[product] = terms.get(product, 0) + c * d
    for u, d in b[0].items():
        terms[u] = terms.get(u, 0) + d * a[1]
    return from_linear(terms, a[1] * b[1])


def _product(a: Expr, b: Expr) -> Expr:
    """A product of terms, its factors in a fixed order; products of many stay as they are written,
    because repeated squares have exponentially many."""
    factors: list[Expr] = []
    work = [a, b]
    while work:
        if len(factors) + len(work) > _FACTORS:
            return plain(Op.MUL, (a, b) if order(a) <= order(b) else (b, a))
        e = work.pop()
        if e.op is Op.MUL and not is_const(e.src[1]):
            work += e.src
        else:
            factors.append(e)
    factors.sort(key=order)
    result = factors[0]
    for factor in factors[1:]:
        result = plain(Op.MUL, (result, factor))
    return result


# --- division and remainder -----------------------------------------------------------------------


def floordiv(a: Expr, b: Expr) -> Expr:
    """a // b for index expressions."""
    if not is_const(b):
        result = plain(Op.IDIV, (a, b))
        return const(result.low) if result.low is not None and result.low == result.high else result
    if b.arg == 0 or b.arg == 1:
        return a if b.arg else b  # division by zero gives 0
    if is_const(a):
        return const(a.arg // b.arg)
    if not is_bounded(a):
        return plain(Op.IDIV, (a, b))
    if b.arg < 0:
        return floordiv(-a, const(-b.arg)) if is_bounded(-a) else plain(Op.IDIV, (a, b))
    key = (Op.IDIV, a, b)
    found = _results.get(key)
    if found is None:
        found = _remember(key, _floordiv(a, b.arg))
    return found


def modulo(a: Expr, b: Expr) -> Expr:
    """a % b for index expressions."""
    if not is_const(b):
        if a.low is not None and a.low >= 0 and a.high is not None and b.low is not None:
            return a if a.high < b.low else plain(Op.MOD, (a, b))
        return plain(Op.MOD, (a, b))
    if b.arg in (0, 1, -1):
        return const(0)  # by zero: 0 too
    if is_const(a):
        return const(a.arg % b.arg)
    if not is_bounded(a):
        return plain(Op.MOD, (a, b))
    if b.arg < 0:
        return -modulo(-a, const(-b.arg)) if is_bounded(-a) else plain(Op.MOD, (a, b))
    key = (Op.MOD, a, b)
    found = _results.get(key)
    if found is None:
        found = _remember(key, _modulo(a, b.arg))
    return found


def _remember(key: tuple[Op, Expr, Expr], result: Expr) -> Expr:
    if len(_results) >= _CACHE_ENTRIES:
        _results.clear()
    _results[key] = result
    return result


def _floordiv(a: Expr, d: int) -> Expr:
    """a // d for a bounded `a` and d > 1."""
    assert a.low is not None
    assert a.high is not None
    if a.low // d == a.high // d:
        return const(a.low // d)
    terms, constant = form_of(a)
    whole = {t: quotient for t, c in terms.items() if (quotient := _toward_zero(c, d))}
    if whole or constant // d:
        rest = {t: c - _toward_zero(c, d) * d for t, c in terms.items()}
        remainder = from_linear(rest, constant % d)
        if not is_bounded(remainder):
            return plain(Op.IDIV, (a, const(d)))
        return add(from_linear(whole, constant // d), floordiv(remainder, const(d)))
    found = _split(terms, constant, d)
    if found is not None:
        factor, coarse, _ = found
        return floordiv(coarse, const(d // factor))
    (term, coefficient), *others = terms.items()
    if coefficient == 1 and not others and term.op in _DIVIDE_TERM and is_const(term.src[1]):
        return _DIVIDE_TERM[term.op](a, term.src[0], term.src[1].arg, constant, d)
    return plain(Op.IDIV, (a, const(d)))


def _divide_quotient(a: Expr, inner: Expr, c: int, constant: int, d: int) -> Expr:
    """(inner // c + constant) // d"""
    if (
        c <= 0
        or c * d >= _LARGE
        or abs(constant * c) >= _LARGE
        or not is_bounded(inner + constant * c)
    ):
        return plain(Op.IDIV, (a, const(d)))
    return floordiv(inner + constant * c, const(c * d))


def _divide_remainder(a: Expr, inner: Expr, m: int, constant: int, d: int) -> Expr:
    """(inner % m + constant) // d"""
    if constant or m <= 0 or m % d:
        return plain(Op.IDIV, (a, const(d)))
    return modulo(floordiv(inner, const(d)), const(m // d))


_DIVIDE_TERM = {Op.IDIV: _divide_quotient, Op.MOD: _divide_remainder}


def _modulo(a: Expr, d: int) -> Expr:
    """a % d for a bounded `a` and d > 1."""
    assert a.low is not None
    assert a.high is not None
    if a.low // d == a.high // d:
        return a + -(a.low // d) * d
    terms, constant = form_of(a)
    reduced, shift = _reduce_terms(terms, d)
    if reduced is not terms or constant != constant % d:
        smaller = from_linear(reduced, (constant + shift) % d)
        return modulo(smaller, const(d)) if is_bounded(smaller) else plain(Op.MOD, (a, const(d)))
    found = _split(terms, constant, d)
    if found is not None:
        factor, coarse, fine = found
        return modulo(coarse, const(d // factor)) * factor + fine
    return plain(Op.MOD, (a, const(d)))


def _reduce_terms(terms: dict[Expr, int], d: int) -> Linear:
    """Terms and constant that are equal to `terms` modulo d: smaller coefficients, inner remainders
    dropped. The same dictionary if there is nothing to do.
    """
    if all(-d < c < d and not _drops_modulo(t, c, d) for t, c in terms.items()):
        return terms, 0
    reduced: dict[Expr, int] = {}
    constant = 0
    for t, c in terms.items():
        inner, extra = form_of(t.src[0]) if _drops_modulo(t, c, d) else ({t: 1}, 0)
        constant += c * extra
        for u, k in inner.items():
            reduced[u] = reduced.get(u, 0) + c * k
    return {t: c - _toward_zero(c, d) * d for t, c in reduced.items()}, constant


def _drops_modulo(t: Expr, coefficient: int, d: int) -> bool:
    """Whether coefficient * (x % m) = coefficient * x modulo d."""
    if t.op is not Op.MOD or not is_const(t.src[1]) or not is_bounded(t.src[0]):
        return False
    return bool(coefficient * t.src[1].arg % d == 0)


def _toward_zero(a: int, d: int) -> int:
    return a // d if a >= 0 else -(-a // d)


def _split(terms: dict[Expr, int], constant: int, d: int) -> tuple[int, Expr, Expr] | None:
    """(g, s, r) such that the sum is g*s + r with 0 <= r < g, g > 1 divides d, and s has a term."""
    factors = sorted({gcd(c, d) for c in terms.values()} - {1}, reverse=True)
    for g in factors:
        fine = {t: c for t, c in terms.items() if c % g}
        low, high = interval(fine, constant % g)
        if low // g != high // g:
            continue
        carry = low // g
        coarse = {t: c // g for t, c in terms.items() if not c % g}
        return (
            g,
            from_linear(coarse, constant // g + carry),
            from_linear(fine, constant % g - carry * g),
        )
    return None


def interval(terms: dict[Expr, int], constant: int) -> tuple[int, int]:
    """The range of a sum whose terms are all bounded."""
    low = high = constant
    for t, c in terms.items():
        assert t.low is not None
        assert t.high is not None
        low += c * (t.low if c > 0 else t.high)
        high += c * (t.high if c > 0 else t.low)
    return low, high


def difference(a: Expr, b: Expr) -> Linear:
    """The linear form of a - b, in integers that do not wrap."""
    terms, constant = form_of(a)
    more, extra = form_of(b)
    terms = dict(terms)
    for t, c in more.items():
        terms[t] = terms.get(t, 0) - c
    return {t: c for t, c in terms.items() if c}, constant - extra


# --- the rest of integer arithmetic ---------------------------------------------------------------


def negative(a: Expr) -> Expr:
    """-a for index expressions."""
    return mul(a, const(-1))


def maximum(a: Expr, b: Expr) -> Expr:
    """The larger of two index expressions."""
    if a is b:
        return a
    if is_bounded(a) and is_bounded(b):
        low, high = interval(*difference(a, b))
        if low >= 0 or high <= 0:
            return a if low >= 0 else b
    return plain(Op.MAX, (a, b) if order(a) <= order(b) else (b, a))


OPERATORS |= {Op.ADD: add, Op.MUL: mul, Op.IDIV: floordiv, Op.MOD: modulo}
