"""Which programs can read an adapter's file, and where the answer is no or half, why.

Read in the sources of PEFT 0.21, diffusers 0.42 (`loaders/`), ComfyUI (`comfy/lora.py`) and LyCORIS 4 (`kohya.py`);
these programs move on, so an answer is about what they were then.
"""

from peft.utils import PeftType

from peft_kernels.adapter_formats import Recognised

TIMM, PIPELINE = "timm", "pipeline"
_READ = {"LoRA", "LoRA, Tucker", "DoRA", "LoHa", "LoKr"}
_FLAT = "the names of the layers are written with underscores, which it does not take apart"


def readers(found: Recognised, peft_type: str | None, base: str | None) -> dict[str, str]:
    """Program -> ``yes ...``, ``in part ...`` or ``no ...``.

    Args:
        found: the keys.
        peft_type: as the configuration beside the file has it; ``None`` without one.
        base: `TIMM` or `PIPELINE` where the adapter's base is known to be a model of timm or a pipeline that is here.
    """
    if not found.kinds and not found.full:
        return {}
    return _of_peft(peft_type, base) if found.naming == "PEFT" else _of_others(found)


def _of_peft(peft_type: str | None, base: str | None) -> dict[str, str]:
    if peft_type is None:
        answer = "no: adapter_config.json is missing beside the file"
        return dict.fromkeys(("vision-peft", "diffusion-peft", "PEFT", "diffusers", "ComfyUI"), answer)
    own = peft_type not in {kind.value for kind in PeftType}
    package = "diffusion_peft" if base == PIPELINE else "vision_peft"
    answers = {
        "vision-peft": "no: it adapts a pipeline" if base == PIPELINE else "yes: `vision_peft.load_adapter`",
        "diffusion-peft": "no: it adapts a vision model" if base == TIMM else "yes: `diffusion_peft.load_adapter`",
        "PEFT": "yes: `PeftModel.from_pretrained`" + (f", after `import {package}`" if own else ""),
        "diffusers": "in part: through PEFT, on one component of a pipeline",
        "ComfyUI": "in part: in this naming it reads LoRA of SD3, PixArt, HunyuanDiT and ACE-Step"
        if peft_type == PeftType.LORA.value
        else "no: in this naming it reads LoRA alone",
    }
    return (
        answers | dict.fromkeys(("diffusers", "ComfyUI"), "no: it adapts a vision model") if base == TIMM else answers
    )


def _of_others(found: Recognised) -> dict[str, str]:
    kinds, flat = set(found.kinds), found.naming in ("kohya", "LyCORIS")
    answers = {
        "vision-peft": "no: it holds no adapter of a vision model in PEFT's format",
        "diffusion-peft": "yes: `diffusion_peft.load_adapter`"
        if kinds <= _READ
        else "no: it reads LoRA, LoHa and LoKr",
        "PEFT": f"no: {_FLAT}" if flat else "no: adapter_config.json is missing; diffusers makes one while loading",
        "diffusers": _diffusers(found, kinds),
        "ComfyUI": _comfy(found, kinds),
    }
    if flat:
        lora = kinds == {"LoRA"} and found.naming == "kohya"
        answers["sd-scripts"] = "yes" if lora else "in part: with `network_module=lycoris.kohya`"
        answers["LyCORIS"] = "yes"
    return answers


def _diffusers(found: Recognised, kinds: set[str]) -> str:
    if kinds == {"LoRA"}:
        if found.naming == "diffusers":
            return "yes: `load_lora_weights`"
        return "in part: `load_lora_weights` of the pipelines that convert this naming (SD 1, SD 2, SDXL, Flux, ...)"
    if kinds <= {"LoRA", "DoRA"}:
        if found.naming == "diffusers" and not any(
            "dora_scale" in key for p in found.layers.values() for key in p.values()
        ):
            return "yes: `load_lora_weights`"
        return "no: it leaves the magnitudes (`dora_scale`) out with a warning, which gives another model"
    if kinds == {"LoKr"}:
        return "in part: `load_lora_weights` of its Z-Image and Flux.2 pipelines"
    return f"no: it converts LoRA and, for two models, LoKr; found {', '.join(sorted(kinds))}"


def _comfy(found: Recognised, kinds: set[str]) -> str:
    strange = sorted(kinds & {"IA3", "T-LoRA"})
    if strange:
        return f"no: it has no {' and no '.join(strange)}"
    if "DoRA" in kinds:
        return "in part: magnitudes of outputs it divides by the norm of the plain weight, which DoRA does not"
    if found.naming == "diffusers":
        return (
            "in part: keys of transformers whose names it maps (SD3, Flux, PixArt, ...); of a UNet's attention only "
            "the older `processor` names"
        )
    return "yes"
