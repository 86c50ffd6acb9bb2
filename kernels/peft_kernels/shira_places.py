"""Where PEFT's SHiRA trains, drawn without a permutation of all entries of every weight, which takes it minutes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def random_places(base_layer: nn.Module, r: int, random_seed: int | None = None, **kwargs: Any) -> Tensor:
    """A mask, on the CPU, of ``r (out + in)`` entries of the weight; every choice of them is as likely.

    The signature is that of `ShiraConfig.mask_fn`; as there, no seed means always the same one.
    """
    weight = base_layer.weight
    assert isinstance(weight, Tensor)
    shape = weight.shape
    total = shape.numel()
    count = min(r * sum(shape), total)  # more are refused by PEFT
    generator, here = torch.Generator(), torch.device("cpu")  # whatever the default, which may hold no values (meta)
    if random_seed is not None:
        generator.manual_seed(random_seed)
    mask = torch.zeros(total, dtype=torch.bool, device=here)
    if 2 * count > total:
        mask[torch.randperm(total, generator=generator, device=here)[:count]] = True
    while (left := count - int(mask.sum())) > 0:
        mask[torch.randint(total, (left,), generator=generator, device=here)] = True
    return mask.view(shape)
