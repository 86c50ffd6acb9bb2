"""One map of all branches' maps, on the finest grid, and the levels of a pyramid made of it."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Permute

GROUPS = 32
MergeKind = Literal["classification", "stage", "detection"]


class Merge(nn.Module):
    """Sum of all branches' maps, each brought to one width and resized to the finest grid, times a learned scalar.

    ``classification``: group norm; linear, another norm for all but the first. ``stage``, of one depth of convolutional
    branches: norm and ReLU, after a 3×3 convolution for all but the first. ``detection``: twice 3×3 convolution, norm,
    ReLU for all.

    Args:
        widths: of the branches' maps, the widest first; its width is that of the sum.
        kind: how they are brought to it.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a width that 32 groups cannot share.
    """

    def __init__(self, widths: Sequence[int], kind: MergeKind, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        for width in widths if kind == "classification" else widths[:1]:
            if width % GROUPS:
                raise ValueError(
                    f"merging normalises in {GROUPS} groups of channels: widths must be multiples of {GROUPS}; found "
                    f"{width}, and the nearest is {max(1, round(width / GROUPS)) * GROUPS}"
                )
        self.count = len(widths)
        for j, width in enumerate(widths, 1):
            self.add_module(f"merge_branch{j}", _brought(width, widths[0], kind, j == 1, dd))
            self.register_parameter(f"w{j}", nn.Parameter(torch.ones((), **dd)))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The sum ``[batch, widths[0], *the last map's grid]``."""
        total: Tensor | None = None
        for j, each in enumerate(maps, 1):
            each = self.get_submodule(f"merge_branch{j}")(each)
            if each.shape[-2:] != maps[-1].shape[-2:]:
                exact = each.to(torch.promote_types(each.dtype, torch.float32))
                each = F.interpolate(exact, maps[-1].shape[-2:], mode="bilinear").to(each.dtype)
            each = each * getattr(self, f"w{j}")
            total = each if total is None else total + each
        assert total is not None
        return total


def _brought(width: int, common: int, kind: MergeKind, first: bool, dd: dict[str, Any]) -> nn.Module:
    if kind == "classification":
        if first:
            return nn.GroupNorm(GROUPS, width, **dd)
        linear = nn.Linear(width, common, **dd)
        nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        norms = nn.GroupNorm(GROUPS, width, **dd), nn.GroupNorm(GROUPS, common, **dd)
        return nn.Sequential(norms[0], Permute([0, 2, 3, 1]), linear, Permute([0, 3, 1, 2]), norms[1])
    layers: list[nn.Module] = []
    for before in {"stage": [] if first else [width], "detection": [width, common]}[kind]:
        layers += [_conv(before, common, dd), nn.GroupNorm(GROUPS, common, **dd), nn.ReLU()]
    return nn.Sequential(*(layers or [nn.GroupNorm(GROUPS, common, **dd), nn.ReLU()]))


def _conv(width: int, out: int, dd: dict[str, Any]) -> nn.Conv2d:
    conv = nn.Conv2d(width, out, 3, padding=1, bias=False, **dd)
    nn.init.normal_(conv.weight, std=(2 / (9 * out)) ** 0.5)
    return conv


class Levels(nn.Module):
    """A feature pyramid of maps: four times and twice as fine, as it is, half as fine (Li et al., ViTDet, 2022).

    Args:
        widths: of the four maps, each that of its level.
        device: of the parameters.
        dtype: of the parameters.
    """

    scales, names = (4, 2, 1, 0.5), ("up4", "up2", "same", "down2")

    def __init__(self, widths: Sequence[int], device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}

        def finer(width: int) -> nn.ConvTranspose2d:
            conv = nn.ConvTranspose2d(width, width, 2, stride=2, **dd)
            nn.init.normal_(conv.weight, std=(2 / (4 * width)) ** 0.5)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            return conv

        first, second, *_ = widths
        self.up4 = nn.Sequential(finer(first), nn.GroupNorm(GROUPS, first, **dd), nn.GELU(), finer(first))
        self.up2 = finer(second)
        self.same = nn.Identity()
        self.down2 = nn.MaxPool2d(2)

    def forward(self, maps: Tensor | Sequence[Tensor], indices: Sequence[int] = (0, 1, 2, 3)) -> list[Tensor]:
        """The levels asked for, the finest first, of one map or each of its own."""
        return [self.get_submodule(self.names[i])(maps if isinstance(maps, Tensor) else maps[i]) for i in indices]

    def keep(self, indices: Sequence[int]) -> None:
        """Drop what makes other levels than these."""
        for i, name in enumerate(self.names):
            if i not in indices:
                setattr(self, name, nn.Identity())


class Stages(nn.Module):
    """A feature pyramid of maps that come in four strides by themselves."""

    def forward(self, maps: Sequence[Tensor], indices: Sequence[int] = (0, 1, 2, 3)) -> list[Tensor]:
        """The levels asked for, the finest first."""
        return [maps[i] for i in indices]

    def keep(self, indices: Sequence[int]) -> None:
        """Nothing is made."""
