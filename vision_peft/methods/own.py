"""PEFT's own methods, used as they are: LoRA, DoRA and LN tuning with default targets for vision models.

PEFT resolves targets by transformers' ``config.model_type``, which timm models do not have; `fill` does it from the
architecture family and keeps the classifier trainable.
"""

from __future__ import annotations

import re
from typing import Any

import peft
from torch import nn

from peft_kernels.registry import Method, offer
from peft_kernels.targets import default_targets, head_names, reads_own_weight


def fill(model: nn.Module, config: Any) -> Any:
    """Fill the targets and the classifier into one of PEFT's own configurations.

    Left out is what PEFT's layers cannot adapt: a fused projection whose attention module reads the weight itself (EVA,
    BEiT, Swin V2), where they would never be called, and for LoRA convolutions that are dilated or whose groups do not
    divide the rank. `SnellConfig` reaches all of them, `SlicedLoraConfig` the projections.
    """
    kind = "norm" if isinstance(config, peft.LNTuningConfig) else "linear"
    if config.target_modules is None:
        config.target_modules = default_targets(model, kind)
    if config.modules_to_save is None:
        config.modules_to_save = head_names(model)
    rank = getattr(config, "r", None)
    unfit = [
        name
        for name, module in model.named_modules()
        if name and (reads_own_weight(model, name) or (rank and _beyond_lora(module, rank)))
    ]
    excluded: Any = config.exclude_modules
    if unfit and isinstance(excluded, str):
        config.exclude_modules = "|".join([excluded, *map(re.escape, unfit)])
    elif unfit:
        config.exclude_modules = [*(excluded or []), *unfit]
    return config


def _beyond_lora(module: nn.Module, rank: int) -> bool:
    convolution = isinstance(module, nn.modules.conv._ConvNd)
    return convolution and (rank % module.groups != 0 or any(step != 1 for step in module.dilation))


offer(
    Method(
        "lora",
        peft.LoraConfig,
        "vision",
        "Low-rank weight deltas on all projections, fused matrices as a whole (PEFT's own)",
        "Hu et al., ICLR 2022",
        fixed={"use_dora": False},
        prepare=fill,
    )
)
offer(
    Method(
        "dora",
        peft.LoraConfig,
        "vision",
        "LoRA with magnitude and direction apart (PEFT's own)",
        "Liu et al., ICML 2024",
        fixed={"use_dora": True},
        prepare=fill,
    )
)
offer(
    Method(
        "ln_tuning",
        peft.LNTuningConfig,
        "vision",
        "Train the normalisation layers alone (PEFT's own)",
        "Zhao et al., ICLR 2024",
        prepare=fill,
    )
)
