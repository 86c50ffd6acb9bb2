"""The configuration of PointGST (Liang et al., TPAMI 2025, arXiv 2410.08114)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from peft_kernels.config import MethodConfig, choices, require
from peft_kernels.ops.graph_basis import LAPLACIANS, SCOPES
from peft_kernels.registry import register
from vision_peft.methods.pointgst.spectra import Basis, warn_of_expanded
from vision_peft.methods.pointgst.tuner import PointGstTuner

BRANCHES = ("both", "global", "local")


@register(
    "pointgst",
    tuner=PointGstTuner,
    prefix="pcsa_",
    family="vision",
    summary="Adapters in the graph spectrum of each point cloud",
    paper="Liang et al., TPAMI 2025",
    needs="patches of points",
)
@dataclass
class PointGstConfig(MethodConfig):
    """An adapter beside the MLP of every block, ``W_u h(W_d x)``, whose middle works on the cloud's own frequencies.

    With ``s = W_d x + b_d``, ``t`` its rows of point tokens, ``U`` the eigenvectors of the Laplacian of the graph of
    the patches' centres and ``φ(z) = SiLU(A LN(z) + a)``: ``h = SiLU(s)``, to which point tokens add
    ``t + U φ₁(Uᵀ t)`` of the graph of all patches, and the same of the graphs of ``local_size`` patches along a z-order
    curve.

    Point-MAE, 15 classes: 354,528 parameters in 12 adapters (2 r C + C + r² + 6 r each), 622,831 with head and tokens.
    Class tokens, their positions and PointGPT's `cls_norm` are trained in full. Nothing merges.

    Args:
        r: width of the bottleneck.
        local_size: patches of a local graph; divides their number.
        local_sizes: several such sizes in place of one; their graphs add up and share φ₂ (16, 32 for detection).
        branches: ``both``, ``global`` or ``local``.
        basis_orientation: ``spectral`` (the paper: Uᵀ first) or ``vertex`` (the released code: U first).
        scale_scope: whose least distance scales the weights: each ``cloud``'s, or the ``batch``'s (released).
        laplacian: ``normalized`` or ``combinatorial``.
        eigenvector_sign: ``canonical`` (a function of the cloud) or ``raw`` (as the library gives it; released).
        distance: ``exact``, or ``gemm`` for the rounding errors of the released code.
        basis_dtype: ``float32`` or ``float64``, of Laplacian and eigenvectors.
        degree_eps: added to degrees under the root.
        grid_per_unit: cells of the z-order curve a unit of length.
        scale: factor of the output.
        frozen_norm: ``eval``, or ``train``: the patch encoder's frozen batch norms normalise by the batch in training,
            as in the released code; their statistics move, and are the adapter's and in its file (1,280 numbers).
    """

    r: int = field(default=36, metadata={"help": "Width of the bottleneck."})
    local_size: int = field(default=32, metadata={"help": "Patches of a local graph; divides their number."})
    local_sizes: list[int] | None = field(default=None, metadata={"help": "Several sizes in place of local_size."})
    branches: str = field(default="both", metadata={"help": "both, global or local."})
    basis_orientation: str = field(default="spectral", metadata={"help": "spectral, or vertex (released)."})
    scale_scope: str = field(default="cloud", metadata={"help": "cloud, or batch (released)."})
    laplacian: str = field(default="normalized", metadata={"help": "normalized or combinatorial."})
    eigenvector_sign: str = field(default="canonical", metadata={"help": "canonical, or raw (released)."})
    distance: str = field(default="exact", metadata={"help": "exact, or gemm (released)."})
    basis_dtype: str = field(default="float32", metadata={"help": "float32 or float64."})
    degree_eps: float = field(default=1e-6, metadata={"help": "Added to degrees under the root."})
    grid_per_unit: float = field(default=100.0, metadata={"help": "Cells of the z-order curve a unit of length."})
    scale: float = field(default=1.0, metadata={"help": "Factor of the output."})
    frozen_norm: str = field(default="eval", metadata={"help": "eval, or train (released)."})

    def __post_init__(self) -> None:
        super().__post_init__()
        require(isinstance(self.r, int) and self.r >= 1, self, "r", "an integer >= 1")
        require(isinstance(self.local_size, int) and self.local_size >= 1, self, "local_size", "an integer >= 1")
        if self.local_sizes is not None:
            given = self.local_sizes if isinstance(self.local_sizes, (list, tuple)) else []
            sizes = [size for size in given if isinstance(size, int) and size >= 1]
            known = 0 < len(sizes) == len(given) == len(set(sizes))
            require(known, self, "local_sizes", "different integers >= 1, at least one")
            self.local_sizes = sizes
        choices(self, "branches", BRANCHES)
        choices(self, "basis_orientation", ("spectral", "vertex"))
        choices(self, "scale_scope", SCOPES)
        choices(self, "laplacian", LAPLACIANS)
        choices(self, "eigenvector_sign", ("canonical", "raw"))
        choices(self, "distance", ("exact", "gemm"))
        choices(self, "basis_dtype", ("float32", "float64"))
        choices(self, "frozen_norm", ("eval", "train"))
        require(self.degree_eps > 0, self, "degree_eps", "above 0")
        require(self.grid_per_unit > 0, self, "grid_per_unit", "above 0")
        if self.distance == "gemm":
            warn_of_expanded()

    @property
    def basis(self) -> Basis:
        """Which spectra the adapters read."""
        return Basis(
            local_sizes=() if self.branches == "global" else tuple(self.local_sizes or [self.local_size]),
            whole=self.branches != "local",
            scale_scope=self.scale_scope,
            laplacian=self.laplacian,
            canonical=self.eigenvector_sign == "canonical",
            degree_eps=self.degree_eps,
            grid_per_unit=self.grid_per_unit,
            expanded=self.distance == "gemm",
            dtype=getattr(torch, self.basis_dtype),
        )
