"""Pipelines by name: embedded, a folder, or on the Hugging Face hub; always the real loading code of diffusers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download
from torch import nn

from diffusion_peft.embedded import NAMES, pretrained
from peft_kernels.data_errors import DataError, unknown

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INDEX = "model_index.json"
PARTS = ("unet", "transformer")


def place_of(name: str) -> str:
    """What diffusers loads for a pipeline's name: a folder, or the name itself where it is one of the hub's.

    Raises:
        UnknownNameError: it is neither embedded, nor a folder, nor formed as `owner/name`; the nearest is told.
        DataError: the folder holds no pipeline.
    """
    if name in NAMES:
        return str(pretrained(name))
    folder = Path(name).expanduser()
    if folder.name in PARTS and (folder.parent / INDEX).is_file():
        folder = folder.parent  # what diffusers calls the base of an adapter is the denoiser's own folder
    if folder.is_dir():
        if not (folder / INDEX).is_file():
            raise DataError(f"{folder} holds no pipeline in diffusers' format: {INDEX} is missing")
        return str(folder)
    if name.count("/") != 1 or name.startswith(("/", ".", "~")):
        if "/" in name:
            raise DataError(f"there is no pipeline at {folder}")
        raise unknown("pipeline", name, NAMES)
    return name


def open_pipeline(name: str, dtype: str = "float32") -> Any:
    """The pipeline with its weights (safetensors only), in evaluation mode and without progress bars of its own.

    Raises:
        DataError: it cannot be had, or it has no UNet or transformer that could be adapted.
    """
    place = place_of(name)
    part_of(name)
    try:
        with without_noise():
            pipeline: Any = DiffusionPipeline.from_pretrained(place, dtype=DTYPES[dtype], use_safetensors=True)
    except (OSError, ValueError, RuntimeError, AttributeError) as error:
        raise DataError(f"the pipeline {name} cannot be loaded: {' '.join(str(error).split())}") from None
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    denoiser = getattr(pipeline, part_of(name))
    denoiser.name_or_path = name  # what PEFT writes into an adapter's configuration as its base
    return pipeline


@contextmanager
def without_noise() -> Iterator[None]:
    """Within the block diffusers and transformers show neither bars nor remarks about what they load."""
    libraries: tuple[Any, ...] = (diffusers.utils.logging, transformers.logging)
    before = [(library.is_progress_bar_enabled(), library.get_verbosity()) for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, (bars, verbosity) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


def part_of(name: str) -> str:
    """Which part of a pipeline removes the noise, `unet` or `transformer`.

    Raises:
        DataError: it has neither, or cannot be had.
    """
    index = read_index(name)
    for part in PARTS:
        if isinstance(index.get(part), list) and index[part][0] is not None:
            return part
    raise DataError(f"{name} is a {index.get('_class_name')} without a UNet or transformer: it cannot be adapted")


def read_index(name: str) -> dict[str, Any]:
    """What a pipeline consists of, as `model_index.json` says."""
    return read_json(name, INDEX)


def read_json(name: str, file: str) -> dict[str, Any]:
    """A JSON file of a pipeline.

    Raises:
        DataError: it cannot be had or is damaged.
    """
    place = place_of(name)
    try:
        path = Path(place, file) if Path(place).is_dir() else Path(hf_hub_download(place, file))
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} of the pipeline {name} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise DataError(f"{file} of the pipeline {name} is no JSON object")
    return found


def bare_denoiser(name: str) -> nn.Module:
    """The UNet or transformer of a pipeline without memory (meta device), from its configuration alone.

    Raises:
        DataError: the pipeline cannot be had, or diffusers does not know the class.
    """
    part = part_of(name)
    kind = read_index(name)[part][1]
    cls = getattr(diffusers, kind, None)
    if cls is None:
        raise DataError(f"diffusers has no {kind}, which the pipeline {name} has as its {part}")
    with torch.device("meta"):
        model = cls.from_config(read_json(name, f"{part}/config.json"))
    model.name_or_path = name
    return model


def picture_size(pipeline: Any) -> int:
    """Pixels along a side of what a pipeline makes by itself."""
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    side = denoiser.config.get("sample_size") or getattr(pipeline, "default_sample_size", 64)
    return int(side) * 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
