"""The user's API: `Tensor`, a lazy array, in families of methods.

    Base         making one, properties, values, assignment          base.py
    Creation     zeros, full, arange, eye, one_hot ...                creation.py
    Elementwise  operators, comparisons, rounding, where              elementwise.py
    Functions    exp, log, powers, hyperbolic functions               functions.py
    Special      erf, inverse trigonometric functions                 special.py
    Activation   relu, sigmoid, gelu ...                              activation.py
    Movement     reshape, permute, pad, cat ...                       movement.py
    Reduce       sum, max, var, softmax, argmax, cumsum ...           reduce.py
    Indexing     x[...], gather, scatter, sort ...                    indexing.py
    Linear       matmul, einsum ...                                   linear.py
    Convolution  conv2d, pooling, interpolate                         convolution.py
    Random       rand, randn, dropout ...                             random.py
    Losses       layernorm, attention, cross_entropy ...              losses.py
    Gradient     backward, gradient, no_grad                          gradient.py

Each family stands on those above it, and uses nothing of those below.
"""

from mygrad import capture
from mygrad.tensor.gradient import Gradient, grad, value_and_grad
from mygrad.tensor.mode import mode


class Tensor(Gradient):
    """A lazy array: shape and number type are known, values are computed when they are read.

    >>> (Tensor([1.0, 2.0]) * 2 + 1).tolist()
    [3.0, 5.0]
    """

    __slots__ = ()


# what a jitted function is captured for
capture.switches.append(lambda: (Tensor.training, mode.gradients))

__all__ = ["Tensor", "grad", "value_and_grad"]
