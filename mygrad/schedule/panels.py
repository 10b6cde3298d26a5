"""Operands of many small products, laid out once for all of them.

    63 kernels:  g[m, n] += sum h[m, k] W[n, k]        1 kernel:    P[n / 16, k, n % 16] = W[n, k]
                                                  ->   63 kernels:  g[m, n] += sum h[m, k] P[..]

A product wants its columns as panels, as wide as a line of the cache and all depths long. One with
many rows copies an operand into that order by itself, on the way, and the copy costs little beside
the rest. With few rows it is a third of the work, and where many kernels read the same array, such
as the steps of a recurrent network or the blocks of a band, it is the same copy each time. So the
scheduler makes it, as an array that waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from mygrad import expr
from mygrad.expr import Expr
from mygrad.helpers import prod
from mygrad.kernel import BufferInfo, Kernel, Store, named, stem_of, store_axes
from mygrad.ops import Op
from mygrad.program import LOCAL, UNIT
from mygrad.schedule import cost, reshape_axes
from mygrad.schedule.bands import written_by
from mygrad.schedule.cuts import unit_of
from mygrad.schedule.steps import Band, Memory, Part, Step

ON = frozenset({"cpu"})  # devices whose kernels read panels
LINE = 64  # bytes


@dataclass(frozen=True)
class Layout:
    """Columns and depth of an operand: element `base + n * column + k * depth` of an array. `base`
    may depend on the number of the unit, of which there are `units`."""

    columns: int
    column: int
    deep: int
    depth: int
    base: Expr
    units: int
    width: int  # of a panel

    @property
    def size(self) -> int:
        """Elements of all panels."""
        return self.units * self.columns * self.deep


@dataclass(frozen=True)
class Operand:
    """Where a kernel reads an operand: `load`, by columns and along an axis that it sums over."""

    load: Expr
    column: Expr
    depth: Expr
    layout: Layout


@dataclass(frozen=True)
class Reader:
    """A kernel that reads an operand, `times` in a row; `part` is its number within a band."""

    at: int
    part: int | None
    operand: Operand
    times: int


def lay_out(steps: Sequence[Step], arrays: Sequence[Memory]) -> tuple[list[Step], list[Memory]]:
    """The steps with operands laid out before the first kernel that reads them, where that pays;
    new arrays are appended to `arrays`."""
    done, made = list(steps), list(arrays)
    readers: dict[tuple[int, Layout], list[Reader]] = {}
    look = cache(operand_of)  # a loop over time is many steps of a few kernels
    for at, step in enumerate(done):
        for array, reader in _readers(at, step, look):
            readers.setdefault((array, reader.operand.layout), []).append(reader)
    before: dict[int, list[Step]] = {}
    kernels: dict[tuple[Kernel, Operand], Kernel] = {}
    for (array, layout), found in readers.items():
        first, last, times = found[0].at, found[-1].at, sum(r.times for r in found)
        if times < cost.PANEL_TIMES:
            continue
        if any(array in written_by(s) for s in steps[first : last + 1]):
            continue
        panels = len(made)
        shape = (layout.units, layout.columns // layout.width, layout.deep, layout.width)
        made.append(replace(made[array], kind="temporary", number=0, shape=shape))
        copy = _copy(made[array], layout, times)
        step = Step(
            copy, (array, panels), done[first].device, None, copy.reason, done[first].location
        )
        before.setdefault(first, []).append(step)
        for reader in found:
            done[reader.at] = _reading(done[reader.at], reader, array, panels, kernels)
    return [s for at, step in enumerate(done) for s in (*before.get(at, ()), step)], made


# --- finding operands -----------------------------------------------------------------------------


def _readers(
    at: int, step: Step, look: Callable[[Kernel, int], Operand | None]
) -> Iterator[tuple[int, Reader]]:
    """(array, reader) for what a step reads as an operand."""
    if step.device not in ON:
        return
    if isinstance(step.what, Kernel):
        operand = look(step.what, 1)
        if operand is not None and step.arguments.count(step.arguments[operand.load.arg]) == 1:
            yield step.arguments[operand.load.arg], Reader(at, None, operand, 1)
    elif isinstance(step.what, Band):
        for n, part in enumerate(step.what.parts):
            operand = look(part.kernel, step.what.units)
            if operand is not None and part.arguments[operand.load.arg][0] != LOCAL:
                units = step.what.units // operand.layout.units
                array = step.arguments[part.arguments[operand.load.arg][0]]
                yield array, Reader(at, n, operand, (part.end - part.first) * units)


def operand_of(kernel: Kernel, units: int) -> Operand | None:
    """The largest of what the products of a kernel with few rows read by columns."""
    found = _operands(kernel, units)
    return max(found, key=lambda o: o.layout.columns * o.layout.deep, default=None)


def _operands(kernel: Kernel, units: int) -> Iterator[Operand]:
    loads: dict[int, list[Expr]] = {}
    for e in kernel.nodes:
        if e.op is Op.LOAD:
            loads.setdefault(e.arg, []).append(e)
    stored = {s.slot for s in kernel.stores}
    for e in kernel.nodes:
        if e.op is not Op.REDUCE or e.arg[0] is not Op.ADD or len(e.arg[1]) != 1:
            continue
        (depth,) = e.arg[1]
        for load in _factors(e.src[0]):
            if load.arg in stored or loads[load.arg] != [load] or len(load.src) > 1:
                continue
            found = _operand(kernel, load, depth, units)
            if found is not None:
                yield found


def _factors(body: Expr) -> Iterator[Expr]:
    """The loads that a sum of products multiplies, maybe under a condition."""
    if body.op is Op.WHERE:
        yield from _factors(body.src[1])
    elif body.op is Op.MUL:
        yield from (s for s in body.src if s.op is Op.LOAD)


def _operand(kernel: Kernel, load: Expr, depth: Expr, units: int) -> Operand | None:
    terms, constant = expr.linear(load.src[0])
    axes = [a for a in terms if a.op is Op.AXIS]
    if load.dtype.kind != "f" or load.dtype.itemsize < 4 or len(axes) != 2 or depth not in axes:
        return None
    (column,) = (a for a in axes if a is not depth)
    width = LINE // load.dtype.itemsize
    rows = prod(a.arg[1] for a in kernel.axes) // max(column.arg[1], 1)
    fits = column.arg[1] % width == 0 and column.arg[1] * depth.arg[1] >= cost.PANEL_LEAST
    if column not in kernel.axes or not fits or not width <= rows <= cost.PANEL_ROWS:
        return None
    if any(expr.stride(s.index, column) != 1 or column not in store_axes(s) for s in kernel.stores):
        return None
    base = expr.const(constant)
    for term, factor in terms.items():
        if term not in axes:
            base = base + term * factor
    params = {e.arg[0] for e in expr.toposort([base]) if e.op is Op.PARAM}
    if not params <= {UNIT} or expr.free_axes(base):
        return None
    strides = terms[column], terms[depth]
    if min(strides) <= 0:
        return None
    layout = Layout(
        column.arg[1], strides[0], depth.arg[1], strides[1], base, units if params else 1, width
    )
    return Operand(load, column, depth, layout)


# --- the copy, and who reads it -------------------------------------------------------------------


def _copy(about: Memory, layout: Layout, times: int) -> Kernel:
    """The kernel that lays an array out as panels."""
    unit, panel = expr.axis(0, layout.units), expr.axis(1, layout.columns // layout.width)
    depth, within = expr.axis(2, layout.deep), expr.axis(3, layout.width)
    params = [e for e in expr.toposort([layout.base]) if e.op is Op.PARAM]
    base = expr.substitute(layout.base, dict.fromkeys(params, unit))
    column = panel * layout.width + within
    value = expr.load(0, about.dtype, base + column * layout.column + depth * layout.depth)
    store = Store(1, _place(layout, unit, panel, depth, within), value)
    axes, stores = reshape_axes.simplify((unit, panel, depth, within), (store,))
    sizes = about.nbytes // about.dtype.itemsize, layout.size
    kernel = Kernel(
        "",
        axes,
        stores,
        (BufferInfo(about.dtype, sizes[0]), BufferInfo(about.dtype, sizes[1], True)),
        reason=f"panels of {layout.width} columns for products, read {times} times",
        bytes=2 * layout.size * about.dtype.itemsize,
    )
    return named(kernel, f"panels_{layout.columns}x{layout.deep}")


def _place(layout: Layout, unit: Expr, panel: Expr, depth: Expr, within: Expr) -> Expr:
    index = (panel * layout.deep + depth) * layout.width + within
    return unit * (layout.columns * layout.deep) + index


def _reading(
    step: Step, reader: Reader, array: int, panels: int, known: dict[tuple[Kernel, Operand], Kernel]
) -> Step:
    """The step with one operand read from its panels."""
    if reader.part is None:
        kernel = step.what
        assert isinstance(kernel, Kernel)
        arguments = tuple(panels if i == array else i for i in step.arguments)
        return replace(step, what=_kernel(kernel, reader.operand, known), arguments=arguments)
    band = step.what
    assert isinstance(band, Band)
    number = len(step.arguments)
    arguments = (*step.arguments, panels)
    if panels in step.arguments:
        number, arguments = step.arguments.index(panels), step.arguments
    part = band.parts[reader.part]
    slot = reader.operand.load.arg
    kernel = _kernel(part.kernel, reader.operand, known)
    own = tuple((number, 0) if n == slot else a for n, a in enumerate(part.arguments))
    parts = list(band.parts)
    parts[reader.part] = Part(kernel, own, part.first, part.end, part.constants)
    buffers = band.buffers
    if len(arguments) > len(buffers):
        buffers = (*buffers, kernel.buffers[slot])
    made = replace(band, parts=tuple(parts), buffers=buffers).named(band.name.rpartition("_")[0])
    return replace(step, what=made, arguments=arguments)


def _kernel(
    kernel: Kernel, operand: Operand, known: dict[tuple[Kernel, Operand], Kernel]
) -> Kernel:
    """The kernel that reads panels; equal kernels stay equal."""
    if (kernel, operand) not in known:
        known[kernel, operand] = _of_panels(kernel, operand)
    return replace(known[kernel, operand], reason=kernel.reason, location=kernel.location)


def _of_panels(kernel: Kernel, operand: Operand) -> Kernel:
    layout, load, column = operand.layout, operand.load, operand.column
    first = reshape_axes.new_ids(kernel.axes, kernel.stores)
    panel = expr.axis(first, layout.columns // layout.width)
    within = expr.axis(first + 1, layout.width)
    index = _place(layout, unit_of(layout.units), panel, operand.depth, within)
    moved = {load: expr.load(load.arg, load.dtype, index)}
    stores = tuple(replace(s, value=expr.substitute(s.value, moved)) for s in kernel.stores)
    axes, stores = reshape_axes.replace_axes(
        kernel.axes, stores, {column: panel * layout.width + within}, {column: (panel, within)}
    )
    info = replace(kernel.buffers[load.arg], size=layout.size)
    buffers = tuple(info if n == load.arg else b for n, b in enumerate(kernel.buffers))
    made = replace(kernel, axes=axes, stores=stores, buffers=buffers)
    return named(made, stem_of(kernel))
