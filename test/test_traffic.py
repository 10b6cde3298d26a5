"""Bytes that loops move: footprints against a count of addresses, and the orders that follow."""

from __future__ import annotations

import itertools

import pytest
from graphs import buffer, conv, expand, matmul, pad, reshape
from hypothesis import given
from hypothesis import strategies as st
from test_blocking import AVX2, WIDE
from test_lower import check

from mygrad import graph as g
from mygrad.codegen import schedule
from mygrad.codegen.actions import LoopAxis
from mygrad.codegen.tiling import Access, Nest
from mygrad.codegen.traffic import cheapest_order, footprint
from mygrad.config import context
from mygrad.expr import axis
from mygrad.graph import Node
from mygrad.helpers import prod
from mygrad.kernel import Kernel
from mygrad.ops import Op
from mygrad.program import Target
from mygrad.schedule.schedule import schedule as plan

TINY = Target(
    "llvm", "tiny", vector_bytes=16, vector_registers=16, l1_bytes=1 << 10, l2_bytes=8 << 10
)


def last_kernel(node: Node) -> Kernel:
    with context(MYGRAD_WINOGRAD=0):  # the sum itself
        what = plan([node], "cpu").steps[-1].what
    assert isinstance(what, Kernel)
    return what


def touched(steps: tuple[int, ...], counts: tuple[int, ...]) -> int:
    """Different addresses, counted one by one."""
    points = itertools.product(*(range(n) for n in counts))
    return len({sum(s * i for s, i in zip(steps, p, strict=True)) for p in points})


def access(steps: tuple[int, ...], itemsize: int = 4) -> Access:
    along: dict = {axis(n, 64): s for n, s in enumerate(steps)}
    return Access(along, itemsize, False, 0)


@given(st.lists(st.tuples(st.integers(-40, 40), st.integers(1, 5)), max_size=4))
def test_a_footprint_is_never_less_than_what_is_touched(dims: list[tuple[int, int]]) -> None:
    steps, counts = tuple(s for s, _ in dims), tuple(n for _, n in dims)
    points = {axis(n, 64): c for n, c in enumerate(counts)}
    size = footprint(access(steps), points)
    assert 4 * touched(steps, counts) <= size <= 4 * prod(counts)


@pytest.mark.parametrize(
    ("steps", "counts"),
    [
        ((100, 34, 1, 1), (4, 1, 32, 3)),  # a row of windows
        ((1156, 34, 34, 1, 1), (4, 3, 8, 32, 3)),  # windows of several rows and channels
        ((34, 1), (8, 16)),  # rows with gaps
        ((0, 1), (9, 16)),  # the same for all steps of an axis
        ((-1, 1), (4, 4)),  # backwards
        ((7,), (5,)),
        ((), ()),
    ],
)
def test_windows_that_slide_count_once(steps: tuple[int, ...], counts: tuple[int, ...]) -> None:
    points = {axis(n, 64): c for n, c in enumerate(counts)}
    assert footprint(access(steps), points) == 4 * touched(steps, counts)


def test_a_step_that_is_not_known_touches_others_every_time() -> None:
    i = axis(0, 8)
    assert footprint(Access({i: None}, 8, False, 0), {i: 5}) == 40


class Cache:
    """The least recently used bytes go first."""

    def __init__(self, room: int) -> None:
        self.room, self.held, self.missed = room, {}, 0  # type: ignore[var-annotated]

    def read(self, key: tuple[int, int]) -> None:
        if self.held.pop(key, None) is None:
            self.missed += 4
        self.held[key] = True
        if 4 * len(self.held) > self.room:
            del self.held[next(iter(self.held))]


def simulated(order: list[LoopAxis], steps: list[dict], sizes: list[int], room: int) -> int:
    """Bytes missed if each iteration reads a run of its own from each operand."""
    cache = Cache(room)
    for point in itertools.product(*(range(p.extent) for p in order)):
        for slot, along in enumerate(steps):
            at = sum(along.get(p.root, 0) * i for p, i in zip(order, point, strict=True))
            for e in range(sizes[slot]):
                cache.read((slot, at + e))
    return cache.missed


@pytest.mark.parametrize("room", [260, 1000, 4000])
def test_the_order_found_is_as_good_as_any_in_a_cache(room: int) -> None:
    # images, channels out and pixels: X[n, pixel block], W[channel block]
    n, o, w, k = (axis(i, e) for i, e in enumerate((3, 6, 5, 8)))
    steps = [{n: 40, w: 8, k: 1}, {o: 8, k: 1}]
    loops = [LoopAxis(name, a, a) for name, a in (("o", o), ("n", n), ("w", w))]
    accesses = [Access(dict(s), 4, False, slot) for slot, s in enumerate(steps)]
    nest = Nest((n, o, w, k), (k,), accesses, [], 4, 2, False, frozenset())
    target = Target("llvm", "t", l1_bytes=room * 4 // 3, l2_bytes=room * 4 // 3)
    best = cheapest_order(nest, loops, {n: 1, o: 1, w: 1, k: 8}, target)
    missed = {
        tuple(p.name for p in q): simulated(list(q), steps, [8, 8], room)
        for q in itertools.permutations(loops)
    }
    assert missed[tuple(p.name for p in best)] <= 1.15 * min(missed.values())


def test_images_are_outside_of_channels_where_one_image_stays_in_the_cache() -> None:
    x, w = buffer(16, 256, 24, 32), buffer(64, 256, 1, 1)
    scheduled = schedule(last_kernel(conv(x, w)), WIDE)
    assert scheduled.loops[0].extent == 16


def test_weights_that_do_not_stay_in_the_cache_are_outside_of_images() -> None:
    x, w = buffer(32, 512, 6, 6), buffer(512, 512, 3, 3)
    scheduled = schedule(last_kernel(conv(x, w)), WIDE)
    assert scheduled.loops[0].root.arg[1] == 512


@pytest.mark.parametrize("target", [TINY, WIDE])
def test_sums_stay_what_they_were(target: Target) -> None:
    x, w = buffer(3, 5, 9, 7), buffer(10, 5, 3, 3)
    check(last_kernel(conv(x, w)), schedule(last_kernel(conv(x, w)), target))
    padded = pad(x, (0, 0), (0, 0), (1, 1), (1, 1))
    check(last_kernel(conv(padded, w)), schedule(last_kernel(conv(padded, w)), target))
    product = last_kernel(matmul(buffer(20, 30), buffer(30, 17)))
    check(product, schedule(product, target))


def lanes_and_copies(kernel: Kernel, target: Target = WIDE) -> dict[int, tuple[int, int]]:
    """By extent of an axis: its lanes and its copies."""
    found: dict[int, tuple[int, int]] = {}
    for p in schedule(kernel, target).loops:
        lanes, copies = found.get(p.root.arg[1], (1, 1))
        lanes = p.extent if p.kind == "vector" else lanes
        copies = p.extent if p.kind == "unroll" else copies
        found[p.root.arg[1]] = lanes, copies
    return found


def test_windows_that_slide_along_the_lanes_are_read_in_place() -> None:
    # vectors of pixels are parts of two lines, but results lie as the lanes do; a copy would hold
    # every pixel once for each place of the window
    x, w = buffer(32, 48, 34, 34), buffer(64, 48, 3, 3)
    kernel = last_kernel(conv(x, w))
    tiles = lanes_and_copies(kernel, AVX2)
    assert tiles[32] == (8, 2)
    assert tiles[64][1] >= 6
    assert not schedule(kernel, AVX2).stages


def test_tiles_fill_the_registers_there_are() -> None:
    kernel = last_kernel(matmul(buffer(480, 480), buffer(480, 481)))
    assert lanes_and_copies(kernel, AVX2) == {480: (1, 6), 481: (8, 2)}
    cells = [copies for _, copies in lanes_and_copies(kernel, WIDE).values()]
    assert prod(cells) == 24


def test_tiles_of_short_rows_are_several_rows_high() -> None:
    # each weight that is spread meets two rows, and no copy of the weights passes the second cache
    x, w = buffer(32, 128, 12, 10), buffer(64, 128, 3, 3)
    tiles = lanes_and_copies(last_kernel(conv(x, w)), AVX2)
    assert tiles[8] == (8, 1)
    assert tiles[10][1] > 1
    assert tiles[10][1] * tiles[64][1] == 10  # with more, windows over rows are not written out


def test_lanes_are_chosen_for_what_the_register_tile_costs() -> None:
    # pixels as lanes: half of a vector; channels as lanes must be copied, and cost less even so
    x, w = buffer(64, 256, 6, 6), buffer(512, 256, 3, 3)
    tiles = lanes_and_copies(last_kernel(conv(x, w)), AVX2)
    assert tiles[4][0] == 1


def test_a_window_in_registers_takes_one_less_than_the_tile_has_places() -> None:
    x, w = buffer(8, 32, 24, 24), buffer(32, 32, 5, 5)
    assert lanes_and_copies(last_kernel(conv(x, w)), AVX2)[20] == (1, 5)


def test_the_operand_that_slides_does_not_get_the_lanes_of_a_weight_gradient() -> None:
    x, dy = buffer(8, 48, 18, 18), buffer(8, 64, 16, 16)
    windows = g.move(Op.WINDOW, g.move(Op.WINDOW, x, (2, 3, 1, 1)), (4, 3, 1, 1))
    full = (8, 64, 48, 16, 3, 16, 3)
    shown = expand(reshape(windows, (8, 1, 48, 16, 3, 16, 3)), full)
    spread = expand(reshape(dy, (8, 64, 1, 16, 1, 16, 1)), full)
    product = g.reduce(Op.ADD, g.alu(Op.MUL, shown, spread), (0, 3, 5))
    for target in (WIDE, AVX2):
        assert lanes_and_copies(last_kernel(product), target)[64][0] > 1


@pytest.mark.parametrize("target", [WIDE, AVX2], ids=["avx-512", "avx2"])
def test_rows_of_which_a_line_is_read_between_jumps_are_copied(target: Target) -> None:
    for images, pixels, copied in ((48, 16, True), (24, 32, False)):  # one line of each, or two
        dy, x = buffer(images, 144, pixels), buffer(images, pixels, 256)
        full = (images, 144, 256, pixels)
        rows = expand(reshape(dy, (images, 144, 1, pixels)), full)
        columns = g.move(Op.PERMUTE, x, (0, 2, 1))
        columns = expand(reshape(columns, (images, 1, 256, pixels)), full)
        kernel = plan([g.reduce(Op.ADD, g.alu(Op.MUL, rows, columns), (0, 3))], "cpu").steps[0].what
        assert isinstance(kernel, Kernel)
        (slot,) = [n for n, b in enumerate(kernel.buffers) if b.size == images * 144 * pixels]
        assert any(s.slot == slot for s in schedule(kernel, target).stages) == copied


def test_pixels_are_lanes_where_no_window_slides() -> None:
    x, w = buffer(16, 64, 32, 32), buffer(256, 64, 1, 1)
    assert lanes_and_copies(last_kernel(conv(x, w)))[1024][0] == 16


def test_few_terms_do_not_pay_for_results_that_are_far_apart() -> None:
    kernel = last_kernel(conv(buffer(64, 1, 28, 28), buffer(32, 1, 5, 5)))
    assert lanes_and_copies(kernel, AVX2)[32][0] == 1
    # but 24 pixels are one vector and a half of 16, and copies along them are turned in registers
    tiles = lanes_and_copies(kernel, WIDE)
    assert tiles[32][0] == 16
    assert tiles[24][1] >= 8


@pytest.mark.parametrize("target", [WIDE, AVX2], ids=["avx-512", "avx2"])
@pytest.mark.parametrize(
    ("apart", "tiles", "copied"), [(256, 2, False), (256, 20, True), (1024, 2, True)]
)
def test_rows_across_lines_are_copied_for_many_tiles(
    apart: int, tiles: int, copied: bool, target: Target
) -> None:
    # a tile of rows is a part of each line; steps on pages of their own are dear from the start
    transposed = g.move(Op.PERMUTE, buffer(512, apart), (1, 0))
    kernel = last_kernel(matmul(transposed, buffer(512, tiles * target.vector_bytes // 4)))
    rows = [n for n, b in enumerate(kernel.buffers) if b.size == 512 * apart]
    assert len(rows) == 1
    assert any(s.slot == rows[0] for s in schedule(kernel, target).stages) == copied
