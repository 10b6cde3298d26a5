"""Bands: kernels that run block by block, so that the arrays between them never exist as a whole.

    scores = q k^T;  p = softmax(scores);  out = p v           3 kernels, two T x T arrays
    ->  for each block of rows:  scores, p, out of these rows  3 kernels, two R x T arrays

This is how attention runs when T is large, forward and backward, and a loss over many classes with
the product before it: nothing here knows either. A band of kernels is one step for each kernel and
block, in order; the number of the block is a parameter of the kernels.

An array X is cut into (outer, rows, width): element `(o * rows + row) * width + w`. All arrays that
kernels of a band hand to each other agree on `rows`; each has an outer extent and a width of its
own. A kernel can join if, after splitting its axes, all accesses to such arrays have the row as one
and the same whole axis. Then that axis becomes `BLOCK * R + r`. A kernel that sums over the rows (a
gradient of keys and values) adds the sums of the blocks up: `out = out + sum over the block`.

An array that only kernels of the band touch is local: there is one for a block, laid out as before
with R rows in the place of all. Rows that are left over after the last whole block are a block of
their own. What a later part of the program reads as well is computed there again, from what is
smaller, where that lets it become local (`make_again`): in training, the backward pass has scores
of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import pairwise

from mygrad import domain, expr
from mygrad.expr import Expr
from mygrad.helpers import ceildiv, prod
from mygrad.kernel import Kernel, Store, named, roots_of, store_axes
from mygrad.ops import Op
from mygrad.schedule import cost, reshape_axes
from mygrad.schedule.steps import Memory, Step

BLOCK = "block"  # the parameter that tells a kernel of a band its block


@dataclass(frozen=True)
class Cut:
    """A kernel whose axes are split so that the row is an axis of its own."""

    step: Step
    axes: tuple[Expr, ...]
    stores: tuple[Store, ...]
    row: Expr

    @property
    def accumulates(self) -> bool:
        """Whether the kernel sums over the rows."""
        return self.row not in self.axes


@dataclass
class Draft:
    """A band that could be formed: how many rows there are, the width of each array that is handed
    on, and by position how each kernel is cut."""

    rows: int
    widths: Mapping[int, int]
    cuts: dict[int, Cut]
    before: list[int]  # other steps among them that must run before, or may
    after: list[int]  # and that must run after
    local: list[int] = field(default_factory=list)


def form(steps: Sequence[Step], arrays: Sequence[Memory]) -> tuple[list[Step], list[Memory]]:
    """The steps with bands in the place of kernels between which large temporary arrays would wait;
    `arrays` is what the steps' arguments number, and new ones are appended to it."""
    former = _Former(list(steps), list(arrays))
    for i in reversed(former.large()):
        former.make_again(i)
    for i in former.large():
        former.look_at(i)
    return former.steps, former.arrays


class _Former:
    def __init__(self, steps: list[Step], arrays: list[Memory]) -> None:
        self.steps = steps
        self.arrays = arrays
        self.users: dict[int, list[int]] = {}
        self.again: set[int] = set()  # arrays that are made again

    def large(self) -> list[int]:
        """Temporary arrays that are too large to wait in memory, in order of their making."""
        used = dict.fromkeys(i for s in self.steps for i in s.arguments)
        return [i for i in used if self.is_large(i)]

    def is_large(self, i: int) -> bool:
        """Whether an array is temporary and large."""
        return self.arrays[i].kind == "temporary" and self.arrays[i].nbytes >= cost.BAND_BYTES

    def make_again(self, i: int) -> None:
        """Where not all readers of an array can be in one band with its maker, let those that
        cannot read one that is made again just before the first of them."""
        self.users = users_of(self.steps)
        users = self.users[i]
        for n in range(len(users), 1, -1):
            if any(self.attempt(users[:n], rows, {i: w}) for rows, w in self.places_to_cut(i)):
                if n < len(users):
                    self.clone(users[0], users[n])
                return

    def look_at(self, i: int) -> None:
        """Form a band around an array."""
        self.users = users_of(self.steps)
        draft = self.best(i) if i in self.users else None
        if draft is not None:
            self.apply(draft)

    # --- one band ---------------------------------------------------------------------------------

    def best(self, i: int) -> Draft | None:
        """The band around an array that saves most memory; None if there is none."""
        drafts = []
        for rows, width in self.places_to_cut(i):
            draft = self.attempt(self.users[i], rows, {i: width})
            if draft is not None and i in draft.local:
                drafts.append(self.grown(draft))
        fitting = [d for d in drafts if cost.BAND_ROWS <= self.block_rows(d) < d.rows]
        return max(fitting, key=self.saved, default=None)

    def saved(self, draft: Draft) -> int:
        """Bytes of the arrays that become local."""
        return sum(self.arrays[i].nbytes for i in draft.local)

    def size(self, i: int) -> int:
        """Elements of an array."""
        return prod(self.arrays[i].shape)

    def places_to_cut(self, i: int) -> Iterator[tuple[int, int]]:
        """(rows, width): the places between the strides at which kernels go through an array."""
        points = {1, self.size(i)}
        for position in self.users[i]:
            step = self.steps[position]
            if not isinstance(step.what, Kernel):
                return
            accesses = _accesses(step.what.stores)
            for slot in (n for n, j in enumerate(step.arguments) if j == i):
                for index in accesses.get(slot, ()):
                    for axis, stride in expr.linear(index)[0].items():
                        if axis.op is not Op.AXIS or stride <= 0:
                            return
                        points |= {stride, stride * axis.arg[1]}
        for high, low in pairwise(sorted(points, reverse=True)):
            if high % low == 0 and high // low >= 2 * cost.BAND_ROWS:
                yield high // low, low

    def grown(self, draft: Draft) -> Draft:
        """With every further large array that its kernels touch, if that can become local too."""
        refused: set[int] = set()
        while True:
            touched = dict.fromkeys(i for p in draft.cuts for i in self.steps[p].arguments)
            more = [i for i in touched if self.is_large(i) and i not in refused | set(draft.local)]
            if not more:
                return draft
            refused.add(more[0])
            members = [*draft.cuts, *self.users[more[0]]]
            larger = self.attempt(members, draft.rows, draft.widths)
            if larger is not None and set(larger.local) > set(draft.local):
                draft = larger

    def attempt(
        self, positions: Iterable[int], rows: int, widths: Mapping[int, int]
    ) -> Draft | None:
        """A band of these kernels, if each can be cut and their order allows it."""
        members = sorted(set(positions))
        steps = [self.steps[p] for p in members]
        if len({s.device for s in steps}) > 1 or not all(map(_may_join, steps)):
            return None
        if not all(self.keeps_near(s, members) for s in steps):
            return None
        handed = self.handed_on(steps, rows, widths)
        around = _around(self.steps, members)
        if handed is None or around is None:
            return None
        cuts: dict[int, Cut] = {}
        for p in members:
            made = cut(self.steps[p], rows, handed)
            if made is None:
                return None
            cuts[p] = made
        sums = {i for c in cuts.values() if c.accumulates for i in written_by(c.step)}
        if not sums.isdisjoint(handed):  # a sum is not ready before the last block
            return None
        draft = Draft(rows, handed, cuts, *around)
        own = set(members)
        draft.local = [
            i
            for i in handed
            if self.arrays[i].kind == "temporary" and own.issuperset(self.users[i])
        ]
        return draft

    def keeps_near(self, step: Step, members: Sequence[int]) -> bool:
        """Whether what is made again is read by the same band: it must not move away from there."""
        made = [i for i in written_by(step) if i in self.again]
        return all(set(members).issuperset(self.users[i]) for i in made)

    def handed_on(
        self, steps: Sequence[Step], rows: int, widths: Mapping[int, int]
    ) -> dict[int, int] | None:
        """The width of every array that one of the kernels writes and another touches; None if one
        cannot have that many rows, or is written twice."""
        found = dict(widths)
        touched = [i for s in steps for i in dict.fromkeys(s.arguments)]
        written = [i for s in steps for i in written_by(s)]
        if len(set(written)) < len(written):
            return None
        first, width = next(iter(widths.items()))
        outer = self.size(first) // (rows * width)
        for i in written:
            if i not in found and touched.count(i) > 1:
                found[i], rest = divmod(self.size(i), outer * rows)
                if rest:
                    return None
        return found

    # --- blocks -----------------------------------------------------------------------------------

    def block_rows(self, draft: Draft) -> int:
        """Rows of a block: as many as its local arrays may take up, an even share if possible."""
        row = max(self.saved(draft) // draft.rows, 1)
        most = min(max(cost.BAND_BLOCK // row, 1), draft.rows)
        even = (r for r in range(most, most // 2, -1) if draft.rows % r == 0)
        return next(even, most)

    def apply(self, draft: Draft) -> None:
        """Put the band in the place of its kernels."""
        rows = self.block_rows(draft)
        whole, left = divmod(draft.rows, rows)
        made = self.blocks(draft, 0, whole, rows)
        if left:
            made += self.blocks(draft, whole * rows, 1, left)
        before, after = ([self.steps[p] for p in ps] for ps in (draft.before, draft.after))
        self.steps[min(draft.cuts) : max(draft.cuts) + 1] = [*before, *made, *after]

    def blocks(self, draft: Draft, start: int, count: int, rows: int) -> list[Step]:
        """The steps of `count` blocks of `rows` rows, from row `start` on."""
        local = {i: self.local(i, draft, rows) for i in draft.local}
        total = sum(self.arrays[i].nbytes for i in local.values())
        reason = (
            f"by blocks of {rows} of {draft.rows} rows: {self.saved(draft) / 1e6:.3g} MB between "
            f"{len(draft.cuts)} kernels become {total / 1e6:.3g} MB"
        )
        made = [
            (c, [_block_kernel(c, draft, set(local), start, count, rows, n) for n in (False, True)])
            for _, c in sorted(draft.cuts.items())
        ]
        steps = []
        for block in range(count):
            for c, (first, later) in made:
                kernel = later if block or start else first
                arguments = tuple(local.get(i, i) for i in c.step.arguments)
                number = ((BLOCK, block),) if count > 1 else ()
                steps.append(
                    replace(
                        c.step,
                        what=kernel,
                        arguments=arguments,
                        reason=f"{c.step.reason}; {reason}",
                        constants=(*c.step.constants, *number),
                    )
                )
        return steps

    def local(self, i: int, draft: Draft, rows: int) -> int:
        """A new array for a block of another."""
        about = self.arrays[i]
        outer = self.size(i) // (draft.rows * draft.widths[i])
        self.arrays.append(replace(about, shape=(outer, rows, draft.widths[i])))
        return len(self.arrays) - 1

    # --- computing again --------------------------------------------------------------------------

    def clone(self, maker: int, at: int) -> None:
        """Run a kernel a second time just before step `at`; what follows reads its new results."""
        step = self.steps[maker]
        if not self.is_cheap(step):
            return
        new = {j: len(self.arrays) + n for n, j in enumerate(written_by(step))}
        self.arrays += [self.arrays[j] for j in new]
        self.again.update(new.values())
        again, *later = (
            replace(s, arguments=tuple(new.get(j, j) for j in s.arguments))
            for s in (step, *self.steps[at:])
        )
        why = f"{step.reason}; made again, so that it need not wait"
        self.steps[at:] = [replace(again, reason=why), *later]

    def is_cheap(self, step: Step) -> bool:
        """Whether a kernel writes temporaries alone, and computing them again takes few operations
        for a byte."""
        if not isinstance(step.what, Kernel):
            return False
        written = written_by(step)
        nbytes = sum(self.arrays[j].nbytes for j in written)
        temporary = all(self.arrays[j].kind == "temporary" for j in written)
        return temporary and step.what.flops <= cost.RECOMPUTE_FLOPS * nbytes


# --- order ----------------------------------------------------------------------------------------


def users_of(steps: Sequence[Step]) -> dict[int, list[int]]:
    """For every array the positions of the steps that touch it."""
    users: dict[int, list[int]] = {}
    for position, step in enumerate(steps):
        for i in dict.fromkeys(step.arguments):
            users.setdefault(i, []).append(position)
    return users


def written_by(step: Step) -> list[int]:
    """The arrays that a step writes."""
    if isinstance(step.what, Kernel):
        infos = step.what.buffers
        return [i for i, info in zip(step.arguments, infos, strict=True) if info.written]
    return [step.arguments[-1]]


def _around(steps: Sequence[Step], members: Sequence[int]) -> tuple[list[int], list[int]] | None:
    """The steps between the members: those that can run before all of them, and those that must
    run after; None if one must run in between."""
    own = set(members)
    # (written, touched) by members so far, and by what must run after
    written: tuple[set[int], set[int]] = set(), set()
    touched: tuple[set[int], set[int]] = set(), set()
    before: list[int] = []
    after: list[int] = []
    for p in range(members[0], members[-1] + 1):
        writes, touches = set(written_by(steps[p])), set(steps[p].arguments)
        waits = [bool(writes & touched[n]) or bool(touches & written[n]) for n in (0, 1)]
        if p in own and waits[1]:
            return None
        if p in own or any(waits):
            late = p not in own
            written[late].update(writes)
            touched[late].update(touches)
            if late:
                after.append(p)
        else:
            before.append(p)
    return before, after


# --- cutting kernels ------------------------------------------------------------------------------


def _may_join(step: Step) -> bool:
    """Whether a step is a kernel whose order of points is free."""
    kernel = step.what
    if not isinstance(kernel, Kernel) or len(set(step.arguments)) < len(step.arguments):
        return False
    if any(name == BLOCK for name, _, _ in kernel.params):
        return False
    plain = all(s.mode == "set" and not s.ordered_axes for s in kernel.stores)
    return plain and not any(
        e.op is Op.SCAN for s in kernel.stores for e in expr.toposort(roots_of(s))
    )


def _accesses(stores: Sequence[Store]) -> dict[int, list[Expr]]:
    """By slot: at which indices it is loaded and stored."""
    found: dict[int, dict[Expr, None]] = {}
    for s in stores:
        found.setdefault(s.slot, {})[s.index] = None
    for e in expr.toposort(r for s in stores for r in roots_of(s)):
        if e.op is Op.LOAD:
            found.setdefault(e.arg, {})[e.src[0]] = None
    return {slot: list(indices) for slot, indices in found.items()}


def cut(step: Step, rows: int, widths: Mapping[int, int]) -> Cut | None:
    """The kernel with the row as an axis of its own; None where some access to an array of the band
    is cut otherwise."""
    kernel = step.what
    assert isinstance(kernel, Kernel)
    axes, stores = kernel.axes, kernel.stores
    while True:
        accesses = _accesses(stores)
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
    made = Cut(step, axes, stores, row)
    return made if _is_legal(made) else None


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
    terms, inner = expr.linear(index)
    row = None
    for axis, stride in terms.items():
        if axis.op is not Op.AXIS or stride < 0 or inner < 0:
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


def _is_legal(made: Cut) -> bool:
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


def _block_kernel(
    made: Cut, draft: Draft, local: set[int], start: int, count: int, rows: int, later: bool
) -> Kernel:
    """The kernel for block number BLOCK; `later`: not the first, so that sums are added."""
    kernel = made.step.what
    assert isinstance(kernel, Kernel)
    block = (BLOCK, 0, count - 1)
    own = expr.axis(reshape_axes.new_ids(made.axes, made.stores), rows)
    widths = {slot: draft.widths[i] for slot, i in enumerate(made.step.arguments) if i in local}
    stores = _in_local(made.stores, made.row, own, draft.rows, widths)
    row = own + start if count == 1 else expr.param(*block) * rows + own + start
    axes, stores = reshape_axes.replace_axes(
        (*made.axes, own), stores, {made.row: row}, {made.row: (own,), own: ()}
    )
    if made.accumulates and later:
        stores = tuple(_added(s) for s in stores)
    axes, stores = reshape_axes.simplify(axes, stores)
    buffers = tuple(
        replace(info, size=info.size // draft.rows * rows) if i in local else info
        for i, info in zip(made.step.arguments, kernel.buffers, strict=True)
    )
    used = {e.arg for s in stores for e in expr.toposort(roots_of(s)) if e.op is Op.PARAM}
    params = (*kernel.params, *([block] if BLOCK in used or block in used else []))
    share = max(ceildiv(draft.rows, rows), 1)
    result = replace(
        kernel,
        axes=axes,
        stores=stores,
        buffers=buffers,
        params=tuple(sorted(params)),
        flops=kernel.flops // share,
        bytes=kernel.bytes // share,
    )
    stem = kernel.name.partition("_")[0]
    name = f"{stem}_{'x'.join(str(a.arg[1]) for a in axes) or 1}"
    return named(result, name)


def _in_local(
    stores: Sequence[Store], row: Expr, own: Expr, rows: int, widths: Mapping[int, int]
) -> tuple[Store, ...]:
    """The stores with local arrays (by slot, with their widths) indexed within the block."""

    def within(slot: int, index: Expr) -> Expr:
        terms, total = expr.linear(index)
        moved = expr.const(total)
        for axis, stride in terms.items():
            number = stride // (widths[slot] * rows)
            near = number * widths[slot] * own.arg[1] if number else stride
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
