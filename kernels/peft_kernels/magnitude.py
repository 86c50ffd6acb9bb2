"""Entries of small magnitude: where they are, how many, and the threshold that a wanted number has.

Tensors are read in chunks that fit the cache; no copy of a weight, and none of all weights together, is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 2**20
_DIGIT = 16  # bits of a magnitude that one pass over the tensors settles


def below(tensor: Float[Tensor, "*shape"], threshold: float) -> Int[Tensor, " count"]:
    """The flat, row-major places of ``|w| < threshold``, ascending, int32; compared in the tensor's own dtype.

    NaN and infinity are never below.
    """
    places = [
        (part.abs() < threshold).nonzero().squeeze(1).add_(CHUNK * number).int()
        for number, part in enumerate(_chunks(tensor))
    ]
    return torch.cat(places) if places else torch.empty(0, dtype=torch.int32, device=tensor.device)


def count_below(tensor: Float[Tensor, "*shape"], threshold: float) -> int:
    """How many places `below` would give."""
    return sum(int((part.abs() < threshold).count_nonzero()) for part in _chunks(tensor))


def threshold_for(tensors: Iterable[Float[Tensor, "..."]], count: int) -> float:
    """The threshold below which ``count`` entries of all tensors together lie; fewer where magnitudes are equal there.

    It is the magnitude number ``count + 1`` in ascending order, found from the bits of its floating-point form: these
    are in the order of the numbers, so that one histogram over the tensors settles 16 of them.

    Raises:
        ValueError: there are not more than ``count`` entries, or those beyond are not finite.
    """
    tensors = list(tensors)
    entries = sum(tensor.numel() for tensor in tensors)
    if not 0 <= count < entries:
        raise ValueError(f"the count must be at least 0 and less than the {entries:,} entries there are; found {count}")
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    wide, whole, bits = (torch.float64, torch.int64, 64) if double else (torch.float32, torch.int32, 32)
    prefix, left = 0, count
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        histogram = torch.zeros(2**_DIGIT, dtype=torch.long)
        for part in (part for tensor in tensors for part in _chunks(tensor)):
            code = part.abs().to(wide).view(whole)
            if shift < bits - _DIGIT:
                code = code[code >> (shift + _DIGIT) == prefix]
            histogram += torch.bincount((code >> shift) & (2**_DIGIT - 1), minlength=2**_DIGIT).cpu()
        ends = histogram.cumsum(0)
        digit = int(torch.searchsorted(ends, left, right=True))
        left -= int(ends[digit - 1]) if digit else 0
        prefix = prefix << _DIGIT | digit
    found = torch.tensor(prefix, dtype=whole).view(wide)
    if not found.isfinite():
        raise ValueError(f"fewer than {count:,} of the {entries:,} entries are finite numbers")
    return found.item()


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    flat = tensor.detach().reshape(-1)
    return iter(flat.split(CHUNK)) if len(flat) else iter(())
