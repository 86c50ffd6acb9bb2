"""The point cloud spectral adapter (PCSA) of one block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peft_kernels.ops.graph_fourier import EPS, Filter, Spectra, graph_fourier
from peft_kernels.tap import Tap
from vision_peft.methods.pointgst.spectra import Basis


class Pcsa(Tap):
    """``W_u h(W_d x + b_d) + b_u``, with ``h`` of `graph_fourier`; the names are those of the released checkpoints.

    Called with tokens and their clouds' spectra, for backbones that are none of this package's:

        adapter = Pcsa(384, 36, PointGstConfig().basis)
        adapter.start_at_the_base()
        tokens = tokens + adapter(tokens, cloud_spectra(centers, adapter.basis))  # [B, P + G, 384], [B, G, 3]

    Args:
        channels: C, the width of the tokens.
        r: width of the bottleneck.
        basis: which spectra it reads.
        vertex: multiply by U first, as the released code does, instead of its transpose.
        factor: of the output.
    """

    def __init__(self, channels: int, r: int, basis: Basis, vertex: bool = False, factor: float = 1.0) -> None:
        super().__init__()
        self.basis, self.vertex, self.factor = basis, vertex, factor
        self.down, self.up, self.adapt1 = nn.Linear(channels, r), nn.Linear(r, channels), nn.Linear(r, r)
        self.norm_ly1 = nn.LayerNorm(r, eps=EPS) if basis.whole else None
        self.norm_ly2 = nn.LayerNorm(r, eps=EPS) if basis.local_sizes else None
        nn.init.xavier_uniform_(self.down.weight)

    def start_at_the_base(self) -> None:
        """Let the adapter give 0: outputs are the base model's."""
        for layer in (self.up, self.adapt1):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, z: Tensor, spectra: Spectra) -> Tensor:  # type: ignore[override]
        """`branch`."""
        return self.branch(z, spectra)

    def branch(self, z: Tensor, spectra: Spectra) -> Tensor:  # type: ignore[override]
        """The summand of tokens ``[B, P + G, C]``."""
        s = self.down(z)
        with torch.autocast(s.device.type, enabled=False):
            s = s if s.dtype.itemsize >= 4 else s.float()
            norms = [norm for norm in (self.norm_ly1, self.norm_ly2) if norm is not None]
            filters = [self._filter(norm, s.dtype) for norm in (norms[0], norms[-1])]
            spectra = Spectra(
                spectra.whole if self.norm_ly1 is not None else None,
                *(spectra[1:] if self.norm_ly2 is not None else ((), None, None)),
            )
            h = graph_fourier(s, spectra, filters[0], filters[1], self.vertex)
        y = self.up(h.to(self.up.weight.dtype))
        return y if self.factor == 1 else self.factor * y

    def _filter(self, norm: nn.LayerNorm, dtype: torch.dtype) -> Filter:
        parts = (norm.weight, norm.bias, self.adapt1.weight, self.adapt1.bias)
        return Filter(*(part.to(dtype) for part in parts))

    def why_no_merge(self) -> str:
        return "it mixes tokens by a basis that depends on the cloud, around an activation"
