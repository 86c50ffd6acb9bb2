"""Parameter-efficient adaptation of diffusers' models, and the small pretrained pipelines that come with it:

pipeline = DiffusionPipeline.from_pretrained(diffusion_peft.pretrained("mini_sd"))
"""

from diffusion_peft.embedded import pretrained
from diffusion_peft.methods import DiffFitConfig, position_table
from peft_kernels.data_errors import DataError

__all__ = ["DataError", "DiffFitConfig", "position_table", "pretrained"]
