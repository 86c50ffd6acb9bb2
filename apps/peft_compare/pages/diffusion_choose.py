"""The first move of the Diffusion page: pipeline, pictures, task, methods and budget."""

from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from peft_compare import diffusion_request as request_of
from peft_compare.budget import Share
from peft_compare.diffusion_budget import solve
from peft_compare.diffusion_request import TASKS, Choice
from peft_compare.diffusion_sets import copied, thumbnails
from peft_compare.frame import HIDDEN, Frame
from peft_compare.pages import diffusion_own, start_button
from peft_compare.pages.method_settings import Budget, MethodSettings, build_budget, build_settings
from peft_compare.pages.start_button import Start
from peft_compare.parts.pictures import thumbnails as drawn
from peft_runs.families import DIFFUSION

DRAWN, MINE = "The drawn set", "My pictures"


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
    budget: Budget
    seeds: gr.Dropdown
    epochs: gr.Number
    judged: gr.Number
    layers: gr.State
    settings: MethodSettings

    @property
    def inputs(self) -> list[Any]:
        """In the order that `read` takes them."""
        plain: list[Any] = [self.task, self.pipeline, self.data, self.own.place, self.own.captions]
        plain += [self.named, self.kind, self.methods, self.budget.switch, self.budget.parameters]
        return [*plain, self.seeds, self.epochs, self.judged, self.layers, *self.settings.fields]

    def read(self, frame: Frame, values: list[Any]) -> Choice:
        """What the visitor asks for.

        Raises:
            RefusedError: the upload is missing, or the pipeline is a folder of this machine and the visitor is not.
        """
        task, pipeline, data, place, captions, named, kind, *rest = values
        frame.settings.check_model(str(pipeline or "").strip())
        methods, switch, parameters, seeds, epochs, judged, layers, *each = rest
        sizes, rates = self.settings.read(each)
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
            budget=self.budget.read(switch, parameters),
            sizes=sizes,
            rates=rates,
            layers=tuple(layers or ()) if task == "spelling" else (),
        )


def build(frame: Frame) -> tuple[Form, Start]:
    """The form, and the button with what stands beside it."""
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
    with gr.Column() as embedded:
        pictures = gr.HTML(_pictures("style"), elem_id="diffusion-set")
        anew = gr.Button("Write its captions anew", size="sm", elem_id="captions-anew")
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
    budget = build_budget(100_000, "Parameters")
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
    every = list(dict.fromkeys(name for known in TASKS for name in request_of.offered(known)))
    settings = build_settings({name: request_of.own_settings(_task_of(name), name) for name in every}, first.first)
    start = start_button.build("diffusion-")
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
        seeds=seeds,
        epochs=epochs,
        judged=judged,
        layers=layers,
        settings=settings,
    )

    def turn(task: str) -> list[Any]:
        """Another task: its set, its methods and what is usual for these."""
        chosen, known = TASKS[task], request_of.offered(task)
        usual = {name: request_of.own_settings(task, name) for name in known}
        return [
            _about(task),
            gr.Radio(visible=chosen.drawn is not None, value=DRAWN),
            _pictures(task),
            gr.Button(visible=chosen.drawn is not None),
            gr.Row(visible=task == "subject"),
            gr.CheckboxGroup(choices=list(known), value=list(chosen.first)),
            chosen.epochs,
            *(usual[name][1] if name in usual else gr.skip() for name in settings.sizes),
            *(usual[name][2] if name in usual else gr.skip() for name in settings.rates),
        ]

    def copy(task: str) -> tuple[Any, ...]:
        """The drawn set as the visitor's own, with its captions to be written anew."""
        return MINE, *diffusion_own.told(copied(str(TASKS[task].drawn), frame.settings.runs))

    def divide(*values: Any) -> list[Share]:
        choice = form.read(frame, list(values))
        if choice.budget is None or not choice.methods:
            return []
        return solve(choice.pipeline, TASKS[choice.task].recipe, choice.methods, choice.budget)

    def words(*values: Any) -> list[str]:
        return request_of.words_of(form.read(frame, list(values)))

    turned = [about, data, pictures, anew, subject, methods, epochs, *settings.fields]
    task.change(turn, task, turned, **HIDDEN)
    data.change(lambda chosen: gr.Column(visible=chosen == DRAWN), data, embedded, **HIDDEN)
    anew.click(copy, task, [data, *own.outputs], **HIDDEN)
    settings.follow(methods, budget)
    budget.solves(divide, form.inputs, [methods, pipeline])
    changes = [pipeline, data, own.captions, methods, budget.switch, budget.parameters, seeds, epochs, judged]
    start.estimates(frame, DIFFUSION, words, form.inputs, changes)
    return form, start


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
