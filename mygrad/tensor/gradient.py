"""Gradients of tensors: backward, gradient, grad, value_and_grad.

All of them hand the graph to `autograd.gradient`. What is done here is to find the leaves, by the
marks that operations put where they read one, and to look through the values that were computed on
the way (see base.py).
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mygrad import capture, graph
from mygrad.autograd.gradient import gradient as gradient_nodes
from mygrad.errors import DTypeError, GradientError, ShapeError, message
from mygrad.graph import Node
from mygrad.ops import Op
from mygrad.tensor.base import Base, check_carries
from mygrad.tensor.losses import Losses
from mygrad.tensor.mode import Mark, Switch, differentiated, enable_grad, mode, no_grad
from mygrad.tensor.nodes import cast_node

if TYPE_CHECKING:
    from typing_extensions import Self


class Gradient(Losses):
    """backward and gradient; the switches no_grad, enable_grad and train."""

    __slots__ = ()

    @staticmethod
    def no_grad() -> Switch:
        """`with Tensor.no_grad():` or `@Tensor.no_grad()`: results made inside carry no
        gradient."""
        return no_grad()

    @staticmethod
    def enable_grad() -> Switch:
        """`with Tensor.enable_grad():` inside of no_grad: gradients again."""
        return enable_grad()

    @classmethod
    def train(cls, value: bool = True) -> Switch:
        """`with Tensor.train():` sets `Tensor.training`: dropout drops, batch norm learns."""
        return Switch(cls, "training", value)

    def backward(self, gradient: Self | None = None, retain_graph: bool = True) -> Self:
        """Add the gradient of this tensor to `.grad` of every leaf that it depends on; returns the
        tensor itself.

        Args:
            gradient: the gradient of this tensor; 1 for a single element.
            retain_graph: without effect; a graph can be used as often as wanted.

        >>> x = Tensor([3.0], requires_grad=True); (x * x).sum().backward(); x.grad.tolist()
        [6.0]

        Raises:
            GradientError: it carries no gradient, or has many elements and no gradient is given.
        """
        check_carries("backward", self)
        seed = self._seed(gradient)
        root, computed = _look_through([self._operand()])
        marks = [n for n in graph.toposort(root) if n.op is Op.DETACH and n.arg is not None]
        wanted = [(n, n.arg.tensor()) for n in marks] + [
            (node, mark.tensor()) for node, mark, _ in computed
        ]
        wanted = [(n, tensor) for n, tensor in wanted if tensor is not None]
        found = gradient_nodes(root, [seed], [n for n, _ in wanted])
        for (_, tensor), node in zip(wanted, _restore(found, computed), strict=True):
            if node is not None:
                tensor._add_gradient(graph.detach(node))
        if capture.current() is None:
            differentiated.append(weakref.ref(self))
        return self

    def _seed(self, given: Base | None) -> Node | None:
        if given is None:
            if self.numel() != 1:
                raise GradientError(
                    message(
                        "backward",
                        f"a tensor of shape {self.shape}",
                        "one element",
                        "reduce it with .sum() or .mean(), or pass gradient=",
                    )
                )
            return None
        given = self._lift(given)
        if given.shape != self.shape:
            raise ShapeError(
                message("backward", f"a gradient of shape {given.shape}", f"{self.shape}")
            )
        return cast_node(given._operand(), self.dtype)

    def _add_gradient(self, node: Node) -> None:
        if self.grad is None:
            self.grad = self._wrap(node)  # type: ignore[assignment]
        else:  # the same object, so that whoever watches it sees the change
            self.grad.node = graph.alu(Op.ADD, self.grad.node, node)

    def gradient(
        self, *targets: Base, gradient: Self | None = None, create_graph: bool = False
    ) -> list[Self]:
        """The gradients of this tensor with respect to leaves (or values with retain_grad), without
        touching `.grad`; zeros where it does not depend on one. With create_graph they can be
        differentiated again.

        Raises:
            GradientError: a target that carries no gradient.
        """
        check_carries("gradient", self)
        for target in targets:
            check_carries("gradient", target)
        root, computed = _look_through([self._operand()])
        places = [_look_through([t._operand()])[0][0] for t in targets]
        found = _restore(gradient_nodes(root, [self._seed(gradient)], places), computed)
        zeros = [graph.const(0, t.dtype, t.shape) for t in targets]
        nodes = [z if node is None else node for node, z in zip(found, zeros, strict=True)]
        return [self._wrap(n, True) if create_graph else self._wrap(graph.detach(n)) for n in nodes]


# --- marks ----------------------------------------------------------------------------------------

Computed = list[tuple[Node, Mark, Node]]  # (expression, mark, the value computed from it)


def _origin(node: Node) -> Node | None:
    return node.arg.origin if node.op is Op.DETACH and node.arg is not None else None


def _look_through(roots: Sequence[Node]) -> tuple[list[Node], Computed]:
    """The graph with every computed value replaced by the expression it came from."""
    if not any(_origin(node) for node in graph.toposort(roots)):
        return list(roots), []
    done: dict[Node, Node] = {}
    computed: Computed = []
    work = list(reversed(roots))
    while work:
        node = work[-1]
        origin = _origin(node)
        src = node.src if origin is None else (origin,)
        missing = [s for s in src if s not in done]
        if missing and node not in done:
            work += reversed(missing)
            continue
        work.pop()
        if node in done:
            continue
        new = tuple(done[s] for s in src)
        if origin is not None:
            done[node] = new[0]
            computed.append((new[0], node.arg, node.src[0]))
        else:
            done[node] = node if new == src else graph.rebuild(node, new)
    return [done[root] for root in roots], computed


def _restore(nodes: Sequence[Node | None], computed: Computed) -> list[Node | None]:
    """Use the computed values again where their expressions occur."""
    if not computed:
        return list(nodes)
    known = {expression: value for expression, _, value in computed if value.op is Op.BUFFER}
    present = [n for n in nodes if n is not None]
    changed = iter(graph.substitute(present, known))
    return [None if n is None else next(changed) for n in nodes]


# --- functions ------------------------------------------------------------------------------------


def value_and_grad(
    function: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """A function that returns `(value, gradients)` of `function`, which gives one float element.

    Args:
        argnums: the position of the argument to differentiate by (the gradient then is a tensor),
            or several (a tuple). The arguments may be tensors or lists, tuples and dicts of them.
        has_aux: `function` returns (value, more); so does the result: ((value, more), gradients).

    >>> value_and_grad(lambda x: (x * x).sum())(Tensor([3.0]))
    (Tensor((), float32, cpu), Tensor((1,), float32, cpu))

    Gradients can be differentiated again, by nesting.

    Raises:
        GradientError: the value is not a single float.
        DTypeError: an argument to differentiate by that is not a float tensor.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
        leaves: list[tuple[Any, Any]] = []  # (argument, the leaf that stands for it)
        call = list(args)
        for n in numbers:
            call[n] = _map_tensors(args[n], lambda t: _stand_in(t, leaves))
        with enable_grad():
            result = function(*call, **kwargs)
            value = result[0] if has_aux else result
            if not isinstance(value, Base):
                raise GradientError(
                    message("grad", f"a result of type {type(value).__name__}", "a tensor")
                )
            if value.requires_grad:
                found = value.gradient(*(leaf for _, leaf in leaves), create_graph=True)  # type: ignore[attr-defined]
            else:
                found = [leaf.zeros_like() for _, leaf in leaves]
        back = {graph.detach(leaf.node, leaf._mark): old._operand() for old, leaf in leaves}
        found = [_settle(g, back) for g in found]
        result = _map_tensors(result, lambda t: _settle(t, back))
        gradients = iter(found)
        shaped = tuple(_map_tensors(args[n], lambda _: next(gradients)) for n in numbers)
        return result, shaped[0] if isinstance(argnums, int) else shaped

    return run


def grad(
    function: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """A function that returns the gradient of `function`; see `value_and_grad`.

    >>> grad(grad(lambda x: x**3))(Tensor(2.0)).item()
    12.0
    """
    both = value_and_grad(function, argnums, has_aux)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        value, gradients = both(*args, **kwargs)
        return (gradients, value[1]) if has_aux else gradients

    return run


def _stand_in(tensor: Any, leaves: list[tuple[Any, Any]]) -> Any:
    """A leaf with the tensor's value."""
    if not tensor.dtype.is_float:
        raise DTypeError(message("grad", f"an argument of {tensor.dtype.name}", "a float tensor"))
    leaf = tensor._wrap(tensor.node)
    leaf.requires_grad = True
    leaves.append((tensor, leaf))
    return leaf


def _settle(tensor: Any, back: dict[Node, Node]) -> Any:
    """The tensor with the arguments in place of the leaves that stood for them."""
    with enable_grad():
        (node,) = graph.substitute([tensor._operand()], back)
    return tensor._wrap(node if mode.gradients else graph.detach(node), _depends_on_leaf(node))


def _depends_on_leaf(root: Node) -> bool:
    """Whether a gradient can flow from the node to a leaf: one that carries none must not keep its
    graph."""
    depends: set[Node] = set()
    for node in graph.toposort([root]):
        if node.op is Op.DETACH:
            if node.arg is not None:
                depends.add(node)
        elif node.dtype.is_float and any(s in depends for s in node.src):
            depends.add(node)
    return root in depends


def _map_tensors(tree: Any, function: Callable[[Any], Any]) -> Any:
    """The same lists, tuples and dicts with the function applied to every tensor."""
    if isinstance(tree, Base):
        return function(tree)
    if isinstance(tree, dict):
        return {key: _map_tensors(value, function) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        items: Iterable[Any] = (_map_tensors(item, function) for item in tree)
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return tree
