"""Words of the C family: types, literals and operations, by the templates of a dialect.

`Words` knows a dialect and which of its helper functions were used; it knows nothing of tiles.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from string import Template
from typing import Any

import numpy as np

from mygrad import dtype as dt
from mygrad.codegen.dialects import Dialect, Helper
from mygrad.dtype import DType
from mygrad.errors import InternalError
from mygrad.ops import Op

_ROUNDED = frozenset({Op.ADD, Op.MUL, Op.DIV, Op.SQRT, Op.EXP, Op.LOG, Op.SIN, Op.CAST})


@dataclass(frozen=True)
class Text:
    """A C expression; `lanes` is 1 for a scalar."""

    text: str
    lanes: int = 1


class Words:
    """How values of each type are written in a dialect."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.helpers: dict[str, str] = {}  # name -> definition, in an order that C accepts
        self.uses_double = False

    # --- templates ------------------------------------------------------------------------------

    def ctype(self, dtype: DType, lanes: int = 1) -> str:
        self.uses_double |= dtype is dt.float64
        return self.dialect.types[dtype] + (str(lanes) if lanes > 1 else "")

    def fill(self, template: str, dtype: DType, lanes: int, **texts: str) -> str:
        """A template of the dialect for values of `dtype`."""
        n = str(lanes) if lanes > 1 else ""
        unsigned = self.dialect.unsigned[dtype]
        if lanes == 1 and dtype.itemsize < 4:  # C would promote to int, whose overflow is undefined
            unsigned = self.dialect.unsigned[dt.uint32]
        mask = self.dialect.types[
            {1: dt.int8, 2: dt.int16, 4: dt.int32, 8: dt.int64}[
                4 if dtype in (dt.float16, dt.bfloat16) else dtype.itemsize
            ]
        ]
        filled = Template(template).substitute(
            texts, T=self.ctype(dtype, lanes), U=unsigned + n, M=mask + n, n=n, bits=str(dtype.bits)
        )
        return re.sub(r"@(\w+)", lambda found: self.helper(found[1], dtype, lanes), filled)

    def helper(self, name: str, dtype: DType, lanes: int) -> str:
        """The name of a helper function for `dtype`; defines it at its first use."""
        full = f"{name}_{self.ctype(dtype, lanes)}"
        if full not in self.helpers:
            text = (
                self.typedef(name, full)
                if name in self.dialect.typedefs
                else self.function_text(self.dialect.helpers[name], name, full, dtype, lanes)
            )
            text = self.fill(text, dtype, lanes)  # defines what it uses first
            self.helpers[full] = text
        return full

    def typedef(self, name: str, full: str) -> str:
        return f"{self.dialect.typedefs[name]} {full};"

    def function_text(self, helper: Helper, name: str, full: str, dtype: DType, lanes: int) -> str:
        body = helper.scalar if lanes == 1 else helper.vector
        letters = "abc"[: helper.parameters]
        if not body:
            scalar = self.helper(name, dtype, 1)
            parts = [
                f"{scalar}({', '.join(f'{x}.s{lane(i)}' for x in letters)})" for i in range(lanes)
            ]
            body = f"return ($T)({', '.join(parts)});"
        parameters = ", ".join(f"{helper.parameter_type} {x}" for x in letters)
        return f"static inline {helper.result_type} {full}({parameters}) {{\n    {body}\n}}"

    # --- literals -------------------------------------------------------------------------------

    def literal(self, value: Any, dtype: DType) -> str:
        if dtype.is_float:
            return self.float_literal(float(value), dtype)
        suffix = ("u" if dtype.kind == "u" else "") + ("L" if dtype.itemsize == 8 else "")
        if value == -(2**63):  # the positive number would not be a long
            return "(-9223372036854775807L - 1)"
        if dtype.itemsize < 4:
            return f"(({self.ctype(dtype)}){int(value)})"
        return f"({value}{suffix})" if value < 0 else f"{value}{suffix}"

    def float_literal(self, value: float, dtype: DType) -> str:
        with np.errstate(all="ignore"):
            rounded = dt.from_storage(dt.to_storage(np.asarray(value), dtype), dtype)[()]
        if np.isnan(rounded) or np.isinf(rounded):
            text = "NAN" if np.isnan(rounded) else "INFINITY" if rounded > 0 else "(-INFINITY)"
            return f"({self.ctype(dtype)}){text}" if dtype is dt.float64 else text
        text = repr(float(rounded)) if dtype is dt.float64 else str(np.float32(rounded)) + "f"
        return f"({text})" if text.startswith("-") else text

    def splat(self, value: Text, dtype: DType, lanes: int) -> str:
        """The text with as many lanes."""
        if value.lanes == lanes:
            return value.text
        return f"({self.ctype(dtype, lanes)})({bare(value.text)})"

    # --- operations -----------------------------------------------------------------------------

    def operation(self, op: Op, operand: DType, dtype: DType, texts: list[str], lanes: int) -> str:
        """One operation of the dialect's table on texts with `lanes` lanes."""
        rows = self.dialect.scalar if lanes == 1 else self.dialect.vector
        row = rows.get((op, operand.kind)) or rows.get((op, "i" if operand.kind == "u" else "?"))
        if row is None:
            raise InternalError(f"cstyle: {op.name} is not an operation of {operand.name}")
        return self.fill(row, dtype, lanes, **dict(zip("abc", texts, strict=False)))

    def rounded(self, op: Op, text: str, dtype: DType, lanes: int) -> str:
        """Arithmetic of narrow floats happens in float and rounds after every operation."""
        if dtype not in (dt.float16, dt.bfloat16) or op not in _ROUNDED:
            return text
        return self.fill(f"@round_{dtype.name}({bare(text)})", dtype, lanes)

    def cast(self, text: str, source: DType, dtype: DType, lanes: int) -> str:
        if source is dt.float64 and dtype is dt.float16:  # by way of float it would round twice
            return self.fill("@double_to_float16($a)", dtype, lanes, a=text)
        if self.ctype(source) == self.ctype(dtype) and dtype is not dt.bool_:
            return text
        kinds = source.kind.replace("u", "i"), dtype.kind.replace("u", "i")
        return self.fill(
            self.dialect.casts[kinds[0], kinds[1], lanes > 1],
            dtype,
            lanes,
            a=text,
            A=self.ctype(source),
        )

    def bitcast(self, text: str, source: DType, dtype: DType, lanes: int) -> str:
        bits = dt.uint16 if source in (dt.float16, dt.bfloat16) else source
        if source is dt.bool_ and lanes == 1:  # a comparison is an int
            text = f"({self.ctype(source)}){text}"
        if bits is not source:
            text = self.fill(f"@{source.name}_bits($a)", source, lanes, a=text)
        if dtype in (dt.float16, dt.bfloat16):
            text = self.fill(self.dialect.bits, dt.uint16, lanes, a=text)
            return self.fill(f"@{dtype.name}_value($a)", dtype, lanes, a=text)
        if dtype is dt.bool_:
            return self.cast(text, source, dtype, lanes)
        return self.fill(self.dialect.bits, dtype, lanes, a=text)


def lane(k: int) -> str:
    return "0123456789abcdef"[k]


def pick(value: Text, k: int) -> str:
    """One lane of a vector that has a name."""
    return value.text if value.lanes == 1 else f"{value.text}.s{lane(k)}"


def bare(text: str) -> str:
    """The text without parentheses around all of it."""
    if not text.startswith("("):
        return text
    depth = 0
    for position, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[1:-1] if position == len(text) - 1 else text
    return text
