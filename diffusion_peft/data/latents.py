"""Pictures as latents, encoded once: a diffusion model trains on the same frozen autoencoder's output all the time."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from diffusion_peft.data.drawn import Key
from peft_kernels.data_errors import DataError

BATCH = 64


class LatentPictures(Dataset):
    """The samples of `pictures` with `latents` instead of `image`.

    The variations of the first `pool` epochs are encoded and kept, as float16; epoch e sees those of `e mod pool`.

    Args:
        pictures: what is encoded.
        encode: pictures `[N, 3, H, W]` to latents.
        pool: number of epochs whose pictures differ.
        about: what the latents depend on beside the pictures; a cache of something else is refused.
        cache: a file that keeps them from one start of the run to the next.
        told: hears of the progress.
        words: what samples refer to by number; grows while pictures are read, and is kept in the cache.
        batch: pictures that are encoded at once.
    """

    def __init__(
        self,
        pictures: Dataset,
        encode: Callable[[Tensor], Tensor],
        pool: int,
        about: dict,
        cache: Path | None = None,
        told: Callable[[str, int, int], None] | None = None,
        words: list[str] | None = None,
        batch: int = BATCH,
    ):
        self.samples = len(pictures)  # type: ignore[arg-type]
        self.pool = pool
        mark = mark_of(about)
        if cache is not None and cache.exists():
            self.tensors, kept = read_cache(cache, mark, "latents of other pictures or another autoencoder")
            if words is not None:
                words[:] = kept
            return
        self.tensors = encode_all(pictures, encode, pool, told, batch)
        if cache is not None:
            write_cache(cache, mark, self.tensors, words or [])

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        epoch, index = key
        row = epoch % self.pool * self.samples + index
        return {
            name: tensor[row].float() if name == "latents" else tensor[row] for name, tensor in self.tensors.items()
        }


def mark_of(about: Mapping[str, Any]) -> str:
    """Tells caches of different things apart."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def write_cache(path: Path, mark: str, tensors: dict[str, Tensor], words: list[str]) -> None:
    """Keep tensors and the words that they refer to, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".writing-{path.name}")
    save_file(tensors, aside, {"about": mark, "words": json.dumps(words)})
    aside.replace(path)


def read_cache(path: Path, mark: str, others: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a cache, and the words that they refer to.

    Raises:
        DataError: it is damaged, or has another mark; `others` says what it holds then.
    """
    try:
        with safe_open(path, "pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("about") != mark:
                raise DataError(f"{path} holds {others}: delete it to go on")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
            return tensors, json.loads(metadata.get("words", "[]"))
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} is not a whole safetensors file: {error}") from None


def encode_all(
    pictures: Dataset,
    encode: Callable[[Tensor], Tensor],
    pool: int,
    told: Callable[[str, int, int], None] | None,
    size: int,
) -> dict[str, Tensor]:
    """Every sample of `pool` epochs, epoch by epoch, as one tensor for each of its parts."""
    keys = [(epoch, index) for epoch in range(pool) for index in range(len(pictures))]  # type: ignore[arg-type]
    batches = [keys[begin : begin + size] for begin in range(0, len(keys), size)]
    parts: list[dict[str, Tensor]] = []
    for done, batch in enumerate(batches):
        samples = default_collate([pictures[key] for key in batch])
        with torch.no_grad():
            latents = encode(samples.pop("image"))
        parts.append({"latents": latents.half().cpu(), **samples})
        if told is not None:
            told("encode the pictures", done + 1, len(batches))
    return {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
