"""What neighbouring branches tell each other: cross-attention and a small convolutional MLP, from zero gates on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn

from .attention import DeformableAttention, DenseAttention, Grid
from .errors import check_heads, choose, in_range


@dataclass(frozen=True)
class InteractionSpec:
    """What an interaction is made of; the defaults are those of the published models.

    Args:
        n_points: K, samples for each head.
        deform_num_heads: M, the same for all branches; it must divide every branch's width and value width.
        deform_ratio: width of the values by that of the queries, in (0, 1].
        with_cffn: whether the convolutional MLP follows the attention.
        cffn_ratio: width of its hidden layer by that of the tokens.
        interaction_drop_path_rate: probability that a picture skips that MLP while training.
        interaction_proj: whether the other branch's tokens are projected to this one's width first.
        norm: "ln", or "none" for no norms.
        interact_attn_type: "deform", or "normal" for attention to all tokens.
    """

    n_points: int = 4
    deform_num_heads: int = 16
    deform_ratio: float = 0.5
    with_cffn: bool = True
    cffn_ratio: float = 0.25
    interaction_drop_path_rate: float = 0.0
    interaction_proj: bool = True
    norm: Literal["ln", "none"] = "ln"
    interact_attn_type: Literal["deform", "normal"] = "deform"

    def __post_init__(self) -> None:
        choose(self, "norm", ("ln", "none"))
        choose(self, "interact_attn_type", ("deform", "normal"))
        in_range(self, "n_points", self.n_points >= 1, "at least 1")
        in_range(self, "deform_num_heads", self.deform_num_heads >= 1, "at least 1")
        in_range(self, "deform_ratio", 0 < self.deform_ratio <= 1, "above 0 and at most 1")
        in_range(self, "cffn_ratio", self.cffn_ratio > 0, "positive")
        in_range(self, "interaction_drop_path_rate", 0 <= self.interaction_drop_path_rate < 1, "in [0, 1)")


class DepthwiseConv(nn.Module):
    """A 3×3 convolution of each channel by itself, on tokens."""

    def __init__(self, width: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 3, padding=1, groups=width, device=device, dtype=dtype)
        nn.init.normal_(self.dwconv.weight, std=(2 / 9) ** 0.5)
        nn.init.zeros_(self.dwconv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """``[batch, tokens, width]`` to the same."""
        return self.dwconv(x.mT.unflatten(-1, grid)).flatten(2).mT


class ConvMlp(nn.Module):
    """Linear, depthwise 3×3 convolution, GELU, linear."""

    def __init__(self, width: int, hidden: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.fc1 = nn.Linear(width, hidden, **dd)
        self.dwconv = DepthwiseConv(hidden, **dd)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width, **dd)
        _start(self.fc1, self.fc2)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """``[batch, tokens, width]`` to the same."""
        return self.fc2(self.act(self.dwconv(self.fc1(x), grid)))


def _start(*layers: nn.Linear) -> None:
    for layer in layers:
        trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)


class Injector(nn.Module):
    """Tokens with what another branch's features add: ``q ← q + g_ca Attn(LN q, LN f)``, ``q ← q + g_ffn FFN(LN q)``.

    Args:
        width: d, of the tokens.
        from_width: e, of the features.
        spec: what it is made of.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self, width: int, from_width: int, spec: InteractionSpec, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}

        def norm(size: int) -> nn.Module:
            return nn.LayerNorm(size, eps=1e-6, **dd) if spec.norm == "ln" else nn.Identity()

        check_heads(width, spec.deform_num_heads, spec.deform_ratio if spec.interact_attn_type == "deform" else None)
        self.query_norm, self.feat_norm = norm(width), norm(from_width)
        self.attn = (
            DeformableAttention(width, from_width, spec.deform_num_heads, spec.n_points, ratio=spec.deform_ratio, **dd)
            if spec.interact_attn_type == "deform"
            else DenseAttention(width, from_width, spec.deform_num_heads, **dd)
        )
        self.ca_gamma = nn.Parameter(torch.zeros(width, **dd))
        self.ffn = None
        if spec.with_cffn:
            self.ffn = ConvMlp(width, int(spec.cffn_ratio * width), **dd)
            self.ffn_norm = norm(width)
            self.cffn_gamma = nn.Parameter(torch.zeros(width, **dd))
            rate = spec.interaction_drop_path_rate
            self.drop_path = DropPath(rate) if rate else nn.Identity()

    def forward(self, tokens: Tensor, grid: Grid, features: Tensor, from_grid: Grid) -> Tensor:
        """``[batch, tokens, width]`` on ``grid``, from features on ``from_grid``."""
        read = self.attn(self.query_norm(tokens), grid, self.feat_norm(features), [from_grid])
        tokens = tokens + self.ca_gamma * read
        if self.ffn is not None:
            tokens = tokens + self.cffn_gamma * self.drop_path(self.ffn(self.ffn_norm(tokens), grid))
        return tokens


class Unit(nn.Module):
    """Two neighbouring branches, 1 the wider and coarser, tell each other; both listen to the old tokens.

    Args:
        width1: of the wider branch.
        width2: of the narrower branch.
        spec: what it is made of.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(self, width1: int, width2: int, spec: InteractionSpec, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.branch2to1_proj, self.branch1to2_proj = nn.Identity(), nn.Identity()
        if spec.interaction_proj:
            self.branch2to1_proj = nn.Linear(width2, width1, **dd)
            self.branch1to2_proj = nn.Linear(width1, width2, **dd)
            _start(self.branch2to1_proj, self.branch1to2_proj)
        heard1, heard2 = (width1, width2) if spec.interaction_proj else (width2, width1)
        self.branch2to1_injector = Injector(width1, heard1, spec, **dd)
        self.branch1to2_injector = Injector(width2, heard2, spec, **dd)

    def forward(self, x1: Tensor, grid1: Grid, x2: Tensor, grid2: Grid) -> tuple[Tensor, Tensor]:
        """New tokens of both branches."""
        return (
            self.branch2to1_injector(x1, grid1, self.branch2to1_proj(x2), grid2),
            self.branch1to2_injector(x2, grid2, self.branch1to2_proj(x1), grid1),
        )


class Interaction(nn.Module):
    """One unit for each pair of neighbours, from the finest pair to the coarsest, each with the newest tokens.

    Args:
        widths: of all branches at this depth, the widest first.
        spec: what it is made of.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(self, widths: Sequence[int], spec: InteractionSpec, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        for j in range(1, len(widths)):
            unit = Unit(widths[j - 1], widths[j], spec, device=device, dtype=dtype)
            self.add_module(f"interaction_units_{j}{j + 1}", unit)

    def forward(self, tokens: Sequence[Tensor], grids: Sequence[Grid]) -> list[Tensor]:
        """New tokens of all branches."""
        found = list(tokens)
        for j in range(len(found) - 1, 0, -1):
            unit = self.get_submodule(f"interaction_units_{j}{j + 1}")
            found[j - 1], found[j] = unit(found[j - 1], grids[j - 1], found[j], grids[j])
        return found
