"""Measure a pipeline and write its card: `python -m peft_runs.pipeline_card FOLDER --root DATA --trained WORDS`.

Into FOLDER, which `peft_runs.embed_pipeline` made, go `measured.json`, `samples.png` and `README.md`.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from diffusion_peft.data.drawn import to_tensor
from diffusion_peft.data.groups import GROUPS, group_of
from diffusion_peft.tasks.drawing import DataSpec, open_pictures
from peft_runs.durable import write_json, write_text
from peft_runs.pipeline_measures import (
    batches,
    emoji_of,
    errors,
    frechet,
    random_words,
    reconstructed,
    spelling,
)
from peft_runs.pipeline_words import card
from peft_runs.progress import RunProgress

STEPS = 25
GUIDANCE = 4.0
SAMPLES = 512
PROMPTS = (
    "grinning face on white",
    "frog face on white",
    "red apple on white",
    "sun on blue",
    "airplane on blue",
    "heart on yellow",
    "woman, medium skin on white",
    "cat face on purple",
    'the word "A" in black on white',
    'the word "GO" in red on white',
    'the word "CAT" in white on blue',
    'the word "DOG" in yellow on green',
    'the word "TREE" in black on yellow',
    'the word "LOVE" in white on red',
    'the word "QUIZ" in purple on pink',
    'the word "ZEBU" in blue on white',
)


def measure(pipeline: Any, root: str, samples: int, steps: int, told: Any) -> dict[str, Any]:
    """Everything that the card states of the pipeline's pictures."""
    spec = DataSpec(root=root, size=picture_size(pipeline))
    training = open_pictures(spec, "train", 0, told)
    real, drawn = emoji_of(training, 0, samples)
    again, _ = emoji_of(training, 1, samples)
    held_out, _ = emoji_of(open_pictures(spec, "test", 0, told), 0, samples)
    words = random_words(samples // 2, 0)
    drawings = torch.stack([to_tensor(word.picture(spec.size)) for word in words])
    spelled = reconstructed(pipeline.vae, drawings, told)
    worded = isinstance(pipeline, StableDiffusionPipeline)
    asked = [one.caption if worded else group_of(one.codepoints) for one in drawn]
    found = sampled(pipeline, asked, steps, told)
    measured: dict[str, Any] = {
        "emoji": len(real),
        "sampling_steps": steps,
        "guidance_scale": GUIDANCE,
        "reconstruction": {
            "held_out_emoji": errors(reconstructed(pipeline.vae, held_out, told), held_out),
            "words": errors(spelled, drawings),
        },
        "frechet_distance": {
            "samples": frechet(unit(real), found, told),
            "reconstructions": frechet(unit(real), unit(reconstructed(pipeline.vae, real, told)), told),
            "same_emoji_on_other_grounds": frechet(unit(real), unit(again), told),
        },
    }
    if worded:
        measured["spelling"] = {
            "samples": spelling(sampled(pipeline, [word.caption for word in words], steps, told), words),
            "reconstructions": spelling(unit(spelled), words),
            "drawings": spelling(unit(drawings), words),
        }
    return measured


def picture_size(pipeline: Any) -> int:
    """Pixels along a side of what a pipeline makes."""
    denoiser = pipeline.unet if isinstance(pipeline, StableDiffusionPipeline) else pipeline.transformer
    return denoiser.config.sample_size * 2 ** (len(pipeline.vae.config.block_out_channels) - 1)


def sampled(pipeline: Any, asked: list[Any], steps: int, told: Any) -> Tensor:
    """Pictures `[N, 3, S, S]` in [0, 1] for prompts, or for numbers of classes."""
    settings = {"num_inference_steps": steps, "guidance_scale": GUIDANCE, "output_type": "np"}
    parts = []
    for number, batch in enumerate(batches(asked, "sample", told)):
        images = pipeline(batch, generator=torch.Generator().manual_seed(number), **settings).images
        parts.append(torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2))
    return torch.cat(parts)


def unit(images: Tensor) -> Tensor:
    """From [-1, 1] to [0, 1]."""
    return images / 2 + 0.5


def grid(images: Tensor, columns: int = 8) -> Image.Image:
    """Pictures `[N, 3, S, S]` in [0, 1] in rows."""
    size = images.shape[-1]
    sheet = Image.new("RGB", (columns * size, -(-len(images) // columns) * size), "white")
    for number, image in enumerate(images):
        pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        sheet.paste(Image.fromarray(pixels), (number % columns * size, number // columns * size))
    return sheet


def facts(folder: Path, pipeline: Any) -> dict[str, Any]:
    """Sizes of the folder and of its parts."""
    models = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {
        "parameters": {name: sum(tensor.numel() for tensor in part.parameters()) for name, part in models.items()},
        "bytes": sum(path.stat().st_size for path in folder.rglob("*.safetensors")),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def write_card(folder: Path, root: str, trained: str, samples: int = SAMPLES, steps: int = STEPS) -> dict[str, Any]:
    """Measure the pipeline in `folder` and leave `measured.json`, `samples.png` and `README.md` there."""
    pipeline: Any = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    with RunProgress() as progress:
        worded = isinstance(pipeline, StableDiffusionPipeline)
        shown: list[Any] = list(PROMPTS) if worded else list(range(len(GROUPS)))
        measured = {**facts(folder, pipeline), **measure(pipeline, root, samples, steps, progress.show)}
        grid(sampled(pipeline, shown, steps, progress.show)).save(folder / "samples.png", optimize=True)
    write_json(folder / "measured.json", measured)
    write_text(folder / "README.md", card(folder.name, measured, trained, worded))
    return measured


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m peft_runs.pipeline_card", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--root", required=True, help="the captioned emoji that it was trained on")
    parser.add_argument("--trained", required=True, help="how it was trained, in words: epochs, steps, time, device")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="pictures that the distances stand on")
    options = parser.parse_args()
    print(json.dumps(write_card(options.folder, options.root, options.trained, options.samples), indent=2))
