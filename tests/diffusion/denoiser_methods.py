"""Every method as it is put on a denoiser, and those that refuse one."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftConfig
from torch import nn

import diffusion_peft  # noqa: F401 (registers the methods)
from peft_kernels.registry import methods

# Refused by every denoiser, with a word of the reason.
NO_CLASSIFIER, NO_TOKENS = "does not tell its classifier", "is a denoiser, whose blocks take no further tokens"
NO_POINTS = "has none: take a model such as point_mae"
REFUSED = {"linear_probe": NO_CLASSIFIER, "point_peft": NO_POINTS, "pointgst": NO_POINTS, "vpt": NO_TOKENS}
# What looks at data or at values before it is attached, or needs a UNet or wide layers, has tests of its own.
ELSEWHERE = {"spt", "sara", "scedit", "scale_long", "fdconv"}
METHODS = sorted(set(methods()) - ELSEWHERE - set(REFUSED))
# DiT, PixArt and SD3 have norms without parameters; SaRA and DiffFit train norms only where they have some.
WITHOUT_NORMS = ("sd3", "dit", "pixart", "pixart_uncaptioned")
# At sizes that small models have room for.
SMALL: dict[str, dict[str, Any]] = {"oft": {"oft_block_size": 4}, "shira": {"r": 1}}
# What makes the start one at which nothing changes, where the published one is merely near it.
IDENTITY: dict[str, dict[str, Any]] = {
    "ssf": {"init_std": 0.0},
    "snell": {"init": "identity"},
    "snella": {"init": "identity"},
    "adapter_plus": {"init": "lora"},
}


def configured(name: str, **fields: Any) -> PeftConfig:
    """The method's configuration with defaults for all that is not given."""
    return methods()[name].config(**fields)


def refuses(name: str, architecture: str) -> bool:
    return name == "ln_tuning" and architecture in WITHOUT_NORMS


@torch.no_grad()
def move(model: nn.Module, seed: int = 2) -> None:
    """Move all that is trained away from its start, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
