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
    found = _Cotangents()
    for output, seed in zip(outputs, seeds, strict=True):
        start = _seed(output, seed)
        if output in flows:
            found.add(output, start)
    try:
        for node, wanted in reversed(flows.items()):
            cotangents = found.parts(node) if any(wanted) else []
            if cotangents:  # the line of a node is looked up when it is asked for
                graph.attribute_to(node.where)
            for cotangent in cotangents:
                for s, part in zip(node.src, pull_back(node, cotangent, wanted), strict=True):
                    if part is not None:
                        found.add(s, part)
        return [found.total(node) for node in inputs]
    finally:
        graph.attribute_to(None)


class _Cotangents:
    """What has arrived at each node, added up in order of arrival.

    Outer products that arrive at a broadcast are kept apart: they have more elements than what they
    are made of, and than the sum over them that follows, so that adding them first would take
    memory (a weight of a recurrent network meets one at each time).
    """

    def __init__(self) -> None:
        self.sums: dict[Node, Node] = {}
        self.products: dict[Node, list[Node]] = {}

    def add(self, node: Node, part: Node) -> None:
        """One more contribution to a node."""
        if node.op is Op.EXPAND and part.op is Op.MUL and any(s.op is Op.EXPAND for s in part.src):
            self.products.setdefault(node, []).append(part)
        else:
            before = self.sums.get(node)
            self.sums[node] = part if before is None else graph.alu(Op.ADD, before, part)

    def parts(self, node: Node) -> list[Node]:
        """What is to be pulled back through a node, one by one."""
        total = self.sums.get(node)
        return self.products.get(node, []) + ([] if total is None else [total])

    def total(self, node: Node) -> Node | None:
        """Everything that arrived, None if that is nothing."""
        parts = self.parts(node)
        for part in parts[1:]:
            parts[0] = graph.alu(Op.ADD, parts[0], part)
        return parts[0] if parts else None


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
