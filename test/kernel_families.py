"""Random kernels by family: what the scheduler makes of networks, over any shapes and strides.

    FAMILIES["product"](rng)      a kernel; `rng` is a `random.Random`, or one that Hypothesis draws
    small(family, rng, points)    the first one with no more points than that

Arrays have their axes in any order, with gaps between rows, some of them backwards. All data are
small whole numbers (`kernel_cases.arrays_for`), so every order of a sum gives the same bits.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from mygrad import dtype as dt
from mygrad import expr as ex
from mygrad.codegen.prepare import combine
from mygrad.dtype import DType
from mygrad.expr import Expr, alu, axis, both, const, less, load, reduce, scan
from mygrad.helpers import prod
from mygrad.kernel import BufferInfo, Kernel, Store, axis_sets
from mygrad.numeric import identity
from mygrad.ops import SCATTER_MODES, Op

EXTENTS = (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 19, 31, 32, 33, 40, 65, 131)
WIDE = {dt.bfloat16: dt.float32, dt.float16: dt.float32, dt.int8: dt.int32}  # of sums
NUMBERS = (dt.float32, dt.float32, dt.float64, dt.int32, dt.bfloat16, dt.int8, dt.float16)


@dataclass(frozen=True)
class Strided:
    """A buffer seen as an array."""

    slot: int
    dtype: DType
    strides: tuple[int, ...]
    offset: int

    def index(self, *indices: Expr) -> Expr:
        """The element of a point."""
        return sum((i * s for i, s in zip(indices, self.strides, strict=True)), const(self.offset))

    def load(self, *indices: Expr, valid: Expr | None = None) -> Expr:
        """The value at a point, in the type that sums have."""
        value = load(self.slot, self.dtype, self.index(*indices), valid)
        wide = WIDE.get(self.dtype)
        return value if wide is None else alu(Op.CAST, value, dtype=wide)


class Maker:
    """The axes, arrays and stores of a kernel that is being made."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.dtype = rng.choice(NUMBERS)
        self.wide = WIDE.get(self.dtype, self.dtype)
        self.infos: list[BufferInfo] = []
        self.stores: list[Store] = []
        self.ids = itertools.count()

    def axis(self, *extents: int) -> Expr:
        """A new axis with one of these extents, or any."""
        return axis(next(self.ids), self.rng.choice(extents or EXTENTS))

    def axes(self, low: int, high: int) -> list[Expr]:
        """Several new axes."""
        return [self.axis() for _ in range(self.rng.randint(low, high))]

    def array(
        self, extents: Sequence[int], dtype: DType | None = None, written: bool = False
    ) -> Strided:
        """A new buffer: axes in any order, gaps, directions; of odd places, sometimes."""
        rng, strides, step = self.rng, [0] * len(extents), 1
        order = list(range(len(extents)))
        if rng.random() < 0.5:
            rng.shuffle(order)
        for n in reversed(order):
            strides[n] = step
            step = step * max(extents[n], 1) + (rng.choice((1, 3)) if rng.random() < 0.15 else 0)
        offset = rng.choice((1, 5)) if rng.random() < 0.15 else 0
        for n in order:
            if rng.random() < 0.1:
                offset += strides[n] * max(extents[n] - 1, 0)
                strides[n] = -strides[n]
        dtype = dtype or self.dtype
        reach = sum(max(n - 1, 0) * max(s, 0) for n, s in zip(extents, strides, strict=True))
        self.infos.append(BufferInfo(dtype, offset + reach + 1, written))
        return Strided(len(self.infos) - 1, dtype, tuple(strides), offset)

    def read(self, axes: Sequence[Expr], dtype: DType | None = None) -> Expr:
        """A load of a new array over some axes."""
        return self.array(extents(axes), dtype).load(*axes)

    def store(self, axes: Sequence[Expr], value: Expr) -> None:
        """Into a new array, perhaps narrower."""
        narrow = self.rng.random() < 0.2 and value.dtype.is_float
        if narrow:
            value = alu(Op.CAST, value, dtype=self.rng.choice((dt.bfloat16, dt.float16)))
        out = self.array(extents(axes), value.dtype, written=True)
        self.stores.append(Store(out.slot, out.index(*axes), value))

    def epilogue(self, axes: Sequence[Expr], value: Expr) -> Expr:
        """Something done to a result: nothing, a bias and a bound, or a long expression."""
        kind = self.rng.choice(("none", "none", "bias", "long"))
        if kind == "none" or not axes:
            return value
        value = add(value, self.read([self.rng.choice(axes)], value.dtype))
        if kind == "bias":
            return alu(Op.MAX, value, const(0, value.dtype))
        for n in range(5):
            value = alu(Op.MAX, add(value, const(n, value.dtype)), const(-n, value.dtype))
        return value

    def kernel(self, name: str, axes: Sequence[Expr]) -> Kernel:
        """Everything."""
        listed = list(axes)
        if self.rng.random() < 0.3:
            self.rng.shuffle(listed)
        return Kernel(name, tuple(listed), tuple(self.stores), tuple(self.infos))


def extents(axes: Sequence[Expr]) -> list[int]:
    """How long axes are."""
    return [a.arg[1] for a in axes]


def add(*terms: Expr) -> Expr:
    """The sum of values."""
    return functools.reduce(lambda a, b: alu(Op.ADD, a, b), terms)


def mul(a: Expr, b: Expr) -> Expr:
    """The product of values."""
    return alu(Op.MUL, a, b)


def within(i: Expr, size: int) -> Expr:
    """0 <= i < size"""
    return both(less(const(-1), i), less(i, const(size)))


def product(rng: Random) -> Kernel:
    """Sums of products, NN, NT, TN, batched, of several axes of each sort, some of them padded."""
    m = Maker(rng)
    batch, rows, columns = m.axes(0, 1), m.axes(1, 2), m.axes(1, 2)
    depth = m.axes(1, 2)
    left, right = [*batch, *rows, *depth], [*batch, *depth, *columns]
    if batch and rng.random() < 0.3:
        right = right[1:]  # one for all
    k = depth[-1].arg[1]
    pad = rng.choice((0, 0, 0, 1, 2))
    a = m.array([*extents(left[:-1]), max(k - pad, 1)])
    moved = depth[-1] - pad
    x = a.load(*left[:-1], moved, valid=within(moved, k - pad)) if 0 < pad < k else m.read(left)
    total = reduce(Op.ADD, mul(x, m.read(right)), depth)
    output = [*batch, *rows, *columns]
    m.store(output, m.epilogue(output, total))
    return m.kernel("product", output)


def convolution(rng: Random) -> Kernel:
    """Forward or the gradient of the weights: strided, dilated, padded, grouped, depthwise."""
    m = Maker(rng)
    n, g = m.axis(1, 2, 3), m.axis(1, 1, 2, 17)
    o, c = m.axis(1, 2, 5, 16, 17), m.axis(1, 1, 2, 3)
    y, x = m.axis(1, 2, 4, 5), m.axis(3, 5, 8, 17, 33)
    ky, kx = m.axis(1, 2, 3), m.axis(1, 3, 3, 5)
    step, spread, pad = rng.choice((1, 1, 2, 3)), rng.choice((1, 1, 2)), rng.choice((0, 0, 1, 2))
    places = [(y, ky, pad), (x, kx, pad)]
    sizes = [
        max((o_.arg[1] - 1) * step + (k.arg[1] - 1) * spread + 1 - 2 * p, 1) for o_, k, p in places
    ]
    where = [o_ * step + k * spread - p for o_, k, p in places]
    guards = [within(w, s) for w, s in zip(where, sizes, strict=True)]
    image = m.array([*extents([n, g, c]), *sizes])
    value = image.load(n, g, c, *where, valid=both(*guards) if pad else None)
    if rng.random() < 0.7:
        total = reduce(Op.ADD, mul(value, m.read([g, o, c, ky, kx])), (c, ky, kx))
        output = [n, g, o, y, x]
    else:
        total = reduce(Op.ADD, mul(value, m.read([n, g, o, y, x])), (n, y, x))
        output = [g, o, c, ky, kx]
    m.store(output, m.epilogue(output, total))
    return m.kernel("convolution", output)


def rows(rng: Random) -> Kernel:
    """What a softmax or a norm does to rows, in whole numbers: reductions that need each other."""
    m = Maker(rng)
    outer, j = m.axes(1, 2), m.axis()
    k1, k2 = axis(next(m.ids), j.arg[1]), axis(next(m.ids), j.arg[1])
    x = m.array(extents([*outer, j]))
    high = reduce(Op.MAX, x.load(*outer, k1), (k1,))

    def costly(at: Expr) -> Expr:  # so much that it may be kept, and exact
        value = alu(Op.MAX, add(x.load(*outer, at), high), const(1, m.wide))
        return alu(Op.DIV, value, const(4, m.wide)) if m.wide.is_float else mul(value, value)

    total = reduce(Op.ADD, costly(k2), (k2,))
    m.store([*outer, j], add(costly(j), total, m.read([j], m.wide)))
    if rng.random() < 0.5:
        m.store(outer, combine(Op.MAX, high, total))
    return m.kernel("rows", [*outer, j])


def sums(rng: Random) -> Kernel:
    """Reductions of one array, or two that share their loops, over any of its axes."""
    m = Maker(rng)
    axes = m.axes(1, 3)
    over = rng.sample(axes, rng.randint(1, len(axes)))
    kept = [a for a in axes if a not in over]
    x = m.read(axes)
    op = rng.choice((Op.ADD, Op.ADD, Op.MAX, *[Op.MUL] * m.wide.is_int))
    m.store(kept, m.epilogue(kept, reduce(op, x, over)))
    if rng.random() < 0.4:
        m.store(kept, reduce(Op.ADD, mul(x, m.read(axes)), over))
    return m.kernel("sums", kept)


def scans(rng: Random) -> Kernel:
    """Running values along one axis."""
    m = Maker(rng)
    axes = m.axes(1, 3)
    n = rng.randrange(len(axes))
    bound = axis(next(m.ids), axes[n].arg[1])
    inner = [bound if i == n else a for i, a in enumerate(axes)]
    value = scan(rng.choice((Op.ADD, Op.MAX)), m.read(inner), axes[n], bound)
    m.store(axes, m.epilogue(axes, value))
    return m.kernel("scan", axes)


def scatter(rng: Random) -> Kernel:
    """Rows added to, or put at, rows that an array says, some of them nowhere."""
    m = Maker(rng)
    outer, n, width = m.axes(0, 1), m.axis(), m.axes(0, 1)
    where = m.read([n], dt.index)
    out = m.array([*extents(outer), 4, *extents(width)], m.wide, written=True)
    value = m.read([*outer, n, *width])
    mode = rng.choice(SCATTER_MODES)
    index = out.index(*outer, where, *width)
    m.stores.append(Store(out.slot, index, value, within(where, 4), mode, (n,)))
    return m.kernel("scatter", [*outer, n, *width])


def gather(rng: Random) -> Kernel:
    """Rows of a table, or nothing, perhaps in a sum."""
    m = Maker(rng)
    outer, j = m.axes(1, 2), m.axis()
    where = m.read(outer, dt.index)
    found = m.array([4, j.arg[1]]).load(where, j, valid=within(where, 4))
    value = mul(found, m.read([j]))
    if rng.random() < 0.5:
        m.store(outer, reduce(Op.ADD, value, (j,)))
        return m.kernel("gather", outer)
    m.store([*outer, j], value)
    return m.kernel("gather", [*outer, j])


def moves(rng: Random) -> Kernel:
    """Transposes, broadcasts, pads, windows; several outputs, one of them in place."""
    m = Maker(rng)
    axes = m.axes(1, 3)
    value = m.read(axes)
    for _ in range(rng.randint(0, 2)):
        other = m.read(rng.sample(axes, rng.randint(0, len(axes))))
        test = alu(Op.LT, value, other)
        value = rng.choice((add(value, other), ex.where(test, other, value)))
    if rng.random() < 0.4:
        a, shift = axes[-1], rng.choice((-2, -1, 1))
        size = max(a.arg[1] - rng.choice((0, 1)), 1)
        line = m.array([*extents(axes[:-1]), size])
        shifted = line.load(*axes[:-1], a + shift, valid=within(a + shift, size))
        value = add(value, shifted)
    if rng.random() < 0.3:
        k = m.axis(2, 3)
        step = rng.choice((1, 2))
        long = m.array([*extents(axes[:-1]), (axes[-1].arg[1] - 1) * step + k.arg[1]])
        window = long.load(*axes[:-1], axes[-1] * step + k)
        value = add(value, reduce(Op.MAX, window, (k,)))
    m.store(axes, value)
    if rng.random() < 0.3 and m.dtype is m.wide:
        state = m.array(extents(axes), written=True)
        m.stores.append(Store(state.slot, state.index(*axes), add(state.load(*axes), value)))
    if rng.random() < 0.3:
        m.store([axes[-1]], m.read([axes[-1]]))
    return m.kernel("moves", axes)


def masked(rng: Random) -> Kernel:
    """Sums and maxima of which a condition on two axes leaves a triangle or a band, over parts of
    arrays that are stored and read under it."""
    m = Maker(rng)
    batch, t, s, d = m.axes(0, 1), m.axis(), m.axis(), m.axis()
    apart = rng.choice((1, 1, 1, 2)) * t - rng.choice((1, 1, 1, 3)) * s + rng.choice((0, 0, 2, -3))
    inside = less(const(-1), apart)
    if rng.random() < 0.3:
        inside = both(inside, less(apart, const(rng.choice((1, 3, 8)))))
    x = m.read([*batch, *rng.sample((t, s), 2)])
    kind = rng.choice(("product", "turned", "high", "stored"))
    if kind == "stored":
        depth = m.axis()
        value = reduce(Op.ADD, mul(m.read([*batch, t, depth]), m.read([s, depth])), (depth,))
        m.store([*batch, t, s], m.epilogue([*batch, t, s], value))
        m.stores[0] = replace(m.stores[0], valid=inside)
        return m.kernel("masked", [*batch, t, s])
    if kind == "high":
        low = const(identity(Op.MAX, x.dtype), x.dtype)
        m.store([*batch, t], reduce(Op.MAX, ex.where(inside, x, low), (s,)))
        return m.kernel("masked", [*batch, t])
    row, term = (t, s) if kind == "product" else (s, t)
    zero = const(0, x.dtype)
    total = reduce(Op.ADD, mul(ex.where(inside, x, zero), m.read([*batch, term, d])), (term,))
    m.store([*batch, row, d], m.epilogue([*batch, row, d], total))
    return m.kernel("masked", [*batch, row, d])


def tiles(rng: Random) -> Kernel:
    """Several stores into one array, of what is read at neighbouring places: planes of tiles, or
    elements that lie side by side; some under conditions, some of state that is updated."""
    m = Maker(rng)
    outer, tile, channel = m.axes(0, 1), m.axis(), m.axis()
    step, width, planes = rng.choice((1, 2, 4)), rng.randint(1, 4), rng.randint(2, 6)
    axes = [*outer, tile, channel]
    reach = (tile.arg[1] - 1) * step + width
    long = m.array([*extents(outer), reach, channel.arg[1]])
    data = [long.load(*outer, tile * step + n, channel) for n in range(width)]
    first = rng.random() < 0.5  # planes, or neighbours
    shape = [planes, *extents(axes)] if first else [*extents(axes), planes]
    out = m.array(shape, m.wide, written=True)
    updated, ragged = rng.random() < 0.3, rng.random() < 0.3
    for p in range(planes):
        place = (const(p), *axes) if first else (*axes, const(p))
        index = out.index(*place)
        value = add(*(rng.choice(data) for _ in range(rng.randint(1, 3))))
        if updated:
            value = add(value, load(out.slot, m.wide, index))
        valid = less(tile * planes + p, const(reach)) if ragged else None
        m.stores.append(Store(out.slot, index, value, valid))
    return m.kernel("tiles", axes)


FAMILIES: dict[str, Callable[[Random], Kernel]] = {
    f.__name__: f
    for f in (product, convolution, rows, sums, scans, scatter, gather, moves, masked, tiles)
}


def points(kernel: Kernel) -> int:
    """Points of all stores and reductions together."""
    return sum(prod(extents(list(axes))) for axes in axis_sets(kernel))


def small(family: str, rng: Random, most: int) -> Kernel:
    """A kernel of the family that an interpreter can run."""
    return next(k for k in (FAMILIES[family](rng) for _ in itertools.count()) if points(k) <= most)
