"""Captioned pictures in the layout of `datasets`' imagefolder: pictures beside a `metadata.jsonl`, as folder or zip."""

import io
import json
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image, UnidentifiedImageError

from peft_kernels.archive import Archive
from peft_kernels.data_errors import DataError

METADATA = "metadata.jsonl"


class CaptionedFolder:
    """The lines of the one `metadata.jsonl` below `root` (a folder or a zip), in its order, and their pictures.

    Raises:
        DataError: there is no metadata or more than one, or a line lacks `file_name` or the captions' `column`.
    """

    def __init__(self, root: Path, column: str = "text"):
        self.archive = Archive(_zip_or_folder(root))
        places = [PurePosixPath(name) for name in self.archive.names() if PurePosixPath(name).name == METADATA]
        if len(places) != 1:
            raise DataError(f"{root} must hold one {METADATA}, found {len(places)}")
        self.place = places[0].parent
        self.rows: list[dict[str, Any]] = []
        try:
            lines = self.archive.read(str(places[0])).decode("utf-8-sig").split("\n")
        except UnicodeDecodeError:
            raise DataError(f"{root / places[0]} is no text in UTF-8") from None
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                missing = [key for key in ("file_name", column) if not isinstance(row.get(key), str)]
            except (ValueError, AttributeError):
                raise DataError(f"{root / places[0]}, line {number}, is no JSON object") from None
            if missing:
                key, found = missing[0], ", ".join(map(repr, row)) or "nothing"
                wrong = f"no {key!r}: it has {found}"
                if key in row:
                    wrong = f"{row[key]!r} as {key!r}, which is no text"
                raise DataError(f"{root / places[0]}, line {number}, has {wrong}")
            self.rows.append(row)

    def __len__(self) -> int:
        return len(self.rows)

    def picture(self, index: int) -> Image.Image:
        """The picture in RGBA.

        Raises:
            DataError: it is missing or cannot be decoded; the message names the file.
        """
        return decoded(self.archive, str(self.place / self.rows[index]["file_name"]))


def decoded(archive: Archive, name: str) -> Image.Image:
    """A picture of an archive, in RGBA.

    Raises:
        DataError: it is missing or cannot be decoded; the message names the file.
    """
    data = archive.read(name)
    try:
        return Image.open(io.BytesIO(data)).convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "its format is unknown" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{archive.root / name} is not a readable picture: {reason}") from None


def _zip_or_folder(root: Path) -> Path:
    """`root` itself, or the zip in it that has captions, where no metadata lie in the folder."""
    if not root.is_dir() or any(root.rglob(METADATA)):
        return root
    zips = [path for path in sorted(root.glob("*.zip")) if any(n.endswith(METADATA) for n in Archive(path).names())]
    return zips[0] if len(zips) == 1 else root
