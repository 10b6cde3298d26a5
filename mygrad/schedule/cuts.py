"""Kernels by rows: cut so that the row is an axis of its own, and then for a block of rows.

    out[i] = SUM(x[i, j], j), i < 4096   ->   i = row * 64 + k, row < 64
                                         ->   row = block * 8 + r, r < 8, with a parameter `block`

See bands.py for arrays that are cut into (outer, rows, width).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, reduce

from mygrad import domain, expr
from mygrad.expr import Expr
from mygrad.helpers import ceildiv
from mygrad.kernel import Kernel, Store, named, roots_of, scan_axes, store_axes
from mygrad.ops import Op
from mygrad.program import BLOCK, UNIT
from mygrad.schedule import reshape_axes
from mygrad.schedule.steps import Step


@dataclass(frozen=True)
class Cut:
    """A kernel whose axes are split so that the row is an axis of its own. `units` are the axes
    that together number the units, with their strides in that number; None if there are no such
    axes."""

    step: Step
    axes: tuple[Expr, ...]
    stores: tuple[Store, ...]
    row: Expr
    units: Mapping[Expr, int] | None = None

    @property
    def accumulates(self) -> bool:
        """Whether the kernel sums over the rows."""
        return self.row not in self.axes


@dataclass
class Draft:
    """A band that could be formed: how many units and rows there are, the width of each array that
    is handed on, and by position how each kernel is cut."""

    units: int
    rows: int
    widths: Mapping[int, int]
    cuts: dict[int, Cut]
    before: list[int]  # other steps among them that must run before, or may
    after: list[int]  # and that must run after
    local: list[int] = field(default_factory=list)

    @property
    def accumulates(self) -> bool:
        """Whether something is added up over the rows."""
        return any(c.accumulates for c in self.cuts.values())

    @property
    def apart(self) -> bool:
        """Whether units have nothing to do with each other."""
        return all(c.units is not None for c in self.cuts.values())

    @property
    def parted(self) -> int:
        """Units that are apart; 1 where kernels go through all of them."""
        return self.units if self.apart else 1


def may_be_cut(step: Step) -> bool:
    """Whether a step is a kernel whose order of points is free."""
    kernel = step.what
    if not isinstance(kernel, Kernel) or len(set(step.arguments)) < len(step.arguments):
        return False
    if any(name in (BLOCK, UNIT) for name, _, _ in kernel.params):
        return False
    plain = all(s.mode == "set" and not s.ordered_axes for s in kernel.stores)
    return plain and not scan_axes(kernel)


@lru_cache(maxsize=256)
def accesses_of(stores: tuple[Store, ...]) -> dict[int, list[Expr]]:
    """By slot: at which indices it is loaded and stored."""
    found: dict[int, dict[Expr, None]] = {}
    for s in stores:
        found.setdefault(s.slot, {})[s.index] = None
    for e in expr.toposort(r for s in stores for r in roots_of(s)):
        if e.op is Op.LOAD:
            found.setdefault(e.arg, {})[e.src[0]] = None
    return {slot: list(indices) for slot, indices in found.items()}


def kernel_of(step: Step) -> Kernel:
    assert isinstance(step.what, Kernel)
    return step.what


def cut(step: Step, units: int, rows: int, widths: Mapping[int, int]) -> Cut | None:
    """The kernel with the row as an axis of its own; None where some access to an array of the band
    is cut otherwise."""
    kernel = kernel_of(step)
    axes, stores = kernel.axes, kernel.stores
    while True:
        accesses = accesses_of(stores)
        found = [
            (index, widths[i])
            for slot, i in enumerate(step.arguments)
            if i in widths
            for index in accesses.get(slot, ())
        ]
        split = next((s for index, w in found for s in _splits(index, w, rows)), None)
        if split is None:
            break
        axes, stores = _split_axis(axes, stores, *split)
    parts = {_row(index, width, rows) for index, width in found}
    row = parts.pop() if len(parts) == 1 else None
    if row is None:
        return None
    numbers = {frozenset(_units(index, width * rows).items()) for index, width in found}
    numbering = dict(numbers.pop()) if len(numbers) == 1 else {}
    return Cut(step, axes, stores, row, numbering if _numbers(numbering, stores, units) else None)


def _splits(index: Expr, width: int, rows: int) -> Iterator[tuple[Expr, int]]:
    """(axis, factor) for the axes that reach over a place where the array is cut."""
    for axis, stride in expr.linear(index)[0].items():
        if axis.op is Op.AXIS and stride > 0:
            for place in (width, width * rows):
                factor, rest = divmod(place, stride)
                if not rest and 1 < factor < axis.arg[1] and axis.arg[1] % factor == 0:
                    yield axis, factor


def _split_axis(
    axes: tuple[Expr, ...], stores: tuple[Store, ...], axis: Expr, factor: int
) -> tuple[tuple[Expr, ...], tuple[Store, ...]]:
    first = reshape_axes.new_ids(axes, stores)
    high, low = expr.axis(first, axis.arg[1] // factor), expr.axis(first + 1, factor)
    return reshape_axes.replace_axes(axes, stores, {axis: high * factor + low}, {axis: (high, low)})


def _row(index: Expr, width: int, rows: int) -> Expr | None:
    """The axis that is the row in an index."""
    terms, constant = expr.linear(index)
    inner = constant % (width * rows)
    row = None
    for axis, stride in terms.items():
        if axis.op is not Op.AXIS or stride < 0 or constant < 0:
            return None
        if stride >= width * rows:
            if stride % (width * rows):
                return None
        elif stride >= width:
            if row is not None or stride != width or axis.arg[1] != rows:
                return None
            row = axis
        else:
            inner += stride * (axis.arg[1] - 1)
    return row if inner < width else None


def _units(index: Expr, size: int) -> dict[Expr, int]:
    """The axes that say which unit of `size` elements an index is in, with their strides."""
    terms, _ = expr.linear(index)
    return {axis: stride // size for axis, stride in terms.items() if stride >= size}


def _numbers(numbering: Mapping[Expr, int], stores: Sequence[Store], units: int) -> bool:
    """Whether axes are the digits of the number of a unit, and all stores are of one unit each."""
    place = 1
    for axis, stride in sorted(numbering.items(), key=lambda item: item[1]):
        if stride != place:
            return False
        place *= axis.arg[1]
    return place == units and all(store_axes(s).issuperset(numbering) for s in stores)


def is_legal(made: Cut) -> bool:
    """Whether every store writes other elements in every block, or adds up blocks."""
    if not made.accumulates:
        return all(made.row in store_axes(s) for s in made.stores)
    loaded = {e.arg for s in made.stores for e in expr.toposort([s.value]) if e.op is Op.LOAD}
    return all(
        s.value.op is Op.REDUCE
        and s.value.arg[0] is Op.ADD
        and made.row in s.value.arg[1]
        and s.valid is None
        and s.slot not in loaded
        for s in made.stores
    )


# --- the kernel of a block ------------------------------------------------------------------------


def unit_of(units: int) -> Expr:
    """The number of the unit, for the kernels of a band with so many."""
    return expr.param(UNIT, 0, units - 1) if units > 1 else expr.const(0)


@dataclass(frozen=True)
class Rows:
    """The rows of `count` blocks of `size`, from row `start` on; in one of `units` units, or, where
    that is 0, in all of them."""

    start: int
    count: int
    size: int
    units: int = 0


def block_kernel(made: Cut, draft: Draft, rows: Rows, later: bool) -> Kernel:
    """The kernel for block number BLOCK of some rows; `later`: not the first, so that sums are
    added."""
    kernel = kernel_of(made.step)
    own = expr.axis(reshape_axes.new_ids(made.axes, made.stores), rows.size)
    arguments, local = made.step.arguments, set(draft.local)
    widths = {slot: draft.widths[i] for slot, i in enumerate(arguments) if i in local}
    stores = _in_local(made.stores, made.row, own, draft.rows, widths, rows.units > 0)
    row = own + rows.start
    if rows.count > 1:
        row = expr.param(BLOCK, 0, rows.count - 1) * rows.size + row
    values, become = {made.row: row}, {made.row: (own,), own: ()}
    if rows.units:
        unit = unit_of(rows.units)
        for axis, stride in (made.units or {}).items():
            digit = expr.floordiv(unit, expr.const(stride))
            values[axis], become[axis] = expr.modulo(digit, expr.const(axis.arg[1])), ()
    axes, stores = reshape_axes.replace_axes((*made.axes, own), stores, values, become)
    if made.accumulates and later:
        stores = tuple(_added(s) for s in stores)
    axes, stores = reshape_axes.simplify(axes, stores)
    units = rows.units or 1
    buffers = tuple(
        replace(info, size=info.size // (draft.rows * units) * rows.size) if i in local else info
        for i, info in zip(arguments, kernel.buffers, strict=True)
    )
    used = {e.arg for s in stores for e in expr.toposort(roots_of(s)) if e.op is Op.PARAM}
    own_params = [p for p in used if p[0] in (BLOCK, UNIT)]
    share = max(ceildiv(draft.rows, rows.size), 1) * units
    result = replace(
        kernel,
        axes=axes,
        stores=stores,
        buffers=buffers,
        params=tuple(sorted([*kernel.params, *own_params])),
        flops=kernel.flops // share,
        bytes=kernel.bytes // share,
    )
    stem = kernel.name.partition("_")[0]
    name = f"{stem}_{'x'.join(str(a.arg[1]) for a in axes) or 1}"
    return named(result, name)


def _in_local(
    stores: Sequence[Store],
    row: Expr,
    own: Expr,
    rows: int,
    widths: Mapping[int, int],
    one_unit: bool,
) -> tuple[Store, ...]:
    """The stores with local arrays (by slot, with their widths) indexed within the block, and, if
    they hold but one, within the unit."""

    def within(slot: int, index: Expr) -> Expr:
        terms, total = expr.linear(index)
        number, rest = divmod(total, widths[slot] * rows)
        moved = expr.const(number * widths[slot] * own.arg[1] * (not one_unit) + rest)
        for axis, stride in terms.items():
            number = stride // (widths[slot] * rows)
            near = number * widths[slot] * own.arg[1] if number else stride
            if not (number and one_unit):
                moved = moved + (own if axis is row else axis) * near
        return moved

    loads = {
        e: expr.load(e.arg, e.dtype, within(e.arg, e.src[0]), *e.src[1:])
        for e in expr.toposort(r for s in stores for r in roots_of(s))
        if e.op is Op.LOAD and e.arg in widths
    }
    return tuple(
        replace(
            s,
            index=within(s.slot, s.index) if s.slot in widths else s.index,
            value=expr.substitute(s.value, loads),
            valid=s.valid and expr.substitute(s.valid, loads),
        )
        for s in stores
    )


def _added(store: Store) -> Store:
    """A store that adds to what the blocks before have stored, where there is something to add."""
    before = expr.load(store.slot, store.value.dtype, store.index)
    needed = domain.terms_of([store.value])[store.value]
    somewhere = (domain.somewhere(c, store.value.arg[1]) for c in sorted(needed, key=expr.order))
    valid = reduce(expr.both, somewhere, expr.const(True, expr.dt.bool_))
    total = expr.alu(Op.ADD, before, store.value)
    return replace(store, value=total, valid=None if expr.is_true(valid) else valid)
