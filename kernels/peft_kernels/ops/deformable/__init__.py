"""Deformable attention: every query reads a few bilinear samples of a map, at places and with weights of its own.

``y[q, m] = Σ_{l,k} a[q, m, l, k] · v_l[m](s[q, m, l, k])`` for heads m, levels l and points k (Zhu et al., *Deformable
DETR*, ICLR 2021, Eq. 2 and 3). `reference` is the formula, and the same through ``grid_sample``; `sampled` is the
operator, on CPUs as sums over bags, on CUDA by the kernels of `sampled_triton`.
"""

from .reference import deformable_attention_grid, deformable_attention_reference
from .sampled import deformable_attention

__all__ = ["deformable_attention", "deformable_attention_grid", "deformable_attention_reference"]
