"""Bands: kernels that run block by block, so that the arrays between them never exist as a whole.

    scores = q k^T;  p = softmax(scores);  out = p v           3 kernels, two T x T arrays
    ->  for each block of rows:  scores, p, out of these rows  3 kernels, two R x T arrays

This is how attention runs when T is large, forward and backward, and a loss over many classes with
the product before it: nothing here knows either. The number of the block is a parameter of the
kernels.

A band is run in one of two ways:

- *by units* (`steps.Band`), where the arrays between the kernels consist of units, such as heads,
  that have nothing to do with each other: one step, in which a thread computes a block of a unit
  from its first kernel to its last, in memory of its own that its cache holds. Blocks are *whole*
  where a cache holds a few rows of all units: a thread takes these through all kernels;
- *by steps*, one for each kernel and block, in order, where there are no such units, or on devices
  that would rather have large kernels: all threads share each of them.

Bands are formed in two passes. The first one looks at arrays that are too large to wait in memory
(`cost.BAND_BYTES`). The second one looks at those that no cache holds (a `cost.BAND_NEAR`-th of
that): around these alone it forms only bands that a thread runs by itself, where blocks read little
again, beside what they save (`cost.BAND_AGAIN`, `cost.BAND_WHOLE`). All that a pass makes again
must become local; otherwise it is undone, and tried without making that again.

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

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import lru_cache, reduce
from itertools import pairwise

from mygrad import domain, expr
from mygrad.expr import Expr
from mygrad.helpers import ceildiv, prod
from mygrad.kernel import BufferInfo, Kernel, Store, named, roots_of, scan_axes, store_axes
from mygrad.ops import Op
from mygrad.program import BLOCK, LOCAL, UNIT
from mygrad.schedule import cost, memory, reshape_axes
from mygrad.schedule.steps import Band, Memory, Part, Step, is_host_step

LINE = 64  # bytes of a line of a cache
BY_UNITS = frozenset({"cpu"})  # devices whose runtime runs bands


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


def form(steps: Sequence[Step], arrays: Sequence[Memory]) -> tuple[list[Step], list[Memory]]:
    """The steps with bands in the place of kernels between which large temporary arrays would wait;
    `arrays` is what the steps' arguments number, and new ones are appended to it."""
    former = _Former(list(steps), list(arrays))
    for part in (1, cost.BAND_NEAR):
        former.least = cost.BAND_BYTES // part
        kept = set[int]()
        while more := former.form(kept):
            kept |= more
    return former.steps, former.arrays


class _Former:
    def __init__(self, steps: list[Step], arrays: list[Memory]) -> None:
        self.steps = steps
        self.arrays = arrays
        self.least = cost.BAND_BYTES  # of an array that is looked at
        self.users: dict[int, list[int]] = {}
        self.again: dict[int, int] = {}  # arrays that are made again, and what they are instead of
        self.sources: dict[int, set[int]] = {}  # large arrays that only the makers of these read

    def form(self, kept: Set[int]) -> set[int]:
        """Form the bands around large arrays, of which those that are `kept` are not made again, if
        all that are become local; otherwise nothing changes, and the others are returned."""
        before = self.steps, self.arrays, dict(self.again)
        self.steps, self.arrays = list(self.steps), list(self.arrays)
        for i in reversed(self.large()):
            self.make_again(i, kept)
        for i in self.large():
            self.look_at(i)
        touched = {i for s in self.steps for i in s.arguments}
        waiting = {
            j for i, j in self.again.items() if i in touched or self.sources[i] & touched
        } - set(before[2].values())
        if not waiting:
            return set()
        self.steps, self.arrays, self.again = before
        return waiting

    def large(self) -> list[int]:
        """Temporary arrays of the least size and more, in order of their making."""
        used = dict.fromkeys(i for s in self.steps for i in s.arguments)
        return [i for i in used if self.is_large(i, self.least)]

    def is_large(self, i: int, least: int) -> bool:
        """Whether an array is one of them."""
        return self.arrays[i].kind == "temporary" and self.arrays[i].nbytes >= least

    def make_again(self, i: int, kept: Set[int]) -> None:
        """Where not all readers of an array can be in one band with its maker, let those that
        cannot read one that is made again just before the first of them; not if one of `kept` would
        be made again with it."""
        self.users = users_of(self.steps)
        users = self.users[i]
        if not kept.isdisjoint(written_by(self.steps[users[0]])):
            return
        for n in range(len(users), 1, -1):
            drafts = (self.attempt(users[:n], rows, {i: w}) for rows, w in self.places_to_cut(i))
            if any(self.is_fitting(replace(d, local=[*d.local, i])) for d in drafts if d):
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
        """The band around an array that saves most memory, by units and in blocks that a cache
        holds if that can be; None if there is none, or it would be one block of all."""
        drafts = []
        for rows, width in self.places_to_cut(i):
            draft = self.attempt(self.users[i], rows, {i: width})
            if draft is not None and i in draft.local:
                drafts.append(self.grown(draft, self.least))
                drafts.append(self.grown(drafts[-1], cost.BAND_BYTES // cost.BAND_NEAR))

        def rank(d: Draft) -> tuple[bool, bool, int, int]:
            return self.by_units(d), self.is_small(d), self.saved(d), d.parted

        found = max(filter(self.is_fitting, drafts), key=rank, default=None)
        single = found and found.units == 1 and self.block_rows(found) == found.rows
        return None if single else found

    def is_fitting(self, draft: Draft) -> bool:
        """Whether blocks are neither so small that they cost more than they save, nor all there
        is, and where the arrays could wait in memory, what all blocks read is much less."""
        if self.is_whole(draft):
            return True
        rows, alone = self.block_rows(draft), self.by_units(draft)
        if rows < cost.BAND_ROWS or (rows == draft.rows and not alone):
            return False
        if any(self.arrays[i].nbytes >= cost.BAND_BYTES for i in draft.local):
            return True
        return alone and self.is_near(draft, rows, cost.BAND_AGAIN)

    def is_near(self, draft: Draft, rows: int, share: float) -> bool:
        """Whether blocks of so many rows read little again: no more than a share of what becomes
        local."""
        return self.read_again(draft, rows) <= share * self.saved(draft)

    def read_again(self, draft: Draft, rows: int) -> int:
        """Bytes that a band by units reads more often than its kernels would one after the other:
        what a block, or a unit, does not have for itself, and lines of which it has a part."""
        blocks, total = ceildiv(draft.rows, rows), 0
        for c in draft.cuts.values():
            for slot, indices in _accesses(c.stores).items():
                axes = frozenset[Expr]().union(*map(expr.free_axes, indices))
                times = 1 if axes & set(c.units or ()) else draft.parted
                times *= 1 if c.row in axes else blocks
                i = c.step.arguments[slot]
                steps = [expr.stride(index, c.row) or 0 for index in indices]
                run = max(map(abs, steps)) * rows * self.arrays[i].dtype.itemsize
                times *= max(LINE // run, 1) if run else 1
                total += (times - 1) * self.arrays[i].nbytes if i not in draft.local else 0
        return total

    def is_small(self, draft: Draft) -> bool:
        """Whether blocks take up no more than a cache holds."""
        block = self.held(draft) * self.block_rows(draft) // draft.rows
        if self.by_units(draft):
            return block // draft.parted <= cost.BAND_LOCAL
        return block <= cost.BAND_BLOCK

    def by_units(self, draft: Draft) -> bool:
        """Whether the band can be one step that threads can share. How many there are does not
        matter: sums must not depend on it."""
        several = draft.units > 1 or not draft.accumulates
        alone = several and draft.apart and self.has_threads(draft)
        return alone or self.is_whole(draft)

    def is_whole(self, draft: Draft) -> bool:
        """Whether a thread can go through all units of a few rows at once: a cache holds them, and
        blocks read little again."""
        if draft.parted > 1 or draft.accumulates or not draft.local or not self.has_threads(draft):
            return False
        row = ceildiv(self.held(draft), draft.rows)
        rows = min(cost.BAND_LOCAL // row, draft.rows)
        return rows > 0 and self.is_near(draft, rows, cost.BAND_WHOLE)

    def has_threads(self, draft: Draft) -> bool:
        """Whether the device has threads that run bands by themselves."""
        return all(c.step.device in BY_UNITS for c in draft.cuts.values())

    def saved(self, draft: Draft) -> int:
        """Bytes of the arrays that become local."""
        return sum(self.arrays[i].nbytes for i in draft.local)

    def held(self, draft: Draft) -> int:
        """Bytes of these arrays that are needed at the same time, at most."""
        steps = [c.step for _, c in sorted(draft.cuts.items())]
        life = memory.lifetimes(steps, self.arrays, {})
        local = [life[i] for i in draft.local]
        return max(
            (sum(n.nbytes for n in local if n.first <= p <= n.last) for p in range(len(steps))),
            default=0,
        )

    def size(self, i: int) -> int:
        """Elements of an array."""
        return prod(self.arrays[i].shape)

    def places_to_cut(self, i: int) -> Iterator[tuple[int, int]]:
        """(rows, width): the places between the strides at which kernels go through an array."""
        for high, low in pairwise(self.strides(i)):
            if high % low == 0 and high // low >= 2 * cost.BAND_ROWS:
                yield high // low, low

    def strides(self, i: int) -> list[int]:
        """How far kernels go in an array, at a step and along an axis, the farthest first; none if
        one does not go through it along axes."""
        points = {1, self.size(i)}
        if not all(isinstance(self.steps[p].what, Kernel) for p in self.users[i]):
            return []
        for index in self.indices(i):
            for axis, stride in expr.linear(index)[0].items():
                if axis.op is not Op.AXIS or stride <= 0:
                    return []
                points |= {stride, stride * axis.arg[1]}
        return sorted(points, reverse=True)

    def grown(self, draft: Draft, least: int) -> Draft:
        """With every further array of so many bytes that its kernels touch, if that can become
        local too."""
        refused: set[int] = set()
        while True:
            touched = dict.fromkeys(i for p in draft.cuts for i in self.steps[p].arguments)
            new = [i for i in touched if i not in refused | set(draft.local)]
            more = [i for i in new if self.is_large(i, least)]
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
        members = _with_between(self.steps, set(positions))
        steps = [self.steps[p] for p in members]
        if len({s.device for s in steps}) > 1 or not all(map(_may_join, steps)):
            return None
        if not all(self.keeps_near(s, members) for s in steps):
            return None
        first, width = next(iter(widths.items()))
        units = self.size(first) // (rows * width)
        handed = self.handed_on(steps, units, rows, widths)
        around = _around(self.steps, members)
        if handed is None or around is None:
            return None
        cuts: dict[int, Cut] = {}
        for p in members:
            made = cut(self.steps[p], units, rows, handed)
            if made is None:
                return None
            cuts[p] = made
        sums = {i for c in cuts.values() if c.accumulates for i in written_by(c.step)}
        if not sums.isdisjoint(handed):  # a sum is not ready before the last block
            return None
        draft = Draft(units, rows, handed, cuts, *around)
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
        self, steps: Sequence[Step], units: int, rows: int, widths: Mapping[int, int]
    ) -> dict[int, int] | None:
        """The width of every array that one of the kernels writes and another touches: with as many
        units, if its accesses are cut so; None if one cannot have that many rows, or is written
        twice."""
        found = dict(widths)
        touched = [i for s in steps for i in dict.fromkeys(s.arguments)]
        written = [i for s in steps for i in written_by(s)]
        if len(set(written)) < len(written):
            return None
        for i in written:
            if i not in found and touched.count(i) > 1:
                others = (far // rows for far in self.strides(i) if far % rows == 0)
                alike, rest = divmod(self.size(i), units * rows)
                may = [w for w in (*(alike,) * (not rest), *others) if self.is_cut(i, w, rows)]
                if not may:
                    return None
                found[i] = may[0]
        return found

    def is_cut(self, i: int, width: int, rows: int) -> bool:
        """Whether the axes with which kernels go through an array can be divided at such rows."""
        for index in self.indices(i):
            terms, constant = expr.linear(index)
            if constant % (width * rows) >= width:
                return False
            for axis, stride in terms.items():
                extent = axis.arg[1] if axis.op is Op.AXIS else 1
                for place in (width, width * rows):
                    if 0 < stride < place < stride * extent and place % stride:
                        return False
        return True

    def indices(self, i: int) -> Iterator[Expr]:
        """Where kernels touch an array."""
        for step in (self.steps[p] for p in self.users[i]):
            if isinstance(step.what, Kernel):
                accesses = _accesses(step.what.stores)
                for slot in (n for n, j in enumerate(step.arguments) if j == i):
                    yield from accesses.get(slot, ())

    # --- blocks -----------------------------------------------------------------------------------

    def block_rows(self, draft: Draft) -> int:
        """Rows of a block: as many as its local arrays may take up, an even share if possible."""
        row = max(self.held(draft) // draft.rows, 1)
        most = max(cost.BAND_BLOCK // row, 1)
        if self.by_units(draft):
            row = max(row // draft.parted, 1)
            least = 1 if self.is_whole(draft) else cost.BAND_SHARE
            most = max(cost.BAND_LOCAL // row, least)
        most = min(most, draft.rows)
        even = (r for r in range(most, most // 2, -1) if draft.rows % r == 0)
        return next(even, most)

    def apply(self, draft: Draft) -> None:
        """Put the band in the place of its kernels."""
        rows = self.block_rows(draft)
        if self.by_units(draft):
            made = [self.band(draft, rows)]
        else:
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
        rows_of = Rows(start, count, rows)
        made = [
            (c, [_block_kernel(c, draft, rows_of, later) for later in (False, True)])
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
        self.arrays.append(replace(about, shape=(self.size(i) // draft.rows, rows)))
        return len(self.arrays) - 1

    def band(self, draft: Draft, rows: int) -> Step:
        """The step that runs the band by units."""
        cuts = [c for _, c in sorted(draft.cuts.items())]
        place, local_bytes = self.local_places(draft, cuts, rows)
        whole, left = divmod(draft.rows, rows)
        units = draft.parted if draft.parted > 1 else 0
        arguments: dict[int, BufferInfo] = {}
        for c in cuts:
            for i, info in zip(c.step.arguments, _kernel(c.step).buffers, strict=True):
                if i not in place:
                    written = info.written or (i in arguments and arguments[i].written)
                    arguments[i] = replace(info, written=written)
        number = {i: (n, 0) for n, i in enumerate(arguments)} | place
        parts = []
        for start, count, size in ((0, whole, rows), (whole, left > 0, left)):
            for c in cuts if count else ():
                own = tuple(number[i] for i in c.step.arguments)
                once = c.accumulates and start == 0  # the first block sets, others add
                for first, end in [(0, 1), (1, count)] if once else [(start, start + count)]:
                    if first < end:
                        run = Rows(start * rows, count, size, units)
                        kernel = _block_kernel(c, draft, run, later=first > 0)
                        parts.append(Part(kernel, own, first, end, c.step.constants))
        blocks = whole + (left > 0)
        reason = (
            f"{len(cuts)} kernels for each of {draft.parted} x {blocks} blocks of {rows} rows: "
            f"{self.saved(draft) / 1e6:.3g} MB between them become {local_bytes / 1e6:.3g} MB"
        )
        band = Band(
            "",
            tuple(parts),
            tuple(arguments.values()),
            draft.parted,
            blocks,
            not draft.accumulates,
            local_bytes,
            sum(_kernel(c.step).flops for c in cuts),
            sum(self.arrays[i].nbytes for i in arguments),
        )
        return replace(
            cuts[-1].step,
            what=band.named(f"band_{draft.parted}x{blocks}x{rows}"),
            arguments=tuple(arguments),
            reason=f"{cuts[-1].step.reason}; {reason}",
            constants=(),
        )

    def local_places(
        self, draft: Draft, cuts: Sequence[Cut], rows: int
    ) -> tuple[dict[int, tuple[int, int]], int]:
        """(LOCAL, byte) of each local array, and the bytes of all: those of kernels that are far
        enough from each other lie in the same place."""
        needs = []
        for i in draft.local:
            users = [n for n, c in enumerate(cuts) if i in c.step.arguments]
            nbytes = self.arrays[i].nbytes // (draft.parted * draft.rows) * rows
            needs.append(memory.Lifetime(nbytes, users[0], users[-1]))
        offsets, total = memory.place(needs)
        return {i: (LOCAL, at) for i, at in zip(draft.local, offsets, strict=True)}, total

    # --- computing again --------------------------------------------------------------------------

    def clone(self, maker: int, at: int) -> None:
        """Run a kernel a second time just before step `at`; what follows reads its new results."""
        step = self.steps[maker]
        if not self.is_cheap(step):
            return
        new = {j: len(self.arrays) + n for n, j in enumerate(written_by(step))}
        self.arrays += [self.arrays[j] for j in new]
        self.again |= {made: j for j, made in new.items()}
        read = set(step.arguments) - set(new)
        alone = {j for j in read if self.users[j][1:] == [maker] and self.is_large(j, self.least)}
        self.sources |= dict.fromkeys(new.values(), alone)
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
    if is_host_step(step):
        return [step.arguments[-1]]
    infos = step.what.buffers  # type: ignore[union-attr]
    return [i for i, info in zip(step.arguments, infos, strict=True) if info.written]


def _with_between(steps: Sequence[Step], members: set[int]) -> list[int]:
    """The members with all steps that need one of them and that another one needs."""
    first, last = min(members), max(members)
    after, written = set(members), {i for p in members for i in written_by(steps[p])}
    for p in range(first, last + 1):
        if not written.isdisjoint(steps[p].arguments):
            after.add(p)
            written.update(written_by(steps[p]))
    needed, touched = set(members), {i for p in members for i in steps[p].arguments}
    for p in range(last, first - 1, -1):
        if not touched.isdisjoint(written_by(steps[p])):
            needed.add(p)
            touched.update(steps[p].arguments)
    return sorted(after & needed)


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
    if any(name in (BLOCK, UNIT) for name, _, _ in kernel.params):
        return False
    plain = all(s.mode == "set" and not s.ordered_axes for s in kernel.stores)
    return plain and not scan_axes(kernel)


@lru_cache(maxsize=256)
def _accesses(stores: tuple[Store, ...]) -> dict[int, list[Expr]]:
    """By slot: at which indices it is loaded and stored."""
    found: dict[int, dict[Expr, None]] = {}
    for s in stores:
        found.setdefault(s.slot, {})[s.index] = None
    for e in expr.toposort(r for s in stores for r in roots_of(s)):
        if e.op is Op.LOAD:
            found.setdefault(e.arg, {})[e.src[0]] = None
    return {slot: list(indices) for slot, indices in found.items()}


def _kernel(step: Step) -> Kernel:
    assert isinstance(step.what, Kernel)
    return step.what


def cut(step: Step, units: int, rows: int, widths: Mapping[int, int]) -> Cut | None:
    """The kernel with the row as an axis of its own; None where some access to an array of the band
    is cut otherwise."""
    kernel = _kernel(step)
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
    numbers = {frozenset(_units(index, width * rows).items()) for index, width in found}
    numbering = dict(numbers.pop()) if len(numbers) == 1 else {}
    made = Cut(step, axes, stores, row, numbering if _numbers(numbering, stores, units) else None)
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


def _block_kernel(made: Cut, draft: Draft, rows: Rows, later: bool) -> Kernel:
    """The kernel for block number BLOCK of some rows; `later`: not the first, so that sums are
    added."""
    kernel = _kernel(made.step)
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
