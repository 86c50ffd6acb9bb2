"""SSF, bottleneck adapters, LoRA on row blocks of a fused qkv, and prompts."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vision_peft.methods.adapter_plus import AdapterPlusConfig, fold_scaling
from vision_peft.methods.sliced_lora import SlicedLoraConfig
from vision_peft.methods.ssf import SsfConfig
from vision_peft.methods.vpt import VptConfig

from ..comparison import Tolerance
from ..harness import Results
from ..vectors import Vectors
from .attached import Attached, assign, probed
from .timm_modules import attention, blocks, convnext_part, vit


def tolerance(name: str, dtype: torch.dtype) -> Tolerance:
    """1e-10 in float64; in float32 2e-4 absolute on outputs and gradients, 1e-5 on folded tensors."""
    if dtype == torch.float64:
        return Tolerance(1e-10)
    return Tolerance(2e-4, absolute=True) if name.startswith(("output.", "grad")) else Tolerance(1e-5)


def _exactly(names: list[str]) -> str:
    """A regular expression for these module names and no others."""
    return "|".join(re.escape(name) for name in names)


def _filled(attached: Attached, case: Vectors, places: Mapping[str, tuple[str, str]]) -> dict[str, nn.Parameter]:
    """The adapter's parameters by the file's names, holding the file's values."""
    parameters = {name: attached.parameter(*place) for name, place in places.items()}
    assign({parameter: case[f"param.{name}"] for name, parameter in parameters.items()})
    return parameters


def _ssf(case: Vectors, module: nn.Module) -> tuple[Attached, dict[str, nn.Parameter]]:
    sites = list(case.below("param.scale"))
    attached = Attached(module, SsfConfig(target_modules=_exactly(sites), modules_to_save=[]))
    places = {f"{what}.{site}": (site, what) for what in ("scale", "shift") for site in sites}
    return attached, _filled(attached, case, places)


def _folded(case: Vectors, model: nn.Module) -> dict[str, Tensor]:
    return {f"merged.{name}": model.get_parameter(name) for name in case.below("merged")}


def ssf_vit(case: Vectors) -> Results:
    """A vision transformer with scale and shift after every operation, and the same folded."""
    attached, parameters = _ssf(case, vit(case))
    x = case["input.x"].clone().requires_grad_()
    y = attached.model(x)
    found = {"output.y": y, **probed(y, case["input.probe"], {**parameters, "x": x})}
    model = attached.merged()
    return {"SsfConfig": found, "merged": {"output.y": model(case["input.x"]), **_folded(case, model)}}


def ssf_convnext(case: Vectors) -> Results:
    """A downsampling and a ConvNeXt block with scale and shift after every operation, and the same folded."""
    attached, parameters = _ssf(case, convnext_part(case))
    x = case["input.x"].clone().requires_grad_()
    down, y = attached.model(x)
    found = {"output.downsample": down, "output.y": y, **probed(y, case["input.probe"], {**parameters, "x": x})}
    model = attached.merged()
    down, y = model(case["input.x"])
    return {"SsfConfig": found, "merged": {"output.downsample": down, "output.y": y, **_folded(case, model)}}


def _bottleneck(case: Vectors, position: str, targets: list[str]) -> AdapterPlusConfig:
    return AdapterPlusConfig(
        r=case.options["bottleneck"],
        position=position,
        scaling=case.options["scaling"],
        activation=case.options["activation"],
        use_bias=any(name.endswith("down.bias") for name in case.below("param")),
        target_modules=_exactly(targets),
        modules_to_save=[],
    )


# The module within a block that holds the adapter of each position; houlsby has a second one, ``adapter_attn``.
_SITE = {
    "post": "",
    "pfeiffer": "",
    "intermediate": ".drop_path2",
    "houlsby": ".drop_path2",
    "pre": ".norm2",
    "parallel": ".norm2",
}


def adapter_plus_stack(case: Vectors) -> Results:
    """Blocks with a bottleneck adapter after each, and the same with the scale folded into the up-projection."""
    position = case.options["position"]
    places = {}
    for name in case.below("param"):
        block, leaf = name.split(".adapter.")
        places[name] = (block + _SITE[position], leaf)
    sites = sorted({site for site, _ in places.values()})
    attached = Attached(blocks(case), _bottleneck(case, position, sites))
    parameters = _filled(attached, case, places)
    x = case["input.x"].clone().requires_grad_()
    y = attached.model(x)
    found = {"output.y": y, **probed(y, case["input.probe"], {**parameters, "x": x})}
    fold_scaling(attached.model)
    folded = {f"folded.{name}": parameters[name] for name in case.below("folded")}
    return {"AdapterPlusConfig": found, "folded": {"output.y": attached.model(case["input.x"]), **folded}}


def adapter_positions(case: Vectors) -> Results:
    """One block and one set of adapter parameters at each of the positions."""
    found = {}
    for position in case.below("output"):
        groups = {f"blocks.0{_SITE[position]}": "adapter"}
        if position == "houlsby":
            groups["blocks.0.drop_path1"] = "adapter_attn"
        attached = Attached(blocks(case), _bottleneck(case, position, list(groups)))
        for site, group in groups.items():
            own = dict(attached.adapters[site].named_parameters())
            assign({parameter: case[f"param.{group}.{name}"] for name, parameter in own.items()})
        found[f"output.{position}"] = attached.model(case["input.x"])
    return {"AdapterPlusConfig": found}


def lora_fused_qkv(case: Vectors) -> Results:
    """An attention module with LoRA on some of its projections, and the same merged."""
    options = case.options
    settings = SlicedLoraConfig(
        r=options["rank"],
        lora_alpha=options.get("scaling", 1.0) * options["rank"],
        slices=options["slices"],
        target_modules=["qkv"],
        modules_to_save=[],
    )
    attached = Attached(attention(case), settings)
    places = {name: ("qkv", name.removeprefix("lora.")) for name in case.below("param")}
    parameters = _filled(attached, case, places)
    x = case["input.x"].clone().requires_grad_()
    y = attached.model(x)
    found = {"output.y": y, **probed(y, case["input.probe"], {**parameters, "x": x})}
    model = attached.merged()
    return {"SlicedLoraConfig": found, "merged": {"output.y": model(case["input.x"]), **_folded(case, model)}}


def vpt_deep(case: Vectors) -> Results:
    """A vision transformer with prompts of its own in every block."""
    sites = [name.removesuffix(".prompt") for name in case.below("param")]
    config = VptConfig(num_tokens=case.options["num_tokens"], target_modules=_exactly(sites), modules_to_save=[])
    attached = Attached(vit(case), config)
    parameters = _filled(attached, case, {f"{site}.prompt": (site, "prompt") for site in sites})
    x = case["input.x"].clone().requires_grad_()
    y = attached.model(x)
    return {"VptConfig": {"output.y": y, **probed(y, case["input.probe"], {**parameters, "x": x})}}
