"""Parameter-efficient adaptation of timm vision models.

Importing this package registers its methods with PEFT and its models with timm:

    model = get_peft_model(timm.create_model("vit_base_patch16_224", num_classes=100), vision_peft.SnellConfig(r=8))
"""

from vision_peft import models
from vision_peft.methods import (
    AdapterPlusConfig,
    BitFitConfig,
    FullConfig,
    LinearProbeConfig,
    SlicedLoraConfig,
    SnellConfig,
    SsfConfig,
    fill,
    fold_scaling,
)

__all__ = [
    "AdapterPlusConfig",
    "BitFitConfig",
    "FullConfig",
    "LinearProbeConfig",
    "SlicedLoraConfig",
    "SnellConfig",
    "SsfConfig",
    "fill",
    "fold_scaling",
    "models",
]
