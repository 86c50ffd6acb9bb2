"""What a run does with a model of this family: its data, its loss, its evaluation."""

from diffusion_peft.tasks.autoencoder import Autoencoding
from diffusion_peft.tasks.class_to_image import ClassToImage
from diffusion_peft.tasks.one_step import OneStepTuning
from diffusion_peft.tasks.text_to_image import TextToImage
from diffusion_peft.tasks.tuning import PipelineTuning

__all__ = ["Autoencoding", "ClassToImage", "OneStepTuning", "PipelineTuning", "TextToImage"]
