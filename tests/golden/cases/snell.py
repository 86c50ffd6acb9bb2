"""SNELL: one delta, a training trace, a transformer block with an adapter on every matrix."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_kernels.ops.kernel_delta import KERNEL_SCALARS, DeltaSlice, DeltaSpec, delta_sparse, gated_linear, reference
from vision_peft.methods.kernelised import KernelConfig
from vision_peft.methods.snell import SnellConfig

from ..comparison import Tolerance
from ..harness import Results
from ..vectors import Vectors
from .attached import Attached, assign, probed
from .timm_modules import blocks, with_tensors

Configure = Callable[[Vectors, float, list[str]], KernelConfig]
FLOAT32_TENTH = float(torch.tensor(0.1, dtype=torch.float32))  # the authors' factor c0


def tolerance(name: str, dtype: torch.dtype) -> Tolerance:
    """Relative: 1e-9 in float64; 2e-4 in float32, gradients 2e-3."""
    if dtype == torch.float64:
        return Tolerance(1e-9)
    return Tolerance(2e-3 if name.startswith("grad") else 2e-4)


def training_tolerance(name: str, dtype: torch.dtype) -> Tolerance:
    """1e-6 on parameters, and as elsewhere on the losses."""
    return Tolerance(1e-6) if name.startswith("param.") else tolerance(name, dtype)


def config(case: Vectors, scale: float, target_modules: list[str]) -> SnellConfig:
    """The configuration that a user would write for the case."""
    options = case.options
    return SnellConfig(
        r=options["rank"],
        num_parts=options.get("parts", 2),
        kernel=options.get("kernel", "piecewise_linear"),
        kernel_p=options.get("p", 2.0),
        scale=scale,
        sparsity=options["sparsity"] or 0.0,
        gate=options.get("gate", "auto"),
        dropout=0.0,
        drop_path=0.0,
        target_modules=target_modules,
        modules_to_save=[],
    )


def scale_of(case: Vectors) -> float:
    """The factor c0 of the stored coefficients ``c0, -c0, c0, ...``.

    Raises:
        ValueError: the coefficients do not alternate, so that no configuration stands for them.
    """
    if "buffer.coeff" not in case:
        return FLOAT32_TENTH
    first, *rest = case["buffer.coeff"].tolist()
    if rest != [first * (-1) ** part for part in range(1, len(rest) + 1)]:
        raise ValueError(f"buffer.coeff must alternate in sign, found {[first, *rest]}")
    return first


def points(case: Vectors) -> dict[str, Tensor]:
    """A, B and the kernel's scalars, each a leaf that takes gradients."""
    names = ["A", "B", *KERNEL_SCALARS[case.options["kernel"]]]
    return {name: case[f"param.{name}"].clone().requires_grad_() for name in names}


def delta(case: Vectors, configure: Configure = config) -> Results:
    """One delta and the linear layer it belongs to: by the formulas, by the fused operations, and attached by PEFT."""
    options = case.options
    coeff = tuple(case["buffer.coeff"].tolist()) if "buffer.coeff" in case else (1.0,)
    spec = DeltaSpec(
        sparsity=options["sparsity"] or 0.0,
        gate=options["gate"],
        kernel=options["kernel"],
        p=options.get("p", 2.0),
        coeff=coeff,
    )
    weight, bias = case["base.weight"], case.tensors.get("base.bias")
    results: dict[str, dict[str, Tensor]] = {}
    for way in ("reference", "fused"):
        leaves = {**points(case), "x": case["input.x"].clone().requires_grad_()}
        scalars = [leaves[name] for name in KERNEL_SCALARS[spec.kernel]]
        made = DeltaSlice(leaves["A"], leaves["B"], spec, torch.cat(scalars) if scalars else None)
        if way == "reference":
            found = reference.kernel_delta(made.A, made.B, spec, made.scalars)
            tensors = {"output.delta": found.delta, "output.delta_sparse": found.delta_sparse}
            if found.threshold is not None:
                tensors["output.threshold"] = found.threshold.view(1)
            tensors["output.branch"] = F.linear(leaves["x"], found.delta_sparse)
            tensors["output.y"] = reference.gated_linear(leaves["x"], weight, bias, [made])
        else:
            branch = gated_linear(leaves["x"], None, None, [made], out_features=weight.shape[0])
            tensors = {"output.delta_sparse": delta_sparse([made], *weight.shape), "output.branch": branch}
            tensors["output.y"] = gated_linear(leaves["x"], weight, bias, [made])
        results[way] = {**tensors, **probed(tensors["output.y"], case["input.probe"], leaves)}
    return {**results, **_attached_delta(case, configure(case, scale_of(case), ["layer"]))}


def _linear(case: Vectors) -> nn.Module:
    base = case.below("base")
    rows, columns = base["weight"].shape
    layer = nn.Linear(columns, rows, bias="bias" in base)
    tensors = {f"layer.{name}": value for name, value in base.items()}
    return with_tensors(nn.Sequential(OrderedDict(layer=layer)), tensors)


def _attached_delta(case: Vectors, settings: KernelConfig) -> Results:
    attached = Attached(_linear(case), settings)
    scalars = KERNEL_SCALARS[settings.kernel]
    A, B = (attached.parameter("layer", f"weight.{name}") for name in ("A", "B"))
    leaves: dict[str, Any] = {"x": case["input.x"].clone().requires_grad_(), "A": A, "B": B}
    assign({A: case["param.A"], B: case["param.B"]})
    if scalars:
        leaves["scalars"] = attached.parameter("layer", "weight.scalars")
        assign({leaves["scalars"]: torch.cat([case[f"param.{name}"] for name in scalars])})
    y = attached.model(leaves["x"])
    found = {"output.y": y, **probed(y, case["input.probe"], leaves)}
    for name, gradient in zip(scalars, found.pop("grad.scalars", torch.empty(0)), strict=True):
        found[f"grad.{name}"] = gradient.view(1)
    return {type(settings).__name__: found, "merged": {"output.y": attached.merged()(case["input.x"])}}


def training(case: Vectors, configure: Configure = config) -> Results:
    """AdamW on the mean squared error of ``x (W0 + S)ᵀ``: the loss before each step, the parameters after it."""
    options = case.options
    settings = configure(case, scale_of(case), ["layer"])
    attached = Attached(_linear(case), settings)
    parameters = {name: attached.parameter("layer", f"weight.{name}") for name in ("A", "B")}
    assign({parameter: case[f"param.{name}.step0"] for name, parameter in parameters.items()})
    scalars = KERNEL_SCALARS[settings.kernel]
    if scalars:
        parameters["scalars"] = attached.parameter("layer", "weight.scalars")
    attached.model.train()
    decayed = [parameter for parameter in parameters.values() if parameter.ndim > 1]
    others = [parameter for parameter in parameters.values() if parameter.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": others, "weight_decay": 0.0}],
        lr=options["lr"],
        weight_decay=options["weight_decay"],
        eps=options["eps"],
        betas=tuple(options["betas"]),
    )
    losses, found = [], {}
    for step in range(1, options["steps"] + 1):
        optimizer.zero_grad()
        loss = F.mse_loss(attached.model(case["input.x"]), case["input.target"])
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        now = {name: value.detach().clone() for name, value in parameters.items()}
        now |= {name: value.view(1) for name, value in zip(scalars, now.pop("scalars", torch.empty(0)), strict=True)}
        found |= {f"param.{name}.step{step}": value for name, value in now.items()}
    return {type(settings).__name__: {"output.loss": torch.stack(losses), **found}}


def vit_block(case: Vectors, configure: Configure = config) -> Results:
    """A pre-norm block whose q, k, v, proj, fc1 and fc2 each have an adapter."""
    sites = sorted({name.rpartition(".")[0] for name in case.below("param")})
    fused = [site.rpartition(".")[2] for site in sites if site in ("attn.q", "attn.k", "attn.v")]
    targets = [site for site in sites if site.rpartition(".")[2] not in fused]
    if fused:
        targets.append(f"attn.qkv[{','.join(fused)}]")
    settings = configure(case, scale_of(case), targets)
    scalars = KERNEL_SCALARS[settings.kernel]
    attached = Attached(blocks(case), settings)

    def place(site: str, leaf: str) -> nn.Parameter:
        block = site.rpartition(".")[2]
        if block in fused:
            return attached.parameter("blocks.0.attn.qkv", f"weight_{block}.{leaf}")
        return attached.parameter(f"blocks.0.{site}", f"weight.{leaf}")

    leaves: dict[str, Tensor] = {}
    for site in sites:
        points = {name: place(site, name) for name in ("A", "B")}
        assign({parameter: case[f"param.{site}.{name}"] for name, parameter in points.items()})
        if scalars:
            points["scalars"] = place(site, "scalars")
            if f"param.{site}.{scalars[0]}" in case:  # else they stand at their start
                assign({points["scalars"]: torch.cat([case[f"param.{site}.{name}"] for name in scalars])})
        leaves |= {f"{site}.{name}": parameter for name, parameter in points.items()}
    leaves["x"] = case["input.x"].clone().requires_grad_()
    y = attached.model(leaves["x"])
    found = {"output.y": y, **probed(y, case["input.probe"], leaves)}
    for name in [name for name in found if name.endswith(".scalars")]:
        for scalar, gradient in zip(scalars, found.pop(name), strict=True):
            found[f"{name.removesuffix('scalars')}{scalar}"] = gradient.view(1)
    return {type(settings).__name__: found, "merged": {"output.y": attached.merged()(case["input.x"])}}
