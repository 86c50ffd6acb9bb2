"""The first move of the Diffusion page: pipeline, pictures, task, methods and budget."""

from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from peft_compare import diffusion_request as request_of
from peft_compare.diffusion_budget import solve
from peft_compare.diffusion_request import TASKS, Choice
from peft_compare.diffusion_sets import thumbnails
from peft_compare.frame import HIDDEN, Frame
from peft_compare.look import glyph, notice
from peft_compare.pages import diffusion_own
from peft_compare.parts.pictures import thumbnails as drawn
from peft_compare.refusals import RefusedError

DRAWN, MINE = "The drawn set", "My pictures"
OWN, EQUAL = "Each its own size", "Equal for all"


@dataclass
class Form:
    """The fields of the first move."""

    task: gr.Dropdown
    pipeline: gr.Dropdown
    data: gr.Radio
    own: diffusion_own.Own
    named: gr.Textbox
    kind: gr.Textbox
    methods: gr.CheckboxGroup
    budget: gr.Radio
    parameters: gr.Number
    seeds: gr.Dropdown
    epochs: gr.Number
    judged: gr.Number
    layers: gr.State
    sizes: dict[str, gr.Number]
    rates: dict[str, gr.Number]

    @property
    def inputs(self) -> list[Any]:
        """In the order that `read` takes them."""
        plain: list[Any] = [
            self.task,
            self.pipeline,
            self.data,
            self.own.place,
            self.own.captions,
            self.named,
            self.kind,
        ]
        plain += [self.methods, self.budget, self.parameters]
        plain += [self.seeds, self.epochs, self.judged, self.layers]
        return [*plain, *self.sizes.values(), *self.rates.values()]

    def read(self, frame: Frame, values: list[Any]) -> Choice:
        """What the visitor asks for.

        Raises:
            RefusedError: the upload is missing, or the pipeline is a folder of this machine and the visitor is not.
        """
        task, pipeline, data, place, captions, named, kind, *rest = values
        frame.settings.check_model(str(pipeline or "").strip())
        methods, budget, parameters, seeds, epochs, judged, layers, *each = rest
        sizes = dict(zip(self.sizes, each, strict=False))
        rates = dict(zip(self.rates, each[len(self.sizes) :], strict=True))
        mine = data == MINE and TASKS[task].drawn is not None
        return Choice(
            methods=tuple(methods),
            task=str(task),
            pipeline=str(pipeline or "").strip(),
            pictures=diffusion_own.chosen(frame, place, captions) if mine else None,
            subject=(str(named or ""), str(kind or "")),
            epochs=int(epochs or 0),
            seeds=int(seeds),
            judged=int(judged or 0),
            budget=int(parameters or 0) if budget == EQUAL else None,
            sizes={name: int(value) for name, value in sizes.items() if value is not None},
            rates={name: float(value) for name, value in rates.items() if value is not None},
            layers=tuple(layers or ()) if task == "spelling" else (),
        )


def build(frame: Frame) -> tuple[Form, gr.HTML, gr.Button]:
    """The form, the place of its errors, and the button."""
    first = TASKS["style"]
    gr.HTML('<h2 class="move"><span>1</span>Choose</h2>')
    task = gr.Dropdown(
        [(one.title, name) for name, one in TASKS.items()], value="style", label="Task", elem_id="diffusion-task"
    )
    about = gr.HTML(_about("style"))
    pipeline = gr.Dropdown(
        ["mini_sd"],
        value="mini_sd",
        label="Pipeline",
        info="Embedded, a folder in diffusers' format, or a name of the hub.",
        allow_custom_value=True,
    )
    data = gr.Radio([DRAWN, MINE], value=DRAWN, label="Pictures", elem_id="diffusion-data")
    pictures = gr.HTML(_pictures("style"), elem_id="diffusion-set")
    own = diffusion_own.build(frame, data, MINE)
    with gr.Row(visible=False) as subject:
        named = gr.Textbox("sks fish", label="The subject's words", min_width=110)
        kind = gr.Textbox("fish", label="Its class", min_width=90)
    methods = gr.CheckboxGroup(
        list(request_of.offered("style")),
        value=list(first.first),
        label="Methods",
        elem_classes="methods",
        elem_id="diffusion-methods",
    )
    budget = gr.Radio([OWN, EQUAL], value=OWN, label="Trainable parameters")
    parameters = gr.Number(100_000, label="Parameters", precision=0, minimum=1, visible=False)
    solved = gr.HTML()
    with gr.Row():
        seeds = gr.Dropdown([1, 2, 3, 5], value=1, label="Seeds", min_width=80)
        epochs = gr.Number(
            first.epochs,
            label="Epochs",
            precision=0,
            minimum=1,
            maximum=request_of.MOST_EPOCHS,
            min_width=80,
            elem_id="diffusion-epochs",
        )
        judged = gr.Number(
            32,
            label="Judged by",
            info="pictures",
            precision=0,
            minimum=2,
            maximum=request_of.MOST_JUDGED,
            min_width=80,
            elem_id="diffusion-judged",
        )
    sizes: dict[str, gr.Number] = {}
    rates: dict[str, gr.Number] = {}
    rows: dict[str, gr.Row] = {}
    every = list(dict.fromkeys(name for known in TASKS for name in request_of.offered(known)))
    with gr.Accordion("Settings of each method", open=False):
        for name in every:
            size, value, rate = request_of.own_settings(_task_of(name), name)
            with gr.Row(visible=name in first.first) as row:
                if size is not None:
                    sizes[name] = gr.Number(value, label=f"{name}: {size}", precision=0, minimum=1, min_width=100)
                rates[name] = gr.Number(rate, label=f"{name}: learning rate", minimum=0, min_width=100)
            rows[name] = row
    failed = gr.HTML(elem_id="diffusion-not-started")
    start = gr.Button("Run it yourself", variant="primary", elem_id="diffusion-start")
    layers = gr.State(())
    form = Form(
        task=task,
        pipeline=pipeline,
        data=data,
        own=own,
        named=named,
        kind=kind,
        methods=methods,
        budget=budget,
        parameters=parameters,
        seeds=seeds,
        epochs=epochs,
        judged=judged,
        layers=layers,
        sizes=sizes,
        rates=rates,
    )

    def turn(task: str) -> list[Any]:
        """Another task: its set, its methods and what is usual for these."""
        chosen, known = TASKS[task], request_of.offered(task)
        usual = {name: request_of.own_settings(task, name) for name in known}
        return [
            _about(task),
            gr.Radio(visible=chosen.drawn is not None, value=DRAWN),
            _pictures(task),
            gr.Row(visible=task == "subject"),
            gr.CheckboxGroup(choices=list(known), value=list(chosen.first)),
            chosen.epochs,
            *(usual[name][1] if name in usual else gr.skip() for name in sizes),
            *(usual[name][2] if name in usual else gr.skip() for name in rates),
        ]

    def settle(chosen: list[str], budget: str) -> list[Any]:
        return [gr.Number(visible=budget == EQUAL), *(gr.Row(visible=name in chosen) for name in rows)]

    def divide(*values: Any) -> str:
        """What each method gets of the budget."""
        try:
            choice = form.read(frame, list(values))
            if choice.budget is None or not choice.methods:
                return ""
            found = solve(choice.pipeline, TASKS[choice.task].recipe, choice.methods, choice.budget)
        except RefusedError as refusal:
            return notice("error", "", f"{refusal}.")
        lines = "".join(
            f"<li>{glyph(share.method)}{escape(share.method)}: "
            + (f"{share.field} {share.value:,}, " if share.field else "")
            + f"{share.parameters:,}{'' if share.field else ' (one size only)'}</li>"
            for share in found
        )
        return f'<ul class="notes" aria-label="Sizes chosen">{lines}</ul>'

    turned = [about, data, pictures, subject, methods, epochs, *sizes.values(), *rates.values()]
    task.change(turn, task, turned, **HIDDEN)
    data.change(lambda chosen: gr.HTML(visible=chosen == DRAWN), data, pictures, **HIDDEN)
    gr.on([methods.change, budget.change], settle, [methods, budget], [parameters, *rows.values()], **HIDDEN)
    dividing = [methods.change, budget.change, parameters.change, pipeline.change]
    gr.on(dividing, divide, form.inputs, solved, trigger_mode="always_last", **HIDDEN)
    return form, failed, start


def _task_of(method: str) -> str:
    """The first task that a method can do."""
    return next(name for name in TASKS if method in request_of.offered(name))


def _about(task: str) -> str:
    return f'<p class="quiet">{escape(TASKS[task].about)}</p>'


def _pictures(task: str) -> str:
    """The first pictures of the task's own set."""
    name = TASKS[task].drawn
    if name is None:
        return '<p class="quiet">The pipeline draws the pictures that are to be reached itself, once.</p>'
    shown, count = thumbnails(name)
    return drawn(shown, name, count)
