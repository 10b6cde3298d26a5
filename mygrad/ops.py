"""The primitive vocabulary: every operation of the tensor graph and of kernel expressions.

    source   BUFFER CONST IOTA VARIABLE
    alu      NEG SQRT EXP LOG SIN TRUNC CAST BITCAST
             ADD MUL DIV MAX IDIV MOD LT EQ AND OR XOR SHL SHR   WHERE
    reduce   REDUCE(op, axes)          op is ADD, MUL or MAX; the axes disappear from the shape
    scan     SCAN(op, axis)            inclusive prefix combination, same shape
    move     RESHAPE PERMUTE EXPAND PAD SHRINK FLIP WINDOW UNWINDOW
    index    GATHER(axis)  SCATTER(axis, mode)  SORT(axis, descending, values)
    memory   CONTIGUOUS STORE COPY(device) JOIN
    call     HOST
    mark     DETACH(label)             identity through which no gradient flows; no work

Meaning where mathematics leaves a choice (every interpretation obeys these):

- Integer ADD, MUL, NEG wrap around. IDIV and MOD are for integers and floor, as in Python; division
  by zero gives 0 for both, and INT_MIN // -1 is INT_MIN.
- MAX of floats is NaN if either side is NaN. LT and EQ with NaN are false. On bool MAX is "or".
- ADD and MUL of bool are "or" and "and". NEG, SQRT, EXP, LOG, SIN, DIV and TRUNC: see `dtype rule`.
- SHL and SHR by the width or more give 0 (SHR of a negative number -1); SHR is arithmetic on signed
  integers. A negative shift count is taken as an unsigned number, hence as "too far".
- CAST float -> integer truncates, saturates at the ends of the range and maps NaN to 0. CAST to
  bool is `x != 0`. CAST integer -> narrower integer wraps. CAST float -> narrower float rounds to
  nearest even.
- float16 and bfloat16 arithmetic rounds after every operation.
- GATHER with an index outside of the axis reads 0; SCATTER with one drops the update.
  SCATTER visits updates in row-major order, so with mode "set" the last of two equal indices wins.
- PAD and UNWINDOW read 0 outside of their source.
"""

from __future__ import annotations

from enum import Enum, auto


class Op(Enum):
    """A primitive operation. Compared and hashed by identity."""

    # source
    BUFFER = auto()
    CONST = auto()
    IOTA = auto()
    VARIABLE = auto()
    # alu, one operand
    NEG = auto()
    SQRT = auto()
    EXP = auto()
    LOG = auto()
    SIN = auto()
    TRUNC = auto()
    CAST = auto()
    BITCAST = auto()
    # alu, two operands
    ADD = auto()
    MUL = auto()
    DIV = auto()
    MAX = auto()
    IDIV = auto()
    MOD = auto()
    LT = auto()
    EQ = auto()
    AND = auto()
    OR = auto()
    XOR = auto()
    SHL = auto()
    SHR = auto()
    # alu, three operands
    WHERE = auto()
    # combine along axes
    REDUCE = auto()
    SCAN = auto()
    # movement
    RESHAPE = auto()
    PERMUTE = auto()
    EXPAND = auto()
    PAD = auto()
    SHRINK = auto()
    FLIP = auto()
    WINDOW = auto()
    UNWINDOW = auto()
    # index
    GATHER = auto()
    SCATTER = auto()
    SORT = auto()
    # memory
    CONTIGUOUS = auto()
    STORE = auto()
    COPY = auto()
    JOIN = auto()
    # call
    HOST = auto()
    # a mark for autograd, dropped before scheduling
    DETACH = auto()
    # only inside kernel expressions (expr.py)
    AXIS = auto()
    PARAM = auto()
    LOAD = auto()
    VAR = auto()  # only inside statements (codegen/stmt.py)

    __hash__ = object.__hash__  # Enum hashes the name; identity is enough and faster

    def __repr__(self) -> str:
        return self.name


SOURCE = frozenset({Op.BUFFER, Op.CONST, Op.IOTA, Op.VARIABLE})
UNARY = frozenset({Op.NEG, Op.SQRT, Op.EXP, Op.LOG, Op.SIN, Op.TRUNC, Op.CAST, Op.BITCAST})
BINARY = frozenset(
    {
        Op.ADD,
        Op.MUL,
        Op.DIV,
        Op.MAX,
        Op.IDIV,
        Op.MOD,
        Op.LT,
        Op.EQ,
        Op.AND,
        Op.OR,
        Op.XOR,
        Op.SHL,
        Op.SHR,
    }
)
TERNARY = frozenset({Op.WHERE})
ALU = UNARY | BINARY | TERNARY
MOVEMENT = frozenset(
    {Op.RESHAPE, Op.PERMUTE, Op.EXPAND, Op.PAD, Op.SHRINK, Op.FLIP, Op.WINDOW, Op.UNWINDOW}
)
INDEX = frozenset({Op.GATHER, Op.SCATTER, Op.SORT})
MEMORY = frozenset({Op.CONTIGUOUS, Op.STORE, Op.COPY, Op.JOIN})
MARK = frozenset({Op.DETACH})
GRAPH = SOURCE | ALU | {Op.REDUCE, Op.SCAN, Op.HOST} | MOVEMENT | INDEX | MEMORY | MARK
COMBINE = frozenset({Op.ADD, Op.MUL, Op.MAX})  # the operators of REDUCE and SCAN
COMMUTATIVE = frozenset({Op.ADD, Op.MUL, Op.MAX, Op.EQ, Op.AND, Op.OR, Op.XOR})
TRANSCENDENTAL = frozenset({Op.EXP, Op.LOG, Op.SIN})
SCATTER_MODES = ("set", "add", "max", "min", "mul")

ARITY: dict[Op, int] = {**dict.fromkeys(UNARY, 1), **dict.fromkeys(BINARY, 2), Op.WHERE: 3}
