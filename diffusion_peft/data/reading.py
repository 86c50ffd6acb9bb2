"""Reading drawn words back from pictures, to measure how well a model spells.

Nothing is trained: the letters of the font are slid over each letter's place, and the one that correlates best with the
picture's brightness there (light on dark counts as dark on light) is what is read.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from diffusion_peft.data.palette import COLORS
from diffusion_peft.data.words import LETTERS, LONGEST, Word, font

SLACK = 1 / 16  # of the picture: how far a letter may stand off its place


@cache
def templates(size: int) -> Tensor:
    """The letters of the alphabet in pictures of `size` pixels, one row each, of mean 0 and length 1; `[26, h, w]`."""
    height, width = box(size)
    top, left = (size - height) // 2, (size - width) // 2
    drawn = [np.asarray(Word(letter, "black", "white").picture(size).convert("L")) for letter in LETTERS]
    stacked = torch.from_numpy(np.stack(drawn)).float()[:, top : top + height, left : left + width]
    return normalised(stacked.flatten(1)).view(len(LETTERS), height, width)


def box(size: int) -> tuple[int, int]:
    """Height and width of a letter's place."""
    return round(font(size).size) + 2, round(font(size).getlength("M"))


def normalised(rows: Tensor) -> Tensor:
    """Rows of mean 0 and length 1."""
    centred = rows - rows.mean(-1, keepdim=True)
    return centred / centred.norm(dim=-1, keepdim=True).clamp_min(1e-6)


def read_letters(images: Tensor, length: int) -> list[str]:
    """What stands in pictures of words of a known length.

    Args:
        images: `[N, 3, S, S]`, any range.
        length: number of letters.
    """
    return _spelled(_matched(images, length)[0])


def read_words(images: Tensor) -> list[str]:
    """What stands in pictures of words of one to four letters, `[N, 3, S, S]`.

    Of the lengths that one is read whose letters explain most of the brightness at their places, less what they leave.
    """
    found = [_matched(images, length) for length in range(1, LONGEST + 1)]
    best = torch.stack([explained for _, explained in found]).argmax(0).tolist()
    read = [_spelled(letters) for letters, _ in found]
    return [read[length][number] for number, length in enumerate(best)]


def _spelled(letters: Tensor) -> list[str]:
    return ["".join(LETTERS[index] for index in row) for row in letters.tolist()]


def _matched(images: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Numbers of the best letters `[N, length]`, and how much more they explain than they leave `[N]`."""
    size = images.shape[-1]
    height, width = box(size)
    slack = round(SLACK * size)
    grey = (images.float() * images.new_tensor([0.299, 0.587, 0.114]).float().view(3, 1, 1)).sum(1)
    grey = torch.nn.functional.pad(grey[:, None], [slack + width] * 4, mode="replicate")[:, 0]
    letters = templates(size).flatten(1).to(grey.device)
    found, gains = [], []
    for place in range(length):
        middle = size / 2 + (place - (length - 1) / 2) * font(size).getlength("M")
        left = round(middle - width / 2) + width  # of the leftmost window, in the padded picture
        top = (size - height) // 2 + width
        patch = grey[:, top : top + height + 2 * slack, left : left + width + 2 * slack]
        windows = patch.unfold(1, height, 1).unfold(2, width, 1).flatten(3).flatten(1, 2)  # [N, places, pixels]
        agreed, where = (normalised(windows) @ letters.T).abs().max(1)
        share, letter = agreed.max(1)
        chosen = windows[torch.arange(len(windows)), where.gather(1, letter[:, None])[:, 0]]
        found.append(letter)
        gains.append((2 * share.square() - 1) * (chosen - chosen.mean(1, keepdim=True)).square().sum(1))
    return torch.stack(found, 1), torch.stack(gains).sum(0)


def around(size: int, length: int) -> Tensor:
    """Where no letter of a word of this length stands, wherever it was shifted to: truth values `[S, S]`."""
    height, width = (
        part + 2 * round(SLACK * size) for part in (box(size)[0], round(length * font(size).getlength("M")))
    )
    top, left = max((size - height) // 2, 0), max((size - width) // 2, 0)
    outside = torch.ones(size, size, dtype=torch.bool)
    outside[top : size - top, left : size - left] = False
    return outside


def letters_right(found: Sequence[str], wanted: Sequence[str]) -> float:
    """Share of the letters that are the right ones at their places."""
    pairs = [pair for one, other in zip(found, wanted, strict=True) for pair in zip(one, other, strict=True)]
    return sum(one == other for one, other in pairs) / len(pairs)


def ground_of(images: Tensor) -> list[str]:
    """The colour nearest to each picture's border (median of its pixels); images `[N, 3, S, S]` in [0, 1]."""
    border = torch.cat([images[..., :3, :].flatten(2), images[..., -3:, :].flatten(2)], -1).median(-1).values
    known = torch.tensor(list(COLORS.values()), device=images.device) / 255
    nearest = torch.cdist(border.float(), known).argmin(1)
    return [list(COLORS)[index] for index in nearest.tolist()]
