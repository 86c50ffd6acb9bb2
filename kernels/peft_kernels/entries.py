"""Single trained entries of a tensor: their values are a parameter, their places a buffer that is saved with it.

How many there are stands in the method's configuration, so that a buffer of the right size exists before a file is
read into it. Places that nobody has given yet are -1, and running with them is an error instead of a wrong result.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Entries(nn.Module):
    """``count`` entries of a tensor with ``index_limit`` entries.

    Args:
        count: how many.
        index_limit: size of the tensor; places are flat, row-major and ascending.
        places: where they are; ``None`` if a file will tell.

    Attributes:
        values: trained, float ``[count]``, 0 at the start.
        index: the places, int32 ``[count]``.

    Raises:
        ValueError: the number of places is another, they are out of range, or do not ascend.
    """

    index: Tensor

    def __init__(self, count: int, index_limit: int, places: Int[Tensor, " count"] | None = None) -> None:
        super().__init__()
        if index_limit > torch.iinfo(torch.int32).max:
            raise ValueError(f"places are kept in 32 bits; a tensor of {index_limit} entries is too large for them")
        self.index_limit = index_limit
        self.values = nn.Parameter(torch.zeros(count))
        self.register_buffer("index", torch.full((count,), -1, dtype=torch.int32))
        self.placed = places is not None or count == 0
        if places is not None:
            if len(places) != count:
                raise ValueError(f"{count} places are needed; found {len(places)}")
            if count and (places.min() < 0 or places.max() >= index_limit or (places.diff() <= 0).any()):
                raise ValueError(f"places must ascend from 0 to at most {index_limit - 1}")
            self.index.copy_(places)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.placed = self.placed or f"{prefix}index" in state_dict

    def places(self) -> Int[Tensor, " count"]:
        """The places.

        Raises:
            RuntimeError: nobody has given them: the configuration was used without the file that belongs to it.
        """
        if not self.placed:
            if self.index.min() < 0:
                raise RuntimeError(
                    f"the places of {len(self.index)} trained entries are not known: a plan holds only how many there "
                    "are. Load the adapter that belongs to it, or make a new plan on data"
                )
            self.placed = True
        return self.index

    def summand(self, tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Zeros of the tensor's shape with the values at their places, in the values' dtype."""
        zeros = torch.zeros(tensor.numel(), dtype=self.values.dtype, device=tensor.device)
        return zeros.index_add(0, self.places(), self.values).view(tensor.shape)

    def extra_repr(self) -> str:
        return f"{len(self.index)} of {self.index_limit}"
