"""Products as AMX instructions of x86, in LLVM text.

Eight registers hold tiles of 16 rows of 64 bytes: 0 to 3 the results of two by two blocks, 4 and 5
the left operand, 6 and 7 the right one. Their shape is set once, where the function begins: it
belongs to the thread.
"""

from __future__ import annotations

from collections.abc import Callable

from mygrad import dtype as dt
from mygrad.codegen.stmt import Product
from mygrad.dtype import DType
from mygrad.errors import InternalError, message

_LEFT, _RIGHT = 4, 6
_SIZE = 1024  # bytes of a block
_MULTIPLY = {dt.bfloat16: "tdpbf16ps", dt.int8: "tdpbssd"}

# palette 1, eight tiles: bytes of a row from byte 16 on, rows from byte 48 on
_SHAPES = bytes([1, *[0] * 15, *[64, 0] * 8, *[0] * 16, *[16] * 8, *[0] * 8])

HEADER = (
    f"@tiles = private unnamed_addr constant [64 x i8] [{', '.join(f'i8 {b}' for b in _SHAPES)}], "
    "align 64\n"
    "declare void @llvm.x86.ldtilecfg(ptr)\n"
    "declare void @llvm.x86.tilerelease()\n"
    "declare void @llvm.x86.tilezero(i8 immarg)\n"
    "declare void @llvm.x86.tileloadd64(i8 immarg, ptr, i64)\n"
    "declare void @llvm.x86.tilestored64(i8 immarg, ptr, i64)\n"
    + "".join(
        f"declare void @llvm.x86.{name}(i8 immarg, i8 immarg, i8 immarg)\n"
        for name in _MULTIPLY.values()
    )
)
BEGIN = "  call void @llvm.x86.ldtilecfg(ptr @tiles)\n"
END = "  call void @llvm.x86.tilerelease()\n"


def product_text(s: Product, kind: DType, pointers: list[str], label: Callable[[str], str]) -> str:
    """The product of packed operands of type `kind`. `pointers` are those of the target, the left
    and the right operand; `label` makes names."""
    if s.pairs:
        raise InternalError(message("llvm", "a left operand in pairs", "rows, for AMX"))
    writer = _Writer(s, kind, pointers, label)
    for i in range(0, s.rows // 16, 2):
        for j in range(0, s.columns // 16, 2):
            rows = range(i, min(i + 2, s.rows // 16))
            columns = range(j, min(j + 2, s.columns // 16))
            writer.square([(r, c) for r in rows for c in columns])
    return "".join(writer.lines)


class _Writer:
    """The text of one product."""

    def __init__(
        self, s: Product, kind: DType, pointers: list[str], label: Callable[[str], str]
    ) -> None:
        self.s, self.label = s, label
        self.target, self.left, self.right = pointers
        self.multiply = f"llvm.x86.{_MULTIPLY[kind]}"
        self.strip = s.depth * kind.itemsize // 64 * _SIZE  # bytes of blocks one below the other
        self.lines: list[str] = []

    def at(self, base: str, offset: int | str) -> str:
        """A pointer so many bytes on."""
        name = "%" + self.label("at")
        self.lines.append(f"  {name} = getelementptr i8, ptr {base}, i64 {offset}\n")
        return name

    def square(self, blocks: list[tuple[int, int]]) -> None:
        """At most two by two blocks of results."""
        row = self.s.columns * 4
        cells = {(r, c): self.at(self.target, r * 16 * row + c * 64) for r, c in blocks}
        for block, cell in cells.items():
            self.result("zero" if self.s.fresh else "loadd64", block, cell)
        bases = {r: self.at(self.left, r * self.strip) for r, _ in blocks}
        across = {c: self.at(self.right, c * self.strip) for _, c in blocks}
        at, k = self.label("depth"), "%" + self.label("k")
        self.lines.append(
            f"  br label %{at}.in\n{at}.in:\n  br label %{at}\n{at}:\n"
            f"  {k} = phi i64 [ 0, %{at}.in ], [ {k}.n, %{at} ]\n"
        )
        loaded: set[int] = set()
        for r, c in blocks:
            for register, base in ((_LEFT + r % 2, bases[r]), (_RIGHT + c % 2, across[c])):
                if register not in loaded:
                    loaded.add(register)
                    self.move("loadd64", register, self.at(base, k), 64)
            a, b = _LEFT + r % 2, _RIGHT + c % 2
            self.lines.append(
                f"  call void @{self.multiply}(i8 {_register(r, c)}, i8 {a}, i8 {b})\n"
            )
        self.lines.append(
            f"  {k}.n = add nuw i64 {k}, {_SIZE}\n  {k}.c = icmp ult i64 {k}.n, {self.strip}\n"
            f"  br i1 {k}.c, label %{at}, label %{at}.out\n{at}.out:\n"
        )
        for block, cell in cells.items():
            self.result("stored64", block, cell)

    def result(self, what: str, block: tuple[int, int], cell: str) -> None:
        """Set, load or store the register of a block of results."""
        register = _register(*block)
        if what == "zero":
            self.lines.append(f"  call void @llvm.x86.tilezero(i8 {register})\n")
        else:
            self.move(what, register, cell, self.s.columns * 4)

    def move(self, what: str, register: int, pointer: str, row: int) -> None:
        """A register to or from memory, rows so many bytes apart."""
        self.lines.append(
            f"  call void @llvm.x86.tile{what}(i8 {register}, ptr {pointer}, i64 {row})\n"
        )


def _register(row: int, column: int) -> int:
    """The register of a block of results."""
    return row % 2 * 2 + column % 2
