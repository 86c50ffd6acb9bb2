"""PEFT's own methods of visual tuning, used as they are: LoRA, DoRA and LN tuning."""

from __future__ import annotations

import peft

from peft_kernels.peft_own import fill
from peft_kernels.registry import Method, offer

__all__ = ["fill"]

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
