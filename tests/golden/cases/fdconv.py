"""Frequency dynamic convolution: one convolution or linear layer, and its parts."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from peft_kernels.ops.fdconv import band_masks, reference
from vision_peft.methods.fdconv import FdconvConfig

from ..comparison import Tolerance
from ..harness import Results
from ..vectors import Vectors
from .attached import Attached, assign, probed

SITE = "layer"
# Parts of the layer as the files call them, and as they are called here.
NAMES = {
    "ksm_global.fc.": "ksm_global.squeeze.",
    "ksm_global.bn.": "ksm_global.norm.",
    "ksm_local.conv.": "ksm_local.",
}


def tolerance(name: str, dtype: torch.dtype) -> Tolerance:
    """1e-10 in float64; in float32 2e-5 on outputs, 1e-4 on gradients."""
    if dtype == torch.float64:
        return Tolerance(1e-10)
    return Tolerance(1e-4 if name.startswith("grad") else 2e-5)


def _config(case: Vectors, channels: int, **fields: Any) -> FdconvConfig:
    options = case.options
    return FdconvConfig(
        mode="spectral" if options["convert_param"] else "frozen_base",
        kernel_num=options["kernel_num"],
        param_ratio=options["param_ratio"],
        reduction=min(1.0, (options["hidden"] + 0.5) / channels),
        temp=options["temp"],
        kernel_temp=options["kernel_temp"],
        att_multi=options["att_multi"],
        use_ksm_local=options["use_ksm_local"],
        use_fdconv_if_c_gt=0,
        freq_order="official",
        target_modules=[SITE],
        modules_to_save=[],
        **fields,
    )


def _attached(case: Vectors, base: Any, config: FdconvConfig) -> tuple[Attached, dict[str, nn.Parameter]]:
    """The layer with the file's values, and its trained parameters by the file's names."""
    weight = case["param.weight"] if "param.weight" in case else torch.zeros_like(base.weight)
    with torch.no_grad():
        base.weight.copy_(weight)
    attached = Attached(nn.Sequential(OrderedDict({SITE: base})), config)
    adapter: Any = attached.adapters[SITE]
    adapter.groups.copy_(case["buffer.group_id"])
    for name, value in case.below("buffer.ksm_global.bn").items():
        getattr(adapter.ksm_global.norm, name).copy_(value)
    own = dict(adapter.named_parameters())
    owned = {"weight": base.weight, "bias": base.bias} if config.mode == "frozen_base" else {}
    parameters: dict[str, nn.Parameter] = {}
    for name in case.below("param"):
        if name.startswith("fbm."):
            continue
        here = name
        for theirs, ours in NAMES.items():
            here = here.replace(theirs, ours)
        parameters[name] = owned[name] if name in owned else own[here]
    assign({parameter: case[f"param.{name}"] for name, parameter in parameters.items()})
    if adapter.fbm is not None:
        for leaf in ("weight", "bias"):
            bands = [case[f"param.fbm.band{i}.{leaf}"] for i in range(len(adapter.fbm.weight))]
            parameters[f"fbm.{leaf}"] = getattr(adapter.fbm, leaf)
            assign({parameters[f"fbm.{leaf}"]: torch.stack(bands)})
    trained = {id(parameter) for parameter in parameters.values()}
    unset = [name for name, parameter in own.items() if id(parameter) not in trained]
    if unset:
        raise ValueError(f"the file has no values for {', '.join(unset)}")
    for parameter in parameters.values():
        parameter.requires_grad_()
    return attached, parameters


def _results(case: Vectors, attached: Attached, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    x = case["input.x"].clone().requires_grad_()
    y = attached.model(x)
    found = {"output.y": y, **probed(y, case["input.probe"], {**parameters, "x": x})}
    for leaf in ("weight", "bias"):
        bands = found.pop(f"grad.fbm.{leaf}", None)
        for i, band in enumerate(bands if bands is not None else ()):
            found[f"grad.fbm.band{i}.{leaf}"] = band
    return found


def conv(case: Vectors) -> Results:
    """A convolution: output, gradients, kernels, bands, and statistics of the batch norm after a training step."""
    options = case.options
    bands = options["fbm"] or {}
    sizes = options["in_channels"], options["out_channels"], tuple(options["kernel_size"])
    base = nn.Conv2d(
        *sizes, options["stride"], options["padding"], options["dilation"], bias="param.bias" in case, dtype=case.dtype
    )
    config = _config(
        case,
        options["in_channels"],
        ksm_only_kernel_att=options["ksm_only_kernel_att"],
        ksm_global_act=options["ksm_global_act"],
        ksm_local_act=options["ksm_local_act"],
        ksm_norm="batch" if options["training"] else "frozen",
        use_fdconv_if_k_in=[options["kernel_size"][0]],
        use_fbm_if_k_in=[options["kernel_size"][0]] if bands else [],
        **{f"fbm_{name}": value for name, value in bands.items()},
    )
    attached, parameters = _attached(case, base, config)
    attached.model.train(options["training"])
    adapter: Any = attached.adapters[SITE]
    found = _results(case, attached, parameters)
    if options["training"]:
        norm = adapter.ksm_global.norm
        found["output.bn.running_mean"], found["output.bn.running_var"] = (
            norm.running_mean.clone(),
            norm.running_var.clone(),
        )
    found["output.kernel"] = attached.model.get_submodule(f"base_model.model.{SITE}").kernels(case["input.x"])  # type: ignore[operator]
    formulas = {}
    if adapter.fbm is not None:
        x = case["input.x"]
        found["output.fbm_x"] = adapter.fbm(x)
        masks = band_masks(adapter.fbm.cuts, *x.shape[-2:], kind=adapter.fbm.masks).to(x.dtype)
        formulas["output.fbm_x"] = reference.band_modulation(x, adapter.fbm.maps(x), masks)
    return {"FdconvConfig": found, "reference": formulas}


def linear(case: Vectors) -> Results:
    """The authors' variant of a linear layer: output and gradients."""
    options = case.options
    sizes = options["in_features"], options["out_features"]
    base = nn.Linear(*sizes, bias="param.bias" in case, dtype=case.dtype)
    act = options["act"]
    config = _config(case, sizes[0], ksm_norm=options["norm"], ksm_global_act=act, ksm_local_act=act)
    attached, parameters = _attached(case, base, config)
    return {"FdconvConfig": _results(case, attached, parameters)}
