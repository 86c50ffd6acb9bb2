"""Kinds of pipelines whose denoiser is a UNet with cross-attention to text."""

from typing import Any

import torch
from torch import Tensor

from diffusion_peft.pipelines.kind import Given, Kind


class StableDiffusion(Kind):
    """A UNet that attends to the tokens of one CLIP text encoder (SD 1, SD 2)."""

    pipelines = ("StableDiffusionPipeline",)

    def encode(self, captions: list[str], device: torch.device) -> Given:
        return {"text": self.pipeline.encode_prompt(captions, device, 1, False)[0]}

    def predict(self, model: Any, noised: Tensor, timesteps: Tensor, given: Given) -> Tensor:
        return model(noised, timesteps, encoder_hidden_states=given["text"]).sample

    def asked(self, given: Given, absent: Given) -> dict[str, Any]:
        return {"prompt_embeds": given["text"], "negative_prompt_embeds": absent["text"]}


class StableDiffusionXL(Kind):
    """A UNet that sees two text encoders, a pooled encoding, and how the picture was framed."""

    pipelines = ("StableDiffusionXLPipeline",)
    text = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")

    def encode(self, captions: list[str], device: torch.device) -> Given:
        text, _, pooled, _ = self.pipeline.encode_prompt(
            captions, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        if self.pipeline.config.force_zeros_for_empty_prompt:  # as the pipeline does for a missing caption
            empty = torch.tensor([not caption for caption in captions], device=device)
            text, pooled = text.masked_fill(empty[:, None, None], 0), pooled.masked_fill(empty[:, None], 0)
        return {"text": text, "pooled": pooled}

    def predict(self, model: Any, noised: Tensor, timesteps: Tensor, given: Given) -> Tensor:
        more = {"text_embeds": given["pooled"], "time_ids": given["framing"]}
        return model(noised, timesteps, encoder_hidden_states=given["text"], added_cond_kwargs=more).sample

    def asked(self, given: Given, absent: Given) -> dict[str, Any]:
        return {
            "prompt_embeds": given["text"],
            "pooled_prompt_embeds": given["pooled"],
            "negative_prompt_embeds": absent["text"],
            "negative_pooled_prompt_embeds": absent["pooled"],
        }
