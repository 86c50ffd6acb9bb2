"""PEFT's own methods, used as they are, with the default targets of the architecture families.

PEFT resolves targets by transformers' ``config.model_type``, which timm's and diffusers' models lack; `fill` does
it from the family and keeps the classifier trainable where there is one.
"""

from __future__ import annotations

import re
from typing import Any

import peft
from peft.tuners.shira.mask_functions import random_mask
from torch import nn

from peft_kernels.shira_places import random_places
from peft_kernels.targets import default_targets, find_backbone, head_names, idle_queries, reads_own_weight


def fill(model: nn.Module, config: Any) -> Any:
    """Fill the targets and the classifier into one of PEFT's own configurations.

    LN tuning takes the norms; IA3 keys, values and the last layers of the MLPs; the others the attention projections of
    a denoiser, all projections of other models.

    Left out is what PEFT's layers cannot adapt: a fused projection whose attention module reads the weight itself (EVA,
    BEiT, Swin V2), where they would never be called, and for LoRA convolutions that are dilated or whose groups do not
    divide the rank. `SnellConfig` reaches all of them, `SlicedLoraConfig` the projections. Of a list of names, what
    nothing reads is left out as well (the text's last queries in SD3).

    Raises:
        ValueError: the model has no modules of that kind.
    """
    if getattr(config, "mask_fn", None) is random_mask:  # SHiRA's
        config.mask_fn = random_places
    if config.target_modules is None:
        _fill_targets(model, config)
    if config.modules_to_save is None:
        config.modules_to_save = head_names(model)
    rank = getattr(config, "r", None)
    listed = hasattr(config, "exclude_modules") and not isinstance(config.target_modules, str)
    idle = idle_queries(model) if listed else set()
    unfit = [
        name
        for name, module in model.named_modules()
        if name and (name in idle or reads_own_weight(model, name) or (rank and _beyond_lora(module, rank)))
    ]
    if not unfit:
        return config
    if not hasattr(config, "exclude_modules"):
        raise ValueError(
            f"{type(config).__name__} cannot leave out {unfit[0]!r}, which PEFT's layers cannot adapt: take SnellConfig"
        )
    excluded: Any = config.exclude_modules
    if isinstance(excluded, str):
        config.exclude_modules = "|".join([excluded, *map(re.escape, unfit)])
    else:
        config.exclude_modules = [*(excluded or []), *unfit]
    return config


def _fill_targets(model: nn.Module, config: Any) -> None:
    if isinstance(config, peft.IA3Config):
        config.feedforward_modules = default_targets(model, "feedforward")
        config.target_modules = f"{default_targets(model, 'key_value')}|{config.feedforward_modules}"
        return
    found = find_backbone(model)
    of_denoiser = "attention" if found and found[2].denoiser else "linear"
    config.target_modules = default_targets(model, "norm" if isinstance(config, peft.LNTuningConfig) else of_denoiser)


def _beyond_lora(module: nn.Module, rank: int) -> bool:
    convolution = isinstance(module, nn.modules.conv._ConvNd)
    return convolution and (rank % module.groups != 0 or any(step != 1 for step in module.dilation))
