"""A folder or zip with one folder of files per class: `train/<class>/*.jpg`, `test/<class>/*.jpg`; pictures or clouds.

A zip is read in place. The parts may be two zips whose names end in the part's (`cifar10_train.zip`), in one folder.
"""

from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import ClassVar, TypeVar

import numpy as np
from PIL import Image

from peft_kernels.archive import Archive
from peft_kernels.data_errors import DataError
from vision_peft.data.pictures import decoded

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".gif"}


class ClassFolders:
    """The files of one part. `root` holds the class folders, as a folder or as a path inside a zip.

    Attributes:
        endings: of the files that count.
        example: of what is expected, for messages.
    """

    endings: ClassVar[Collection[str]]
    example: ClassVar[str]

    def __init__(self, root: Path, inside: str = "", classes: list[str] | None = None):
        self.archive = Archive(root)
        self.root = root
        names = self._zip_names(inside) if root.is_file() else self._folder_names(inside)
        found = sorted({name.parts[-2] for name in names})
        if not names:
            raise DataError(f"{root / inside} holds no {self.example}")
        self.classes = classes or found
        strange = sorted(set(found) - set(self.classes))
        if strange:
            raise DataError(f"{root / inside} has the class {strange[0]!r}, which the training part does not have")
        index = {name: position for position, name in enumerate(self.classes)}
        self.names = names
        self.labels = np.array([index[name.parts[-2]] for name in names], dtype=np.int64)

    def _folder_names(self, inside: str) -> list[PurePosixPath]:
        top = self.root / inside
        files = (path for path in top.glob("*/*") if path.suffix.lower() in self.endings)
        return sorted(PurePosixPath(path.relative_to(self.root).as_posix()) for path in files)

    def _zip_names(self, inside: str) -> list[PurePosixPath]:
        top = PurePosixPath(inside)
        names = map(PurePosixPath, self.archive.names())
        return sorted(name for name in names if name.suffix.lower() in self.endings and name.parent.parent == top)


_Files = TypeVar("_Files", bound=ClassFolders)


class FolderPictures(ClassFolders):
    """Pictures in class folders."""

    endings = ENDINGS
    example = "pictures in class folders (<class>/<picture>.jpg)"

    def picture(self, index: int) -> Image.Image:
        """The picture in RGB.

        Raises:
            DataError: it cannot be decoded; the message names the file.
        """
        name = str(self.names[index])
        return decoded(self.root / name, lambda: self.archive.read(name))


def open_folder(root: Path, split: str, classes: list[str] | None = None) -> FolderPictures:
    """The pictures of the part called `split`, as `open_part` finds it."""
    return open_part(FolderPictures, root, split, classes)


def open_part(kind: type[_Files], root: Path, split: str, classes: list[str] | None = None) -> _Files:
    """The part called `split` below `root`: a folder, a path in a zip, or the zip whose name ends in `_<split>`.

    Raises:
        DataError: there is no such part; the message lists the parts that are there.
    """
    if not root.exists():
        raise DataError(f"there is no data at {root}")
    if root.is_file():
        sibling = _sibling(root, split)
        parts = _zip_parts(sibling or root, kind.endings)
        if split not in parts:
            raise DataError(f"{sibling or root} has no part {split!r}: it holds {', '.join(sorted(parts)) or 'none'}")
        return kind(sibling or root, parts[split], classes)
    if (root / split).is_dir():
        return kind(root, split, classes)
    zips = sorted(root.glob(f"*_{split}.zip"))
    if len(zips) == 1:
        return open_part(kind, zips[0], split, classes)
    raise DataError(f"{root} has no part {split!r}: expected the folder {root / split} or one zip *_{split}.zip")


def _sibling(root: Path, split: str) -> Path | None:
    """`x_test.zip` beside `x_train.zip`."""
    stem, _, part = root.stem.rpartition("_")
    other = root.with_name(f"{stem}_{split}{root.suffix}")
    return other if part and part != split and other.is_file() else None


def _zip_parts(root: Path, endings: Collection[str]) -> dict[str, str]:
    """Part name → its path in the zip: `train/<class>/x.jpg` gives `{"train": "train"}`."""
    names = [PurePosixPath(name) for name in Archive(root).names()]
    tops = {name.parent.parent for name in names if name.suffix.lower() in endings and len(name.parts) > 2}
    return {top.name: str(top) for top in tops}
