"""What is measured on pipelines: reconstruction, distance to real pictures, spelling, and what an adapter changed."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance

import vision_peft  # noqa: F401 (registers vit_mini)
from diffusion_peft.data.drawn import Drawn, DrawnPictures, to_tensor
from diffusion_peft.data.reading import ground_of, letters_right, read_letters
from diffusion_peft.data.words import Word, draw_word

BATCH = 64
Told = Callable[[str, int, int], None]
WORD = re.compile(r'the word "([A-Z]+)"')  # in a caption


def nobody(what: str, done: int, of: int) -> None:
    """Hears of the progress where nobody else wants to."""


def batches(items: Any, what: str, told: Told) -> Iterator[Any]:
    """Slices of at most BATCH of a list or tensor, with word of the progress."""
    for begin in range(0, len(items), BATCH):
        told(what, begin, len(items))
        yield items[begin : begin + BATCH]


def reconstructed(vae: Any, images: Tensor, told: Told) -> Tensor:
    """Pictures `[N, 3, S, S]` in [-1, 1] through the autoencoder, in the same range."""
    with torch.no_grad():
        parts = [
            vae.decode(vae.encode(batch).latent_dist.mode()).sample for batch in batches(images, "reconstruct", told)
        ]
    return torch.cat(parts).clamp(-1, 1)


def errors(found: Tensor, wanted: Tensor) -> dict[str, float]:
    """Mean absolute error and peak signal-to-noise ratio in dB of pictures in [-1, 1], as if they were in [0, 1]."""
    error = (found - wanted).double() / 2
    return {"absolute_error": error.abs().mean().item(), "psnr": -10 * error.square().mean().log10().item()}


class Features(nn.Module):
    """vit_mini's pooled features `[N, 128]` of pictures `[N, 3, S, S]` in [0, 1], which it sees at 32 pixels."""

    mean: Tensor
    std: Tensor

    def __init__(self):
        super().__init__()
        self.model: Any = timm.create_model("vit_mini", pretrained=True, num_classes=0).eval()
        self.num_features: int = self.model.num_features
        cfg = self.model.pretrained_cfg
        self.register_buffer("mean", torch.tensor(cfg["mean"]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(cfg["std"]).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        small = F.interpolate(images.float(), size=(32, 32), mode="bicubic", antialias=True).clamp(0, 1)
        with torch.no_grad():
            return self.model((small - self.mean) / self.std)


def frechet(real: Tensor, found: Tensor, told: Told = nobody) -> float:
    """Fréchet distance of vit_mini's features; pictures `[N, 3, S, S]` in [0, 1]."""
    metric = FrechetInceptionDistance(feature=Features())
    for images, is_real in ((real, True), (found, False)):
        for batch in batches(images, "features", told):
            metric.update(batch, real=is_real)
    return metric.compute().item()


def emoji_of(source: DrawnPictures, epoch: int, count: int) -> tuple[Tensor, list[Drawn]]:
    """`count` emoji of a part, or all, as one epoch varies them: `[N, 3, S, S]` in [-1, 1], and what each shows."""
    keys = [(epoch, index) for index in range(min(count, len(source.emoji.families)))]
    drawn = [source.drawn(key) for key in keys]
    return torch.stack([to_tensor(one.image) for one in drawn]), drawn


def random_words(count: int, seed: int) -> list[Word]:
    """Words that the measurement asks for, in their places."""
    rng = np.random.default_rng([seed, 1])
    return [draw_word(rng) for _ in range(count)]


def read_words(images: Tensor, texts: Sequence[str]) -> list[str]:
    """What stands in pictures of words of known lengths."""
    found = [""] * len(texts)
    for length in {len(text) for text in texts}:
        chosen = [number for number, text in enumerate(texts) if len(text) == length]
        for number, text in zip(chosen, read_letters(images[chosen], length), strict=True):
            found[number] = text
    return found


def spelling(images: Tensor, words: list[Word]) -> dict[str, float]:
    """Shares of letters read at their places, in all and by length, of whole words, and of grounds in their colour."""
    texts = [word.text for word in words]
    found = read_words(images, texts)
    pairs = list(zip(found, texts, strict=True))
    shares = {
        f"letters_of_{length}": letters_right(*zip(*[pair for pair in pairs if len(pair[1]) == length], strict=True))
        for length in sorted({len(text) for text in texts})
    }
    grounds = ground_of(images)
    return {
        "letters": letters_right(found, texts),
        "words": sum(one == other for one, other in pairs) / len(texts),
        "grounds": sum(one == word.ground for one, word in zip(grounds, words, strict=True)) / len(words),
        **shares,
    }


def asked_letters(images: Tensor, prompts: Sequence[str]) -> float | None:
    """Share of the letters right in the pictures whose prompts ask for words; None where none does."""
    asked = {number: found[1] for number, prompt in enumerate(prompts) if (found := WORD.search(prompt))}
    texts = list(asked.values())
    return letters_right(read_words(images[list(asked)], texts), texts) if asked else None


def drawn_figures(
    found: Mapping[str, Tensor], base: Mapping[str, Tensor], prompts: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """What an adapter does to a pipeline, by the pictures drawn with it and by the base model from the same seeds.

    Args:
        found: for `own` captions of the data and for `unrelated` prompts, uint8 `[N, 3, S, S]`.
        base: the same of the base model, and `real`, the pictures of the data; for itself there is nothing to be kept.
        prompts: of both kinds.
    """
    own, unrelated = found["own"] / 255, found["unrelated"] / 255
    figures = {
        "frechet": frechet(base["real"] / 255, own),
        "fidelity": asked_letters(own, prompts["own"]),
        "kept_spelling": asked_letters(unrelated, prompts["unrelated"]),
    }
    if found is not base:
        before = base["unrelated"] / 255
        similarity: Any = structural_similarity_index_measure(unrelated, before, data_range=1.0)
        figures |= {"kept": float(similarity), "drift": frechet(before, unrelated)}
    return {name: value for name, value in figures.items() if value is not None}
