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

    y = f(x);  s = SUM(y, rows)                               y is read from memory again
    ->  for each block of rows:  y, parts;  s = SUM(parts)    y is read from a cache

A *reader* of a large array that stays in memory joins the kernels that write it, if it does little
with the array, and these are a band by units or one kernel (`_Former.join_readers`). What it sums
over the rows becomes a partial result of each block (`partial.py`), so that threads can share
blocks and results do not depend on how many do.

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
from dataclasses import replace
from itertools import pairwise

from mygrad import expr
from mygrad.expr import Expr
from mygrad.helpers import ceildiv, prod
from mygrad.kernel import BufferInfo, Kernel
from mygrad.ops import Op
from mygrad.program import BLOCK, LOCAL
from mygrad.schedule import cost, memory, partial
from mygrad.schedule.cuts import (
    Cut,
    Draft,
    Rows,
    accesses_of,
    block_kernel,
    cut,
    is_legal,
    kernel_of,
    may_be_cut,
)
from mygrad.schedule.steps import Band, Memory, Part, Step, is_host_step

LINE = 64  # bytes of a line of a cache
BY_UNITS = frozenset({"cpu"})  # devices whose runtime runs bands


def form(steps: Sequence[Step], arrays: Sequence[Memory]) -> tuple[list[Step], list[Memory]]:
    """The steps with bands in the place of kernels between which large temporary arrays would wait;
    `arrays` is what the steps' arguments number, and new ones are appended to it."""
    former = _Former(list(steps), list(arrays))
    for part in (1, cost.BAND_NEAR):
        former.least = cost.BAND_BYTES // part
        kept = set[int]()
        while more := former.form(kept):
            kept |= more
    former.join_readers()
    return former.steps, former.arrays


class _Former:
    def __init__(self, steps: list[Step], arrays: list[Memory]) -> None:
        self.steps = steps
        self.arrays = arrays
        self.least = cost.BAND_BYTES  # of an array that is looked at
        self.users: dict[int, list[int]] = {}
        self.again: dict[int, int] = {}  # arrays that are made again, and what they are instead of
        self.drafts: dict[tuple[int, ...], tuple[Draft, int]] = {}  # of bands, by their arguments
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
        waiting = {j for i, j in self.again.items() if touched & {i, j, *self.sources[i]}} - set(
            before[2].values()
        )
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
            for slot, indices in accesses_of(c.stores).items():
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
        return self.bytes_of(draft.local)

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
        if len({s.device for s in steps}) > 1 or not all(map(may_be_cut, steps)):
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
            if made is None or not is_legal(made):
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
                accesses = accesses_of(step.what.stores)
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
        return _even(draft.rows, most) or most

    def apply(self, draft: Draft) -> None:
        """Put the band in the place of its kernels."""
        rows = self.block_rows(draft)
        if self.by_units(draft):
            made = [self.band(draft, rows)]
            self.drafts[made[0].arguments] = draft, rows
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
            (c, [block_kernel(c, draft, rows_of, later) for later in (False, True)])
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
            for i, info in zip(c.step.arguments, kernel_of(c.step).buffers, strict=True):
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
                        kernel = block_kernel(c, draft, run, later=first > 0)
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
            sum(kernel_of(c.step).flops for c in cuts),
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

    # --- readers ----------------------------------------------------------------------------------

    def join_readers(self) -> None:
        """Let kernels that do little with a large array run right after those that write it, for
        each block of it: they read it from a cache. What they sum over blocks becomes partial
        results, one of each block, so that blocks stay apart."""
        self.least = cost.BAND_BYTES // cost.BAND_NEAR
        for i in dict.fromkeys(i for s in self.steps for i in s.arguments):
            while self.arrays[i].nbytes >= self.least and self.join_reader(i):
                pass

    def join_reader(self, i: int) -> bool:
        """Whether one more reader of an array has joined those that write it."""
        self.users = users_of(self.steps)
        maker, *readers = self.users.get(i, [0])
        if i not in written_by(self.steps[maker]) or self.steps[maker].device not in BY_UNITS:
            return False
        return any(
            self.join(maker, members, reader, i, rows, widths)
            for reader in readers
            if self.may_follow(maker, reader, i)
            for members, rows, widths in self.blocks_of(maker, i)
        )

    def may_follow(self, maker: int, reader: int, i: int) -> bool:
        """Whether a kernel does little with an array, needs nothing that is made later, and large
        results of it are temporary and would hardly come earlier."""
        step, between = self.steps[reader], self.steps[maker + 1 : reader]
        if not may_be_cut(step) or step.device != self.steps[maker].device:
            return False
        kernel, made = kernel_of(step), written_by(step)
        later = {j for s in between for j in written_by(s)}
        touched = {j for s in between for j in s.arguments}
        if not (later.isdisjoint(step.arguments) and touched.isdisjoint(made)):
            return False
        if kernel.flops > cost.BAND_LIGHT * kernel.bytes:
            return False
        temporary = all(self.arrays[j].kind == "temporary" for j in made)
        soon = temporary and self.bytes_of(later) <= self.arrays[i].nbytes
        little = self.bytes_of(made) * cost.BAND_LITTLE <= self.arrays[i].nbytes
        return soon or little

    def bytes_of(self, arrays: Iterable[int]) -> int:
        """Bytes of several arrays."""
        return sum(self.arrays[j].nbytes for j in arrays)

    def blocks_of(self, maker: int, i: int) -> Iterator[tuple[list[Step], int, Mapping[int, int]]]:
        """(kernels, blocks, widths of blocks): how the step that writes an array runs block by
        block, or could."""
        step = self.steps[maker]
        if isinstance(step.what, Band) and step.arguments in self.drafts:
            draft, most = self.drafts[step.arguments]
            members = [c.step for _, c in sorted(draft.cuts.items())]
            widths = {**draft.widths, i: self.width_of(draft, i)}
            if draft.parted == 1:
                rows = _even(draft.rows, most)
                if 0 < rows < draft.rows:
                    yield members, draft.rows // rows, {j: w * rows for j, w in widths.items()}
            elif step.what.blocks == 1:
                yield members, draft.units, {j: w * draft.rows for j, w in widths.items()}
        elif may_be_cut(step) and not self.may_update(step):
            for rows, width in self.places_to_cut(i):
                each = _even(rows, cost.BAND_ALONE * rows // self.arrays[i].nbytes)
                if 0 < each < rows:
                    yield [step], rows // each, {i: width * each}

    def may_update(self, step: Step) -> bool:
        """Whether a kernel reads an input just where it stores a result, which may then take its
        place (`overwrite.py`)."""
        accesses = accesses_of(kernel_of(step).stores)
        kinds = {slot: self.arrays[j].kind for slot, j in enumerate(step.arguments)}
        read = [at for slot, at in accesses.items() if kinds[slot] == "input"]
        return any(at in read for slot, at in accesses.items() if kinds[slot] == "result")

    def width_of(self, draft: Draft, i: int) -> int:
        """The width of an array that a kernel of a band writes."""
        maker = next(c for c in draft.cuts.values() if i in written_by(c.step))
        slot = maker.step.arguments.index(i)
        return expr.stride(accesses_of(maker.stores)[slot][0], maker.row) or 0

    def join(
        self,
        maker: int,
        members: Sequence[Step],
        reader: int,
        i: int,
        rows: int,
        widths: Mapping[int, int],
    ) -> bool:
        """Whether a reader of an array could join such members, and has."""
        before = self.steps, self.arrays, self.users
        step = self.steps[reader]
        if self.size(i) > rows * widths[i]:  # a block would not lie together
            return False
        made = cut(step, 1, rows, {j: w for j, w in widths.items() if j in step.arguments})
        if made is None:
            return False
        steps = [step]
        if made.accumulates:
            parts = partial.divide(step, made.axes, made.stores, made.row, len(self.arrays))
            if parts is None:
                return False
            steps, self.arrays = list(parts[:2]), [*self.arrays, *parts[2]]
        others = self.steps[maker + 1 : reader], self.steps[reader + 1 :]
        self.steps = [*self.steps[:maker], *members, *steps, *others[0], *others[1]]
        self.users = users_of(self.steps)
        end = maker + len(members)
        draft = self.attempt(range(maker, end + 1), rows, widths)
        if draft is None or not self.pays(draft, end, len(before[1]), len(members) == 1):
            self.steps, self.arrays, self.users = before
            return False
        draft.cuts = {p: replace(c, units=None) for p, c in draft.cuts.items()}
        band = self.band(draft, 1)
        self.drafts[band.arguments] = draft, 1
        self.steps[maker : end + 1] = [band]
        return True

    def pays(self, draft: Draft, reader: int, new: int, alone: bool) -> bool:
        """Whether reading what a block has in a cache saves more than running it block by block
        costs. Arrays from `new` on are partial results; `alone`: the only kernel before ran as a
        whole."""
        if draft.accumulates or self.saved(draft) > cost.BAND_LOCAL * draft.rows:
            return False
        others = {j for p in draft.cuts if p != reader for j in self.steps[p].arguments}
        near = again = parts = 0  # bytes
        for p, c in draft.cuts.items():
            for slot, indices in accesses_of(c.stores).items():
                j = c.step.arguments[slot]
                nbytes = self.arrays[j].nbytes
                if any(c.row not in expr.free_axes(index) for index in indices):
                    again += (draft.rows - 1) * nbytes * (alone or p == reader)
                elif p == reader:
                    near += nbytes * (j in others)
                    parts += nbytes * (j >= new)
        gained = (cost.BYTE - cost.CACHED) * near - cost.CACHED * again - 2 * cost.BYTE * parts
        return gained > (1 + alone) * draft.rows * cost.BAND_CALL

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


def _even(rows: int, most: int) -> int:
    """The most rows, of no less than half as many as may be, of which blocks have equally many; 0
    if there are none."""
    return next((r for r in range(most, most // 2, -1) if rows % r == 0), 0)


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
