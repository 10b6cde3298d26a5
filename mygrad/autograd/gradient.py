"""Reverse accumulation: from the gradients of outputs to the gradients of inputs."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mygrad import graph
from mygrad.autograd.vjp import has_rule, pull_back
from mygrad.errors import GradientError, message
from mygrad.graph import Node, toposort
from mygrad.ops import Op


def gradient(
    outputs: Sequence[Node],
    seeds: Sequence[Node | None],
    inputs: Sequence[Node],
    stop: Collection[Node] = (),
) -> list[Node | None]:
    """The gradient of `sum(seed * output)` with respect to each input: a node of the input's shape
    and dtype, or None where no output depends on the input.

    A seed of None is 1 and needs an output of one element. Gradients do not flow past the nodes in
    `stop` (nor to their operands). Contributions are added in one fixed order, from the outputs
    back.

    >>> x = graph.buffer(memory, (3,))
    >>> gradient([graph.reduce(Op.ADD, graph.alu(Op.EXP, x), (0,))], [None], [x])
    [<EXP (3,) float32>]

    Raises:
        GradientError: an output is not a float, has many elements and no seed, or a seed of another
            shape; or a HOST function on the way has no gradient.
    """
    if len(outputs) != len(seeds):
        raise GradientError(
            message(
                "gradient",
                f"{len(seeds)} seeds for {len(outputs)} outputs",
                "one seed for each output",
            )
        )
    flows = _flows(toposort(outputs), set(inputs), set(stop))
    found: dict[Node, Node] = {}
    for output, seed in zip(outputs, seeds, strict=True):
        start = _seed(output, seed)
        if output in flows:
            _accumulate(found, output, start)
    try:
        for node, wanted in reversed(flows.items()):
            if node in found and any(wanted):
                graph.attribute_to(node.location)
                for s, contribution in zip(
                    node.src, pull_back(node, found[node], wanted), strict=True
                ):
                    if contribution is not None:
                        _accumulate(found, s, contribution)
    finally:
        graph.attribute_to(None)
    return [found.get(node) for node in inputs]


def _flows(
    order: Sequence[Node], inputs: Collection[Node], stop: Collection[Node]
) -> dict[Node, tuple[bool, ...]]:
    """The nodes on the way from inputs to outputs, operands first, and for each which of its
    operands are on the way too."""
    flows: dict[Node, tuple[bool, ...]] = {}
    for node in order:
        if not node.dtype.is_float:
            continue
        wanted: tuple[bool, ...] = ()
        if node not in stop and any(s in flows for s in node.src):
            rules = has_rule(node)
            wanted = tuple(s in flows and rule for s, rule in zip(node.src, rules, strict=True))
        if any(wanted) or node in inputs:
            flows[node] = wanted
    return flows


def _accumulate(found: dict[Node, Node], node: Node, contribution: Node) -> None:
    before = found.get(node)
    found[node] = contribution if before is None else graph.alu(Op.ADD, before, contribution)


def _seed(output: Node, seed: Node | None) -> Node:
    if not output.dtype.is_float:
        raise GradientError(
            message(
                "gradient",
                f"an output of type {output.dtype.name}",
                "a float",
                "only floats have gradients; cast before the computation",
            )
        )
    if seed is None:
        if output.size != 1:
            raise GradientError(
                message(
                    "gradient",
                    f"an output of shape {output.shape} without a seed",
                    "one element, or a seed of the output's shape",
                    "reduce it with .sum() or .mean(), or pass a gradient",
                )
            )
        return graph.const(1, output.dtype, output.shape)
    if seed.shape != output.shape:
        raise GradientError(
            message(
                "gradient",
                f"a seed of shape {seed.shape}",
                f"the output's shape {output.shape}",
                "expand or reduce the seed",
            )
        )
    return graph.cast(seed, output.dtype)
