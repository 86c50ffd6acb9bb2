"""Pyramids from the names of timm models: branches built, filled with their own pretrained weights, put together."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models import is_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from peft_kernels.config import nearest

from .branches import BeitTransformer, Transformer, view
from .interaction import InteractionSpec
from .layout import Size
from .pyramid import Piip

BranchSpec = Sequence[Any]
"""A timm model's name, the side (or height and width) of the picture it takes, and further arguments for timm."""

_SPEC = {field.name for field in dataclasses.fields(InteractionSpec)}
_PIIP = set(inspect.signature(Piip).parameters) - {"branches", "sizes", "names", "spec"}


class UnknownSettingError(TypeError, ValueError):
    """A keyword that is no setting: a `TypeError` as timm's models raise it, a `ValueError` as other bad settings."""


def build(
    branches: Sequence[BranchSpec],
    num_classes: int = 1000,
    in_chans: int = 3,
    img_size: int | Size | None = None,
    sizes: Sequence[int | Size] | None = None,
    pretrained_branches: bool = False,
    antialias: bool = True,
    drop_path_rate: float | Sequence[float] = 0.0,
    dynamic_img_size: bool = False,
    class_token: bool | None = None,
    global_pool: str | None = None,
    branch_args: Mapping[str, Any] | None = None,
    device: Any = None,
    dtype: Any = None,
    **settings: Any,
) -> Piip:
    """A pyramid of new branches.

    Args:
        branches: the widest first, each ``(name, size)`` or ``(name, size, {arguments for timm})``.
        num_classes: of each classifier.
        in_chans: channels of the pictures.
        img_size: of the last branch's pictures; the others' sizes follow in proportion.
        sizes: instead, the size of each branch's pictures.
        pretrained_branches: fill each branch with its own pretrained weights.
        antialias: how position embeddings are resized to a branch's grid: as timm does, or without smoothing as the
            authors' code does.
        drop_path_rate: of the branches, one for all or one for each; the same in all blocks.
        dynamic_img_size: take pictures of any size, in the branches' proportions.
        class_token: whether vision transformers keep theirs; by default those of a dense pyramid do not. Without it
            there are no separate classifiers.
        global_pool: what vision transformers' classifiers pool.
        branch_args: arguments for timm, for all branches.
        device: of the parameters.
        dtype: of the parameters.
        settings: what else `Piip` and `InteractionSpec` take.

    Raises:
        ValueError: an unknown name or setting, or what `Piip` refuses.
    """
    _check_settings(settings)
    given = entries(branches)
    for name, _, _ in given:
        if not is_model(name.partition(".")[0]):
            raise ValueError(f"timm has no model {name!r}{nearest(name, timm.list_models())}")
    shapes = [_outline(name, {**own, **(branch_args or {})}) for name, _, own in given]
    strides = [each.strides[-1] for each in shapes]
    sides = list(sizes) if sizes is not None else scaled_sizes([size for _, size, _ in given], img_size, strides)
    if len(sides) != len(given):
        raise ValueError(f"sizes must have one entry for each of the {len(given)} branches; found {list(sides)}")
    rates = [drop_path_rate] * len(given) if isinstance(drop_path_rate, (int, float)) else list(drop_path_rate)
    if len(rates) != len(given):
        raise ValueError(f"drop_path_rate must be one number or one for each branch; found {rates}")
    if not all(0 <= rate < 1 for rate in rates):
        raise ValueError(f"drop_path_rate must be in [0, 1); found {drop_path_rate!r}")
    output = settings.get("output", "separate")
    if class_token is False and output == "separate":
        raise ValueError(
            "class_token=False needs output='merged' or 'dense'; separate classifiers read the class token"
        )
    made = []
    for (name, _, own), shape, size, rate in zip(given, shapes, sides, rates, strict=True):
        arguments = {"num_classes": num_classes, "in_chans": in_chans, "device": device, "dtype": dtype}
        arguments |= {**own, **(branch_args or {})}
        if not shape.in_stages:  # the others take any size
            arguments |= {"img_size": size, **({"dynamic_img_size": True} if dynamic_img_size else {})}
            if dynamic_img_size and isinstance(shape, BeitTransformer):
                raise ValueError(f"dynamic_img_size needs branches that take any size; {name} does not")
        if global_pool is not None:
            arguments["global_pool"] = global_pool
        made.append(_branch(name, arguments, pretrained_branches, antialias))
        view(made[-1]).set_drop_path(rate)
        if class_token is False or (class_token is None and output == "dense"):
            view(made[-1]).drop_class_token()
    spec = InteractionSpec(**{name: value for name, value in settings.items() if name in _SPEC})
    own = {name: value for name, value in settings.items() if name in _PIIP}
    names = [name for name, _, _ in given]
    return Piip(made, sides, names, spec, num_classes=num_classes, device=device, dtype=dtype, **own)


def _check_settings(settings: Mapping[str, Any]) -> None:
    known = _SPEC | _PIIP
    for name in settings:
        if name not in known:
            raise UnknownSettingError(f"a pyramid has no setting {name!r}{nearest(name, known)}")


def entries(branches: Sequence[BranchSpec]) -> list[tuple[str, int | Size, dict[str, Any]]]:
    """Name, size and arguments of each branch; raise a ValueError where one is none."""
    return [_entry(each) for each in branches]


def _entry(each: Any) -> tuple[str, int | Size, dict[str, Any]]:
    if isinstance(each, (tuple, list)) and len(each) in (2, 3):
        name, size, *more = each
        sides = size if isinstance(size, (tuple, list)) else (size, size)
        sized = len(sides) == 2 and all(isinstance(side, int) for side in sides)
        if isinstance(name, str) and sized and all(isinstance(own, Mapping) for own in more):
            return name, size if isinstance(size, int) else (sides[0], sides[1]), dict(*more)
    raise ValueError(
        "a branch is a timm model's name, the side (or height and width) of its pictures and, if need be, a dict of "
        f"arguments, such as ('vit_small_patch16_224', 224); found {each!r}"
    )


def scaled_sizes(sizes: Sequence[Any], img_size: int | Size | None, strides: Sequence[int]) -> list[Any]:
    """The sizes in the same proportions with ``img_size`` as the last, rounded to multiples of each branch's stride."""
    pairs = [(size, size) if isinstance(size, int) else tuple(size) for size in sizes]
    last = (img_size, img_size) if isinstance(img_size, int) else img_size
    if last is None or not pairs or tuple(last) == pairs[-1]:
        return list(sizes)
    near = [
        tuple(
            max(1, round(side * new / old / stride)) * stride
            for side, new, old in zip(own, last, pairs[-1], strict=True)
        )
        for own, stride in zip(pairs[:-1], strides, strict=False)
    ]
    return [*near, tuple(last)]


def _outline(name: str, own: Mapping[str, Any]) -> Transformer:
    """The branch without memory: what it is and how coarse."""
    return view(timm.create_model(name, **{**own, "device": "meta"}))


def _branch(name: str, arguments: dict[str, Any], pretrained: bool, antialias: bool) -> nn.Module:
    model = timm.create_model(name, **arguments)
    if not pretrained:
        return model
    if not isinstance(model, VisionTransformer):
        return timm.create_model(name, pretrained=True, **arguments)
    plain = {key: arguments[key] for key in ("num_classes", "in_chans", "device", "dtype")}
    adopt(model, timm.create_model(name, pretrained=True, **plain), antialias)
    return model


def adopt(model: Any, source: Any, antialias: bool = True) -> None:
    """Fill a vision transformer with another's weights.

    Positions and patches are resized; LayerScale that the source lacks stays as it was created, and what the model
    lacks (class token, its position, classifier) is left out.

    Args:
        model: to be filled.
        source: of the same width and depth.
        antialias: smooth position embeddings when they are resized, as timm does.

    Raises:
        ValueError: the source lacks something else, or has other shapes.
    """
    state, own = dict(source.state_dict()), model.state_dict()
    if "pos_embed" in state and "pos_embed" in own:
        skip, keep = (0 if m.no_embed_class else m.num_prefix_tokens for m in (source, model))
        positions = resample_abs_pos_embed(
            state["pos_embed"][:, skip:],
            list(model.patch_embed.grid_size),
            list(source.patch_embed.grid_size),
            num_prefix_tokens=0,
            antialias=antialias,
        )
        state["pos_embed"] = torch.cat((state["pos_embed"][:, : min(skip, keep)], positions), 1)
    patches = "patch_embed.proj.weight"
    if state[patches].shape[-2:] != own[patches].shape[-2:]:
        state[patches] = resample_patch_embed(state[patches], list(own[patches].shape[-2:]))
    lacking = [name for name in own if name not in state and not name.endswith((".ls1.gamma", ".ls2.gamma"))]
    if lacking:
        raise ValueError(f"the pretrained branch lacks {lacking[0]} and {len(lacking) - 1} more")
    other = [name for name in own if name in state and state[name].shape != own[name].shape]
    if other:
        found, here = (list(tensors[other[0]].shape) for tensors in (state, own))
        raise ValueError(f"the pretrained branch is another model: its {other[0]} is {found}, here {here}")
    model.load_state_dict({name: value for name, value in state.items() if name in own}, strict=False)
