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


def digit_labels() -> list[int]:
    """Which digit each of them is."""
    digits: Any = load_digits()
    return digits["target"].tolist()


def vtab_task(folder: Path, classes: int, test: int) -> None:
    """1,000 digits for the training lists, the next `test` for the test, labelled by their value modulo `classes`."""
    labels = digit_labels()
    (folder / "images").mkdir(parents=True)
    lines = []
    for index, picture in enumerate(digit_pictures()[: 1000 + test]):
        picture.save(folder / "images" / f"{index}.png")
        lines.append(f"images/{index}.png {labels[index] % classes}")
    parts = {"train800": lines[:800], "val200": lines[800:1000], "train800val200": lines[:1000], "test": lines[1000:]}
    for part, listed in parts.items():
        (folder / f"{part}.txt").write_text("\n".join(listed) + "\n", encoding="utf-8")
