"""Files below a folder or inside a zip, read the same way, from any process."""

import os
import zlib
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile

from peft_kernels.data_errors import DataError


class Archive:
    """The files of a folder or zip, by their paths inside it; a zip is read in place.

    Raises:
        DataError: there is nothing at `root`, or it is a file and no zip.
    """

    def __init__(self, root: Path):
        if not root.exists():
            raise DataError(f"there is no data at {root}")
        self.root = root
        self.zip: ZipFile | None = None
        self.zip_owner = 0
        if root.is_file():
            self._opened()

    def names(self) -> list[str]:
        """Paths of all files, sorted, without hidden ones and what macOS puts beside them."""
        if self.root.is_file():
            found = (name for name in self._opened().namelist() if not name.endswith("/"))
        else:
            found = (path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())
        return sorted(name for name in found if not any(map(_hidden, PurePosixPath(name).parts)))

    def read(self, name: str) -> bytes:
        """The bytes of one file.

        Raises:
            DataError: it is not there, not whole, or outside of the folder.
        """
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DataError(f"{name!r} lies outside of {self.root}")
        try:
            return self._opened().read(name) if self.root.is_file() else (self.root / name).read_bytes()
        except (OSError, KeyError, BadZipFile, RuntimeError, zlib.error) as error:  # RuntimeError: encrypted
            raise DataError(f"{self.root / name} cannot be read: {error}") from None

    def _opened(self) -> ZipFile:
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


def _hidden(part: str) -> bool:
    return (part.startswith(".") and part != "..") or part == "__MACOSX"
