"""The text of the C family: sharing, lanes, guards and tables. `test_opencl.py` runs it."""

from __future__ import annotations

import dataclasses
import re
from string import Template

import pytest

from mygrad import dtype as dt
from mygrad import ops
from mygrad.codegen import cstyle, dialects
from mygrad.codegen import stmt as s
from mygrad.dtype import DType
from mygrad.errors import InternalError
from mygrad.expr import Expr, alu, axis, const, load, param, var
from mygrad.ops import Op
from mygrad.program import Target

F = dt.float32
TARGET = Target("opencl", "test", vector_bytes=64)


def text_of(
    *body: s.Stmt, buffers: tuple[DType, ...] = (F, F, F), params: tuple[str, ...] = ()
) -> str:
    """The rendered text of statements over buffers of 1000 elements, the first of them written."""
    infos = tuple((d, 1000, n == 0) for n, d in enumerate(buffers))
    return cstyle.render(s.Function("kernel", infos, params, body), TARGET)


def unroll(a: Expr) -> s.TileAxis:
    return s.TileAxis(a, a.arg[1], a.arg[1], "unroll")


def vector(a: Expr, active: int | None = None) -> s.TileAxis:
    return s.TileAxis(a, a.arg[1], a.arg[1] if active is None else active, "vector")


def product(m: Expr, n: Expr, k: Expr) -> Expr:
    return alu(Op.MUL, load(1, F, m * 10 + k), load(2, F, k * 16 + n))


# --- the whole text -----------------------------------------------------------------------------


def test_golden_matmul_tile() -> None:
    m, u, v, k = axis(0, 2), axis(1, 2), axis(2, 8), axis(3, 10)
    n = u * 8 + v
    text = text_of(
        s.Tile(
            (unroll(m), unroll(u), vector(v)),
            (
                s.Accumulator("acc", F, Op.ADD, (m, u, v)),
                s.Loop(k, const(0), const(10), "seq", (s.Update("acc", product(m, n, k)),)),
                s.Put(0, m * 16 + n, var("acc", F)),
            ),
        )
    )
    assert (
        text.removeprefix(dialects.OPENCL.prologue)
        == """
typedef struct __attribute__((packed)) { float8 v; } packed_float8;

static inline float8 multiply_add_float8(float8 a, float8 b, float8 c) {
    #pragma OPENCL FP_CONTRACT ON
    return a * b + c;
}

__kernel void kernel(__global float *b0, __global const float *b1, __global const float *b2) {
    {
        float8 acc_0_0 = (float8)(0.0f);
        float8 acc_0_1 = (float8)(0.0f);
        float8 acc_1_0 = (float8)(0.0f);
        float8 acc_1_1 = (float8)(0.0f);
        for (long i3 = 0L; i3 < 10L; i3++) {
            const float _t1 = b1[i3];
            const long _t2 = i3 * 16L;
            const float8 _t3 = ((__global const packed_float8 *)(b2 + _t2))->v;
            acc_0_0 = multiply_add_float8((float8)(_t1), _t3, acc_0_0);
            const float8 _t4 = ((__global const packed_float8 *)(b2 + 8L + _t2))->v;
            acc_0_1 = multiply_add_float8((float8)(_t1), _t4, acc_0_1);
            const float _t5 = b1[10L + i3];
            acc_1_0 = multiply_add_float8((float8)(_t5), _t3, acc_1_0);
            acc_1_1 = multiply_add_float8((float8)(_t5), _t4, acc_1_1);
        }
        ((__global packed_float8 *)(b0 + 0L))->v = acc_0_0;
        ((__global packed_float8 *)(b0 + 8L))->v = acc_0_1;
        ((__global packed_float8 *)(b0 + 16L))->v = acc_1_0;
        ((__global packed_float8 *)(b0 + 24L))->v = acc_1_1;
    }
}
"""
    )


def test_a_parallel_loop_gives_every_thread_a_run() -> None:
    i = axis(0, 100)
    text = text_of(s.Loop(i, const(0), const(100), "parallel", (s.Put(0, i, load(1, F, i)),)))
    assert (
        "const long _t1 = 100L * ((long)get_global_id(0) + 1) / (long)get_global_size(0);" in text
    )
    assert (
        "for (long i0 = 100L * (long)get_global_id(0) / (long)get_global_size(0); i0 < _t1; i0++)"
        in text
    )


def test_parameters_and_types_of_arguments() -> None:
    i = axis(0, 5)
    value = alu(Op.CAST, load(1, dt.bfloat16, i + param("n", 0, 9)), dtype=dt.bool_)
    text = text_of(
        s.Loop(i, const(0), const(5), "seq", (s.Put(0, i, value),)),
        buffers=(dt.bool_, dt.bfloat16, dt.float16),
        params=("n",),
    )
    assert (
        "__kernel void kernel(__global uchar *b0, __global const ushort *b1, "
        "__global const half *b2, "
        "const long n_n)"
    ) in text
    assert "cl_khr_fp64" not in text


def test_doubles_ask_for_their_extension() -> None:
    assert text_of(
        s.Put(0, const(0), load(1, dt.float64, const(0))), buffers=(dt.float64, dt.float64)
    ).startswith("#pragma OPENCL EXTENSION cl_khr_fp64")
    wide = alu(Op.SQRT, alu(Op.CAST, load(1, F, const(0)), dtype=dt.float64))
    inside = alu(Op.CAST, wide, dtype=F)
    assert "cl_khr_fp64" in text_of(s.Put(0, const(0), inside))


# --- tiles --------------------------------------------------------------------------------------


def test_loads_happen_once_per_index() -> None:
    m, u, v, k = axis(0, 4), axis(1, 3), axis(2, 16), axis(3, 10)
    text = text_of(
        s.Tile(
            (unroll(m), unroll(u), vector(v)),
            (
                s.Accumulator("acc", F, Op.ADD, (m, u, v)),
                s.Loop(
                    k, const(0), const(10), "seq", (s.Update("acc", product(m, u * 16 + v, k)),)
                ),
            ),
        )
    )
    assert text.count("b1[") == 4
    assert text.count("const packed_float16 *)") == 3
    assert text.count("= multiply_add_float16(") == 12


@pytest.mark.parametrize("active", [1, 3, 4])
def test_inactive_lanes_touch_no_memory(active: int) -> None:
    v = axis(0, 4)
    text = text_of(s.Tile((vector(v, active),), (s.Put(0, v, load(1, F, v + 5)),)))
    assert ("const packed_float4 *" in text) == (active == 4)
    assert ("__global packed_float4 *" in text) == (active == 4)
    if active < 4:
        assert text.count("b1[") == text.count("b0[") == active


def test_masked_lanes_are_not_read() -> None:
    v = axis(0, 4)
    text = text_of(s.Tile((vector(v),), (s.Put(0, v, load(1, F, v - 1, v >= 1)),)))
    assert "const packed" not in text
    assert len(re.findall(r"\(\w+\.s\d \? b1\[\w+(?: \+ \d)?\] : 0\.0f\)", text)) == 4


def test_a_mask_that_is_equal_in_all_lanes_guards_the_vector() -> None:
    i, v = axis(0, 9), axis(1, 4)
    text = text_of(
        s.Loop(
            i,
            const(0),
            const(9),
            "seq",
            (s.Tile((vector(v),), (s.Put(0, v, load(1, F, i * 4 + v, i < 5)),)),),
        )
    )
    assert re.search(
        r"\? \(\(__global const packed_float4 \*\)\(b1 \+ i0 \* 4L\)\)->v : \(float4\)\(0\.0f\)",
        text,
    )


@pytest.mark.parametrize("extent", [3, 5, 32, 64])
def test_lengths_without_a_vector_type_become_copies(extent: int) -> None:
    v = axis(0, extent)
    text = text_of(s.Tile((vector(v, extent - 1),), (s.Put(0, v, load(1, F, v)),)))
    assert "float3" not in text
    assert text.count("b0[") == extent - 1


def test_a_gather_picks_its_index_lane_by_lane() -> None:
    v = axis(0, 2)
    text = text_of(
        s.Tile((vector(v),), (s.Put(0, v, load(1, F, load(2, dt.int64, v))),)),
        buffers=(F, F, dt.int64),
    )
    assert re.search(
        r"const long2 (\w+) = \(\(__global const packed_long2 \*\)\(b2 \+ 0L\)\)->v;", text
    )
    assert re.search(r"\(float2\)\(b1\[\w+\.s0\], b1\[\w+\.s1\]\)", text)


def test_scatter_with_a_mode_is_one_lane_after_the_other() -> None:
    v = axis(0, 2)
    text = text_of(s.Tile((vector(v),), (s.Put(0, v, load(1, F, v), None, "add"),)))
    assert re.search(
        r"b0\[0L\] = b0\[0L\] \+ \w+\.s0;\n\s+b0\[0L \+ 1\] = b0\[0L \+ 1\] \+ \w+\.s1;", text
    )


def test_a_let_has_a_copy_for_each_point_it_depends_on() -> None:
    a, b, v = axis(0, 2), axis(1, 3), axis(2, 4)
    text = text_of(
        s.Tile(
            (unroll(a), unroll(b), vector(v)),
            (
                s.Let("x", load(1, F, a)),
                s.Let("y", load(1, F, b * 4 + v)),
                s.Put(0, a * 12 + b * 4 + v, alu(Op.ADD, var("x", F), var("y", F))),
            ),
        )
    )
    assert [f"const float x_{n} =" in text for n in range(3)] == [True, True, False]
    assert [f"const float4 y_{n} =" in text for n in range(4)] == [True, True, True, False]
    assert text.count("__global packed_float4 *") == 6


def test_a_value_used_twice_is_computed_once() -> None:
    i = axis(0, 5)
    x = alu(Op.EXP, load(1, F, i))
    text = text_of(
        s.Loop(
            i,
            const(0),
            const(5),
            "seq",
            (s.Put(0, i, alu(Op.DIV, x, alu(Op.ADD, x, const(1.0, F)))),),
        )
    )
    assert text.count("exp(") == text.count("b1[") == 1


def test_memory_is_read_again_after_a_store() -> None:
    x = load(0, F, const(0))
    text = text_of(s.Put(0, const(0), alu(Op.MUL, x, x)), s.Put(0, const(1), alu(Op.MUL, x, x)))
    assert text.count("= b0[0L];") == 2


def test_a_product_is_fused_only_into_an_accumulator() -> None:
    i = axis(0, 5)
    p = alu(Op.MUL, load(1, F, i), load(2, F, i))
    assert "multiply_add" not in text_of(s.Put(0, const(0), alu(Op.ADD, p, const(1.0, F))))
    assert "multiply_add" in text_of(s.Accumulator("a", F, Op.ADD, ()), s.Update("a", p))
    assert "multiply_add" not in text_of(s.Accumulator("a", F, Op.MAX, ()), s.Update("a", p))


def test_narrow_floats_round_after_every_operation() -> None:
    h = dt.float16
    x = load(1, h, const(0))
    text = text_of(
        s.Put(0, const(0), alu(Op.ADD, alu(Op.MUL, x, x), alu(Op.NEG, x))), buffers=(h, h)
    )
    assert (
        text.count("round_float16_float(") == 3
    )  # its definition, the product, the sum; not the sign


def test_very_deep_expressions() -> None:
    x = load(1, F, const(0))
    value = x
    for _ in range(5000):
        value = alu(Op.ADD, value, x)
    text = text_of(s.Put(0, const(0), value))
    assert text.count(" + ") == 5000
    assert max(map(len, text.splitlines())) < 200


def test_names_that_the_language_has_are_not_hidden() -> None:
    text = text_of(s.Let("max", load(1, F, const(0))), s.Put(0, const(0), var("max", F)))
    assert "const float max_ =" in text


def test_broken_statements_are_internal_errors() -> None:
    v = axis(0, 4)
    with pytest.raises(InternalError, match="lacks the vector axis"):
        text_of(
            s.Accumulator("a", F, Op.ADD, ()), s.Tile((vector(v),), (s.Update("a", load(1, F, v)),))
        )
    with pytest.raises(InternalError, match="two vector axes"):
        text_of(s.Tile((vector(v), vector(axis(1, 4))), ()))
    number = load(1, dt.int32, const(0))
    with pytest.raises(InternalError, match="DIV is not an operation of int32"):
        text_of(s.Put(0, const(0), alu(Op.DIV, number, number)), buffers=(dt.int32, dt.int32))
    with pytest.raises(InternalError, match="no dialect for cobol"):
        cstyle.render(s.Function("f", (), (), ()), Target("cobol", "test"))


# --- index arithmetic and literals --------------------------------------------------------------


def test_index_division_is_plain_only_where_it_means_the_same() -> None:
    i, unknown = axis(0, 50), load(1, dt.int64, const(0))
    text = text_of(
        s.Loop(i, const(0), const(50), "seq", (s.Put(0, i // 3, i % 7),)), buffers=(dt.int64,)
    )
    assert "b0[i0 / 3L] = i0 % 7L;" in text
    text = text_of(s.Put(0, const(0), unknown // 3 + unknown), buffers=(dt.int64, dt.int64))
    assert "floordiv_long(" in text
    assert "(ulong)" in text  # a sum that may wrap


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (0.1, F, "0.1f"),
        (-0.0, F, "(-0.0f)"),
        (float("inf"), F, "INFINITY"),
        (float("-inf"), F, "(-INFINITY)"),
        (0.1, dt.float64, "0.1"),
        (1e9, dt.float16, "INFINITY"),
        (0.1, dt.bfloat16, "0.100097656f"),
        (-5, dt.int64, "(-5L)"),
        (2**64 - 1, dt.uint64, "18446744073709551615uL"),
        (-(2**63), dt.int64, "(-9223372036854775807L - 1)"),
        (7, dt.int8, "((char)7)"),
        (True, dt.bool_, "((uchar)1)"),
        (-1, dt.int32, "(-1)"),
        (2**32 - 1, dt.uint32, "4294967295u"),
    ],
)
def test_literals(value: float, dtype: DType, expected: str) -> None:
    text = text_of(s.Put(0, const(0), const(value, dtype)), buffers=(dtype,))
    assert expected.strip("()") in text
    renderer = cstyle._Renderer(s.Function("f", (), (), ()), dialects.OPENCL)
    assert renderer.literal(value, dtype) == expected


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("(a + b)", "a + b"),
        ("(a) + (b)", "(a) + (b)"),
        ("a", "a"),
        ("((a))", "(a)"),
        ("(float4)(x)", "(float4)(x)"),
    ],
)
def test_parentheses_around_everything_are_dropped(text: str, bare: str) -> None:
    assert cstyle.bare(text) == bare


# --- tables -------------------------------------------------------------------------------------

KINDS = {
    Op.SQRT: "f",
    Op.EXP: "f",
    Op.LOG: "f",
    Op.SIN: "f",
    Op.DIV: "f",
    Op.NEG: "if",
    Op.TRUNC: "if",
    Op.IDIV: "iu",
    Op.MOD: "iu",
    Op.AND: "ib",
    Op.OR: "ib",
    Op.XOR: "ib",
    Op.SHL: "i",
    Op.SHR: "i",
}


@pytest.mark.parametrize("dialect", dialects.DIALECTS.values(), ids=lambda d: d.name)
def test_tables_are_total(dialect: dialects.Dialect) -> None:
    expected = {
        (op, kind) for op in ops.ALU - {Op.CAST, Op.BITCAST} for kind in KINDS.get(op, "bif")
    }
    assert set(dialect.scalar) == expected
    if dialect.lanes:
        assert set(dialect.vector) == expected
    assert set(dialect.types) == set(dialect.unsigned) == set(dialect.memory_types) == set(dt.ALL)
    for a in "bif":
        for b in "bif":
            for lanes in {False, bool(dialect.lanes)}:
                assert (a, b, lanes) in dialect.casts or a == b == "b"


@pytest.mark.parametrize("dialect", dialects.DIALECTS.values(), ids=lambda d: d.name)
def test_templates_name_only_what_there_is(dialect: dialects.Dialect) -> None:
    known = set("abcpivqTUMAn") | {"bits"}
    helpers = [
        t
        for h in dialect.helpers.values()
        for t in (h.scalar, h.vector, h.parameter_type, h.result_type)
    ]
    tables = (dialect.scalar, dialect.vector, dialect.casts, dialect.loads, dialect.stores)
    templates = helpers + [t for table in tables for t in table.values()]
    for template in templates:
        names = {m["named"] or m["braced"] for m in Template.pattern.finditer(template)}
        assert names <= known, template
        for called in re.findall(r"@(\w+)", template):
            assert called in {*dialect.helpers, *dialect.typedefs, "saturate_"}, template


def test_a_dialect_without_vectors_needs_no_vector_table() -> None:
    plain = cstyle._Renderer(
        s.Function(
            "f",
            ((F, 9, True),),
            (),
            (s.Tile((vector(axis(0, 4)),), (s.Put(0, axis(0, 4), const(1.0, F)),)),),
        ),
        dataclasses.replace(dialects.OPENCL, lanes=(), vector={}),
    )
    assert plain.source().count("b0[") == 4
