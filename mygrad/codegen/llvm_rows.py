"""Rows of elements that are next to each other, or every other one, as LLVM text; and squares of
vectors transposed in registers.

What a gather of 16 lanes does in 16 accesses, a row does in one or two and a few shuffles.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from mygrad.codegen.llvm_types import lane_mask, mangled, memory, vector
from mygrad.dtype import DType


def shuffle(name: str, ty: str, a: str, b: str, order: list[int]) -> str:
    """The lanes of two vectors, one after the other, in a new order."""
    picked = ", ".join(f"i32 {at}" for at in order)
    return f"  {name} = shufflevector {ty} {a}, {ty} {b}, <{len(order)} x i32> <{picked}>\n"


@cache
def load_row(dtype: DType, lanes: int, count: int, spacing: int) -> str:
    """{r} = `count` elements from {a} on, `spacing` (1 or 2) apart, and zeros."""
    element, ty, last = memory(dtype), vector(memory(dtype), lanes), spacing * (count - 1)
    parts = ["zeroinitializer"] * 2
    text = ""
    for half in range(last // lanes + 1):
        at, parts[half] = "{a}", "{r}" if spacing == 1 else f"{{r}}.{half}"
        if half:
            at = "{r}.p"
            text += f"  {{r}}.p = getelementptr {element}, ptr {{a}}, i64 {lanes}\n"
        mask = lane_mask(last + 1 - half * lanes, lanes)
        text += (
            f"  {parts[half]} = call {ty} @llvm.masked.load.{mangled(element, lanes)}.p0(ptr {at}, "
            f"i32 {dtype.itemsize}, <{lanes} x i1> {mask}, {ty} zeroinitializer)\n"
        )
    if spacing == 1:
        return text
    return text + shuffle("{r}", ty, parts[0], parts[1], list(range(0, 2 * lanes, 2)))


@cache
def store_row(dtype: DType, lanes: int, count: int) -> str:
    """Store the first `count` lanes of {v} from {a} on."""
    element, ty = memory(dtype), vector(memory(dtype), lanes)
    return (
        f"  call void @llvm.masked.store.{mangled(element, lanes)}.p0({ty} {{v}}, ptr {{a}}, "
        f"i32 {dtype.itemsize}, <{lanes} x i1> {lane_mask(count, lanes)})\n"
    )


def transposed(rows: list[str], ty: str, name: Callable[[], str], lines: list[str]) -> list[str]:
    """As many vectors as lanes, transposed by exchanging ever larger blocks of pairs."""
    lanes, step = len(rows), 1
    while step < lanes:
        low = [lane + (lanes - step) * bool(lane & step) for lane in range(lanes)]
        high = [lane + (lanes if lane & step else step) for lane in range(lanes)]
        made = list(rows)
        for r in (r for r in range(lanes) if not r & step):
            for at, order in ((r, low), (r + step, high)):
                made[at] = name()
                lines.append(shuffle(made[at], ty, rows[r], rows[r + step], order))
        rows, step = made, 2 * step
    return rows


def interleaved(
    rows: list[str], element: str, lanes: int, name: Callable[[], str], lines: list[str]
) -> str:
    """One vector with lane 0 of each row (two or four of them), then lane 1 of each, and so on."""
    count, width = len(rows), lanes
    while len(rows) > 2:
        pairs, ty = [], vector(element, width)
        for a, b in zip(rows[::2], rows[1::2], strict=True):
            pairs.append(name())
            lines.append(shuffle(pairs[-1], ty, a, b, list(range(2 * width))))
        rows, width = pairs, 2 * width
    made = name()
    order = [row * lanes + lane for lane in range(lanes) for row in range(count)]
    lines.append(shuffle(made, vector(element, width), rows[0], rows[1], order))
    return made
