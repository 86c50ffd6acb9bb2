"""A user's pictures: with captions in `metadata.jsonl` or in a text file beside each picture, or with one prompt."""

from pathlib import Path, PurePosixPath

from PIL import Image

from diffusion_peft.data.captioned import METADATA, CaptionedFolder, decoded
from diffusion_peft.data.drawn import Drawn, Key
from peft_kernels.archive import Archive
from peft_kernels.data_errors import DataError

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}


class FolderPictures:
    """Every picture with its caption, in RGB on white; asked for by `(epoch, index)`, the same in every epoch.

    Args:
        root: folder or zip.
        column: of the captions in `metadata.jsonl`. Without such a file `1.txt` beside `1.png` holds its caption.
        prompt: the caption of all pictures; the metadata are then not read.
        least: pixels that the shorter side has to have.

    Raises:
        DataError: there are no pictures, or no captions.
    """

    def __init__(self, root: Path, column: str = "text", prompt: str | None = None, least: int = 1):
        self.root, self.least = root, least
        self.archive = Archive(root)
        files = self.archive.names()
        self.names = [name for name in files if PurePosixPath(name).suffix.lower() in ENDINGS]
        texts = {name for name in files if name.endswith(".txt")}
        beside = [str(PurePosixPath(name).with_suffix(".txt")) for name in self.names]
        if prompt is not None:
            self.captions = [prompt] * len(self.names)
        elif any(PurePosixPath(name).name == METADATA for name in files):
            folder = CaptionedFolder(root, column)
            self.names = [str(folder.place / row["file_name"]) for row in folder.rows]
            self.captions = [row[column] for row in folder.rows]
        elif texts.intersection(beside):
            self.captions = [self._caption(name, text, texts) for name, text in zip(self.names, beside, strict=True)]
        elif self.names:
            raise DataError(
                f"{root} has no captions: {METADATA} with lines such as "
                f'{{"file_name": "1.png", "{column}": "..."}} is missing, and so is a text file beside each picture; '
                "or add --data.prompt WORDS for all"
            )
        if not self.names:
            raise DataError(f"{root} holds no pictures ({', '.join(sorted(ENDINGS))})")

    def _caption(self, name: str, text: str, texts: set[str]) -> str:
        if text not in texts:
            raise DataError(f"{self.root / name} has no caption, as others have: {PurePosixPath(text).name} is missing")
        try:
            return " ".join(self.archive.read(text).decode("utf-8-sig").split())
        except UnicodeDecodeError:
            raise DataError(f"{self.root / text} is no text in UTF-8") from None

    def __len__(self) -> int:
        return len(self.names)

    def drawn(self, key: Key) -> Drawn:
        """A picture and its caption.

        Raises:
            DataError: the picture is missing, broken or too small; the message names the file.
        """
        name = self.names[key[1]]
        image = on_white(decoded(self.archive, name), str(self.root / name), self.least)
        return Drawn(image, self.captions[key[1]], None)


def on_white(picture: Image.Image, source: str, least: int) -> Image.Image:
    """An RGBA picture as RGB.

    Raises:
        DataError: its shorter side has fewer than `least` pixels.
    """
    if min(picture.size) < least:
        raise DataError(
            f"{source} has {picture.width} x {picture.height} pixels, and {least} are trained on: leave it out, lower "
            "--data.size, or add --data.enlarge true"
        )
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
