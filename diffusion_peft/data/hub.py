"""Captioned pictures that `datasets` loads: of the Hugging Face hub, or by one of its builders (`imagefolder`)."""

from typing import Any

from PIL import Image

from diffusion_peft.data.drawn import Drawn, Key
from diffusion_peft.data.folder import on_white
from peft_kernels.config import nearest
from peft_kernels.data_errors import DataError


class HubPictures:
    """The training part of a dataset with a column of pictures and one of captions, in RGB on white.

    Args:
        name: as `datasets.load_dataset` takes it.
        root: its `data_dir`.
        column: of the captions.
        prompt: the caption of all pictures, instead.
        least: pixels that the shorter side has to have.

    Raises:
        DataError: it cannot be loaded, or has no such columns.
    """

    def __init__(self, name: str, root: str | None, column: str, prompt: str | None, least: int):
        import datasets  # late: it takes a second to import

        try:
            self.rows: Any = datasets.load_dataset(name, data_dir=root, split="train")
        except (OSError, ValueError, ConnectionError) as error:
            raise DataError(f"the dataset {name} cannot be loaded: {' '.join(str(error).split())}") from None
        columns = self.rows.features
        pictures = [key for key, feature in columns.items() if isinstance(feature, datasets.Image)]
        if not pictures:
            raise DataError(f"the dataset {name} has no column of pictures: it has {', '.join(columns)}")
        if prompt is None and column not in columns:
            raise DataError(
                f"the dataset {name} has no column {column!r}{nearest(column, columns)}: name that of captions with "
                "--data.column, or add --data.prompt, one for all pictures"
            )
        self.name, self.image, self.column, self.prompt, self.least = name, pictures[0], column, prompt, least

    def __len__(self) -> int:
        return len(self.rows)

    def drawn(self, key: Key) -> Drawn:
        """A picture and its caption.

        Raises:
            DataError: the picture is broken or too small; the message tells its number.
        """
        try:
            row = self.rows[key[1]]
            picture = row[self.image].convert("RGBA")
        except (OSError, SyntaxError, ValueError, AttributeError, Image.DecompressionBombError) as error:
            raise DataError(f"picture {key[1]} of the dataset {self.name} cannot be read: {error}") from None
        image = on_white(picture, f"picture {key[1]} of the dataset {self.name}", self.least)
        return Drawn(image, str(row[self.column]) if self.prompt is None else self.prompt, None)
