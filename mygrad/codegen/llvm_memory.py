"""Loads and stores as LLVM text: addresses, vectors, masks.

An index is split by `expr.linear` into what is common to all copies (hoisted, one pointer for
each loop level), a constant for each unrolled copy (folded into the instruction), and a stride
along the vector axis, which decides the form:

    stride 0                 a scalar
    stride 1                 a vector load or store, masked where lanes are missing or not valid
    stride -1                (loads of all lanes, without a condition on them) a vector, reversed
    stride 2                 (loads without a condition) two vectors, of which every other element
                             is kept
    otherwise                gather, scatter; where copies are next to each other in memory, and
                             there is no condition, vectors along them, transposed in registers

Stores of several lanes to one place go lane by lane, in order; so do stores that combine with what
is there, other than at stride 1.
A scalar that is not valid is read from `@zeros` instead, without a branch.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from functools import cache
from typing import NamedTuple

from mygrad.codegen.llvm_ops import combine, fill, from_memory, to_memory
from mygrad.codegen.llvm_rows import interleaved, load_row, store_row, transposed
from mygrad.codegen.llvm_types import (
    lane_mask,
    mangled,
    memory,
    register,
    scalar,
    splat,
    vector,
)
from mygrad.codegen.llvm_values import NOTHING, Emitter, Target, Value, fits_int32
from mygrad.codegen.stmt import Put
from mygrad.dtype import DType
from mygrad.errors import InternalError, message
from mygrad.expr import Expr, from_linear, linear
from mygrad.ops import Op

ZEROS_BYTES = 1024
PREAMBLE = (
    f"@zeros = private unnamed_addr constant [{ZEROS_BYTES} x i8] zeroinitializer, align 64\n"
)
NONTEMPORAL = "!nontemporal !0"


class Array(NamedTuple):
    """Something to load from and store to."""

    pointer: Value
    dtype: DType
    mutable: bool


class Across(NamedTuple):
    """Lanes that are `stride` apart, of `copies` (along the unrolled axes `numbers`) that are
    next to each other: a scalar pointer to the first copy of lane 0."""

    pointer: Value
    stride: int
    numbers: tuple[int, ...]
    copies: int

    @property
    def is_row(self) -> bool:
        """Whether copies and lanes together fill a row without gaps, that halves make up."""
        return self.copies == self.stride and self.copies & (self.copies - 1) == 0


class Address(NamedTuple):
    """Where the elements of an index are: scalar pointers for lane 0 and a stride, or, for stride
    None, vectors of pointers."""

    pointer: Value
    stride: int | None
    across: Across | None = None
    skips: Value | None = None  # scalar pointers where lanes are every other element


class Memory:
    """Loads and stores through an emitter. `arrays` are those in scope."""

    def __init__(self, emitter: Emitter) -> None:
        self.emitter = emitter
        self.arrays: dict[Target, Array] = {}
        self._to = 0  # the outermost scope to which the load being emitted may go
        emitter.leaf[Op.LOAD] = self.load

    def array(self, target: Target) -> Array:
        """The array of a slot or a scratch name."""
        found = self.arrays.get(target)
        if found is None:
            raise InternalError(message("llvm", f"the array {target!r}", "one in scope"))
        return found

    # --- addresses -----------------------------------------------------------------------------

    def address(self, target: Target, index: Expr) -> Address:
        """The place of element `index` of an array."""
        em, terms = self.emitter, linear(index)
        stride, constant = 0, terms[1]
        unrolled: list[tuple[int, int]] = []
        wide: dict[Expr, int] = {}
        levels: dict[int, dict[Expr, int]] = {}
        for term, factor in terms[0].items():
            number = em.numbers.get(term)
            if number is not None and number in em.fixed:
                constant += factor * em.fixed[number]
            elif number is not None:
                unrolled.append((number, factor))
            elif term is em.lane_axis:
                stride = factor
            else:
                value = em.evaluate(term)
                if value.lanes:
                    wide[term] = factor
                else:
                    level = em.depth if em.fixed and value.axes else value.depth
                    levels.setdefault(level, {})[term] = factor
        pointer = self._base(target, levels)
        across = skips = None
        if not wide and stride == 2:
            skips = self._offset(target, pointer, unrolled, constant)
        if not wide and stride not in (0, 1, -1):
            across = self._across(target, pointer, stride, unrolled, constant)
        if wide or (stride not in (0, 1, -1)):
            if stride:
                wide[em.lane_axis] = stride  # type: ignore[index]
            pointer = self._lanes(target, pointer, from_linear(wide, 0))
        moved = self._offset(target, pointer, unrolled, constant)
        return Address(moved, None if wide else stride, across, skips)

    def _across(
        self,
        target: Target,
        pointer: Value,
        stride: int,
        unrolled: list[tuple[int, int]],
        constant: int,
    ) -> Across | None:
        """The copies that are next to each other, if there are enough."""
        em, count = self.emitter, 1
        numbers: list[int] = []
        if em.fixed or em.lanes > 16:
            return None
        for number, factor in sorted(unrolled, key=lambda u: u[1]):
            if factor == count and count * em.extents[number] <= min(em.lanes, abs(stride)):
                numbers.insert(0, number)
                count *= em.extents[number]
        if count < 4 and count != stride:
            return None
        others = [u for u in unrolled if u[0] not in numbers]
        base = self._offset(target, pointer, others, constant)
        if any(number in base.axes for number in numbers):
            return None
        return Across(base, stride, tuple(numbers), count)

    def _base(self, target: Target, levels: dict[int, dict[Expr, int]]) -> Value:
        """A pointer with the scalar terms added, outermost level first, each where it is
        defined."""
        em, array = self.emitter, self.array(target)
        pointer = array.pointer
        key: tuple[Hashable, ...] = (target,)
        for level in sorted(levels):
            sum_of_level = from_linear(levels[level], 0)
            index, key = em.evaluate(sum_of_level), (*key, sum_of_level)
            found = em.values.get(key)
            if found is None:
                text = f"  {{r}} = getelementptr {memory(array.dtype)}, ptr {{a}}, i64 {{b}}\n"
                made = em.apply(text, [pointer, index], "ptr", 0, index.reads, to=0)
                found = em.define(key, made, made.depth)
            pointer = found
        return pointer

    def _lanes(self, target: Target, pointer: Value, index: Expr) -> Value:
        em = self.emitter
        lanes, element = em.evaluate(index), memory(self.array(target).dtype)
        if fits_int32(index):  # one gather instruction takes twice as many
            lanes = em.narrow(index, lanes)
        kind = vector(lanes.element, em.lanes)
        text = f"  {{r}} = getelementptr {element}, ptr {{a}}, {kind} {{b}}\n"
        return em.apply(
            text, [pointer, lanes], "ptr", em.lanes, lanes.reads, keep_scalar=True, to=0
        )

    def _offset(
        self, target: Target, pointer: Value, unrolled: list[tuple[int, int]], constant: int
    ) -> Value:
        """A pointer moved by a constant for every copy."""
        if not unrolled and not constant:
            return pointer
        em, element = self.emitter, memory(self.array(target).dtype)
        axes = em.merge([pointer.axes, tuple(sorted(number for number, _ in unrolled))])
        factors = [dict(unrolled).get(number, 0) for number in axes]
        depth = em.place([pointer, *(em.values[axis] for axis in em.numbers)], 0)
        ty, lines, names = vector("ptr", pointer.lanes), em.scopes[depth].lines, []
        for base, point in zip(em.spread(pointer, axes), em.points(axes), strict=True):
            offset = constant + sum(f * at for f, at in zip(factors, point, strict=True))
            name = base
            if offset:
                name = em.name()
                lines.append(f"  {name} = getelementptr {element}, {ty} {base}, i64 {offset}\n")
            names.append(name)
        return Value(names, "ptr", pointer.lanes, axes, depth, pointer.reads)

    # --- loads ---------------------------------------------------------------------------------

    def load(self, e: Expr) -> Value:
        """Emit a LOAD expression."""
        em, array = self.emitter, self.array(e.arg)
        if array.dtype is not e.dtype:
            raise InternalError(message("load", e.dtype.name, array.dtype.name))
        valid = em.evaluate(e.src[1]) if len(e.src) > 1 else None
        address = self.address(e.arg, e.src[0])
        if valid is not None and not valid.lanes:
            address, valid = self._or_zeros(address, valid, array.dtype), None
        self._to = em.depth if array.mutable else em.floor
        if em.lane_axis is not None and (
            address.stride != 0 or (valid is not None and valid.lanes)
        ):
            # which lanes there are is known in this tile only
            self._to = max(self._to, em.values[em.lane_axis].depth)
        if address.across is not None and address.across.copies >= 4 and len(e.src) == 1:
            raw = self._load_across(address.across, array.dtype)
        else:
            raw = self._load_lanes(address, valid, array.dtype)
        reads = raw.reads | (valid.reads if valid else NOTHING)
        raw.reads = reads | {e.arg} if array.mutable else reads
        convert = from_memory(array.dtype, raw.lanes)
        if not convert:
            return raw
        return em.apply(convert, [raw], scalar(array.dtype), raw.lanes, raw.reads, to=0)

    def _or_zeros(self, address: Address, valid: Value, dtype: DType) -> Address:
        """The address where `valid`, else that of zeros."""
        em, pointer = self.emitter, address.pointer
        lanes = pointer.lanes
        if not lanes and address.stride and em.lanes * dtype.itemsize > ZEROS_BYTES:
            raise InternalError(
                message("load", f"{em.lanes} lanes", f"at most {ZEROS_BYTES} bytes")
            )
        zeros, ty = splat("@zeros", "ptr", lanes), vector("ptr", lanes)
        if address.stride == -1:  # lane 0 is the last element
            zeros = f"getelementptr (i8, ptr @zeros, i64 {(em.lanes - 1) * dtype.itemsize})"
        text = f"  {{r}} = select i1 {{a}}, {ty} {{b}}, {ty} {zeros}\n"
        chosen = em.apply(
            text,
            [valid, pointer],
            "ptr",
            lanes,
            pointer.reads | valid.reads,
            keep_scalar=True,
            to=0,
        )
        return Address(chosen, address.stride)

    def _load_lanes(self, address: Address, valid: Value | None, dtype: DType) -> Value:
        em, element = self.emitter, memory(dtype)
        pointer, stride = address.pointer, address.stride
        if stride == 0 and valid is None:
            text = f"  {{r}} = load {element}, ptr {{a}}, align {dtype.itemsize}\n"
            return em.apply(text, [pointer], element, 0, pointer.reads, to=self._to)
        ty = vector(element, em.lanes)
        if stride == 1:
            return self._load_contiguous(pointer, valid, ty, element, dtype.itemsize)
        if stride == -1 and valid is None and em.active == em.lanes:
            back = self._moved(pointer, 1 - em.lanes, element)
            order = ", ".join(f"i32 {lane}" for lane in reversed(range(em.lanes)))
            text = (
                f"  {{r}}.f = load {ty}, ptr {{a}}, align {dtype.itemsize}\n"
                f"  {{r}} = shufflevector {ty} {{r}}.f, {ty} poison, <{em.lanes} x i32> <{order}>\n"
            )
            return em.apply(
                text, [back], element, em.lanes, pointer.reads, keep_scalar=True, to=self._to
            )
        if address.skips is not None and valid is None:
            text = load_row(dtype, em.lanes, em.active, 2)
            return em.apply(
                text,
                [address.skips],
                element,
                em.lanes,
                pointer.reads,
                keep_scalar=True,
                to=self._to,
            )
        mask, operands = self._mask(valid)
        kind = f"{mangled(element, em.lanes)}.v{em.lanes}p0"
        text = (
            f"  {{r}} = call {ty} @llvm.masked.gather.{kind}(<{em.lanes} x ptr> {{a}}, "
            f"i32 {dtype.itemsize}, <{em.lanes} x i1> {mask}, {ty} zeroinitializer)\n"
        )
        return em.apply(
            self._masking(text, valid),
            [self._every_lane(address, element), *operands],
            element,
            em.lanes,
            pointer.reads,
            to=self._to,
        )

    def _load_contiguous(
        self, pointer: Value, valid: Value | None, ty: str, element: str, align: int
    ) -> Value:
        em = self.emitter
        if valid is None and em.active == em.lanes:
            text = f"  {{r}} = load {ty}, ptr {{a}}, align {align}\n"
            return em.apply(
                text, [pointer], element, em.lanes, pointer.reads, keep_scalar=True, to=self._to
            )
        mask, operands = self._mask(valid)
        text = (
            f"  {{r}} = call {ty} @llvm.masked.load.{mangled(element, em.lanes)}.p0(ptr {{a}}, "
            f"i32 {align}, <{em.lanes} x i1> {mask}, {ty} zeroinitializer)\n"
        )
        return em.apply(
            self._masking(text, valid),
            [pointer, *operands],
            element,
            em.lanes,
            pointer.reads,
            keep_scalar=True,
            to=self._to,
        )

    def _load_across(self, across: Across, dtype: DType) -> Value:
        """A vector along the copies for each lane, transposed."""
        em, element, ty = self.emitter, memory(dtype), vector(memory(dtype), self.emitter.lanes)
        base, count = across.pointer, across.copies
        depth = em.place([base, *(em.values[axis] for axis in em.numbers)], self._to)
        own = tuple(sorted(across.numbers))
        lines, axes = em.scopes[depth].lines, em.merge([base.axes, own])
        text = f"  {{r}}.a = getelementptr {element}, ptr {{a}}, i64 {{s}}\n"
        text += fill(load_row(dtype, em.lanes, count, 1), "{r}", "{r}.a")
        columns: list[list[str]] = []
        for pointer in base.names:
            rows = [em.name() for _ in range(em.active)]
            lines += [text.format(r=r, a=pointer, s=n * across.stride) for n, r in enumerate(rows)]
            rows += ["zeroinitializer"] * (em.lanes - em.active)
            columns.append(transposed(rows, ty, em.name, lines))
        place = em.positions(axes, base.axes)
        which = em.positions(axes, across.numbers)
        names = [columns[p][w] for p, w in zip(place, which, strict=True)]
        return Value(names, element, em.lanes, axes, depth, base.reads)

    def _mask(self, valid: Value | None) -> tuple[str, list[Value]]:
        """The text of the mask of a vector access, and the values it needs in addition."""
        em = self.emitter
        if valid is None:
            return lane_mask(em.active, em.lanes), []
        return ("{b}" if em.active == em.lanes else "{r}.m"), [valid]

    def _masking(self, text: str, valid: Value | None, hole: str = "{b}") -> str:
        """Prefix the computation of a mask that is both `valid` and among the active lanes."""
        em = self.emitter
        if valid is None or em.active == em.lanes:
            return text
        return both_masks("{r}.m", hole, em.active, em.lanes) + text

    def _moved(self, pointer: Value, elements: int, element: str) -> Value:
        text = f"  {{r}} = getelementptr {element}, ptr {{a}}, i64 {elements}\n"
        return self.emitter.apply(text, [pointer], "ptr", 0, pointer.reads, to=0)

    def _every_lane(self, address: Address, element: str) -> Value:
        """Vectors of pointers, one for each lane."""
        em, pointer, stride = self.emitter, address.pointer, address.stride
        if stride is None:
            return pointer
        if not stride:
            return em.widen(pointer, em.lanes)
        lanes = "<" + ", ".join(f"i64 {stride * lane}" for lane in range(em.lanes)) + ">"
        text = f"  {{r}} = getelementptr {element}, ptr {{a}}, <{em.lanes} x i64> {lanes}\n"
        return em.apply(text, [pointer], "ptr", em.lanes, pointer.reads, keep_scalar=True, to=0)

    # --- stores --------------------------------------------------------------------------------

    def store(self, put: Put) -> None:
        """Emit a Put statement. All copies of all operands are computed before the first is
        stored."""
        em, array = self.emitter, self.array(put.target)
        if not array.mutable or array.dtype is not put.value.dtype:
            raise InternalError(
                message(
                    "put",
                    f"{put.value.dtype.name} into {put.target!r}",
                    f"a written array of {array.dtype.name}",
                )
            )
        value = em.evaluate(put.value)
        valid = None if put.valid is None else em.evaluate(put.valid)
        address = self.address(put.target, put.index)
        stream = put.stream and self._is_aligned(put.index)
        wide = address.stride != 0 or value.lanes or (valid is not None and valid.lanes)
        if not wide:
            self._store_copies(
                _Store("one", array.dtype, 0, put.mode), address.pointer, value, valid
            )
        elif address.stride == 1:
            run = _Store("run", array.dtype, em.lanes, put.mode, stream)
            self._store_copies(run, address.pointer, value, valid)
        elif address.across is not None and put.mode == "set" and valid is None:
            row = address.across.is_row and em.active == em.lanes
            store = self._store_interleaved if row else self._store_across
            store(address.across, value, array.dtype)
        elif address.stride != 0 and put.mode == "set":
            pointers = self._every_lane(address, memory(array.dtype))
            self._store_copies(
                _Store("scatter", array.dtype, em.lanes, "set"), pointers, value, valid
            )
        else:
            pointers = self._every_lane(address, memory(array.dtype))
            self._store_lanes(_Store("one", array.dtype, 0, put.mode), pointers, value, valid)
        em.written((put.target,))

    def _is_aligned(self, index: Expr) -> bool:
        """Whether lane 0 is at a multiple of the lanes from the start of the array, always."""
        em, (terms, constant) = self.emitter, linear(index)
        others = [factor for term, factor in terms.items() if term is not em.lane_axis]
        return em.lanes > 0 and all(n % em.lanes == 0 for n in (*others, constant))

    def _store_across(self, across: Across, value: Value, dtype: DType) -> None:
        """The copies transposed, and for each lane a vector along them."""
        em, element, ty = self.emitter, memory(dtype), register(dtype, self.emitter.lanes)
        value, convert = em.widen(value, em.lanes), to_memory(dtype, em.lanes)
        text = f"  {{r}}.a = getelementptr {element}, ptr {{p}}, i64 {{s}}\n"
        text += fill(convert, "{r}.m", "{v}")
        row = store_row(dtype, em.lanes, across.copies)
        text += row.replace("{a}", "{r}.a").replace("{v}", "{r}.m" if convert else "{v}")
        for pointer, copies in self._rows(across, value):
            rows = copies + ["poison"] * (em.lanes - across.copies)
            columns = transposed(rows, ty, em.name, em.lines)
            for lane in range(em.active):
                where = {"p": pointer, "s": lane * across.stride, "v": columns[lane]}
                em.lines.append(text.format(r=em.name(), **where))

    def _store_interleaved(self, across: Across, value: Value, dtype: DType) -> None:
        """Copies and lanes as one long vector."""
        em, convert = self.emitter, to_memory(dtype, self.emitter.lanes)
        for pointer, copies in self._rows(across, em.widen(value, em.lanes)):
            if convert:
                raw = [em.name() for _ in copies]
                em.lines.extend(convert.format(r=r, a=v) for r, v in zip(raw, copies, strict=True))
                copies = raw
            long = interleaved(copies, memory(dtype), em.lanes, em.name, em.lines)
            ty = vector(memory(dtype), em.lanes * across.copies)
            em.lines.append(f"  store {ty} {long}, ptr {pointer}, align {dtype.itemsize}\n")

    def _rows(self, across: Across, value: Value) -> Iterator[tuple[str, list[str]]]:
        """For each pointer, the values of the copies that belong there."""
        em, count = self.emitter, across.copies
        axes = em.merge([across.pointer.axes, value.axes])
        outer = tuple(n for n in axes if n not in across.numbers)
        names = em.spread(value, (*outer, *across.numbers))
        for n, pointer in enumerate(em.spread(across.pointer, outer)):
            yield pointer, names[n * count : (n + 1) * count]

    def _columns(self, pointer: Value, value: Value, valid: Value | None) -> list[list[str]]:
        em, parts = self.emitter, [pointer, value, *([valid] if valid else [])]
        axes = em.merge([part.axes for part in parts])
        return [em.spread(part, axes) for part in parts]

    def _store_copies(
        self, form: _Store, pointer: Value, value: Value, valid: Value | None
    ) -> None:
        """One store for each copy; behind a branch where one condition holds for all lanes."""
        em = self.emitter
        whole = form.lanes == 0 or em.active == em.lanes
        mask = "" if whole else lane_mask(em.active, em.lanes)
        mixed = valid is not None and valid.lanes > 0
        text = _store_text(form, "{m}" if mixed else mask)
        for p, v, *m in zip(
            *self._columns(pointer, em.widen(value, form.lanes), valid), strict=True
        ):
            name = em.name()
            if not m:
                em.lines.append(text.format(r=name, p=p, v=v))
            elif mixed:
                kept = m[0]
                if not whole:
                    em.lines.append(both_masks(f"{name}.k", kept, em.active, em.lanes))
                    kept = f"{name}.k"
                if form.dtype.itemsize < 4:
                    em.lines.append(hidden_mask(f"{name}.u", kept, em.lanes))
                    kept = f"{name}.u"
                em.lines.append(text.format(r=name, p=p, v=v, m=kept))
            else:
                self._guarded(m[0], text.format(r=name, p=p, v=v))

    def _store_lanes(self, form: _Store, pointer: Value, value: Value, valid: Value | None) -> None:
        """One store for each active lane of each copy, in order: addresses may be equal."""
        em, text = self.emitter, _store_text(form, "")
        wide = [None if part is None else em.widen(part, em.lanes) for part in (value, valid)]
        types = [f"<{em.lanes} x {t}>" for t in ("ptr", scalar(form.dtype), "i1")]
        columns = self._columns(em.widen(pointer, em.lanes), wide[0], wide[1])  # type: ignore[arg-type]
        for row in zip(*columns, strict=True):
            for lane in range(em.active):
                picked = [em.name() for _ in row]
                em.lines.extend(
                    [
                        f"  {name} = extractelement {ty} {whole}, i64 {lane}\n"
                        for name, ty, whole in zip(picked, types, row, strict=False)
                    ]
                )
                store = text.format(r=em.name(), p=picked[0], v=picked[1])
                if len(picked) == 3:
                    self._guarded(picked[2], store)
                else:
                    em.lines.append(store)

    def _guarded(self, condition: str, text: str) -> None:
        if condition == "true":
            self.emitter.lines.append(text)
            return
        yes, on = self.emitter.label("put"), self.emitter.label("on")
        self.emitter.lines.append(
            f"  br i1 {condition}, label %{yes}, label %{on}\n{yes}:\n{text}"
            f"  br label %{on}\n{on}:\n"
        )


class _Store(NamedTuple):
    """A store without its names: `one` element, a `run` of lanes, or a `scatter` of lanes."""

    form: str
    dtype: DType
    lanes: int
    mode: str
    stream: bool = False  # past the caches; at a multiple of its bytes


@cache
def _store_text(store: _Store, mask: str) -> str:
    """The text of a store of {v} at {p}, with temporary names that start with {r}."""
    form, dtype, lanes, mode, stream = store
    ty, name, align = vector(memory(dtype), lanes), "{v}", dtype.itemsize
    mask_ty, kind = f"<{lanes} x i1>", mangled(memory(dtype), lanes)
    text = ""
    if mode != "set":
        if mask:
            text += (
                f"  {{r}}.old = call {ty} @llvm.masked.load.{kind}.p0(ptr {{p}}, i32 {align}, "
                f"{mask_ty} {mask}, {ty} zeroinitializer)\n"
            )
        else:
            text += f"  {{r}}.old = load {ty}, ptr {{p}}, align {align}\n"
        convert = from_memory(dtype, lanes)
        text += fill(convert, "{r}.was", "{r}.old")
        text += fill(
            combine(mode, dtype, lanes), "{r}.new", "{r}.was" if convert else "{r}.old", name
        )
        name = "{r}.new"
    convert = to_memory(dtype, lanes)
    if convert:
        text, name = text + fill(convert, "{r}.raw", name), "{r}.raw"
    if form == "scatter":
        return text + (
            f"  call void @llvm.masked.scatter.{kind}.v{lanes}p0({ty} {name}, <{lanes} x ptr> "
            f"{{p}}, i32 {align}, {mask_ty} {mask or 'splat (i1 true)'})\n"
        )
    if mask == lane_mask(1, lanes):  # LLVM 22 stores too many bytes if a truncation comes before
        return text + (
            f"  {{r}}.one = extractelement {ty} {name}, i64 0\n"
            f"  store {memory(dtype)} {{r}}.one, ptr {{p}}, align {align}\n"
        )
    if mask:
        return text + (
            f"  call void @llvm.masked.store.{kind}.p0({ty} {name}, ptr {{p}}, i32 {align}, "
            f"{mask_ty} {mask})\n"
        )
    if stream:
        return text + f"  store {ty} {name}, ptr {{p}}, align {lanes * align}, {NONTEMPORAL}\n"
    return text + f"  store {ty} {name}, ptr {{p}}, align {align}\n"


def hidden_mask(name: str, mask: str, lanes: int) -> str:
    """A mask of which LLVM does not see that it is a constant: where it can tell that one lane is
    stored, of narrow numbers, it stores too many bytes (see `_store_text`)."""
    kind = f"<{lanes} x i1>"
    return (
        f"  {name}.z = load volatile i8, ptr @zeros\n  {name}.y = icmp eq i8 {name}.z, 0\n"
        f"  {name} = select i1 {name}.y, {kind} {mask}, {kind} zeroinitializer\n"
    )


def both_masks(name: str, mask: str, active: int, lanes: int) -> str:
    """The lanes of a mask that are active. A select, because LLVM 22 drops a mask made by `and`
    where it halves a vector and one half is inactive: it then reads what no lane asked for."""
    kind = f"<{lanes} x i1>"
    chosen = f"{kind} {lane_mask(active, lanes)}, {kind} {mask}, {kind} zeroinitializer"
    return f"  {name} = select {chosen}\n"
