"""Draw with what was trained: side by side, several adapters mixed, one step against many; and what steers."""

import base64
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from peft_compare import diffusion_view as view
from peft_compare.drawing.requests import Draw, Line, Worn
from peft_compare.drawing.sheet import column_heads, drawn_row, sheet
from peft_compare.frame import HIDDEN, Frame
from peft_compare.guard import owner_of
from peft_compare.look import notice
from peft_compare.parts.grid import SCRIPT
from peft_compare.parts.hints import SCRIPT as PADS
from peft_compare.parts.hints import hint_fields
from peft_compare.parts.mixer import Voice, mixer
from peft_compare.runs import Run
from peft_compare.vision_view import results_of
from peft_runs.errors import RunError, UsageError

BUSY: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": 8}
MOST_PROMPTS, MOST_SEEDS = 4, 8
MANY, GUIDED = 50, 4.0  # steps and guidance of the pictures that one step is held against
HINTS, PNG, MOST_SENT = ("edges", "colors", "image"), "data:image/png;base64,", 4_000_000
SIDE, MIX, STEPS = "grid-side", "grid-mix", "grid-steps"
Found = Callable[[Frame, str], Run | None]


@dataclass
class Drawing:
    """What changes when another run is opened."""

    outputs: list[Any]
    opened: Callable[[Run], tuple[Any, ...]]


def build(frame: Frame, found: Found) -> Drawing:
    """Lay the tools out and connect them."""
    gr.HTML('<h3 class="part">Draw with them</h3>')
    with gr.Row():
        prompts = gr.Textbox("", label="Prompts", info="One a line.", lines=2, max_lines=4, scale=4, elem_id="prompts")
        with gr.Column(scale=3, min_width=240):
            with gr.Row():
                seed = gr.Number(0, label="First seed", precision=0, minimum=0, min_width=70)
                count = gr.Number(2, label="Seeds", precision=0, minimum=1, maximum=MOST_SEEDS, min_width=70)
            with gr.Row():
                steps = gr.Number(
                    12, label="Steps", precision=0, minimum=1, maximum=100, min_width=70, elem_id="draw-steps-number"
                )
                guidance = gr.Number(4.0, label="Guidance", minimum=0, maximum=30, min_width=70)
    with gr.Column(visible=False, elem_id="hints") as hints:
        pads = gr.HTML(hint_fields(), js_on_load=PADS)
    given = gr.State({})
    with gr.Tabs():
        with gr.Tab("Side by side"):
            draw = gr.Button("Draw", variant="primary", size="sm", elem_id="draw")
            side = gr.HTML(elem_id=SIDE, js_on_load=SCRIPT)
        with gr.Tab("Mix"):
            mixing = gr.HTML(elem_id="mixer", js_on_load=SCRIPT)
            mix = gr.HTML(elem_id=MIX, js_on_load=SCRIPT)
        with gr.Tab("One step"):
            compare = gr.Button("Draw in one step and in many", variant="primary", size="sm", elem_id="draw-steps")
            few = gr.HTML(elem_id=STEPS, js_on_load=SCRIPT)
    asked, patch = gr.State(None), gr.Textbox(visible="hidden", label="redrawn")
    fields = [prompts, seed, count, steps, guidance, given]

    def request_of(run: Run, rows: Sequence[Line], values: Sequence[Any]) -> Draw:
        """What the fields ask for.

        Raises:
            UsageError: they ask for nothing, or too much.
        """
        text, seed, count, steps, guidance, given = values
        wanted = tuple(line.strip() for line in str(text or "").splitlines() if line.strip())
        if not wanted:
            raise UsageError("write what is to be drawn into the field Prompts, one a line")
        if len(wanted) > MOST_PROMPTS:
            raise UsageError(f"{len(wanted)} prompts are too many at once: at most {MOST_PROMPTS}")
        number = min(max(1, int(count or 1)), MOST_SEEDS)
        return Draw(
            pipeline=view.pipeline_of(run),
            rows=tuple(rows),
            prompts=wanted,
            seeds=tuple(range(int(seed or 0), int(seed or 0) + number)),
            steps=int(steps or 1),
            guidance=float(guidance or 0),
            image=given.get("image"),
            hints={name: place for name, place in given.items() if name != "image"},
        )

    def grown(run_id: str, lines: Callable[[Run], list[Line]], sliders: bool, values: Sequence[Any]) -> Iterator[Any]:
        """The grid, a row more with every answer."""
        run = found(frame, run_id)
        if run is None or results_of(run) is None:
            yield notice("empty", "Nothing to draw with yet.", "Adapters come when a training is done."), None
            return
        try:
            request = request_of(run, lines(run), values)
            rows, heads = [], column_heads(request)
            yield sheet(request, rows, heads), request
            for line in request.rows:
                [answer] = frame.drawer.ask(replace(request, rows=(line,)))["rows"]
                rows.append(drawn_row(line, answer, sliders))
                yield sheet(request, rows, heads), request
        except (UsageError, RunError) as error:
            yield notice("error", "Not drawn.", f"{error}."), None

    def side_by_side(run_id: str, *values: Any) -> Iterator[Any]:
        def lines(run: Run) -> list[Line]:
            return [Line("base"), *(one.line() for one in view.adapters_of(run))]

        yield from grown(run_id, lines, True, values)

    def one_and_many(run_id: str, *values: Any) -> Iterator[Any]:
        def lines(run: Run) -> list[Line]:
            adapters = view.adapters_of(run)
            trained = [one for one in adapters if one.one_step] or adapters
            return [
                Line(f"base, {MANY} steps", steps=MANY, guidance=GUIDED),
                Line("base, 1 step", steps=1, guidance=1.0),
                *(replace(one.line(), name=f"{one.method}, 1 step", steps=1, guidance=1.0) for one in trained),
            ]

        for html, _ in grown(run_id, lines, False, values):
            yield html

    def strength(request: Draw | None, run_id: str, event: gr.EventData) -> str:
        """One row anew, at another strength."""
        run, name = found(frame, run_id), str(getattr(event, "row", ""))
        own = next((one for one in view.adapters_of(run) if one.method == name), None) if run is not None else None
        if request is None or own is None:
            return ""
        try:
            line = own.line(float(getattr(event, "weight", 1.0)))
            [answer] = frame.drawer.ask(replace(request, rows=(line,)))["rows"]
            row = drawn_row(line, answer, True)
        except (UsageError, RunError, ValueError) as error:
            return json.dumps({"grid": SIDE, "row": name, "pictures": [], "said": str(error), "failed": True})
        pictures = list(row.pictures or ())
        return json.dumps({"grid": SIDE, "row": name, "pictures": pictures, "said": row.said, "failed": row.failed})

    def mixed(
        run_id: str,
        prompts: str,
        seed: float,
        count: float,
        steps: float,
        guidance: float,
        given: dict[str, str],
        request: gr.Request,
        event: gr.EventData,
    ) -> Iterator[Any]:
        """The base model, and all adapters with a weight in one row."""
        weights = dict(getattr(event, "weights", None) or {})
        voices = {voice.key: voice for voice in voices_of(frame, found(frame, run_id), owner_of(request.cookies))}

        def lines(run: Run) -> list[Line]:
            chosen = [(voices[key], float(weight)) for key, weight in weights.items() if key in voices and weight]
            if not chosen:
                raise UsageError("move at least one slider off 0: that adapter then sounds in the mix")
            worn = tuple(Worn(str(voice.folder), weight) for voice, weight in chosen)
            name = " + ".join(f"{weight:g} {voice.name}" for voice, weight in chosen)
            return [Line("base"), Line(name, worn)]

        for html, _ in grown(run_id, lines, False, (prompts, seed, count, steps, guidance, given)):
            yield html

    pads.hint(keep, given, given, **HIDDEN)
    draw.click(side_by_side, [frame.opened, *fields], [side, asked], **BUSY)
    compare.click(one_and_many, [frame.opened, *fields], few, **BUSY)
    redrawn = side.strength(strength, [asked, frame.opened], patch, trigger_mode="always_last", **BUSY)
    redrawn.then(None, patch, None, js="(text) => { window.peftSwap(text); }", **HIDDEN)
    mixing.mix(mixed, [frame.opened, *fields], mix, **BUSY)

    def opened(run: Run) -> tuple[Any, ...]:
        """What stands there when a run is opened."""
        adapters = view.adapters_of(run)
        single = bool(adapters) and all(one.one_step for one in adapters)
        return (
            view.asked_first(run),
            1 if single else 12,
            1.0 if single else 4.0,
            gr.Column(visible=any(one.steered for one in adapters)),
            view.kept_grid(run),
            mixer(voices_of(frame, run, run.request.owner)),
            "",
            "",
        )

    return Drawing([prompts, steps, guidance, hints, side, mixing, mix, few], opened)


def voices_of(frame: Frame, run: Run | None, owner: str) -> list[Voice]:
    """The adapters that can be mixed: the open run's, then those of this visitor's other runs on the same pipeline."""
    if run is None:
        return []
    others = [one for one in frame.runs.of(owner) if one.id != run.id and one.request.page == run.request.page]
    found = []
    for one in [run, *others]:
        if results_of(one) is None or view.pipeline_of(one) != view.pipeline_of(run):
            continue
        beside = "" if one.id == run.id else f" ({one.request.name})"
        for adapter in view.adapters_of(one):
            if not adapter.whole:
                name = f"{adapter.method}{beside}"
                found.append(Voice(f"{one.id}/{adapter.method}", name, adapter.method, adapter.folder))
    return found


def keep(given: dict[str, str], event: gr.EventData) -> dict[str, str]:
    """What was drawn, as a file that only the process that draws opens; a picture and drawings replace one another."""
    name, sent = str(getattr(event, "name", "")), str(getattr(event, "picture", ""))
    kept = {key: place for key, place in given.items() if key != name and (key == "image") == (name == "image")}
    if name not in HINTS or not sent.startswith(PNG) or len(sent) > MOST_SENT:
        return kept
    try:
        data = base64.b64decode(sent.removeprefix(PNG), validate=True)
    except ValueError:
        return kept
    with tempfile.NamedTemporaryFile(suffix=".png", dir=os.environ.get("GRADIO_TEMP_DIR"), delete=False) as file:
        file.write(data)
    return {**kept, name: file.name}
