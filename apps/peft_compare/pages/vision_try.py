"""A visitor's own pictures: those to train on, and one to try on all adapted models at once."""

from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from peft_compare.frame import Frame
from peft_compare.refusals import RefusedError


@dataclass
class Upload:
    """The fields of an upload: the file, the id of what was accepted, and what is said about it."""

    file: gr.File
    place: gr.Textbox
    said: gr.HTML


def build_upload(frame: Frame, data: gr.Radio, mine: str) -> Upload:
    """The fields; they show while the visitor's own pictures are chosen."""
    with gr.Column(visible=False) as column:
        file = gr.File(label="A zip of class folders", file_types=[".zip"])
        said = gr.HTML()
    place = gr.Textbox(visible="hidden", label="upload")
    data.change(
        lambda chosen: gr.Column(visible=chosen == mine),
        data,
        column,
        show_progress="hidden",
        queue=False,
        api_visibility="private",
    )
    return Upload(file, place, said)


def uploaded(frame: Frame, place: str) -> tuple[Path, int]:
    """The folder of an accepted upload and its number of classes.

    Raises:
        RefusedError: there is none.
    """
    raise RefusedError("choose the pictures first: a zip of class folders")


def build(frame: Frame, example: str) -> None:
    """The field to draw or upload a picture in, and the answers."""
