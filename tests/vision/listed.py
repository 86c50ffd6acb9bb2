"""A VTAB-1k folder made of handwritten digits: real pictures in the layout and the sizes of a task."""

from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image
from sklearn.datasets import load_digits


@cache
def digit_pictures() -> list[Image.Image]:
    """All 1,797 scans, 8×8."""
    digits: Any = load_digits()
    return [Image.fromarray((scan * 15.9375).astype("uint8")) for scan in digits["images"]]


def vtab_task(folder: Path, classes: int, test: int) -> None:
    """1,000 digits for the training lists, the next `test` for the test, from the 797 others over and over.

    They are labelled by their value modulo `classes`, of more than ten by their place.
    """
    digits: Any = load_digits()
    (folder / "images").mkdir(parents=True)
    for index, picture in enumerate(digit_pictures()):
        picture.save(folder / "images" / f"{index}.png")
    labels = digits["target"] if classes <= 10 else range(len(digits["target"]))
    places = [*range(1000), *(1000 + place % 797 for place in range(test))]
    lines = [f"images/{place}.png {labels[place] % classes}" for place in places]
    parts = {"train800": lines[:800], "val200": lines[800:1000], "train800val200": lines[:1000], "test": lines[1000:]}
    for part, listed in parts.items():
        (folder / f"{part}.txt").write_text("\n".join(listed) + "\n", encoding="utf-8")
