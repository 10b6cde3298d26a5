"""Sums over sliding windows with fewer multiplications.

    y[n, o, p, q] = sum x[n, c, p + k, q + l] g[o, c, k, l]     over c, k, l

    ->  taps      T[i, j, c, o] = E g E^T              i, j < 6 are planes
        data      D[i, j, n, t, c] = D x D^T           t numbers the tiles of p and q
        products  M[i, j, n, t, o] = sum D[..] T[..]   over c: 36 plain products
        results   z[n, p, q, o] = R M R^T
        epilogue  y and all that is done with it, from z

Each tile of m x m results needs 6 x 6 data and r x r taps, with m + r = 7: 36 multiplications for
144 with windows of 3 x 3, for 100 with 5 x 5 (the matrices: interpolation.py). Where the window is
what is computed (k, l stay, p, q are summed: the gradient of a weight), windows are results, and r
points of each long axis at a time are the taps.

Nothing here knows what a convolution is: what is looked for is a sum of products of which one
factor moves with the sum of two axes, one of them summed and the other not, twice. All kernels of
tiles go through channels as vectors. Where channels do not lie side by side, data and taps are
*lined* first, in an array where they do, with what is computed on the way into the sum (an
activation). Where the tiles of a few images fit in a cache, bands keep them there between the
kernels (bands.py).

Results differ in rounding, by about twice the error of the sum itself, and what is infinite or NaN
reaches all results of its tile. MYGRAD_WINOGRAD=0 turns it off.

Source: A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks, 2016
(arXiv:1509.09308).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, reduce
from itertools import product

from mygrad import dtype as dt
from mygrad import expr
from mygrad.config import config
from mygrad.expr import Expr
from mygrad.helpers import ceildiv, prod
from mygrad.kernel import BufferInfo, Kernel, Store
from mygrad.ops import Op
from mygrad.schedule import cost, reshape_axes
from mygrad.schedule.build import of_slots
from mygrad.schedule.interpolation import DATA, POINTS, Matrix, both, evaluation, reading
from mygrad.schedule.steps import Memory, Step, Units

ON = frozenset({"cpu"})  # devices for which it pays
NARROWEST = 3  # window: with 2 the tiles take more than they spare
TRUE = expr.const(True, dt.bool_)


@dataclass(frozen=True)
class Slide:
    """A long axis and a window: data move with `long + window`, or, where it is `reversed`, with
    `long + (extent of the window - 1 - window)`."""

    long: Expr
    window: Expr
    reversed: bool

    @property
    def width(self) -> int:
        """Points of the window."""
        return int(self.window.arg[1])

    @property
    def step(self) -> int:
        """Points of the long axis in a tile."""
        return POINTS + 1 - self.width

    @property
    def tiles(self) -> int:
        """Tiles along the long axis; the last one may reach out."""
        return ceildiv(self.long.arg[1], self.step)

    def at(self, offset: int) -> Expr:
        """The value of the window axis that moves data so far."""
        return expr.const(self.width - 1 - offset if self.reversed else offset)

    @property
    def place(self) -> Expr:
        """Where data are read, but for the point of the long axis."""
        return (self.width - 1) - self.window if self.reversed else self.window

    def inside(self, at: Expr) -> Expr:
        """Whether a point of the long axis exists."""
        return expr.less(at, expr.const(self.long.arg[1]))


@dataclass(frozen=True)
class Found:
    """A sum that can be computed so. `data` has `places` instead of the two axes of each slide;
    `taps` have the windows, or the long axes if these are summed. Further axes, by where they are
    not: `batch` is everywhere, `summed` not in results, `rows` not in taps, `columns` not in
    data."""

    total: Expr
    data: Expr
    taps: Expr
    slides: tuple[Slide, ...]
    places: tuple[Expr, ...]
    sums_long: bool
    batch: tuple[Expr, ...]
    summed: tuple[Expr, ...]
    rows: tuple[Expr, ...]
    columns: tuple[Expr, ...]


@dataclass(frozen=True)
class Spots:
    """The points of an axis that a tile has `at` a time: of a long one, or all of a window. With
    all tiles they take up `extent` points, if the last one reaches out."""

    axis: Expr
    extent: int
    at: tuple[Expr, ...]

    def roomy(self) -> Spots:
        """The same for an axis that has all these points."""
        return replace(self, axis=expr.axis(self.axis.arg[0], self.extent))


@dataclass(frozen=True)
class Plan:
    """What takes the place of a kernel: for each new kernel what it computes, and its arguments.
    Those are arguments of the old one, and behind these new arrays, of so many elements."""

    sizes: tuple[int, ...]
    kernels: tuple[tuple[str, Kernel, tuple[int, ...]], ...]


def is_on(device: str) -> bool:
    """Whether such sums are looked for on a device."""
    return device in ON and config.MYGRAD_WINOGRAD


def apply(
    steps: Sequence[Step], arrays: Sequence[Memory], units: Units
) -> tuple[list[Step], list[Memory]]:
    """The steps with such sums computed so where it pays, beside the matrix units of devices; new
    arrays are appended to `arrays`."""
    done: list[Step] = []
    made = list(arrays)
    look = cache(plan)  # layers are often equal
    for step in steps:
        found = None
        if is_on(step.device) and isinstance(step.what, Kernel):
            found = look(step.what, units(step.device))
        if found is None:
            done.append(step)
            continue
        number = [*step.arguments, *range(len(made), len(made) + len(found.sizes))]
        made += [Memory("temporary", 0, dt.float32, (n,), step.device) for n in found.sizes]
        for what, kernel, slots in found.kernels:
            reason = f"{step.reason}; {what} of tiles, which take fewer multiplications"
            kernel = replace(kernel, reason=reason, location=step.location)
            own = tuple(number[n] for n in slots)
            done.append(replace(step, what=kernel, arguments=own, reason=reason))
    return done, made


# --- finding sums ---------------------------------------------------------------------------------


def plan(kernel: Kernel, units: tuple[str, ...]) -> Plan | None:
    """The kernels in the place of one; None where there is no such sum, or it does not pay on a
    device with these matrix units."""
    if kernel.params or any(s.mode != "set" or s.ordered_axes for s in kernel.stores):
        return None
    first = reshape_axes.new_ids(kernel.axes, kernel.stores)
    for e in kernel.nodes:
        if e.op is Op.REDUCE and expr.free_axes(e).issubset(kernel.axes):
            found = _found(e, kernel.axes, first)
            if found is None or not _pays(found, _speed(e, units)):
                continue
            if all(e in expr.toposort([s.value]) for s in kernel.stores):
                return _Planner(kernel, found, first + len(found.places)).plan()
    return None


def parts_of(
    total: Expr,
    axes: Sequence[Expr],
    first: int,
    extent: int,
    least: int,
    units: tuple[str, ...],
) -> int:
    """Into how many equal parts, `least` or more, a sum should be divided along an axis of that
    extent that it adds up, so that a cache holds the tiles of a part; 1 if it should stay whole,
    and 0 if tiles do not pay. `first` is the id of a new axis."""
    found, speed = _found(total, axes, first), _speed(total, units)
    if found is None:
        return 0
    if found.sums_long:
        for parts in range(least, extent + 1):
            if extent % parts == 0 and _stays_near(found, parts) and _pays(found, speed, parts):
                return parts
    return int(_pays(found, speed))


def _speed(total: Expr, units: tuple[str, ...]) -> float:
    """How many times as fast as products of float32 those of a sum are."""
    loads = (e for e in expr.toposort([total]) if e.op is Op.LOAD)
    narrow = any(e.dtype is dt.bfloat16 for e in loads)
    return max((cost.NARROW.get(u, 1.0) for u in units), default=1.0) if narrow else 1.0


def _found(total: Expr, axes: Sequence[Expr], first: int) -> Found | None:
    body = total.src[0]
    if total.arg[0] is not Op.ADD or body.op is not Op.MUL or body.dtype is not dt.float32:
        return None
    inside = expr.toposort([body])
    if any(e.op in (Op.REDUCE, Op.SCAN) for e in inside):
        return None
    ways = (_of_factors(total, axes, first, *pair) for pair in (body.src, body.src[::-1]))
    return next((found for found in ways if found is not None), None)


def _of_factors(
    total: Expr, axes: Sequence[Expr], first: int, data: Expr, taps: Expr
) -> Found | None:
    outer, inner = expr.free_axes(total), total.arg[1]
    slides: list[Slide] = []
    places: list[Expr] = []
    for pair in product(inner, (a for a in axes if a in outer)):
        window, long = sorted(pair, key=lambda a: a.arg[1])
        made = _slide(data, long, window, first + len(places))
        if made is not None:
            slide, place, data = made
            slides.append(slide)
            places.append(place)
    sums_long = {s.long in inner for s in slides}
    if len(slides) != 2 or len(sums_long) != 1:
        return None
    (long,) = sums_long
    of_taps = {s.long if long else s.window for s in slides}
    others = {s.window if long else s.long for s in slides}
    mine, theirs = expr.free_axes(data) - set(places), expr.free_axes(taps)
    summed = [a for a in inner if a not in of_taps | others]
    if not of_taps <= theirs or others & theirs or not set(summed) <= mine & theirs:
        return None
    rest = [a for a in axes if a in outer and a not in of_taps | others]
    return Found(
        total,
        data,
        taps,
        tuple(slides),
        tuple(places),
        long,
        tuple(a for a in rest if a in mine and a in theirs),
        tuple(summed),
        tuple(a for a in rest if a in mine and a not in theirs),
        tuple(a for a in rest if a in theirs and a not in mine),
    )


def _slide(data: Expr, long: Expr, window: Expr, id: int) -> tuple[Slide, Expr, Expr] | None:
    """Two axes of which data depend on the sum alone, if they do: an axis for that sum, and data
    with it."""
    if not NARROWEST <= window.arg[1] < POINTS or not {window, long} <= expr.free_axes(data):
        return None
    place = expr.axis(id, window.arg[1] + long.arg[1] - 1)
    for slide in (Slide(long, window, False), Slide(long, window, True)):
        at = expr.substitute(data, {window: slide.at(0), long: place})
        if expr.substitute(at, {place: long + slide.place}) is data:
            return slide, place, at
    return None


def _size(axes: Iterable[Expr]) -> int:
    return prod(a.arg[1] for a in axes)


def _pays(f: Found, speed: float, parts: int = 1) -> bool:
    """Whether the multiplications that are spared, which would be done at that speed, are worth
    more than moving tiles, and the results of so many parts."""
    each = 2 * _size((*f.batch, *f.rows, *f.columns, *f.summed))
    direct = each * prod(s.long.arg[1] * s.width for s in f.slides)
    fast = each * prod(s.tiles * POINTS for s in f.slides)
    near = _goes_by_rows(f) or _stays_near(f, parts)
    byte = cost.TILED_NEAR if near else cost.TILED
    moved = 2 * dt.float32.itemsize * sum(_sizes(f)) * byte
    if parts > 1:
        results = _size((*f.batch, *f.rows, *f.columns)) * prod(s.width for s in f.slides)
        moved += 2 * dt.float32.itemsize * results * parts * cost.TILED
    return fast * cost.FLOP + moved < direct * cost.FLOP / speed * cost.WORTH


def _goes_by_rows(f: Found) -> bool:
    """Whether a band takes a few rows at a time from data to results (`bands._Former.is_whole`)."""
    if f.sums_long or not f.rows:
        return False
    data, taps, results = (n * dt.float32.itemsize for n in _sizes(f))
    rows = f.rows[0].arg[1]
    blocks = ceildiv(rows, max(cost.BAND_LOCAL * rows // (data + results), 1))
    near = data + results <= cost.BAND_LOCAL * blocks
    channels = _size(f.summed) + _size(f.columns)
    lined = _size(f.batch) * _size(f.rows) * prod(s.long.arg[1] for s in f.slides) * channels
    saved = data + results + lined * dt.float32.itemsize
    return near and blocks * taps <= cost.BAND_WHOLE * saved


def _stays_near(f: Found, parts: int) -> bool:
    """Whether a cache holds what one of so many parts of a sum needs, or one of those that are
    everywhere already: then a band takes all of it from data to results."""
    if not f.sums_long:
        return False
    data, taps, results = _sizes(f)
    elements = ((data + taps) // parts + results) // _size(f.batch)
    return elements * dt.float32.itemsize <= cost.BAND_LOCAL


def _sizes(f: Found) -> tuple[int, int, int]:
    """Elements of data, taps and products."""
    tiles = prod(s.tiles for s in f.slides)
    planes = POINTS**2 * _size(f.batch)
    of_taps, of_results = (tiles, 1) if f.sums_long else (1, tiles)
    return (
        planes * _size(f.rows) * _size(f.summed) * tiles,
        planes * _size(f.columns) * _size(f.summed) * of_taps,
        planes * _size(f.rows) * _size(f.columns) * of_results,
    )


# --- the kernels ----------------------------------------------------------------------------------


class _Planner:
    def __init__(self, kernel: Kernel, found: Found, first: int) -> None:
        self.kernel = kernel
        self.found = f = found
        self.tile = tuple(expr.axis(first + n, s.tiles) for n, s in enumerate(f.slides))
        self.point = tuple(expr.axis(first + len(self.tile) + n, POINTS) for n in range(2))
        # behind its planes, the axes of each array
        over, taken = (f.summed, f.rows) if f.sums_long else (f.rows, f.summed)
        of_taps, of_results = (self.tile, ()) if f.sums_long else ((), self.tile)
        self.summed = (*f.summed, *of_taps)
        self.of_data = (*f.batch, *over, *self.tile, *taken)
        self.of_taps = (*f.batch, *self.summed, *f.columns)
        self.of_results = (*f.batch, *f.rows, *of_results, *f.columns)
        self.infos = list(kernel.buffers)  # of the arrays that there are, and of new ones
        self.kernels: list[tuple[str, Kernel, tuple[int, ...]]] = []

    def plan(self) -> Plan:
        """See `plan`."""
        f = self.found
        spots = self.spots(f.sums_long)
        matrices = [evaluation(len(s.at)) for s in spots]
        taps = self.transform("taps", f.taps, self.of_taps, spots, matrices)
        spots = [_tiled(*each, POINTS) for each in zip(f.places, self.tile, f.slides, strict=True)]
        data = self.transform("data", f.data, self.of_data, spots, [DATA, DATA])
        self.read_off(self.multiply(taps, data))
        sizes = (info.size for info in self.infos[len(self.kernel.buffers) :])
        return Plan(tuple(sizes), tuple(self.kernels))

    def new(self, size: int) -> int:
        """The slot of a new array."""
        self.infos.append(BufferInfo(dt.float32, size))
        return len(self.infos) - 1

    def spots(self, long: bool) -> list[Spots]:
        """The long axes in tiles, or the windows."""
        pairs = zip(self.found.slides, self.tile, strict=True)
        if long:
            return [_tiled(s.long, tile, s, s.step) for s, tile in pairs]
        return [Spots(s.window, s.width, tuple(map(s.at, range(s.width)))) for s, _ in pairs]

    def place(self, point: Sequence[Expr | int], axes: Sequence[Expr]) -> Expr:
        """The index of an element of data, taps or products."""
        index = expr.const(0)
        for at in point:
            index = index * POINTS + at
        return _row_major(axes, index)

    def transform(
        self,
        what: str,
        value: Expr,
        axes: tuple[Expr, ...],
        spots: Sequence[Spots],
        matrices: Sequence[Matrix],
    ) -> int:
        """The array of data or taps, evaluated at the points of each tile."""
        value, spots = self.lined(what, value, axes, spots)
        done = both(matrices, _grid(spots, value))
        slot = self.new(POINTS**2 * _size(axes))
        points = product(range(POINTS), repeat=2)
        self.add(what, axes, [Store(slot, self.place(p, axes), done[p[0]][p[1]]) for p in points])
        return slot

    def lined(
        self, what: str, value: Expr, axes: tuple[Expr, ...], spots: Sequence[Spots]
    ) -> tuple[Expr, Sequence[Spots]]:
        """A value as it lies in memory of its own, with room for tiles that reach out, and what
        lanes run along side by side. As it is, if its own lanes are not apart."""
        loads = [e for e in expr.toposort([value]) if e.op is Op.LOAD]
        if not axes or all(expr.stride(e.src[0], axes[-1]) in (0, 1) for e in loads):
            return value, spots
        roomy = [s.roomy() for s in spots]
        own = expr.free_axes(value)
        over = [a for a in axes[:-1] if a in own]
        layout = (*over, *(s.axis for s in roomy), axes[-1])
        moved = {s.axis: r.axis for s, r in zip(spots, roomy, strict=True)}
        ends = (expr.less(r, expr.const(a.arg[1])) for a, r in moved.items())
        slot, index = self.new(_size(layout)), _row_major(layout)
        value = _under(reduce(expr.both, ends), expr.substitute(value, moved))
        self.add(f"lined_{what}", layout, [Store(slot, index, value)])
        return expr.load(slot, dt.float32, index), roomy

    def multiply(self, taps: int, data: int) -> int:
        """The array of all products."""
        factors = (
            expr.load(slot, dt.float32, self.place(self.point, axes))
            for slot, axes in ((data, self.of_data), (taps, self.of_taps))
        )
        total = expr.reduce(Op.ADD, expr.alu(Op.MUL, *factors), self.summed)
        axes = (*self.point, *self.of_results)
        slot = self.new(_size(axes))
        self.add("products", axes, [Store(slot, self.place(self.point, self.of_results), total)])
        return slot

    def read_off(self, products: int) -> None:
        """The kernels that compute results from products, and what is done with them."""
        f = self.found
        spots, planes = self.spots(not f.sums_long), range(POINTS)
        axes = [s.roomy().axis for s in spots]
        layout = (*f.batch, *f.rows, *axes, *f.columns)
        slot, index = self.new(_size(layout)), _row_major(layout)
        found = [
            [expr.load(products, dt.float32, self.place((i, j), self.of_results)) for j in planes]
            for i in planes
        ]
        done = both([reading(len(s.at)) for s in spots], found)
        stores = []
        for i, row in enumerate(done):
            for j, value in enumerate(row):
                at = dict(zip(axes, (spots[0].at[i], spots[1].at[j]), strict=True))
                stores.append(Store(slot, expr.substitute(index, at), value))
        self.add("results", self.of_results, stores)
        own = {r: s.axis for r, s in zip(axes, spots, strict=True)}
        total = {f.total: expr.load(slot, dt.float32, expr.substitute(index, own))}
        stores = [replace(s, value=expr.substitute(s.value, total)) for s in self.kernel.stores]
        self.add("epilogue", self.kernel.axes, stores)

    def add(self, what: str, axes: Iterable[Expr], stores: Sequence[Store]) -> None:
        """A kernel whose slots are those of the plan."""
        self.kernels.append((what, *of_slots(what, tuple(dict.fromkeys(axes)), stores, self.infos)))


def _tiled(axis: Expr, tile: Expr, slide: Slide, count: int) -> Spots:
    """So many points of an axis for each tile of a long one."""
    extent = (slide.tiles - 1) * slide.step + count
    return Spots(axis, extent, tuple(tile * slide.step + n for n in range(count)))


def _grid(spots: Sequence[Spots], value: Expr) -> list[list[Expr]]:
    """A value at all points of a tile; 0 at those that do not exist."""

    def at(points: Sequence[Expr]) -> Expr:
        where = {s.axis: p for s, p in zip(spots, points, strict=True)}
        ends = (expr.less(p, expr.const(a.arg[1])) for a, p in where.items())
        return _under(reduce(expr.both, ends), expr.substitute(value, where))

    return [[at((p, q)) for q in spots[1].at] for p in spots[0].at]


def _row_major(axes: Iterable[Expr], index: Expr | None = None) -> Expr:
    """The index of an element of an array with these axes, the last of which is contiguous."""
    place = expr.const(0) if index is None else index
    for a in axes:
        place = place * a.arg[1] + a
    return place


def _under(condition: Expr, value: Expr) -> Expr:
    """The value where a condition holds, and 0 elsewhere; nothing is read there."""
    return expr.where(condition, _hidden(condition, value), expr.const(0, value.dtype))


def _hidden(condition: Expr, value: Expr) -> Expr:
    """A value whose loads happen only where a condition holds."""
    if expr.is_true(condition):
        return value
    loads = {
        e: expr.load(e.arg, e.dtype, e.src[0], reduce(expr.both, e.src[1:], condition))
        for e in expr.toposort([value])
        if e.op is Op.LOAD
    }
    return expr.substitute(value, loads)
