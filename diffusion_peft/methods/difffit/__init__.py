"""DiffFit: biases, norms, class table and per-channel factors of a diffusion transformer.

Xie et al.: "DiffFit: Unlocking Transferability of Large Diffusion Models via Simple Parameter-Efficient Fine-Tuning",
ICCV 2023 (arXiv 2304.06648). A block's branches get factors before the residual sum, ``x ← x + g₁ · γ₁ · A(x)``,
``x ← x + g₂ · γ₂ · F(x)``, held by the linear layer that ends the branch: ``y = γ (W x + b + δb)``. They fold into it:
``W ← diag(γ) W``, ``b ← γ (b + δb)``.
"""

from diffusion_peft.methods.difffit.config import DiffFitConfig
from diffusion_peft.methods.difffit.settings import position_table

__all__ = ["DiffFitConfig", "position_table"]
