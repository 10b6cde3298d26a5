"""Random numbers as expressions: Threefry-2x32 of (position, key).

Position i of a draw is encrypted under the draw's key (Salmon et al., "Parallel random numbers: as
easy as 1, 2, 3", SC 2011), so numbers need no memory, fuse into what reads them, and are the same
on every device. The key is a small buffer [seed, number of the draw, seed's high half]: under `jit`
every replay gets the next one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mygrad import capture, graph, realize
from mygrad import dtype as dt
from mygrad.dtype import DType
from mygrad.errors import DTypeError, ShapeError, message
from mygrad.graph import Node
from mygrad.helpers import Shape, prod
from mygrad.ops import Op
from mygrad.runtime import device as devices
from mygrad.tensor.creation import shape_of
from mygrad.tensor.nodes import (
    Array,
    DTypeLike,
    axis_names,
    check_integer,
    expand_node,
    is_scalar,
    reshape_node,
)
from mygrad.tensor.pooling import Pooling

if TYPE_CHECKING:
    from typing_extensions import Self

ROUNDS = 13  # passes every test of BigCrush, by the paper, whose default of 20 adds a margin
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA


class Generator:
    """The process's stream of keys."""

    def __init__(self) -> None:
        self.seed = int.from_bytes(os.urandom(8), "little")
        self.draws = 0

    def next_key(self) -> Array:
        """A key that was not given out since the last `manual_seed`."""
        self.draws += 1
        low, high = self.seed & 0xFFFFFFFF, self.seed >> 32
        return np.array(
            [low, (self.draws - 1) & 0xFFFFFFFF, high ^ ((self.draws - 1) >> 32)], np.uint32
        )


generator = Generator()


def threefry(
    counter: tuple[Node, Node], key: tuple[Node, Node], rounds: int = ROUNDS
) -> tuple[Node, Node]:
    """Threefry-2x32 of uint32 nodes of one shape."""

    def add(a: Node, b: Node) -> Node:
        return graph.alu(Op.ADD, a, b)

    def number(value: int) -> Node:
        return graph.const(value, dt.uint32, counter[0].shape)

    third = graph.alu(Op.XOR, graph.alu(Op.XOR, key[0], key[1]), number(_PARITY))
    keys = (*key, third)
    x, y = add(counter[0], keys[0]), add(counter[1], keys[1])
    for i in range(rounds):
        by = _ROTATIONS[i % 8]
        x = add(x, y)
        y = graph.alu(
            Op.OR, graph.alu(Op.SHL, y, number(by)), graph.alu(Op.SHR, y, number(32 - by))
        )
        y = graph.alu(Op.XOR, x, y)
        if i % 4 == 3:
            j = i // 4 + 1
            x, y = add(x, keys[j % 3]), add(add(y, keys[(j + 1) % 3]), number(j))
    return x, y


class Random(Pooling):
    """rand, randn, randint, dropout and relatives. `manual_seed` makes the numbers repeatable."""

    __slots__ = ()
    training: bool = False

    @staticmethod
    def manual_seed(seed: int = 0) -> None:
        """Start the stream of random numbers again: the same calls give the same numbers, on every
        device.

        Raises:
            DTypeError: the seed is no integer.
        """
        seed = check_integer("manual_seed", "seed", seed)
        generator.seed, generator.draws = seed % (1 << 64), 0

    # --- bits and uniform numbers ---

    @classmethod
    def _random_bits(cls, shape: Shape, device: str | None) -> tuple[Node, Node]:
        """Two uint32 nodes of random bits."""
        key = realize.from_numpy(generator.next_key(), dt.uint32, device)
        making = capture.current()
        if making is not None:
            making.fresh.append((key, generator.next_key))
        n = prod(shape)
        if n >= 1 << 32:
            raise ShapeError(
                message("random", f"{n} elements", "fewer than 2**32", "draw several tensors")
            )
        word = [expand_node(graph.move(Op.SHRINK, key, ((i, i + 1),)), (n,)) for i in range(3)]
        found = threefry((graph.iota(n, dt.uint32), word[2]), (word[0], word[1]))
        return reshape_node(found[0], shape), reshape_node(found[1], shape)

    @classmethod
    def _uniform(cls, bits: tuple[Node, Node], dtype: DType) -> Self:
        """Numbers in [0, 1): as many leading bits as the type's fraction holds, so that none rounds
        up to 1."""
        if dtype is dt.float64:
            high = graph.alu(Op.SHR, bits[0], graph.const(6, dt.uint32, bits[0].shape))
            low = graph.alu(Op.SHR, bits[1], graph.const(5, dt.uint32, bits[0].shape))
            return (
                cls._wrap(graph.cast(high, dtype)) * 2.0**27 + cls._wrap(graph.cast(low, dtype))
            ) * 2.0**-53
        digits = {dt.float16: 11, dt.bfloat16: 8, dt.float32: 24}[dtype]
        leading = graph.alu(Op.SHR, bits[0], graph.const(32 - digits, dt.uint32, bits[0].shape))
        return cls._wrap(graph.cast(leading, dtype)) * 2.0**-digits

    @classmethod
    def _draw(
        cls,
        make: Callable[[tuple[Node, Node], DType], Self],
        name: str,
        shape: tuple[Any, ...],
        dtype: DTypeLike | None,
        device: str | None,
        requires_grad: bool | None,
    ) -> Self:
        kind = dt.parse(dtype or dt.default_float)
        if not kind.is_float:
            raise DTypeError(message(name, kind.name, "a float type", "use randint"))
        place = devices.default() if device is None else devices.canonical(device)
        made = make(cls._random_bits(shape_of(name, shape), place), kind)
        if requires_grad is not None:
            made.requires_grad = requires_grad
        return made

    @classmethod
    def rand(
        cls,
        *shape: Any,
        dtype: DTypeLike | None = None,
        device: str | None = None,
        requires_grad: bool | None = None,
    ) -> Self:
        """Uniform numbers in [0, 1), float32 by default."""
        return cls._draw(cls._uniform, "rand", shape, dtype, device, requires_grad)

    @classmethod
    def uniform(
        cls,
        *shape: Any,
        low: float = 0.0,
        high: float = 1.0,
        dtype: DTypeLike | None = None,
        device: str | None = None,
        requires_grad: bool | None = None,
    ) -> Self:
        """Uniform numbers in [low, high)."""
        return cls._draw(
            lambda bits, kind: cls._uniform(bits, kind) * (high - low) + low,
            "uniform",
            shape,
            dtype,
            device,
            requires_grad,
        )

    @classmethod
    def randn(
        cls,
        *shape: Any,
        dtype: DTypeLike | None = None,
        device: str | None = None,
        requires_grad: bool | None = None,
    ) -> Self:
        """Normal numbers of mean 0 and variance 1, by Box and Muller: sqrt(-2 log u) sin(2 pi
        v)."""
        return cls._draw(cls._normal, "randn", shape, dtype, device, requires_grad)

    @classmethod
    def _normal(cls, bits: tuple[Node, Node], dtype: DType) -> Self:
        wide = dtype if dtype.itemsize >= 4 else dt.float32
        u = 1 - cls._uniform(bits, wide)  # in (0, 1]: the logarithm is finite
        if (
            wide is dt.float64
        ):  # both words are in u already: turn the second one's bits over for the angle
            turned = graph.alu(Op.MUL, bits[1], graph.const(0x9E3779B1, dt.uint32, bits[1].shape))
            v = cls._uniform((turned, bits[0]), wide)
        else:
            v = cls._uniform((bits[1], bits[0]), wide)
        return ((u.log() * -2).sqrt() * (v * (2 * math.pi)).sin()).cast(dtype)

    @classmethod
    def normal(
        cls,
        *shape: Any,
        mean: float = 0.0,
        std: float = 1.0,
        dtype: DTypeLike | None = None,
        device: str | None = None,
        requires_grad: bool | None = None,
    ) -> Self:
        """Normal numbers of the given mean and standard deviation."""
        return cls._draw(
            lambda bits, kind: cls._normal(bits, kind) * std + mean,
            "normal",
            shape,
            dtype,
            device,
            requires_grad,
        )

    @classmethod
    def randint(
        cls,
        *shape: Any,
        low: int = 0,
        high: int = 10,
        dtype: DTypeLike | None = None,
        device: str | None = None,
    ) -> Self:
        """Uniform integers in low <= i < high; int64 by default.

        The upper half of (32 random bits) * (high - low); for wider ranges 64 bits modulo the
        range.

        Raises:
            ShapeError: an empty range.
        """
        span = high - low
        if span <= 0 or span >= 1 << 63:
            raise ShapeError(message("randint", f"low {low}, high {high}", "low < high"))
        extents = shape_of("randint", shape)
        bits = cls._random_bits(extents, device or devices.default())
        wide = [graph.cast(b, dt.uint64) for b in bits]
        shift = graph.const(32, dt.uint64, extents)
        if span <= 1 << 32:
            node = graph.alu(
                Op.SHR, graph.alu(Op.MUL, wide[0], graph.const(span, dt.uint64, extents)), shift
            )
        else:
            node = graph.alu(Op.OR, graph.alu(Op.SHL, wide[0], shift), wide[1])
            node = graph.alu(Op.MOD, node, graph.const(span, dt.uint64, extents))
        return (cls._wrap(graph.cast(node, dt.int64)) + low).cast(dtype or dt.default_int)

    @classmethod
    def randperm(cls, n: int, dtype: DTypeLike | None = None, device: str | None = None) -> Self:
        """0, 1, .. n - 1 in random order; int64 by default."""
        bits = cls._random_bits(shape_of("randperm", (n,)), device or devices.default())
        return cls._wrap(graph.sort(bits[0], 0)).cast(dtype or dt.default_int)

    def rand_like(self, dtype: DTypeLike | None = None) -> Self:
        """`rand` of this tensor's shape, dtype and device."""
        return self.rand(self.shape, dtype=dtype or self.dtype, device=self.device)

    def randn_like(self, dtype: DTypeLike | None = None) -> Self:
        """`randn` of this tensor's shape, dtype and device."""
        return self.randn(self.shape, dtype=dtype or self.dtype, device=self.device)

    # --- initial weights ---

    @classmethod
    def scaled_uniform(cls, *shape: Any, **kwargs: Any) -> Self:
        """Uniform in +-1 / sqrt(number of elements)."""
        extents = shape_of("scaled_uniform", shape)
        bound = max(prod(extents), 1) ** -0.5
        return cls.uniform(extents, low=-bound, high=bound, **kwargs)

    @classmethod
    def glorot_uniform(cls, *shape: Any, **kwargs: Any) -> Self:
        """Uniform in +-sqrt(6 / (fan in + fan out)) for weights (out, in, ...) (Glorot and Bengio
        2010)."""
        extents, fan_in, fan_out = _fans("glorot_uniform", shape)
        bound = math.sqrt(6 / max(fan_in + fan_out, 1))
        return cls.uniform(extents, low=-bound, high=bound, **kwargs)

    @classmethod
    def glorot_normal(cls, *shape: Any, **kwargs: Any) -> Self:
        """Normal with variance 2 / (fan in + fan out)."""
        extents, fan_in, fan_out = _fans("glorot_normal", shape)
        return cls.normal(extents, std=math.sqrt(2 / max(fan_in + fan_out, 1)), **kwargs)

    @classmethod
    def kaiming_uniform(cls, *shape: Any, a: float = 0.0, **kwargs: Any) -> Self:
        """Uniform in +-sqrt(6 / ((1 + a^2) fan in)) for weights (out, in, ...) (He et al. 2015)."""
        extents, fan_in, _ = _fans("kaiming_uniform", shape)
        bound = math.sqrt(6 / ((1 + a * a) * max(fan_in, 1)))
        return cls.uniform(extents, low=-bound, high=bound, **kwargs)

    @classmethod
    def kaiming_normal(cls, *shape: Any, a: float = 0.0, **kwargs: Any) -> Self:
        """Normal with variance 2 / ((1 + a^2) fan in)."""
        extents, fan_in, _ = _fans("kaiming_normal", shape)
        return cls.normal(extents, std=math.sqrt(2 / ((1 + a * a) * max(fan_in, 1))), **kwargs)

    # --- chance ---

    def _chance(self, probability: float) -> Self:
        """True with the given probability, for each element: 32 random bits below probability *
        2^32."""
        bits = self._random_bits(self.shape, self.device)[0]
        threshold = min(int(probability * 2**32), 2**32 - 1)
        return self._wrap(graph.alu(Op.LT, bits, graph.const(threshold, dt.uint32, self.shape)))

    def dropout(self, p: float = 0.5, training: bool | None = None) -> Self:
        """Each element is 0 with probability p, else x / (1 - p), while training (`Tensor.training`
        by default).

        Raises:
            ShapeError: p outside of [0, 1].
        """
        if not is_scalar(p) or not 0 <= p <= 1:
            raise ShapeError(message("dropout", f"p = {p!r}", "0 <= p <= 1"))
        if not (self.training if training is None else training) or p == 0:
            return self
        if p == 1:
            return self * 0
        return self._chance(1 - p).where(self * (1 / (1 - p)), 0.0)

    def bernoulli(self) -> Self:
        """1 with this probability, else 0, for each element."""
        return (self._uniform(self._random_bits(self.shape, self.device), dt.float32) < self).cast(
            self.dtype
        )

    def multinomial(self, num_samples: int = 1, replacement: bool = False) -> Self:
        """Indices drawn with probabilities proportional to the last axis: (..., n) to (...,
        num_samples), int64.

        By Gumbel's trick: the greatest of log p - log(-log u) is a draw, the k greatest are k
        without replacement.

        Raises:
            ShapeError: more draws than elements without replacement.
        """
        if not self.ndim or (not replacement and num_samples > self.shape[-1]):
            raise ShapeError(
                message(
                    "multinomial",
                    f"{num_samples} draws from shape {self.shape}",
                    "at most as many as elements",
                    "pass replacement=True",
                )
            )
        scores = self.detach()._as_float().log()
        if replacement:
            scores = scores.unsqueeze(-2).expand(*self.shape[:-1], num_samples, self.shape[-1])
        u = self._uniform(self._random_bits(scores.shape, self.device), dt.float32) + 2.0**-25
        scores = scores - (-u.log()).log()
        return scores.argmax(-1) if replacement else scores.topk(num_samples, -1)[1]

    @axis_names
    def gumbel_softmax(self, tau: float = 1.0, hard: bool = False, axis: int = -1) -> Self:
        """A differentiable draw from logits (Jang et al. 2016); hard gives one-hot values and soft
        gradients."""
        u = self._uniform(self._random_bits(self.shape, self.device), dt.float32) + 2.0**-25
        soft = ((self - (-u.log()).log()) / tau).softmax(axis)
        if not hard:
            return soft
        best = soft.detach().max(axis, keepdim=True)
        return (soft.detach() == best).cast(soft.dtype) + soft - soft.detach()


def _fans(name: str, shape: tuple[Any, ...]) -> tuple[Shape, int, int]:
    extents = shape_of(name, shape)
    if not extents:
        raise ShapeError(message(name, "shape ()", "at least one axis"))
    window = prod(extents[2:])
    return extents, prod(extents[1:2]) * window, extents[0] * window
