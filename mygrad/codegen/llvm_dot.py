"""Products as dot products of pairs (AVX512-BF16 of x86), in LLVM text.

    acc[i][0..15] += left[i][2l] * right[2l][0..15] + left[i][2l + 1] * right[2l + 1][0..15]

The operands are packed as for AMX (`llvm_amx.py`): in blocks of lines of 64 bytes, 16 rows of the
left operand, 16 pairs of the depth of the right one. The left one may be in pairs as well. A group
of 8 rows and 32 columns, or of 16 and 16, has its results in 16 registers; a pair of a row goes to
all lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mygrad.codegen.stmt import Product

_BLOCK = 1024  # bytes
_LINE = 64
_RESULTS = 16  # registers; the others hold what is multiplied
_MULTIPLY = "llvm.x86.avx512bf16.dpbf16ps.512"

HEADER = f"declare <16 x float> @{_MULTIPLY}(<16 x float>, <32 x bfloat>, <32 x bfloat>)\n"


def product_text(s: Product, pointers: list[str], label: Callable[[str], str]) -> str:
    """The product of packed operands of bfloat16. `pointers` are those of the target, the left and
    the right operand; `label` makes names."""
    writer = _Writer(s, pointers, label)
    strips = s.columns // 16
    for first in range(0, strips, 2):
        writer.columns(first, min(2, strips - first))
    return "".join(writer.lines)


class _Writer:
    """The text of one product."""

    def __init__(self, s: Product, pointers: list[str], label: Callable[[str], str]) -> None:
        self.s, self.label = s, label
        self.target, self.left, self.right = pointers
        self.strip = s.depth // 32 * _BLOCK  # bytes of blocks one below the other
        # bytes from a row of the left operand to the next one, and from a pair
        self.row, self.pair = (4, _LINE) if s.pairs else (_LINE, 4)
        self.lines: list[str] = []

    def new(self, text: str) -> str:
        """A name for the value of an instruction."""
        name = "%" + self.label("dot")
        self.lines.append(f"  {name} = {text}\n")
        return name

    def at(self, base: str, offset: int | str) -> str:
        """A pointer so many bytes on."""
        return self.new(f"getelementptr i8, ptr {base}, i64 {offset}")

    @contextmanager
    def loop(self, count: int) -> Iterator[str]:
        """What is written inside is done for each number up to `count`."""
        at = self.label("loop")
        n = f"%{at}.n"
        self.lines.append(
            f"  br label %{at}.in\n{at}.in:\n  br label %{at}.do\n{at}.do:\n"
            f"  {n} = phi i64 [ 0, %{at}.in ], [ {n}.next, %{at}.on ]\n"
        )
        yield n
        self.lines.append(
            f"  br label %{at}.on\n{at}.on:\n  {n}.next = add nuw i64 {n}, 1\n"
            f"  {n}.c = icmp ult i64 {n}.next, {count}\n"
            f"  br i1 {n}.c, label %{at}.do, label %{at}.out\n{at}.out:\n"
        )

    def columns(self, first: int, wide: int) -> None:
        """All rows of one strip of columns, or two."""
        height = _RESULTS // wide
        row = self.s.columns * 4
        with self.loop(self.s.rows // 16) as strip:
            left = self.at(self.left, self.new(f"mul i64 {strip}, {self.strip}"))
            target = self.at(self.target, self.new(f"mul i64 {strip}, {16 * row}"))
            with self.loop(16 // height) as part:
                rows = self.at(left, self.new(f"mul i64 {part}, {height * self.row}"))
                cells = self.at(target, self.new(f"mul i64 {part}, {height * row}"))
                right = [self.at(self.right, c * self.strip) for c in range(first, first + wide)]
                at = [
                    self.at(cells, i * row + c * _LINE)
                    for i in range(height)
                    for c in range(first, first + wide)
                ]
                self.group(rows, right, at)

    def group(self, left: str, right: list[str], cells: list[str]) -> None:
        """The results whose pointers are `cells`, row by row."""
        sums = ["%" + self.label("sum") for _ in cells]
        begin = ["zeroinitializer"] * len(cells)
        if not self.s.fresh:
            begin = [self.new(f"load <16 x float>, ptr {c}, align 64") for c in cells]
        entry = self.label("depth")
        self.lines.append(f"  br label %{entry}\n{entry}:\n")
        at = self.label("blocks")
        k = f"%{at}.k"
        self.lines.append(
            f"  br label %{at}\n{at}:\n  {k} = phi i64 [ 0, %{entry} ], [ {k}.next, %{at} ]\n"
        )
        phis, now = len(self.lines), list(sums)
        a, b = self.at(left, k), [self.at(strip, k) for strip in right]
        for pair in range(_BLOCK // _LINE):
            lines = [
                self.new(f"load <32 x bfloat>, ptr {self.at(x, pair * _LINE)}, align 64") for x in b
            ]
            for i in range(len(cells) // len(right)):
                everywhere = self.everywhere(self.at(a, i * self.row + pair * self.pair))
                for j, line in enumerate(lines):
                    n = i * len(right) + j
                    now[n] = self.new(
                        f"call <16 x float> @{_MULTIPLY}(<16 x float> {now[n]}, "
                        f"<32 x bfloat> {line}, <32 x bfloat> {everywhere})"
                    )
        self.lines[phis:phis] = [
            f"  {name} = phi <16 x float> [ {first}, %{entry} ], [ {last}, %{at} ]\n"
            for name, first, last in zip(sums, begin, now, strict=True)
        ]
        self.lines.append(
            f"  {k}.next = add nuw i64 {k}, {_BLOCK}\n"
            f"  {k}.c = icmp ult i64 {k}.next, {self.strip}\n"
            f"  br i1 {k}.c, label %{at}, label %{at}.out\n{at}.out:\n"
        )
        for cell, value in zip(cells, now, strict=True):
            self.lines.append(f"  store <16 x float> {value}, ptr {cell}, align 64\n")

    def everywhere(self, pointer: str) -> str:
        """A pair of the left operand in all lanes."""
        pair = self.new(f"load float, ptr {pointer}, align 4")
        one = self.new(f"insertelement <16 x float> poison, float {pair}, i64 0")
        lanes = "<16 x i32> zeroinitializer"
        every = self.new(f"shufflevector <16 x float> {one}, <16 x float> poison, {lanes}")
        return self.new(f"bitcast <16 x float> {every} to <32 x bfloat>")
