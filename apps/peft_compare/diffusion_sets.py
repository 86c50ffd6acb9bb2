"""Sets of captioned pictures: those that come drawn with the package, and a visitor's own."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from diffusion_peft.data.captioned import METADATA
from diffusion_peft.data.open import open_pictures
from peft_compare.captioned_uploads import Captioned
from peft_compare.uploads import SUMMARY, new_place, thumbnail
from peft_runs.durable import write_json, write_text

SHOWN, SIDE = 18, 64  # pictures that are shown; pixels of a side, as mini_sd draws


@dataclass(frozen=True)
class SetOfPictures:
    """A visitor's set: a folder of pictures with captions in its `metadata.jsonl`."""

    root: Path
    names: Sequence[str]
    captions: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def write(self) -> None:
        """Write the captions beside the pictures."""
        rows = zip(self.names, self.captions, strict=True)
        lines = [json.dumps({"file_name": name, "text": caption}, ensure_ascii=False) for name, caption in rows]
        write_text(self.root / METADATA, "\n".join(lines) + "\n")


def copied(name: str, runs: Path) -> Captioned:
    """A set that is drawn as pictures of a visitor's own, whose captions can be written anew."""
    pictures, place = open_pictures(name, None, "text", None, 1, SIDE), new_place(runs)
    drawn = [pictures.drawn((0, index)) for index in range(len(pictures))]
    names = [f"{index:05}.png" for index in range(len(drawn))]
    place.mkdir()
    for file, one in zip(names, drawn, strict=True):
        one.image.save(place / file)
    shown = [thumbnail(one.image) for one in drawn[:SHOWN]]
    found = Captioned(place.name, names, [one.caption for one in drawn], shown)
    write_json(place / SUMMARY, asdict(found))
    return found


@lru_cache(maxsize=8)
def thumbnails(name: str) -> tuple[list[tuple[str, str]], int]:
    """The first pictures of a set that is drawn, as addresses, with their captions; and how many there are in all."""
    pictures = open_pictures(name, None, "text", None, 1, SIDE)
    found = [pictures.drawn((0, index)) for index in range(min(SHOWN, len(pictures)))]
    return [(as_address(one.image), one.caption) for one in found], len(pictures)


def as_address(picture: Image.Image) -> str:
    """A picture as it stands in a page."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
