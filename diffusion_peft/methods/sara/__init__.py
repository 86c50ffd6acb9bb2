"""SaRA: the smallest entries of the pretrained weights are trained, all others stay.

Hu, Zhang, Yi, Huang, Wang, Ma: "SaRA: High-Efficient Diffusion Model Fine-tuning with Progressive Sparse Low-Rank
Adaptation", ICLR 2025 (arXiv 2409.06633). Entries below a threshold do next to nothing in the model; as a parameter v
that takes their place they learn the new task and fold away for nothing:

    M = |W0| < θ,   W = W0 with W[M] = v,   v = W0[M] at the start,   L = L_task + λ ‖scatter(M, v)‖_*

Half-way through the training those that have left the band are frozen as they are; the rest goes on (`SaraAllocator`).
`selection` decides, `layer` computes, `tuner` attaches, `config` holds the settings.
"""

from diffusion_peft.methods.sara.allocator import SaraAllocator
from diffusion_peft.methods.sara.config import SaraConfig
from diffusion_peft.methods.sara.selection import sara_counts

__all__ = ["SaraAllocator", "SaraConfig", "sara_counts"]
