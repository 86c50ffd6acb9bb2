"""Trained models as folders that diffusers loads: weights in float16, everything else as JSON."""

import json
from collections.abc import Iterable
from pathlib import Path

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from diffusion_peft.data.groups import GROUPS


def write_vae(vae: AutoencoderKL, latents: Iterable[Tensor], folder: Path) -> None:
    """The autoencoder as `folder/vae`; its scaling factor makes `latents`, batches `[N, C, h, w]`, of variance 1."""
    count, total, squares = 0, 0.0, 0.0
    for batch in latents:
        count += batch.numel()
        total += batch.double().sum().item()
        squares += batch.double().square().sum().item()
    deviation = (squares / count - (total / count) ** 2) ** 0.5
    vae.register_to_config(scaling_factor=round(1 / deviation, 4))
    vae.half().save_pretrained(folder / "vae")


def write_text_pipeline(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    scheduler: DDIMScheduler,
    folder: Path,
) -> None:
    """A `StableDiffusionPipeline` in `folder`."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,  # type: ignore[arg-type]
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    write(pipeline, folder)
    # Loaded without a dtype, diffusers' models come in float32, and transformers' in what their configuration says.
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float32"}, indent=2) + "\n")


def write_class_pipeline(
    transformer: DiTTransformer2DModel, vae: AutoencoderKL, scheduler: DDIMScheduler, folder: Path
) -> None:
    """A `DiTPipeline` in `folder`; its `labels` name the groups."""
    names = dict(enumerate(GROUPS))
    pipeline = DiTPipeline(transformer, vae, scheduler, id2label=names)  # type: ignore[arg-type]
    pipeline.register_to_config(id2label=names)  # which the pipeline reads, but does not write by itself
    write(pipeline, folder)


def write(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Save with weights in float16."""
    for part in pipeline.components.values():
        if hasattr(part, "half"):
            part.half()
    pipeline.save_pretrained(folder)
    forget_places(folder)


def forget_places(folder: Path) -> None:
    """Take out where on this machine the parts lay, which diffusers writes down."""
    for path in folder.rglob("*.json"):
        known = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(known, dict) and known.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
