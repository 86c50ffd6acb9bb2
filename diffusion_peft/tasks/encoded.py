"""What frozen parts of a pipeline make of pictures and captions, once, before training."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn

from diffusion_peft.data.latents import mark_of, read_cache, write_cache
from diffusion_peft.pipelines.kinds import Given, Kind
from peft_kernels.data_errors import DataError


class Captions:
    """The encodings of captions, each made once and kept on the CPU.

    Args:
        kind: encodes them.
        batch: captions at once.
        told: hears of the progress.
        cache: a file that keeps them from one start of the run to the next.

    Raises:
        DataError: the file is damaged, or another text encoder's.
    """

    def __init__(
        self, kind: Kind, batch: int, told: Callable[[str, int, int], None] | None = None, cache: Path | None = None
    ):
        self.kind, self.batch, self.told, self.cache = kind, batch, told, cache
        self.known: dict[str, Given] = {}
        if cache is None:
            return
        encoders = [fingerprint(part) for part in self.encoders()]
        self.mark = mark_of({"encoders": encoders, "dtype": str(kind.dtype), "max_tokens": kind.max_tokens})
        if cache.exists():
            tensors, captions = read_cache(cache, self.mark, "captions as another text encoder has them")
            for number, caption in enumerate(captions):
                self.known[caption] = {name: rows[number : number + 1] for name, rows in tensors.items()}

    def rows(self, captions: Sequence[str]) -> Given:
        """One row a caption, in their order."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self.known]
        if new:
            self.learn(new)
            if self.cache is not None:
                write_cache(self.cache, self.mark, self.stacked(list(self.known)), list(self.known))
        return self.stacked(captions)

    def stacked(self, captions: Sequence[str]) -> Given:
        """The rows of captions that are known."""
        found = [self.known[caption] for caption in captions]
        return {name: torch.cat([rows[name] for rows in found]) for name in found[0]} if found else {}

    def encoders(self) -> list[nn.Module]:
        """The text encoders of the pipeline."""
        parts = (getattr(self.kind.pipeline, name, None) for name in self.kind.text)
        return [part for part in parts if isinstance(part, nn.Module)]

    def learn(self, captions: list[str]) -> None:
        """Encode captions that are not known yet."""
        with torch.no_grad(), on_device(*self.encoders()) as device:
            for begin in range(0, len(captions), self.batch):
                some = captions[begin : begin + self.batch]
                found = self.kind.encode(some, device)
                for number, caption in enumerate(some):
                    self.known[caption] = {name: rows[number : number + 1].cpu() for name, rows in found.items()}
                if self.told is not None:
                    self.told("encode the captions", begin + len(some), len(captions))


def latent_moments(vae: Any, images: Tensor) -> Tensor:
    """Mean and deviation of the latents of pictures `[N, 3, H, W]`, scaled as a denoiser takes them, `[N, 2C, h, w]`.

    Both are kept, so that every epoch draws its own sample.

    Raises:
        DataError: they hold NaN or infinity.
    """
    found = vae.encode(images.to(vae.device, vae.dtype)).latent_dist
    factor, shift = vae.config.scaling_factor, vae.config.get("shift_factor") or 0.0
    moments = torch.cat([(found.mean - shift) * factor, found.std * factor], 1).float()
    if not torch.isfinite(moments).all():
        raise DataError(f"the autoencoder makes NaN or infinity of pictures in {vae.dtype}: choose another model.dtype")
    return moments


def fingerprint(model: nn.Module) -> str:
    """Tells weights apart: latents that another autoencoder made are of no use."""
    found = sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode() + tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def modules_of(pipeline: Any) -> list[nn.Module]:
    """The parts of a pipeline that have weights."""
    return [part for part in pipeline.components.values() if isinstance(part, nn.Module)]


@contextmanager
def upcast(vae: Any) -> Iterator[None]:
    """Within the block an autoencoder that overflows in float16, as its configuration says of itself, is in float32."""
    overflows = vae.dtype == torch.float16 and vae.config.get("force_upcast")
    if overflows:
        vae.float()
    try:
        yield
    finally:
        if overflows:
            vae.half()


@contextmanager
def on_device(*modules: nn.Module) -> Iterator[torch.device]:
    """Within the block modules are on the device that the process computes on; afterwards where they were."""
    device: Any = PartialState().device
    places = [(module, next(module.parameters()).device) for module in modules]
    try:
        for module, _ in places:
            module.to(device)
        yield device
    finally:
        for module, place in places:
            module.to(place)
