"""Which program reads what `diffusion-peft export` writes, found by letting it, and comparing outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

import diffusion_peft as dp
from diffusion_peft.pipelines.opening import open_pipeline, without_noise
from tests.runs.saved_denoisers import BASE, outputs

# float32, on outputs of size 1.
CLOSE = 1e-5


def with_diffusion_peft(pipeline: Any, path: Path) -> None:
    dp.load_adapter(pipeline, path)


def with_peft(pipeline: Any, path: Path) -> None:
    if path.is_file():
        raise ValueError("PEFT reads folders with a configuration")
    pipeline.unet = PeftModel.from_pretrained(pipeline.unet, str(path)).eval().base_model.model


def with_diffusers(pipeline: Any, path: Path) -> None:
    if path.is_dir():
        raise ValueError("diffusers reads files of its own and kohya's naming")
    try:
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    except ValueError:
        pipeline.unet.load_lora_adapter(str(path.parent), weight_name=path.name, prefix="unet", use_safetensors=True)


READERS: dict[str, Callable[[Any, Path], None]] = {
    "`diffusion_peft`": with_diffusion_peft,
    "PEFT": with_peft,
    "diffusers": with_diffusers,
}


def wanted(root: Path, name: str) -> Tensor:
    """The outputs with the adapter as it was saved."""
    pipeline = open_pipeline(str(root / BASE))
    dp.load_adapter(pipeline, root / name)
    return outputs(pipeline)


def answer(root: Path, path: Path, reader: str, expected: Tensor) -> str:
    """``yes`` where the program reads the file with the same outputs, or why not."""
    pipeline = open_pipeline(str(root / BASE))
    plain = outputs(pipeline)
    try:
        with without_noise():
            READERS[reader](pipeline, path)
    except (ValueError, KeyError) as error:
        return " ".join(str(error).split())
    found = outputs(pipeline)
    if torch.equal(found, plain):
        return "nothing of it takes effect"
    return "yes" if (found - expected).abs().max().item() < CLOSE else "the outputs are others"
