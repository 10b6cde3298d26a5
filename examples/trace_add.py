"""Follow `2 + 3`, then a small matrix product, from the Python line to the number: the front door.

    python examples/trace_add.py                 every stage, printed and checked
    python examples/trace_add.py --json FILE     also what was found, for other programs

Each function below is one stage. It prints what the stage makes, in the language of that stage, and
checks what makes it right. `Tensor.numpy()` does all of this in one call; here it is done by hand,
with the functions that the driver (mygrad/realize.py) calls. Read it beside ARCHITECTURE.md.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import write_json

from mygrad import Tensor, codegen, graph, interpret, kernel, plan, realize
from mygrad.codegen import stmt
from mygrad.codegen.actions import Action
from mygrad.codegen.analysis import default_actions
from mygrad.config import context
from mygrad.graph import Node
from mygrad.kernel import Kernel
from mygrad.ops import Op
from mygrad.program import Buffer, Launch, Program
from mygrad.runtime import device as devices
from mygrad.schedule.build import Builder
from mygrad.schedule.homes import Homes
from mygrad.schedule.schedule import schedule
from mygrad.schedule.simplify import simplify
from mygrad.schedule.split import split_sums
from mygrad.schedule.steps import Schedule

Array = np.ndarray[Any, Any]
DEVICE = "cpu"
SHOWN = 18  # lines of a long text
checked: list[str] = []


# --- printing and checking ------------------------------------------------------------------------


def title(text: str) -> None:
    print(f"\n{'=' * 100}\n{text}\n{'=' * 100}")


def stage(name: str, what: str) -> None:
    print(f"\n--- {name}: {what}")


def show(text: object, lines: int = SHOWN) -> None:
    """Print a text, indented; of a long one the beginning."""
    rows = str(text).splitlines()
    for row in rows[:lines]:
        print(f"    {row[:140]}{' ...' if len(row) > 140 else ''}")
    if len(rows) > lines:
        print(f"    ... and {len(rows) - lines} lines more")


def show_source(source: str) -> None:
    """Print the beginning of a function and, of a long one, what is around its first product."""
    rows = [row for row in source.splitlines() if " = alloca " not in row]
    show("\n".join(rows), 16)
    first = next((i for i, row in enumerate(rows) if re.search("fma|fmul", row)), 0)
    if first > 16:
        show("\n".join(["", *rows[first - 3 : first + 4]]))


def check(claim: str, holds: object) -> None:
    """Say what must be so, and stop if it is not."""
    assert holds, f"not so: {claim}"
    checked.append(claim)
    print(f"    ok: {claim}")


def same_bits(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# --- the stages -----------------------------------------------------------------------------------


def to_graph(tensor: Tensor) -> Node:
    """1 and 2. A Tensor is a handle of a graph node; operators only add nodes."""
    stage("1 Tensor", "what the user says (mygrad/tensor/)")
    show(f"shape {tensor.shape}, {tensor.dtype.name}, on {tensor.device}")
    stage("2 Node", "the lazy graph of whole-array primitives (mygrad/graph.py)")
    show(graph.text([tensor.node]))
    node = tensor.node
    check("nothing is computed yet: the node is an operation", node.op is not Op.BUFFER)
    check("the node knows the line that asked for it", node.location.file == __file__)
    check("building it again gives the same node", graph.rebuild(node, node.src) is node)
    return node


def to_simple(node: Node) -> Node:
    """3. Rules that keep every value bit for bit: constants fold, what does nothing vanishes."""
    stage("3 simplify", "a smaller graph of the same value (mygrad/schedule/simplify.py)")
    (simple,) = simplify([node])
    before, after = (len(graph.toposort([n])) for n in (node, simple))
    show("as before" if simple is node else graph.text([simple]))
    check(f"{before} nodes became {after}", after <= before)
    check("no sum is so long that it is split (split.py)", split_sums([simple], "cpu") == [simple])
    check("shape and type are the same", (simple.shape, simple.dtype) == (node.shape, node.dtype))
    return simple


def to_homes(node: Node) -> Homes:
    """4. Every value gets one home: inline, a register, or memory. Memory means a kernel."""
    stage("4 homes", "where does each value live? (mygrad/schedule/homes.py)")
    homes = Homes([node])
    for number, value in enumerate(homes.order):
        show(f"%{number} {value.op.name:8} {home_of(homes, value)}")
    check("one kernel computes everything", len(homes.groups) == 1)
    return homes


def home_of(homes: Homes, value: Node) -> str:
    """The home of a value, in words."""
    if value.op is Op.BUFFER:
        return "memory: it is there already"
    if value in homes.group_of:
        return f"memory, stored by a kernel: {homes.group_of[value].reason}"
    if value.op is Op.REDUCE:
        return "register: summed up inside the loops of what reads it"
    return "inline: it becomes an index or a part of the expression that reads it"


def to_kernel(homes: Homes) -> tuple[Kernel, tuple[Node, ...]]:
    """5. A group becomes one expression per output, over the axes of a loop nest."""
    stage("5 Kernel", "one fused loop nest (mygrad/schedule/build.py, mygrad/kernel.py)")
    built = Builder(homes, homes.groups[0]).build()
    made = built.kernel
    show(kernel.text(made))
    show(f"why: {made.reason}; {made.bytes} bytes, {made.flops} flops; {made.location}")
    check("the kernel is well formed", kernel.verify(made) is None)  # else an InternalError
    loaded = [e.arg for e in made.nodes if e.op is Op.LOAD]
    held = [n for n in homes.order if n.op is Op.BUFFER]
    check(f"it loads {len(held)} arrays, each once", len(loaded) == len(set(loaded)) == len(held))
    return made, built.arguments


def to_actions(made: Kernel) -> tuple[Action, ...]:
    """6. How the loops run: data, apart from what they compute."""
    stage("6 actions", "how the loops run on this machine (mygrad/codegen/analysis.py)")
    target = devices.get(DEVICE).target
    taken = default_actions(made, target)
    show("\n".join(map(str, taken)) or "none: there is no loop")
    scheduled = codegen.schedule(made, target, taken)
    show(f"loops, outermost first:\n{scheduled}" if scheduled.loops else "no loops")
    points = dict.fromkeys({p.root for p in scheduled.loops}, 1)
    for loop in scheduled.loops:
        points[loop.root] *= loop.extent
    check("the loops cover every axis", all(n >= root.arg[1] for root, n in points.items()))
    check("the computation is as it was", scheduled.kernel is made)
    return taken


def to_statements(made: Kernel, taken: Sequence[Action]) -> stmt.Function:
    """7. Loops, tiles, accumulators and stores, as every renderer reads them."""
    stage("7 Stmt", "loops made explicit (mygrad/codegen/lower.py, stmt.py)")
    function = codegen.lower(codegen.schedule(made, devices.get(DEVICE).target, taken))
    show(stmt.text(function), 30)
    check("every name is bound where it is used", stmt.verify(function) is None)
    return function


def to_program(made: Kernel, function: stmt.Function) -> Program:
    """8. Text for LLVM, and with it all that a launch must know."""
    target = devices.get(DEVICE).target
    stage("8 source", f"text for {target.language} (mygrad/codegen/llvm*.py)")
    program = codegen.compile(made, target)
    show_source(program.source)
    rendered = codegen.RENDERERS[target.language](function, target)
    check("codegen.compile makes the same text in one call", program.source == rendered)
    stage("9 Program", "all that code generators and runtimes share (mygrad/program.py)")
    show(f"entry {program.entry}, arguments {program.buffers}, parallel {program.parallel}")
    show(f"names of the passes: {', '.join(name for name, _ in program.stages)}")
    return program


def machine_code(program: Program) -> bytes:
    """The object file, and how it reads."""
    stage("machine code", "what LLVM makes of it (mygrad/runtime/llvm.py)")
    runtime = devices.get(DEVICE)
    binary = runtime.compile(program)
    lines = [line for line in runtime.disassemble(program).splitlines() if line.startswith("\t")]
    code = [line.strip() for line in lines if not line.strip().startswith(".")]
    show(f"{len(binary)} bytes of object file, {len(code)} instructions, the last:")
    show("\n".join(code[-3:]))
    check("the compiler gives an object file", binary and code)
    return binary


def launch(program: Program, binary: bytes, inputs: Sequence[Buffer], size: int) -> Array:
    """10. Memory for the result, one native call, and the numbers out of the memory."""
    stage("10 memory and launch", "(mygrad/runtime/base.py, cpu.py)")
    runtime = devices.get(DEVICE)
    (executable,) = runtime.load([(program, binary)])
    order = [*inputs, None]  # slots: the arrays in the order of the kernel's arguments, the result
    memories = [runtime.allocate(4 * size) if b is None else b.memory for b in order]
    places = tuple((slot, 0) for slot in program.buffers)
    show(f"{len(memories)} arrays, the last of {4 * size} bytes for the result")
    sequence = runtime.sequence([Launch(executable, places, program.params, program.parallel)])
    sequence.run(memories, {})
    runtime.synchronize()
    values = np.empty(size, np.float32)
    runtime.read(memories[-1], values)
    runtime.release(memories[-1])
    show(f"{values[:8]}{' ...' if size > 8 else ''}")
    return values


def other_answers(tensor: Tensor, by_hand: Array, tolerance: float) -> dict[str, Array]:
    """11. The same value by three other ways, one of them the one that users take."""
    stage("11 the number", "four ways to it")
    node = tensor.node
    answers = {
        "the interpreter of graphs (mygrad/interpret.py)": interpret.evaluate(node, read),
        "the interpreter of kernels (device reference)": on_reference(node),
        "Tensor.numpy()": tensor.numpy(),
    }
    for name, values in answers.items():
        error = float(np.max(np.abs(values - by_hand), initial=0.0))
        show(f"{name:50} {values.ravel()[:4]}, farthest from the launch above: {error:.2g}")
        check(f"{name} agrees", values.shape == by_hand.shape and error <= tolerance)
    check("and the driver ran this very program", same_bits(answers["Tensor.numpy()"], by_hand))
    return answers


def read(memory: Buffer) -> Array:
    """The stored elements of a buffer."""
    out = np.empty(memory.size, memory.dtype.storage)
    devices.get(memory.device).read(memory.memory, out)
    return out


def on_reference(node: Node) -> Array:
    """The value of a graph on the device whose kernels NumPy interprets."""
    mapping = {
        n: realize.from_numpy(read(n.arg).reshape(n.shape), device="reference")
        for n in graph.toposort([node])
        if n.op is Op.BUFFER
    }
    return realize.to_numpy(graph.substitute([node], mapping)[0])


# --- the three traces -----------------------------------------------------------------------------


@dataclass
class Trace:
    """What is left of a trace: the kernel, its arguments, its schedule actions and the answer."""

    made: Kernel
    inputs: list[Buffer]
    taken: tuple[Action, ...]
    answer: Array


def fold() -> float:
    """2 + 3 written with literals: the simplifier adds, at compile time, and no kernel does."""
    title("2 + 3, of two literals: folded before there is a kernel")
    node = to_graph(Tensor(2.0) + Tensor(3.0))
    simple = to_simple(node)
    check("what is left is the constant 5.0", (simple.op, simple.arg) == (Op.CONST, 5.0))
    (only,) = plan(Tensor(2.0) + Tensor(3.0)).kernels
    show(only.text)
    check("so the kernel adds nothing; it writes down 5.0", only.flops == 0)
    return float((Tensor(2.0) + Tensor(3.0)).item())


def follow(tensor: Tensor, tolerance: float = 0.0) -> Trace:
    """One tensor through every layer."""
    node = to_graph(tensor)
    homes = to_homes(to_simple(node))
    made, arguments = to_kernel(homes)
    taken = to_actions(made)
    program = to_program(made, to_statements(made, taken))
    binary = machine_code(program)
    inputs = [n.arg for n in arguments if n.op is Op.BUFFER]
    check("the last argument is the result", arguments[-1] is homes.groups[0].root)
    values = launch(program, binary, inputs, node.size).reshape(node.shape)
    whole = schedule([node], DEVICE)
    show_plan(whole, tensor)
    check("schedule() makes the same kernel in one call", whole.steps[0].what == made)
    other_answers(tensor, values, tolerance)
    return Trace(made, inputs, taken, values)


def show_plan(whole: Schedule, tensor: Tensor) -> None:
    """The plan that the driver makes: steps in order, and their memory."""
    stage("the plan", "what mygrad.plan(tensor) prints (mygrad/explain.py)")
    table = plan(tensor)
    show(table)
    check("the table has the steps of the schedule", len(table.kernels) == len(whole.steps))
    check("and knows the memory before it runs", table.peak_bytes == whole.peak_bytes > 0)


def run_plainly(trace: Trace) -> Array:
    """The same kernel without any schedule action: another order of the same work."""
    stage("the same kernel, no actions", "algorithm and schedule are apart")
    runtime = devices.get(DEVICE)
    scheduled = codegen.compile(trace.made, runtime.target)
    plain = codegen.compile(trace.made, runtime.target, actions=())
    show(dict(plain.stages)["lower"])
    check("its text is another one", plain.source != scheduled.source)
    values = launch(plain, runtime.compile(plain), trace.inputs, trace.answer.size)
    return values.reshape(trace.answer.shape)


def add() -> Trace:
    """2 + 3 of two numbers in memory: now there is a kernel."""
    title("2 + 3, of two numbers in memory")
    two, three = (Tensor(np.array(n, np.float32)) for n in (2, 3))
    trace = follow(two + three)
    check("it is one addition", trace.made.flops == 1)
    check("2 + 3 is 5", trace.answer == 5.0)
    return trace


def multiply(seed: int) -> Trace:
    """A matrix product of ragged sizes, and a relu in the same kernel."""
    title("relu(a @ b), a of 13 x 7, b of 7 x 21: nothing is a multiple of a vector")
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((13, 7), (7, 21)))
    trace = follow((Tensor(a) @ Tensor(b)).relu(), tolerance=1e-5)
    work = 2 * 13 * 21 * 7 + 13 * 21
    check(f"multiplications, additions and relu: {work} flops", trace.made.flops == work)
    (store,) = trace.made.stores
    check("the relu is around the sum, in one store", store.value.op is Op.MAX)
    check("and the sum stays in registers", store.value.src[0].op is Op.REDUCE)
    check("the answer is NumPy's", np.allclose(trace.answer, np.maximum(a @ b, 0), atol=1e-5))
    check("and so without actions", np.allclose(run_plainly(trace), trace.answer, atol=1e-5))
    return trace


def options() -> argparse.Namespace:
    made = argparse.ArgumentParser(
        description="Follow 2 + 3 and a matrix product through every layer.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--seed", type=int, default=0, help="seed of the matrices")
    made.add_argument("--json", type=Path, default=None, metavar="FILE", help="write results here")
    return made.parse_args()


def main() -> None:
    args = options()
    with context(MYGRAD_DEVICE=DEVICE, DEBUG=0):
        folded, added, product = fold(), add(), multiply(args.seed)
    print(f"\nAll {len(checked)} checks hold. 2 + 3 = {float(added.answer):g}")
    kernels = {
        name: {"kernel": kernel.text(t.made), "actions": [str(a) for a in t.taken]}
        | {"flops": t.made.flops, "bytes": t.made.bytes}
        for name, t in (("add", added), ("matmul", product))
    }
    results = {"checks": len(checked), "folded": folded, "added": float(added.answer)}
    results |= {"product_sum": float(product.answer.sum()), "seed": args.seed, "kernels": kernels}
    write_json(args.json, results)


if __name__ == "__main__":
    main()
