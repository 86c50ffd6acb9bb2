"""The Adapters page: give an adapter from anywhere; see what it is and does, and take it along in other formats."""

from pathlib import Path
from typing import Any

import gradio as gr

from peft_compare import adapter_view as view
from peft_compare.files import examples_in
from peft_compare.frame import EXAMPLES, HIDDEN, SAYING, Frame
from peft_compare.guard import owner_of
from peft_compare.inspecting import kind_of
from peft_compare.look import notice
from peft_compare.parts.folder import PACK, folder_field
from peft_compare.refusals import RefusedError
from peft_compare.runs import ENDED, Run
from peft_kernels.adapter_files import AdapterError, refuse_pickle
from peft_kernels.config import nearest

NAME, TITLE = "adapters", "Adapters"
EXAMPLE = "adapter"
NAMED = "The one it names"
MODELS = ["vit_mini.cifar10", "mini_sd", "mini_dit", "point_mini", "vit_base_patch16_224.augreg_in21k"]
MOST_FILES = 10
WHAT = "Drop an adapter on the left, or choose one that was trained here."
EXAMPLE_SAID = "It came with the app. Drop an adapter of yours on the left to see the same of it."


def build(frame: Frame) -> None:
    """Lay the page out and connect it."""
    with gr.Row(elem_classes="moves"):
        with gr.Column(scale=2, min_width=300, elem_classes="card"):
            gr.HTML('<h2 class="move"><span>1</span>Choose</h2>')
            about = "Drop an adapter: its two files, a zip of them, or one file"
            files = gr.File(label=about, file_count="multiple", elem_id="adapter-files")
            most = frame.settings.limits.upload_bytes
            gr.HTML(folder_field("adapter-files", "A whole folder", most), js_on_load=PACK)
            gr.HTML(f'<p class="quiet">{_taken(frame)}</p>')
            own = gr.Dropdown(
                _own(frame, ""),
                label="Or one that was trained here",
                value=None,
                interactive=True,
                elem_id="own-adapter",
            )
            model = gr.Dropdown(
                [NAMED, *MODELS],
                value=NAMED,
                label="Base model",
                info="Embedded, or any name of timm's.",
                allow_custom_value=True,
            )
            failed = gr.HTML(elem_id="not-looked-at")
            start = gr.Button("Look at it", variant="primary", elem_id="look-at-adapter")
        with gr.Column(scale=5, min_width=320, elem_classes="card"):
            gr.HTML('<h2 class="move"><span>2</span>What it is, and what it does</h2>')
            watched = gr.HTML(elem_id="adapter-watched")
            cancel = gr.Button("Cancel", visible=False, size="sm")
            card = gr.HTML(elem_id="adapter-card")
    seen = gr.State("")

    def look_again(run_id: str, seen: str) -> tuple[Any, ...]:
        """`show`, where somebody has turned to this page."""
        run = frame.find(run_id)
        return show(run_id, seen) if seen or (run and run.request.page == NAME) else tuple([gr.skip()] * 4)

    def show(run_id: str, seen: str) -> tuple[Any, ...]:
        """The open look, or the example; only what has changed since it was last seen."""
        run = frame.find(run_id)
        if run is None or run.request.page != NAME:
            run = frame.find(EXAMPLE)
        if run is None:
            return "", gr.Button(visible=False), notice("empty", "Nothing yet.", WHAT), "nothing"
        key = frame.key_of(run)
        if key == seen:
            return tuple([gr.skip()] * 4)
        watched = view.watch(run, frame.queue.position(run))
        if run.path.parent == EXAMPLES:
            watched = notice("kept", "An adapter to look at.", EXAMPLE_SAID)
        return watched, gr.Button(visible=run.state not in ENDED), view.shown(run), key

    def begin(files: list[str] | None, own: str | None, model: str, request: gr.Request) -> tuple[Any, ...]:
        """Have what was given looked at."""
        owner = owner_of(request.cookies)

        def start() -> Run:
            given = [Path(file) for file in files or ()] or _trained(frame, own, owner)
            base = _base(model)
            _check(frame, given)
            words, name = ["inspect", "given"], _name(given, None if files else own)
            words += ["--model", base] if base else []
            return frame.queue.add(NAME, name, "vision-peft", words, owner, given)

        return frame.started(request, start, "Not looked at.")

    def stop(run_id: str, seen: str, request: gr.Request) -> tuple[Any, ...]:
        frame.cancel(request, run_id)
        return show(run_id, seen)

    def offer(request: gr.Request) -> gr.Dropdown:
        return gr.Dropdown(choices=_own(frame, owner_of(request.cookies)))

    shown = [watched, cancel, card, seen]
    gr.on([frame.opened.change, frame.clock.tick], look_again, [frame.opened, seen], shown, **HIDDEN)
    assert frame.tab is not None
    frame.tab.select(show, [frame.opened, seen], shown, **HIDDEN)
    own.focus(offer, None, own, **HIDDEN)
    start.click(begin, [files, own, model], [failed, frame.opened, frame.listed, frame.clock], **HIDDEN)
    cancel.click(stop, [frame.opened, seen], shown, **SAYING)


def _taken(frame: Frame) -> str:
    most = frame.settings.limits.upload_bytes // 2**20
    return (
        f"safetensors and JSON only, up to {most} MiB. Reads this project's, PEFT's, kohya, LyCORIS and diffusers LoRA."
    )


def _own(frame: Frame, owner: str) -> list[tuple[str, str]]:
    """The adapters that comparisons of this browser have left, the newest first, and those that come with the app."""
    found = []
    for run in [*frame.runs.of(owner), *examples_in(EXAMPLES)]:
        for place in sorted(run.out.glob("*/seed-*/adapter/adapter_config.json")):
            method, seed = place.parts[-4:-2]
            name = f"{method} · {run.id}" if run.path.parent == EXAMPLES else f"{method}, {seed} · {run.request.name}"
            found.append((name, f"{run.id}/{method}/{seed}"))
    return found


def _trained(frame: Frame, own: str | None, owner: str) -> list[Path]:
    """The two files of such an adapter.

    Raises:
        RefusedError: there is none, or it is another visitor's.
    """
    if not own:
        raise RefusedError("no adapter is chosen: drop its files, or choose one that was trained here")
    run_id, method, seed = own.split("/") if own in (value for _, value in _own(frame, owner)) else ("", "", "")
    run = frame.find(run_id)
    if run is None:
        raise RefusedError("this adapter is not there any more")
    return sorted((run.out / method / seed / "adapter").glob("adapter_*"))


def _base(model: str | None) -> str | None:
    model = (model or "").strip()
    if model in ("", NAMED):
        return None
    if kind_of(model) is None:
        raise RefusedError(f"there is no model {model!r} here{nearest(model, MODELS)}")
    return model


def _check(frame: Frame, given: list[Path]) -> None:
    if len(given) > MOST_FILES:
        raise RefusedError(
            f"{len(given)} files were given, and an adapter is two: give its folder's files or a zip of them"
        )
    for path in given:
        try:
            refuse_pickle(Path(path.name))
        except AdapterError as error:
            raise RefusedError(str(error)) from None
    if not any(path.suffix.lower() in (".safetensors", ".zip") for path in given):
        raise RefusedError(f"there is no safetensors file and no zip in it (found {', '.join(p.name for p in given)})")
    size, most = sum(path.stat().st_size for path in given), frame.settings.limits.upload_bytes
    if size > most:
        raise RefusedError(f"the files have {size / 2**20:.1f} MiB; up to {most // 2**20} MiB can be looked at here")


def _name(given: list[Path], own: str | None) -> str:
    """What the list of runs calls it."""
    if own:
        return f"Adapter: {own.split('/')[1]}"
    return f"Adapter: {next((path.name for path in given if path.suffix != '.json'), given[0].name)}"
