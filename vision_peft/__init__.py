"""Parameter-efficient adaptation of timm vision models.

Importing this package registers its methods with PEFT and its models with timm:

    model = get_peft_model(timm.create_model("vit_base_patch16_224", num_classes=100), vision_peft.SnellConfig(r=8))
"""

from peft_kernels.adapter_files import AdapterError
from peft_kernels.composing import compose
from peft_kernels.hotswap import hotswap_adapter
from peft_kernels.loading import load_adapter
from peft_kernels.sensitivity import sensitivity
from vision_peft import models
from vision_peft.methods import (
    AdapterPlusConfig,
    BitFitConfig,
    CloudSpectrum,
    CloudView,
    FdconvConfig,
    FullConfig,
    LinearProbeConfig,
    Pcsa,
    PointGstConfig,
    PointPeftConfig,
    SlicedLoraConfig,
    SnellaAllocator,
    SnellaConfig,
    SnellConfig,
    SptConfig,
    SsfConfig,
    VptConfig,
    bound_features,
    bound_spectra,
    cloud_features,
    cloud_spectra,
    cloud_spectrum,
    fill,
    fold_scaling,
    interactions_config,
    load_pointgst,
    painter_config,
    point_peft_config,
    spt_config,
    view_cloud,
)
from vision_peft.models import load_point_checkpoint, point_to_pixel, pyramid, torchvision_backbone

__all__ = [
    "AdapterError",
    "AdapterPlusConfig",
    "BitFitConfig",
    "CloudSpectrum",
    "CloudView",
    "FdconvConfig",
    "FullConfig",
    "LinearProbeConfig",
    "Pcsa",
    "PointGstConfig",
    "PointPeftConfig",
    "SlicedLoraConfig",
    "SnellConfig",
    "SnellaAllocator",
    "SnellaConfig",
    "SptConfig",
    "SsfConfig",
    "VptConfig",
    "bound_features",
    "bound_spectra",
    "cloud_features",
    "cloud_spectra",
    "cloud_spectrum",
    "compose",
    "fill",
    "fold_scaling",
    "hotswap_adapter",
    "interactions_config",
    "load_adapter",
    "load_point_checkpoint",
    "load_pointgst",
    "models",
    "painter_config",
    "point_peft_config",
    "point_to_pixel",
    "pyramid",
    "sensitivity",
    "spt_config",
    "torchvision_backbone",
    "view_cloud",
]
