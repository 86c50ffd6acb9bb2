"""HiPA's loss of one-step pictures q against pictures of many steps p, both in [0, 1] and q not clamped:

L = λ_s L_spatial + λ_h (w_f L_fourier + w_e L_edge)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from diffusion_peft.methods.hipa.perceptual import resized, spatial_distance
from peft_kernels.config import choices, require
from peft_kernels.ops import edge_distance, highpass_mask, spectral_distance
from peft_kernels.ops.edges import FORMS
from peft_kernels.ops.spectra import DISTANCES, SHAPES


@dataclass(frozen=True)
class HipaLossSpec:
    """Weights and forms of the terms.

    Attributes:
        spatial: the perceptual distance: `dists`, `lpips`, `mse`, or any model of timm by its name (`vit_mini`, or
            `local-dir:FOLDER`), whose features are compared as DISTS compares those of VGG16.
        lam_spatial: λ_s.
        resize_loss_to: larger pictures are made that small for the spatial term, which then costs less; null never.
        lam_high: λ_h.
        highpass: shape of the mask over frequencies.
        cutoff: where it opens, in 2 × cycles a pixel, below √2.
        order: of a Butterworth mask.
        fourier_distance: mean square (`l2`) or mean magnitude (`l1`) of the masked spectrum's difference.
        fourier_weight: w_f; 0 leaves the term out.
        edge: what is compared of the edges, their slopes (`gradient`), their strength (`magnitude`) or nothing.
        edge_weight: w_e.
    """

    spatial: str = "dists"
    lam_spatial: float = 1.0
    resize_loss_to: int | None = 256
    lam_high: float = 1.0
    highpass: Literal["ideal", "gaussian", "butterworth"] = "gaussian"
    cutoff: float = 0.25
    order: int = 2
    fourier_distance: Literal["l2", "l1"] = "l2"
    fourier_weight: float = 1.0
    edge: Literal["gradient", "magnitude", "none"] = "gradient"
    edge_weight: float = 1.0

    def __post_init__(self) -> None:
        choices(self, "highpass", SHAPES)
        choices(self, "fourier_distance", DISTANCES)
        choices(self, "edge", (*FORMS, "none"))
        require(0 < self.cutoff < math.sqrt(2), self, "cutoff", "above 0 and below √2")
        require(self.order >= 1, self, "order", "at least 1")
        require(self.resize_loss_to is None or self.resize_loss_to >= 1, self, "resize_loss_to", "at least 1 or null")
        for name in ("lam_spatial", "lam_high", "fourier_weight", "edge_weight"):
            require(getattr(self, name) >= 0, self, name, "at least 0")


class HipaLoss(nn.Module):
    """The loss with its frozen perceptual model.

    Args:
        spec: weights and forms.
        spatial: a distance of one's own instead of `spec.spatial`: pictures `[N, 3, H, W]`, twice, to `[N]`.

    Raises:
        DataError: the weights of the perceptual model are not on this machine.
        UnknownNameError: there is no such model; the nearest is told.
    """

    def __init__(self, spec: HipaLossSpec | None = None, spatial: Callable[[Tensor, Tensor], Tensor] | None = None):
        super().__init__()
        self.spec = spec or HipaLossSpec()
        if spatial is None and self.spec.lam_spatial:
            spatial = spatial_distance(self.spec.spatial)
        self.spatial = spatial

    def forward(self, found: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        """Terms `spatial`, `fourier` and `edge`, without weights, and their weighted sum `loss`; float32 `[]` each.

        Terms of weight 0 are left out. Whatever autocast says, all is computed in float32 at least.

        Args:
            found: q, `[N, 3, H, W]`, with gradient.
            wanted: p, of the same shape.

        Raises:
            ValueError: they differ in shape, or are too small for the perceptual model.
        """
        if found.shape != wanted.shape or found.ndim != 4:
            raise ValueError(
                f"pictures of one shape [N, 3, H, W] are compared; found {list(found.shape)} and {list(wanted.shape)}"
            )
        spec, terms, weights = self.spec, {}, {}
        with torch.autocast(found.device.type, enabled=False):
            found, wanted = (t.float() if t.dtype.itemsize < 4 else t for t in (found, wanted))
            if self.spatial is not None and spec.lam_spatial:
                sizes = (resized(pictures, spec.resize_loss_to) for pictures in (found, wanted))
                terms["spatial"], weights["spatial"] = self.spatial(*sizes).mean(), spec.lam_spatial
            if spec.lam_high * spec.fourier_weight:
                height, width = found.shape[-2:]
                mask = highpass_mask(spec.highpass, height, width, spec.cutoff, spec.order, found.device)
                terms["fourier"] = spectral_distance(found, wanted, mask, spec.fourier_distance)
                weights["fourier"] = spec.lam_high * spec.fourier_weight
            if spec.edge != "none" and spec.lam_high * spec.edge_weight:
                terms["edge"] = edge_distance(found, wanted, spec.edge)
                weights["edge"] = spec.lam_high * spec.edge_weight
            zero = found.new_zeros(())
            return {**terms, "loss": sum((weights[name] * term for name, term in terms.items()), zero)}
