"""Prompts unrelated to what a pipeline is adapted to: emoji and words, as the embedded model knows them."""

import numpy as np

from diffusion_peft.data.palette import COLORS
from diffusion_peft.data.words import draw_word

EMOJI = (
    "grinning face",
    "frog face",
    "banana",
    "soccer ball",
    "bus",
    "woman, medium skin",
    "sunflower",
    "alarm clock",
    "dog face",
    "penguin",
    "hamburger",
    "trophy",
    "bicycle",
    "man, dark skin",
    "cherry blossom",
    "teddy bear",
    "panda face",
    "octopus",
    "strawberry",
    "guitar",
    "fire engine",
    "baby, light skin",
    "palm tree",
    "telescope",
    "tiger face",
    "turtle",
    "doughnut",
    "video game",
    "tractor",
    "robot face",
    "maple leaf",
    "red apple",
)


def unrelated_prompts(count: int) -> list[str]:
    """Always the same prompts: in turn an emoji on a coloured ground, and a word."""
    rng = np.random.default_rng(0)
    grounds = list(COLORS)
    found = []
    for number in range(count):
        if number % 2:
            found.append(draw_word(rng).caption)
        else:
            found.append(f"{EMOJI[number // 2 % len(EMOJI)]} on {grounds[rng.integers(len(grounds))]}")
    return found
