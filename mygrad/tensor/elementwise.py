"""Operators: arithmetic, comparisons, bits, choice. Broadcasting and promotion of number types
happen here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mygrad import dtype as dt
from mygrad import graph
from mygrad.dtype import DType
from mygrad.errors import DTypeError, message
from mygrad.graph import Node
from mygrad.ops import Op
from mygrad.tensor.base import Base
from mygrad.tensor.creation import Creation
from mygrad.tensor.mode import precise_type
from mygrad.tensor.nodes import Scalar, broadcast_shapes, cast_node, expand_node, is_scalar

if TYPE_CHECKING:
    from typing_extensions import Self

_SCALARS = (bool, int, float, np.generic)


def wrap_scalar(value: int, dtype: DType) -> int:
    """An integer reduced to the range of `dtype`, as its arithmetic would."""
    value %= 1 << dtype.bits
    return value - (1 << dtype.bits) if value > dtype.max else value


class Elementwise(Creation):
    """One result per element. Operands broadcast by NumPy's rules and meet in one type (see
    dtype.py)."""

    __slots__ = ()

    # --- building ---

    def _unary(self, op: Op) -> Self:
        return self._map(graph.alu(op, self._operand()))

    def _as_float(self) -> Self:
        """Itself, or its integers in the default float type; in float32 where autocast asks for
        it."""
        dtype = self._node.dtype
        return self.cast(precise_type(dtype) if dtype.is_float else dt.default_float)

    def _pair(self, name: str, other: Any, floats: bool = False) -> tuple[Node, Node, bool]:
        """Both operands in one shape and type, and whether either carries gradients."""
        a = self._operand()
        if isinstance(other, _SCALARS):
            value: Scalar = other.item() if isinstance(other, np.generic) else other
            dtype = dt.promote_scalar(a.dtype, value)
            if floats and not dtype.is_float:
                dtype = dt.default_float
            if a.dtype is not dtype:
                a = cast_node(a, dtype)
            return a, graph.const(value, dtype, a.shape), self._carries
        right = self._lift(other)
        b = right._operand()
        if a.shape != b.shape:
            shape = broadcast_shapes(name, a.shape, b.shape)
            a, b = expand_node(a, shape), expand_node(b, shape)
        if a.dtype is not b.dtype or (floats and not a.dtype.is_float):
            dtype = dt.promote(a.dtype, b.dtype)
            if floats and not dtype.is_float:
                dtype = dt.default_float
            a, b = cast_node(a, dtype), cast_node(b, dtype)
        return a, b, self._carries or right._carries

    def _binary(
        self, op: Op, name: str, other: Any, swap: bool = False, floats: bool = False
    ) -> Self:
        a, b, carries = self._pair(name, other, floats)
        return self._wrap(graph.alu(op, b, a) if swap else graph.alu(op, a, b), carries)

    # --- arithmetic ---

    def neg(self) -> Self:
        """-x."""
        return self._unary(Op.NEG)

    def add(self, other: Any) -> Self:
        """x + other; "or" of two bools."""
        return self._binary(Op.ADD, "add", other)

    def sub(self, other: Any) -> Self:
        """x - other."""
        if isinstance(other, _SCALARS):
            return self._sub_scalar(other.item() if isinstance(other, np.generic) else other)
        a, b, carries = self._pair("sub", other)
        return self._wrap(graph.alu(Op.ADD, a, graph.alu(Op.NEG, b)), carries)

    def _sub_scalar(self, value: Scalar) -> Self:
        dtype = dt.promote_scalar(self.dtype, value)
        if dtype.kind == "b":
            raise DTypeError(message("sub", "two bools", "numbers", "use logical_xor"))
        a = cast_node(self._operand(), dtype)
        negative = wrap_scalar(-int(value), dtype) if dtype.is_int else -value
        return self._map(graph.alu(Op.ADD, a, graph.const(negative, dtype, a.shape)))

    def rsub(self, other: Any) -> Self:
        """other - x."""
        a, b, carries = self._pair("sub", other)
        return self._wrap(graph.alu(Op.ADD, b, graph.alu(Op.NEG, a)), carries)

    def mul(self, other: Any) -> Self:
        """x * other; "and" of two bools."""
        return self._binary(Op.MUL, "mul", other)

    def div(self, other: Any, rounding_mode: str | None = None) -> Self:
        """x / other, in the default float type for integers; rounding_mode "floor" is //, "trunc"
        rounds toward zero and keeps integers.

        Raises:
            DTypeError: another rounding_mode.
        """
        if rounding_mode is None:
            return self._binary(Op.DIV, "div", other, floats=True)
        if rounding_mode == "floor":
            return self // other
        if rounding_mode != "trunc":
            raise DTypeError(
                message("div", f"rounding_mode {rounding_mode!r}", "None, 'floor' or 'trunc'")
            )
        a, b, carries = self._pair("div", other)
        if a.dtype.is_float:
            return self._wrap(graph.alu(Op.TRUNC, graph.alu(Op.DIV, a, b)), carries)
        x, y = self._wrap(a), self._wrap(b)
        floor = x // y
        return (((x < 0) != (y < 0)) & (floor * y != x)).where(floor + 1, floor)

    def floor_divide(self, other: Any) -> Self:
        """The floor of x / other, as Python's //; 0 for an integer divided by zero."""
        return self._floor_divide(other, swap=False)

    def _floor_divide(self, other: Any, swap: bool) -> Self:
        a, b, carries = self._pair("floor_divide", other)
        a, b = (b, a) if swap else (a, b)
        if a.dtype.kind == "b":
            a, b = graph.cast(a, dt.int8), graph.cast(b, dt.int8)
        if a.dtype.is_float:
            return self._wrap(graph.alu(Op.DIV, a, b), carries).floor()
        return self._wrap(graph.alu(Op.IDIV, a, b), carries)

    def remainder(self, other: Any) -> Self:
        """x - floor(x / other) * other: the sign of `other`, as Python's %; 0 for an integer %
        0."""
        return self._remainder(other, swap=False)

    def _remainder(self, other: Any, swap: bool) -> Self:
        a, b, carries = self._pair("remainder", other)
        a, b = (b, a) if swap else (a, b)
        if not a.dtype.is_float:
            return self._wrap(graph.alu(Op.MOD, a, b))
        x, y = self._wrap(a, carries), self._wrap(b, carries)
        quotient = (x / y).floor()
        return (quotient == 0).where(x, x - quotient * y)  # the first case is for an infinite y

    def fmod(self, other: Any) -> Self:
        """x - trunc(x / other) * other: the sign of x, as C's fmod."""
        a, b, carries = self._pair("fmod", other)
        x, y = self._wrap(a, carries), self._wrap(b, carries)
        quotient = x.div(y, rounding_mode="trunc")
        exact = x - quotient * y
        return (quotient == 0).where(x, exact) if a.dtype.is_float else exact

    def maximum(self, other: Any) -> Self:
        """The greater of x and other; NaN if either is."""
        return self._binary(Op.MAX, "maximum", other)

    def minimum(self, other: Any) -> Self:
        """The smaller of x and other; NaN if either is."""
        a, b, carries = self._pair("minimum", other)
        return self._wrap(flip_order(graph.alu(Op.MAX, flip_order(a), flip_order(b))), carries)

    def reciprocal(self) -> Self:
        """1 / x."""
        return self._binary(Op.DIV, "reciprocal", 1, swap=True, floats=True)

    def square(self) -> Self:
        """x * x."""
        return self * self

    def abs(self) -> Self:
        """|x|; the gradient at 0 is 0."""
        x = self._operand()
        if x.dtype.kind in "bu":
            return self
        node = graph.alu(Op.MAX, x, graph.alu(Op.NEG, x))
        if x.dtype.is_float:  # MAX may choose -0.0 of the two zeros; adding 0.0 makes it 0.0
            node = graph.alu(Op.ADD, node, graph.const(0.0, x.dtype, x.shape))
        return self._map(node)

    def sign(self) -> Self:
        """-1, 0 or 1 by the sign of x; NaN stays. The gradient is 0."""
        x = self.detach()
        if self.dtype.kind in "bu":
            return (x != 0).cast(self.dtype)
        return self._map((x < 0).where(-1, (x > 0).where(1, x)).node)

    def lerp(self, end: Any, weight: Any) -> Self:
        """x + weight * (end - x)."""
        return self + (self._lift(end) - self) * weight

    def addcmul(self, a: Any, b: Any, value: Scalar = 1) -> Self:
        """x + value * a * b."""
        return self + self._lift(a) * b * value

    # --- rounding ---

    def trunc(self) -> Self:
        """Rounded toward zero."""
        return self._unary(Op.TRUNC) if self.dtype.is_float else self

    def floor(self) -> Self:
        """The greatest whole number not above x."""
        if not self.dtype.is_float:
            return self
        whole = self.trunc()
        return (self < whole).where(whole - 1, whole)

    def ceil(self) -> Self:
        """The smallest whole number not below x."""
        if not self.dtype.is_float:
            return self
        whole = self.trunc()
        return (whole < self).where(whole + 1, whole)

    def round(self) -> Self:
        """The nearest whole number, the even one of two. The gradient is 0."""
        if not self.dtype.is_float:
            return self
        x = self.detach()
        whole = x.trunc()
        rest = (x - whole).abs()  # exact
        odd = (whole * 0.5).trunc() * 2 != whole
        away = (rest > 0.5) | ((rest == 0.5) & odd)
        return self._map(away.where(whole + (x < 0).where(-1.0, 1.0), whole).node)

    def frac(self) -> Self:
        """x - trunc(x)."""
        return self - self.trunc()

    # --- comparisons ---

    def lt(self, other: Any) -> Self:
        """x < other."""
        return self._binary(Op.LT, "lt", other)

    def gt(self, other: Any) -> Self:
        """x > other."""
        return self._binary(Op.LT, "gt", other, swap=True)

    def eq(self, other: Any) -> Self:
        """x == other."""
        return self._binary(Op.EQ, "eq", other)

    def ne(self, other: Any) -> Self:
        """x != other; true where either is NaN."""
        return self._binary(Op.EQ, "ne", other).logical_not()

    def le(self, other: Any) -> Self:
        """x <= other; false where either is NaN."""
        return self._or_equal("le", other, swap=False)

    def ge(self, other: Any) -> Self:
        """x >= other; false where either is NaN."""
        return self._or_equal("ge", other, swap=True)

    def _or_equal(self, name: str, other: Any, swap: bool) -> Self:
        a, b, _ = self._pair(name, other)
        a, b = (b, a) if swap else (a, b)
        if not a.dtype.is_float:
            return self._wrap(graph.alu(Op.LT, b, a)).logical_not()
        return self._wrap(graph.alu(Op.OR, graph.alu(Op.LT, a, b), graph.alu(Op.EQ, a, b)))

    def isnan(self) -> Self:
        """Whether each element is NaN."""
        return self != self if self.dtype.is_float else self.full_like(False, dt.bool_)

    def isinf(self) -> Self:
        """Whether each element is infinite."""
        return (
            self.abs() == float("inf") if self.dtype.is_float else self.full_like(False, dt.bool_)
        )

    def isfinite(self) -> Self:
        """Whether each element is neither NaN nor infinite."""
        return self.abs() < float("inf") if self.dtype.is_float else self.full_like(True, dt.bool_)

    def isclose(
        self, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
    ) -> Self:
        """|x - other| <= atol + rtol * |other|, or equal."""
        other = self._lift(other)
        near = (self - other).abs() <= other.abs() * rtol + atol
        close = (self == other) | (near & other.isfinite())
        return close | (self.isnan() & other.isnan()) if equal_nan else close

    # --- bits and logic ---

    def logical_not(self) -> Self:
        """Whether each element is zero."""
        if self.dtype.kind != "b":
            return self == 0
        node = self.node
        return self._wrap(graph.alu(Op.XOR, node, graph.const(True, dt.bool_, node.shape)))

    def logical_and(self, other: Any) -> Self:
        """Whether both are nonzero."""
        return self.bool() & self._lift(other).bool()

    def logical_or(self, other: Any) -> Self:
        """Whether either is nonzero."""
        return self.bool() | self._lift(other).bool()

    def logical_xor(self, other: Any) -> Self:
        """Whether exactly one is nonzero."""
        return self.bool() ^ self._lift(other).bool()

    def bitwise_and(self, other: Any) -> Self:
        """x & other, of integers or bools."""
        return self._binary(Op.AND, "bitwise_and", other)

    def bitwise_or(self, other: Any) -> Self:
        """x | other, of integers or bools."""
        return self._binary(Op.OR, "bitwise_or", other)

    def bitwise_xor(self, other: Any) -> Self:
        """x ^ other, of integers or bools."""
        return self._binary(Op.XOR, "bitwise_xor", other)

    def bitwise_not(self) -> Self:
        """~x, of integers or bools.

        Raises:
            DTypeError: floats.
        """
        if self.dtype.kind == "b":
            return self.logical_not()
        if self.dtype.is_float:
            raise DTypeError(
                message("bitwise_not", self.dtype.name, "integers or bools", "cast first")
            )
        return self._map(flip_order(self.node))

    def lshift(self, other: Any) -> Self:
        """x << other; 0 for shifts of the width or more."""
        return self._binary(Op.SHL, "lshift", other)

    def rshift(self, other: Any) -> Self:
        """x >> other, arithmetic for signed types."""
        return self._binary(Op.SHR, "rshift", other)

    # --- choice ---

    def where(self, a: Any, b: Any) -> Self:
        """This condition chooses: `a` where true, `b` where false.

        >>> (Tensor([1, 5]) > 3).where(10, 0).tolist()
        [0, 10]
        """
        condition = self.node if self.dtype.kind == "b" else (self != 0).node
        left, right = self._branches(a, b)
        shape = broadcast_shapes("where", condition.shape, left.shape, right.shape)
        carries = (isinstance(a, Base) and a._carries) or (isinstance(b, Base) and b._carries)
        node = graph.alu(
            Op.WHERE,
            expand_node(condition, shape),
            expand_node(left, shape),
            expand_node(right, shape),
        )
        return self._wrap(node, carries)

    def _branches(self, a: Any, b: Any) -> tuple[Node, Node]:
        """The two values of `where` in one type; Python numbers are weak."""
        if is_scalar(a) and is_scalar(b):
            kind = dt.promote(dt.of_scalar(a), dt.of_scalar(b))
            return graph.const(a, kind), graph.const(b, kind)
        if is_scalar(a):
            right = self._lift(b)
            left = right._lift(a)
        else:
            left = self._lift(a)
            right = left._lift(b)
        kind = dt.promote(left.dtype, right.dtype)
        return cast_node(left._operand(), kind), cast_node(right._operand(), kind)

    def masked_fill(self, mask: Self, value: Any) -> Self:
        """`value` where mask is true, x elsewhere; keeps the dtype for a number that fits it."""
        return mask.where(value, self)

    def clamp(self, min: Any = None, max: Any = None) -> Self:
        """x limited to [min, max]; NaN stays. At a limit that is a number the gradient is 1, as in
        PyTorch.

        Raises:
            DTypeError: neither limit is given.
        """
        if min is None and max is None:
            raise DTypeError(message("clamp", "no limit", "min, max or both"))
        x = self
        if min is not None:
            x = (x < min).where(min, x) if is_scalar(min) else x.maximum(min)
        if max is not None:
            x = (x > max).where(max, x) if is_scalar(max) else x.minimum(max)
        return x

    clip = clamp

    def _has_minus(self) -> Self:
        """Whether the sign bit is set: true for -0.0."""
        kinds = {2: dt.int16, 4: dt.int32, 8: dt.int64}
        return self.bitcast(kinds[self.dtype.itemsize]) < 0 if self.dtype.is_float else self < 0

    def copysign(self, other: Any) -> Self:
        """|x| with the sign of `other`, -0.0 included."""
        a, b, carries = self._pair("copysign", other, floats=True)
        x, y = self._wrap(a, carries), self._wrap(b)
        return (x._has_minus() ^ y._has_minus()).where(-x, x)

    # --- operators ---

    __neg__, __abs__, __invert__ = neg, abs, bitwise_not
    __add__ = __radd__ = add
    __mul__ = __rmul__ = mul
    __sub__, __rsub__ = sub, rsub
    __floordiv__, __mod__ = floor_divide, remainder
    __and__ = __rand__ = bitwise_and
    __or__ = __ror__ = bitwise_or
    __xor__ = __rxor__ = bitwise_xor
    __lshift__, __rshift__ = lshift, rshift
    __lt__, __gt__, __le__, __ge__ = lt, gt, le, ge
    __eq__, __ne__ = eq, ne  # type: ignore[assignment]
    __hash__ = Base.__hash__
    subtract, multiply, negative, absolute = sub, mul, neg, abs

    def __truediv__(self, other: Any) -> Self:
        return self._binary(Op.DIV, "div", other, floats=True)

    def __rtruediv__(self, other: Any) -> Self:
        return self._binary(Op.DIV, "div", other, swap=True, floats=True)

    def __rfloordiv__(self, other: Any) -> Self:
        return self._floor_divide(other, swap=True)

    def __rmod__(self, other: Any) -> Self:
        return self._remainder(other, swap=True)

    def __rlshift__(self, other: Any) -> Self:
        return self._binary(Op.SHL, "lshift", other, swap=True)

    def __rrshift__(self, other: Any) -> Self:
        return self._binary(Op.SHR, "rshift", other, swap=True)

    def __round__(self) -> Self:
        return self.round()


def flip_order(node: Node) -> Node:
    """A map that turns smaller into greater: -x for floats, all bits flipped otherwise (-x would
    wrap)."""
    if node.dtype.is_float:
        if node.op is Op.CONST:
            return graph.const(-node.arg, node.dtype, node.shape)
        return graph.alu(Op.NEG, node)
    ones = graph.const(
        True if node.dtype.kind == "b" else -1 if node.dtype.kind == "i" else node.dtype.max,
        node.dtype,
        node.shape,
    )
    return graph.alu(Op.XOR, node, ones)
