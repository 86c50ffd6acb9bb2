"""The published pyramids as timm models, and `pyramid`, which makes one's own.

`torch.export` and ``torch.onnx.export(dynamo=True)`` take pyramids, their samples as ``grid_sample``; ``torch.fx`` and
TorchScript do not, since sizes are looked at and branches are run through views of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.models import build_model_with_cfg, register_model
from timm.models._registry import generate_default_cfgs
from torch import nn

from .building import BranchSpec, build, entries
from .pyramid import Piip
from .released import checkpoint_filter_fn

_DEIT = {"init_values": 1.0, "no_embed_class": True}  # LayerScale from 1 on; class tokens without a position


def _cfg(branches: int, size: int, deit: bool, **more: Any) -> dict[str, Any]:
    names = [f"branch{j}" for j in range(1, branches + 1)]
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, size, size),
        "fixed_input_size": True,
        "pool_size": (size // 16, size // 16),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN if deit else IMAGENET_INCEPTION_MEAN,
        "std": IMAGENET_DEFAULT_STD if deit else IMAGENET_INCEPTION_STD,
        "first_conv": tuple(f"{name}.patch_embed.proj" for name in names),
        "classifier": tuple(f"{name}.head" for name in names),
        "license": "mit",
        **more,
    }


default_cfgs = generate_default_cfgs(
    {
        "piip_vit_tsb": _cfg(3, 368, True),
        "piip_vit_sbl_320": _cfg(3, 320, False),
        "piip_vit_sbl_384": _cfg(3, 384, False),
        "piip_vit_tsbl": _cfg(4, 1344, True),
        "piip_mini": {
            **_cfg(2, 64, False),
            "num_classes": 10,
            "pool_size": (16, 16),
            "crop_pct": 1.0,
            "mean": (0.4914, 0.4822, 0.4465),  # of vit_mini
            "std": (0.2470, 0.2435, 0.2616),
            "first_conv": ("branch1.patch_embed.stem.0", "branch2.patch_embed.stem.0"),
            "license": "apache-2.0",
        },
    }
)


def _create(variant: str, pretrained: bool, branches: Sequence[BranchSpec], **kwargs: Any) -> Piip:
    features = kwargs.get("features_only", False)
    if features:
        kwargs.setdefault("output", "dense")
    output = kwargs.get("output", "separate")
    cfg = kwargs.get("pretrained_cfg_overlay") or {}
    whole = pretrained and any(cfg.get(key) for key in ("file", "url", "hf_hub_id", "state_dict"))
    if output != "separate":
        kwargs["pretrained_cfg_overlay"] = {**cfg, "classifier": "cls_head" if output == "merged" else ()}
    return build_model_with_cfg(
        build,
        variant,
        whole,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3) if output == "dense" else 4, "feature_cls": "getter"},
        branches=branches,
        pretrained_branches=pretrained and not whole,
        **kwargs,
    )


def pyramid(branches: Sequence[BranchSpec], pretrained: bool = False, **settings: Any) -> nn.Module:
    """One's own pyramid of timm models.

    Args:
        branches: ``("vit_base_patch16_224", 128)`` and so on, the widest model with the smallest pictures first; a
            third entry holds arguments for timm.
        pretrained: fill each branch with its own pretrained weights.
        settings: ``num_classes``, ``n_interactions``, ``output`` ("separate", "merged" or "dense"), ``features_only``
            and what else `building.build`, `Piip` and `InteractionSpec` take.

    Returns:
        A model with all that timm's models have; with ``features_only=True`` one that gives the levels of a pyramid.

    Raises:
        ValueError: branches out of order, sizes that they cannot take, heads that do not divide their widths.
    """
    size = entries(branches)[-1][1] if branches else 0
    side = size if isinstance(size, int) else size[0]
    cfg = {**_cfg(len(branches), side, True), "fixed_input_size": False, "license": ""}
    if not isinstance(size, int):
        cfg["input_size"] = (3, *size)
    cfg["input_size"] = (settings.get("in_chans", 3), *cfg["input_size"][1:])
    return _create("piip", pretrained, branches, pretrained_cfg=cfg, **settings)


def _published(variant: str, pretrained: bool, branches: Sequence[BranchSpec], kwargs: dict[str, Any]) -> Piip:
    """With an interaction after the last segment too, as in the published counts; class tokens do not see it."""
    return _create(variant, pretrained, branches, **{"last_interaction": True, **kwargs})


@register_model
def piip_vit_tsb(pretrained: bool = False, **kwargs: Any) -> Piip:
    """DeiT-B at 128, DeiT-S at 192, DeiT-T at 368 pixels: 144.0 M parameters, 17.4 GMAC."""
    sizes = {"base": 128, "small": 192, "tiny": 368}
    branches = [(f"deit_{name}_patch16_224", size, _DEIT) for name, size in sizes.items()]
    return _published("piip_vit_tsb", pretrained, branches, kwargs)


@register_model
def piip_vit_sbl_320(pretrained: bool = False, **kwargs: Any) -> Piip:
    """AugReg ViT-L at 96, ViT-B at 160, ViT-S at 320 pixels: 488.8 M parameters, 39.0 GMAC."""
    sizes = {"large": 96, "base": 160, "small": 320}
    branches = [(f"vit_{name}_patch16_224", size) for name, size in sizes.items()]
    return _published("piip_vit_sbl_320", pretrained, branches, kwargs)


@register_model
def piip_vit_sbl_384(pretrained: bool = False, **kwargs: Any) -> Piip:
    """AugReg ViT-L at 128, ViT-B at 192, ViT-S at 384 pixels: 488.9 M parameters, 61.2 GMAC."""
    sizes = {"large": 128, "base": 192, "small": 384}
    branches = [(f"vit_{name}_patch16_224", size) for name, size in sizes.items()]
    return _published("piip_vit_sbl_384", pretrained, branches, kwargs)


@register_model
def piip_vit_tsbl(pretrained: bool = False, **kwargs: Any) -> Piip:
    """ViT-L at 448, B at 672, S at 896, T at 1344 pixels, made for detection: 505.6 M parameters with a merged head."""
    sizes = {"large": 448, "base": 672, "small": 896, "tiny": 1344}
    branches = [(f"vit_{name}_patch16_224", size, _DEIT) for name, size in sizes.items()]
    return _published("piip_vit_tsbl", pretrained, branches, kwargs)


@register_model
def piip_mini(pretrained: bool = False, **kwargs: Any) -> Piip:
    """The embedded `vit_mini` at 32 pixels and its first three blocks at 64: 1.8 M parameters, 0.39 GMAC."""
    branches = [("vit_mini", 32), ("vit_mini", 64, {"depth": 3})]
    settings = {"n_interactions": 3, "deform_num_heads": 4, **kwargs}  # its branches pool all patches: no class tokens
    return _published("piip_mini", pretrained, branches, settings)
