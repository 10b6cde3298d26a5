"""Kernels for aarch64, compiled but not run: vectors, fused multiply-adds, nothing called that is
not there, and tiles that stay in their registers."""

from __future__ import annotations

import platform
import re
from random import Random

import pytest
from kernel_families import FAMILIES, small
from schedule_checks import MACHINES

from mygrad import codegen
from mygrad import dtype as dt
from mygrad.codegen.actions import Vectorize
from mygrad.codegen.analysis import default_actions
from mygrad.dtype import DType
from mygrad.expr import alu, axis, load, reduce
from mygrad.kernel import BufferInfo, Kernel, Store
from mygrad.ops import ALU, UNARY, Op
from mygrad.runtime import native
from mygrad.runtime.llvm import Compiler

TARGET = MACHINES["neon"]
TRIPLE, CPU, FEATURES = "aarch64-linux-gnu", "neoverse-n1", "+neon"
KERNELS = 10  # of each family
POINTS = 50_000
MULTIPLY_ADDS = {"product", "convolution", "gather", "masked"}  # families of sums of products

VECTOR = re.compile(r"\bv\d+\.(?:16b|8h|4s|2d|8b|4h|2s)\b|\bq\d+\b")
FUSED = re.compile(r"\tfmla\tv\d+\.")
CALL = re.compile(r"\tbl?\t([A-Za-z_][\w.]*)$", re.MULTILINE)  # a jump to another function, too
LABEL = re.compile(r"^(\.LBB\w+):", re.MULTILINE)
STACK = re.compile(r"\[(?:sp|x29)\b")
MEMORY = {"aligned_alloc", "free", "memcpy", "memset", "memmove"}
MATHS = {"sin", "sinf"}  # of angles so large that the kernels' own do not do


class Cross(Compiler):
    """The compiler of kernels for aarch64, on any machine."""

    def __init__(self) -> None:
        super().__init__()
        self._llvm.initialize_all_targets()
        self._llvm.initialize_all_asmprinters()
        self._target = self._llvm.Target.from_triple(TRIPLE)
        self.cpu, self.features = CPU, FEATURES


@pytest.fixture(scope="module")
def compiler() -> Cross:
    pytest.importorskip("llvmlite")
    try:
        return Cross()
    except RuntimeError as error:
        pytest.skip(f"LLVM was built without aarch64: {error}")


def assembly(compiler: Cross, kernel: Kernel) -> str:
    """The machine code of the default schedule, as text; an object file can be made as well."""
    program = codegen.compile(kernel, TARGET)
    assert compiler.compile(program.source, kernel.name)[:4] == b"\x7fELF"
    return compiler.assembly(program.source, kernel.name)


def calls(text: str) -> set[str]:
    """What is called from outside of the module."""
    own = set(re.findall(r"^([A-Za-z_][\w.]*):", text, re.MULTILINE))
    return set(CALL.findall(text)) - own


def inner_loops(text: str) -> list[str]:
    """Blocks that jump back to their own beginning, up to there."""
    parts = LABEL.split(text)
    blocks = zip(parts[1::2], parts[2::2], strict=True)
    found = (re.match(rf".*\t{re.escape(name)}\b", b, re.DOTALL) for name, b in blocks)
    return [loop[0] for loop in found if loop]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_families(family: str, compiler: Cross) -> None:
    fused = vectors = 0
    for n in range(KERNELS):
        kernel = small(family, Random(f"{family} {n}"), POINTS)
        text = assembly(compiler, kernel)
        assert calls(text) <= MEMORY, kernel
        wide = any(isinstance(a, Vectorize) for a in default_actions(kernel, TARGET))
        vectors += wide
        if wide and kernel.buffers[0].dtype is dt.float32:
            assert VECTOR.search(text), kernel
        fused += FUSED.search(text) is not None
    assert vectors >= KERNELS // 2
    assert fused > 0 or family not in MULTIPLY_ADDS


def elementwise(op: Op, dtype: DType) -> Kernel:
    i = axis(0, 1000)
    value = alu(op, load(0, dtype, i))
    infos = (BufferInfo(dtype, 1000), BufferInfo(value.dtype, 1000, True))
    return Kernel("elementwise", (i,), (Store(1, i, value),), infos)


@pytest.mark.parametrize("dtype", [dt.float32, dt.float64, dt.float16, dt.bfloat16], ids=str)
@pytest.mark.parametrize("op", sorted(UNARY - {Op.CAST, Op.BITCAST}, key=list(Op).index), ids=str)
def test_functions_are_computed_by_vectors(op: Op, dtype: DType, compiler: Cross) -> None:
    text = assembly(compiler, elementwise(op, dtype))
    assert calls(text) <= (MATHS if op is Op.SIN else set())
    assert VECTOR.search(text)


def matmul(dtype: DType, shape: tuple[int, int, int], turned: bool) -> Kernel:
    """A product whose left side is turned, or none; 16-bit numbers are widened as they are read."""
    m, n, depth = shape
    i, j, k = axis(0, m), axis(1, n), axis(2, depth)
    left = load(0, dtype, k * m + i if turned else i * depth + k)
    factors = [left, load(1, dtype, k * n + j)]
    wide = dtype if dtype.itemsize >= 4 else dt.float32
    if wide is not dtype:
        factors = [alu(Op.CAST, f, dtype=wide) for f in factors]
    store = Store(2, i * n + j, reduce(Op.ADD, alu(Op.MUL, *factors), (k,)))
    infos = (
        BufferInfo(dtype, m * depth),
        BufferInfo(dtype, depth * n),
        BufferInfo(wide, m * n, True),
    )
    return Kernel("matmul", (i, j), (store,), infos)


@pytest.mark.parametrize("turned", [False, True], ids=["NN", "TN"])
@pytest.mark.parametrize("shape", [(512, 512, 512), (64, 1000, 77)], ids=str)
@pytest.mark.parametrize("dtype", [dt.float32, dt.float64, dt.bfloat16, dt.float16], ids=str)
def test_tiles_of_products_stay_in_registers(
    dtype: DType, shape: tuple[int, int, int], turned: bool, compiler: Cross
) -> None:
    """But for 28 sums of 16-bit numbers whose rows are turned: a few of those wait on the stack."""
    text = assembly(compiler, matmul(dtype, shape, turned))
    assert calls(text) <= MEMORY
    loops = [loop for loop in inner_loops(text) if FUSED.search(loop)]
    assert max(len(FUSED.findall(loop)) for loop in loops) >= 16
    narrow = turned and dtype.itemsize == 2
    for loop in loops:
        assert len(STACK.findall(loop)) <= len(FUSED.findall(loop)) // 7 * narrow, loop


def test_every_operation_has_text_that_aarch64_takes(compiler: Cross) -> None:
    """Those that are not elementwise functions of one number."""
    i = axis(0, 100)
    for dtype in (dt.float32, dt.float64, dt.int8, dt.int32, dt.uint64, dt.bool_):
        for op in sorted(ALU - UNARY - {Op.WHERE}, key=list(Op).index):
            floats = op is Op.DIV
            whole = op in {Op.IDIV, Op.MOD, Op.SHL, Op.SHR}
            bits = op in {Op.AND, Op.OR, Op.XOR}
            if (floats and not dtype.is_float) or (whole and not dtype.is_int):
                continue
            if bits and dtype.is_float:
                continue
            value = alu(op, load(0, dtype, i), load(1, dtype, i))
            infos = (*[BufferInfo(dtype, 100)] * 2, BufferInfo(value.dtype, 100, True))
            kernel = Kernel(op.name.lower(), (i,), (Store(2, i, value),), infos)
            assert not calls(assembly(compiler, kernel)), (op, dtype)


@pytest.mark.parametrize("system", ["Linux", "Darwin"])
def test_the_native_program(system: str, compiler: Cross, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(platform, "system", lambda: system)
    text = compiler.assembly(native.source(), "native")
    assert compiler.compile(native.source(), "native")[:4] == b"\x7fELF"
    assert re.search(r"\t(?:yield|hint\t#0?x?1)$", text, re.MULTILINE)
    known = re.compile(r"pthread_\w+" + r"|sched_\w+" * (system == "Linux"))
    assert all(known.fullmatch(name) for name in calls(text)), calls(text)
    for entry in ("mygrad_run", "mygrad_start", "mygrad_stop", "mygrad_rounds"):
        assert f"\n{entry}:" in text
