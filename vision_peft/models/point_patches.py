"""From points to tokens: patches around farthest points, and the small PointNet that reads each of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peft_kernels.ops.point_sets import farthest_points, gathered, greedy_order, grouped
from peft_kernels.ops.point_sets.farthest import ORIGIN_THRESHOLD


class Grouping(nn.Module):
    """Patches of the ``group_size`` points nearest to ``num_groups`` farthest points, relative to these.

    Args:
        num_groups: G, the number of patches.
        group_size: k, the points of each.
        origin_threshold: squared norm up to which a point is no centre, as in the libraries of all checkpoints.
        chained: put the patches into PointGPT's order, each next to its nearest one.
    """

    def __init__(
        self,
        num_groups: int,
        group_size: int,
        origin_threshold: float | None = ORIGIN_THRESHOLD,
        chained: bool = False,
    ) -> None:
        super().__init__()
        self.num_groups, self.group_size = num_groups, group_size
        self.origin_threshold, self.chained = origin_threshold, chained

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Patches ``[B, G, k, 3]`` and their centres ``[B, G, 3]`` of clouds ``[B, N, 3]``.

        Raises:
            ValueError: clouds of another shape, of values that are not finite, or of too few points.
        """
        centers = gathered(points, farthest_points(points, self.num_groups, self.origin_threshold))
        if self.chained:
            centers = gathered(centers, greedy_order(centers))
        return grouped(points, centers, self.group_size)[0], centers

    def extra_repr(self) -> str:
        return f"num_groups={self.num_groups}, group_size={self.group_size}"


class PatchEncoder(nn.Module):
    """A PointNet over each patch: ``f = conv(x)``, ``token = max conv([max f ‖ f])``, all convolutions of one point.

    Its convolutions run as matrix products over points; of the second stage's first one, the half that reads the
    patch's maximum is computed once a patch and not once a point: a quarter of all its multiplications less.

    Args:
        embed_dim: C, the width of a token.
        widths: of the first stage; its last one is the width of ``f``, and the second stage is twice as wide.
    """

    def __init__(self, embed_dim: int, widths: tuple[int, ...] = (128, 256)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *widths[:-1]), widths, strict=True):
            layers += [nn.Conv1d(before, after, 1), nn.BatchNorm1d(after), nn.ReLU()]
        self.first_conv = nn.Sequential(*layers[:-2])
        wide = 2 * widths[-1]
        self.second_conv = nn.Sequential(
            nn.Conv1d(wide, wide, 1), nn.BatchNorm1d(wide), nn.ReLU(), nn.Conv1d(wide, embed_dim, 1)
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Tokens ``[B, G, C]`` of patches ``[B, G, k, 3]``."""
        batch, groups, size, _ = patches.shape
        x = patches.reshape(-1, 3)
        for layer in self.first_conv:
            x = on_rows(layer, x)
        mix, *rest = self.second_conv
        x = x.view(-1, size, x.shape[-1])
        whole = x.amax(1)
        if isinstance(mix, nn.Conv1d):
            of_max, of_point = mix.weight.squeeze(-1).chunk(2, 1)
            x = (F.linear(x, of_point) + F.linear(whole, of_max, mix.bias)[:, None]).flatten(0, 1)
        else:  # adapted: what it does to its input is its own affair
            x = on_rows(mix, torch.cat([whole[:, None].expand_as(x), x], -1).flatten(0, 1))
        for layer in rest:
            x = on_rows(layer, x)
        return x.view(batch * groups, size, -1).amax(1).view(batch, groups, -1)


def on_rows(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer`` on points as rows ``[R, C]``; an adapted convolution is called as one, ``[1, C, R]``."""
    if isinstance(layer, nn.Conv1d):
        return F.linear(x, layer.weight.squeeze(-1), layer.bias)
    inner = layer
    while (deeper := getattr(inner, "base_layer", getattr(inner, "original_module", None))) is not None:
        inner = deeper
    return layer(x.mT[None])[0].mT if isinstance(inner, nn.Conv1d) else layer(x)


def sine_positions(centers: Tensor, dim: int) -> Tensor:
    """PointGPT's positions ``[B, G, dim]`` of centres ``[B, G, 3]``: ``sin 2πx, cos 2πx, ...`` for each axis, then 0.

    All frequencies are equal, since the released code's temperature ends up as 1; its checkpoints expect that.
    """
    pairs = dim // 3 // 2
    angle = centers * (2 * torch.pi)
    wave = torch.stack([angle.sin(), angle.cos()], -1)  # [B, G, 3, 2]
    return F.pad(wave.repeat(1, 1, 1, pairs).flatten(2), (0, dim - 6 * pairs))
