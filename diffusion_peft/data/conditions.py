"""Pictures that steer: edges, a depth-like map or patches of colour, computed from any picture when they are asked for.

| name | what it shows of a picture |
|---|---|
| `edges` | white lines on black where the brightness steps |
| `depth` | bright what stands off the ground (the median colour of the border), softly; no model of depth is asked |
| `colors` | the mean colours of equal patches |
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import gaussian_blur

from diffusion_peft.data.drawn import Key
from diffusion_peft.data.framing import Framed
from diffusion_peft.data.latents import LatentPictures
from peft_kernels.data_errors import DataError
from peft_kernels.ops import edge_lines

FILE = "condition.json"
STANDS_OFF = 0.5  # distance of colours, of √3 at most, from which a pixel is as near as can be
SOFTNESS = 1 / 32  # of the shorter side: deviation of the blur of a depth-like map


@dataclass(frozen=True)
class Condition:
    """What of a picture steers: `Condition("edges")(picture)` is an RGB picture of the same size.

    Attributes:
        name: `edges`, `depth` or `colors`; null is none.
        threshold: how steep an edge is at least; a step by d (of 1) has d / 2.
        patches: of colour along a side.
    """

    name: Literal["edges", "depth", "colors"] | None = None
    threshold: float = 0.1
    patches: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 0.5:
            raise ValueError(f"data.condition.threshold must be in [0, 0.5), found {self.threshold!r}")
        if self.patches < 1:
            raise ValueError(f"data.condition.patches must be at least 1, found {self.patches!r}")

    def tensor(self, picture: Image.Image) -> Tensor:
        """The condition image of an RGB picture, float32 `[3, H, W]` in [0, 1].

        Raises:
            ValueError: there is no condition, or the picture is smaller than the number of patches.
        """
        if self.name is None:
            raise ValueError(f"no condition is named: expected one of {', '.join(MAKERS)}")
        pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None].float() / 255
        return MAKERS[self.name](pixels, self).expand(1, 3, -1, -1)[0].clamp(0, 1)

    def __call__(self, picture: Image.Image) -> Image.Image:
        return Image.fromarray((self.tensor(picture) * 255).round().byte().permute(1, 2, 0).numpy())

    def save(self, folder: Path) -> None:
        """Write `condition.json` into an adapter's folder."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "Condition":
        """What an adapter was trained to be steered by.

        Raises:
            DataError: its folder does not say, or the file is damaged.
        """
        path = Path(folder) / FILE
        try:
            found = cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise DataError(f"{folder} does not say what steers it: it holds no {FILE}") from None
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path} is damaged: {error}") from None
        if found.name not in MAKERS:
            raise DataError(f"{path} names the condition {found.name!r}: known are {', '.join(MAKERS)}")
        return found


def _edges(picture: Tensor, condition: Condition) -> Tensor:
    return edge_lines(picture, condition.threshold).float()


def _depth(picture: Tensor, condition: Condition) -> Tensor:
    sides = (picture[..., :1, :], picture[..., -1:, :], picture[..., :1].mT, picture[..., -1:].mT)
    ground = torch.cat(sides, -1).median(-1, keepdim=True).values
    nearness = (picture - ground).norm(dim=1, keepdim=True) / STANDS_OFF
    deviation = SOFTNESS * min(picture.shape[-2:])
    return gaussian_blur(nearness.clamp(max=1), [2 * round(3 * deviation) + 1] * 2, [deviation])


def _colors(picture: Tensor, condition: Condition) -> Tensor:
    if min(picture.shape[-2:]) < condition.patches:
        size = f"{picture.shape[-1]} x {picture.shape[-2]}"
        raise ValueError(f"a picture of {size} pixels has no {condition.patches} patches along a side")
    return F.interpolate(F.adaptive_avg_pool2d(picture, condition.patches), picture.shape[-2:])


MAKERS: dict[str, Callable[[Tensor, Condition], Tensor]] = {"edges": _edges, "depth": _depth, "colors": _colors}


class ConditionedLatents(Dataset):
    """The samples of `latents`, each with the `condition` image `[3, S, S]` of the picture that it was made from.

    The picture is read again each time, so that latents alone are kept.

    Args:
        latents: the samples.
        pictures: what they were made from.
        condition: what steers.
    """

    def __init__(self, latents: LatentPictures, pictures: Framed, condition: Condition):
        self.latents, self.pictures, self.condition = latents, pictures, condition

    def __len__(self) -> int:
        return len(self.latents)

    def picture(self, key: Key) -> Image.Image:
        """The square picture of a sample."""
        return self.pictures.framed((key[0] % self.latents.pool, key[1]))[0]

    def __getitem__(self, key: Key) -> dict[str, Any]:
        return {**self.latents[key], "condition": self.condition.tensor(self.picture(key))}
