"""PointGST: the adapter alone, in a block, and in a whole classifier; and the interpolation of a part segmenter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peft_kernels.ops import Filter, Spectra
from peft_kernels.ops.graph_fourier import graph_fourier_reference
from peft_kernels.ops.point_sets import z_order
from vision_peft import PointGstConfig, bound_spectra
from vision_peft.methods.pointgst.adapter import Pcsa
from vision_peft.methods.pointgst.spectra import Basis
from vision_peft.models import PointTransformer
from vision_peft.models.point_parts import FeaturePropagation

from ..comparison import Tolerance
from ..harness import Results
from ..vectors import Vectors
from .attached import Attached, assign, probed
from .timm_modules import with_tensors

_ADAPTER = "gft_adapter."


def tolerance(name: str, dtype: torch.dtype) -> Tolerance:
    """Outputs 1e-10, gradients 1e-9."""
    return Tolerance(1e-9 if name.startswith("grad") else 1e-10)


def tolerance_of_weights(name: str, dtype: torch.dtype) -> Tolerance:
    """A point on a centre has so large a weight there that rounding shows."""
    return Tolerance(1e-6)


def model_tolerance(name: str, dtype: torch.dtype) -> Tolerance:
    """Tokens 1e-10, what comes of them 1e-9, what comes before exactly."""
    found = name.removeprefix("output.")
    return Tolerance({"tokens": 1e-10, "neighborhood": 0.0, "center": 0.0, "order": 0.0}.get(found, 1e-9))


def _spectra(case: Vectors, role: str, order: Tensor | None = None) -> Spectra:
    order = case["input.order"] if order is None else order
    whole, local = case[f"{role}.basis_global"], case[f"{role}.basis_local"]
    return Spectra(whole, [local], order, order.argsort(-1))


def pcsa(case: Vectors) -> Results:
    """One adapter, by the formula and as the module, with both orientations; and at its start."""
    options, given, spectra = case.options, case.below("param"), _spectra(case, "input")
    results: dict[str, dict[str, Tensor]] = {"reference": {}, "Pcsa": {}}
    for orientation in ("spectral", "vertex"):
        module = Pcsa(options["dim"], options["rank"], Basis((options["local"],)), orientation == "vertex").double()
        module.load_state_dict(given)
        for way, call in (("reference", _by_formula), ("Pcsa", Pcsa.branch)):
            x = case["input.x"].clone().requires_grad_()
            y = call(module, x, spectra)
            found = probed(y, case["probe.y"], {"x": x, **dict(module.named_parameters())})
            results[way][f"output.{orientation}.y"] = y
            results[way] |= {name.replace("grad.", f"grad.{orientation}."): value for name, value in found.items()}
    module = Pcsa(options["dim"], options["rank"], Basis((options["local"],))).double()
    module.start_at_the_base()
    module.down.load_state_dict({name: given[f"down.{name}"] for name in ("weight", "bias")})
    y = module.branch(case["input.x"], spectra)
    found = probed(y, case["probe.y"], dict(module.named_parameters()))
    results["Pcsa"] |= {name.replace("grad.", "grad.at_init."): value for name, value in found.items()}
    return results


def _by_formula(module: Pcsa, x: Tensor, spectra: Spectra) -> Tensor:
    norms: Any = (module.norm_ly1, module.norm_ly2)
    filters = [Filter(norm.weight, norm.bias, module.adapt1.weight, module.adapt1.bias) for norm in norms]
    return module.up(graph_fourier_reference(module.down(x), spectra, filters[0], filters[1], module.vertex))


def _adapted(model: nn.Module, state: Mapping[str, Tensor], options: Mapping[str, Any], orientation: str) -> Attached:
    """``model`` with the base tensors of ``state``, and an adapter at each norm with its others."""
    base = {name: value for name, value in state.items() if _ADAPTER not in name}
    model = model.double()
    model.load_state_dict(base, strict=not isinstance(model, _OneBlock))
    config = PointGstConfig(r=options["rank"], local_size=options["local"], basis_orientation=orientation)
    attached = Attached(model, config)
    attached.model.double()
    values = {}
    for site, adapter in attached.adapters.items():
        if isinstance(adapter, Pcsa):
            path = site.removesuffix("norm2") + _ADAPTER
            values |= {parameter: state[f"{path}{name}"] for name, parameter in adapter.named_parameters()}
    assign(values)
    return attached


class _OneBlock(PointTransformer):
    """A model of which a case has one block."""


def block(case: Vectors) -> Results:
    """One block with its adapter."""
    options, spectra = case.options, _spectra(case, "input")
    model = _OneBlock(
        num_classes=2,
        num_groups=spectra.whole.shape[1],  # type: ignore[union-attr]
        group_size=4,
        embed_dim=options["dim"],
        depth=1,
        num_heads=options["num_heads"],
        mlp_ratio=options["mlp_ratio"],
        qkv_bias=options["qkv_bias"],
    )
    state = {f"blocks.blocks.0.{name}": value for name, value in case.below("param").items()}
    attached = _adapted(model, state, options, options["orientation"])
    (adapter,) = (a for a in attached.adapters.values() if isinstance(a, Pcsa))
    x = case["input.x"].clone().requires_grad_()
    with bound_spectra(attached.model, spectra):
        y = attached.model.get_submodule("base_model.model.blocks.blocks.0")(x)
    own = {f"{_ADAPTER}{name}": parameter for name, parameter in adapter.named_parameters()}
    return {"PointGstConfig": {"output.y": y, **probed(y, case["probe.y"], {"x": x, **own})}}


def generated(shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """The parameters of ``tiny_model``, by the formula in the folder's README."""
    state = {}
    for t, name in enumerate(sorted(shapes)):
        shape = shapes[name]
        count = math.prod(shape)
        i = torch.arange(count, dtype=torch.float64)
        s = torch.sin(0.731 * i * i.sqrt() + 1.37 * t + 0.5).view(shape)
        if name.endswith("num_batches_tracked"):
            s = torch.zeros(shape, dtype=torch.int64)
        elif name.endswith("running_var"):
            s = 1 + 0.5 * s
        elif name.endswith(".weight"):
            s = 1 + 0.2 * s if len(shape) == 1 else 1.5 * s / math.sqrt(count / shape[0])
        else:
            s = 0.1 * s
        state[name] = s
    return state


def tiny_model(case: Vectors) -> Results:
    """A whole classifier with the stored bases."""
    options, state, found = case.options, generated(case.options["state_dict"]), {}
    for orientation in ("vertex", "spectral"):
        model = PointTransformer(
            num_classes=options["num_classes"],
            num_groups=options["num_group"],
            group_size=options["group_size"],
            embed_dim=options["trans_dim"],
            depth=options["depth"],
            num_heads=options["num_heads"],
        )
        seen: dict[str, Any] = {}
        for name, module in (("patches", model.group_divider), ("tokens", model.encoder), ("blocks", model.blocks)):
            module.register_forward_hook(lambda _, args, out, n=name, to=seen: to.__setitem__(n, (args, out)))
        attached = _adapted(model, state, options, orientation)
        points = case["input.points"]
        center = model.group_divider(points)[1]
        order = z_order(center)
        with bound_spectra(attached.model, _spectra(case, "buffer", order)):
            found[f"output.logits_{orientation}"] = attached.model(points)
            found[f"output.block_features_{orientation}"] = seen["blocks"][1]
        if orientation == "vertex":
            found["output.pooled"] = model.forward_head(model.norm(seen["blocks"][1]), pre_logits=True)
        found |= {"output.neighborhood": seen["patches"][1][0], "output.center": center, "output.order": order}
        found |= {"output.tokens": seen["tokens"][1], "output.position": seen["blocks"][0][1]}
    return {"PointGstConfig": found}


def feature_propagation(case: Vectors) -> Results:
    """Three neighbours' features at every point, and two layers."""
    given = {**case.below("param"), **case.below("buffer")}
    widths = tuple(len(given[f"mlp_convs.{i}.weight"]) for i in range(sum("convs" in n for n in given) // 2))
    module = FeaturePropagation(given["mlp_convs.0.weight"].shape[1], widths)
    for norm in module.mlp_bns:
        norm.eps = case.options["batchnorm_eps"]  # type: ignore[assignment]
    tracked = {f"mlp_bns.{i}.num_batches_tracked": torch.tensor(0) for i in range(len(widths))}
    module = with_tensors(module, {**given, **tracked})
    sparse = case["input.features_sparse"].clone().requires_grad_()
    dense, centers = case["input.xyz_dense"].mT, case["input.xyz_sparse"].mT
    y = module(
        dense, centers, case["input.features_dense"].mT, sparse.mT, case.options["neighbours"], case.options["eps"]
    ).mT
    return {"FeaturePropagation": {"output.y": y, **probed(y, case["probe.y"], {"features_sparse": sparse})}}
