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
        weight, bias = (t.to(x.dtype).transpose(0, 1).flatten(0, 1) for t in (self.weight, self.bias))
        logits = F.conv2d(x, weight, bias, padding=self.weight.shape[-1] // 2, groups=self.groups)
        logits = logits.unflatten(1, (self.groups, -1)).transpose(1, 2)
        if self.activation == "softmax":
            return self.groups * logits.softmax(2)
        return 2 * torch.sigmoid(2 * logits if self.activation == "tanh" else logits)

    def forward(self, x: Tensor) -> Tensor:
        """The feature map ``[B, Ci, H, W]`` with its bands rescaled, in its dtype."""
        return band_modulation(x, self.maps(x), self.cuts, self.masks).to(x.dtype)
