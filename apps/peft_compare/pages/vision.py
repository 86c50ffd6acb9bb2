"""The Vision page: choose a model, data and methods; watch them train; compare what came of it."""

from typing import Any

import gradio as gr

from peft_compare import vision_request as request_of
from peft_compare import vision_view as view
from peft_compare.frame import EXAMPLES, HIDDEN, SAYING, Frame
from peft_compare.guard import owner_of
from peft_compare.look import notice
from peft_compare.pages import vision_choose, vision_try
from peft_compare.parts.pins import PINS
from peft_compare.runs import ENDED, Run

NAME, TITLE = "vision", "Vision"
EXAMPLE = "digits"
WHAT = "Choose methods on the left and start; their progress, curves and figures will stand here."
EXAMPLE_SAID = "It came with the app, as the same command wrote it. Choose methods on the left and run it yourself."


def build(frame: Frame) -> None:
    """Lay the page out and connect it."""
    with gr.Row(elem_classes="moves"):
        with gr.Column(scale=2, min_width=280, elem_classes="card"):
            form, start = vision_choose.build(frame)
        with gr.Column(scale=6, min_width=320):
            with gr.Column(elem_classes="card"):
                gr.HTML('<h2 class="move"><span>2</span>Watch</h2>')
                watched = gr.HTML(elem_id="watched")
                cancel = gr.Button("Cancel", visible=False, size="sm")
                curves = gr.HTML()
            with gr.Column(elem_classes="card"):
                gr.HTML('<h2 class="move"><span>3</span>Compare</h2>')
                compared = gr.HTML(elem_id="compared", js_on_load=PINS)
                closely = gr.HTML(elem_id="closely")
                tried = vision_try.build(frame, EXAMPLE)
    seen = gr.State("")
    shown = [watched, cancel, curves, compared, closely, tried, seen]

    def show(run_id: str, seen: str) -> tuple[Any, ...]:
        """The open run, or the example; only what has changed since it was last seen."""
        run = frame.find(run_id or EXAMPLE)
        if run is None or run.request.page != NAME:
            run = frame.find(EXAMPLE)
        if run is None:
            empty = notice("empty", "Nothing yet.", WHAT)
            return "", gr.Button(visible=False), "", empty, "", gr.skip(), ""
        state, key = run.state, frame.key_of(run)
        if key == seen:
            return tuple([gr.skip()] * len(shown))
        results = view.results_of(run) if state in ENDED else None
        watched = view.watch(run, frame.queue.position(run))
        if run.path.parent == EXAMPLES:
            watched = notice("kept", "A finished comparison to look at.", EXAMPLE_SAID)
        names = view.finished_methods(run) if results else []
        return (
            watched,
            gr.Button(visible=state in ("queued", "running")),
            view.final_curves(results) if results else view.live_curves(run),
            view.compared(run) if results else notice("empty", "Figures come when the training is done.", ""),
            view.looked_closer(run, ()) if names else "",
            gr.Column(visible=bool(names)),
            key,
        )

    def begin(request: gr.Request, *values: Any) -> tuple[Any, ...]:
        def start() -> Run:
            choice = form.read(frame, list(values))
            words = request_of.words_of(choice)
            return frame.queue.add(NAME, request_of.name_of(choice), "vision-peft", words, owner_of(request.cookies))

        return frame.started(request, start)

    def stop(run_id: str, seen: str, request: gr.Request) -> tuple[Any, ...]:
        frame.cancel(request, run_id)
        return show(run_id, seen)

    def look_closer(run_id: str, event: gr.EventData) -> str:
        run = frame.find(run_id or EXAMPLE)
        return "" if run is None else view.looked_closer(run, list(getattr(event, "methods", None) or ()))

    gr.on([frame.opened.change, frame.clock.tick], show, [frame.opened, seen], shown, **HIDDEN)
    frame.blocks.load(show, [frame.opened, seen], shown, **HIDDEN)
    start.button.click(begin, form.inputs, [start.failed, frame.opened, frame.listed, frame.clock], **HIDDEN)
    cancel.click(stop, [frame.opened, seen], shown, **SAYING)
    compared.pin(look_closer, frame.opened, closely, trigger_mode="always_last", **HIDDEN)
