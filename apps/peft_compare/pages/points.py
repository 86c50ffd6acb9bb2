"""The Points page: rotate a cloud, see what adapted models call it, and take it apart by graph frequency."""

from pathlib import Path
from typing import Any

import gradio as gr

from peft_compare import points_request as request_of
from peft_compare import points_view as view
from peft_compare import vision_view
from peft_compare.frame import EXAMPLES, HIDDEN, SAYING, Frame
from peft_compare.guard import owner_of
from peft_compare.look import notice
from peft_compare.pages import start_button
from peft_compare.parts.pins import PINS
from peft_compare.runs import ENDED, Run
from peft_runs.families import VISION

NAME, TITLE = "points", "Points"
EXAMPLE = "scans"
FIRST = ["linear_probe", "lora", "pointgst"]
EPOCHS, CLOUDS = 12, 600
KEPT = 64  # components, at first
EXAMPLE_SAID = "It came with the app, as the same command wrote it. Choose methods on the left and run it yourself."
WAITING = "Their predictions and spectra come when the training is done."


def build(frame: Frame) -> None:
    """Lay the page out and connect it."""
    with gr.Row(elem_classes="moves"):
        with gr.Column(scale=2, min_width=300, elem_classes="card"):
            gr.HTML('<h2 class="move"><span>1</span>Choose</h2>')
            offered = request_of.offered()
            methods = gr.CheckboxGroup(
                list(offered),
                value=[name for name in FIRST if name in offered],
                label="Methods",
                elem_classes="methods",
            )
            with gr.Row():
                epochs = gr.Number(EPOCHS, label="Epochs", precision=0, minimum=1, min_width=90)
                count = gr.Number(CLOUDS, label="Clouds to train on", precision=0, minimum=60, min_width=90)
            gr.HTML('<p class="quiet">point_mini, on scan-like views of 15 objects that the app makes up.</p>')
            start = start_button.build("points-", "start-points")
        with gr.Column(scale=5, min_width=320):
            with gr.Column(elem_classes="card"):
                gr.HTML('<h2 class="move"><span>2</span>Watch</h2>')
                watched = gr.HTML(elem_id="points-watched")
                cancel = gr.Button("Cancel", visible=False, size="sm")
                compared = gr.HTML(elem_id="points-compared", js_on_load=PINS)
                closely = gr.HTML(elem_id="points-closely")
    with gr.Column(elem_classes="card"):
        gr.HTML('<h2 class="move"><span>3</span>Look at a cloud</h2>')
        with gr.Row(elem_classes="moves"):
            with gr.Column(scale=1, min_width=300):
                cloud = gr.Dropdown([], label="Cloud", interactive=True, elem_id="cloud")
                plot = gr.Plot(show_label=False, elem_id="cloud-plot")
                most = view.COMPONENTS
                k = gr.Slider(1, most, KEPT, step=1, label="Components kept, from the lowest on", elem_id="kept")
                named = gr.HTML(elem_id="predictions")
            with gr.Column(scale=1, min_width=300):
                file = gr.File(label="A cloud of yours: PLY, OFF, OBJ, NPZ, XYZ", height=150, elem_id="own-cloud")
                refused = gr.HTML(elem_id="cloud-refused")
                spectra = gr.HTML(elem_id="spectra")
    seen = gr.State("")

    def find(run_id: str) -> Run | None:
        """The open run of this page, or the example."""
        run = frame.find(run_id)
        return run if run is not None and run.request.page == NAME else frame.find(EXAMPLE)

    def views(run_id: str) -> view.Views:
        found = view.views_of(find(run_id))
        return found if found is not None else view.views_of(None)  # type: ignore[return-value]

    def show(run_id: str, seen: str, k: float) -> tuple[Any, ...]:
        """The open run; only what has changed since it was last seen."""
        run = find(run_id)
        key = "nothing" if run is None else frame.key_of(run)
        if key == seen:
            return tuple([gr.skip()] * len(shown))
        known = views(run_id)
        names = [(known.name(index), index) for index in range(len(known.labels))]
        index = known.fullest
        first = (gr.Dropdown(choices=names, value=index), *_cloud(known, index, int(k)))
        return (*_watch(frame, run), *first, key)

    def look_again(run_id: str, seen: str, k: float) -> tuple[Any, ...]:
        """`show`, where somebody has turned to this page: its figures are heavy."""
        run = frame.find(run_id)
        return show(run_id, seen, k) if seen or (run and run.request.page == NAME) else tuple([gr.skip()] * len(shown))

    def look(run_id: str, index: int, k: float) -> tuple[Any, ...]:
        known = views(run_id)
        return _cloud(known, min(int(index or 0), len(known.labels) - 1), int(k))

    def begin(request: gr.Request, *values: Any) -> tuple[Any, ...]:
        """Put a comparison at the end of the queue."""
        owner = owner_of(request.cookies)
        return frame.started(
            request, lambda: frame.queue.add(NAME, "point_mini on scans", "vision-peft", words(*values), owner)
        )

    def words(chosen: list[str], epochs: float, count: float) -> list[str]:
        return request_of.words_of(chosen, int(epochs or 0), int(count or 0))

    def look_closer(run_id: str, event: gr.EventData) -> str:
        run = find(run_id)
        return "" if run is None else vision_view.looked_closer(run, list(getattr(event, "methods", None) or ()))

    def take(path: str | None, run_id: str, request: gr.Request) -> tuple[Any, ...]:
        """Have an uploaded cloud looked at by the models of the open comparison."""
        if path is None:
            return "", gr.skip(), gr.skip(), gr.skip()
        given, run, owner = Path(path), find(run_id), owner_of(request.cookies)
        words = ["view", *([_comparison(run)] if run is not None else [])]
        name = f"Cloud: {given.name}"
        return frame.started(
            request, lambda: frame.queue.add(NAME, name, "vision-peft", words, owner, [given]), "Not looked at."
        )

    def stop(run_id: str, seen: str, k: float, request: gr.Request) -> tuple[Any, ...]:
        frame.cancel(request, run_id)
        return show(run_id, seen, k)

    inputs, shown = [frame.opened, seen, k], [watched, cancel, compared, closely, cloud, plot, named, spectra, seen]
    gr.on([frame.opened.change, frame.clock.tick], look_again, inputs, shown, **HIDDEN)
    assert frame.tab is not None
    frame.tab.select(show, inputs, shown, **HIDDEN)
    gr.on([cloud.input, k.release], look, [frame.opened, cloud, k], [plot, named, spectra], **HIDDEN)
    fields = [methods, epochs, count]
    start.estimates(frame, VISION, words, fields, fields)
    compared.pin(look_closer, frame.opened, closely, trigger_mode="always_last", **HIDDEN)
    start.button.click(begin, fields, [start.failed, frame.opened, frame.listed, frame.clock], **HIDDEN)
    file.upload(take, [file, frame.opened], [refused, frame.opened, frame.listed, frame.clock], **HIDDEN)
    cancel.click(stop, inputs, shown, **SAYING)


def _comparison(run: Run) -> str:
    """The comparison whose models look at an upload: the open one, or that of the open upload."""
    return run.id if run.request.words[0] == "compare" else (*run.request.words[1:], "")[0]


def _watch(frame: Frame, run: Run | None) -> tuple[str, Any, str, str]:
    """How far the run is, whether it can be cancelled, its figures, and a closer look at some rows."""
    if run is None:
        return notice("empty", "Nothing runs.", "Start a comparison on the left."), gr.Button(visible=False), "", ""
    said = vision_view.watch(run, frame.queue.position(run))
    if run.path.parent == EXAMPLES:
        said = notice("kept", "A finished comparison to look at.", EXAMPLE_SAID)
    going = run.state not in ENDED
    results = vision_view.results_of(run) if not going else None
    figures = vision_view.compared(run) if results else notice("empty", "", WAITING) if going else ""
    closer = vision_view.looked_closer(run, ()) if results else ""
    return said, gr.Button(visible=going), figures, closer


def _cloud(views: view.Views, index: int, k: int) -> tuple[Any, str, str]:
    """The cloud, what it is called, and its spectra."""
    return view.cloud_figure(views, index, k), view.predictions(views, index), view.spectra(views, index, k)
