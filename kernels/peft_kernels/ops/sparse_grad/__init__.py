"""Linear and convolution in which single entries of a frozen weight are trained: ``y = f(x; W + scatter(I, δ))``.

`reference` is the formula; `linear` and `conv` are the operators that run.
"""

from .conv import sparse_conv
from .linear import sparse_linear

__all__ = ["sparse_conv", "sparse_linear"]
