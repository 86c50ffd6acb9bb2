"""timm's ResNets, ConvNeXt and Swin with frequency dynamic convolutions (FDConv) in their residual blocks.

``timm.create_model("fdconv_resnet50", pretrained=True)`` loads the plain model's weights and converts them, so that the
start is the pretrained function. ``fdconv={"kernel_num": 16, "mode": "frozen_base"}`` sets what `FdconvConfig` has;
the weights are trained in the Fourier domain (``mode="spectral"``) by default. States of the authors' layers load, too.

`torch.export` and ``torch.onnx.export(dynamo=True)`` take the models: kernels and bands become products and one inverse
transform. So does ``torch.fx``, the layers being leaves; TorchScript does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

from timm.models import build_model_with_cfg, convnext, get_pretrained_cfg, register_model, resnet, swin_transformer
from timm.models._features_fx import register_notrace_module
from timm.models._registry import generate_default_cfgs
from torch import nn

from peft_kernels.config import nearest
from vision_peft.methods.fdconv.config import FdconvConfig
from vision_peft.methods.fdconv.module import FdConv2d, FdLinear, rebuild

# The plain models, whose weights are converted.
PLAIN = {
    "fdconv_resnet18": "resnet18.a1_in1k",
    "fdconv_resnet50": "resnet50.a1_in1k",
    "fdconv_resnet101": "resnet101.a1h_in1k",
    "fdconv_convnext_tiny": "convnext_tiny.in12k_ft_in1k",
    "fdconv_swin_tiny": "swin_tiny_patch4_window7_224.ms_in1k",
}


def _plain_cfg(name: str) -> dict[str, Any]:
    cfg: Any = get_pretrained_cfg(name)
    known = asdict(cfg)
    return {key: known[key] for key in known if known[key] is not None and key not in ("architecture", "tag")}


default_cfgs = generate_default_cfgs(
    {f"{name}.{plain.partition('.')[2]}": _plain_cfg(plain) for name, plain in PLAIN.items()}
)
for layer in (FdConv2d, FdLinear):
    register_notrace_module(layer)


def _create(
    name: str, plain: Callable[..., nn.Module], pretrained: bool, settings: Mapping[str, Any], **fixed: Any
) -> Any:
    def build(fdconv: Mapping[str, Any] | None = None, **kwargs: Any) -> nn.Module:
        if not isinstance(fdconv or {}, Mapping):
            raise ValueError(f"fdconv must be a dict of FdconvConfig's settings; found {fdconv!r}")
        known = [field.name for field in fields(FdconvConfig)]
        for given in fdconv or ():
            if given not in known:
                raise ValueError(f"FdconvConfig has no setting {given!r}{nearest(given, known)}")
        return rebuild(plain(**kwargs), FdconvConfig(**{"mode": "spectral", **(fdconv or {})}))

    return build_model_with_cfg(build, name, pretrained, **fixed, **settings)  # type: ignore[arg-type]


def _staged(settings: Mapping[str, Any], filter_fn: Callable[..., Any]) -> dict[str, Any]:
    """For models made of stages: what hands out their features, and what reads other forms of their weights."""
    features = {"out_indices": tuple(range(len(settings["depths"]))), "flatten_sequential": True}
    return {"pretrained_filter_fn": filter_fn, "feature_cfg": features}


@register_model
def fdconv_resnet18(pretrained: bool = False, **kwargs: Any) -> resnet.ResNet:
    """ResNet-18 with FDConv in its 16 residual convolutions: 569,200 parameters more."""
    settings = {"block": resnet.BasicBlock, "layers": (2, 2, 2, 2), **kwargs}
    return _create("fdconv_resnet18", resnet.ResNet, pretrained, settings)


@register_model
def fdconv_resnet50(pretrained: bool = False, **kwargs: Any) -> resnet.ResNet:
    """ResNet-50 with FDConv in its 48 residual convolutions: 3,647,120 parameters more."""
    settings = {"block": resnet.Bottleneck, "layers": (3, 4, 6, 3), **kwargs}
    return _create("fdconv_resnet50", resnet.ResNet, pretrained, settings)


@register_model
def fdconv_resnet101(pretrained: bool = False, **kwargs: Any) -> resnet.ResNet:
    """ResNet-101 with FDConv in its 99 residual convolutions: 7,499,218 parameters more."""
    settings = {"block": resnet.Bottleneck, "layers": (3, 4, 23, 3), **kwargs}
    return _create("fdconv_resnet101", resnet.ResNet, pretrained, settings)


@register_model
def fdconv_convnext_tiny(pretrained: bool = False, **kwargs: Any) -> convnext.ConvNeXt:
    """ConvNeXt-T with FDConv in its MLPs."""
    settings = {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768), **kwargs}
    fixed = _staged(settings, convnext.checkpoint_filter_fn)
    return _create("fdconv_convnext_tiny", convnext.ConvNeXt, pretrained, settings, **fixed)


@register_model
def fdconv_swin_tiny(pretrained: bool = False, **kwargs: Any) -> swin_transformer.SwinTransformer:
    """Swin-T (windows of 7, 224 x 224) with FDConv in its MLPs."""
    sizes = {"patch_size": 4, "window_size": 7, "embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)}
    settings = {**sizes, **kwargs}
    fixed = _staged(settings, swin_transformer.checkpoint_filter_fn)
    return _create("fdconv_swin_tiny", swin_transformer.SwinTransformer, pretrained, settings, **fixed)
