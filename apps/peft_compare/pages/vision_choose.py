"""The first move of the Vision page: model, data, methods and budget."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from peft_compare import vision_request as request_of
from peft_compare import vision_view
from peft_compare.budget import Share
from peft_compare.files import find_example
from peft_compare.frame import EXAMPLES, HIDDEN, Frame
from peft_compare.pages import start_button, vision_try
from peft_compare.pages.method_settings import Budget, MethodSettings, build_budget, build_settings
from peft_compare.pages.start_button import Start
from peft_compare.parts.confusion import tile
from peft_compare.shown import TILES
from peft_compare.vision_request import Choice
from peft_runs.families import VISION

MODELS = ["vit_mini", "vit_base_patch16_224.augreg_in21k", "convnext_tiny.fb_in22k"]
FIRST = ["linear_probe", "bitfit", "lora", "snell"]
DIGITS, MINE = "Handwritten digits", "My pictures"


@dataclass
class Form:
    """The fields of the first move."""

    model: gr.Dropdown
    data: gr.Radio
    upload: vision_try.Upload
    methods: gr.CheckboxGroup
    budget: Budget
    seeds: gr.Dropdown
    epochs: gr.Number
    settings: MethodSettings

    @property
    def inputs(self) -> list[Any]:
        """In the order that `read` takes them."""
        plain = [self.model, self.data, self.upload.place, self.methods, self.budget.switch, self.budget.parameters]
        return [*plain, self.seeds, self.epochs, *self.settings.fields]

    def read(self, frame: Frame, values: list[Any]) -> Choice:
        """What the visitor asks for.

        Raises:
            RefusedError: the upload is missing, or the model is a folder of this machine and the visitor is not.
        """
        model, data, place, methods, switch, parameters, seeds, epochs, *each = values
        frame.settings.check_model(str(model or "").strip())
        sizes, rates = self.settings.read(each)
        return Choice(
            methods=tuple(methods),
            model=str(model or "").strip(),
            data=None if data == DIGITS else vision_try.uploaded(frame, place),
            epochs=int(epochs or 0),
            seeds=int(seeds),
            budget=self.budget.read(switch, parameters),
            sizes=sizes,
            rates=rates,
        )


def build(frame: Frame) -> tuple[Form, Start]:
    """The form, and the button with what stands beside it."""
    gr.HTML('<h2 class="move"><span>1</span>Choose</h2>')
    model = gr.Dropdown(
        MODELS, value="vit_mini", label="Model", info="Embedded, or any name of timm's.", allow_custom_value=True
    )
    data = gr.Radio([DIGITS, MINE], value=DIGITS, label="Data")
    digits = gr.HTML(_digits(), elem_id="digits")
    data.change(lambda chosen: gr.HTML(visible=chosen == DIGITS), data, digits, **HIDDEN)
    upload = vision_try.build_upload(frame, data, MINE)
    offered = request_of.offered()
    methods = gr.CheckboxGroup([(name, name) for name in offered], value=FIRST, label="Methods", elem_id="methods")
    budget = build_budget(40_000, "Parameters, without the head")
    with gr.Row():
        seeds = gr.Dropdown([1, 2, 3, 5], value=1, label="Seeds", min_width=90)
        epochs = gr.Number(7, label="Epochs", precision=0, minimum=1, maximum=request_of.MOST_EPOCHS, min_width=90)
    settings = build_settings({name: request_of.own_settings(name) for name in offered}, FIRST)
    start = start_button.build("", "start")
    form = Form(model, data, upload, methods, budget, seeds, epochs, settings)

    def solve(*values: Any) -> list[Share]:
        choice = form.read(frame, list(values))
        return request_of.shares(choice) if choice.budget is not None and choice.methods else []

    def words(*values: Any) -> list[str]:
        return request_of.words_of(form.read(frame, list(values)))

    settings.follow(methods, budget)
    budget.solves(solve, form.inputs, [methods, model])
    changes = [model, data, upload.place, methods, budget.switch, budget.parameters, seeds, epochs]
    start.estimates(frame, VISION, words, form.inputs, changes)
    return form, start


def _digits() -> str:
    """One of each class, from the sheet of the comparison that comes with the app."""
    run = find_example(EXAMPLES, "digits")
    shown = {} if run is None else vision_view.shown_of(run)
    classes, labels = shown.get("classes", []), shown.get("labels", [])
    address = f"/runs/digits/files/out/{TILES}"
    cells = "".join(f"<li>{tile(labels.index(n), shown, address, name)}</li>" for n, name in enumerate(classes))
    return f'<ul class="thumbs" aria-label="One digit of each class">{cells}</ul>'
