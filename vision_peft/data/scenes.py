"""Scenes of discs, squares and triangles, drawn with their boxes and masks: the smallest task of detection."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

KINDS = ("disc", "square", "triangle")


class Scene(NamedTuple):
    """A picture and what is on it, the shapes in front last.

    Args:
        picture: ``[3, side, side]`` in [0, 1].
        boxes: ``[shapes, 4]``, left, top, right, bottom in pixels.
        labels: 1 and up, by `KINDS`; 0 is the ground.
        masks: ``[shapes, side, side]``, the part of each that is seen.
        classes: ``[side, side]``, the label of each pixel.
    """

    picture: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor
    classes: Tensor


def scene(seed: int, side: int = 64, most: int = 3) -> Scene:
    """A scene with one to ``most`` shapes, the same for the same seed.

    Args:
        seed: of all that is drawn at random.
        side: of the picture.
        most: shapes.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    picture = draw(3, 1, 1) * 0.4 + 0.2 * draw(3, side, side)
    classes = torch.zeros(side, side, dtype=torch.long)
    owner = torch.full((side, side), -1)
    kinds = torch.randint(len(KINDS), (int(torch.randint(1, most + 1, (), generator=generator)),), generator=generator)
    for index, kind in enumerate(kinds):
        radius = side * (0.1 + 0.1 * draw(1))
        x, y = radius + (side - 2 * radius) * draw(2)
        shape = _covered(KINDS[int(kind)], side, x, y, radius)
        colour = 0.5 + 0.5 * draw(3, 1, 1)
        picture = torch.where(shape, colour, picture)
        classes[shape], owner[shape] = kind + 1, index
    seen = [index for index in range(len(kinds)) if (owner == index).any()]
    masks = torch.stack([owner == index for index in seen])
    return Scene(picture, torch.stack([_box(mask) for mask in masks]), kinds[seen] + 1, masks, classes)


def _covered(kind: str, side: int, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    place = torch.arange(side) + 0.5
    right, down = (place - x).expand(side, -1), (place - y)[:, None].expand(-1, side)
    if kind == "disc":
        return right.square() + down.square() <= radius.square()
    if kind == "square":
        return torch.maximum(right.abs(), down.abs()) <= radius
    return (down.abs() <= radius) & (right.abs() <= (down + radius) / 2)


def _box(mask: Tensor) -> Tensor:
    rows, columns = (mask.any(axis).nonzero().flatten() for axis in (1, 0))
    return torch.stack((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)).float()
