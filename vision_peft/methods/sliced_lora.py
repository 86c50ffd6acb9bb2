"""LoRA on chosen row blocks of a fused ``qkv``: the LoRA of visual-tuning tables.

Hu et al.: "LoRA", ICLR 2022 (arXiv 2106.09685): ``ΔW = (alpha / r) · B A``. One LoRA on the whole fused matrix, which
is what PEFT's own does, shares ``A`` between query, key and value: as many parameters, another model. Here each chosen
projection has factors of its own, ``A [r, in]`` and ``B [out, r]``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_kernels.config import MethodConfig, require
from peft_kernels.registry import register
from peft_kernels.reparam import MatrixParts, ReparamLayer
from peft_kernels.slices import Rows
from peft_kernels.targets import default_targets
from peft_kernels.tuner import AdapterTuner


class LowRank(nn.Module):
    """``scale · B A`` for one matrix; called with the base rows, of which only the shape counts."""

    def __init__(self, rows: int, columns: int, config: SlicedLoraConfig) -> None:
        super().__init__()
        self.scale = (config.lora_alpha if config.lora_alpha is not None else config.r) / config.r
        self.A = nn.Parameter(torch.empty(config.r, columns))
        self.B = nn.Parameter(torch.zeros(rows, config.r))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        if not config.init_weights:
            nn.init.normal_(self.B, std=0.5)

    def forward(self, rows: Tensor) -> Tensor:
        return self.scale * (self.B @ self.A)


class SlicedLoraAdapter(MatrixParts):
    """The factors of one layer, with the dropout before them."""

    def __init__(self, rows: Rows, columns: int, config: SlicedLoraConfig) -> None:
        parts = {
            name: ("weight", start, stop, LowRank(stop - start, columns, config))
            for name, (start, stop) in rows.items()
        }
        super().__init__(parts)
        self.dropout = nn.Dropout(config.lora_dropout)

    def branch(self, x: Tensor, out_features: int) -> Tensor:
        """``ΔW x`` for all row blocks: one product down (the ``A`` stacked), one up (the ``B`` on a block diagonal)."""
        down, up, row = [], [], 0
        for key, (_, start, stop) in self.places.items():
            part = self.get_submodule(key)
            assert isinstance(part, LowRank)
            down.append(part.A)
            up += [part.B.new_zeros(start - row, 0), part.scale * part.B]  # rows that no block adapts have no columns
            row = stop
        up.append(up[-1].new_zeros(out_features - row, 0))
        down, up = torch.cat(down), torch.block_diag(*up)
        return F.linear(F.linear(self.dropout(x), down), up)


class SlicedLoraLayer(ReparamLayer):
    """A linear layer with LoRA beside it."""

    def adapted_forward(self, *args: Any, **kwargs: Any) -> Any:
        (x,) = args
        y = self.base_layer(x)
        for adapter, scale in self.running:
            assert isinstance(adapter, SlicedLoraAdapter)
            dtype = next(adapter.parameters()).dtype
            y = y + scale * adapter.branch(x.to(dtype), y.shape[-1]).to(y.dtype)
        return y


class SlicedLoraTuner(AdapterTuner):
    """Attaches LoRA to row blocks."""

    layer_cls = SlicedLoraLayer
    takes_rows = True

    def default_targets(self, config: SlicedLoraConfig, model: nn.Module) -> str:
        return default_targets(model, "qkv")

    def check_target(self, config: SlicedLoraConfig, key: str, base: nn.Module) -> None:
        if not isinstance(base, nn.Linear):
            raise ValueError(
                f"{type(config).__name__} adapts linear layers; {key!r} is a {type(base).__name__}: "
                "use peft.LoraConfig for it"
            )

    def make_adapter(self, config: SlicedLoraConfig, key: str, base: Any, rows: Rows | None) -> SlicedLoraAdapter:
        return SlicedLoraAdapter(rows or {"all": (0, base.out_features)}, base.in_features, config)


@register(
    "sliced_lora",
    tuner=SlicedLoraTuner,
    prefix="slicelr_",
    family="vision",
    summary="LoRA on chosen projections (q, v) of a fused qkv; folds away",
    paper="Hu et al., ICLR 2022",
)
@dataclass
class SlicedLoraConfig(MethodConfig):
    """LoRA with separate factors per projection of a fused ``qkv``.

    ViT-B/16, r = 8, ``slices=["q", "v"]``: 294,912 parameters without the head (12 · n · 2 r C for n projections).

    Args:
        r: rank of each projection's factors.
        lora_alpha: the change is scaled by ``lora_alpha / r``; ``None`` takes ``r``, the convention of visual tuning.
        lora_dropout: dropout on the input of ``A``.
        slices: the projections that are adapted.
        fused_splits: row blocks of fused modules, by name; layers of other names are adapted as one matrix.
    """

    r: int = field(default=8, metadata={"help": "Rank of each projection's factors."})
    lora_alpha: float | None = field(default=None, metadata={"help": "Scale is lora_alpha / r; r when not given."})
    lora_dropout: float = field(default=0.1, metadata={"help": "Dropout on the input of A."})
    slices: list[str] = field(default_factory=lambda: ["q", "v"], metadata={"help": "Projections that are adapted."})
    fused_splits: dict[str, int] = field(
        default_factory=lambda: {"qkv": 3}, metadata={"help": "Row blocks of fused modules, by name."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(isinstance(self.r, int) and self.r >= 1, self, "r", "an integer >= 1")
        require(0 <= self.lora_dropout < 1, self, "lora_dropout", "in [0, 1)")
