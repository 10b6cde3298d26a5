"""Statements and expressions run on the cpu device, for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np

from mygrad.codegen.llvm import render
from mygrad.codegen.stmt import Function, Loop, Put, Stmt, Tile, TileAxis
from mygrad.dtype import DType
from mygrad.expr import Expr, axis, const
from mygrad.program import Launch, Program
from mygrad.runtime.cpu import CPU


@cache
def device() -> CPU:
    return CPU()


def program(function: Function) -> Program:
    """The rendered function; parallel if it has a parallel loop."""
    parallel = any(isinstance(s, Loop) and s.kind == "parallel" for s in function.body)
    return Program(
        function.name,
        "llvm",
        render(function, device().target),
        tuple(range(len(function.buffers))),
        function.params,
        parallel,
    )


def run(
    function: Function,
    arrays: Sequence[np.ndarray],
    params: Mapping[str, int] | None = None,
    cpu: CPU | None = None,
) -> list[np.ndarray]:
    """The storage arrays after the function."""
    cpu, made = cpu or device(), program(function)
    (executable,) = cpu.load([(made, cpu.compile(made))])
    memories = [cpu.allocate(a.nbytes) for a in arrays]
    for memory, array in zip(memories, arrays, strict=True):
        cpu.write(memory, np.ascontiguousarray(array))
    launch = Launch(
        executable, tuple((n, 0) for n in range(len(arrays))), function.params, made.parallel
    )
    cpu.sequence([launch]).run(memories, params or {})
    results = [np.empty_like(a) for a in arrays]
    for memory, result in zip(memories, results, strict=True):
        cpu.read(memory, result)
        cpu.release(memory)
    return results


def elementwise(
    value: Callable[[Expr], Expr],
    inputs: Sequence[np.ndarray],
    dtypes: Sequence[DType],
    result: DType,
    lanes: int,
) -> np.ndarray:
    """`value(i)` for every element i, by vectors of `lanes` (0: one by one) and a masked
    remainder."""
    return elementwise_all([value], inputs, dtypes, [result], lanes)[0]


def elementwise_all(
    values: Sequence[Callable[[Expr], Expr]],
    inputs: Sequence[np.ndarray],
    dtypes: Sequence[DType],
    results: Sequence[DType],
    lanes: int,
) -> list[np.ndarray]:
    """Several values, in one function."""
    size, out = inputs[0].size, len(inputs)
    buffers = (*((d, size, False) for d in dtypes), *((d, size, True) for d in results))

    def puts(at: Expr) -> tuple[Put, ...]:
        return tuple(Put(out + n, at, value(at)) for n, value in enumerate(values))

    body: list[Stmt] = []
    if lanes:
        rows, lane = axis(0, size // lanes + 1), axis(1, lanes)
        stores, whole, rest = puts(rows * lanes + lane), size // lanes, size % lanes
        body.append(
            Loop(
                rows,
                const(0),
                const(whole),
                "seq",
                (Tile((TileAxis(lane, lanes, lanes, "vector"),), stores),),
            )
        )
        if rest:
            body.append(
                Loop(
                    rows,
                    const(whole),
                    const(whole + 1),
                    "seq",
                    (Tile((TileAxis(lane, lanes, rest, "vector"),), stores),),
                )
            )
    else:
        at = axis(0, size)
        body.append(Loop(at, const(0), const(size), "seq", puts(at)))
    function = Function("test_elementwise", buffers, (), tuple(body))
    return run(function, [*inputs, *(np.zeros(size, d.storage) for d in results)])[out:]
