"""A visitor's own pictures: those to train on, and one to try on all adapted models at once."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

import gradio as gr

from peft_compare import uploads
from peft_compare.frame import HIDDEN, Frame
from peft_compare.look import notice, scroll
from peft_compare.parts.folder import PACK, folder_field
from peft_compare.parts.guesses import DRAW, FIELD, guesses, waiting
from peft_compare.predictor import Predictor
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
        file = gr.File(label="A zip of class folders", file_types=[".zip"], height=150, elem_id="upload")
        most = frame.settings.limits.upload_bytes
        gr.HTML(folder_field("upload", "A folder of class folders instead", most), js_on_load=PACK)
        said = gr.HTML(notice("empty", "CLASS/PICTURE", WANTED), elem_id="uploaded")
    place = gr.Textbox(visible="hidden", label="upload")

    def accept(sent: str | None) -> Iterator[tuple[str, str]]:
        """Look through what was sent."""
        if sent is None:
            yield "", notice("empty", "CLASS/PICTURE", WANTED)
            return
        yield "", '<p class="quiet" role="status">Looking through the pictures…</p>'
        try:
            found = uploads.accept(Path(sent), frame.settings.runs, frame.settings.limits)
        except RefusedError as refusal:
            yield "", notice("error", "Not accepted.", f"{refusal}.")
        else:
            yield found.id, accepted(found)

    quietly = {**HIDDEN, "queue": True}
    data.change(lambda chosen: gr.Column(visible=chosen == mine), data, column, **HIDDEN)
    file.change(accept, file, [place, said], **quietly)
    return Upload(file, place, said)


WANTED = (
    "A zip with a folder for each class. Every fifth picture is kept for testing, unless train/ and test/ say more."
)


def accepted(found: uploads.Summary) -> str:
    """The classes with some of their pictures."""
    rows = "".join(
        f'<tr><th scope="row">{escape(label)}</th><td><span class="samples">'
        + "".join(f'<img src="{address}" alt="">' for address in found.thumbnails.get(label, []))
        + f"</span></td><td>{found.train.get(label, 0)}</td><td>{found.test.get(label, 0)}</td></tr>"
        for label in sorted({*found.train, *found.test})
    )
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("class", "pictures", "train", "test"))
    table = f'<table class="data"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    return scroll("Classes of your pictures", table)


def uploaded(frame: Frame, place: str) -> Path:
    """The folder of an accepted upload.

    Raises:
        RefusedError: there is none.
    """
    if uploads.find(frame.settings.runs, place) is None:
        raise RefusedError("no pictures are chosen: send a zip of class folders, or choose the digits")
    return frame.settings.runs / uploads.FOLDER / place


def build(frame: Frame, example: str) -> gr.Column:
    """The field to draw in and the answers; the column, so that the page can hide it."""
    predictor = Predictor()
    frame.closing.append(predictor.close)
    with gr.Column(visible=False) as column:
        gr.HTML('<h3 class="sub">Try a picture</h3>')
        with gr.Row():
            with gr.Column(scale=1, min_width=250):
                field = gr.HTML(FIELD, js_on_load=DRAW)
            with gr.Column(scale=3, min_width=260):
                seen = gr.HTML(waiting())

    def ask(run_id: str, event: gr.EventData) -> str:
        """What the models of the open run see."""
        run = frame.find(run_id or example)
        if run is None:
            return notice("error", "There is no such run.", "")
        try:
            return guesses(predictor.ask(run, str(getattr(event, "picture", ""))))
        except RefusedError as refusal:
            return notice("error", "No answer.", f"{refusal}.")

    field.ask(ask, frame.opened, seen, show_progress="minimal", api_visibility="private", trigger_mode="always_last")
    field.clear(waiting, None, seen, **HIDDEN)
    return column
