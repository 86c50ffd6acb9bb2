"""The Diffusion page: choose, watch, compare; and draw with what was trained."""

from typing import Any

import gradio as gr

from peft_compare import diffusion_request as request_of
from peft_compare import diffusion_view as view
from peft_compare.frame import EXAMPLES, HIDDEN, SAYING, Frame
from peft_compare.guard import owner_of
from peft_compare.look import notice
from peft_compare.pages import diffusion_choose, diffusion_draw, diffusion_text
from peft_compare.runs import ENDED, Run
from peft_compare.vision_view import final_curves, live_curves, results_of, watch

NAME, TITLE, EXAMPLE = "diffusion", "Diffusion", "neon"
WHAT = "Choose methods on the left and start; their loss, samples and figures will stand here."
EXAMPLE_SAID = "It came with the app, as the same command wrote it. Choose methods on the left and run it yourself."


def build(frame: Frame) -> None:
    """Lay the page out and connect it."""
    with gr.Row(elem_classes="moves"):
        with gr.Column(scale=2, min_width=300, elem_classes="card"):
            form, start = diffusion_choose.build(frame)
        with gr.Column(scale=5, min_width=320):
            with gr.Column(elem_classes="card"):
                gr.HTML('<h2 class="move"><span>2</span>Watch</h2>')
                watched = gr.HTML(elem_id="diffusion-watched")
                cancel = gr.Button("Cancel", visible=False, size="sm", elem_id="diffusion-cancel")
                samples = gr.HTML(elem_id="diffusion-samples")
                curves = gr.HTML()
            with gr.Column(elem_classes="card"):
                gr.HTML('<h2 class="move"><span>3</span>Compare</h2>')
                compared = gr.HTML(elem_id="diffusion-compared")
                with gr.Column(visible=False) as tools:
                    drawing = diffusion_draw.build(frame, _found)
                diffusion_text.build(frame, form)
    seen = gr.State("")
    blank = (gr.skip(),) * len(drawing.outputs)

    def show(run_id: str, seen: str) -> tuple[Any, ...]:
        """The open run, or the example; only what has changed since it was last seen."""
        run = _found(frame, run_id)
        if run is None:
            empty = notice("empty", "Nothing yet.", WHAT)
            return ("", gr.Button(visible=False), "", "", empty, gr.Column(visible=False), *blank, "")
        state, key = run.state, frame.key_of(run)
        if key == seen:
            return tuple([gr.skip()] * (7 + len(blank)))
        results = results_of(run) if state in ENDED else None
        example = run.path.parent == EXAMPLES
        watched = watch(run, frame.queue.position(run))
        if example:
            watched = notice("kept", "A finished comparison to look at.", EXAMPLE_SAID)
        able = bool(results is not None and results.finished)
        return (
            watched,
            gr.Button(visible=state in ("queued", "running")),
            view.strips_of(run),
            final_curves(results) if results else live_curves(run),
            view.compared(run) if results else notice("empty", "Figures come when the training is done.", ""),
            gr.Column(visible=able),
            *(drawing.opened(run) if able else blank),
            key,
        )

    def begin(request: gr.Request, *values: Any) -> tuple[Any, ...]:
        def start() -> Run:
            choice = form.read(frame, list(values))
            words = request_of.words_of(choice)
            if choice.pictures is not None:
                choice.pictures.write()
            name, owner = request_of.name_of(choice), owner_of(request.cookies)
            return frame.queue.add(NAME, name, "diffusion-peft", words, owner)

        return frame.started(request, start)

    def stop(run_id: str, seen: str, request: gr.Request) -> tuple[Any, ...]:
        frame.cancel(request, run_id)
        return show(run_id, seen)

    shown = [watched, cancel, samples, curves, compared, tools, *drawing.outputs, seen]
    gr.on([frame.opened.change, frame.clock.tick], show, [frame.opened, seen], shown, **HIDDEN)
    frame.blocks.load(show, [frame.opened, seen], shown, **HIDDEN)
    start.button.click(begin, form.inputs, [start.failed, frame.opened, frame.listed, frame.clock], **HIDDEN)
    cancel.click(stop, [frame.opened, seen], shown, **SAYING)


def _found(frame: Frame, run_id: str) -> Run | None:
    """The open run, if it is one of this page, or the example."""
    run = frame.find(run_id or EXAMPLE)
    if run is None or run.request.page != NAME:
        run = frame.find(EXAMPLE)
    return run
