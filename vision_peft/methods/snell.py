"""SNELL: sparse tuning with kernelised LoRA.

Shen, Sun, Ji, Huang, Wang: "Expanding Sparse Tuning for Low Memory Usage", NeurIPS 2024 (arXiv 2411.01800). Two
low-rank point sets ``A`` (a row per input feature) and ``B`` (a row per output feature) are merged by a distance kernel
into a delta of high rank, and a quantile of its magnitudes decides which entries survive:

    delta[i, j] = Σ_p c_p ‖B_p[i] − A_p[j]‖,   S = delta ⊙ g(delta),   y = x (W0 + S)ᵀ + b0,   c_p = c0 (−1)^p

The gate follows the authors' code, ``g = |delta|`` where ``|delta|`` exceeds its quantile, and none at sparsity 0
(``gate="auto"``); the paper's Eq. 5 is ``gate="soft"``. Delta and gate are recomputed in the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from peft_kernels.config import choices, require
from peft_kernels.registry import register
from vision_peft.methods.kernelised import KernelConfig, KernelTuner

KERNELS = ("piecewise_linear", "linear", "sigmoid", "rbf")
GATES = ("auto", "magnitude", "soft", "hard", "none")


class SnellTuner(KernelTuner):
    """Attaches SNELL."""


@register(
    "snell",
    tuner=SnellTuner,
    prefix="snell_",
    family="vision",
    summary="Sparse tuning with kernelised low-rank deltas, gate by quantile; folds away",
    paper="Shen et al., NeurIPS 2024",
)
@dataclass
class SnellConfig(KernelConfig):
    """SNELL: ``y = x (W0 + S)ᵀ + b0`` with ``S`` a gated distance matrix of two low-rank point sets.

    ViT-B/16, r = 8: 1,327,104 parameters without head and class token (r · Σ (m + n), as LoRA on the same layers). By
    default also trains the classifier and, in a ViT, the class token.

    Args:
        r: total rank over all parts, a multiple of ``num_parts``.
        num_parts: number P of alternating distances (``piecewise_linear``; the other kernels have one part).
        kernel: ``piecewise_linear`` (default), ``linear``, ``sigmoid`` or ``rbf`` (paper, Table A6).
        kernel_p: Minkowski order of the distance.
        scale: factor c0 of the distances (0.1 in the authors' code).
        sparsity: share of entries that the gate drops, in [0, 1]; searched per task in the paper.
        gate: ``auto`` (authors' code: none at sparsity 0, else magnitude), ``magnitude``, ``soft`` (paper, Eq. 5),
            ``hard`` (survivors pass unchanged) or ``none``.
        dropout: dropout on the branch's input while training (linear layers, not before the attention's output).
        drop_path: stochastic depth of each branch while training (linear layers).
        fused_splits: row blocks of fused modules by name, each with points and threshold of its own.
        init: ``official`` (starts within 1e-5 of the base model thanks to the gate) or ``identity`` (exactly there).
        rank_pattern: ranks of single layers, by name suffix (``"blocks.0.attn.qkv.q"``).
        sparsity_pattern: sparsities of single layers, by name suffix.
    """

    r: int = field(default=8, metadata={"help": "Total rank over all parts."})
    kernel: str = field(default="piecewise_linear", metadata={"help": f"Kernel: {', '.join(KERNELS)}."})
    gate: str = field(default="auto", metadata={"help": f"Gate: {', '.join(GATES)}."})
    sparsity: float = field(default=0.0, metadata={"help": "Share of entries that the gate drops, in [0, 1]."})

    @property
    def first_sparsity(self) -> float:
        return self.sparsity

    def __post_init__(self) -> None:
        super().__post_init__()
        choices(self, "kernel", KERNELS)
        choices(self, "gate", GATES)
        require(0 <= self.sparsity <= 1, self, "sparsity", "in [0, 1]")
