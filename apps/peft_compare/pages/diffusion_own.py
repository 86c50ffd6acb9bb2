"""A visitor's own captioned pictures: sent as a zip, looked at, their captions written anew."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from peft_compare import captioned_uploads as uploads
from peft_compare.diffusion_sets import SetOfPictures
from peft_compare.frame import HIDDEN, Frame
from peft_compare.look import notice
from peft_compare.parts.folder import PACK, folder_field
from peft_compare.parts.pictures import thumbnails
from peft_compare.refusals import RefusedError
from peft_compare.uploads import FOLDER

WANTED = (
    "A zip of pictures, with captions in metadata.jsonl or in a text file beside each; without, files' names are taken."
)


@dataclass
class Own:
    """The fields of an upload: the id of what was accepted, what is said of it, and its captions, one a line."""

    place: gr.Textbox
    said: gr.HTML
    captions: gr.Textbox

    @property
    def outputs(self) -> list[Any]:
        """What `told` fills."""
        return [self.place, self.said, self.captions]


def build(frame: Frame, data: gr.Radio, mine: str) -> Own:
    """The fields; they show while the visitor's own pictures are chosen."""
    with gr.Column(visible=False) as column:
        file = gr.File(label="A zip of pictures", file_types=[".zip"], height=150, elem_id="diffusion-upload")
        most = frame.settings.limits.upload_bytes
        gr.HTML(folder_field("diffusion-upload", "A folder of pictures instead", most), js_on_load=PACK)
        said = gr.HTML(notice("empty", "Pictures and captions.", WANTED), elem_id="diffusion-uploaded")
        captions = gr.Textbox(
            label="Captions", info="One a line, in the order of the pictures.", lines=4, max_lines=8, visible=False
        )
    place = gr.Textbox(visible="hidden", label="captioned upload")

    def accept(sent: str | None) -> Iterator[tuple[Any, ...]]:
        """Look through what was sent."""
        if sent is None:
            yield "", notice("empty", "Pictures and captions.", WANTED), gr.Textbox(visible=False)
            return
        yield "", '<p class="quiet" role="status">Looking through the pictures…</p>', gr.skip()
        try:
            found = uploads.accept(Path(sent), frame.settings.runs, frame.settings.limits)
        except RefusedError as refusal:
            yield "", notice("error", "Not accepted.", f"{refusal}."), gr.Textbox(visible=False)
        else:
            yield told(found)
        finally:
            Path(sent).unlink(missing_ok=True)

    data.change(lambda chosen: gr.Column(visible=chosen == mine), data, column, **HIDDEN)
    own = Own(place, said, captions)
    file.change(accept, file, own.outputs, **{**HIDDEN, "queue": True})
    return own


def told(found: uploads.Captioned) -> tuple[Any, ...]:
    """Id, thumbnails and captions of an accepted set, as the fields show them."""
    shown = list(zip(found.thumbnails, found.captions, strict=False))
    said = thumbnails(shown, "your set", len(found.names))
    return found.id, said, gr.Textbox("\n".join(found.captions), visible=True)


def chosen(frame: Frame, place: str, captions: str) -> SetOfPictures:
    """The accepted pictures with the captions as they stand in the field.

    Raises:
        RefusedError: there are none, or not as many captions.
    """
    found = uploads.find(frame.settings.runs, place)
    if found is None:
        raise RefusedError("no pictures are chosen: send a zip of pictures, or choose the drawn set")
    lines = [" ".join(line.split())[: uploads.LONGEST] for line in str(captions or "").splitlines() if line.strip()]
    if len(lines) != len(found.names):
        raise RefusedError(
            f"{len(lines)} captions stand in the field for {len(found.names)} pictures: write one line for each"
        )
    return SetOfPictures(frame.settings.runs / FOLDER / place, found.names, lines)
