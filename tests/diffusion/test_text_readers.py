"""Readers and measures by name: those of other packages through stand-ins, since none of these is installed here."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from diffusion_peft.data.drawn import to_tensor
from diffusion_peft.data.words import Word
from diffusion_peft.localization.pairs import Pair
from diffusion_peft.localization.readers import metrics_of, reader_of
from peft_kernels.data_errors import DataError, UnknownNameError
from tests.diffusion.tiny_pipelines import clip_tokenizer

PICTURES = torch.stack([to_tensor(Word(word, "black", "white").picture(64)) for word in ("CAT", "AB")]) / 2 + 0.5
PAIRS = [Pair("a circle", "a star"), Pair("a square", "a star")]


def test_the_words_of_mini_sd_are_read() -> None:
    assert reader_of("letters")(PICTURES) == ["CAT", "AB"]


def dark(picture: np.ndarray) -> str:
    """What the stand-ins read: height, width, channels and type of the picture, and how dark its darkest is."""
    return f"{picture.shape} {picture.dtype} {picture.min()}"


@pytest.mark.parametrize(
    ("name", "package", "made"),
    [
        (
            "easyocr",
            "easyocr",
            {"Reader": lambda languages, **_: SimpleNamespace(readtext=lambda p, detail: [dark(p)])},
        ),
        ("tesseract", "pytesseract", {"image_to_string": lambda picture: f" {dark(picture)}\n\n"}),
    ],
)
def test_other_readers_get_pictures_of_eight_bits(
    name: str, package: str, made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, SimpleNamespace(**made))
    assert reader_of(name)(PICTURES) == ["(64, 64, 3) uint8 15"] * 2


@pytest.mark.parametrize("name", ["easyocr", "tesseract"])
def test_readers_that_are_not_installed_are_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("easyocr", "pytesseract"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=f"the reader '{name}' needs the package"):
        reader_of(name)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'letters'"):
        reader_of("leters")
    with pytest.raises(UnknownNameError, match="did you mean 'lpips'"):
        metrics_of("lpip")
    with pytest.raises(DataError, match="is not on this machine"):
        metrics_of("clip:nowhere/at-all")


def test_features_of_timm_models_are_compared() -> None:
    (metric,) = metrics_of("vit_mini").values()
    found = torch.as_tensor(metric(PICTURES, PICTURES.flip(0), PICTURES, PAIRS))
    assert (found > torch.as_tensor(metric(PICTURES, PICTURES, PICTURES, PAIRS)) + 1e-3).all()


def test_clip_compares_pictures_with_prompts(tmp_path: Path) -> None:
    tokenizer: Any = clip_tokenizer()
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 12, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config={**sizes, **text}, vision_config=vision, projection_dim=4)).save_pretrained(
        tmp_path
    )
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)
    CLIPProcessor(images, tokenizer).save_pretrained(tmp_path)
    metrics = metrics_of(f"clip:{tmp_path}")
    target, source = (
        torch.as_tensor(metrics[name](PICTURES, PICTURES, PICTURES, PAIRS)) for name in ("clip_target", "clip_source")
    )
    swapped = [Pair(pair.target, pair.source) for pair in PAIRS]
    torch.testing.assert_close(torch.as_tensor(metrics["clip_target"](PICTURES, PICTURES, PICTURES, swapped)), source)
    assert not torch.allclose(target, source)
    assert (target.abs() <= 1).all()
