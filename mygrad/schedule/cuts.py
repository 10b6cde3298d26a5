"""What is cut off is not computed.

    SHRINK(REDUCE(x))  ->  REDUCE(SHRINK(x)), if nothing else reads the reduction

The gradient of a padded convolution is such a sum: it covers the padding, which the cut then drops.
Below the reduction the cut is only a part of the index.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mygrad import graph
from mygrad.graph import Node
from mygrad.ops import Op


def cut_early(roots: Sequence[Node]) -> list[Node]:
    """The roots with cuts below reductions; new nodes keep the user's line of the old ones."""
    order = graph.toposort(roots)
    readers = Counter(s for node in order for s in node.src)
    readers.update(roots)
    done: dict[Node, Node] = {}
    for node in order:
        src = tuple(done[s] for s in node.src)
        result = node if src == node.src else graph.rebuild(node, src)
        if node.op is Op.SHRINK and readers[node.src[0]] == 1 and result.op is Op.SHRINK:
            result = _cut_operand(result)
        if result is not node and result.op is not Op.BUFFER:
            result.location = node.location
        done[node] = result
    return [done[root] for root in roots]


def _cut_operand(node: Node) -> Node:
    """A part of a reduction as the reduction of a part."""
    reduced = node.src[0]
    if reduced.op is not Op.REDUCE or _has_stride(reduced.src[0]):
        return node
    x, (op, axes) = reduced.src[0], reduced.arg
    kept = iter(node.arg)
    ends = tuple((0, n) if a in axes else next(kept) for a, n in enumerate(x.shape))
    return graph.reduce(op, graph.move(Op.SHRINK, x, ends), axes)


def _has_stride(x: Node) -> bool:
    """Whether places are divided by a stride: phases that start at 0 can be told apart, shifted
    ones cannot."""
    return x.op is Op.UNWINDOW and x.arg[2] > 1
