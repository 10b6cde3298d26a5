"""The user's API: `Tensor`, a lazy array, in families of methods.

    Base         making one, properties, values, part in gradients    base.py
    Conversion   cast, to, assign                                     conversion.py
    Creation     zeros, full, arange, eye, one_hot ...                creation.py
    Elementwise  operators, comparisons, rounding, where              elementwise.py
    Functions    exp, log, powers, hyperbolic functions               functions.py
    Special      erf, inverse trigonometric functions                 special.py
    Activation   relu, sigmoid, gelu ...                              activation.py
    Movement     reshape, permute, expand, split ...                  movement.py
    Joining      cat, stack, roll, pad                                joining.py
    Reduce       sum, max, var, softmax, argmax, cumsum ...           reduce.py
    Indexing     x[...], gather, scatter ...                          indexing.py
    Ordering     sort, topk, searchsorted, unique ...                 ordering.py
    Linear       matmul, einsum ...                                   linear.py
    Convolution  conv2d, conv_transpose2d ...                         convolution.py
    Pooling      max_pool2d, avg_pool2d, interpolate ...              pooling.py
    Random       rand, randn, dropout ...                             random.py
    Losses       layernorm, attention, cross_entropy ...              losses.py
    Gradient     backward, gradient, no_grad                          gradient.py

Each family stands on those above it, and uses nothing of those below. What they share is in
nodes.py (broadcasting, checks), data.py (from Python and NumPy data) and mode.py (switches, marks
of leaves).
"""

from mygrad import capture
from mygrad.tensor.gradient import Gradient, grad, value_and_grad
from mygrad.tensor.mode import autocast, mode


class Tensor(Gradient):
    """A lazy array: shape and number type are known, values are computed when they are read.

    >>> (Tensor([1.0, 2.0]) * 2 + 1).tolist()
    [3.0, 5.0]
    """

    __slots__ = ()


# what a jitted function is captured for
capture.switches.append(lambda: (Tensor.training, mode.gradients, mode.autocast))

__all__ = ["Tensor", "autocast", "grad", "value_and_grad"]
