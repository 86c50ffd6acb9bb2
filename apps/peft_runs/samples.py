"""Pictures of a pipeline with and without adapters, and a record of exactly how each was made."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image
from torch import Tensor

from diffusion_peft.methods.scedit import condition_on
from diffusion_peft.pipelines.kinds import Given, Kind, kind_of
from diffusion_peft.pipelines.one_step import FILE as ONE_STEP
from diffusion_peft.pipelines.one_step import one_step
from diffusion_peft.pipelines.opening import open_pipeline, picture_size
from diffusion_peft.pipelines.sampling import Sampling, check_sampling, grid, sample
from peft_runs.durable import write_json
from peft_runs.errors import UsageError
from peft_runs.progress import RunProgress
from peft_runs.put_on import Weighed, put_on
from peft_runs.steering import as_picture, steering_of

GRID, RECORD = "grid.png", "samples.json"


@dataclass(frozen=True)
class Asked:
    """What is to be drawn: every prompt with every seed.

    Attributes:
        pipeline: the base, as in a recipe.
        adapters: put on it, with their weights.
        prompts: captions, or classes.
        negative: what guidance leads away from.
        seeds: one picture each.
        steps: of the pipeline's own scheduler.
        guidance: strength of the guidance.
        size: pixels along a side; None is what the pipeline makes by itself.
        dtype: of the weights.
        batch: pictures at once.
        compare_base: also draw them without the adapters.
        images: pictures whose condition images steer, one or one a prompt.
        conditions: a condition image for each adapter that is steered.
    """

    pipeline: str
    adapters: tuple[Weighed, ...]
    prompts: tuple[str, ...]
    negative: str = ""
    seeds: tuple[int, ...] = (0,)
    steps: int = 25
    guidance: float = 4.0
    size: int | None = None
    dtype: str = "float32"
    batch: int = 8
    compare_base: bool = False
    images: tuple[Path, ...] = ()
    conditions: tuple[Path, ...] = ()


def draw(asked: Asked, out: Path, device: torch.device, progress: RunProgress) -> None:
    """Draw everything into the empty folder `out`: PNGs, a grid, and `samples.json`."""
    pipeline = open_pipeline(asked.pipeline, asked.dtype)
    for adapter in asked.adapters:
        if asked.steps == 1 and (adapter.folder / ONE_STEP).is_file():
            one_step(pipeline, adapter.folder)  # refuses another schedule than it was trained with
    kind = kind_of(pipeline)
    how = Sampling(asked.steps, asked.guidance, picture_size(pipeline) if asked.size is None else asked.size)
    check_sampling(kind, asked.seeds, how)
    pipeline.to(device)
    with torch.no_grad():
        given = kind.encode(list(asked.prompts), device)
        absent = kind.encode([asked.negative], device)
    made: dict[str, list[Image.Image]] = {}
    if asked.compare_base or not asked.adapters:
        made["base"] = each(kind, given, absent, asked, how, progress, "draw with the base")
    steering: dict[str, Tensor] = {}
    if asked.adapters:
        put_on(kind.denoiser, asked.adapters).to(device)
        steering = steering_of(
            kind.denoiser, asked.adapters, asked.images, asked.conditions, len(asked.prompts), how.size
        )
        made["adapted"] = each(kind, given, absent, asked, how, progress, "draw with the adapters", steering)
    elif asked.images or asked.conditions:
        raise UsageError("pictures steer adapters, and there is none: add --adapter FOLDER")
    pairs = [(number, seed) for number in range(len(asked.prompts)) for seed in asked.seeds]
    files, cells = [], []
    for place, (number, seed) in enumerate(pairs):
        if seed == asked.seeds[0]:
            cells += [as_picture(images[number % len(images)]) for images in steering.values()]
        for who, pictures in made.items():
            name = f"{number:03d}_seed{seed}" + ("_base" if who == "base" and asked.adapters else "") + ".png"
            pictures[place].save(out / name)
            files.append({"file": name, "prompt": asked.prompts[number], "seed": seed, "made_by": who})
            cells.append(pictures[place])
    grid(cells, len(steering) + len(asked.seeds) * len(made)).save(out / GRID)
    write_json(out / RECORD, record(asked, how, type(pipeline).__name__, files, device))


def each(
    kind: Kind,
    given: Given,
    absent: Given,
    asked: Asked,
    how: Sampling,
    progress: RunProgress,
    what: str,
    steering: Mapping[str, Tensor] | None = None,
) -> list[Image.Image]:
    """Every prompt with every seed, prompt by prompt; `steering` are condition images by adapter."""
    rows = {name: row.repeat_interleave(len(asked.seeds), 0) for name, row in given.items()}
    seeds = list(asked.seeds) * len(asked.prompts)
    found: list[Image.Image] = []
    images = {name: some.expand(len(asked.prompts), -1, -1, -1) for name, some in (steering or {}).items()}
    images = {name: some.repeat_interleave(len(asked.seeds), 0) for name, some in images.items()}
    for begin in range(0, len(seeds), asked.batch):
        progress.show(what, begin, len(seeds))
        part = slice(begin, begin + asked.batch)
        some = {name: pictures[part] for name, pictures in images.items()}
        with condition_on(kind.denoiser, some, guided=True) if some else nullcontext():
            found += sample(kind, {name: row[part] for name, row in rows.items()}, absent, seeds[part], how)
    return found


def record(
    asked: Asked, how: Sampling, pipeline: str, files: Sequence[dict[str, Any]], device: torch.device
) -> dict[str, Any]:
    """How the pictures were made, as JSON."""
    return {
        "pipeline": asked.pipeline,
        "pipeline_class": pipeline,
        "adapters": [
            {"folder": str(adapter.folder), "weight": adapter.weight, "sha256": digest(adapter.folder)}
            for adapter in asked.adapters
        ],
        **asdict(how),
        "negative": asked.negative,
        "dtype": asked.dtype,
        "device": device.type,
        "batch": asked.batch,
        "images": [str(path) for path in asked.images],
        "conditions": [str(path) for path in asked.conditions],
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "grid": "a row a prompt; "
        + ("its condition images first, then " if asked.images or asked.conditions else "")
        + f"seeds {', '.join(map(str, asked.seeds))} from the left"
        + (", the base before the adapted" if asked.compare_base and asked.adapters else ""),
        "pictures": list(files),
    }


def digest(folder: Path) -> str:
    """Of an adapter's weights."""
    return sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.safetensors")))).hexdigest()
