"""From the data's name in a recipe to its captioned pictures."""

from pathlib import Path

from diffusion_peft.data.emoji_pictures import EmojiPictures
from diffusion_peft.data.folder import FolderPictures
from diffusion_peft.data.framing import Pictures
from diffusion_peft.data.hub import HubPictures
from diffusion_peft.data.spelling import SpelledPictures
from diffusion_peft.data.style import StylePictures
from diffusion_peft.data.subject import SubjectPictures
from peft_kernels.data_errors import DataError, UnknownNameError, unknown

DRAWN = {"style": StylePictures, "subject": SubjectPictures, "spelling": SpelledPictures}
EMOJI = "emoji"
NAMES = ("folder", EMOJI, *DRAWN)
HUB = "hfds/"  # as timm calls it


def open_pictures(name: str, root: str | None, column: str, prompt: str | None, least: int, size: int) -> Pictures:
    """The pictures that `name` names, with `prompt` as the caption of all, if given.

    Args:
        name: `folder`, a folder or zip at `root`; `emoji`, those at `root` on coloured grounds; `hfds/NAME` of
            `datasets`; `style`, `subject` or `spelling`, sets that are drawn when they are asked for.
        root: where the pictures lie.
        column: of the captions.
        prompt: one caption for all.
        least: pixels that the shorter side of a picture has to have.
        size: pixels along a side of pictures that are drawn.

    Raises:
        UnknownNameError: there is no such data; the nearest is told.
        DataError: they are not there, not readable, or have no captions.
    """
    if name.startswith(HUB):
        return HubPictures(name.removeprefix(HUB), root, column, prompt, least)
    if name not in NAMES:
        raise unknown("data", name, NAMES)
    if name in DRAWN:
        if root is not None or prompt is not None:
            raise DataError(f"the set {name!r} is drawn, with captions: data.root and data.prompt are for name folder")
        return DRAWN[name](size)
    if root is None:
        raise UnknownNameError("no pictures are named: add --data.root FOLDER_OR_ZIP")
    if name == EMOJI:
        if prompt is not None:
            raise DataError("the emoji have captions: data.prompt is for name folder")
        return EmojiPictures(Path(root).expanduser(), size)
    return FolderPictures(Path(root).expanduser(), column, prompt, least)
