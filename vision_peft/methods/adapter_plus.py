"""Bottleneck adapters: small residual MLPs, ``A(z) = s ⊙ (W_up · GELU(W_down · z + b_down) + b_up)``.

Adapter+ (Steitz, Roth: "Adapters Strike Back", CVPR 2024, arXiv 2406.06820) is the setting that wins: after the
block, one learned scale per channel. Houlsby (ICML 2019, 1902.00751), Pfeiffer (EACL 2021, 2005.00247) and AdaptFormer
(NeurIPS 2022, 2205.13535) are the same thing elsewhere in the block. With ``y1 = x + DP(attn)``,
``f = DP(mlp(norm2 y1))``, ``u = y1 + f``:

| position | output of the block |
|---|---|
| post | ``u + A(u)`` |
| pfeiffer | ``u + A(LN(u))``, a norm of its own inside A |
| intermediate | ``y1 + f + A(f)`` |
| houlsby | ``z = x + a + A₁(a)`` with ``a = DP(attn)``, ``f = DP(mlp(norm2 z))``; ``z + f + A₂(f)`` |
| pre | ``z = y1 + A(y1)``; ``z + DP(mlp(norm2 z))`` |
| parallel | ``u + A(y1)``, reading the MLP's input before its norm |
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from peft_kernels.config import MethodConfig, choices, require
from peft_kernels.feature import FeatureLayer
from peft_kernels.layer import AdapterLayer
from peft_kernels.registry import register
from peft_kernels.slices import Rows
from peft_kernels.tap import Tap, TapLayer
from peft_kernels.targets import default_targets, plain_modules
from peft_kernels.tuner import AdapterTuner
from vision_peft.methods.ssf import _channels, channels_first

# What each position wraps within a residual block ("" is the block itself).
_SITES = {
    "post": ("",),
    "pfeiffer": ("",),
    "intermediate": ("drop_path2",),
    "houlsby": ("drop_path1", "drop_path2"),
    "pre": ("norm2",),
    "parallel": ("norm2",),
}
_POST_NORM = ("SwinTransformerV2Block", "ResPostBlock", "EvaBlockPostNorm")


class Bottleneck(Tap):
    """``A``: ``[norm] → down → activation → [dropout] → up → drop path → ⊙ s`` along the channel axis.

    Args:
        channels: size C of the channel axis.
        config: its settings.
        axis: the channel axis of the features, -1 (tokens) or 1 (feature maps).
    """

    def __init__(self, channels: int, config: AdapterPlusConfig, axis: int) -> None:
        super().__init__()
        self.axis, self.tap = axis, config.position in ("pre", "parallel")
        own_norm = config.own_norm or config.position == "pfeiffer"
        self.norm = nn.LayerNorm(channels, eps=1e-6) if own_norm else nn.Identity()
        self.down = nn.Linear(channels, config.r, bias=config.use_bias)
        self.activation = nn.GELU() if config.activation == "gelu" else nn.ReLU()
        self.dropout = nn.Dropout(config.dropout)
        self.up = nn.Linear(config.r, channels, bias=config.use_bias)
        self.drop_path = StochasticDepth(config.drop_path, mode="row")
        self.constant = 1.0 if isinstance(config.scaling, str) else float(config.scaling)
        sizes = {"channel": (channels,), "learned": (1,)}
        learned = isinstance(config.scaling, str)
        self.scaling = nn.Parameter(torch.ones(sizes[str(config.scaling)])) if learned else None
        self.reset_parameters(config.init if config.init_weights else "random")

    @torch.no_grad()
    def reset_parameters(self, init: str) -> None:
        """Start as the named scheme does; ``lora`` starts at zero, the others near it."""
        if init == "lora":
            nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
            if self.down.bias is not None:
                bound = 1 / math.sqrt(self.down.in_features)
                nn.init.uniform_(self.down.bias, -bound, bound)
            nn.init.zeros_(self.up.weight)
        else:
            for layer in (self.down, self.up):
                if init == "houlsby":
                    nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
                else:
                    nn.init.normal_(layer.weight, std=0.02 if init == "bert" else 0.3)
            if self.down.bias is not None:
                nn.init.zeros_(self.down.bias)
        if self.up.bias is not None:
            nn.init.zeros_(self.up.bias)

    def branch(self, z: Tensor) -> Tensor:
        """``A(z)``."""
        z = z if self.axis == -1 else z.movedim(self.axis, -1)
        out = self.drop_path(self.up(self.dropout(self.activation(self.down(self.norm(z))))))
        out = out * (self.scaling if self.scaling is not None else self.constant)
        return out if self.axis == -1 else out.movedim(-1, self.axis)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.branch(y)

    @torch.no_grad()
    def fold(self) -> None:
        """Take the scale into the up-projection: ``W_up ← diag(s) W_up``, ``b_up ← s ⊙ b_up``, ``s ← 1``."""
        scale = self.scaling if self.scaling is not None else torch.full_like(self.up.weight[:, 0], self.constant)
        self.up.weight.mul_(scale.view(-1, 1))
        if self.up.bias is not None:
            self.up.bias.mul_(scale)
        self.constant = 1.0
        if self.scaling is not None:
            self.scaling.fill_(1.0)

    def why_no_merge(self) -> str:
        return "an activation function stands between its two projections (only its scale folds: `fold_scaling(model)`)"


class BlockLayer(FeatureLayer):
    """A block, or a branch in it, with bottleneck adapters after it."""


class AdapterPlusTuner(AdapterTuner):
    """Attaches bottleneck adapters."""

    target_kind = "block"

    def layer_class(self, config: AdapterPlusConfig, base: nn.Module) -> type[AdapterLayer]:
        return TapLayer if config.position in ("pre", "parallel") else BlockLayer

    def default_targets(self, config: AdapterPlusConfig, model: nn.Module) -> str:
        blocks = default_targets(model, "block")
        sites = [site for site in _SITES[config.position] if site]
        return rf"({blocks})\.({'|'.join(sites)})" if sites else blocks

    def default_modules_to_save(self, config: AdapterPlusConfig, model: nn.Module) -> list[str]:
        heads = super().default_modules_to_save(config, model)
        if not config.train_norms:
            return heads
        norms = default_targets(model, "norm")
        return [*heads, *(name for name, _ in plain_modules(model) if re.fullmatch(norms, name))]

    def _block(self, key: str) -> nn.Module:
        return self.model.get_submodule(key.rpartition(".")[0])

    def check_target(self, config: AdapterPlusConfig, key: str, base: nn.Module) -> None:
        if config.position in ("pre", "parallel"):
            block = self._block(key)
            if not key.endswith("norm2") or not hasattr(block, "drop_path2") or type(block).__name__ in _POST_NORM:
                raise ValueError(
                    f"position {config.position!r} reads a block's input of `norm2` and adds at its `drop_path2`; "
                    f"{key!r} in {type(block).__name__} is no such pair: use position='post'"
                )
        if self._channels(key, base) is None:
            raise ValueError(f"cannot tell how many channels {key!r} ({type(base).__name__}) has: target whole blocks")

    def _channels(self, key: str, base: nn.Module) -> int | None:
        own = _channels(base)
        return own if own is not None else _channels(self._block(key))

    def make_adapter(self, config: AdapterPlusConfig, key: str, base: nn.Module, rows: Rows | None) -> Bottleneck:
        channels = self._channels(key, base)
        assert channels is not None
        within = base if _channels(base) is not None else self._block(key)
        return Bottleneck(channels, config, axis=1 if channels_first(within) else -1)

    def wrap(self, config: AdapterPlusConfig, key: str, base: nn.Module) -> AdapterLayer:
        layer = super().wrap(config, key, base)
        if isinstance(layer, TapLayer):
            layer.connect(self._block(key), before_norm=config.position == "pre")
        return layer


def fold_scaling(model: nn.Module) -> int:
    """Fold the scale of every bottleneck adapter of ``model`` into its up-projection; the number of adapters folded."""
    adapters = [module for module in model.modules() if isinstance(module, Bottleneck)]
    for adapter in adapters:
        adapter.fold()
    return len(adapters)


@register(
    "adapter_plus",
    tuner=AdapterPlusTuner,
    prefix="bottleneck_",
    family="vision",
    summary="Bottleneck adapter after each block with a scale per channel",
    paper="Steitz & Roth, CVPR 2024",
)
@dataclass
class AdapterPlusConfig(MethodConfig):
    """Bottleneck adapters; the defaults are Adapter+.

    ViT-B/16, r = 8: 165,984 parameters without the head (12 · (2 r C + r + 2 C)). Nothing but the scale folds.

    Args:
        r: width of the bottleneck.
        position: where it stands: ``post``, ``pfeiffer``, ``intermediate``, ``houlsby``, ``pre``, ``parallel``.
        scaling: ``"channel"`` (learned, one per channel, from 1), ``"learned"`` (one scalar) or a constant.
        init: ``houlsby`` (truncated normal, 0.01: small, not zero), ``lora`` (zero) or ``bert`` (normal, 0.02).
        activation: ``gelu`` or ``relu``.
        use_bias: whether both projections have biases.
        own_norm: a layer norm of its own before the down-projection (always with position ``pfeiffer``).
        dropout: probability within the bottleneck.
        drop_path: probability of dropping the adapter for a sample while training.
        train_norms: also train the model's norm layers, as Houlsby et al. do.
    """

    r: int = field(default=8, metadata={"help": "Width of the bottleneck."})
    position: str = field(default="post", metadata={"help": f"Where it stands: {', '.join(_SITES)}."})
    scaling: str | float = field(default="channel", metadata={"help": "'channel', 'learned' or a constant."})
    init: str = field(default="houlsby", metadata={"help": "houlsby, lora or bert."})
    activation: str = field(default="gelu", metadata={"help": "gelu or relu."})
    use_bias: bool = field(default=True, metadata={"help": "Biases in both projections."})
    own_norm: bool = field(default=False, metadata={"help": "A layer norm before the down-projection."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout probability within the bottleneck."})
    drop_path: float = field(default=0.1, metadata={"help": "Probability of dropping the adapter for a sample."})
    train_norms: bool = field(default=False, metadata={"help": "Also train the model's norm layers."})

    def __post_init__(self) -> None:
        super().__post_init__()
        require(isinstance(self.r, int) and self.r >= 1, self, "r", "an integer >= 1")
        choices(self, "position", _SITES)
        if isinstance(self.scaling, str):
            choices(self, "scaling", ("channel", "learned"))
        choices(self, "init", ("houlsby", "lora", "bert"))
        choices(self, "activation", ("gelu", "relu"))
        require(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")
        require(0 <= self.drop_path < 1, self, "drop_path", "in [0, 1)")
