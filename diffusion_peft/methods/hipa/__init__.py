"""HiPA: one-step text-to-image by a LoRA that brings the high frequencies back.

Zhang & Hooi, *HiPA: Enabling One-Step Text-to-Image Diffusion Models via High-Frequency-Promoting Adaptation*,
arXiv:2311.18158. A frozen denoiser with one LoRA is evaluated once, on pure noise at the last timestep; its picture is
compared with the same model's picture of many steps from the same noise, by a spatial perceptual distance and by what
lies in the high frequencies: Fourier components and edges. The authors published neither code nor constants; what is
not in the paper (shape of the mask, weights, distance) is a setting here, and its default is ours.
"""

from diffusion_peft.methods.hipa.adapter import HipaConfig
from diffusion_peft.methods.hipa.loss import HipaLoss, HipaLossSpec

__all__ = ["HipaConfig", "HipaLoss", "HipaLossSpec"]
