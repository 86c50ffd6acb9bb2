"""Kinds of pipelines whose denoiser is a transformer."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion_peft.pipelines.kind import Given, Kind
from peft_kernels.data_errors import DataError, unknown

FLUX_GUIDANCE = 3.5  # what a guidance-distilled Flux is told while it is trained, as diffusers' own script does


class ClassConditional(Kind):
    """A DiT; a caption is a class, by its label or number, and an empty one no class."""

    pipelines = ("DiTPipeline",)
    part = "transformer"
    text = ()
    none: ClassVar[int] = 1000  # what `DiTPipeline` has for "any class", whatever the number of classes is

    def __init__(self, pipeline: Any, max_tokens: int | None = None):
        super().__init__(pipeline, max_tokens)
        # Each block embeds the class by itself and would drop it by itself while training: the task drops it for all.
        for block in self.denoiser.transformer_blocks:
            block.norm1.emb.class_embedder.dropout_prob = 0.0

    def encode(self, captions: list[str], device: torch.device) -> Given:
        return {"label": torch.tensor([self.number(caption) for caption in captions], device=device)}

    def number(self, caption: str) -> int:
        """The class of a label.

        Raises:
            UnknownNameError: the pipeline has no such class; the nearest is told.
        """
        labels: dict[str, int] = self.pipeline.labels
        classes = int(self.denoiser.config.num_embeds_ada_norm)
        if not caption:
            return self.none
        if caption in labels:
            return int(labels[caption])
        if caption.isdecimal() and int(caption) < classes:
            return int(caption)
        raise unknown("class", caption, labels or [f"0 to {classes - 1}"])

    def predict(self, model: Any, noised: Tensor, timesteps: Tensor, given: Given) -> Tensor:
        return model(noised, timestep=timesteps, class_labels=given["label"]).sample

    def asked(self, given: Given, absent: Given) -> dict[str, Any]:
        return {"class_labels": given["label"].tolist()}

    def sized(self, size: int) -> dict[str, Any]:
        found = self.denoiser.config.sample_size * 2 ** (len(self.pipeline.vae.config.block_out_channels) - 1)
        if size != found:
            raise DataError(f"this DiTPipeline makes pictures of {found} pixels only, not of {size}")
        return {}


class PixArt(Kind):
    """A transformer that attends to the tokens of a T5, those that are there."""

    pipelines = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    part = "transformer"
    limited = True

    def encode(self, captions: list[str], device: torch.device) -> Given:
        text, mask, _, _ = self.pipeline.encode_prompt(captions, False, device=device, **self.longest)
        return {"text": text, "mask": mask}

    def predict(self, model: Any, noised: Tensor, timesteps: Tensor, given: Given) -> Tensor:
        more: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
        if self.denoiser.use_additional_conditions:
            size = given["framing"][:, 4:]
            more = {"resolution": size, "aspect_ratio": size[:, :1] / size[:, 1:]}
        return model(
            noised,
            encoder_hidden_states=given["text"],
            encoder_attention_mask=given["mask"],
            timestep=timesteps,
            added_cond_kwargs=more,
        ).sample

    def asked(self, given: Given, absent: Given) -> dict[str, Any]:
        return {
            "prompt_embeds": given["text"],
            "prompt_attention_mask": given["mask"],
            "negative_prompt": None,
            "negative_prompt_embeds": absent["text"],
            "negative_prompt_attention_mask": absent["mask"],
        }

    def sized(self, size: int) -> dict[str, Any]:
        return {**super().sized(size), "use_resolution_binning": False}


class StableDiffusion3(Kind):
    """A transformer over pictures and the tokens of up to three text encoders."""

    pipelines = ("StableDiffusion3Pipeline",)
    part = "transformer"
    limited = True
    text = tuple(f"{part}{end}" for part in ("text_encoder", "tokenizer") for end in ("", "_2", "_3"))

    def encode(self, captions: list[str], device: torch.device) -> Given:
        text, _, pooled, _ = self.pipeline.encode_prompt(
            captions, captions, captions, device=device, do_classifier_free_guidance=False, **self.longest
        )
        return {"text": text, "pooled": pooled}

    def predict(self, model: Any, noised: Tensor, timesteps: Tensor, given: Given) -> Tensor:
        return model(
            hidden_states=noised,
            timestep=timesteps,
            encoder_hidden_states=given["text"],
            pooled_projections=given["pooled"],
        ).sample

    def asked(self, given: Given, absent: Given) -> dict[str, Any]:
        return {
            "prompt_embeds": given["text"],
            "pooled_prompt_embeds": given["pooled"],
            "negative_prompt_embeds": absent["text"],
            "negative_pooled_prompt_embeds": absent["pooled"],
        }


class Flux(Kind):
    """A transformer over latents packed in squares of four; its guidance is distilled into it."""

    pipelines = ("FluxPipeline",)
    part = "transformer"
    limited = True
    text = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")

    @property
    def patch(self) -> int:
        return 2

    def encode(self, captions: list[str], device: torch.device) -> Given:
        text, pooled, _ = self.pipeline.encode_prompt(captions, captions, device=device, **self.longest)
        return {"text": text, "pooled": pooled}

    def predict(self, model: Any, noised: Tensor, timesteps: Tensor, given: Given) -> Tensor:
        count, channels, height, width = noised.shape
        pipeline, like = self.pipeline, {"device": noised.device, "dtype": noised.dtype}
        guided = self.denoiser.config.guidance_embeds
        found = model(
            hidden_states=pipeline._pack_latents(noised, count, channels, height, width),
            timestep=timesteps / 1000,
            guidance=torch.full((count,), FLUX_GUIDANCE, **like) if guided else None,
            pooled_projections=given["pooled"],
            encoder_hidden_states=given["text"],
            txt_ids=torch.zeros(given["text"].shape[1], 3, **like),
            img_ids=pipeline._prepare_latent_image_ids(count, height // 2, width // 2, **like),
        ).sample
        scale = pipeline.vae_scale_factor
        return pipeline._unpack_latents(found, height * scale, width * scale, scale)

    def asked(self, given: Given, absent: Given) -> dict[str, Any]:
        return {"prompt_embeds": given["text"], "pooled_prompt_embeds": given["pooled"]}
