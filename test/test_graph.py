"""The tensor graph: interning, the rules of shapes and types, their errors, and deep graphs."""

from __future__ import annotations

import gc
import inspect
import math
import weakref

import numpy as np
import pytest
from checks import leaf, random_array, value_of

from mygrad import dtype as dt
from mygrad import graph
from mygrad.autograd.gradient import gradient
from mygrad.errors import (
    DeviceError,
    DTypeError,
    IndexRangeError,
    InternalError,
    MygradError,
    ShapeError,
)
from mygrad.graph import HostCall, Node
from mygrad.helpers import Location
from mygrad.ops import ALU, ARITY, GRAPH, Op
from mygrad.program import Buffer

F32, F64, I32, I64, U8, BOOL = dt.float32, dt.float64, dt.int32, dt.int64, dt.uint8, dt.bool_


def zeros(*shape: int, dtype: dt.DType = F32, device: str | None = None) -> Node:
    """A node of that shape: a constant, or a buffer if it must be on a device."""
    if device is None:
        return graph.const(0, dtype, shape)
    return graph.buffer(Buffer(device, dtype, math.prod(shape)), shape)


# --- identity ----------------------------------------------------------------------------------


def test_equal_nodes_are_one_node():
    x, y = leaf(random_array((3,))), leaf(random_array((3,)))
    assert x is not y, "buffers are compared by identity, not by contents"
    assert graph.buffer(x.arg, (3,)) is x
    assert graph.buffer(x.arg, (1, 3)) is not x
    assert graph.alu(Op.ADD, x, y) is graph.alu(Op.ADD, x, y)
    assert graph.alu(Op.ADD, x, y) is not graph.alu(Op.ADD, y, x)
    assert graph.alu(Op.ADD, x, y) is not graph.alu(Op.MUL, x, y)
    assert graph.cast(x, F32) is not graph.cast(x, I32)
    assert graph.reduce(Op.ADD, x, (0,)) is not graph.reduce(Op.MAX, x, (0,))
    assert graph.detach(x, 1) is not graph.detach(x, 2)


def test_zeros_of_different_bits_and_types_are_different_constants():
    nodes = [
        graph.const(v, d) for v, d in ((0.0, F32), (-0.0, F32), (0, I32), (False, BOOL), (0.0, F64))
    ]
    assert len({id(n) for n in nodes}) == len(nodes)
    assert graph.const(0, F32) is nodes[0], "an int given as a float is that float"
    assert graph.const(0.0, F32, (2,)) is not nodes[0]
    nan = graph.const(math.nan, F32)
    assert graph.const(float("nan"), F32) is nan
    assert graph.const(math.inf, F32) is not graph.const(-math.inf, F32)


def test_unused_nodes_are_freed():
    x = leaf(np.zeros(3))
    gc.collect()
    before = len(graph._interned)
    node = graph.alu(Op.EXP, graph.alu(Op.NEG, x))
    alive = weakref.ref(node.src[0])
    assert len(graph._interned) == before + 2
    del node
    assert alive() is None
    assert len(graph._interned) == before


def test_a_node_keeps_the_users_line():
    x = leaf(np.zeros(3))
    frame = inspect.currentframe()
    node = graph.alu(Op.NEG, x)
    line = frame.f_lineno - 1
    assert (node.location.file, node.location.line) == (__file__, line)
    again = graph.alu(Op.NEG, x)
    assert again.location.line == line, "the first line that made it"


def test_nodes_can_be_attributed_to_another_line():
    x, other = leaf(np.zeros(3)), Location("model.py", 7)
    graph.attribute_to(other)
    try:
        node = graph.alu(Op.NEG, x)
    finally:
        graph.attribute_to(None)
    assert node.location is other
    assert graph.alu(Op.EXP, x).location.file == __file__


def test_repr_and_text():
    x = leaf(np.zeros((2, 3), np.float32))
    node = graph.reduce(Op.ADD, graph.cast(x, F64), (1,))
    assert repr(node) == "<REDUCE (ADD, (1,)) (2,) float64>"
    lines = graph.text([node]).splitlines()
    assert lines[0].startswith("%0 = BUFFER")
    assert lines[1:] == ["%1 = CAST %0 float64 : (2, 3) float64",
                         "%2 = REDUCE %1 (ADD, (1,)) : (2,) float64"]  # fmt: skip


# --- shapes and types --------------------------------------------------------------------------


@pytest.mark.parametrize("op", sorted(ALU - {Op.CAST, Op.BITCAST}, key=lambda op: op.name))
@pytest.mark.parametrize("dtype", dt.ALL, ids=lambda d: d.name)
def test_which_types_an_operation_takes(op, dtype):
    floats = {Op.SQRT, Op.EXP, Op.LOG, Op.SIN, Op.TRUNC, Op.DIV}
    integers = {Op.IDIV, Op.MOD, Op.SHL, Op.SHR}
    takes = ((op not in floats or dtype.is_float)
             and (op not in integers or dtype.is_int)
             and (op not in {Op.AND, Op.OR, Op.XOR} or not dtype.is_float)
             and (op is not Op.NEG or dtype is not BOOL))  # fmt: skip
    operands = [zeros(2, dtype=dtype)] * ARITY[op]
    if op is Op.WHERE:
        operands[0] = zeros(2, dtype=BOOL)
    if takes:
        node = graph.alu(op, *operands)
        assert node.shape == (2,)
        assert node.dtype is (BOOL if op in (Op.LT, Op.EQ) else dtype)
    else:
        with pytest.raises(
            DTypeError, match=rf"^{op.name.lower()}: got {dtype.name}, expected .*; "
        ):
            graph.alu(op, *operands)


@pytest.mark.parametrize("source", dt.ALL, ids=lambda d: d.name)
def test_casts_between_all_types(source):
    x = zeros(3, dtype=source, device="a")
    for target in dt.ALL:
        assert graph.cast(x, target).dtype is target
        same_size = source.itemsize == target.itemsize and BOOL not in (source, target)
        if same_size or source is target:
            assert graph.bitcast(x, target).dtype is target
        else:
            with pytest.raises(DTypeError, match=rf"bitcast: got {source.name} to {target.name}"):
                graph.bitcast(x, target)
    assert graph.cast(x, source) is x
    assert graph.bitcast(x, source) is x


def test_shapes_of_combining_and_indexing():
    x = zeros(2, 3, 4)
    assert graph.reduce(Op.ADD, x, (2, 0)).shape == (3,)
    assert graph.reduce(Op.ADD, x, (2, 0)) is graph.reduce(Op.ADD, x, (0, 2))
    assert graph.reduce(Op.ADD, x, ()) is x
    assert graph.scan(Op.MUL, x, 1).shape == x.shape
    index = zeros(2, 7, 4, dtype=I32)
    assert (graph.gather(x, index, 1).shape, graph.gather(x, index, 1).dtype) == ((2, 7, 4), F32)
    assert graph.scatter(x, index, zeros(2, 7, 4), 1, "add").shape == (2, 3, 4)
    assert (graph.sort(x, 1).shape, graph.sort(x, 1).dtype) == (x.shape, I64)
    assert graph.iota(5, U8).shape == (5,)
    assert graph.variable("n", 1, 4).shape == ()


def test_moves_that_change_nothing_vanish():
    x = zeros(2, 1, 3, device="a")
    for op, arg in (
        (Op.RESHAPE, (2, 1, 3)), (Op.PERMUTE, (0, 1, 2)), (Op.EXPAND, (2, 1, 3)), (Op.FLIP, (1,)),
        (Op.PAD, ((0, 0),) * 3), (Op.SHRINK, ((0, 2), (0, 1), (0, 3))),
    ):  # fmt: skip
        assert graph.move(op, x, arg) is x, op
    square = zeros(2, 2, device="a")
    assert graph.move(Op.PERMUTE, square, (1, 0)) is not square
    assert graph.move(Op.FLIP, square, (0,)) is not square


def test_memory_rules():
    x = zeros(2, device="a")
    node = graph.alu(Op.NEG, x)
    assert graph.contiguous(x) is x
    assert graph.contiguous(graph.contiguous(node)) is graph.contiguous(node)
    assert graph.copy(x, "a") is x
    assert graph.copy(node, "b").device == "b"
    assert graph.store(x, node).device == "a"
    assert graph.detach(graph.detach(node, 3)) is graph.detach(node)
    assert graph.detach(x) is x
    assert graph.detach(graph.cast(node, I32)).op is Op.CAST


def test_devices_meet_or_refuse():
    a, b, free = zeros(2, device="a"), zeros(2, device="b"), zeros(2)
    assert graph.alu(Op.ADD, a, free).device == graph.alu(Op.ADD, free, a).device == "a"
    assert graph.alu(Op.ADD, free, free).device is None
    with pytest.raises(DeviceError, match=r"add: got operands on a and b, expected .*\.to\("):
        graph.alu(Op.ADD, a, b)


# every error says op, got, expected
X, INDEX = zeros(2, 3), zeros(2, 5, dtype=I64)
REFUSED = [
    (lambda: graph.alu(Op.ADD, zeros(2), zeros(3)), ShapeError,
     r"add: got shapes \(2,\) and \(3,\), expected equal shapes; broadcast"),
    (lambda: graph.alu(Op.ADD, zeros(2), zeros(2, dtype=F64)), DTypeError,
     r"add: got float32 and float64, expected equal types; cast"),
    (lambda: graph.alu(Op.WHERE, zeros(2), zeros(2), zeros(2)), DTypeError,
     r"where: got float32 and float32 and float32, expected a bool condition"),
    (lambda: graph.alu(Op.WHERE, zeros(2, dtype=BOOL), zeros(2), zeros(2, dtype=I32)), DTypeError,
     r"where: got bool and float32 and int32, expected a bool condition and equal types"),
    (lambda: graph.alu(Op.WHERE, zeros(dtype=BOOL), zeros(2), zeros(2)), ShapeError,
     r"where: got shapes"),
    (lambda: graph.alu(Op.NEG, zeros(2, dtype=BOOL)), DTypeError, r"neg: got bool.*logical_not"),
    (lambda: graph.const(300, U8), DTypeError, r"constant: got 300, expected a value of uint8; c"),
    (lambda: graph.const(-1, U8), DTypeError, r"constant: got -1"),
    (lambda: graph.const(math.nan, I32), DTypeError, r"constant: got nan, expected a value of"),
    (lambda: graph.const(math.inf, I64), DTypeError, r"constant: got inf"),
    (lambda: graph.iota(3, F32), DTypeError, r"iota: got float32, expected an integer type; cast"),
    (lambda: graph.variable("n", 3, 2), ShapeError,
     r"variable: got n from 3 to 2, expected low <= high"),
    (lambda: graph.reduce(Op.ADD, X, (0, 0)), ShapeError,
     r"reduce: got axes \(0, 0\), expected distinct"),
    (lambda: graph.reduce(Op.ADD, X, (2,)), IndexRangeError,
     r"reduce: got axis 2, expected 0 <= axis < 2 for shape \(2, 3\)"),
    (lambda: graph.reduce(Op.ADD, X, (-1,)), IndexRangeError, r"reduce: got axis -1"),
    (lambda: graph.scan(Op.ADD, X, 2), IndexRangeError, r"scan: got axis 2"),
    (lambda: graph.sort(X, 5), IndexRangeError, r"sort: got axis 5"),
    (lambda: graph.gather(X, INDEX, 2), IndexRangeError, r"gather: got axis 2"),
    (lambda: graph.gather(X, zeros(2, 5), 1), DTypeError, r"gather: got index of type float32"),
    (lambda: graph.gather(X, zeros(2, 5, dtype=BOOL), 1), DTypeError,
     r"gather: got index of type bool"),
    (lambda: graph.gather(X, INDEX, 0), ShapeError,
     r"gather: got x \(2, 3\) and index \(2, 5\), expected equal extents on all axes but 0"),
    (lambda: graph.gather(X, zeros(2, dtype=I64), 1), ShapeError,
     r"gather: got x \(2, 3\) and index \(2,\)"),
    (lambda: graph.scatter(X, INDEX, zeros(2, 4), 1, "add"), ShapeError,
     r"scatter: got updates \(2, 4\) float32, expected index's shape \(2, 5\) and type float32"),
    (lambda: graph.scatter(X, INDEX, zeros(2, 5, dtype=F64), 1, "add"), ShapeError,
     r"scatter: got updates \(2, 5\) float64"),
    (lambda: graph.scatter(X, INDEX, zeros(2, 5), 1, "mean"), InternalError, r"scatter: mode mean"),
    (lambda: graph.move(Op.RESHAPE, X, (4,)), ShapeError, r"reshape: got \(2, 3\) to \(4,\)"),
    (lambda: graph.move(Op.EXPAND, X, (2, 6)), ShapeError, r"expand: got \(2, 3\) to \(2, 6\)"),
    (lambda: graph.move(Op.PERMUTE, X, (0, 0)), ShapeError, r"permute: got \(0, 0\)"),
    (lambda: graph.move(Op.PAD, X, ((0, 0), (-1, 0))), ShapeError, r"pad: got"),
    (lambda: graph.move(Op.SHRINK, X, ((0, 2), (1, 4))), IndexRangeError, r"shrink: got"),
    (lambda: graph.move(Op.FLIP, X, (2,)), IndexRangeError, r"flip: got axis 2"),
    (lambda: graph.move(Op.WINDOW, X, (1, 4, 1, 1)), ShapeError, r"window: got size 4"),
    (lambda: graph.bitcast(X, dt.float16), DTypeError, r"bitcast: got float32 to float16"),
    (lambda: graph.reduce(Op.DIV, X, (0,)), InternalError, r"no combining operator"),
    (lambda: graph.alu(Op.ADD, X), InternalError, r"add: 1 operands"),
    (lambda: graph.store(X, X), InternalError, r"store"),
    (lambda: graph.buffer(Buffer("a", F32, 5), (2, 3)), InternalError, r"does not fit"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("build", "error", "text"), REFUSED, ids=[text[:40] for _, _, text in REFUSED]
)
def test_wrong_calls_say_what_is_wrong(build, error, text):
    with pytest.raises(error, match=text) as caught:
        build()
    assert isinstance(caught.value, MygradError)


def test_a_refused_node_leaves_nothing_behind():
    gc.collect()
    before = len(graph._interned)
    for build, error, _ in REFUSED:
        with pytest.raises(error):
            build()
    gc.collect()
    assert len(graph._interned) == before


# --- walking -----------------------------------------------------------------------------------


def samples() -> dict[Op, Node]:
    """A node of every primitive, over buffers."""
    x, y = zeros(4, 2, device="a"), zeros(4, 2, device="a", dtype=I32)
    flags, z = graph.alu(Op.LT, x, x), graph.alu(Op.NEG, x)
    args = {Op.RESHAPE: (8,), Op.PERMUTE: (1, 0), Op.EXPAND: (3, 4, 2), Op.PAD: ((1, 0), (0, 0)),
            Op.SHRINK: ((1, 3), (0, 2)), Op.FLIP: (0,), Op.WINDOW: (0, 2, 1, 1),
            Op.UNWINDOW: (0, 5, 1, 1)}  # fmt: skip
    nodes = {op: graph.move(op, z, arg) for op, arg in args.items()}
    for op in ALU - {Op.CAST, Op.BITCAST, Op.WHERE}:
        integer = op in {Op.IDIV, Op.MOD, Op.SHL, Op.SHR, Op.AND, Op.OR, Op.XOR}
        nodes[op] = graph.alu(op, *[y if integer else x] * ARITY[op])
    call = HostCall(lambda a: a, "same", (4, 2), F32)
    others = [graph.alu(Op.WHERE, flags, x, z), graph.cast(x, F64), graph.bitcast(x, I32), x,
              zeros(2), graph.iota(3), graph.variable("n", 0, 3), graph.reduce(Op.ADD, x, (0,)),
              graph.scan(Op.MUL, x, 1), graph.gather(x, y, 0), graph.scatter(x, y, z, 0, "add"),
              graph.sort(x, 0), graph.contiguous(z), graph.store(x, z), graph.copy(z, "b"),
              graph.join([z, x]), graph.host(call, z), graph.detach(z)]  # fmt: skip
    return nodes | {n.op: n for n in others}


def test_rebuild_on_the_same_operands_is_the_node_itself():
    nodes = samples()
    assert set(nodes) == set(GRAPH)
    for node in nodes.values():
        assert graph.rebuild(node, node.src) is node


def test_toposort_puts_operands_first_and_each_node_once():
    roots = list(samples().values())
    order = graph.toposort(roots)
    place = {node: i for i, node in enumerate(order)}
    assert len(place) == len(order)
    assert set(roots) <= set(order)
    assert all(place[s] < place[node] for node in order for s in node.src)
    assert graph.toposort(roots) == order


def test_substitute():
    x, y, z = (leaf(random_array((3,), i)) for i in range(3))
    inner = graph.alu(Op.MUL, x, y)
    first, second = graph.alu(Op.ADD, inner, x), graph.alu(Op.NEG, inner)
    got = graph.substitute([first, second, x, y], {x: z})
    replaced = graph.alu(Op.MUL, z, y)
    assert got == [graph.alu(Op.ADD, replaced, z), graph.alu(Op.NEG, replaced), z, y]
    assert graph.substitute([first], {inner: x}) == [graph.alu(Op.ADD, x, x)]
    assert graph.substitute([first], {x: x}) == [first]


@pytest.mark.parametrize("depth", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_deep_graphs(depth: int) -> None:
    """Build, sort, differentiate, replace, evaluate and free a chain of so many operations."""
    x, y, seed = (leaf(np.array([v, -v])) for v in (0.5, 0.25, 3.0))
    gc.collect()
    before = len(graph._interned)
    node = x
    for _ in range(depth // 2 + 1):  # h = -(h + x): x, -2x, x, -2x ...
        node = graph.alu(Op.NEG, graph.alu(Op.ADD, node, x))
    assert len(graph.toposort([node])) == depth + 3
    (g,) = gradient([node], [seed], [x])
    assert len(graph.toposort([g])) > depth
    np.testing.assert_array_equal(value_of(g), [-6, 6])
    (moved,) = graph.substitute([node], {x: y})
    np.testing.assert_array_equal(value_of(moved), [-0.5, 0.5])
    assert graph.text([node]).count("\n") == depth + 2
    del node, g, moved
    gc.collect()
    assert len(graph._interned) == before


def test_wide_graphs():
    x = leaf(np.array([1.5]))
    terms = [graph.alu(Op.MUL, x, graph.const(i, F64, (1,))) for i in range(5_000)]
    while len(terms) > 1:
        terms = [graph.alu(Op.ADD, *terms[i : i + 2]) if i + 1 < len(terms) else terms[i]
                 for i in range(0, len(terms), 2)]  # fmt: skip
    (g,) = gradient(terms, [None], [x])
    assert value_of(g) == sum(range(5_000))
