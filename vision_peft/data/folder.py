"""A folder or zip with one folder of pictures per class: `train/<class>/*.jpg`, `test/<class>/*.jpg`.

A zip is read in place. The parts may be two zips whose names end in the part's (`cifar10_train.zip`), in one folder.
"""

import os
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile

import numpy as np
from PIL import Image

from vision_peft.data.errors import DataError
from vision_peft.data.pictures import decoded

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".gif"}


class FolderPictures:
    """The pictures of one part. `root` holds the class folders, as a folder or as a path inside a zip."""

    def __init__(self, root: Path, inside: str = "", classes: list[str] | None = None):
        self.root = root
        self.zip: ZipFile | None = None
        self.zip_owner = 0
        names = self._zip_names(inside) if root.is_file() else self._folder_names(inside)
        found = sorted({name.parts[-2] for name in names})
        if not names:
            raise DataError(f"{root / inside} holds no pictures in class folders (<class>/<picture>.jpg)")
        self.classes = classes or found
        strange = sorted(set(found) - set(self.classes))
        if strange:
            raise DataError(f"{root / inside} has the class {strange[0]!r}, which the training part does not have")
        index = {name: position for position, name in enumerate(self.classes)}
        self.names = names
        self.labels = np.array([index[name.parts[-2]] for name in names], dtype=np.int64)

    def _folder_names(self, inside: str) -> list[PurePosixPath]:
        top = self.root / inside
        files = (path for path in top.glob("*/*") if path.suffix.lower() in ENDINGS)
        return sorted(PurePosixPath(path.relative_to(self.root).as_posix()) for path in files)

    def _zip_names(self, inside: str) -> list[PurePosixPath]:
        top = PurePosixPath(inside)
        names = (PurePosixPath(name) for name in self._zip().namelist())
        return sorted(name for name in names if name.suffix.lower() in ENDINGS and name.parent.parent == top)

    def _zip(self) -> ZipFile:
        """The open zip of this process: workers that share one file position would read each other's bytes."""
        if self.zip is None or self.zip_owner != os.getpid():
            try:
                self.zip = ZipFile(self.root)
            except BadZipFile as error:
                raise DataError(f"{self.root} is not a readable zip: {error}") from None
            self.zip_owner = os.getpid()
        return self.zip

    def __getstate__(self) -> dict:
        return {**self.__dict__, "zip": None}

    def picture(self, index: int) -> Image.Image:
        """The picture in RGB.

        Raises:
            DataError: it cannot be decoded; the message names the file.
        """
        name = str(self.names[index])
        path = self.root / name
        return decoded(path, (lambda: self._zip().read(name)) if self.root.is_file() else path.read_bytes)


def open_folder(root: Path, split: str, classes: list[str] | None = None) -> FolderPictures:
    """The part called `split` below `root`: a folder, a path in a zip, or the zip whose name ends in `_<split>`.

    Raises:
        DataError: there is no such part; the message lists the parts that are there.
    """
    if not root.exists():
        raise DataError(f"there is no data at {root}")
    if root.is_file():
        sibling = _sibling(root, split)
        parts = _zip_parts(sibling or root)
        if split not in parts:
            raise DataError(f"{sibling or root} has no part {split!r}: it holds {', '.join(sorted(parts)) or 'none'}")
        return FolderPictures(sibling or root, parts[split], classes)
    if (root / split).is_dir():
        return FolderPictures(root, split, classes)
    zips = sorted(root.glob(f"*_{split}.zip"))
    if len(zips) == 1:
        return open_folder(zips[0], split, classes)
    raise DataError(f"{root} has no part {split!r}: expected the folder {root / split} or one zip *_{split}.zip")


def _sibling(root: Path, split: str) -> Path | None:
    """`x_test.zip` beside `x_train.zip`."""
    stem, _, part = root.stem.rpartition("_")
    other = root.with_name(f"{stem}_{split}{root.suffix}")
    return other if part and part != split and other.is_file() else None


def _zip_parts(root: Path) -> dict[str, str]:
    """Part name → its path in the zip: `train/<class>/x.jpg` gives `{"train": "train"}`."""
    try:
        with ZipFile(root) as opened:
            names = [PurePosixPath(name) for name in opened.namelist()]
    except BadZipFile as error:
        raise DataError(f"{root} is not a readable zip: {error}") from None
    tops = {name.parent.parent for name in names if name.suffix.lower() in ENDINGS and len(name.parts) > 2}
    return {top.name: str(top) for top in tops}
