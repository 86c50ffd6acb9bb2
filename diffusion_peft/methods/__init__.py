"""The diffusion methods, one file each; importing this package registers them with PEFT."""

from diffusion_peft.methods.difffit import DiffFitConfig, position_table

__all__ = ["DiffFitConfig", "position_table"]
