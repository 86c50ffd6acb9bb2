"""Stable Diffusion steered by pictures through SCEdit's adapters, called as diffusers' ControlNet pipelines are.

    pipeline = StableDiffusionSCEditPipeline.from_pipe(DiffusionPipeline.from_pretrained(...))
    dp.load_adapter(pipeline, "out/edges", "edges")
    pipeline("a cat", image=edges, conditioning_scale=0.8)

All else is the stock pipeline's; without a controllable adapter they do what it does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from diffusion_peft.adapters import load_adapter, save_adapter, set_adapters
from diffusion_peft.methods.scedit import condition_on, condition_sizes
from peft_kernels.composing import without_layers
from peft_kernels.config import nearest
from peft_kernels.layer import AdapterLayer

ADAPTERS, ACTIVE = "adapters", "active.json"
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class _Steered:
    """What both pipelines add to the stock ones."""

    unet: Any

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        conditioning_scale: float | Sequence[float] | Mapping[str, float] = 1.0,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int | None = 1,
        **settings: Any,
    ) -> Any:
        """Pictures for the prompts, steered by the condition images.

        Args:
            prompt: one or several.
            image: the condition image, for all prompts, or a list of one each: PIL images, or a tensor in 0 to 1. With
                several active controllable adapters a list with one such entry for each, in the order in which they
                were activated, or a mapping by name.
            conditioning_scale: strength of all conditions, a list of one each, or a mapping by name.
            height: of the pictures; that of the condition image when not given.
            width: likewise.
            num_images_per_prompt: pictures a prompt.
            settings: everything else that the stock pipeline takes.

        Raises:
            ValueError: a condition image is missing, of another size or mode, or there are not as many as prompts.
        """
        stock: Any = super()
        sizes = condition_sizes(self.unet)
        count = num_images_per_prompt or 1
        settings |= {"height": height, "width": width, "num_images_per_prompt": count}
        if image is None and not sizes:
            return stock.__call__(prompt, **settings)
        named = _by_name("image", image, sizes)
        scales = conditioning_scale
        if not isinstance(scales, (int, float)):
            scales = _by_name("conditioning_scale", scales, sizes, several=True)
        tensors = {name: _tensor(name, given, sizes[name]) for name, given in named.items()}
        for name, tensor in tensors.items():
            height, width = height or tensor.shape[-2], width or tensor.shape[-1]
            if tuple(tensor.shape[-2:]) != (height, width):
                raise ValueError(
                    f"the condition image of {name!r} is {tensor.shape[-2]} × {tensor.shape[-1]} (height × width), the "
                    f"picture is to be {height} × {width}: resize one of them"
                )
            tensors[name] = _for_each(name, tensor, _prompts(prompt, settings), count)
        with condition_on(self.unet, tensors, scales, guided=True):
            return stock.__call__(prompt, **settings | {"height": height, "width": width})

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save the stock parts as they were before any adapter, and every adapter in a folder ``adapters/<name>``."""
        stock: Any = super()
        folder = Path(save_directory, ADAPTERS)
        with without_layers(self.unet):
            stock.save_pretrained(save_directory, *args, **kwargs)
        for name in getattr(self.unet, "peft_config", {}):
            save_adapter(self.unet, folder / name, name)
        if folder.is_dir():
            (folder / ACTIVE).write_text(json.dumps(_active(self.unet), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """The pipeline that a folder or repository holds, with the adapters that `save_pretrained` left in a folder."""
        stock: Any = super()
        pipeline = stock.from_pretrained(pretrained_model_name_or_path, **kwargs)
        folder = Path(pretrained_model_name_or_path, ADAPTERS)
        if folder.is_dir():
            for adapter in sorted(path for path in folder.iterdir() if path.is_dir()):
                load_adapter(pipeline, adapter, adapter.name)
            active = json.loads((folder / ACTIVE).read_text(encoding="utf-8"))
            set_adapters(pipeline, list(active), list(active.values()))
        return pipeline


class StableDiffusionSCEditPipeline(_Steered, StableDiffusionPipeline):  # type: ignore[misc]
    """Stable Diffusion 1 or 2, steered by pictures."""


class StableDiffusionXLSCEditPipeline(_Steered, StableDiffusionXLPipeline):  # type: ignore[misc]
    """Stable Diffusion XL, steered by pictures."""


# By the class of the stock pipeline.
STEERED: dict[str, type[_Steered]] = {
    "StableDiffusionPipeline": StableDiffusionSCEditPipeline,
    "StableDiffusionXLPipeline": StableDiffusionXLSCEditPipeline,
}


def _by_name(argument: str, given: Any, sizes: Mapping[str, int], several: bool = False) -> dict[str, Any]:
    """What is given for each active condition, by its name."""
    if not sizes:
        raise ValueError(
            f"`{argument}` is given, and no controllable adapter is active: load one with `dp.load_adapter`"
        )
    if isinstance(given, Mapping):
        for name in given:
            if name not in sizes:
                raise ValueError(
                    f"`{argument}` names {name!r}{nearest(name, sizes)}; active conditions are {', '.join(sizes)}"
                )
        named = dict(given)
    elif len(sizes) == 1 and not several:
        named = dict.fromkeys(sizes, given)
    elif isinstance(given, (list, tuple)) and len(given) == len(sizes):
        named = dict(zip(sizes, given, strict=True))
    else:
        found = f"{len(given)}" if isinstance(given, (list, tuple)) else f"a {type(given).__name__}"
        named = {} if given is None else None
        if named is None:
            raise ValueError(
                f"`{argument}` must have an entry for each of the {len(sizes)} active conditions "
                f"({', '.join(sizes)}), or be a mapping by name; found {found}"
            )
    missing = [name for name in sizes if named.get(name) is None]
    if missing and argument == "image":
        raise ValueError(
            f"the condition image of {missing[0]!r} is missing: give it as `image`, or set the adapter's weight to 0"
        )
    return named


def _tensor(name: str, given: Any, channels: int) -> Tensor:
    """Condition images as ``[B, c, H, W]`` in 0 to 1."""
    if isinstance(given, Tensor):
        return given if given.ndim == 4 else given[None]
    pictures = list(given) if isinstance(given, (list, tuple)) else [given]
    if pictures and all(isinstance(picture, Tensor) for picture in pictures):
        return torch.cat([picture if picture.ndim == 4 else picture[None] for picture in pictures])
    for picture in pictures:
        if not isinstance(picture, Image.Image):
            raise ValueError(
                f"the condition image of {name!r} must be a PIL image, a tensor, or a list of them; "
                f"found {type(picture).__name__}"
            )
        mode = MODES.get(channels)
        if picture.mode != mode:
            raise ValueError(
                f"the condition image of {name!r} has mode {picture.mode}, expected {mode} ({channels} channels): "
                f"convert it with image.convert({mode!r})"
            )
        if picture.size != pictures[0].size:
            raise ValueError(f"the condition images of {name!r} differ in size: {picture.size}, {pictures[0].size}")
    return VaeImageProcessor(do_resize=False, do_normalize=False).preprocess(pictures)  # type: ignore[arg-type]


def _prompts(prompt: Any, settings: Mapping[str, Any]) -> int:
    if prompt is None:
        return len(settings["prompt_embeds"]) if settings.get("prompt_embeds") is not None else 1
    return 1 if isinstance(prompt, str) else len(prompt)


def _for_each(name: str, images: Tensor, prompts: int, count: int) -> Tensor:
    """A condition image for each picture, in the pipeline's order: all of the first prompt, then of the next."""
    if len(images) == 1:
        return images
    if len(images) != prompts:
        raise ValueError(
            f"there are {len(images)} condition images of {name!r} for {prompts} prompts: give one for all, or one each"
        )
    return images.repeat_interleave(count, 0)


def _active(unet: Any) -> dict[str, float]:
    """The active adapters and their weights."""
    found: dict[str, float] = {}
    for layer in unet.modules():
        if isinstance(layer, AdapterLayer):
            found |= {name: layer.scaling[name] for name in layer.active_adapters if name in layer.scaling}
    return found
