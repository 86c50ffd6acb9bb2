"""The reader that measures spelling reads what was drawn, in any colours, and does not read what is not there."""

import numpy as np
import pytest
import torch

from diffusion_peft.data.drawn import to_tensor
from diffusion_peft.data.reading import around, ground_of, letters_right, read_letters, read_words
from diffusion_peft.data.words import Word, draw_word


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_drawn_words_are_read(length: int) -> None:
    rng = np.random.default_rng(length)
    words = [word for word in (draw_word(rng, shift=2) for _ in range(160)) if len(word.text) == length]
    images = torch.stack([to_tensor(word.picture(64)) for word in words])
    assert read_letters(images, length) == [word.text for word in words]
    noisy = images + 0.3 * torch.randn_like(images)
    assert letters_right(read_letters(noisy, length), [word.text for word in words]) > 0.95


def test_words_of_any_length_are_read() -> None:
    rng = np.random.default_rng(0)
    words = [draw_word(rng, shift=2) for _ in range(120)]
    images = torch.stack([to_tensor(word.picture(64)) for word in words])
    assert read_words(images) == [word.text for word in words]
    noisy = read_words(images + 0.3 * torch.randn_like(images))
    assert sum(found == word.text for found, word in zip(noisy, words, strict=True)) > 0.95 * len(words)


def test_other_words_and_noise_are_not() -> None:
    images = torch.stack([to_tensor(Word(text, "black", "yellow").picture(64)) for text in ("CATS", "DOGS")])
    assert letters_right(read_letters(images, 4), ["DOGS", "CATS"]) == 0.25
    noise = torch.randn(100, 3, 64, 64)
    assert letters_right(read_letters(noise, 4), ["ABCD"] * 100) < 0.2


def test_ground_is_told_from_the_border() -> None:
    grounds = ["white", "red", "blue", "pink", "grey"]
    images = torch.stack([to_tensor(Word("AB", "black", ground).picture(64)) for ground in grounds])
    assert ground_of(images / 2 + 0.5) == grounds


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_words_stand_inside_of_their_box(length: int) -> None:
    outside = around(64, length)
    for shift in ((-2, -2), (2, 2)):
        drawn = to_tensor(Word("W" * length, "black", "white", shift).picture(64))
        assert bool((drawn[:, outside] == 1).all())
    assert outside.float().mean() > 0.4
