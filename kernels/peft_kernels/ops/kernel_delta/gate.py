"""The gate of a delta, a factor on it that is constant in the backward pass: S = delta * g.

With the threshold t: magnitude g = |delta| if |delta| > t; soft g = max(|delta| - t, 0); hard g = 1 if |delta| > t.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from .spec import DeltaSpec


def gate_(delta: Float[Tensor, "rows in"], t: Float[Tensor, ""], spec: DeltaSpec, g: Float[Tensor, "rows in"]) -> None:
    """Write the gate g of a delta, and 0 in its place in delta where it is dropped, so that S = delta * g."""
    if spec.gate == "none":
        g.fill_(1)
    elif spec.gate == "soft":
        torch.abs(delta, out=g).sub_(t).clamp_min_(0)
    else:
        if delta.is_cpu:
            torch.ops.aten.hardshrink.out(delta, t.item(), out=delta)
        else:
            delta.mul_(delta.abs() > t)
        torch.abs(delta, out=g)
        if spec.gate == "hard":
            g.sign_()
