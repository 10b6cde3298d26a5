"""Module: what a part of a model can be asked. Layers derive from it; any object with Tensors works
too.

There is no registration: the parameters of a Module are the Tensors that `state.walk` finds in its
attributes, so assigning one is all it takes, and `super().__init__()` is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mygrad import capture
from mygrad.errors import DTypeError, ShapeError, message
from mygrad.helpers import Shape
from mygrad.nn import state
from mygrad.tensor import Tensor


class Module:
    """A part of a model: derive from it, make Tensors and Modules in `__init__`, define `forward`.

    >>> class Net(Module):
    ...     def __init__(self):
    ...         self.hidden, self.out = Linear(784, 128), Linear(128, 10)
    ...     def forward(self, x):
    ...         return self.out(self.hidden(x).relu())
    >>> Net().num_parameters()
    101770
    """

    _mode: bool | None = None  # what train() or eval() said
    _mode_epoch = 0  # the capture by `jit` inside of which they said it, 0 if outside
    _computed = False  # whether the initial values of parameters are in memory

    @property
    def training(self) -> bool:
        """Whether dropout drops and batch norm learns: what `train()` or `eval()` of this Module
        said last; until one of them is called, what `with Tensor.train():` says (not in
        training)."""
        if self._mode_epoch != capture.epoch():
            capture.depends_on(lambda: self._mode)  # a jitted function notices train() and eval()
        return Tensor.training if self._mode is None else self._mode

    @training.setter
    def training(self, mode: bool) -> None:
        self._mode, self._mode_epoch = mode, capture.epoch()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What calling the Module computes."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._computed:
            # parameters are made lazily, so that weights that are loaded first cost nothing; from
            # the first use on they are values, not random expressions to compute again and again
            self._computed = True
            if tensors := self.state_dict().values():
                Tensor.realize(*tensors)
        return self.forward(*args, **kwargs)

    def check_input(self, x: Tensor, fits: Callable[[Shape], bool], expected: str) -> None:
        """Refuse an input.

        Raises:
            DTypeError: it is no Tensor.
            ShapeError: its shape does not fit.
        """
        name = type(self).__name__
        if not isinstance(x, Tensor):
            got = f"input of type {type(x).__name__}"
            raise DTypeError(message(name, got, "a Tensor", "wrap it: Tensor(...)"))
        if not fits(x.shape):
            raise ShapeError(message(name, f"input {x.shape}", expected))

    # --- what is inside ---------------------------------------------------------------------------

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Names and Tensors that require gradients; a Tensor with two names comes once."""
        seen: set[int] = set()
        for name, tensor in self.state_dict().items():
            if state.is_parameter(tensor) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor

    def parameters(self) -> list[Tensor]:
        """The Tensors that require gradients, each once: what an optimiser takes."""
        return [tensor for _, tensor in self.named_parameters()]

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Names and Tensors that belong to the state and require no gradient."""
        return ((n, t) for n, t in self.state_dict().items() if not state.is_parameter(t))

    def buffers(self) -> list[Tensor]:
        """The Tensors that belong to the state and require no gradient, e.g. running statistics."""
        return list({id(t): t for _, t in self.named_buffers()}.values())

    def num_parameters(self) -> int:
        """How many numbers there are to learn."""
        return sum(p.numel() for p in self.parameters())

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """Every Module below and including this one (whose name is empty), each once."""
        yield "", self
        seen = {id(self)}
        for name, value in state.walk(self):
            if isinstance(value, Module) and id(value) not in seen:
                seen.add(id(value))
                yield name, value

    def modules(self) -> list[Module]:
        """Every Module below and including this one, each once."""
        return [module for _, module in self.named_modules()]

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The Modules directly inside this one, through lists, tuples and dicts too."""
        for name, value in state.walk(self, into=lambda v: not isinstance(v, Module)):
            if isinstance(value, Module):
                yield name, value

    def children(self) -> list[Module]:
        """The Modules directly inside this one."""
        return [module for _, module in self.named_children()]

    # --- state ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Every Tensor by name: parameters and buffers. The Tensors themselves, not copies."""
        return state.get_state_dict(self)

    def load_state_dict(self, values: Mapping[str, Any], strict: bool = True) -> None:
        """Assign values (Tensors or NumPy arrays) by name; see `state.load_state_dict`."""
        state.load_state_dict(self, values, strict)

    def train(self, mode: bool = True) -> Module:
        """Put this and every Module inside into training (or evaluation) mode."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Put this and every Module inside into evaluation mode."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.grad = None

    def to(self, device: str) -> Module:
        """Move every Tensor to `device`, in place: optimisers made before still hold them."""
        for tensor in self.state_dict().values():
            tensor.replace(tensor.detach().to(device))
        return self

    # --- printing ---------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """What `repr` says of this Module itself, e.g. "784, 10"."""
        return ""

    def __repr__(self) -> str:
        lines = [
            f"  ({name}): {child!r}".replace("\n", "\n  ") for name, child in self.named_children()
        ]
        own = self.extra_repr()
        if not lines:
            return f"{type(self).__name__}({own})"
        return "\n".join([f"{type(self).__name__}({own}", *lines, ")"])


class Sequential(Module):
    """Modules, or any functions of a Tensor, one after the other.

    >>> Sequential(Linear(784, 128), ReLU(), Linear(128, 10))
    """

    def __init__(self, *layers: Any) -> None:
        for i, layer in enumerate(layers):
            setattr(self, str(i), layer)  # so that names are "0.weight", as in PyTorch's files

    @property
    def layers(self) -> list[Any]:
        """The layers in order."""
        return [value for name, value in vars(self).items() if name.isdigit()]

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> Any:
        return self.layers[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.layers)
