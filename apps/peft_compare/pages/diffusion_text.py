"""The layers that draw the text: searched, patched by a click, another word written, a LoRA made of them."""

import json
import re
import shlex
from html import escape
from typing import Any

import gradio as gr

from peft_compare.drawing.drawer import Drawer
from peft_compare.drawing.requests import Layers, Localize, LoraFor, Patch
from peft_compare.drawing.sheet import address
from peft_compare.frame import Frame
from peft_compare.look import notice
from peft_compare.pages.diffusion_choose import Form
from peft_compare.parts.text_layers import SCRIPT, text_layers
from peft_runs.errors import RunError, UsageError

BUSY: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": 8}
QUOTED = re.compile(r'"[^"]+"')
READ = "mini_sd"  # whose drawn words can be read
SEARCHED, DRAWN = 8, 16  # steps
TIMES = 2  # that each of both directions is searched
MEASURES = {
    "letters_f1_target": "letters of the new word (F1)",
    "ssim_target": "likeness to the picture of the new word (SSIM)",
}
SEARCHING = "Every layer in turn reads the new word alone; this takes some seconds with the embedded pipeline."


def build(frame: Frame, form: Form) -> None:
    """Lay it out and connect it."""
    with gr.Accordion("Layers that draw the text", open=False, elem_id="text-layers") as accordion:
        _build(frame.drawer, form, accordion)


def _build(drawer: Drawer, form: Form, accordion: gr.Accordion) -> None:
    gr.HTML(
        '<p class="quiet">Which attention layers decide the word in a picture (Staniszewski et al., ICLR 2025). '
        "Patched, they alone read the new prompt; the scene stays the old one's.</p>"
    )
    with gr.Row():
        source = gr.Textbox('the word "CAT" in red on white', label="A picture with a word in quotes", scale=3)
        word = gr.Textbox("SUN", label="New word", scale=1, min_width=90)
        seed = gr.Number(42, label="Seed", precision=0, minimum=0, min_width=70)
        search = gr.Button("Find the layers", variant="primary", size="sm", min_width=120, elem_id="find-layers")
    strip = gr.HTML(js_on_load=SCRIPT, elem_id="layer-strip")
    pictures = gr.HTML(elem_id="patched")
    with gr.Row():
        rank = gr.Number(4, label="Rank", precision=0, minimum=1, maximum=256, min_width=70, scale=0)
        make = gr.Button("Make LoRA config from these layers", size="sm", elem_id="make-lora")
    made = gr.HTML(elem_id="made-lora")
    chosen = gr.State(())

    def pair(source: str, word: str) -> tuple[str, str]:
        if not QUOTED.search(source or ""):
            raise UsageError('put the word of the picture in quotes, as in: the word "CAT" in red on white')
        if not (word or "").strip():
            raise UsageError("write the new word")
        return source, QUOTED.sub(lambda _: f'"{word.strip()}"', source)

    def find(pipeline: str, source: str, word: str, seed: float) -> Any:
        yield notice("kept", "Searching.", SEARCHING), gr.skip(), gr.skip()
        try:
            words = pair(source, word)
            reader = "letters" if pipeline == READ else None
            pairs = (words, (words[1], words[0])) * TIMES  # each with a seed of its own
            answer = drawer.ask(Localize(pipeline, pairs, SEARCHED, reader=reader))
            best = tuple(answer["best"])
            measure = MEASURES.get(answer["measure"], answer["measure"])
            shown = text_layers(answer["layers"], answer["total"], best, measure)
            yield shown, gr.skip(), best
            yield gr.skip(), patched(drawer.ask(Patch(pipeline, *words, best, (int(seed or 0),), DRAWN)), words), best
        except (UsageError, RunError) as error:
            yield notice("error", "Not searched.", f"{error}."), gr.skip(), gr.skip()

    def patch(pipeline: str, source: str, word: str, seed: float, event: gr.EventData) -> Any:
        layers = tuple(int(layer) for layer in getattr(event, "layers", None) or ())
        if not layers:
            return "", ()
        try:
            words = pair(source, word)
            return patched(drawer.ask(Patch(pipeline, *words, layers, (int(seed or 0),), DRAWN)), words), layers
        except (UsageError, RunError) as error:
            return notice("error", "Not drawn.", f"{error}."), layers

    def lora(pipeline: str, layers: tuple[int, ...], rank: float) -> Any:
        if not layers:
            return notice("empty", "No layer is chosen.", "Find the layers, or click one of them."), ()
        try:
            answer = drawer.ask(LoraFor(pipeline, tuple(layers), int(rank or 1)))
        except (UsageError, RunError) as error:
            return notice("error", "Not made.", f"{error}."), ()
        return config(answer, pipeline, layers), tuple(answer["settings"]["target_modules"])

    def listed(pipeline: str) -> str:
        """The layers before they are searched."""
        try:
            answer = drawer.ask(Layers(pipeline))
        except (UsageError, RunError) as error:
            return notice("error", "", f"{error}.")
        return text_layers(answer["layers"], answer["total"], (), None)

    accordion.expand(listed, form.pipeline, strip, **BUSY)
    fields = [form.pipeline, source, word, seed]
    search.click(find, fields, [strip, pictures, chosen], **BUSY)
    strip.patch(patch, fields, [pictures, chosen], trigger_mode="always_last", **BUSY)
    make.click(lora, [form.pipeline, chosen, rank], [made, form.layers], **BUSY)


def patched(answer: dict[str, Any], words: tuple[str, str]) -> str:
    """The picture, the same with the new word, and what the new prompt draws by itself."""
    heads = (
        ("source", "As asked", words[0]),
        ("edited", "Patched", f"{words[0]}, these layers reading {QUOTED.findall(words[1])[0]}"),
        ("target", "The new prompt alone", words[1]),
    )
    cells = ""
    for name, title, said in heads:
        read = answer[name]["read"]
        words_read = f'<span class="quiet">reads {escape(read[0])}</span>' if read else ""
        cells += (
            f'<figure><img src="{address(answer[name]["pictures"][0])}" alt="{escape(title)}: {escape(said)}">'
            f"<figcaption>{escape(title)} {words_read}</figcaption></figure>"
        )
    return (
        f'<div class="patched">{cells}</div><p class="quiet">The patched layers hold {100 * answer["share"]:.2g} % of '
        f"the denoiser's parameters; {answer['milliseconds']:.0f} ms a picture.</p>"
    )


def config(answer: dict[str, Any], pipeline: str, layers: tuple[int, ...]) -> str:
    """The settings, and how to train with them."""
    settings = answer["settings"]
    targets = json.dumps(settings["target_modules"])
    words = ["diffusion-peft", "train", "--recipe", "spelling", "--model.pipeline", pipeline]
    words += ["--method.target_modules", targets, "--method.r", str(settings["r"]), "--out", "runs/spelling"]
    python = f"dp.add_adapter(pipe, dp.localized_lora(pipe, layers={list(layers)}, r={settings['r']}))"
    return (
        f'<div class="part"><h3>LoRA on layer {", ".join(map(str, layers))}: {answer["trains"]:,} parameters</h3>'
        f'<pre class="recipe" tabindex="0">{escape(json.dumps(settings, indent=2))}</pre>'
        f'<pre class="recipe" id="lora-python" tabindex="0">{escape(python)}</pre>'
        f'<pre class="recipe" tabindex="0">{escape(shlex.join(words))}</pre>'
        '<p class="quiet">To train it here, choose the task “Words” on the left: it takes these layers.</p></div>'
    )
