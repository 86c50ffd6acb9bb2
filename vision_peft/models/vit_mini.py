"""`vit_mini`: a timm VisionTransformer for 32×32 pictures, small enough to train and adapt on a laptop's processor.

A short convolutional stem (Hassani et al., *Escaping the Big Data Paradigm with Compact Transformers*, 2021, Sec. 3)
replaces the patch embedding: it gives 8×8 = 64 tokens and the locality that a small data set cannot teach attention.
The blocks are timm's own, so that methods find `blocks.N.attn.qkv`, `blocks.N.mlp.fc1`, `patch_embed.proj` and `head`
where they are in every other ViT of timm.
"""

from pathlib import Path
from typing import Any

import torch
from timm.models import build_model_with_cfg, register_model
from timm.models._registry import generate_default_cfgs
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

WEIGHTS = Path(__file__).resolve().parent.parent / "assets" / "vit_mini" / "model.safetensors"


class ConvStem(nn.Module):
    """Three 3×3 convolutions, 32×32 pixels to 8×8 tokens: `[N, 3, 32, 32] -> [N, 64, embed_dim]`.

    GroupNorm instead of BatchNorm: it keeps no running statistics, which a frozen model in training mode would still
    change, and which an adapter's file does not hold.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 32,
        in_chans: int = 3,
        embed_dim: int = 128,
        strict_img_size: bool = True,
        output_fmt: str = "NLC",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **_: Any,
    ):
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if height % 4 or width % 4:
            raise ValueError(
                f"vit_mini's stem halves the picture twice: img_size must be a multiple of 4, not {img_size}"
            )
        self.img_size = (height, width)
        self.patch_size = (4, 4)
        self.grid_size = (height // 4, width // 4)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.strict_img_size, self.output_fmt = strict_img_size, output_fmt
        half = embed_dim // 2
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, half, 3, stride=2, padding=1, bias=False, **dd),
            nn.GroupNorm(8, half, **dd),
            nn.GELU(),
            nn.Conv2d(half, embed_dim, 3, padding=1, bias=False, **dd),
            nn.GroupNorm(8, embed_dim, **dd),
            nn.GELU(),
        )
        self.proj = nn.Conv2d(embed_dim, embed_dim, 3, stride=2, padding=1, **dd)

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels per token along a side."""
        return 4 if as_scalar else (4, 4)

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tokens, as timm's `forward_intermediates` asks for them."""
        return img_size[0] // 4, img_size[1] // 4

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `[N, L, embed_dim]` of pictures `[N, 3, H, W]`; `[N, rows, columns, embed_dim]` of any size's."""
        size = tuple(x.shape[-2:])
        if self.strict_img_size and size != self.img_size:
            raise ValueError(f"vit_mini takes {self.img_size} pixels, but the pictures have {size}")
        if size[0] % 4 or size[1] % 4:
            raise ValueError(f"vit_mini takes sides that are multiples of 4, but the pictures have {size}")
        x = self.proj(self.stem(x))
        return x.movedim(1, -1) if self.output_fmt == "NHWC" else x.flatten(2).transpose(1, 2)


default_cfgs = generate_default_cfgs(
    {
        "vit_mini.cifar10": {
            "file": str(WEIGHTS),
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "fixed_input_size": True,
            "pool_size": None,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.4914, 0.4822, 0.4465),
            "std": (0.2470, 0.2435, 0.2616),
            "first_conv": "patch_embed.stem.0",
            "classifier": "head",
            "license": "apache-2.0",
        },
    }
)


@register_model
def vit_mini(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Width 128, 5 blocks, 4 heads, 64 tokens, average pool: 0.9 M parameters; `pretrained` loads the packaged file."""
    settings: dict[str, Any] = {
        "img_size": 32,
        "patch_size": 4,
        "embed_dim": 128,
        "depth": 5,
        "num_heads": 4,
        "mlp_ratio": 2.0,
        "class_token": False,
        "global_pool": "avg",
        "embed_layer": ConvStem,
    }
    model = build_model_with_cfg(
        VisionTransformer,
        "vit_mini",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,  # resizes the position embedding to another img_size
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **{**settings, **kwargs},
    )
    blocks: Any = getattr(model, "model", model).blocks  # features_only wraps the model
    for block in blocks:
        # Measured on two cores, 64 tokens, bfloat16: torch's fused attention makes the whole step 1.4 times as slow.
        block.attn.fused_attn = False
    return model
