"""The layer types of the table, each inside a tiny model of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

CHANNELS = 6  # of whatever goes into the layer


class Tiny(nn.Module):
    """Two modules of one type side by side, a raw parameter on top of them and a classifier.

    Args:
        make: makes one of the two modules, ``layer`` and ``other``.
        features: the size of the channel axis of what they put out.
        axis: the channel axis.
    """

    def __init__(self, make: Callable[[], nn.Module], features: int, axis: int) -> None:
        super().__init__()
        self.layer, self.other = make(), make()
        self.token = nn.Parameter(torch.randn(features))
        self.head = nn.Linear(features, 3)
        self.axis, self.attends = axis, isinstance(self.layer, nn.MultiheadAttention)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x, x, x)[0] + self.other(x, x, x)[0] if self.attends else self.layer(x) + self.other(x)
        y = y.movedim(self.axis, -1).flatten(1, -2)
        return self.head(y.sum(1) / y.shape[1] ** 0.5 + self.token)


@dataclass(frozen=True, eq=False)
class LayerType:
    """One column of the table.

    Attributes:
        name: its heading.
        make: makes the module.
        shape: shape of an input batch; no activation has as many entries as the weight, or a multiple of that.
        features: channels put out.
        axis: the channel axis.
        target: what `target_modules` calls it.
        tokens: for an embedding, the number of rows; its inputs are indices.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    features: int
    axis: int = -1
    target: str = "layer"
    tokens: int = 0

    def model(self, seed: int = 0) -> Tiny:
        """A model in which every tensor is random, norms included: the same one for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        model = Tiny(self.make, self.features, self.axis).eval()
        with torch.no_grad():
            for tensor in model.state_dict().values():
                if tensor.ndim > 1:
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) / tensor[0].numel() ** 0.5)
                elif tensor.is_floating_point():
                    tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        return model.requires_grad_(True)

    def inputs(self) -> Tensor:
        """A batch."""
        generator = torch.Generator().manual_seed(1)
        if self.tokens:
            return torch.randint(self.tokens, self.shape, generator=generator)
        return torch.randn(self.shape, generator=generator)


def _attention() -> nn.Module:
    return nn.MultiheadAttention(8, 2, batch_first=True)


def _block() -> nn.Module:
    return Block(8, 2)


def _conv(kind: type[Any], out: int, size: int | tuple[int, ...], **settings: Any) -> Callable[[], nn.Module]:
    return lambda: kind(CHANNELS, out, size, **settings)


LAYERS = {
    layer.name: layer
    for layer in (
        LayerType("Linear", lambda: nn.Linear(CHANNELS, 10), (2, 4, CHANNELS), 10),
        LayerType("Linear without bias", lambda: nn.Linear(CHANNELS, 10, bias=False), (2, 4, CHANNELS), 10),
        LayerType("qkv[q,v]", lambda: nn.Linear(CHANNELS, 24), (1, 5, CHANNELS), 24, target="layer[q,v]"),
        LayerType("Embedding", lambda: nn.Embedding(11, 8), (2, 3), 8, tokens=11),
        LayerType("Conv1d", _conv(nn.Conv1d, 8, 3), (2, CHANNELS, 5), 8, axis=1),
        LayerType("Conv2d", _conv(nn.Conv2d, 8, 3), (2, CHANNELS, 5, 4), 8, axis=1),
        LayerType(
            "Conv2d strided, dilated",
            _conv(nn.Conv2d, 8, 3, stride=2, dilation=2, padding=1),
            (2, CHANNELS, 7, 5),
            8,
            axis=1,
        ),
        LayerType("Conv2d grouped", _conv(nn.Conv2d, 8, 3, groups=2, padding=1), (1, CHANNELS, 5, 4), 8, axis=1),
        LayerType("Conv2d depthwise", _conv(nn.Conv2d, CHANNELS, 3, groups=CHANNELS), (1, CHANNELS, 7, 5), 6, axis=1),
        LayerType("Conv3d", _conv(nn.Conv3d, 8, (1, 3, 2)), (1, CHANNELS, 3, 5, 3), 8, axis=1),
        LayerType("LayerNorm", lambda: nn.LayerNorm(CHANNELS), (2, 3, CHANNELS), CHANNELS),
        LayerType("GroupNorm", lambda: nn.GroupNorm(2, CHANNELS), (2, CHANNELS, 5), CHANNELS, axis=1),
        LayerType("BatchNorm2d", lambda: nn.BatchNorm2d(CHANNELS), (2, CHANNELS, 3, 3), CHANNELS, axis=1),
        LayerType("MultiheadAttention", _attention, (2, 3, 8), 8),
        LayerType("transformer block", _block, (2, 5, 8), 8),
    )
}
