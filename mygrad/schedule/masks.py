"""Masks that reach over kernels: what is masked out is neither stored nor read.

    s[t, k] = sum q[t, d] k[k, d]                    s[t, k] = .. if k <= t
    p[t, k] = where(k <= t, exp(s[t, k]), 0)    ->   p[t, k] = exp(s[t, k]) if k <= t
    o[t, d] = sum p[t, k] v[k, d]                    o[t, d] = sum where(k <= t, p[t, k], 0) v[k, d]

Two passes over the steps, for arrays that one kernel writes and that only kernels touch:

1. *forward*: an array that is 0, or minus infinity, outside of a condition is read under that
   condition (domain.py says which are);
2. *backward*: an array that all kernels read under a condition is stored only where it holds. Its
   other elements are never written, so each read of it stays under the condition.

Lowering then leaves out of every loop the steps that nobody needs (codegen/bounds.py). A condition
of one kernel is said in terms of the array, as bounds on digits of the element's number, and in the
next kernel again in terms of its loops.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from mygrad import dtype as dt
from mygrad import expr
from mygrad.domain import NONE, Conditions, conditions, known, nothing, outside, terms_of
from mygrad.expr import Expr, both, const, floordiv, less, modulo
from mygrad.helpers import prod
from mygrad.kernel import Kernel, Store, named, roots_of, stem_of
from mygrad.logic import bound_on, conjuncts, invert
from mygrad.numeric import identity
from mygrad.ops import Op
from mygrad.schedule import reshape_axes
from mygrad.schedule.steps import Memory, Step

LEAST = 4096  # elements of an array, and of a kernel: others are not worth the looking
TRUE = const(True, dt.bool_)


@dataclass(frozen=True)
class Bound:
    """low <= sum(factor * digit) <= high over digits (stride, extent, factor) of an element's
    number n: a digit is n // stride % extent."""

    digits: tuple[tuple[int, int, int], ...]
    low: int
    high: int

    def at(self, index: Expr) -> Expr:
        """The condition for the element at an index."""
        total = const(0)
        for stride, extent, factor in self.digits:
            total = total + digit(index, stride, extent) * factor
        return both(less(const(self.low - 1), total), less(total, const(self.high + 1)))


def digit(index: Expr, stride: int, extent: int) -> Expr:
    """index // stride % extent"""
    return modulo(floordiv(index, const(stride)), const(extent))


def bound_of(condition: Expr, index: Expr) -> Bound | None:
    """A condition on axes that are digits of an index, said of the element."""
    bound = bound_on(condition)
    assert bound is not None
    total, low, high = bound
    terms, constant = expr.linear(total)
    strides = expr.linear(index)[0]
    digits = []
    for axis, factor in terms.items():
        stride = strides.get(axis, 0)
        if axis.op is not Op.AXIS or stride <= 0 or digit(index, stride, axis.arg[1]) is not axis:
            return None
        digits.append((stride, axis.arg[1], factor))
    return Bound(tuple(sorted(digits)), low - constant, high - constant)


def apply(steps: Sequence[Step], arrays: Sequence[Memory]) -> list[Step]:
    """The steps with masks said wherever they hold."""
    done = list(steps)
    if not any(map(_has_mask, done)):
        return done
    writers = _writers(done, arrays)
    filled: dict[int, Filled] = {}
    for at, step in enumerate(done):
        step = done[at] = _read_under(step, filled)
        filled |= _fillings(step, [i for i, by in writers.items() if by == at])
    readers: dict[int, list[tuple[Expr, Conditions]]] = {}
    partly: dict[int, Filled] = {}
    for at in reversed(range(len(done))):
        for i in [i for i, by in writers.items() if by == at]:
            wanted = _wanted(readers.get(i, []))
            if wanted:
                partly[i] = wanted, Op.ADD
                done[at] = _store_under(done[at], i, wanted)
        for i, read in _reads(done[at]):
            readers.setdefault(i, []).append(read)
    done = [_read_under(s, partly) for s in done]
    return [_counted(*pair) for pair in zip(steps, done, strict=True)]


def _has_mask(step: Step) -> bool:
    """Whether a kernel masks something."""
    if not isinstance(step.what, Kernel) or prod(a.arg[1] for a in step.what.axes) < LEAST:
        return False
    masks = (e.src[0] for e in step.what.nodes if e.op is Op.WHERE)
    return any(conditions(c) | conditions(invert(c)) for c in masks)


def _writers(steps: Sequence[Step], arrays: Sequence[Memory]) -> dict[int, int]:
    """By array the step that writes it, for those that only kernels touch, one of them by a plain
    store."""
    found: dict[int, int] = {}
    refused: set[int] = set()
    for at, step in enumerate(steps):
        if not isinstance(step.what, Kernel):
            refused.update(step.arguments)
            continue
        stores = [s.slot for s in step.what.stores]
        for store in step.what.stores:
            i = step.arguments[store.slot]
            about = arrays[i]
            plain = store.mode == "set" and store.valid is None and stores.count(store.slot) == 1
            large = about.kind == "temporary" and prod(about.shape) >= LEAST
            if i in found or not plain or not large or step.arguments.count(i) > 1:
                refused.add(i)
            found[i] = at
        loaded = {e.arg for e in step.what.nodes if e.op is Op.LOAD}
        refused.update(step.arguments[n] for n in loaded.intersection(stores))
    return {i: at for i, at in found.items() if i not in refused}


# --- reading --------------------------------------------------------------------------------------


# what an array holds outside of bounds: the identity of ADD or MAX
Filled = tuple[frozenset[Bound], Op]


def _read_under(step: Step, filled: dict[int, Filled]) -> Step:
    """The step with its reads of some arrays under the conditions that are known of these."""
    kernel = step.what
    if not isinstance(kernel, Kernel) or filled.keys().isdisjoint(step.arguments):
        return step
    reads: dict[Expr, Expr] = {}
    for e in kernel.nodes:
        if e.op is Op.LOAD:
            bounds, fill = filled.get(step.arguments[e.arg], (frozenset(), Op.ADD))
            mask = reduce(both, (b.at(e.src[0]) for b in sorted(bounds, key=str)), TRUE)
            reads[e] = expr.where(mask, e, const(identity(fill, e.dtype), e.dtype))
    stores = tuple(_told(_substituted(s, reads)) for s in kernel.stores)
    axes, stores = reshape_axes.simplify(kernel.axes, stores)  # digits may be parts of axes
    if _divisions(stores) > _divisions(kernel.stores):  # the condition would bound nothing
        return step
    return _with(step, axes, stores)


def _divisions(stores: Iterable[Store]) -> int:
    nodes = expr.toposort(e for s in stores for e in roots_of(s))
    return sum(e.op in (Op.IDIV, Op.MOD) for e in nodes)


def _substituted(store: Store, mapping: dict[Expr, Expr]) -> Store:
    return replace(store, value=expr.substitute(store.value, mapping))


def _told(store: Store) -> Store:
    """A store in which what stands under a condition does not ask for it again."""
    done: dict[Expr, Expr] = {}
    for e in expr.toposort([store.value]):
        src = tuple(done[s] for s in e.src)
        if e.op is Op.WHERE:
            src = (src[0], expr.substitute(src[1], known(conjuncts(src[0]))), src[2])
        same = all(a is b for a, b in zip(src, e.src, strict=True))
        done[e] = e if same else expr.rebuild(e, src)
        if e.op is Op.MUL and all(s.op is Op.WHERE for s in src):
            done[e] = _one_mask(e, *src)
    holds = [] if store.valid is None else conjuncts(store.valid)
    return replace(store, value=expr.substitute(done[store.value], known(holds)))


def _one_mask(e: Expr, a: Expr, b: Expr) -> Expr:
    """where(c, x, 0) * where(c, y, 0) = where(c, x * y, 0)"""
    zeros = all(s.src[2].op is Op.CONST and s.src[2].arg == 0 for s in (a, b))
    if zeros and a.src[0] is b.src[0]:
        return expr.where(a.src[0], expr.alu(Op.MUL, a.src[1], b.src[1]), a.src[2])
    return expr.rebuild(e, (a, b))


def _fillings(step: Step, own: Iterable[int]) -> dict[int, Filled]:
    """What the arrays that a step writes hold outside of some bounds, if that is known."""
    made: dict[int, Filled] = {}
    for i in own:
        store = _store_of(step, i)
        for found, fill in zip(nothing([store.value])[store.value], (Op.ADD, Op.MAX), strict=True):
            bounds = frozenset(bound_of(c, store.index) for c in found or ()) - {None}
            if bounds:
                made[i] = bounds, fill  # type: ignore[assignment]
    return made


# --- storing --------------------------------------------------------------------------------------


def _store_of(step: Step, array: int) -> Store:
    assert isinstance(step.what, Kernel)
    return next(s for s in step.what.stores if step.arguments[s.slot] == array)


def _wanted(reads: Sequence[tuple[Expr, Conditions]]) -> frozenset[Bound]:
    """The bounds under which all reads of an array happen."""
    if not reads:
        return frozenset()
    index, under = reads[0]
    found = (bound_of(c, index) for c in under)
    return frozenset(b for b in found if b is not None and all(_is_under(b, *r) for r in reads))


def _is_under(bound: Bound, index: Expr, under: Conditions) -> bool:
    return under.issuperset(conjuncts(bound.at(index)))


def _store_under(step: Step, array: int, bounds: frozenset[Bound]) -> Step:
    """The step with an array stored only where the bounds hold."""
    assert isinstance(step.what, Kernel)
    store = _store_of(step, array)
    valid = reduce(both, (b.at(store.index) for b in sorted(bounds, key=str)))
    made = _told(replace(store, valid=valid))
    stores = tuple(made if s is store else s for s in step.what.stores)
    return _with(step, *reshape_axes.simplify(step.what.axes, stores))


def _reads(step: Step) -> list[tuple[int, tuple[Expr, Conditions]]]:
    """The arrays that a kernel reads, each with an index and the conditions that hold there for
    whatever is done with the value."""
    kernel = step.what
    if not isinstance(kernel, Kernel):
        return []
    zero = nothing(kernel.nodes)
    under: dict[Expr, Conditions] = {}

    def reach(e: Expr, holds: Conditions) -> None:
        under[e] = under[e] & holds if e in under else holds

    for store in kernel.stores:
        for root in roots_of(store):
            reach(root, conditions(store.valid) if root is store.value else NONE)
    for e in reversed(kernel.nodes):
        for n, s in enumerate(e.src):
            holds = under[e]
            if e.op is Op.WHERE and n:
                holds |= conditions(e.src[0] if n == 1 else invert(e.src[0]))
            elif e.op is Op.MUL:
                holds |= zero[e.src[1 - n]][0] or NONE
            elif e.op is Op.LOAD and n == 0 and len(e.src) == 2:
                holds |= conditions(e.src[1])
            reach(s, holds)
    loads = (e for e in kernel.nodes if e.op is Op.LOAD)
    return [(step.arguments[e.arg], (e.src[0], under[e])) for e in loads]


def _with(step: Step, axes: tuple[Expr, ...], stores: tuple[Store, ...]) -> Step:
    """The step with other axes and stores in its kernel."""
    assert isinstance(step.what, Kernel)
    if stores == step.what.stores:
        return step
    made = replace(step.what, axes=axes, stores=stores)
    return replace(step, what=named(made, stem_of(step.what)))


def _counted(before: Step, step: Step) -> Step:
    """The step with its operations counted anew, where a mask left some out: in each store those
    outside of its condition, or of that of its sums."""
    if step.what is before.what or not isinstance(step.what, Kernel):
        return step
    shares = []
    for store in step.what.stores:
        sums = terms_of([store.value]).values()
        found = conditions(store.valid) or (frozenset.union(*sums) if sums else NONE)
        shares.append(1.0 - max(map(outside, found), default=0.0))
    return replace(step, what=replace(step.what, flops=int(step.what.flops * max(shares))))
