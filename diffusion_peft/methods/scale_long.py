"""ScaleLong: long skip connections scaled down, so that a UNet trains stably; or tuned from where it stands.

Huang et al.: "ScaleLong: Towards More Stable Training of Diffusion Model via Scaling Network Long Skip Connection",
NeurIPS 2023 (arXiv 2310.13545). With the K skips counted from the shallowest, ``i = 1 … K``:

| method | skip |
|---|---|
| ``inv_sqrt2`` | ``s_i / √2`` |
| ``cs`` (constant) | ``κ^(i-1) s_i`` |
| ``ls`` (learnable) | ``a ⊙ s_i`` with ``a = σ(W₂ relu(W₁ m + b₁) + b₂)`` |

As published ``m`` is a token's mean over its channels, and one gate serves all skips; on the feature maps of a
convolutional UNet, where their number may change, ``m`` is a channel's mean over its places and a gate serves all skips
of a width: this project's own form.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from peft_kernels.config import MethodConfig, choices, require
from peft_kernels.feature import Feature, FeatureLayer
from peft_kernels.registry import register
from peft_kernels.skips import Skip, long_skips
from peft_kernels.slices import Rows
from peft_kernels.targets import compress
from peft_kernels.tuner import AdapterTuner

METHODS = ("none", "inv_sqrt2", "cs", "ls", "ls_per_skip")
_FREEU = ("s1", "s2", "b1", "b2")  # what FreeU sets on an up block


class SkipGate(nn.Module):
    """``a(s)``, a factor for every token ``[B, N, 1]`` or channel ``[B, C, 1, 1]`` of a skip.

    Args:
        size: the number of tokens N, all of them counted, or of channels C.
        reduction: by which the hidden width is smaller, cut off to an integer.
        identity: double the factor and start it at 1, for a model that is trained already.
    """

    def __init__(self, size: int, reduction: int = 16, identity: bool = False) -> None:
        super().__init__()
        if size // reduction < 1:
            raise ValueError(f"a gate over {size} with reduction {reduction} has no hidden unit: take a smaller one")
        self.down, self.up = nn.Linear(size, size // reduction), nn.Linear(size // reduction, size)
        self.identity = identity
        if identity:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, skip: Tensor) -> Tensor:
        means = skip.mean(-1) if skip.ndim == 3 else skip.mean((-2, -1))
        if means.shape[1] != self.down.in_features:
            raise ValueError(
                f"the gate scales {self.down.in_features} tokens (or channels); the skip has {means.shape[1]}"
            )
        with torch.autocast(skip.device.type, enabled=False):  # as published, whatever the model computes in
            factor = torch.sigmoid(self.up(torch.relu(self.down(means.to(self.down.weight.dtype)))))
        return (2 * factor if self.identity else factor)[(..., *[None] * (skip.ndim - 2))]


def constant_scale(method: str, index: int, kappa: float) -> float:
    """The factor of skip ``index`` (0 for the shallowest) for ``none``, ``inv_sqrt2`` or ``cs``."""
    return {"none": 1.0, "inv_sqrt2": 0.5**0.5, "cs": kappa**index}[method]


class SkipScales(Feature):
    """The factors of the skips that one up block reads.

    Args:
        constants: for each, in the order in which it reads them.
        gates: for each, instead; those of another block are trained there.
        own: the gates that are trained here, by name.
    """

    def __init__(self, constants: list[float], gates: list[SkipGate] | None, own: dict[str, SkipGate]) -> None:
        super().__init__()
        self.constants = constants
        self.gates = nn.ModuleDict(own)
        self._read = tuple(gates or ())  # no children in a tuple: a shared gate is neither counted nor saved twice

    def forward(self, index: int, skip: Tensor) -> Tensor | float:  # type: ignore[override]
        """The factor of one skip."""
        return self._read[index](skip) if self._read else self.constants[index]

    def why_no_merge(self) -> str:
        return "a norm reads the skip that it scales"


class ScaleLayer(FeatureLayer):
    """An up block that is given its skips scaled: ``s ← s + scale · (a − 1) s``, one adapter after the other."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _FREEU:
            setattr(self.base_layer, name, value)

    def adapted_forward(self, *args: Any, **kwargs: Any) -> Any:
        keyword = "res_hidden_states_tuple" in kwargs
        skips = list(kwargs["res_hidden_states_tuple"] if keyword else args[1])
        for index in range(len(skips)):
            for scales, strength in self.running:
                skip = skips[-1 - index]
                factor = scales(index, skip)
                factor = factor if strength == 1 else 1 + strength * (factor - 1)
                skips[-1 - index] = (factor * skip).to(skip.dtype)
        if keyword:
            return self.base_layer(*args, **{**kwargs, "res_hidden_states_tuple": tuple(skips)})
        return self.base_layer(args[0], tuple(skips), *args[2:], **kwargs)


class ScaleLongTuner(AdapterTuner):
    """Attaches ScaleLong."""

    layer_cls = ScaleLayer
    skips: list[Skip]

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        self.skips = long_skips(self.model)
        self._gates: dict[int, SkipGate] = {}
        return super()._prepare_adapter_config(peft_config, model_config)

    def _blocks(self) -> list[str]:
        return list(dict.fromkeys(_block(skip) for skip in self.skips))

    def default_targets(self, config: ScaleLongConfig, model: nn.Module) -> str:
        return compress(model, self._blocks())

    def check_target(self, config: ScaleLongConfig, key: str, base: nn.Module) -> None:
        if key not in self._blocks():
            raise ValueError(f"{key!r} ({type(base).__name__}) is no up block; those are {', '.join(self._blocks())}")
        for skip in self.skips if config.method.startswith("ls") else ():
            require(skip.channels >= config.reduction, config, "reduction", f"at most {skip.channels}, a skip's width")

    def make_adapter(self, config: ScaleLongConfig, key: str, base: nn.Module, rows: Rows | None) -> SkipScales:
        indices = [j for j, skip in enumerate(self.skips) if _block(skip) == key]
        if not config.method.startswith("ls"):
            last = len(self.skips) - 1
            return SkipScales([constant_scale(config.method, last - j, config.kappa) for j in indices], None, {})
        gates, own = [], {}
        for j in indices:
            width = self.skips[j].channels
            place = j if config.method == "ls_per_skip" else width
            if place not in self._gates:
                self._gates[place] = own[str(place)] = SkipGate(width, config.reduction, config.init_weights)
            gates.append(self._gates[place])
        return SkipScales([], gates, own)

    def _post_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        super()._post_injection_hook(model, config, adapter_name)
        self._gates = {}


def _block(skip: Skip) -> str:
    return skip.reader.rpartition(".resnets.")[0]


@register(
    "scale_long",
    tuner=ScaleLongTuner,
    prefix="scalelong_",
    family="diffusion",
    summary="A factor on every long skip of a UNet, constant or from a gate",
    paper="Huang et al., NeurIPS 2023",
    needs="long skip connections",
)
@dataclass
class ScaleLongConfig(MethodConfig):
    """ScaleLong: a factor on every long skip of a UNet, before its decoder reads it.

    To train from scratch: ``dp.add_adapter(unet, ScaleLongConfig(method="cs", kappa=0.7))`` and then
    ``unet.requires_grad_(True)``. To tune a pretrained model take a gate, which starts at 1 (``2 σ(0)``), bit for bit;
    ``init_weights=False`` is the published start, at random near ½, for training from scratch. ``compose`` puts SCEdit
    beside it: scaled first, then edited. Nothing merges. SD 1.5, ``ls`` with reduction 16: 271,180 parameters.

    Args:
        method: ``none``, ``inv_sqrt2``, ``cs``, ``ls`` (one gate for all skips of a width) or ``ls_per_skip``.
        kappa: κ of ``cs``; the shallowest skip keeps the factor 1.
        reduction: channels by hidden units of a gate.
    """

    method: str = field(default="ls", metadata={"help": f"{', '.join(METHODS)}."})
    kappa: float = field(default=0.5, metadata={"help": "Factor from skip to skip of cs, in (0, 1]."})
    reduction: int = field(default=16, metadata={"help": "Channels by hidden units of a gate."})

    def __post_init__(self) -> None:
        super().__post_init__()
        choices(self, "method", METHODS)
        require(0 < self.kappa <= 1, self, "kappa", "in (0, 1]")
        require(self.reduction >= 1, self, "reduction", "at least 1")
