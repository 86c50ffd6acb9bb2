"""The Vision page: choose a model, data and methods; watch them train; compare what came of it."""

from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from peft_compare import vision_request as request_of
from peft_compare import vision_view as view
from peft_compare.frame import EXAMPLES, HIDDEN, SAYING, Frame
from peft_compare.guard import owner_of
from peft_compare.look import glyph, notice
from peft_compare.pages import vision_try
from peft_compare.refusals import RefusedError
from peft_compare.runs import ENDED
from peft_compare.vision_request import Choice

NAME, TITLE = "vision", "Vision"
EXAMPLE = "digits"
MODELS = ["vit_mini", "vit_base_patch16_224.augreg_in21k", "convnext_tiny.fb_in22k"]
FIRST = ["linear_probe", "bitfit", "lora", "snell"]
DIGITS, MINE = "Handwritten digits", "My pictures"
OWN, EQUAL = "Each its own size", "Equal for all"


@dataclass
class Form:
    """The fields of the first move."""

    model: gr.Dropdown
    data: gr.Radio
    upload: vision_try.Upload
    methods: gr.CheckboxGroup
    budget: gr.Radio
    parameters: gr.Number
    seeds: gr.Dropdown
    epochs: gr.Number
    sizes: dict[str, gr.Number]
    rates: dict[str, gr.Number]

    @property
    def inputs(self) -> list[Any]:
        """In the order that `read` takes them."""
        plain = [self.model, self.data, self.upload.place, self.methods, self.budget, self.parameters]
        return [*plain, self.seeds, self.epochs, *self.sizes.values(), *self.rates.values()]

    def read(self, frame: Frame, values: list[Any]) -> Choice:
        """What the visitor asks for.

        Raises:
            RefusedError: the upload is missing, or the model is a folder of this machine and the visitor is not.
        """
        frame.settings.check_model(str(values[0] or "").strip())
        model, data, place, methods, budget, parameters, seeds, epochs = values[:8]
        sizes = dict(zip(self.sizes, values[8 : 8 + len(self.sizes)], strict=True))
        rates = dict(zip(self.rates, values[8 + len(self.sizes) :], strict=True))
        folder = None if data == DIGITS else vision_try.uploaded(frame, place)
        return Choice(
            methods=tuple(methods),
            model=str(model or "").strip(),
            data=folder,
            epochs=int(epochs or 0),
            seeds=int(seeds),
            budget=int(parameters or 0) if budget == EQUAL else None,
            sizes={name: int(value) for name, value in sizes.items() if value is not None},
            rates={name: float(value) for name, value in rates.items() if value is not None},
        )


def build(frame: Frame) -> None:
    """Lay the page out and connect it."""
    with gr.Row(elem_classes="moves"):
        with gr.Column(scale=2, min_width=280, elem_classes="card"):
            form, chosen, start = _choose(frame)
        with gr.Column(scale=6, min_width=320):
            with gr.Column(elem_classes="card"):
                gr.HTML('<h2 class="move"><span>2</span>Watch</h2>')
                watched = gr.HTML(elem_id="watched")
                cancel = gr.Button("Cancel", visible=False, size="sm")
                curves = gr.HTML()
            with gr.Column(elem_classes="card"):
                gr.HTML('<h2 class="move"><span>3</span>Compare</h2>')
                compared = gr.HTML(elem_id="compared")
                with gr.Row(visible=False) as closer:
                    first = gr.Dropdown([], label="Look closer at", interactive=True)
                    second = gr.Dropdown([], label="and where it differs from", interactive=True)
                closely = gr.HTML()
                tried = vision_try.build(frame, EXAMPLE)
    seen = gr.State("")

    def show(run_id: str, seen: str) -> tuple[Any, ...]:
        """The open run, or the example; only what has changed since it was last seen."""
        run = frame.find(run_id or EXAMPLE)
        if run is None or run.request.page != NAME:
            run = frame.find(EXAMPLE)
        if run is None:
            return (
                "",
                gr.Button(visible=False),
                "",
                notice("empty", "Nothing yet.", WHAT),
                *[gr.skip()] * 4,
                gr.skip(),
                "",
            )
        state, key = run.state, _key(run)
        if key == seen:
            return tuple([gr.skip()] * 10)
        results = view.results_of(run) if state in ENDED else None
        watched = view.watch(run, frame.queue.position(run))
        if run.path.parent == EXAMPLES:
            watched = notice("kept", "A finished comparison to look at.", EXAMPLE_SAID)
        names = view.finished_methods(run) if results else []
        new = seen.partition("/")[0] != run.id or state in ENDED
        chosen = (names[0], names[-1]) if names else ("", "")
        return (
            watched,
            gr.Button(visible=state in ("queued", "running")),
            view.final_curves(results) if results else view.live_curves(run),
            view.compared(run) if results else notice("empty", "Figures come when the training is done.", ""),
            gr.Row(visible=bool(names)),
            gr.Dropdown(choices=names, value=chosen[0] or None) if new else gr.skip(),
            gr.Dropdown(choices=names, value=chosen[1] or None) if new else gr.skip(),
            view.looked_closer(run, *chosen) if names else "",
            gr.Column(visible=bool(names)),
            key,
        )

    def _key(run: Any) -> str:
        stamps = [str(path.stat().st_mtime_ns) for path in sorted(run.out.glob("*/seed-*/metrics.jsonl"))]
        stamps += [str(path) for path in sorted(run.out.glob("*/seed-*/*.json"))]
        return "/".join([run.id, run.state, str(frame.queue.position(run)), str(hash(tuple(stamps)))])

    def begin(request: gr.Request, *values: Any) -> tuple[Any, ...]:
        """Put what was chosen at the end of the queue."""
        try:
            choice = form.read(frame, list(values))
            words = request_of.words_of(choice)
            run = frame.queue.add(NAME, request_of.name_of(choice), "vision-peft", words, owner_of(request.cookies))
        except RefusedError as refusal:
            return notice("error", "Not started.", f"{refusal}."), gr.skip(), gr.skip(), gr.skip()
        return "", run.id, frame.list_of(request, run.id), frame.pace(request, run.id)

    def stop(run_id: str, seen: str, request: gr.Request) -> tuple[Any, ...]:
        frame.cancel(request, run_id)
        return show(run_id, seen)

    def look_closer(run_id: str, first: str, second: str) -> str:
        run = frame.find(run_id or EXAMPLE)
        return "" if run is None else view.looked_closer(run, first, second)

    shown = [watched, cancel, curves, compared, closer, first, second, closely, tried, seen]
    gr.on([frame.opened.change, frame.clock.tick], show, [frame.opened, seen], shown, **HIDDEN)
    frame.blocks.load(show, [frame.opened, seen], shown, **HIDDEN)
    start.click(begin, form.inputs, [chosen, frame.opened, frame.listed, frame.clock], **HIDDEN)
    cancel.click(stop, [frame.opened, seen], shown, **SAYING)
    for picked in (first, second):
        picked.input(look_closer, [frame.opened, first, second], closely, **HIDDEN)


WHAT = "Choose methods on the left and start; their progress, curves and figures will stand here."
EXAMPLE_SAID = "It came with the app, as the same command wrote it. Choose methods on the left and run it yourself."


def _choose(frame: Frame) -> tuple[Form, gr.HTML, gr.Button]:
    """The first move: the form, the place of its errors, and the button."""
    gr.HTML('<h2 class="move"><span>1</span>Choose</h2>')
    model = gr.Dropdown(
        MODELS, value="vit_mini", label="Model", info="Embedded, or any name of timm's.", allow_custom_value=True
    )
    data = gr.Radio([DIGITS, MINE], value=DIGITS, label="Data")
    upload = vision_try.build_upload(frame, data, MINE)
    offered = request_of.offered()
    methods = gr.CheckboxGroup([(name, name) for name in offered], value=FIRST, label="Methods", elem_id="methods")
    budget = gr.Radio([OWN, EQUAL], value=OWN, label="Trainable parameters")
    parameters = gr.Number(40_000, label="Parameters, without the head", precision=0, minimum=1, visible=False)
    solved = gr.HTML()
    with gr.Row():
        seeds = gr.Dropdown([1, 2, 3, 5], value=1, label="Seeds", min_width=90)
        epochs = gr.Number(7, label="Epochs", precision=0, minimum=1, maximum=request_of.MOST_EPOCHS, min_width=90)
    sizes: dict[str, gr.Number] = {}
    rates: dict[str, gr.Number] = {}
    rows: list[gr.Row] = []
    with gr.Accordion("Settings of each method", open=False):
        for name in offered:
            size, value, rate = request_of.own_settings(name)
            with gr.Row(visible=name in FIRST) as row:
                if size is not None:
                    sizes[name] = gr.Number(value, label=f"{name}: {size}", precision=0, minimum=1, min_width=100)
                rates[name] = gr.Number(rate, label=f"{name}: learning rate", minimum=0, min_width=100)
            rows.append(row)
    failed = gr.HTML(elem_id="not-started")
    start = gr.Button("Run it yourself", variant="primary", elem_id="start")
    form = Form(model, data, upload, methods, budget, parameters, seeds, epochs, sizes, rates)

    def settle(chosen: list[str], budget: str) -> list[Any]:
        return [gr.Number(visible=budget == EQUAL), *(gr.Row(visible=name in chosen) for name in offered)]

    def solve(*values: Any) -> str:
        """What each method gets of the budget."""
        try:
            choice = form.read(frame, list(values))
            if choice.budget is None or not choice.methods:
                return ""
            found = request_of.shares(choice)
        except RefusedError as refusal:
            return notice("error", "", f"{refusal}.")
        rows = "".join(
            f"<li>{glyph(share.method)}{escape(share.method)}: "
            + (f"{share.field} {share.value:,}, " if share.field else "")
            + f"{share.parameters:,}{'' if share.field else ' (one size only)'}</li>"
            for share in found
        )
        return f'<ul class="notes" aria-label="Sizes chosen">{rows}</ul>'

    gr.on([methods.change, budget.change], settle, [methods, budget], [parameters, *rows], **HIDDEN)
    solving = [methods.change, budget.change, parameters.change, model.change]
    gr.on(solving, solve, form.inputs, solved, trigger_mode="always_last", **HIDDEN)
    return form, failed, start
