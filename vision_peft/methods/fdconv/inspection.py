"""What FDConv does to pictures: the gains of the groups of frequencies at every layer, and the maps of the bands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from peft_kernels.adapter_formats import PEFT_ROOT
from vision_peft.methods.fdconv.adapter import FrequencyDynamic
from vision_peft.methods.fdconv.layer import FdconvLayer
from vision_peft.methods.fdconv.module import FdConv2d, FdLinear


@dataclass
class Response:
    """What the layers made of some pictures, by their names, in the order of the forward pass.

    Attributes:
        gains: of the groups of frequencies, lowest first; with several copies of a spectrum their mean; ``[B, n]``.
        maps: of the bands of a layer's input, highest first, ``[B, bands, groups, H, W]``.
        cuts: where the bands of these layers end, in cycles a pixel, highest first.
    """

    gains: dict[str, Tensor] = field(default_factory=dict)
    maps: dict[str, Tensor] = field(default_factory=dict)
    cuts: dict[str, list[float]] = field(default_factory=dict)


@torch.no_grad()
def respond(model: nn.Module, pictures: Tensor) -> Response:
    """What FDConv's factors are for these pictures, as the model is: adapted by PEFT, or one of its own models.

    Args:
        pictures: what the model takes, ``[B, ...]``.

    Raises:
        ValueError: the model has no FDConv layer.
    """
    found, hooks = Response(), []
    for name, layer in model.named_modules():
        if not isinstance(layer, (FdconvLayer, FdConv2d, FdLinear)):
            continue
        dynamic = next((module for module in layer.modules() if isinstance(module, FrequencyDynamic)), None)
        if dynamic is None:
            continue
        place = name.removeprefix(PEFT_ROOT)

        def gains(_: Any, __: Any, factors: Any, place: str = place) -> None:
            found.gains[place] = factors.gains.mean(1)

        def maps(bands: Any, inputs: Any, _: Any, place: str = place) -> None:
            found.maps[place] = bands.maps(inputs[0])
            found.cuts[place] = [0.5 / cut for cut in bands.cuts]

        hooks.append(dynamic.ksm_global.register_forward_hook(gains))
        if dynamic.fbm is not None:
            hooks.append(dynamic.fbm.register_forward_hook(maps))
    if not hooks:
        raise ValueError(f"the model ({type(model).__name__}) has no FDConv layer")
    try:
        model(pictures)
    finally:
        for hook in hooks:
            hook.remove()
    return found
