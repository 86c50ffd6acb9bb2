"""SPT: trained entries of a linear layer, and a transformer block with everything at once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peft_kernels.ops import sparse_linear
from peft_kernels.ops.sparse_grad import reference
from vision_peft.methods.spt import SptConfig
from vision_peft.methods.spt.adapter import SptAdapter

from ..comparison import Tolerance
from ..harness import Results
from ..vectors import Vectors
from .attached import Attached, assign, probed
from .timm_modules import Blocks, _block, with_tensors


def linear_tolerance(name: str, dtype: torch.dtype) -> Tolerance:
    """1e-12 in float64, 1e-5 in float32."""
    return Tolerance(1e-12 if dtype == torch.float64 else 1e-5)


def block_tolerance(name: str, dtype: torch.dtype) -> Tolerance:
    """1e-10 in float64, 1e-5 in float32; absolute where only rounding is left of a gradient: a shift of all keys."""
    shifts_keys = name in ("grad.attn.k.bias_delta", "grad.attn.structured_k.up.bias")
    return Tolerance(1e-10 if dtype == torch.float64 else 1e-5, absolute=shifts_keys)


def ascending(case: Vectors, site: str, tensor: str, columns: int) -> tuple[Tensor, Tensor]:
    """Flat places of a tensor's entries in ascending order, and the order that takes the file's entries there."""
    index = case[f"buffer.{site}{tensor}_index"]
    flat = index[0] * columns + index[1] if index.ndim == 2 else index
    return flat.sort()


class Sparse:
    """A configuration with entries given by the file, and their deltas in and out of the adapter."""

    def __init__(self) -> None:
        self.entries: dict[str, Tensor] = {}
        self.orders: dict[str, Tensor] = {}

    def add(self, name: str, flat: Tensor, order: Tensor) -> None:
        self.entries[name], self.orders[name] = flat, order

    def config(self, **fields: Any) -> SptConfig:
        plan = fields.pop("plan", {})
        plan |= {"entries": {name: len(flat) for name, flat in self.entries.items()}}
        config = SptConfig(plan=plan, modules_to_save=[], **fields)
        config.positions = self.entries
        return config


def sparse_linear_case(case: Vectors) -> Results:
    """Trained entries of one linear layer: by the formula, by the operator, attached by PEFT, and merged."""
    weight, bias = case["param.base_weight"], case["param.base_bias"]
    flat, order = ascending(case, "", "weight", weight.shape[1])
    has_bias = "param.bias_delta" in case
    results: dict[str, dict[str, Tensor]] = {}
    for way, run in (("formula", reference.sparse_linear), ("operator", sparse_linear)):
        leaves = {"x": case["input.x"], "weight_delta": case["param.weight_delta"]}
        leaves |= {"bias_delta": case["param.bias_delta"]} if has_bias else {}
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in leaves.items()}
        b = bias.index_add(0, case["buffer.bias_index"], leaves["bias_delta"]) if has_bias else bias
        y = run(leaves["x"], weight, flat, leaves["weight_delta"][order], b)
        results[way] = {"output.y": y, **probed(y, case["input.probe"], leaves)}
    base = with_tensors(
        nn.Sequential(OrderedDict(layer=nn.Linear(weight.shape[1], weight.shape[0]))),
        {"layer.weight": weight, "layer.bias": bias},
    )
    sparse = Sparse()
    sparse.add("layer.weight", flat, order)
    if has_bias:
        sparse.add("layer.bias", *ascending(case, "", "bias", 1))
    attached = Attached(base, sparse.config())
    found = {}
    for name in sparse.entries:
        label = name.rpartition(".")[2]
        parameter = attached.parameter("layer", f"entries.{label}.values")
        assign({parameter: case[f"param.{label}_delta"][sparse.orders[name]]})
        found[label] = parameter
    x = case["input.x"].clone().requires_grad_()
    y = attached.model(x)
    gradients = probed(y, case["input.probe"], {**{f"{label}_delta": p for label, p in found.items()}, "x": x})
    for label in found:
        gradients[f"grad.{label}_delta"] = _unordered(gradients[f"grad.{label}_delta"], sparse.orders[f"layer.{label}"])
    merged: Any = attached.merged()
    results["SptConfig"] = {"output.y": y, **gradients}
    results["merged"] = {
        "merged.weight": merged.layer.weight,
        "merged.bias": merged.layer.bias,
        "output.y": F.linear(case["input.x"], merged.layer.weight, merged.layer.bias),
    }
    return results


def _unordered(gradient: Tensor, order: Tensor) -> Tensor:
    return torch.empty_like(gradient).index_copy_(0, order, gradient)


def block(case: Vectors) -> Results:
    """A transformer block with low-rank branches or adapters, and trained entries, on its fused qkv and the rest."""
    options = case.options
    tensors = case.below("param")
    columns = {op: tensors[f"{_site(op)}.weight"].shape[1] for op in options["order"]}
    base = {name: t for name, t in tensors.items() if "structured_" not in name and not name.endswith("_delta")}
    for leaf in ("weight", "bias"):
        base[f"attn.qkv.{leaf}"] = torch.cat([base.pop(f"attn.{op}.{leaf}") for op in "qkv"])
    model = with_tensors(Blocks(_block(case, base)), {f"blocks.0.{name}": tensor for name, tensor in base.items()})
    flags = dict(zip(options["order"], options["structured"], strict=True))
    sparse = Sparse()
    for op in options["order"]:
        for leaf in ("weight", "bias"):
            if f"buffer.{_site(op)}.{leaf}_index" in case:
                flat, order = ascending(case, f"{_site(op)}.", leaf, columns[op])
                sparse.add(f"blocks.0.{_name(op)}.{leaf}", flat, order)
    ranks = {f"blocks.0.{_name(op)}.weight": options["rank"] for op, flag in flags.items() if flag}
    settings = {"structured": options["structured_type"], "rank": options["rank"]}
    attached = Attached(model, sparse.config(plan={"ranks": ranks}, **settings))
    leaves, places = _filled(case, attached, sparse, flags)
    x = case["input.x"].clone().requires_grad_()
    y = attached.model(x)
    gradients = probed(y, case["input.probe"], {**leaves, "x": x})
    found = {"output.y": y, "grad.x": gradients["grad.x"]}
    for name, (leaf, first, order) in places.items():
        gradient = gradients[f"grad.{leaf}"]
        if order is not None:
            gradient = _unordered(gradient[first : first + len(order)], order)
        found[f"grad.{name}"] = gradient
    results = {"SptConfig": found}
    if options["structured_type"] == "lora":
        results["merged"] = {"output.y": attached.merged()(case["input.x"])}
    return results


def _site(op: str) -> str:
    return f"mlp.{op}" if op.startswith("fc") else f"attn.{op}"


def _name(op: str) -> str:
    return f"attn.qkv.{op}" if op in ("q", "k", "v") else _site(op)


Places = dict[str, tuple[str, int, Tensor | None]]


def _filled(
    case: Vectors, attached: Attached, sparse: Sparse, flags: Mapping[str, int]
) -> tuple[dict[str, nn.Parameter], Places]:
    """The adapter's parameters with the file's values, and for each of the file's where it went."""
    leaves: dict[str, nn.Parameter] = {}
    places: Places = {}
    starts: dict[str, int] = {}
    for op, flag in flags.items():
        key, part = ("blocks.0.attn.qkv", op) if op in ("q", "k", "v") else (f"blocks.0.{_site(op)}", "all")
        if key not in attached.adapters:
            continue
        adapter = attached.adapters[key]
        assert isinstance(adapter, SptAdapter)
        if flag:
            for name, parameter in adapter.structured[part].named_parameters():
                file = f"{_site(op).rpartition('.')[0]}.structured_{op}.{name if '.' in name else name + '.weight'}"
                assign({parameter: case[f"param.{file}"]})
                leaves[file], places[file] = parameter, (file, 0, None)
        for leaf in ("weight", "bias"):
            own = f"blocks.0.{_name(op)}.{leaf}"
            if own not in sparse.entries:
                continue
            label, file, order = f"{key}.{leaf}", f"{_site(op)}.{leaf}_delta", sparse.orders[own]
            leaves[label] = adapter.get_parameter(f"entries.{leaf}.values")
            first = starts.get(label, 0)
            with torch.no_grad():
                leaves[label][first : first + len(order)] = case[f"param.{file}"][order]
            places[file] = (label, first, order)
            starts[label] = first + len(order)
    return leaves, places
