"""The noise that a real picture starts from, so that its text can be edited: DDIM's step solved backwards.

With ``ᾱ`` of the schedule a step of DDIM (Song et al., ICLR 2021, eq. 12, ``η = 0``) leads from ``x_t`` to
``x_s = √ᾱ_s x̂ + √(1 - ᾱ_s) ε``, where ``x̂ = (x_t - √(1 - ᾱ_t) ε) / √ᾱ_t`` and ``ε = ε(x_t, t)``. Backwards ``x_t`` is
the unknown on both sides, found by a few rounds of putting it in (Pan et al., *Effective Real Image Editing with
Accelerated Iterative Diffusion Inversion*, ICCV 2023). Without guidance: the editing takes ``guidance=1`` as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from diffusion_peft.pipelines.kinds import kind_of


def invert_pictures(pipe: Any, pictures: Tensor, prompts: Sequence[str], *, steps: int = 50, rounds: int = 3) -> Tensor:
    """Latents ``[N, C, h, w]`` that ``pipe`` draws these pictures from, without guidance and with these prompts.

    Args:
        pipe: Stable Diffusion (1, 2, XL) with a DDIM scheduler.
        pictures: ``[N, 3, H, W]`` in 0 to 1, of the size that the pipeline draws.
        prompts: what each shows.
        steps: of the scheduler; the editing takes as many.
        rounds: calls of the denoiser at each step.

    Raises:
        ValueError: another scheduler or prediction, or not one prompt a picture.
        DataError: a pipeline of a kind that is not known.
    """
    schedule = pipe.scheduler
    settings: Any = schedule.config
    if not isinstance(schedule, DDIMScheduler) or settings.prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"pictures are inverted with DDIM; found {type(schedule).__name__}: set "
            "`pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)`"
        )
    if len(prompts) != len(pictures):
        raise ValueError(f"each picture needs the prompt that describes it; found {len(pictures)} and {len(prompts)}")
    kind = kind_of(pipe)
    schedule.set_timesteps(steps)
    between = settings.num_train_timesteps // steps
    with torch.no_grad():
        given = kind.encode(list(prompts), kind.device)
        height, width = pictures.shape[-2:]
        framing = torch.tensor([[height, width, 0, 0, height, width]] * len(pictures), device=kind.device)
        given = {**given, "framing": framing.to(kind.dtype)}
        pixels = (2 * pictures - 1).to(pipe.vae.device, pipe.vae.dtype)
        found = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
        for timestep in schedule.timesteps.flip(0).tolist():
            alpha = schedule.alphas_cumprod[timestep]
            before = timestep - between
            lower = schedule.alphas_cumprod[before] if before >= 0 else schedule.final_alpha_cumprod
            start = found
            for _ in range(rounds):
                predicted = kind.predict(kind.denoiser, found, torch.full((len(found),), timestep), given)
                if settings.prediction_type == "v_prediction":
                    predicted = alpha.sqrt() * predicted + (1 - alpha).sqrt() * found
                clean = (start - (1 - lower).sqrt() * predicted) / lower.sqrt()
                found = alpha.sqrt() * clean + (1 - alpha).sqrt() * predicted
    return found
