"""The architecture families that have default targets, as patterns over module names relative to the backbone.

What diffusers' denoisers are adapted at by default is what their users expect: LoRA and its like (LoRA, DoRA, OFT,
LoHa, LoKr, VeRA, SHiRA) take the attention projections ``to_q``, ``to_k``, ``to_v`` and ``to_out.0``, as the training
examples of diffusers and PEFT do; SD3's and Flux's joint attention has four more for the text (``add_q_proj``,
``add_k_proj``, ``add_v_proj``, ``to_add_out``), which diffusers' examples for these models name too (that for Flux the
feed-forward layers besides). Weight methods of this project (SNELL, SNELLA) take feed-forward layers as well. Embedders
of time, label and text, and the layers that modulate norms, are no targets.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Default targets of one architecture family, by kind.

    Attributes:
        classes: class names of the backbones.
        linear: the projections that weight methods (SNELL, and LoRA in vision models) adapt.
        block: the residual blocks, after which adapters stand; where a block carries two streams (SD3, Flux), the
            branch that ends the pictures' one.
        affine: the operations after which SSF scales and shifts: those that the authors' parameter counts are made of
            (267,264 on Swin-B, 255,232 on ConvNeXt-B), so no downsampling layers.
        qkv: the (fused or separate) attention projections.
        norm: the normalisation layers with parameters.
        dynamic: the layers whose kernels FDConv rebuilds per sample: convolutions of residual blocks, or the MLPs.
        mlp_norm: of point transformers, the norm before each MLP, where adapters beside the MLP read.
        attention: in denoisers, separate attention projections with those of the output.
        key_value: those of them that make keys and values, whose outputs IA3 scales.
        feedforward: the last layers of the MLPs, whose inputs IA3 scales.
        denoiser: whether the model predicts noise instead of classes.
    """

    classes: tuple[str, ...]
    linear: str
    block: str
    affine: str
    qkv: str | None = None
    norm: str | None = None
    dynamic: str | None = None
    mlp_norm: str | None = None
    attention: str | None = None
    key_value: str | None = None
    feedforward: str | None = None
    denoiser: bool = False


_PROJECTIONS = r"attn\.(qkv|q_proj|k_proj|v_proj|proj)|mlp\.(fc1|fc2|fc1_g|fc1_x|w1|w2|w3|w12)"
_SITES = rf"norm1|norm2|{_PROJECTIONS}"
_STEM = r"patch_embed\.(proj|norm)"

# --- diffusers
_QKV, _OUT, _KV = r"to_[qkv]", r"to_out\.0", r"to_[kv]"
_JOINT_QKV, _JOINT_OUT, _JOINT_KV = rf"({_QKV}|add_[qkv]_proj)", rf"({_OUT}|to_add_out)", r"(to_[kv]|add_[kv]_proj)"
_FF = r"net\.(0\.proj|2)"
_BLOCKS = r"transformer_blocks\.\d+"
_LEVELS = r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)"
_RESNETS = rf"{_LEVELS}\.resnets\.\d+"
_UNET_ATTENTIONS = rf"{_LEVELS}\.attentions\.\d+"
_UNET_BLOCKS = rf"{_UNET_ATTENTIONS}\.{_BLOCKS}"
_SINGLE = r"single_transformer_blocks\.\d+"

FAMILIES: dict[str, Family] = {
    "vit": Family(
        classes=("VisionTransformer", "VisionTransformerDistilled", "Eva", "Beit"),
        linear=rf"blocks\.\d+\.({_PROJECTIONS})",
        qkv=r"blocks\.\d+\.attn\.(qkv|q_proj|k_proj|v_proj)",
        block=r"blocks\.\d+",
        affine=rf"{_STEM}|blocks\.\d+\.({_SITES})|norm|fc_norm",
        norm=r"blocks\.\d+\.(norm1|norm2)|norm|fc_norm",
        dynamic=r"blocks\.\d+\.mlp\.(fc1|fc2|fc1_g|fc1_x|w1|w2|w3|w12)",
    ),
    "swin": Family(
        classes=("SwinTransformer", "SwinTransformerV2"),
        linear=rf"layers\.\d+\.blocks\.\d+\.({_PROJECTIONS})",
        qkv=r"layers\.\d+\.blocks\.\d+\.attn\.qkv",
        block=r"layers\.\d+\.blocks\.\d+",
        affine=rf"{_STEM}|layers\.\d+\.blocks\.\d+\.({_SITES})|norm",
        norm=r"patch_embed\.norm|layers\.\d+\.(blocks\.\d+\.(norm1|norm2)|downsample\.norm)|norm",
        dynamic=r"layers\.\d+\.blocks\.\d+\.mlp\.(fc1|fc2)",
    ),
    "convnext": Family(
        classes=("ConvNeXt",),
        linear=r"stages\.\d+\.blocks\.\d+\.mlp\.(fc1|fc2)",
        block=r"stages\.\d+\.blocks\.\d+",
        affine=r"stem\.[01]|stages\.\d+\.blocks\.\d+\.(conv_dw|norm|mlp\.fc1|mlp\.fc2)",
        norm=r"stem\.1|stages\.\d+\.(blocks\.\d+\.norm|downsample\.0)|head\.norm",
        dynamic=r"stages\.\d+\.blocks\.\d+\.mlp\.(fc1|fc2)",
    ),
    "resnet": Family(
        classes=("ResNet",),
        linear=r"layer\d+\.\d+\.(conv[123]|downsample\.\d)",
        block=r"layer\d+\.\d+",
        affine=r"bn1|layer\d+\.\d+\.(bn[123]|downsample\.\d)",
        norm=r"bn1|layer\d+\.\d+\.(bn[123]|downsample\.\d)",
        dynamic=r"layer\d+\.\d+\.conv[123]",
    ),
    "point": Family(  # Point-MAE and its kin: timm's blocks, one level deeper
        classes=("PointBackbone",),
        linear=rf"blocks\.blocks\.\d+\.({_PROJECTIONS})",
        qkv=r"blocks\.blocks\.\d+\.attn\.qkv",
        block=r"blocks\.blocks\.\d+",
        affine=rf"blocks\.blocks\.\d+\.({_SITES})|norm",
        norm=r"blocks\.blocks\.\d+\.(norm1|norm2)|norm",
        mlp_norm=r"blocks\.blocks\.\d+\.norm2",
    ),
    "point_gpt": Family(  # `nn.MultiheadAttention` calls none of its projections: the MLPs alone
        classes=("PointGpt",),
        linear=r"blocks\.layers\.\d+\.mlp\.[02]",
        block=r"blocks\.layers\.\d+",
        affine=r"blocks\.layers\.\d+\.(ln_[12]|mlp\.[02])|blocks\.(ln_f|cls_norm)",
        norm=r"blocks\.layers\.\d+\.ln_[12]|blocks\.(ln_f|cls_norm)",
        mlp_norm=r"blocks\.layers\.\d+\.ln_2",
    ),
    "unet": Family(  # SD 1, SD 2, SDXL
        classes=("UNet2DConditionModel",),
        linear=rf"{_UNET_BLOCKS}\.(attn[12]\.({_QKV}|{_OUT})|ff\.{_FF})",
        block=_UNET_BLOCKS,
        affine=rf"conv_in|{_RESNETS}\.(norm[12]|conv[12])|{_UNET_ATTENTIONS}\.(norm|proj_in|proj_out)"
        rf"|{_UNET_BLOCKS}\.(norm[123]|attn[12]\.({_QKV}|{_OUT})|ff\.{_FF})|conv_norm_out",
        qkv=rf"{_UNET_BLOCKS}\.attn[12]\.{_QKV}",
        norm=rf"{_RESNETS}\.norm[12]|{_UNET_ATTENTIONS}\.norm|{_UNET_BLOCKS}\.norm[123]|conv_norm_out",
        dynamic=rf"{_RESNETS}\.conv[12]",
        attention=rf"{_UNET_BLOCKS}\.attn[12]\.({_QKV}|{_OUT})",
        key_value=rf"{_UNET_BLOCKS}\.attn[12]\.{_KV}",
        feedforward=rf"{_UNET_BLOCKS}\.ff\.net\.2",
        denoiser=True,
    ),
    "unconditional_unet": Family(  # DDPM: most of it are convolutions
        classes=("UNet2DModel",),
        linear=rf"{_UNET_ATTENTIONS}\.({_QKV}|{_OUT})|{_RESNETS}\.conv[12]",
        block=_RESNETS,
        affine=rf"conv_in|{_RESNETS}\.(norm[12]|conv[12])|{_UNET_ATTENTIONS}\.(group_norm|{_QKV}|{_OUT})|conv_norm_out",
        qkv=rf"{_UNET_ATTENTIONS}\.{_QKV}",
        norm=rf"{_RESNETS}\.norm[12]|{_UNET_ATTENTIONS}\.group_norm|conv_norm_out",
        attention=rf"{_UNET_ATTENTIONS}\.({_QKV}|{_OUT})",
        dynamic=rf"{_RESNETS}\.conv[12]",
        denoiser=True,
    ),
    "dit": Family(  # norms without parameters: scale and shift come from the label or the time
        classes=("DiTTransformer2DModel", "PixArtTransformer2DModel"),
        linear=rf"{_BLOCKS}\.(attn[12]\.({_QKV}|{_OUT})|ff\.{_FF})",
        block=_BLOCKS,
        affine=rf"pos_embed\.proj|{_BLOCKS}\.(norm1(\.norm)?|norm[23]|attn[12]\.({_QKV}|{_OUT})|ff\.{_FF})|norm_out",
        qkv=rf"{_BLOCKS}\.attn[12]\.{_QKV}",
        attention=rf"{_BLOCKS}\.attn[12]\.({_QKV}|{_OUT})",
        key_value=rf"{_BLOCKS}\.attn[12]\.{_KV}",
        feedforward=rf"{_BLOCKS}\.ff\.net\.2",
        dynamic=rf"{_BLOCKS}\.ff\.{_FF}",
        denoiser=True,
    ),
    "sd3": Family(
        classes=("SD3Transformer2DModel",),
        linear=rf"{_BLOCKS}\.(attn\.({_JOINT_QKV}|{_JOINT_OUT})|ff(_context)?\.{_FF})",
        block=rf"{_BLOCKS}\.ff",
        affine=rf"pos_embed\.proj|{_BLOCKS}\.(norm1(_context)?\.norm|norm2(_context)?|attn\.({_JOINT_QKV}|{_JOINT_OUT})"
        rf"|ff(_context)?\.{_FF})|norm_out\.norm",
        qkv=rf"{_BLOCKS}\.attn\.{_JOINT_QKV}",
        attention=rf"{_BLOCKS}\.attn\.({_JOINT_QKV}|{_JOINT_OUT})",
        key_value=rf"{_BLOCKS}\.attn\.{_JOINT_KV}",
        feedforward=rf"{_BLOCKS}\.ff(_context)?\.net\.2",
        dynamic=rf"{_BLOCKS}\.ff(_context)?\.{_FF}",
        denoiser=True,
    ),
    "flux": Family(  # after the blocks of two streams, blocks of one, whose `proj_out` serves attention and MLP
        classes=("FluxTransformer2DModel",),
        linear=rf"{_BLOCKS}\.(attn\.({_JOINT_QKV}|{_JOINT_OUT})|ff(_context)?\.{_FF})"
        rf"|{_SINGLE}\.(attn\.{_QKV}|proj_mlp|proj_out)",
        block=rf"{_BLOCKS}\.ff|{_SINGLE}\.proj_out",
        affine=rf"x_embedder|{_BLOCKS}\.(norm1(_context)?\.norm|norm2(_context)?|attn\.({_JOINT_QKV}|{_JOINT_OUT})"
        rf"|ff(_context)?\.{_FF})|{_SINGLE}\.(norm\.norm|attn\.{_QKV}|proj_mlp|proj_out)|norm_out\.norm",
        qkv=rf"{_BLOCKS}\.attn\.{_JOINT_QKV}|{_SINGLE}\.attn\.{_QKV}",
        norm=rf"{_BLOCKS}\.attn\.norm_(added_)?[qk]|{_SINGLE}\.attn\.norm_[qk]",
        attention=rf"{_BLOCKS}\.attn\.({_JOINT_QKV}|{_JOINT_OUT})|{_SINGLE}\.attn\.{_QKV}",
        key_value=rf"{_BLOCKS}\.attn\.{_JOINT_KV}|{_SINGLE}\.attn\.{_KV}",
        feedforward=rf"{_BLOCKS}\.ff(_context)?\.net\.2|{_SINGLE}\.proj_out",
        dynamic=rf"{_BLOCKS}\.ff(_context)?\.{_FF}|{_SINGLE}\.(proj_mlp|proj_out)",
        denoiser=True,
    ),
}
