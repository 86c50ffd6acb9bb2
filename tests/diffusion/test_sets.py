"""The drawn sets: always the same pictures, parts that share no subject, and captions that say what is shown."""

import re

import numpy as np
import pytest

from diffusion_peft.data.drawn import to_tensor
from diffusion_peft.data.neon import GLOWS, lettered, lit
from diffusion_peft.data.palette import COLORS
from diffusion_peft.data.reading import ground_of, letters_right, read_letters
from diffusion_peft.data.spelling import TEST_SIZE as SPELLED
from diffusion_peft.data.spelling import SpelledPictures
from diffusion_peft.data.style import STYLE, TEST, TEST_SIZE, TRAIN, StylePictures
from diffusion_peft.data.subject import CLASS, NAME, SubjectPictures

SETS = {"style": StylePictures, "subject": SubjectPictures}


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_always_the_same(name: str) -> None:
    one, again, other = SETS[name](), SETS[name](), SETS[name](seed=1)
    for index in range(len(one)):
        first, second = one.drawn((0, index)), again.drawn((0, index))
        assert first.caption == second.caption
        assert first.image.tobytes() == second.image.tobytes()
        assert first.image.tobytes() != one.drawn((1, index)).image.tobytes()
        assert first.image.tobytes() != other.drawn((0, index)).image.tobytes()
        assert (first.image.mode, first.image.size) == ("RGB", (64, 64))


@pytest.mark.parametrize("size", [32, 128])
@pytest.mark.parametrize("name", SETS)
def test_sizes_show_the_same(name: str, size: int) -> None:
    drawn = SETS[name](size).drawn((0, 2))
    assert drawn.image.size == (size, size)
    small = np.asarray(drawn.image.resize((16, 16), 4), float)
    usual = np.asarray(SETS[name]().drawn((0, 2)).image.resize((16, 16), 4), float)
    assert np.abs(small - usual).mean() < 8


def test_style_holds_subjects_and_words_out() -> None:
    pictures = StylePictures()
    captions = [pictures.drawn((0, index)).caption for index in range(len(pictures))]
    train, test = captions[:-TEST_SIZE], captions[-TEST_SIZE:]
    assert (len(train), len(test)) == (40, 48)
    assert all(any(f"{STYLE}{name} in " in caption for caption in train) for name in TRAIN)
    assert not any(f"{STYLE}{name} in " in caption for caption in train for name in TEST)
    words = [{caption.split('"')[1] for caption in part if "the word" in caption} for part in (train, test)]
    assert sum("the word" in caption for caption in train) == 9
    assert not words[0] & words[1]
    assert all(re.fullmatch(rf"{STYLE}.* in (\w+)", caption)[1] in GLOWS for caption in captions)  # type: ignore[index]


def test_words_of_the_style_are_read_and_have_their_colour() -> None:
    pictures = StylePictures()
    drawn = [pictures.drawn((epoch, index)) for epoch in range(4) for index in range(len(pictures))]
    for one in drawn:
        found = re.fullmatch(rf'{STYLE}the word "(\w+)" in (\w+)', one.caption)
        if found is None:
            continue
        image = to_tensor(one.image)[None] / 2 + 0.5
        assert letters_right(read_letters(image, len(found[1])), [found[1]]) == 1
        mean = {color: np.asarray(lit([lettered(found[1], 64, color)], 64)).mean((0, 1)) for color in GLOWS}
        shown = np.asarray(one.image).mean((0, 1))
        assert min(mean, key=lambda color: np.abs(mean[color] - shown).sum()) == found[2]


def test_subject_stands_on_the_ground_of_its_caption() -> None:
    pictures = SubjectPictures()
    for index in range(len(pictures)):
        drawn = pictures.drawn((0, index))
        [ground] = ground_of(to_tensor(drawn.image)[None] / 2 + 0.5)
        assert drawn.caption == f"{NAME} {CLASS} on {ground}"
        assert ground in COLORS


def test_spelling_holds_words_out() -> None:
    pictures = SpelledPictures()
    tested = [pictures.drawn((epoch, len(pictures) - SPELLED)) for epoch in (0, 1)]
    assert tested[0].image.tobytes() == tested[1].image.tobytes()
    train, test = (
        {pictures.drawn((0, index)).caption.split('"')[1] for index in part}
        for part in (range(len(pictures) - SPELLED), range(len(pictures) - SPELLED, len(pictures)))
    )
    assert not train & test
    again, other = (SpelledPictures(seed=seed).drawn((0, 3)).image.tobytes() for seed in (0, 1))
    assert pictures.drawn((0, 3)).image.tobytes() == again != other
    assert {len(word) for word in train} == {len(word) for word in test} == {1, 2, 3, 4}
    assert pictures.drawn((0, 3)).caption != pictures.drawn((1, 3)).caption
