"""SPT: sensitivity-aware allocation of trainable parameters.

He, Cai, Zhang, Tao, Zhuang: "Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning", ICCV 2023 (arXiv 2303.08566).
Before training, a few backward passes score every weight: ``S = Σ_b g_b ⊙ g_b``. Of the τ highest scores, a matrix with
many hits gets a structured module, a vector with many is trained whole, elsewhere exactly the hits are trained:

    y = x (W + scatter(I, δ))ᵀ + b + scatter(J, δ_b)  [ + DropPath(Up · Down · Dropout(x)) ]

`selection` decides, `adapter` computes, `tuner` attaches, `config` holds the settings.
"""

from vision_peft.methods.spt.config import SptConfig, spt_config

__all__ = ["SptConfig", "spt_config"]
