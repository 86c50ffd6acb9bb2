"""PIIP: the sampling core, its attention, units, merges and whole pyramids."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from peft_kernels.ops.deformable import (
    deformable_attention,
    deformable_attention_grid,
    deformable_attention_reference,
)
from vision_peft.models.piip import InteractionSpec, Piip
from vision_peft.models.piip.attention import DeformableAttention, reference_points, start_offsets
from vision_peft.models.piip.interaction import Unit
from vision_peft.models.piip.merge import Merge, MergeKind
from vision_peft.models.piip.released import released_name

from ..comparison import Tolerance
from ..harness import Results
from ..vectors import Vectors
from .attached import probed


def tolerance(name: str, dtype: torch.dtype) -> Tolerance:
    """1e-10 for outputs, 1e-9 for gradients, 1e-6 for those stored in float32; below 1e-9 is mathematically zero."""
    if dtype == torch.float32:
        return Tolerance(1e-6, zero=1e-9)
    return Tolerance(1e-10 if name.startswith("output.") else 1e-9, zero=1e-9)


def _leaves(case: Vectors, *names: str) -> dict[str, Tensor]:
    return {name: case[f"input.{name}"].double().requires_grad_() for name in names}


def _as_stored(case: Vectors, found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(case[name].dtype) for name, value in found.items() if name in case}


def _grids(given: list[list[int]]) -> list[tuple[int, int]]:
    return [(rows, columns) for rows, columns in given]


def _loaded(module: Any, case: Vectors, rename: Any = str) -> Any:
    module.double().eval()
    module.load_state_dict({rename(name): value.double() for name, value in case.below("param").items()}, strict=True)
    return module


def _wanted(case: Vectors, module: torch.nn.Module, inputs: dict[str, Tensor], rename: Any = str) -> dict[str, Tensor]:
    return {n: inputs[n] if n in inputs else module.get_parameter(rename(n)) for n in case.below("grad")}


def msda_core(case: Vectors) -> Results:
    """The sum over samples, three ways."""
    shapes, probe = _grids(case.options["spatial_shapes"]), case["input.probe"].double()
    results = {}
    for way in (deformable_attention, deformable_attention_grid, deformable_attention_reference):
        inputs = _leaves(case, "value", "sampling_locations", "attention_weights")
        value, places, weights = inputs.values()
        y = way(value, shapes, places, weights)
        results[way.__name__] = {"output.y": y, **probed(y, probe, inputs)}
    return results


def msda_module(case: Vectors) -> Results:
    """The attention with its projections, and where it starts."""
    o = case.options
    module = DeformableAttention(o["d_model"], o["d_feat"], o["n_heads"], o["n_points"], ratio=o["ratio"])
    _loaded(module, case)
    inputs = _leaves(case, "query", "feat")
    (grid,), grids = _grids([o["query_hw"]]), _grids([o["value_hw"]])
    y = module(inputs["query"], grid, inputs["feat"], grids)
    found = {"output.y": y, "output.reference_points": reference_points(grid, y.dtype, y.device)}
    for name in case.below("init"):
        heads, levels, points = (int("".join(filter(str.isdigit, part))) for part in name.split("_")[-3:])
        found[f"init.{name}"] = start_offsets(heads, levels, points).flatten().double()
    found |= probed(y, case["input.probe"].double(), _wanted(case, module, inputs))
    return {"DeformableAttention": found}


def _spec(o: dict[str, Any]) -> InteractionSpec:
    given = {"norm": "norm", "with_proj": "interaction_proj", "attn_type": "interact_attn_type"}
    given |= {"n_heads": "deform_num_heads", "deform_num_heads": "deform_num_heads"}
    given |= {name: name for name in ("n_points", "deform_ratio", "with_cffn", "cffn_ratio")}
    return InteractionSpec(**{field: o[name] for name, field in given.items() if name in o})


def unit(case: Vectors) -> Results:
    """Two branches hear each other."""
    o = case.options
    module = _loaded(Unit(o["d1"], o["d2"], _spec(o)), case)
    inputs = _leaves(case, "x1", "x2")
    y1, y2 = module(inputs["x1"], tuple(o["hw1"]), inputs["x2"], tuple(o["hw2"]))
    loss = (y1 * case["input.probe1"]).sum() + (y2 * case["input.probe2"]).sum()
    gradients = probed(loss, torch.ones((), dtype=loss.dtype), _wanted(case, module, inputs))
    return {"Unit": {"output.y1": y1, "output.y2": y2, **gradients}}


def merge_classification(case: Vectors) -> Results:
    """Maps of two branches or more for one classifier."""
    return _merge(case, "classification")


def merge_detection(case: Vectors) -> Results:
    """Maps of one depth of convolutional branches."""
    return _merge(case, "stage")


def _merge(case: Vectors, kind: MergeKind) -> Results:
    o, names = case.options, sorted(n for n in case.below("input") if n.startswith("tokens"))
    widths = [case[f"input.{name}"].shape[-1] for name in names]
    grids = o["hws"] if "hws" in o else [o[name.replace("tokens", "hw")] for name in names]
    inputs = _leaves(case, *names)
    module = Merge(widths, kind)
    _loaded(module, case)
    maps = [inputs[name].mT.unflatten(-1, tuple(grid)) for name, grid in zip(names, grids, strict=True)]
    y = module(maps)
    return {"Merge": {"output.map": y, **probed(y, case["input.probe"].double(), _wanted(case, module, inputs))}}


def _branch(case: Vectors, j: int) -> VisionTransformer:
    o, tensors = case.options, case.below(f"param.branch{j + 1}")
    size, patch = o["img_sizes"][j], o["patch_size"]
    return VisionTransformer(
        img_size=size,
        patch_size=patch,
        in_chans=case["input.x"].shape[1],
        num_classes=o["num_classes"],
        embed_dim=o["dims"][j],
        depth=o["depths"][j],
        num_heads=o["num_heads"][j],
        mlp_ratio=o["mlp_ratio"],
        qkv_bias="blocks.0.attn.qkv.bias" in tensors,
        init_values=1.0 if "blocks.0.gamma_1" in tensors else None,
        class_token=o["use_cls_token"],
        global_pool="token" if o["use_cls_token"] else "avg",
        no_embed_class=tensors["pos_embed"].shape[1] == (size // patch) ** 2,
        fc_norm=False,
    )


def model(case: Vectors) -> Results:
    """A whole pyramid."""
    o = case.options
    built = Piip(
        [_branch(case, j) for j in range(len(o["dims"]))],
        o["img_sizes"],
        spec=_spec(o),
        interaction_indexes=o["interaction_indexes"],
        output="separate" if o["separate_head"] else "merged",
        readout="patch0",
        last_interaction=True,
        class_position=False,
        num_classes=o["num_classes"],
    )
    _loaded(built, case, released_name)
    inputs = _leaves(case, "x")
    logits = built(inputs["x"])
    found = {"output.logits": logits}
    for j, state in enumerate(built.run(inputs["x"])[-1], 1):
        found[f"output.branch{j}_tokens"] = state.tokens
        if state.prefix is not None:
            found[f"output.branch{j}_cls"] = state.prefix
    found |= probed(logits, case["input.probe"].double(), _wanted(case, built, inputs, released_name))
    if o["separate_head"] and o["use_cls_token"]:
        built.readout = "cls"
        found["output.logits_cls_readout"] = built(inputs["x"])
    return {"Piip": _as_stored(case, found)}
