"""The module tree of the original DiT, restated: names, shapes and forward pass of facebookresearch/DiT's model."""

from __future__ import annotations

import torch
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from torch import Tensor, nn


class DiTBlock(nn.Module):
    """A transformer block whose norms and branches the condition shifts, scales and gates."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=eps)
        self.attn = Attention(width, num_heads=heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=eps)
        self.mlp = Mlp(width, hidden, act_layer=lambda: nn.GELU(approximate="tanh"))  # type: ignore[arg-type]
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=-1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class LabelEmbedder(nn.Module):
    """The class table; its last row stands for a dropped label."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)
        self.num_classes = num_classes

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)


class _Owner(nn.Module):
    """Holds modules under the names of the original."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


class DiT(nn.Module):
    """The whole model, or (``depth`` blocks alone) a part; the timestep is given by its frequencies."""

    def __init__(
        self,
        width: int = 1152,
        heads: int = 16,
        depth: int = 28,
        hidden: int | None = None,
        classes: int | None = 1000,
        size: int = 32,
        patch: int = 2,
        channels: int = 4,
        out_channels: int = 8,
        frequencies: int = 256,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        hidden = 4 * width if hidden is None else hidden
        self.blocks = nn.ModuleList([DiTBlock(width, heads, hidden, eps) for _ in range(depth)])
        if classes is None:
            return
        self.x_embedder = _Owner(proj=nn.Conv2d(channels, width, patch, stride=patch))
        self.t_embedder = _Owner(mlp=nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width)))
        self.y_embedder = LabelEmbedder(classes, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, (size // patch) ** 2, width), requires_grad=False)
        self.final_layer = _Owner(
            norm_final=nn.LayerNorm(width, elementwise_affine=False, eps=eps),
            linear=nn.Linear(width, patch * patch * out_channels),
            adaLN_modulation=nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width)),
        )
        self.patch = patch

    def forward(self, x: Tensor, frequencies: Tensor, y: Tensor) -> Tensor:
        rows, columns = x.shape[2] // self.patch, x.shape[3] // self.patch
        x = self.x_embedder.get_submodule("proj")(x).flatten(2).transpose(1, 2) + self.pos_embed
        c = self.t_embedder.get_submodule("mlp")(frequencies) + self.y_embedder(y)
        for block in self.blocks:
            x = block(x, c)
        final = self.final_layer
        shift, scale = final.get_submodule("adaLN_modulation")(c).unsqueeze(1).chunk(2, dim=-1)
        x = final.get_submodule("linear")(final.get_submodule("norm_final")(x) * (1 + scale) + shift)
        x = x.unflatten(1, (rows, columns)).unflatten(-1, (self.patch, self.patch, -1))
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
