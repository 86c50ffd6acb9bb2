"""Entries of small magnitude: where they are, how many, and the threshold that a wanted number has.

Tensors are read in chunks that fit the cache; no copy of a weight, and none of all weights together, is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy
import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 2**20
SAMPLE = 2**19  # magnitudes that tell about where a threshold lies; so many are sorted outright
_DIGIT = 16  # bits of a magnitude that one pass over the tensors settles


def below(tensor: Float[Tensor, "*shape"], threshold: float) -> Int[Tensor, " count"]:
    """The flat, row-major places of ``|w| < threshold``, ascending, int32; compared in the tensor's own dtype.

    NaN and infinity are never below.
    """
    places = [
        _places(abs(_comparable(part)) < threshold).add_(CHUNK * number).int()
        for number, part in enumerate(_chunks(tensor))
    ]
    return torch.cat(places) if places else torch.empty(0, dtype=torch.int32, device=tensor.device)


def count_below(tensor: Float[Tensor, "*shape"], threshold: float) -> int:
    """How many places `below` would give."""
    return sum(_count(abs(_comparable(part)) < threshold) for part in _chunks(tensor))


def threshold_for(tensors: Iterable[Float[Tensor, "..."]], count: int) -> float:
    """The threshold below which ``count`` entries of all tensors together lie; fewer where magnitudes are equal there.

    It is the magnitude number ``count + 1`` in ascending order. A random sample tells two magnitudes between which it
    lies; one pass over the tensors counts what is below them and sorts what is between. Where that fails (many equal
    magnitudes), histograms of their bits find it in as many passes as there are 16 bits.

    Raises:
        ValueError: there are not more than ``count`` entries, or those beyond are not finite.
    """
    tensors = list(tensors)
    entries = sum(tensor.numel() for tensor in tensors)
    if not 0 <= count < entries:
        raise ValueError(f"the count must be at least 0 and less than the {entries:,} entries there are; found {count}")
    wide = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    if entries <= SAMPLE:
        found = torch.cat([_magnitudes(tensor.detach().reshape(-1), wide).cpu() for tensor in tensors])
        threshold = found.kthvalue(count + 1).values.item()
    else:
        threshold = _between(tensors, count, wide, *_bracket(tensors, count / entries, wide))
        threshold = _by_bits(tensors, count, wide) if threshold is None else threshold
    if not math.isfinite(threshold):
        raise ValueError(f"fewer than {count:,} of the {entries:,} entries are finite numbers")
    return threshold


def smallest(tensors: Iterable[Float[Tensor, "..."]], count: int) -> tuple[float, list[Tensor], list[Tensor]]:
    """The `threshold_for` a count, and of each tensor the places `below` it and the values there.

    Large tensors of one dtype are read once: those below the upper one of the sample's two magnitudes are gathered, and
    the few of them that lie above the threshold left out again.
    """
    tensors = list(tensors)
    entries = sum(tensor.numel() for tensor in tensors)
    if entries > SAMPLE and 0 <= count < entries and len({tensor.dtype for tensor in tensors}) == 1:
        wide = torch.promote_types(tensors[0].dtype, torch.float32)
        low, high = _bracket(tensors, count / entries, wide)
        if math.isfinite(high):
            places = [below(tensor, high) for tensor in tensors]
            values = [values_at(*found) for found in zip(tensors, places, strict=True)]
            threshold = _between(values, count, wide, low, high)
            if threshold is not None:
                kept = [_places(abs(_comparable(found)) < threshold) for found in values]
                places, values = ([values_at(*of) for of in zip(all_, kept, strict=True)] for all_ in (places, values))
                return threshold, places, values
    threshold = threshold_for(tensors, count)
    places = [below(tensor, threshold) for tensor in tensors]
    return threshold, places, [values_at(*found) for found in zip(tensors, places, strict=True)]


def values_at(tensor: Tensor, places: Int[Tensor, " count"]) -> Tensor:
    """The tensor's values at flat places."""
    return tensor.detach().reshape(-1).index_select(0, places)


def _bracket(tensors: Sequence[Tensor], share: float, wide: torch.dtype) -> tuple[float, float]:
    """Magnitudes between which, five deviations of a sample to each side, the share of all has its end."""
    entries, drawn, generator = sum(tensor.numel() for tensor in tensors), [], torch.Generator()
    for tensor in tensors:
        places = torch.randint(tensor.numel(), (SAMPLE * tensor.numel() // entries,), generator=generator, device="cpu")
        drawn.append(_magnitudes(tensor.detach().reshape(-1)[places.to(tensor.device)], wide).cpu())
    sample = torch.cat(drawn).sort().values
    reach = 5 * math.sqrt(len(sample) * share * (1 - share)) + 5
    low, high = math.floor(len(sample) * share - reach), math.ceil(len(sample) * share + reach)
    return sample[low].item() if low >= 0 else -1.0, sample[high].item() if high < len(sample) else math.inf


def _between(tensors: Iterable[Tensor], count: int, wide: torch.dtype, low: float, high: float) -> float | None:
    """The threshold if it lies between the two magnitudes; ``None`` if it does not."""
    left, between = count, []
    for part in (part for tensor in tensors for part in _chunks(tensor)):
        found = _comparable(_magnitudes(part, wide))
        below_or_at = found <= low
        left -= _count(below_or_at)
        between.append(torch.as_tensor(found[(found < high) & ~below_or_at], device="cpu"))
    found = torch.cat(between)
    return found.kthvalue(left + 1).values.item() if 0 <= left < len(found) else None


def _by_bits(tensors: Iterable[Tensor], count: int, wide: torch.dtype) -> float:
    """The threshold from the bits of magnitudes, which are in the order of the numbers."""
    whole, bits = (torch.int64, 64) if wide == torch.float64 else (torch.int32, 32)
    prefix, left = 0, count
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        histogram = torch.zeros(2**_DIGIT, dtype=torch.long)
        for part in (part for tensor in tensors for part in _chunks(tensor)):
            code = _magnitudes(part, wide).view(whole)
            if shift < bits - _DIGIT:
                code = code[code >> (shift + _DIGIT) == prefix]
            histogram += torch.bincount((code >> shift) & (2**_DIGIT - 1), minlength=2**_DIGIT).cpu()
        ends = histogram.cumsum(0)
        digit = int(torch.searchsorted(ends, left, right=True))
        left -= int(ends[digit - 1]) if digit else 0
        prefix = prefix << _DIGIT | digit
    return torch.tensor(prefix, dtype=whole).view(wide).item()


def _magnitudes(values: Tensor, wide: torch.dtype) -> Tensor:
    return values.abs().to(wide)


def _comparable(values: Tensor) -> Any:
    """The numbers for numpy where it has their type: it compares and compresses several times faster than torch."""
    known = values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)
    return values.numpy() if known else values


def _count(mask: Any) -> int:
    return int(mask.sum() if isinstance(mask, Tensor) else numpy.count_nonzero(mask))


def _places(mask: Any) -> Int[Tensor, " count"]:
    return mask.nonzero().squeeze(1) if isinstance(mask, Tensor) else torch.from_numpy(numpy.flatnonzero(mask))


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    flat = tensor.detach().reshape(-1)
    return iter(flat.split(CHUNK)) if len(flat) else iter(())
