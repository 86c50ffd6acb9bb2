"""From the data's name in a recipe to its pictures."""

from pathlib import Path

import numpy as np

from vision_peft.data.digits import Digits
from vision_peft.data.errors import DataError, UnknownNameError, unknown
from vision_peft.data.folder import open_folder
from vision_peft.data.pictures import Pictures, Subset
from vision_peft.data.timm_names import TimmPictures, timm_schemes

EMBEDDED = ("digits", "folder")


def open_split(
    name: str, root: Path | None, split: str, classes: list[str] | None = None, size: int | None = None, seed: int = 0
) -> Pictures:
    """The pictures of one part.

    Args:
        name: `digits` (embedded), `folder` (a folder or zip at `root`) or a name of timm's dataset factory
            (`torch/cifar10`, `hfds/<dataset on the hub>`).
        root: where the data lie; for timm's names also where they are kept after a download.
        split: the part's name.
        classes: the class names in order, where another part has already fixed them.
        size: take this many pictures only, in the classes' shares, chosen by `seed`.

    Raises:
        DataError: unknown name (with the nearest known one), missing part, unreadable file.
    """
    if name == "digits":
        pictures: Pictures = Digits(split)
    elif name == "folder":
        if root is None:
            raise UnknownNameError("the data are a folder, but no folder is given: add --data.root FOLDER_OR_ZIP")
        pictures = open_folder(root, split, classes)
    elif "/" in name and name.partition("/")[0] in timm_schemes():
        pictures = TimmPictures(name, root, split)
    else:
        raise unknown("data", name, [*EMBEDDED, *(f"{scheme}/..." for scheme in timm_schemes())])
    return pictures if size is None else few(pictures, size, seed)


def few(pictures: Pictures, size: int, seed: int) -> Pictures:
    """`size` pictures in the classes' shares, the same for the same seed."""
    count = len(pictures.labels)
    if size == count:
        return pictures
    classes = len(pictures.classes)
    if not classes <= size <= count - classes:
        raise DataError(
            f"data.train_size {size} does not fit: choose {classes} (one of each class) to {count - classes} "
            f"of the {count} pictures, or null for all"
        )
    from sklearn.model_selection import train_test_split

    chosen, _ = train_test_split(np.arange(count), train_size=size, random_state=seed, stratify=pictures.labels)
    return Subset(pictures, np.sort(chosen))
