"""Kernels: what the scheduler hands to the code generators, one fused loop nest each.

    Kernel = name
             axes     (AXIS, ...)            the output loops, outermost first as a suggestion
             stores   (Store, ...)           in the order of their effect
             buffers  (BufferInfo, ...)      what slots mean; index in this tuple = slot
             params   ((name, low, high), ...)   run-time integers
    Store  = (slot, index, value[, valid], mode)

Meaning. For every point of the axes free in a store (a subset of `kernel.axes`), `buffer[index] =
value` (or combined with the old content, by `mode`) where `valid`. A store runs where its free axes
are bound, so stores over fewer axes (row statistics next to a row) are allowed.

Invariants, checked by `verify`:
- the free axes of every store are among `kernel.axes`; bound axes of REDUCE and SCAN are not;
- indices are flat element numbers inside the buffer wherever `valid` holds and the surrounding
  LOAD's `valid` holds;
- two stores never write the same element, and with mode "set" no two points of one store do, unless
  `ordered_axes` of that store names the axes that must run in order (scatter);
- a buffer that is stored to may be loaded only at exactly the index of the store (in-place
  elementwise), or not at all, except the scatter target, which is updated in place by mode; all
  loads see what was there before the kernel;
- SCAN(op, axis, bound) may only occur where `axis` is one of `kernel.axes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

from mygrad.dtype import DType, index
from mygrad.errors import InternalError
from mygrad.expr import Expr, describe, free_axes, load, rebuild, toposort
from mygrad.helpers import UNKNOWN, Location, content_key
from mygrad.ops import SCATTER_MODES, Op


@dataclass(frozen=True)
class BufferInfo:
    """A kernel argument: `size` elements of `dtype`; `written` if some store targets it."""

    dtype: DType
    size: int
    written: bool = False


@dataclass(frozen=True)
class Store:
    """`buffer[index] = value` where `valid`; `mode` is one of ops.SCATTER_MODES.

    `ordered_axes` are the axes whose iterations may hit the same element and therefore must run
    sequentially, in order, inside of all others.
    """

    slot: int
    index: Expr
    value: Expr
    valid: Expr | None = None
    mode: str = "set"
    ordered_axes: tuple[Expr, ...] = ()


@dataclass(frozen=True)
class Kernel:
    """One fused loop nest. `reason` and `location` explain it and are not part of its identity."""

    name: str
    axes: tuple[Expr, ...]
    stores: tuple[Store, ...]
    buffers: tuple[BufferInfo, ...]
    params: tuple[tuple[str, int, int], ...] = ()
    reason: str = field(default="", compare=False)
    location: Location = field(default=UNKNOWN, compare=False)
    flops: int = field(default=0, compare=False)
    bytes: int = field(default=0, compare=False)

    @cached_property
    def nodes(self) -> tuple[Expr, ...]:
        """Every expression of the kernel, operands first; every pass looks at them."""
        return tuple(toposort(e for store in self.stores for e in roots_of(store)))


# --- questions ------------------------------------------------------------------------------------


def roots_of(store: Store) -> list[Expr]:
    """The expressions of a store: index, value and, if there is one, valid."""
    return [store.index, store.value] + ([] if store.valid is None else [store.valid])


def store_axes(store: Store) -> frozenset[Expr]:
    """The axes a store runs over."""
    return frozenset().union(*(free_axes(e) for e in roots_of(store)))


def bound_axes(kernel: Kernel, scans: bool = False) -> list[Expr]:
    """The axes that reductions (and scans) bind, in order of their first use."""
    found: dict[Expr, None] = {}
    for e in kernel.nodes:
        if e.op is Op.REDUCE:
            found.update(dict.fromkeys(e.arg[1]))
        elif scans and e.op is Op.SCAN:
            found[e.arg[2]] = None
    return list(found)


@lru_cache(maxsize=64)
def scan_axes(kernel: Kernel) -> frozenset[Expr]:
    """The axes along which the kernel scans."""
    return frozenset(e.arg[1] for e in kernel.nodes if e.op is Op.SCAN)


@lru_cache(maxsize=64)
def ordered_axes(kernel: Kernel) -> frozenset[Expr]:
    """The axes that some store must visit in order."""
    return frozenset(a for store in kernel.stores for a in store.ordered_axes)


@lru_cache(maxsize=64)
def axis_sets(kernel: Kernel) -> tuple[frozenset[Expr], ...]:
    """For every computation (store or reduction) the axes that are in scope inside of it."""
    sets = [store_axes(store) for store in kernel.stores]
    reductions = [e for e in kernel.nodes if e.op is Op.REDUCE]
    return (*sets, *(free_axes(e.src[0]) | frozenset(e.arg[1]) for e in reductions))


def renumbered(stores: Sequence[Store], number: Mapping[int, int]) -> tuple[Store, ...]:
    """The stores with other slots: `number` has the new one of each."""
    done: dict[Expr, Expr] = {}
    for e in toposort(root for s in stores for root in roots_of(s)):
        src = tuple(done[s] for s in e.src)
        if e.op is Op.LOAD and e.arg in number:
            done[e] = load(number[e.arg], e.dtype, *src)
        else:
            done[e] = e if src == e.src else rebuild(e, src)
    return tuple(
        replace(
            s,
            slot=number[s.slot],
            index=done[s.index],
            value=done[s.value],
            valid=s.valid and done[s.valid],
        )
        for s in stores
    )


# --- printing -------------------------------------------------------------------------------------


def text(kernel: Kernel) -> str:
    """The kernel with one line for each store; parts that occur more than once have a name of their
    own.

    >>> print(text(kernel))
    kernel add(b0: float32[6] out, b1: float32[6])
      for i0 < 6
      t0 = exp(b1[i0])
      b0[i0] = (t0 + t0)
    """
    arguments = [
        f"b{slot}: {info.dtype.name}[{info.size}]{' out' if info.written else ''}"
        for slot, info in enumerate(kernel.buffers)
    ]
    arguments += [f"{name} in [{low}, {high}]" for name, low, high in kernel.params]
    lines = [f"kernel {kernel.name}({', '.join(arguments)})"]
    if kernel.axes:
        lines.append("  for " + ", ".join(f"i{a.arg[0]} < {a.arg[1]}" for a in kernel.axes))
    shared, done = _texts(kernel)
    lines += [f"  {line}" for line in shared]
    lines += [f"  {_store_text(store, done)}" for store in kernel.stores]
    return "\n".join(lines)


def _texts(kernel: Kernel) -> tuple[list[str], dict[Expr, str]]:
    nodes = kernel.nodes
    uses: dict[Expr, int] = {}
    for e in nodes:
        for s in e.src:
            uses[s] = uses.get(s, 0) + 1
    lines: list[str] = []
    done: dict[Expr, str] = {}
    for e in nodes:
        done[e] = describe(e, [done[s] for s in e.src])
        small = not e.src or (e.dtype is index and e.op is not Op.LOAD and len(done[e]) < 40)
        if (uses.get(e, 0) > 1 and not small) or len(done[e]) > 400:
            lines.append(f"t{len(lines)} = {done[e]}")
            done[e] = f"t{len(lines) - 1}"
    return lines, done


def _store_text(store: Store, done: dict[Expr, str]) -> str:
    equals = "=" if store.mode == "set" else f"{store.mode}="
    line = f"b{store.slot}[{done[store.index]}] {equals} {done[store.value]}"
    if store.valid is not None:
        line += f" if {done[store.valid]}"
    if store.ordered_axes:
        line += f"  in order of {', '.join(f'i{a.arg[0]}' for a in store.ordered_axes)}"
    return line


def named(kernel: Kernel, stem: str) -> Kernel:
    """The kernel with a name that begins with `stem` and tells it from all others."""
    made = replace(kernel, name="")
    return replace(made, name=f"{stem}_{content_key(text(made))[:8]}")


def stem_of(kernel: Kernel) -> str:
    """What the name says of the kernel, without the mark that tells it from others."""
    return kernel.name.rpartition("_")[0]


# --- verification ---------------------------------------------------------------------------------


def verify(kernel: Kernel) -> None:
    """Check the invariants that can be seen without running the kernel.

    Raises:
        InternalError: one does not hold; the kernel's text is part of the message.
    """
    for problem in _problems(kernel):
        raise InternalError(f"kernel {kernel.name} is not well formed: {problem}\n{text(kernel)}")


def _problems(kernel: Kernel) -> Iterator[str]:
    nodes = kernel.nodes
    ids = [a.arg[0] for a in kernel.axes]
    if len(set(ids)) != len(ids):
        yield "two axes have one id"
    for store in kernel.stores:
        yield from _store_problems(kernel, store)
    targets: dict[int, list[Expr]] = {}
    for store in kernel.stores:
        targets.setdefault(store.slot, []).append(store.index)
    for e in nodes:
        yield from _node_problems(kernel, e)
        if e.op is Op.LOAD and e.src[0] not in targets.get(e.arg, [e.src[0]]):
            yield f"b{e.arg} is stored to, and loaded at another index"


def _store_problems(kernel: Kernel, store: Store) -> Iterator[str]:
    if stray := store_axes(store) - frozenset(kernel.axes):
        yield f"a store runs over {stray}, which are no axes of the kernel"
    if store.mode not in SCATTER_MODES:
        yield f"store mode {store.mode!r}"
    if not 0 <= store.slot < len(kernel.buffers):
        yield f"a store to b{store.slot}, which does not exist"
        return
    info = kernel.buffers[store.slot]
    if not info.written:
        yield f"b{store.slot} is stored to, and not marked as written"
    if info.dtype is not store.value.dtype:
        yield f"b{store.slot} is {info.dtype.name}, and a {store.value.dtype.name} is stored"
    if store.index.dtype is not index or (
        store.valid is not None and store.valid.dtype.kind != "b"
    ):
        yield "an index or condition of the wrong type"
    if (
        store.valid is None
        and not _may_fit(store.index, info.size)
        and 0 not in {a.arg[1] for a in store_axes(store)}
    ):
        yield f"an index in [{store.index.low}, {store.index.high}] of b{store.slot}"


def _may_fit(where: Expr, size: int) -> bool:
    return (where.low is None or where.low < size) and (where.high is None or where.high >= 0)


def _node_problems(kernel: Kernel, e: Expr) -> Iterator[str]:
    if e.op is Op.LOAD:
        if not isinstance(e.arg, int) or not 0 <= e.arg < len(kernel.buffers):
            yield f"a load of {e.arg!r}, which does not exist"
        elif kernel.buffers[e.arg].dtype is not e.dtype:
            yield f"b{e.arg} is {kernel.buffers[e.arg].dtype.name}, and loaded as {e.dtype.name}"
    elif e.op is Op.REDUCE and not frozenset(e.arg[1]).isdisjoint(kernel.axes):
        yield "a reduction binds an axis of the kernel"
    elif e.op is Op.SCAN and (e.arg[1] not in kernel.axes or e.arg[2] in kernel.axes):
        yield "a scan runs along no axis of the kernel"
    elif e.op is Op.VAR:
        yield f"the name {e.arg}, which only statements have"
