"""The exact form of an adapter in PEFT's own methods, which PEFT reads without this project, where there is one.

LoRA with factors per row block is LoRA of rank n r on the whole matrix: the ``A`` stacked, the ``B`` on the blocks of
a block structure, ``[B₁ 0; 0 0; 0 B₃] [A₁; A₃]``. The linear probe is a module to save and no layers.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from peft.utils import PeftType
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import Tensor, nn

from peft_kernels.adapter_formats import PEFT_ROOT
from peft_kernels.slices import rows_of
from peft_kernels.targets import reads_own_weight
from peft_kernels.tensors import CHILD
from peft_runs.errors import RunError

# Why a method has no exact form in PEFT.
REASONS = {
    "SNELL": "PEFT has no kernelised deltas, and their rank is too high for LoRA",
    "SPT": "PEFT has no method that trains modules, whole vectors and single entries together",
    "SNELLA": "PEFT has no kernelised deltas, and their rank is too high for LoRA",
    "SSF": "PEFT has no method that scales and shifts outputs",
    "BITFIT": "PEFT trains biases only by overwriting the base model's, which cannot be switched off again",
    "FULL": "PEFT trains whole modules in full and no single tensors, such as class tokens",
    "ADAPTER_PLUS": "PEFT has no bottleneck adapters",
    "VPT": "PEFT's prompts are for language models",
    "DIFFFIT": "PEFT has no method that trains biases, norms and scale factors together",
    "SARA": "PEFT's sparse method trains as many entries as a rank has, not those below a threshold",
    "FDCONV": "PEFT has no kernels that depend on the input",
    "SCEDIT": "PEFT has no method that edits skip connections",
    "SCALE_LONG": "PEFT has no method that edits skip connections",
}


def peft_form(
    config: PeftConfig, tensors: Mapping[str, Tensor], model: nn.Module
) -> tuple[PeftConfig, dict[str, Tensor]]:
    """Configuration and tensors that PEFT alone reads, with the same outputs.

    Args:
        config: the adapter's configuration.
        tensors: its tensors by their keys in the file.
        model: the base model, on the meta device if need be.

    Raises:
        RunError: there is no such form; the reason is told.
    """
    kind = kind_of(config)
    if kind in {known.value for known in PeftType}:
        return config, dict(tensors)
    raw = next((key for key in tensors if CHILD in key.split(".")), None)
    if kind == "SLICED_LORA" or kind == "LINEAR_PROBE":
        if raw is not None:
            raise RunError(f"no exact form in PEFT: it saves whole modules, and {raw!r} is a parameter of its own")
        return (_sliced if kind == "SLICED_LORA" else _probe)(config, tensors, model)
    raise RunError(f"no exact form in PEFT: {REASONS.get(kind, f'PEFT has no method {kind}')}")


def kind_of(config: PeftConfig) -> str:
    """The method's name in PEFT's table of methods."""
    return str(getattr(config.peft_type, "value", config.peft_type))


def _common(config: Any) -> dict[str, Any]:
    return {
        "modules_to_save": list(config.modules_to_save or []),
        "base_model_name_or_path": config.base_model_name_or_path,
        "inference_mode": True,
    }


def _probe(config: Any, tensors: Mapping[str, Tensor], model: nn.Module) -> tuple[PeftConfig, dict[str, Tensor]]:
    return LoraConfig(target_modules=DUMMY_TARGET_MODULES, **_common(config)), dict(tensors)


def _sliced(config: Any, tensors: Mapping[str, Tensor], model: nn.Module) -> tuple[PeftConfig, dict[str, Tensor]]:
    made: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        found = re.fullmatch(rf"{re.escape(PEFT_ROOT)}(.+)\.slicelr_adapter\.(.+\.[AB])", key)
        if found is None:
            made[key] = tensor  # the head
        else:
            layers.setdefault(found[1], {})[found[2]] = tensor
    for layer, factors in layers.items():
        base = model.get_submodule(layer)
        if not isinstance(base, nn.Linear) or reads_own_weight(model, layer):
            raise RunError(
                f"no exact form in PEFT: the attention around {layer!r} reads its weight instead of calling it, "
                "which PEFT's LoRA never notices"
            )
        rows = rows_of(config, layer, base) or {"all": (0, base.out_features)}
        down = torch.cat([factors[f"{name}.A"] for name in rows])
        up = down.new_zeros(base.out_features, down.shape[0])
        for i, (name, (start, stop)) in enumerate(rows.items()):
            up[start:stop, i * config.r : (i + 1) * config.r] = factors[f"{name}.B"]
        made[f"{PEFT_ROOT}{layer}.lora_A.weight"], made[f"{PEFT_ROOT}{layer}.lora_B.weight"] = down, up
        ranks[layer] = down.shape[0]
    rank = Counter(ranks.values()).most_common(1)[0][0]
    scale = (config.lora_alpha if config.lora_alpha is not None else config.r) / config.r
    others = {re.escape(layer): r for layer, r in ranks.items() if r != rank}
    lora = LoraConfig(
        r=rank,
        lora_alpha=_whole(scale * rank),
        rank_pattern=others,
        alpha_pattern={layer: _whole(scale * r) for layer, r in others.items()},
        lora_dropout=config.lora_dropout,
        target_modules=sorted(ranks),
        **_common(config),
    )
    return lora, made


def _whole(alpha: float) -> Any:
    return int(alpha) if float(alpha).is_integer() else alpha
