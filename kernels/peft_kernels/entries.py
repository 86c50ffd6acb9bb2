"""Single trained entries of a tensor: their values are a parameter, their places a buffer that is saved with it.

How many there are stands in the method's configuration, so that a buffer of the right size exists before a file is
read into it. Places that nobody has given yet are -1, and running with them is an error instead of a wrong result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from peft_kernels.frozen import frozen_forward, plain_convolution
from peft_kernels.ops import sparse_conv, sparse_linear
from peft_kernels.ops.sparse_grad.reference import changed_weight


class Entries(nn.Module):
    """``count`` entries of a tensor with ``index_limit`` entries.

    Args:
        count: how many.
        index_limit: size of the tensor; places are flat, row-major and ascending.
        places: where they are; ``None`` if a file will tell.
        replace: whether the values take the place of the tensor's entries (SaRA) or are added to them (SPT).
        values: what the values are at the start; 0 by default.

    Attributes:
        values: trained, float ``[count]``.
        index: the places, int32 ``[count]``.
        frozen: which values are not trained any longer, though they stay in force; ``None`` for none. Whoever sets it
            also keeps the optimiser from moving them, which decay and momentum do without a gradient.

    Raises:
        ValueError: the number of places is another, they are out of range, or do not ascend.
    """

    index: Tensor

    def __init__(
        self,
        count: int,
        index_limit: int,
        places: Int[Tensor, " count"] | None = None,
        replace: bool = False,
        values: Float[Tensor, " count"] | None = None,
    ) -> None:
        super().__init__()
        if index_limit > torch.iinfo(torch.int32).max:
            raise ValueError(f"places are kept in 32 bits; a tensor of {index_limit} entries is too large for them")
        self.index_limit, self.replace = index_limit, replace
        self.frozen: Bool[Tensor, " count"] | None = None
        if places is not None:
            if len(places) != count:
                raise ValueError(f"{count} places are needed; found {len(places)}")
            if count and not (places[0] >= 0 and places[-1] < index_limit and (places[1:] > places[:-1]).all()):
                raise ValueError(f"places must ascend from 0 to at most {index_limit - 1}")
        self.values = nn.Parameter(torch.zeros(count) if values is None else values)
        self.register_buffer("index", torch.full((count,), -1, dtype=torch.int32) if places is None else places.int())
        self.placed = places is not None or count == 0

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

    def in_force(self) -> Float[Tensor, " count"]:
        """The values; no gradient reaches the frozen ones."""
        if self.frozen is None:
            return self.values
        return torch.where(self.frozen.to(self.values.device), self.values.detach(), self.values)

    def summands(self, tensor: Float[Tensor, "*shape"]) -> Float[Tensor, " count"]:
        """What is added to the tensor's entries."""
        if not self.replace:
            return self.in_force()
        return self.in_force() - tensor.detach().reshape(-1).index_select(0, self.places())

    def summand(self, tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Zeros of the tensor's shape with the `summands` at their places, in the values' dtype."""
        zeros = torch.zeros(tensor.numel(), dtype=self.values.dtype, device=tensor.device)
        return zeros.index_add(0, self.places(), self.summands(tensor).to(zeros.dtype)).view(tensor.shape)

    def effective(self, tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The tensor with its entries changed, in the wider of both dtypes."""
        wide = torch.promote_types(tensor.dtype, self.values.dtype)
        return changed_weight(tensor.to(wide), self.places(), self.in_force().to(wide), self.replace)

    def extra_repr(self) -> str:
        return f"{len(self.index)} of {self.index_limit}"


def entries_forward(
    base: Any, x: Tensor, entries: Sequence[tuple[Entries, float]], bias: Tensor | None
) -> Float[Tensor, "..."]:
    """The linear layer or plain convolution ``base`` with single entries of its weight trained, as one operator.

    Args:
        base: a module of which `runs_entries` holds.
        x: its input.
        entries: of its weight, each with its strength; their changes add up.
        bias: what stands in the place of its bias.
    """
    if not entries:
        return frozen_forward(base, x, bias=bias)
    (only, scale), *more = entries
    replace = only.replace and scale == 1 and not more
    if replace:
        index, values = only.places(), only.in_force()
    else:
        index = torch.cat([part.places() for part, _ in entries])
        values = torch.cat(
            [s * part.summands(base.weight) if s != 1 else part.summands(base.weight) for part, s in entries]
        )
    if more:
        index, order = index.sort()
        values = values[order]
    if isinstance(base, nn.Linear):
        return sparse_linear(x, base.weight, index, values, bias, replace)
    geometry = base.stride, base.padding, base.dilation, base.groups
    return sparse_conv(x, base.weight, index, values, bias, *geometry, replace)


def runs_entries(base: Any, args: Sequence[Any], kwargs: Any) -> bool:
    """Whether this call of ``base`` can be made with `entries_forward`."""
    if len(args) != 1 or kwargs or base._forward_hooks or base._forward_pre_hooks:
        return False
    return type(base).forward is nn.Linear.forward or plain_convolution(base, args[0])
