"""Frequency band modulation: every band of the input is scaled by a map that a convolution of the input gives."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peft_kernels.ops.fdconv import band_modulation

ACTIVATIONS = ("sigmoid", "tanh", "softmax")


class BandModulation(nn.Module):
    """The convolutions of all bands, as one.

    Args:
        channels: Ci.
        cuts: the bands' limits, ascending: the cut k keeps frequencies up to ``0.5 / k`` cycles a pixel.
        groups: the number of groups of channels that have a map of their own.
        kernel: size of the convolutions.
        activation: ``sigmoid`` (2σ), ``tanh`` (1 + tanh) or ``softmax`` (over the groups, times their number).
        lowest: whether what is below the last cut has a map too.
        masks: ``grid64`` or ``exact``, see `band_masks`.
    """

    def __init__(
        self,
        channels: int,
        cuts: tuple[float, ...],
        groups: int,
        kernel: int,
        activation: str,
        lowest: bool,
        masks: str,
    ) -> None:
        super().__init__()
        self.cuts, self.groups, self.activation, self.masks = cuts, groups, activation, masks
        bands = len(cuts) + lowest
        self.weight = nn.Parameter(torch.zeros(bands, groups, channels // groups, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(bands, groups))

    def maps(self, x: Tensor) -> Tensor:
        """The factors ``[B, bands, groups, H, W]``."""
        # As products with all channels, whose results are shifted and added: a convolution to so few maps is slow.
        weight = self.weight.to(x.dtype).flip(-1, -2).permute(1, 0, 3, 4, 2).flatten(1, 3)  # [groups, taps, channels]
        shares = torch.matmul(weight, x.unflatten(1, (self.groups, -1)).flatten(-2))
        kernel = self.weight.shape[-1]
        logits = F.fold(shares.flatten(1, 2), x.shape[-2:], kernel, padding=kernel // 2)
        logits = logits.unflatten(1, (self.groups, -1)).transpose(1, 2) + self.bias.to(logits.dtype)[..., None, None]
        if self.activation == "softmax":
            return self.groups * logits.softmax(2)
        return 2 * torch.sigmoid(2 * logits if self.activation == "tanh" else logits)

    def forward(self, x: Tensor) -> Tensor:
        """The feature map ``[B, Ci, H, W]`` with its bands rescaled, in its dtype."""
        return band_modulation(x, self.maps(x), self.cuts, self.masks).to(x.dtype)
