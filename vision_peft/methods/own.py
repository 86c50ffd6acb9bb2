"""PEFT's own methods, used as they are: LoRA, DoRA and LN tuning with default targets for vision models.

PEFT resolves targets by transformers' ``config.model_type``, which timm models do not have; `fill` does it from the
architecture family and keeps the classifier trainable.
"""

from __future__ import annotations

from typing import Any

import peft
from torch import nn

from peft_kernels.registry import Method, offer
from peft_kernels.targets import default_targets, head_names, reads_own_weight


def fill(model: nn.Module, config: Any) -> Any:
    """Fill the targets and the classifier into one of PEFT's own configurations.

    A fused projection whose attention module reads the weight itself (EVA, BEiT, Swin V2) is left out: PEFT's layers
    would never be called there. `SlicedLoraConfig` and `SnellConfig` reach it.
    """
    kind = "norm" if isinstance(config, peft.LNTuningConfig) else "linear"
    if config.target_modules is None:
        config.target_modules = default_targets(model, kind)
    if config.modules_to_save is None:
        config.modules_to_save = head_names(model)
    unseen = [name for name, _ in model.named_modules() if name and reads_own_weight(model, name)]
    if unseen and not config.exclude_modules:
        config.exclude_modules = unseen
    return config


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
