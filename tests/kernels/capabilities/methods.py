"""The methods of the table: how each is configured for a layer type, and what it does not do, with its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

import diffusion_peft as dp
import vision_peft as vp

from .lack import NO_MEANING, Lack
from .layers import LAYERS, LayerType

NORMS = ("LayerNorm", "GroupNorm", "BatchNorm2d")
BLOCK = "transformer block"
SKIP_READERS = ("Linear", "Conv2d", BLOCK)  # as decoder blocks: a skip lies behind the other channels they read
MERGES = ("merge", "safe merge", "unmerge", "merge and unload", "several merged")


@dataclass(frozen=True, eq=False)
class Method:
    """One method of the table.

    Attributes:
        name: its name.
        config_class: its configuration.
        settings: fields that make its forward pass deterministic and its adapter small.
        random: the field and value that ask for a random start.
        attach: layer types that cannot be adapted, each with what the error matches.
        lacks: capabilities it does not have.
        own: whether the method is this project's; of PEFT's own methods the table tells what they do.
        made: makes the configuration from a layer type and its fields, where these are not enough.
    """

    name: str
    config_class: type[PeftConfig]
    settings: Mapping[str, Any] = field(default_factory=dict)
    random: Mapping[str, Any] = field(default_factory=lambda: {"init_weights": False})
    attach: Mapping[str, str] = field(default_factory=dict)
    lacks: tuple[Lack, ...] = ()
    own: bool = True
    made: Callable[[LayerType, dict[str, Any]], PeftConfig] | None = None

    def config(self, layer: LayerType, **fields: Any) -> PeftConfig:
        """A new configuration that targets ``layer``."""
        if self.name == "linear_probe":
            return self.config_class(**{"modules_to_save": [layer.target], **self.settings, **fields})
        ranks = {"r": LORA_RANKS.get(layer.name, 4)} if self.config_class is peft.LoraConfig else {}
        values = {"target_modules": [layer.target], **ranks, **self.settings, **fields}
        return self.made(layer, values) if self.made else self.config_class(**values)

    def both(self, layer: LayerType) -> dict[str, Any]:
        """The field that targets both modules of the tiny model."""
        names = [layer.target, layer.target.replace("layer", "other")]
        return {"modules_to_save" if self.name == "linear_probe" else "target_modules": names}

    def start_at_random(self, layer: LayerType, model: nn.Module) -> PeftModel:
        """``model`` with an adapter whose start changes the function."""
        return peft.get_peft_model(model, self.config(layer, **self.random))  # type: ignore[return-value]

    def gains(self, layer: LayerType) -> set[str]:
        """The keys that a merged model has beside those of the base model: a bias where there was none."""
        return {"layer.bias"} if self.name in ("ssf", "difffit") and layer.name == "Linear without bias" else set()

    def lack(self, capability: str, layer: LayerType) -> Lack | None:
        """Why the method has not the capability on the layer type; ``None`` if it must have it."""
        if layer.name in self.attach:
            match = self.attach[layer.name] if capability == "attach" else NO_MEANING
            return Lack((capability,), match)
        for lack in (*self.lacks, *(OWN_LACKS if self.own else PEFT_LACKS), *ALL_LACKS):
            if capability in lack.capabilities and (not lack.layers or layer.name in lack.layers):
                return lack
        return None

    def has(self, capability: str, layer: LayerType) -> bool:
        """Whether it has the capability on the layer type."""
        return self.lack(capability, layer) is None


ALL_LACKS = (Lack(("recompute",), NO_MEANING, layers=NORMS),)
OWN_LACKS = (
    Lack(("several in one batch",), "cannot mix adapters within one batch", "one adapter, or one sum of them, a batch"),
)
PEFT_LACKS = (
    Lack(("raw parameters to save",), "the parameter was ignored", "PEFT ignores raw parameters without a word"),
    Lack(("unmatched names raise",), "DID NOT RAISE", "PEFT ignores unmatched names without a word"),
    Lack(("all or nothing",), "a failed attachment changed the model", "PEFT leaves the model half wrapped"),
)


def _planned(layer: LayerType, fields: dict[str, Any]) -> PeftConfig:
    """SPT's configuration for scores that give the matrices a module where they can have one, else single entries."""
    model, generator = layer.model(), torch.Generator().manual_seed(2)
    scores = {name: torch.rand(p.shape, generator=generator) for name, p in model.named_parameters()}
    return vp.SptConfig.from_scores(model, scores, **fields)


def _with_factor(layer: LayerType, fields: dict[str, Any]) -> PeftConfig:
    """DiffFit's configuration with a factor on linear and convolution layers, and with embedding layers trained."""
    if layer.name.startswith(("Linear", "Conv")):
        fields = {"gamma_modules": {"ffn_out": "layer|other"}, **fields}
    return dp.DiffFitConfig(**{"train_embedding": "layer|other" if layer.tokens else True, **fields})


def _with_skips(layer: LayerType, fields: dict[str, Any]) -> PeftConfig:
    """SCEdit's configuration for modules that read a skip of three channels behind what else they read."""
    named = peft.LoraConfig(**{name: value for name, value in fields.items() if name.endswith("_modules")})
    blocks = [name for name, _ in layer.model().named_modules() if name and check_target_module_exists(named, name)]
    return dp.SceditConfig(**{"skip_channels": [3] * len(blocks), **fields})


def _refuses(layers: tuple[str, ...], reason: str) -> dict[str, str]:
    return dict.fromkeys(layers, reason)


LORA_REFUSES = {
    **_refuses((*NORMS, BLOCK), "is not supported"),
    "Conv2d strided, dilated": "must match the size of tensor b",  # PEFT's A has no dilation
}
GROUPED = ("Conv2d grouped", "Conv2d depthwise")
LORA_LACKS = (
    Lack(MERGES, "Merging is not supported for", layers=GROUPED),
    Lack(("effective tensors shown",), NO_MEANING, layers=GROUPED),  # there is no merged tensor to compare with
    Lack(("unmerge", "several merged"), "not equal", "PEFT subtracts: the base weight comes back rounded"),
    Lack(("effective tensors shown",), "not the one in effect", "PEFT shows the base tensors"),
)
LORA_ATTENTION = "PEFT merges into its attention's weights in each forward pass: bits of the base are lost"
LORA_RANKS = {"Conv2d depthwise": 6}  # PEFT: a multiple of the groups
SLICES = {"qkv[q,v]": "adapts whole modules"}
EVERYTHING_BUT_BLOCKS = tuple(name for name in LAYERS if name != BLOCK)
EVERYTHING_BUT_LINEAR = tuple(name for name in LAYERS if "Linear" not in name and name != "qkv[q,v]")

METHODS = {
    method.name: method
    for method in (
        Method(
            "snell",
            vp.SnellConfig,
            {"r": 4, "sparsity": 0.3, "scale": 1.0, "dropout": 0.0, "drop_path": 0.0},
            attach={
                "Conv2d depthwise": "one input feature per output",
                **_refuses((*NORMS, BLOCK), "Config adapts matrices"),
            },
        ),
        Method(
            "snella",
            vp.SnellaConfig,
            # The published start adds 1 / outputs, squared by the gate: much in layers as small as these.
            {"r": 4, "initial_sparsity": 0.3, "scale": 1.0, "alpha0": 0.2, "dropout": 0.0, "drop_path": 0.0},
            attach={
                "Conv2d depthwise": "one input feature per output",
                **_refuses((*NORMS, BLOCK), "Config adapts matrices"),
            },
        ),
        Method("ssf", vp.SsfConfig, attach=SLICES, lacks=(Lack(MERGES, "SSF after a whole", layers=(BLOCK,)),)),
        Method(
            "bitfit",
            vp.BitFitConfig,
            attach={**SLICES, **_refuses(("Linear without bias", "Embedding", BLOCK), "has no bias to train")},
        ),
        Method(
            "difffit",
            dp.DiffFitConfig,
            {"gamma_sites": [], "add_bias": True},
            attach={**SLICES, BLOCK: "has nothing that this DiffFitConfig trains"},
            made=_with_factor,
        ),
        Method("full", vp.FullConfig, attach={**SLICES, BLOCK: "has no parameter to train"}),
        Method(
            "adapter_plus",
            vp.AdapterPlusConfig,
            {"r": 4, "drop_path": 0.0},
            attach=SLICES,
            lacks=(Lack(MERGES, "cannot be merged: an activation function stands between"),),
        ),
        Method(
            "fdconv",
            vp.FdconvConfig,
            {"kernel_num": 2, "use_fdconv_if_c_gt": 0},
            attach={
                **SLICES,
                "Conv2d grouped": "has 2 groups",
                "Conv2d depthwise": "is a depthwise convolution",
                **_refuses(
                    (*NORMS, BLOCK, "Embedding", "Conv1d", "Conv3d", "MultiheadAttention"),
                    "adapts 2d convolutions and linear layers",
                ),
            },
            # The convolution keeps the kernels of all samples, as it keeps its input.
            lacks=(Lack(MERGES, "cannot be merged: its kernel depends on the input"), Lack(("recompute",), NO_MEANING)),
        ),
        Method(
            "vpt",
            vp.VptConfig,
            {"num_tokens": 2, "dropout": 0.0},
            attach={**_refuses(EVERYTHING_BUT_BLOCKS, "prompts whole transformer"), **SLICES},
            lacks=(Lack(MERGES, "cannot be merged: prompts are tokens"), Lack(("recompute",), NO_MEANING)),
        ),
        Method(
            "sliced_lora",
            vp.SlicedLoraConfig,
            {"r": 4, "lora_dropout": 0.0},
            attach=_refuses(EVERYTHING_BUT_LINEAR, "adapts linear layers"),
        ),
        Method(
            "spt",
            vp.SptConfig,
            {"rank": 2, "budget": 0.4, "budget_rule": "at_most", "module_dropout": 0.0, "module_drop_path": 0.0},
            attach={"transformer block": "SPT finds nothing to train"},
            made=_planned,
        ),
        Method(
            "sara",
            dp.SaraConfig,
            {"threshold": 0.8},
            attach={**SLICES, BLOCK: "has no parameter to train"},
        ),
        Method(
            "scedit",
            dp.SceditConfig,
            attach=_refuses(tuple(name for name in LAYERS if name not in SKIP_READERS), NO_MEANING),
            # A block keeps activations of its own, as large as its weights, for the gradient of what it reads.
            lacks=(
                Lack(MERGES, "cannot be merged: a GELU stands between"),
                Lack(("recompute",), NO_MEANING, layers=(BLOCK,)),
            ),
            made=_with_skips,
        ),
        Method(
            "linear_probe",
            vp.LinearProbeConfig,
            attach={"qkv[q,v]": "neither a module nor a parameter"},
            lacks=(
                Lack(("several at once", "several merged"), "Only one adapter can be set at a time"),
                Lack(("excluded modules", "regex targets"), "a linear probe adapts no modules"),
                Lack(("merge", "safe merge", "unmerge", "unload", "scale", "recompute"), NO_MEANING),
            ),
        ),
        Method(
            "lora",
            peft.LoraConfig,
            {"lora_alpha": 4, "lora_dropout": 0.0},
            random={"init_lora_weights": False},
            attach={**LORA_REFUSES, "qkv[q,v]": "not found in the base model"},
            lacks=(
                Lack(("scale",), "the outputs differ by", "PEFT's embedding ignores `scale_layer`", ("Embedding",)),
                *(
                    Lack(names, match, note, ("MultiheadAttention",))
                    for names, match, note in (
                        (("switch", "disable", "delete", "unmerge", "scale", "hot swap"), "not equal", LORA_ATTENTION),
                        (("several merged", "modules to save"), "not equal", LORA_ATTENTION),
                        (("several at once",), "no gradient", "PEFT trains one adapter of its attention at a time"),
                        (("several in one batch",), "does not support mixed adapter batches", ""),
                        (("compile", "recompute"), "Failed to mutate tensor data", LORA_ATTENTION),
                        (("unload",), "other keys", "PEFT leaves keys of its own"),
                    )
                ),
                *LORA_LACKS,
            ),
            own=False,
        ),
        Method(
            "dora",
            peft.LoraConfig,
            {"lora_alpha": 4, "lora_dropout": 0.0, "use_dora": True},
            random={"init_lora_weights": False},
            attach={
                **LORA_REFUSES,
                "qkv[q,v]": "not found in the base model",
                "MultiheadAttention": "does not support DoRA",
            },
            lacks=(
                *LORA_LACKS,
                Lack(("scale",), "not equal", "at scale 0 DoRA's magnitudes stay"),
                Lack(("several in one batch",), "Cannot pass `adapter_names` when DoRA is enabled"),
                Lack(("compile", "recompute"), r"nn.Parameter\(\)", "PEFT makes a Parameter each time", ("Embedding",)),
            ),
            own=False,
        ),
        Method(
            "ln_tuning",
            peft.LNTuningConfig,
            attach=_refuses(tuple(name for name in LAYERS if name not in NORMS), NO_MEANING),
            lacks=(
                Lack(("several at once", "several merged"), "does not allow inference with more than one adapter"),
                Lack(("several in one batch",), "not close", "PEFT drops `adapter_names` without a word"),
                Lack(("random start",), "unexpected keyword argument", "it starts at the base model"),
                Lack(("scale",), "no attribute 'set_scale'"),
                Lack(("safe merge",), "DID NOT RAISE", "PEFT does not look for NaN here"),
                Lack(("modules to save",), "extra keys", "PEFT leaves `modules_to_save` wrapped"),
                Lack(("effective tensors shown",), "not the one in effect", "PEFT shows the base tensors"),
            ),
            own=False,
        ),
    )
}
