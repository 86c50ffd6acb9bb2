"""What is answered: pictures, scores and settings, all by the functions that the command lines call."""

import base64
import io
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import singledispatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import diffusion_peft as dp
from diffusion_peft.localization.measures import eight_bits
from diffusion_peft.localization.readers import reader_of
from diffusion_peft.methods.scedit import condition_sizes
from diffusion_peft.pipelines.opening import picture_size
from diffusion_peft.pipelines.sampling import Sampling
from peft_compare.drawing.hints import prepared
from peft_compare.drawing.requests import Draw, Layers, Line, Localize, LoraFor, Patch
from peft_compare.drawing.stage import Stage, twin
from peft_runs.errors import RunError, UsageError, sentence
from peft_runs.progress import RunProgress
from peft_runs.put_on import Weighed
from peft_runs.samples import Asked, each
from peft_runs.steering import as_picture, steering_of

Told = Callable[[str, int, int], None]
SAID = (UsageError, RunError, dp.DataError, ValueError)  # what a person can do something about
SMALL = 128  # pixels along a side up to which many pictures are drawn at once
WORDS = "mini_sd"  # whose words are read by matching its font


@singledispatch
def answer(request: Any, stage: Stage, told: Told) -> dict[str, Any]:
    """What was asked for, as JSON; pictures are PNGs in base64.

    Raises:
        the exceptions of `SAID`: it cannot be had.
    """
    raise NotImplementedError(type(request))


@answer.register
def draw(request: Draw, stage: Stage, told: Told) -> dict[str, Any]:
    """`rows` in their order, each with `pictures` prompt by prompt, or with its `failure`."""
    rows = []
    for number, row in enumerate(request.rows):
        told(row.name, number, len(request.rows))
        try:
            rows.append({"name": row.name, **one_row(row, request, stage)})
        except SAID as error:
            rows.append({"name": row.name, "failure": sentence(error)})
    return {"rows": rows}


def one_row(row: Line, request: Draw, stage: Stage) -> dict[str, Any]:
    """`pictures`, `milliseconds` a picture, and by adapter the `conditions` that steered."""
    kind, weighed = stage.show(request.pipeline, row.adapters)
    guidance = request.guidance if row.guidance is None else row.guidance
    how = Sampling(row.steps or request.steps, guidance, picture_size(stage.pipeline))
    asked = Asked(
        request.pipeline,
        weighed,
        request.prompts,
        seeds=request.seeds,
        steps=how.steps,
        guidance=guidance,
        batch=16 if how.size <= SMALL else 1,
    )
    with torch.no_grad():
        given = kind.encode(list(request.prompts), stage.device)
        absent = kind.encode([request.negative], stage.device)
    steering = steered_by(request, stage, weighed, how.size)
    with RunProgress(shown=False) as quiet:
        begun = now(stage.device)
        pictures = each(kind, given, absent, asked, how, quiet, row.name, steering)
        spent = now(stage.device) - begun
    return {
        "pictures": [encoded(picture) for picture in pictures],
        "milliseconds": 1000 * spent / len(pictures),
        "conditions": [encoded(as_picture(images[0])) for images in steering.values()],
    }


def steered_by(request: Draw, stage: Stage, weighed: tuple[Weighed, ...], size: int) -> dict[str, Tensor]:
    """The condition images of a row's adapters, if pictures steer any."""
    denoiser = stage.kind.denoiser
    sizes = condition_sizes(denoiser)
    if not sizes:
        return {}
    count = len(request.prompts)
    if request.image is not None:
        return steering_of(denoiser, weighed, [Path(request.image)], [], count, size)
    with TemporaryDirectory() as folder:
        places = []
        for name, channels in sizes.items():
            condition = dp.Condition.load(weighed[int(name.rpartition("_")[2])].folder)
            drawing = request.hints.get(condition.name or "")
            if drawing is None:
                raise UsageError(f"its pictures are steered by {condition.name}: draw some, or choose a picture")
            places.append(Path(folder, f"{name}.png"))
            prepared(Path(drawing), condition, size, channels).save(places[-1])
        return steering_of(denoiser, weighed, [], places, count, size)


@answer.register
def layers(request: Layers, stage: Stage, told: Told) -> dict[str, Any]:
    """`layers` with number, name and parameters of keys and values; `total` of the denoiser; the `published` ones."""
    stage.show(request.pipeline, ())
    return {"layers": described(stage), "total": total(stage), "published": list(published(stage))}


def described(stage: Stage) -> list[dict[str, Any]]:
    """Every layer that reads the text."""
    return [
        {
            "index": layer.index,
            "name": layer.name,
            "parameters": dp.projection_parameters(stage.bare, [layer.index]),
        }
        for layer in dp.text_layers(stage.bare)
    ]


def total(stage: Stage) -> int:
    return sum(parameter.numel() for parameter in stage.bare.parameters())


def published(stage: Stage) -> tuple[int, ...]:
    from diffusion_peft.localization import published_layers

    return published_layers(stage.bare) or ()


@answer.register
def localize(request: Localize, stage: Stage, told: Told) -> dict[str, Any]:
    """`layers` with their `score`, the `best` set, by which `measure`, and the whole `report`."""
    stage.show(request.pipeline, request.adapters)
    small = picture_size(stage.pipeline) <= SMALL
    report = dp.localize_text_layers(
        stage.pipeline,
        list(request.pairs),
        reader=reader_of(request.reader) if request.reader else None,
        score="letters_f1_target" if request.reader else None,
        steps=request.steps,
        guidance=request.guidance,
        at_once=5 if small else 1,
        batch=4 if small else 1,
        told=lambda _, done, of: told("layers", done, of),
    )
    scores = {index: report.of(index)[report.score] for index in report.indices}
    return {
        "layers": [{**layer, "score": scores[layer["index"]]} for layer in described(stage)],
        "total": total(stage),
        "best": report.best_set(),
        "measure": report.score,
        "report": asdict(report),
    }


@answer.register
def patch(request: Patch, stage: Stage, told: Told) -> dict[str, Any]:
    """`source`, `edited` and `target` with their pictures and, where they can be read, words; the layers' `share`."""
    stage.show(request.pipeline, request.adapters)
    begun = now(stage.device)
    found = dp.edit_text(
        stage.pipeline,
        [(request.source, request.target)] * len(request.seeds),
        list(request.layers),
        steps=request.steps,
        guidance=request.guidance,
        start_step=request.start_step,
        seeds=request.seeds,
    )
    spent = now(stage.device) - begun
    read = reader_of("letters") if request.pipeline == WORDS else None
    ways = found._asdict().items()
    return {
        **{name: {"pictures": as_pngs(images), "read": list(read(images)) if read else None} for name, images in ways},
        "share": dp.projection_parameters(stage.bare, list(request.layers)) / total(stage),
        "milliseconds": 1000 * spent / (3 * len(request.seeds)),
    }


@answer.register
def lora(request: LoraFor, stage: Stage, told: Told) -> dict[str, Any]:
    """The `settings` of the configuration, and how many parameters it `trains`."""
    stage.show(request.pipeline, ())
    config = dp.localized_lora(stage.bare, list(request.layers), r=request.r)
    adapted = dp.add_adapter(twin(stage.bare), config)
    names = sorted(config.target_modules or ())
    settings = {name: getattr(config, name) for name in ("r", "lora_alpha", "init_lora_weights")}
    trains = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    return {"settings": {"name": "lora", **settings, "target_modules": names}, "trains": trains}


def as_pngs(images: Tensor) -> list[str]:
    """Pictures `[N, 3, H, W]` in 0 to 1."""
    return [encoded(Image.fromarray(pixels)) for pixels in eight_bits(images).permute(0, 2, 3, 1).cpu().numpy()]


def encoded(picture: Image.Image) -> str:
    """A PNG in base64."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def now(device: torch.device) -> float:
    """Seconds: on a CPU the process's own, which others on the machine do not change; elsewhere the clock's."""
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.monotonic()
