"""Untrained pipelines of every kind with a few channels, saved as the folders that diffusers loads.

Pictures have 16 pixels and latents 8 × 8; each folder takes well under a second to make and to load.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from diffusion_peft.data.tokenizer import train_tokenizer

WIDTH = 16
LATENTS = 4
SIZE = 16  # pixels
LABELS = ("circle", "square", "star")
BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def autoencoder(**more: Any) -> AutoencoderKL:
    """Pictures of 16 pixels to 8 × 8 latents."""
    levels: dict[str, Any] = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    return AutoencoderKL(
        **levels,
        latent_channels=LATENTS,
        norm_num_groups=4,
        sample_size=SIZE,
        **more,
    )


@cache
def clip_tokenizer() -> CLIPTokenizer:
    return train_tokenizer(["a circle", "a square in red", "a star"], vocabulary=200, positions=12)


def t5_tokenizer() -> T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
    letters = [(letter, -2.0) for letter in ascii_lowercase]
    return T5Tokenizer(vocab=[*pieces, *letters], extra_ids=0, model_max_length=16)


def clip(kind: type[CLIPTextModel] | type[CLIPTextModelWithProjection], **more: Any) -> Any:
    tokenizer: Any = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )
    return kind(config)


def t5(width: int = WIDTH) -> T5EncoderModel:
    size = len(t5_tokenizer())
    return T5EncoderModel(T5Config(vocab_size=size, d_model=width, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=2))


def unet(**more: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": LATENTS,
        "out_channels": LATENTS,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**settings | more)


def stable_diffusion(scheduler: Any = None, **more: Any) -> DiffusionPipeline:
    return StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=clip(CLIPTextModel),
        tokenizer=clip_tokenizer(),
        unet=unet(**more),
        scheduler=scheduler or PNDMScheduler(skip_prk_steps=True, steps_offset=1, **BETAS),  # type: ignore[arg-type]
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )


def stable_diffusion_2() -> DiffusionPipeline:
    """Predicts the velocity."""
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=False, steps_offset=1, **BETAS)
    return stable_diffusion(scheduler, use_linear_projection=True)


def stable_diffusion_xl() -> DiffusionPipeline:
    return StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=clip(CLIPTextModel),
        text_encoder_2=clip(CLIPTextModelWithProjection),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet(
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        ),
        scheduler=EulerDiscreteScheduler(**BETAS),  # type: ignore[arg-type]
        add_watermarker=False,
    )


def dit() -> DiffusionPipeline:
    """Predicts the variance beside the noise."""
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=LATENTS,
        out_channels=2 * LATENTS,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    names = dict(enumerate(LABELS))
    pipeline = DiTPipeline(transformer, autoencoder(), DDIMScheduler(clip_sample=False), id2label=names)  # type: ignore[arg-type]
    pipeline.register_to_config(id2label=names)
    return pipeline


def pixart() -> DiffusionPipeline:
    """Predicts the variance beside the noise."""
    return PixArtAlphaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=autoencoder(),
        transformer=PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=LATENTS,
            out_channels=2 * LATENTS,
            num_layers=2,
            sample_size=8,
            patch_size=2,
            cross_attention_dim=WIDTH,
            caption_channels=WIDTH,
            use_additional_conditions=False,
        ),
        scheduler=DPMSolverMultistepScheduler(**{**BETAS, "beta_schedule": "linear"}),
    )


def stable_diffusion_3() -> DiffusionPipeline:
    """Matches flows."""
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=LATENTS,
            out_channels=LATENTS,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=2 * 8,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=8,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clip(CLIPTextModelWithProjection),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(CLIPTextModelWithProjection),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(2 * WIDTH),
        tokenizer_3=t5_tokenizer(),  # type: ignore[arg-type]
    )


def flux(guidance: bool = False) -> DiffusionPipeline:
    """Matches flows on latents packed in squares of four."""
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=autoencoder(shift_factor=0.1, scaling_factor=0.4),
        text_encoder=clip(CLIPTextModel),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),  # type: ignore[arg-type]
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=4 * LATENTS,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=guidance,
            axes_dims_rope=(2, 2, 4),
        ),
    )


KINDS: dict[str, Callable[[], DiffusionPipeline]] = {
    "sd1": stable_diffusion,
    "sd2": stable_diffusion_2,
    "sdxl": stable_diffusion_xl,
    "dit": dit,
    "pixart": pixart,
    "sd3": stable_diffusion_3,
    "flux": flux,
}


def save(kind: str, folder: Path) -> Path:
    """A pipeline of a kind in `folder`; the same bits at each call."""
    torch.manual_seed(0)
    KINDS[kind]().save_pretrained(folder)
    return folder


def save_without_latents(folder: Path) -> Path:
    """A pipeline that makes pixels without text or latents."""
    model = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    DDPMPipeline(model, DDPMScheduler()).save_pretrained(folder)
    return folder
