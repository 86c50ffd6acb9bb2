"""Random masks for dropout and drop-path, from 16 random bits an entry.

torch draws a Bernoulli entry in some 6 ns on one CPU core, a 64-bit word in some 4 ns: a word serves four entries. The
probability is a multiple of 2^-16, and the factor that makes up for it belongs to that multiple, so nothing is biased.
"""

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Bool
from torch import Tensor

_LEVELS = 2**16


def keep_mask(
    shape: Sequence[int], p: float, device: torch.device | str = "cpu"
) -> tuple[Bool[Tensor, "*shape"], float]:
    """True where an entry is kept, which each is by itself with probability 1 - p; and 1 / (1 - p).

    p is rounded to a multiple of 2^-16. Cost: 2 random bytes an entry, from torch's generator of the device.

    Raises:
        ValueError: p is not in [0, 1).
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"p must lie in [0, 1), found {p}")
    dropped = min(round(p * _LEVELS), _LEVELS - 1)
    entries = prod(shape)
    words = torch.randint(-(2**63), 2**63 - 1, ((entries + 3) // 4,), device=device)
    levels = words.view(torch.int16)[:entries].view(tuple(shape))
    return levels >= dropped - _LEVELS // 2, _LEVELS / (_LEVELS - dropped)
