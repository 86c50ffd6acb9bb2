"""The long skip connections of a UNet: what its encoder keeps for its decoder, and which decoder block reads it.

They are derived from the modules alone, in diffusers' manner: ``conv_in``, every ResNet of ``down_blocks`` and every
downsampler produce one each; the ResNets of ``up_blocks`` read them in reverse order, each called with its hidden
channels first and the skip's behind them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from peft_kernels.targets import plain_modules


@dataclass(frozen=True)
class Skip:
    """One skip, in decoder order (the deepest first).

    Attributes:
        reader: name of the decoder ResNet whose input ends with it.
        channels: its width.
        halved: whether a downsampler produced it.
    """

    reader: str
    channels: int
    halved: bool


def long_skips(model: nn.Module) -> list[Skip]:
    """The skips of the UNet that ``model`` is or holds, in decoder order.

    Raises:
        ValueError: it has none, or a decoder block does not read one with every ResNet.
    """
    modules: dict[str, Any] = dict(plain_modules(model))
    for path, module in modules.items():
        if {"conv_in", "down_blocks", "up_blocks"} <= set(module._modules):
            prefix = f"{path}." if path else ""
            return list(_read(modules, prefix, list(_produced(modules, prefix))))
    raise ValueError(
        f"no long skip connections found in {type(model).__name__}: SCEdit and ScaleLong need a UNet, whose decoder "
        "reads what its encoder kept; take LoRA or bottleneck adapters here, or name the decoder blocks in "
        "`target_modules` and the widths of their skips in `skip_channels`"
    )


def _numbered(modules: dict[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    index = 0
    while f"{path}.{index}" in modules:
        yield f"{path}.{index}", modules[f"{path}.{index}"]
        index += 1


def _produced(modules: dict[str, Any], prefix: str) -> Iterator[tuple[int, bool]]:
    """Width of each skip, and whether it was halved, in the order in which the encoder produces them."""
    yield modules[f"{prefix}conv_in"].out_channels, False
    for block, _ in _numbered(modules, f"{prefix}down_blocks"):
        for _, resnet in _numbered(modules, f"{block}.resnets"):
            yield resnet.out_channels, False
        for _, downsampler in _numbered(modules, f"{block}.downsamplers"):
            yield downsampler.out_channels, True


def _read(modules: dict[str, Any], prefix: str, skips: list[tuple[int, bool]]) -> Iterator[Skip]:
    middle = [resnet for _, resnet in _numbered(modules, f"{prefix}mid_block.resnets")]
    hidden = middle[-1].out_channels if middle else skips[-1][0]
    for block, _ in _numbered(modules, f"{prefix}up_blocks"):
        for name, resnet in _numbered(modules, f"{block}.resnets"):
            width, halved = skips.pop() if skips else (0, False)
            if resnet.in_channels != hidden + width or not width:
                raise ValueError(
                    f"{name} reads {resnet.in_channels} channels, which are not {hidden} hidden ones and a skip of "
                    f"{width}: {type(modules[block]).__name__} does not read a skip with every ResNet"
                )
            yield Skip(name, width, halved)
            hidden = resnet.out_channels
