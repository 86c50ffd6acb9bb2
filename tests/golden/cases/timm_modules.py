"""timm modules rebuilt from the frozen ``base.*`` tensors of a file: their sizes follow from the tensors' shapes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from timm.layers.attention import Attention
from timm.models.convnext import ConvNeXtBlock, LayerNorm2d
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ..vectors import Vectors


def with_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> Any:
    """The module in the tensors' dtype, frozen, in evaluation mode, holding exactly these tensors."""
    module = module.to(next(iter(tensors.values())).dtype)
    module.load_state_dict(dict(tensors), strict=True)
    return module.requires_grad_(False).eval()


def _norm(case: Vectors, default: float) -> Any:
    return partial(nn.LayerNorm, eps=case.options.get("layer_norm_eps", case.options.get("layernorm_eps", default)))


def _block(case: Vectors, tensors: Mapping[str, Tensor]) -> Block:
    hidden, width = tensors["mlp.fc1.weight"].shape
    return Block(
        width,
        case.options["heads"],
        mlp_ratio=hidden / width,
        qkv_bias="attn.qkv.bias" in tensors,
        norm_layer=_norm(case, 1e-6),
    )


class Blocks(nn.Module):
    """Transformer blocks in a row, as ``blocks.0``, ``blocks.1``, ..."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


def blocks(case: Vectors) -> Blocks:
    """Transformer blocks from ``base.blocks.<i>.*``, or the one from ``base.*`` as ``blocks.0``."""
    tensors = case.below("base")
    if not any(name.startswith("blocks.") for name in tensors):
        tensors = {f"blocks.0.{name}": value for name, value in tensors.items()}
    depth = len({name.split(".")[1] for name in tensors})
    each = [{n.split(".", 2)[2]: t for n, t in tensors.items() if n.split(".")[1] == str(i)} for i in range(depth)]
    return with_tensors(Blocks(*(_block(case, own) for own in each)), tensors)


def vit(case: Vectors) -> VisionTransformer:
    """A whole vision transformer with a class-token head."""
    tensors = case.below("base")
    width, channels, patch, _ = tensors["patch_embed.proj.weight"].shape
    model = VisionTransformer(
        img_size=case["input.x"].shape[-2:],  # type: ignore[arg-type]
        patch_size=patch,
        in_chans=channels,
        num_classes=tensors["head.weight"].shape[0],
        embed_dim=width,
        depth=len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        num_heads=case.options["heads"],
        mlp_ratio=tensors["blocks.0.mlp.fc1.weight"].shape[0] / width,
        qkv_bias="blocks.0.attn.qkv.bias" in tensors,
        norm_layer=_norm(case, 1e-6),
    )
    return with_tensors(model, tensors)


def attention(case: Vectors) -> Attention:
    """An attention module with a fused qkv."""
    tensors = case.below("base")
    width = tensors["qkv.weight"].shape[1]
    return with_tensors(Attention(width, case.options["heads"], qkv_bias="qkv.bias" in tensors), tensors)


class ConvNextPart(nn.Module):
    """A downsampling and one ConvNeXt block; gives the output of both."""

    def __init__(self, downsample: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.downsample, self.block = downsample, block

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.downsample(x)
        return x, self.block(x)


def convnext_part(case: Vectors) -> ConvNextPart:
    """Norm and strided convolution as ``downsample``, then ``block``."""
    tensors = case.below("base")
    width, channels, size, _ = tensors["downsample.1.weight"].shape
    eps = case.options.get("layer_norm_eps", 1e-6)
    norm = LayerNorm2d(channels, eps=eps)
    downsample = nn.Sequential(norm, nn.Conv2d(channels, width, size, stride=size, bias="downsample.1.bias" in tensors))
    block = ConvNeXtBlock(
        width,
        kernel_size=tensors["block.conv_dw.weight"].shape[-1],
        mlp_ratio=tensors["block.mlp.fc1.weight"].shape[0] / width,
        ls_init_value=1.0 if "block.gamma" in tensors else None,
        norm_layer=partial(nn.LayerNorm, eps=eps),  # type: ignore[arg-type]
    )
    return with_tensors(ConvNextPart(downsample, block), tensors)
