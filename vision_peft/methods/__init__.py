"""The vision methods, one file each; importing this package registers them with PEFT."""

from vision_peft.methods.adapter_plus import AdapterPlusConfig, fold_scaling
from vision_peft.methods.fdconv import FdconvConfig
from vision_peft.methods.own import fill
from vision_peft.methods.painter import painter_config
from vision_peft.methods.pointgst import (
    CloudSpectrum,
    CloudView,
    Pcsa,
    PointGstConfig,
    bound_spectra,
    cloud_spectra,
    cloud_spectrum,
    load_pointgst,
    view_cloud,
)
from vision_peft.methods.pointpeft import PointPeftConfig, bound_features, cloud_features, point_peft_config
from vision_peft.methods.pyramid import interactions_config
from vision_peft.methods.sliced_lora import SlicedLoraConfig
from vision_peft.methods.snell import SnellConfig
from vision_peft.methods.snella import SnellaAllocator, SnellaConfig
from vision_peft.methods.spt import SptConfig, spt_config
from vision_peft.methods.ssf import SsfConfig
from vision_peft.methods.trained import BitFitConfig, FullConfig, LinearProbeConfig
from vision_peft.methods.vpt import VptConfig

__all__ = [
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
    "fill",
    "fold_scaling",
    "interactions_config",
    "load_pointgst",
    "painter_config",
    "point_peft_config",
    "spt_config",
    "view_cloud",
]
