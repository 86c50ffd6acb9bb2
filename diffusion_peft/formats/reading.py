"""Read LoRA, LoHa and LoKr files of other programs as PEFT adapters of a denoiser: kohya, LyCORIS, ComfyUI, diffusers.

What SCEdit's authors have saved is read by `formats.scedit`.

    config, tensors = read_foreign("style.safetensors", pipe.unet)

A key that is for nothing raises, with the share that matched; what is for the text encoders is left out only on demand.
A layer without ``alpha`` has the scale 1, as in sd-scripts, ComfyUI and diffusers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import PeftConfig, PeftModel
from peft.utils import CONFIG_NAME
from torch import Tensor, nn

from diffusion_peft.formats.factors import as_peft_has_them
from diffusion_peft.formats.flux import is_flux, layers_of, split
from diffusion_peft.formats.low_rank import LOHA, LOKR, LORA, LowRank, NoFormError, scale_of
from diffusion_peft.formats.names import component, flat, flat_names, sgm_names
from diffusion_peft.formats.scedit import is_scedit, read_scedit
from diffusion_peft.formats.to_peft import to_peft
from peft_kernels.adapter_files import AdapterError, refuse_pickle
from peft_kernels.adapter_fit import describe
from peft_kernels.adapter_formats import Recognised, recognise
from peft_kernels.adapter_tensors import read_header, read_tensors
from peft_kernels.targets import plain_modules

_KINDS = {"LoRA": LORA, "LoRA, Tucker": LORA, "DoRA": LORA, "LoHa": LOHA, "LoKr": LOKR}
_TEXT = re.compile(r"lora_(prior_)?te\d?_|text_encoders?(_\d)?\.|lycoris_text_model_")
_START = re.compile(r"(base_model\.model|unet|transformer|diffusion_model)\.|(lora_unet|lora_transformer|lycoris)_")


@dataclass
class Names:
    """The layers of a file against a model.

    Attributes:
        matched: the model's names of the layers, by those in the file.
        text: layers that are for text encoders.
        unmatched: layers and keys that are for nothing.
    """

    matched: dict[str, str] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """The share that matched, of what is not for text encoders."""
        return len(self.matched) / max(1, len(self.matched) + len(self.unmatched))


def resolve(found: Recognised, model: nn.Module) -> Names:
    """Which layer of ``model`` each layer of a file is for."""
    plain, sgm = flat_names(model), sgm_names(model)
    names = Names(unmatched=list(found.others))
    for layer in (*found.layers, *found.full):
        # Older diffusers named attention weights after their processors, and the last one without its place.
        bare = re.sub(r"\.processor(?=\.|$)|_processor(?=_to_)", "", _START.sub("", layer, count=1))
        key = flat(bare)
        path = plain.get(key) or sgm.get(key) or (plain.get(f"{key}_0") if key.endswith("to_out") else None)
        if path is None and is_flux(model):
            path = next((part for part in layers_of(layer) if flat(part) in plain), None)
        if path is not None:
            names.matched[layer] = path
        else:
            (names.text if _TEXT.match(layer) else names.unmatched).append(layer)
    return names


def read_foreign(path: str | Path, model: nn.Module, part: str | None = None) -> tuple[PeftConfig, dict[str, Tensor]]:
    """The adapter in a file of another program, as PEFT has it; whether all its shapes fit is not yet compared.

    Args:
        path: a safetensors file.
        model: the denoiser that it is for, on the meta device if need be; adapters that it carries are passed over.
        part: ``"unet"`` or ``"transformer"`` leaves out what is for text encoders, which otherwise raises.

    Returns:
        Configuration, and tensors by PEFT's keys.

    Raises:
        AdapterError: the file is a pickle or damaged, holds NaN, no LoRA, LoHa or LoKr or several of them, factors that
            PEFT has no place for, or is for another model or for text encoders as well.
    """
    path = Path(path)
    refuse_pickle(path)
    model = model.get_base_model() if isinstance(model, PeftModel) else model  # type: ignore[assignment]
    if part not in (None, component(model)):
        raise AdapterError(f"the part {part!r} is not what {describe(model)} is: expected {component(model)!r}")
    header, tensors, bases = read_header(path)[1], read_tensors(path), dict(plain_modules(model))
    if is_scedit(tensors):
        return read_scedit(path, tensors, model)
    if is_flux(model):
        tensors = split(tensors, bases)
    found = recognise(tensors)
    kind = _kind(found, path)
    names = resolve(found, model)
    _check_names(names, path, model, part)
    saved = _saved_config(header, component(model))
    low_rank = LowRank(kind, {}, {})
    try:
        for layer, place in names.matched.items():
            if place in low_rank.layers:
                raise NoFormError(f"{place!r} is there under two names, one of them {layer!r}")
            parts = {name: tensors[key] for name, key in found.layers[layer].items()}
            low_rank.layers[place], scale = as_peft_has_them(kind, place, parts, bases[place])
            low_rank.scales[place] = scale if saved is None else scale_of(saved, place)
        return to_peft(low_rank, model)
    except NoFormError as error:
        raise AdapterError(f"{path}: {error}") from None


def _kind(found: Recognised, path: Path) -> str:
    if found.naming == "PEFT":
        raise AdapterError(f"{path} is PEFT's, whose alpha is in the {CONFIG_NAME} beside it: give the folder")
    kinds = {_KINDS.get(kind) for kind in found.kinds}
    if not kinds or None in kinds:
        what = ", ".join(found.kinds) or "no adapter that is known"
        raise AdapterError(f"{path} holds {what}; LoRA, LoHa, LoKr and SCEdit can be read")
    if len(kinds) > 1:
        raise AdapterError(f"{path} mixes {' and '.join(found.kinds)}, each of which would be an adapter of its own")
    return str(kinds.pop())


def _check_names(names: Names, path: Path, model: nn.Module, part: str | None) -> None:
    if names.unmatched or not names.matched:
        first = (names.unmatched or names.text)[0]
        raise AdapterError(
            f"{path} does not fit {describe(model)}: {len(names.unmatched)} of its layers and keys are for nothing, "
            f"first {first!r} ({len(names.matched)} match, {names.share:.0%})"
        )
    if names.text and part is None:
        raise AdapterError(
            f"{path} also holds {len(names.text)} layers for text encoders, first {names.text[0]!r}: "
            f"part={component(model)!r} (--part {component(model)}) leaves them out"
        )


def _saved_config(header: Mapping[str, str], name: str) -> Any:
    """What scales the factors, as diffusers writes it into the header; ``None`` where there is nothing."""
    try:
        values = json.loads(header.get(LORA_ADAPTER_METADATA_KEY, "{}"))
        own = {key.removeprefix(f"{name}."): value for key, value in values.items() if key.startswith(f"{name}.")}
    except (ValueError, AttributeError):
        own = {}
    sizes = {"r": _number, "lora_alpha": _number, "alpha": _number, "rank_pattern": _pattern, "alpha_pattern": _pattern}
    known = {key: check(own[key]) for key, check in sizes.items() if key in own}
    if None in known.values() or "r" not in known or not {"lora_alpha", "alpha"} & set(known):
        return None
    known = {"rank_pattern": {}, "alpha_pattern": {}, **known}
    return SimpleNamespace(**known, use_rslora=own.get("use_rslora") is True)


def _number(value: object) -> float | None:
    return value if isinstance(value, (int, float)) and value > 0 else None


def _pattern(value: object) -> dict[str, float] | None:
    if not isinstance(value, dict) or not all(_number(entry) for entry in value.values()):
        return None
    try:
        return value if all(map(re.compile, value)) else None
    except re.error:
        return None
