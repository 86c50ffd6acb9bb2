"""What differs between pipelines: how each encodes captions, calls its denoiser, and samples from what is encoded.

A caption's encoding is a mapping of named rows, `{"text": [N, L, D], ...}`: one row a caption, so that encodings can be
kept in a table and taken out again by number.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from peft_kernels.data_errors import DataError, unknown

Given = dict[str, Tensor]
FLUX_GUIDANCE = 3.5  # what a guidance-distilled Flux is told while it is trained, as diffusers' own script does


class Kind:
    """One kind of pipeline; `text` names the parts that are of no use once all captions are encoded."""

    pipelines: ClassVar[tuple[str, ...]]
    part: ClassVar[str] = "unet"
    text: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    limited: ClassVar[bool] = False  # whether the number of tokens can be chosen

    def __init__(self, pipeline: Any, max_tokens: int | None = None):
        if max_tokens is not None and not self.limited:
            raise DataError(f"a {type(pipeline).__name__} has no choice of tokens: leave model.max_tokens null")
        self.pipeline = pipeline
        self.max_tokens = max_tokens
        self.dtype: torch.dtype = self.denoiser.dtype  # of the frozen weights: an adapter's may be of another

    @property
    def denoiser(self) -> Any:
        return getattr(self.pipeline, self.part)

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    @property
    def longest(self) -> dict[str, int]:
        """The limit of tokens, for those whose `encode_prompt` has one."""
        return {} if self.max_tokens is None else {"max_sequence_length": self.max_tokens}

    def encode(self, captions: list[str], device: torch.device) -> Given:
        """The captions' rows, on `device`, where the text encoders are."""
        raise NotImplementedError

    def predict(self, model: Any, noised: Tensor, timesteps: Tensor, given: Given) -> Tensor:
        """The denoiser's output for noised latents `[N, C, h, w]` at `timesteps` `[N]`; `framing` `[N, 6]` is among
        `given`: height and width of the picture as it came, top and left of the crop, height and width of the crop."""
        raise NotImplementedError

    def asked(self, given: Given, absent: Given) -> dict[str, Any]:
        """How the pipeline is called for these rows; `absent` are those of the negative captions."""
        raise NotImplementedError

    def sized(self, size: int) -> dict[str, Any]:
        """How the pipeline is told the pictures' size."""
        return {"height": size, "width": size}

    def check_size(self, size: int) -> None:
        """Raise where the denoiser takes no pictures of this size.

        Raises:
            DataError: it does not; what it takes is told.
        """
        self.sized(size)
        step = 2 ** (len(self.pipeline.vae.config.block_out_channels) - 1) * self.patch
        if size % step:
            raise DataError(
                f"pictures of a {type(self.pipeline).__name__} have a multiple of {step} pixels, not {size}"
            )

    @property
    def patch(self) -> int:
        """Latents along a side of what the denoiser takes as one."""
        return int(self.denoiser.config.get("patch_size") or 1)

    def release_text(self) -> None:
        """Give the memory of what encodes captions back."""
        self.pipeline.register_modules(**{name: None for name in self.text if hasattr(self.pipeline, name)})


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
    patch = 2
    text = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")

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


KINDS: tuple[type[Kind], ...] = (
    StableDiffusion,
    StableDiffusionXL,
    ClassConditional,
    PixArt,
    StableDiffusion3,
    Flux,
)


def kind_of(pipeline: Any, max_tokens: int | None = None) -> Kind:
    """The pipeline's kind.

    Raises:
        DataError: none that is known; those that are, are told.
    """
    name = type(pipeline).__name__
    for kind in KINDS:
        if name in kind.pipelines:
            return kind(pipeline, max_tokens)
    known = ", ".join(name for kind in KINDS for name in kind.pipelines)
    raise DataError(f"a {name} cannot be tuned or sampled here: known are {known}")
