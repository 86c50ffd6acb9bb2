"""Parameter-efficient adaptation of diffusers' models, and the small pretrained pipelines that come with it.

    pipeline = DiffusionPipeline.from_pretrained(diffusion_peft.pretrained("mini_sd"))
    diffusion_peft.add_adapter(pipeline, LoraConfig(r=8))

Importing this package or `vision_peft` registers the methods of both; vision's configurations are in `vision_peft`.
"""

from diffusion_peft.adapters import (
    add_adapter,
    delete_adapters,
    disable_adapters,
    enable_adapters,
    hotswap_adapter,
    load_adapter,
    save_adapter,
    set_adapters,
)
from diffusion_peft.data.conditions import Condition
from diffusion_peft.denoiser import denoiser
from diffusion_peft.embedded import pretrained
from diffusion_peft.localization import (
    Localization,
    edit_text,
    invert_pictures,
    localize_text_layers,
    localized_lora,
    patch_text,
    projection_parameters,
    replace_words,
    text_layers,
)
from diffusion_peft.methods import (
    DiffFitConfig,
    HipaConfig,
    HipaLoss,
    HipaLossSpec,
    SaraAllocator,
    SaraConfig,
    ScaleLongConfig,
    SceditConfig,
    condition_on,
    position_table,
    sara_counts,
)
from diffusion_peft.pipelines.one_step import one_step, one_step_scheduler
from diffusion_peft.pipelines.scedit import StableDiffusionSCEditPipeline, StableDiffusionXLSCEditPipeline
from peft_kernels.adapter_files import AdapterError
from peft_kernels.composing import compose
from peft_kernels.data_errors import DataError
from peft_kernels.sensitivity import sensitivity

__all__ = [
    "AdapterError",
    "Condition",
    "DataError",
    "DiffFitConfig",
    "HipaConfig",
    "HipaLoss",
    "HipaLossSpec",
    "Localization",
    "SaraAllocator",
    "SaraConfig",
    "ScaleLongConfig",
    "SceditConfig",
    "StableDiffusionSCEditPipeline",
    "StableDiffusionXLSCEditPipeline",
    "add_adapter",
    "compose",
    "condition_on",
    "delete_adapters",
    "denoiser",
    "disable_adapters",
    "edit_text",
    "enable_adapters",
    "hotswap_adapter",
    "invert_pictures",
    "load_adapter",
    "localize_text_layers",
    "localized_lora",
    "one_step",
    "one_step_scheduler",
    "patch_text",
    "position_table",
    "pretrained",
    "projection_parameters",
    "replace_words",
    "sara_counts",
    "save_adapter",
    "sensitivity",
    "set_adapters",
    "text_layers",
]
