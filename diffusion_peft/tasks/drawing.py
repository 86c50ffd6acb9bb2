"""The data that all pretraining tasks of this family draw from, as a section of a recipe."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from diffusion_peft.data.drawn import Drawn, DrawnPictures
from diffusion_peft.data.emoji import Emoji, Part
from peft_kernels.data_errors import UnknownNameError

TEST_WORDS = 64


@dataclass(frozen=True)
class DataSpec:
    """Emoji and words.

    Attributes:
        root: captioned emoji: a folder or zip with a `metadata.jsonl`, or the folder that holds it.
        size: pixels along a side.
        words: pictures of words an epoch, each with new letters.
        shift: emoji and words stand up to so many pixels off their places.
    """

    root: str | None = None
    size: int = 64
    words: int = 1584
    shift: int = 2

    def __post_init__(self) -> None:
        for name, least in (("size", 16), ("words", 0), ("shift", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"data.{name} must be at least {least}, found {getattr(self, name)}")


def open_pictures(
    spec: DataSpec,
    part: Part,
    seed: int,
    told: Callable[[str, int, int], None] | None = None,
    take: Callable[[Drawn], dict[str, Tensor]] = lambda drawn: {},
) -> DrawnPictures:
    """The pictures of one part; `take` gives what a sample holds beside its picture.

    Raises:
        UnknownNameError: no data are named.
        DataError: they are not there or not readable.
    """
    if spec.root is None:
        raise UnknownNameError("the emoji are not part of this package: add --data.root FOLDER_OR_ZIP")
    emoji = Emoji(Path(spec.root).expanduser(), part, spec.size, told)
    if part == "train":
        return DrawnPictures(emoji, spec.words, spec.shift, seed, take)
    return DrawnPictures(emoji, min(spec.words, TEST_WORDS), spec.shift, seed + 1, take)
