"""Emoji, words and their latents: the right ones, the same whoever asks, with captions that say what is there."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_peft.data.captioned import CaptionedFolder
from diffusion_peft.data.drawn import DrawnPictures
from diffusion_peft.data.emoji import Emoji, said_in_words
from diffusion_peft.data.groups import GROUPS, group_of
from diffusion_peft.data.latents import LatentPictures
from diffusion_peft.data.open import open_pictures
from diffusion_peft.data.palette import COLORS, readable_on
from diffusion_peft.data.words import Word, draw_word
from peft_kernels.data_errors import DataError
from tests.diffusion.conftest import FAMILIES, TONED


@pytest.mark.parametrize("form", ["zipped", "zipped/x.zip"])
def test_zip_holds_the_same_as_the_folder(form: str, emoji: Path) -> None:
    plain = CaptionedFolder(emoji / "folder")
    other = CaptionedFolder(emoji / form)
    assert plain.rows == other.rows
    assert plain.picture(3).tobytes() == other.picture(3).tobytes()
    assert plain.picture(3).mode == "RGBA"


def test_tones_of_one_emoji_are_one_family_and_stay_in_one_part(emoji: Path) -> None:
    train, test = Emoji(emoji / "folder", "train", 32), Emoji(emoji / "folder", "test", 32)
    assert len(train.families) + len(test.families) == FAMILIES
    assert len(test.families) == FAMILIES // 20
    assert not {*chain(*train.families)} & {*chain(*test.families)}
    sizes = sorted(len(family) for family in train.families + test.families)
    assert sizes == [1] * (FAMILIES - TONED) + [3] * TONED


def test_captions_say_in_words_what_unicode_numbers() -> None:
    assert said_in_words("runner with skin tone type-6 with female sign") == "runner, dark skin, woman"
    assert said_in_words("hot dog") == "hot dog"


def test_samples_depend_on_seed_epoch_and_index_alone(emoji: Path) -> None:
    source = Emoji(emoji / "folder", "train", 32)
    first, second = (DrawnPictures(source, 10, 3, 0, lambda drawn: {}) for _ in range(2))
    keys = [(epoch, index) for epoch in (0, 1) for index in (0, len(source.families), len(first) - 1)]
    forward = [first[key]["image"] for key in keys]
    backward = [second[key]["image"] for key in reversed(keys)]
    for one, other in zip(forward, reversed(backward), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(forward[0], forward[3])
    assert forward[0].shape == (3, 32, 32)
    assert forward[0].min() >= -1
    assert forward[0].max() <= 1


def test_ground_shows_through_where_an_emoji_is_clear(emoji: Path) -> None:
    picture = Emoji(emoji / "folder", "train", 32).picture(0, "purple")
    assert picture.getpixel((5, 5)) == COLORS["purple"]


def test_words_stay_in_the_picture_and_show_their_colours() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        word = draw_word(rng, shift=2)
        assert 1 <= len(word.text) <= 4
        assert f'the word "{word.text}" in {word.ink}' in word.caption
        assert word.caption.endswith(f" on {word.ground}") or word.ground == "white"
        pixels = np.asarray(word.picture(64))
        assert (pixels[0] == COLORS[word.ground]).all()
        assert (pixels[:, 0] == COLORS[word.ground]).all()
        assert (pixels == COLORS[word.ink]).all(-1).any()


def test_words_differ_by_their_letters() -> None:
    pictures = {Word(text, "black", "white").picture(64).tobytes() for text in ("CAT", "CAR", "ACT", "CA")}
    assert len(pictures) == 4


def test_every_ground_has_readable_inks() -> None:
    for ground in COLORS:
        assert len(readable_on(ground)) >= 3
        assert ground not in readable_on(ground)


def test_groups_of_well_known_emoji() -> None:
    known = {
        "1f600": "face",
        "1f436": "animal",
        "1f34e": "food",
        "1f697": "transport",
        "2764": "heart",
        "1f44d": "body",
    }
    for point, name in known.items():
        assert GROUPS[group_of([point, "1f3fb"])] == name
    assert GROUPS[group_of(None)] == "word"


def test_latents_come_back_from_the_cache(emoji: Path, tmp_path: Path) -> None:
    pictures = DrawnPictures(Emoji(emoji / "folder", "train", 32), 5, 2, 0, lambda drawn: {"label": torch.tensor(1)})
    calls = []

    def encode(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return images[:, :, ::8, ::8]

    def opened(words: str) -> LatentPictures:
        return LatentPictures(pictures, encode, 2, {"words": words}, tmp_path / "latents.safetensors")

    first = opened("a")
    assert sum(calls) == 2 * len(pictures)
    again = opened("a")
    assert sum(calls) == 2 * len(pictures)
    for key in ((0, 1), (1, 1), (5, len(pictures) - 1)):
        wanted = pictures[(key[0] % 2, key[1])]
        torch.testing.assert_close(again[key]["latents"], wanted["image"][:, ::8, ::8].half().float())
        assert torch.equal(first[key]["latents"], again[key]["latents"])
        assert again[key]["label"] == 1
    with pytest.raises(DataError, match="delete it"):
        opened("b")


def test_data_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no data at"):
        CaptionedFolder(tmp_path / "none")
    with pytest.raises(DataError, match=r"must hold one metadata.jsonl"):
        CaptionedFolder(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n')
    with pytest.raises(DataError, match="line 1, has no 'text'"):
        CaptionedFolder(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "../a.png", "text": "a"}\n')
    Image.new("RGB", (4, 4)).save(tmp_path.parent / "a.png")
    with pytest.raises(DataError, match="outside"):
        CaptionedFolder(tmp_path).picture(0)


def test_datasets_bring_captioned_pictures(captioned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    own = open_pictures("folder", str(captioned), "said", None, 1, 16)
    loaded = open_pictures("hfds/imagefolder", str(captioned), "said", None, 1, 16)
    assert len(own) == len(loaded)
    for index in range(len(own)):
        one, other = own.drawn((0, index)), loaded.drawn((0, index))
        assert one.caption == other.caption == "a star"
        assert one.image.tobytes() == other.image.tobytes()
    assert open_pictures("hfds/imagefolder", str(captioned), "said", "x", 1, 16).drawn((0, 0)).caption == "x"
    with pytest.raises(DataError, match=r"has no column 'sayd' \(did you mean 'said'\?\)"):
        open_pictures("hfds/imagefolder", str(captioned), "sayd", None, 1, 16)
    with pytest.raises(DataError, match="picture 0 of the dataset imagefolder has 24 x 20 pixels, and 64"):
        open_pictures("hfds/imagefolder", str(captioned), "said", None, 64, 64).drawn((0, 0))
    with pytest.raises(DataError, match="cannot be loaded"):
        open_pictures("hfds/imagefolder", str(tmp_path / "nowhere"), "said", None, 1, 16)
