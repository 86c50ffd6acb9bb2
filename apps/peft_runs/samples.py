"""Pictures of a pipeline with and without adapters, and a record of exactly how each was made."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image

from diffusion_peft.pipelines.kinds import Given, Kind, kind_of
from diffusion_peft.pipelines.opening import open_pipeline, picture_size
from diffusion_peft.pipelines.sampling import Sampling, grid, sample
from peft_runs.durable import write_json
from peft_runs.progress import RunProgress
from peft_runs.put_on import Weighed, put_on

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


def draw(asked: Asked, out: Path, device: torch.device, progress: RunProgress) -> None:
    """Draw everything into the empty folder `out`: PNGs, a grid, and `samples.json`."""
    pipeline = open_pipeline(asked.pipeline, asked.dtype)
    kind = kind_of(pipeline)
    how = Sampling(asked.steps, asked.guidance, asked.size or picture_size(pipeline))
    pipeline.to(device)
    with torch.no_grad():
        given = kind.encode(list(asked.prompts), device)
        absent = kind.encode([asked.negative], device)
    made: dict[str, list[Image.Image]] = {}
    if asked.compare_base or not asked.adapters:
        made["base"] = each(kind, given, absent, asked, how, progress, "draw with the base")
    if asked.adapters:
        put_on(kind.denoiser, asked.adapters).to(device)
        made["adapted"] = each(kind, given, absent, asked, how, progress, "draw with the adapters")
    pairs = [(number, seed) for number in range(len(asked.prompts)) for seed in asked.seeds]
    files, cells = [], []
    for place, (number, seed) in enumerate(pairs):
        for who, pictures in made.items():
            name = f"{number:03d}_seed{seed}" + ("_base" if who == "base" and asked.adapters else "") + ".png"
            pictures[place].save(out / name)
            files.append({"file": name, "prompt": asked.prompts[number], "seed": seed, "made_by": who})
            cells.append(pictures[place])
    grid(cells, len(asked.seeds) * len(made)).save(out / GRID)
    write_json(out / RECORD, record(asked, how, type(pipeline).__name__, files, device))


def each(
    kind: Kind, given: Given, absent: Given, asked: Asked, how: Sampling, progress: RunProgress, what: str
) -> list[Image.Image]:
    """Every prompt with every seed, prompt by prompt."""
    rows = {name: row.repeat_interleave(len(asked.seeds), 0) for name, row in given.items()}
    seeds = list(asked.seeds) * len(asked.prompts)
    found: list[Image.Image] = []
    for begin in range(0, len(seeds), asked.batch):
        progress.show(what, begin, len(seeds))
        part = slice(begin, begin + asked.batch)
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
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "grid": f"a row a prompt; seeds {', '.join(map(str, asked.seeds))} from the left"
        + (", the base before the adapted" if asked.compare_base and asked.adapters else ""),
        "pictures": list(files),
    }


def digest(folder: Path) -> str:
    """Of an adapter's weights."""
    return sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.safetensors")))).hexdigest()
