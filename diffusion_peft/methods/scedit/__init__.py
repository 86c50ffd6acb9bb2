"""SCEdit: the long skip connections of a UNet, edited just before the decoder reads them.

Jiang et al.: "SCEdit: Efficient and Controllable Image Diffusion Generation via Skip Connection Editing", CVPR 2024
(arXiv 2312.11392). With ``s_j`` the skips in decoder order, ``F(v) = W₂ gelu(W₁ v + b₁) + b₂`` at every pixel, and
``c^m`` the features of the m-th condition image:

| adapter | edited skip |
|---|---|
| SC-Tuner | ``s_j + scale · F_j(s_j)`` |
| controllable (CSC-Tuner) | ``s_j + scale · Σ_m α_m (c^m_j + F^m_j(s_j + c^m_j))`` |

Several are summed on the same raw skip. What ControlNet adds to the skips, or FreeU does to them, comes before.
"""

from diffusion_peft.methods.scedit.condition import condition_on, condition_sizes
from diffusion_peft.methods.scedit.config import SceditConfig

__all__ = ["SceditConfig", "condition_on", "condition_sizes"]
