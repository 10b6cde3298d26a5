"""Products of matrices: broadcast, multiply, and one reduction. Half types are multiplied and added
in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mygrad import dtype as dt
from mygrad import graph
from mygrad.errors import ShapeError, message
from mygrad.graph import Node
from mygrad.ops import Op
from mygrad.tensor.base import Base
from mygrad.tensor.mode import product_type
from mygrad.tensor.nodes import broadcast_shapes, cast_node, expand_node, reshape_node
from mygrad.tensor.ordering import Ordering
from mygrad.tensor.reduce import accumulator

if TYPE_CHECKING:
    from typing_extensions import Self


def widened(node: Node, kind: dt.DType) -> Node:
    """An operand of a product of type `kind`, in the type in which it is multiplied and added."""
    return cast_node(cast_node(node, kind), accumulator(kind) if kind.is_float else kind)


def _product(a: Node, b: Node) -> Node:
    """(..., m, k) times (..., k, n): multiplied over (..., m, k, n), and summed over k."""
    batch = broadcast_shapes("matmul", a.shape[:-2], b.shape[:-2])
    full = (*batch, *a.shape[-2:], b.shape[-1])
    left = expand_node(reshape_node(a, (*a.shape, 1)), full)
    # leading axes are EXPAND's affair, so a plain matrix needs no reshape
    right = b if len(b.shape) == 2 else reshape_node(b, (*b.shape[:-2], 1, *b.shape[-2:]))
    return graph.reduce(Op.ADD, graph.alu(Op.MUL, left, expand_node(right, full)), (len(full) - 2,))


class Linear(Ordering):
    """matmul, linear, outer, einsum."""

    __slots__ = ()

    def matmul(self, other: Any) -> Self:
        """The matrix product over the last axis of x and the last but one of other, batched by
        broadcasting.

        Vectors count as a row on the left, as a column on the right, and the axis disappears again.

        >>> (Tensor.ones(2, 3) @ Tensor.ones(3)).tolist()
        [3.0, 3.0]

        Raises:
            ShapeError: inner extents differ, or an operand without axes.
        """
        right = self._lift(other)
        a, b = self._operand(), right._operand()
        if not a.shape or not b.shape:
            raise ShapeError(
                message(
                    "matmul",
                    f"shapes {a.shape} and {b.shape}",
                    "at least one axis each",
                    "multiply with *",
                )
            )
        inner = b.shape[-2] if len(b.shape) > 1 else b.shape[0]
        if a.shape[-1] != inner:
            turned = len(b.shape) > 1 and a.shape[-1] == b.shape[-1]
            raise ShapeError(
                message(
                    "matmul",
                    f"shapes {a.shape} and {b.shape}",
                    f"equal inner extents, not {a.shape[-1]} and {inner}",
                    "did you mean other.mT?" if turned else "",
                )
            )
        kind = product_type(dt.promote(a.dtype, b.dtype))
        a, b = widened(a, kind), widened(b, kind)
        row, column = len(a.shape) == 1, len(b.shape) == 1
        node = _product(
            reshape_node(a, (1, *a.shape)) if row else a,
            reshape_node(b, (*b.shape, 1)) if column else b,
        )
        if row or column:
            rows = () if row else (a.shape[-2],)
            columns = () if column else (b.shape[-1],)
            batch = node.shape[:-2]
            node = reshape_node(node, (*batch, *rows, *columns))
        return self._wrap(graph.cast(node, kind), self._carries or right._carries)

    dot = mm = bmm = matmul
    __matmul__ = matmul

    def __rmatmul__(self, other: Any) -> Self:
        return self._lift(other).matmul(self)

    def outer(self, other: Any) -> Self:
        """All products of two vectors: (m,) and (n,) to (m, n)."""
        other = self._lift(other)
        return self.reshape(-1, 1) * other.reshape(1, -1)

    def linear(self, weight: Self, bias: Self | None = None) -> Self:
        """x @ weight.T + bias for x (..., in), weight (out, in), bias (out,)."""
        weight = weight.cast(product_type(weight.dtype))  # before it is turned: rows stay rows
        result = self.matmul(weight.T if weight.ndim == 2 else weight)
        return result if bias is None else result + bias.cast(product_type(bias.dtype))

    def trace(self) -> Self:
        """The sum of the diagonal of a matrix."""
        return self.diagonal().sum(-1)

    # --- einsum ---

    @classmethod
    def einsum(cls, formula: str, *operands: Self | Sequence[Self]) -> Self:
        """Sums of products by NumPy's index notation; operands are contracted from left to right.

        >>> Tensor.einsum("ij,jk->ik", Tensor.ones(2, 3), Tensor.ones(3, 4)).shape
        (2, 4)

        Raises:
            ShapeError: a formula that does not fit the operands.
        """
        tensors: list[Any] = (
            list(operands[0]) if isinstance(operands[0], (list, tuple)) else list(operands)
        )
        inputs, output = _parse(formula, tensors)
        sizes: dict[str, int] = {}
        for letters, t in zip(inputs, tensors, strict=True):
            for letter, n in zip(letters, t.shape, strict=True):
                if sizes.setdefault(letter, n) != n and 1 not in (n, sizes[letter]):
                    raise ShapeError(
                        message(
                            "einsum",
                            f"extents {sizes[letter]} and {n} of {letter!r}",
                            "one extent for each letter",
                        )
                    )
                sizes[letter] = max(sizes[letter], n)
        result, have = _diagonals(tensors[0], inputs[0])
        for i, (t, letters) in enumerate(zip(tensors[1:], inputs[1:], strict=True)):
            right, wants = _diagonals(t, letters)
            later = set("".join(inputs[i + 2 :])) | set(output)
            result, have = _contract(result, have, right, wants, later, sizes)
        return _finish(result, have, output)


def _parse(formula: str, tensors: Sequence[Base]) -> tuple[list[str], str]:
    """Letters of each operand and of the output; an ellipsis becomes capital letters not used
    otherwise."""
    left, arrow, output = formula.replace(" ", "").partition("->")
    inputs = left.split(",")
    if len(inputs) != len(tensors):
        raise ShapeError(
            message("einsum", f"{len(tensors)} operands", f"{len(inputs)} for {formula!r}")
        )
    free = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in formula]
    rank = max(
        (t.ndim - len(s) + 3 for s, t in zip(inputs, tensors, strict=True) if "..." in s), default=0
    )
    dots = "".join(free[:rank])
    inputs = [
        s.replace("...", dots[rank - (t.ndim - len(s) + 3) :]) if "..." in s else s
        for s, t in zip(inputs, tensors, strict=True)
    ]
    if not arrow:
        letters = "".join(inputs)
        output = dots + "".join(
            sorted(c for c in set(letters) if letters.count(c) == 1 and c not in dots)
        )
    output = output.replace("...", dots)
    for s, t in zip(inputs, tensors, strict=True):
        if len(s) != t.ndim or not (s.isalpha() or s == ""):
            raise ShapeError(
                message("einsum", f"{s!r} for shape {t.shape}", "one letter for each axis")
            )
    if len(set(output)) != len(output) or not set(output) <= set("".join(inputs)):
        raise ShapeError(
            message("einsum", f"output {output!r}", "distinct letters of the operands")
        )
    return inputs, output


def _diagonals(t: Any, letters: str) -> tuple[Any, str]:
    """Repeated letters of one operand as its diagonal."""
    for letter in dict.fromkeys(letters):
        while letters.count(letter) > 1:
            a = letters.index(letter)
            b = letters.index(letter, a + 1)
            t = t.diagonal(0, a, b)
            letters = letters[:a] + letters[a + 1 : b] + letters[b + 1 :] + letter
    return t, letters


def _spread_to(t: Any, have: str, want: str) -> Any:
    """Axes in the order of `want`, with extent 1 for those missing."""
    t = t.permute(tuple(have.index(c) for c in want if c in have))
    sizes = iter(t.shape)
    return t.reshape(tuple(next(sizes) if c in have else 1 for c in want))


def _contract(
    a: Any, have: str, b: Any, wants: str, later: set[str], sizes: dict[str, int]
) -> tuple[Any, str]:
    """The product of two operands, summed over the letters that nobody needs later."""
    letters = have + "".join(c for c in wants if c not in have)
    drop = tuple(i for i, c in enumerate(letters) if c not in later)
    kind = product_type(dt.promote(a.dtype, b.dtype))
    wide = accumulator(kind) if kind.is_float else kind
    left = _spread_to(a, have, letters).cast(kind).cast(wide)
    product = left * _spread_to(b, wants, letters).cast(kind).cast(wide)
    node = graph.cast(graph.reduce(Op.ADD, product._operand(), drop), kind)
    return product._map(node), "".join(c for i, c in enumerate(letters) if i not in drop)


def _finish(t: Any, have: str, output: str) -> Any:
    drop = tuple(i for i, c in enumerate(have) if c not in output)
    if drop:
        kind = t.dtype
        t = t.sum(drop, dtype=kind)
    rest = [c for c in have if c in output]
    return t.permute(tuple(rest.index(c) for c in output)) if rest else t
