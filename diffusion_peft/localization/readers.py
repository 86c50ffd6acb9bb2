"""Readers of pictures, and further measures, by name: what is on this machine of them.

| reader | |
|---|---|
| `letters` | words of one to four capital letters as `mini_sd` draws them (`data/reading.py`) |
| `easyocr`, `tesseract` | the packages easyocr and pytesseract, where they are installed |

A metric is `clip:NAME_OR_FOLDER` (likeness of picture and prompt, the target's and the source's) or a distance to the
source's picture: `lpips`, `dists`, or any model of timm, whose features are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion_peft.data.reading import read_words
from diffusion_peft.localization.measures import Metric, Reader, eight_bits
from diffusion_peft.localization.pairs import Pair
from diffusion_peft.methods.hipa.perceptual import spatial_distance
from peft_kernels.data_errors import DataError, unknown

CLIP = "clip:"


def reader_of(name: str) -> Reader:
    """The reader of this name.

    Raises:
        UnknownNameError: there is none; the nearest is told.
        DataError: its package is not installed.
    """
    if name not in READERS:
        raise unknown("reader", name, READERS)
    return READERS[name]()


def _easyocr() -> Reader:
    found = _installed("easyocr", "easyocr").Reader(["en"], verbose=False)

    def read(pictures: Tensor) -> list[str]:
        return [" ".join(found.readtext(picture, detail=0)) for picture in _arrays(pictures)]

    return read


def _tesseract() -> Reader:
    package = _installed("pytesseract", "tesseract")

    def read(pictures: Tensor) -> list[str]:
        return [" ".join(package.image_to_string(picture).split()) for picture in _arrays(pictures)]

    return read


READERS: dict[str, Callable[[], Reader]] = {"letters": lambda: read_words, "easyocr": _easyocr, "tesseract": _tesseract}


def _installed(package: str, name: str) -> Any:
    try:
        return import_module(package)
    except ImportError:
        raise DataError(f"the reader {name!r} needs the package {package}, which is not installed") from None


def _arrays(pictures: Tensor) -> list[Any]:
    return list(eight_bits(pictures).permute(0, 2, 3, 1).cpu().numpy())


def metrics_of(name: str) -> dict[str, Metric]:
    """The measures of this name: one, or for CLIP two.

    Raises:
        UnknownNameError: there is none; the nearest is told.
        DataError: its weights are not on this machine.
    """
    if name.startswith(CLIP):
        return _clip(name.removeprefix(CLIP))
    distance = spatial_distance(name)

    def to_source(found: Tensor, source: Tensor, target: Tensor, pairs: Sequence[Pair]) -> Tensor:
        with torch.no_grad():
            return distance(found, source)

    return {name: to_source}


def _clip(place: str) -> dict[str, Metric]:
    from transformers import CLIPModel, CLIPProcessor

    try:
        model: Any = CLIPModel.from_pretrained(place, local_files_only=True).eval()
        processor: Any = CLIPProcessor.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError) as error:
        raise DataError(f"CLIP {place!r} is not on this machine: {' '.join(str(error).split())}") from None

    def likeness(pictures: Tensor, texts: list[str]) -> Tensor:
        given = processor(text=texts, images=_arrays(pictures), return_tensors="pt", padding=True, truncation=True)
        with torch.no_grad():
            seen = model(**given)
        return F.cosine_similarity(seen.image_embeds, seen.text_embeds)

    return {
        "clip_target": lambda found, source, target, pairs: likeness(found, [pair.target for pair in pairs]),
        "clip_source": lambda found, source, target, pairs: likeness(found, [pair.source for pair in pairs]),
    }
