"""PEFT's own methods, used as they are."""

from __future__ import annotations

import peft

from peft_kernels.peft_own import fill
from peft_kernels.registry import Method, offer

__all__ = ["fill"]

LINEAR = "linear layers where it stands"  # PEFT has no SHiRA of convolutions, and an OFT of theirs that drops borders

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
offer(
    Method(
        "oft",
        peft.OFTConfig,
        "diffusion",
        "Rotate the weights by orthogonal blocks (PEFT's own)",
        "Qiu et al., NeurIPS 2023",
        prepare=fill,
        needs=LINEAR,
    )
)
offer(
    Method(
        "loha",
        peft.LoHaConfig,
        "vision",
        "Weight deltas that are products, entry by entry, of two low-rank ones (PEFT's own)",
        "Hyeon-Woo et al., ICLR 2022",
        prepare=fill,
    )
)
offer(
    Method(
        "lokr",
        peft.LoKrConfig,
        "vision",
        "Weight deltas that are Kronecker products with a low-rank factor (PEFT's own)",
        "Yeh et al., ICLR 2024",
        prepare=fill,
    )
)
offer(
    Method(
        "shira",
        peft.ShiraConfig,
        "diffusion",
        "As many random entries of the weights as a rank has (PEFT's own)",
        "Bhardwaj et al., NeurIPS 2024",
        prepare=fill,
        needs=LINEAR,
    )
)
offer(
    Method(
        "ia3",
        peft.IA3Config,
        "diffusion",
        "A factor on every key, value and hidden feature of the MLPs (PEFT's own)",
        "Liu et al., NeurIPS 2022",
        prepare=fill,
        needs="separate key and value projections, as denoisers have",
    )
)
