"""The diffusion methods, one file or folder each; importing this package registers them with PEFT."""

from diffusion_peft.methods.difffit import DiffFitConfig, position_table
from diffusion_peft.methods.hipa import HipaConfig, HipaLoss, HipaLossSpec
from diffusion_peft.methods.sara import SaraAllocator, SaraConfig, sara_counts
from diffusion_peft.methods.scale_long import ScaleLongConfig
from diffusion_peft.methods.scedit import SceditConfig, condition_on

__all__ = [
    "DiffFitConfig",
    "HipaConfig",
    "HipaLoss",
    "HipaLossSpec",
    "SaraAllocator",
    "SaraConfig",
    "ScaleLongConfig",
    "SceditConfig",
    "condition_on",
    "position_table",
    "sara_counts",
]
