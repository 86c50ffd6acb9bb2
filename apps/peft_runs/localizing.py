"""A search for the layers that draw the text, carried out in a folder: kept as it goes on, drawn when it is done."""

import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diffusion_peft.denoiser import denoiser
from diffusion_peft.localization import Localization, localize_text_layers
from diffusion_peft.localization.generations import Generations
from diffusion_peft.localization.measures import Metric, eight_bits
from diffusion_peft.localization.pairs import Pair, pairs_of
from diffusion_peft.localization.readers import metrics_of, reader_of
from diffusion_peft.pipelines.opening import open_pipeline
from diffusion_peft.pipelines.sampling import grid
from peft_runs.durable import write_json
from peft_runs.errors import UsageError
from peft_runs.families import DIFFUSION
from peft_runs.localize_figure import draw_layers
from peft_runs.localize_page import write_page
from peft_runs.progress import RunProgress
from peft_runs.put_on import Weighed, put_on

REPORT, ASKED, GRID, LAYERS = "localization.json", "asked.json", "grid.png", "layers.png"
SHARE = 20  # of the time at most one part in so many goes into writing
SHOWN = 4  # pairs in the grid


@dataclass(frozen=True)
class Asked:
    """What is searched, and how; see `diffusion_peft.localize_text_layers`."""

    pipeline: str
    adapters: tuple[Weighed, ...]
    prompts: tuple[str | tuple[str, str], ...]
    layers: list[int | str] | None = None
    reader: str | None = None
    metrics: Sequence[str] = ()
    score: str | None = None
    steps: int = 50
    guidance: float = 5.0
    start_step: int = 0
    seed: int = 42
    batch: int = 4
    at_once: int = 1
    largest_set: int = 3
    size: int | None = None
    dtype: str = "float32"

    @property
    def settings(self) -> dict[str, Any]:
        """Of the pipeline's call."""
        return {} if self.size is None else {"height": self.size, "width": self.size}


@dataclass
class Folder:
    """Where a search is kept, with the words that it was asked with."""

    path: Path
    words: Sequence[str]
    _written: float = field(default=0.0, init=False)
    _took: float = field(default=0.0, init=False)

    def found(self) -> Localization | None:
        """What was found before the search was stopped."""
        return Localization.load(self.path / REPORT) if (self.path / REPORT).is_file() else None

    def keep(self, report: Localization, whole: bool = False) -> None:
        """Write the report, unless that would take too much of the time."""
        began = time.monotonic()
        if not whole and began - self._written < SHARE * self._took:
            return
        if not (self.path / ASKED).is_file():
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / ASKED, list(self.words))
        write_json(self.path / REPORT, asdict(report))
        self._written = time.monotonic()
        self._took = self._written - began


def localize(asked: Asked, folder: Folder, device: torch.device, progress: RunProgress) -> str:
    """Search, or go on with it, and draw; the sentence to say.

    Raises:
        UsageError: prompts, layers or measures that cannot be used, or a report of another search.
    """
    reader = reader_of(asked.reader) if asked.reader else None
    metrics: dict[str, Metric] = {}
    for name in asked.metrics:
        metrics |= metrics_of(name)
    pipeline = open_pipeline(asked.pipeline, asked.dtype).to(device)
    if asked.adapters:
        put_on(denoiser(pipeline), asked.adapters).to(device)

    def told(report: Localization, done: int, total: int) -> None:
        folder.keep(report)
        progress.show("search", done, total)

    same = ("score", "steps", "guidance", "start_step", "seed", "batch", "at_once", "largest_set", "settings", "layers")
    try:
        report = localize_text_layers(
            pipeline,
            asked.prompts,
            reader=reader,
            metrics=metrics,
            resume=folder.found(),
            told=told,
            **{name: getattr(asked, name) for name in same},
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    folder.keep(report, whole=True)
    leave(asked, folder, report, pipeline)
    best = report.best_set()
    names = dict(zip(report.indices, report.names, strict=True))
    scored = ", ".join(f"{report.score} {report.of(*chosen)[report.score]:.3f}" for chosen in [best])
    lines = [f"{index}  {names[index]}" for index in best]
    return "\n".join([f"best layers, {scored}:", *lines, f"wrote {folder.path / 'report.html'}"])


def leave(asked: Asked, folder: Folder, report: Localization, pipeline: Any) -> None:
    """Write the pictures and the page."""
    pairs = pairs_of(asked.prompts)[:SHOWN]
    sets = shown(report)
    picture = drawn(asked, pipeline, pairs, sets)
    picture.save(folder.path / GRID)
    draw_layers(report, folder.path / LAYERS, asked.pipeline)
    repeat = f"{DIFFUSION.program} localize {shlex.join(folder.words)}"
    write_page(report, folder.path, asked.pipeline, [LAYERS, GRID], pairs, sets, repeat)


def shown(report: Localization) -> list[tuple[int, ...]]:
    """The sets of layers whose pictures are shown: the best three alone, the best together, all those scored."""
    single = [(index,) for index in report.ranking()[:3]]
    together = [layers for layers in report.sets() if len(layers) > 1]
    return [*single, *together[-1:]]


def drawn(asked: Asked, pipeline: Any, pairs: Sequence[Pair], sets: Sequence[tuple[int, ...]]) -> Image.Image:
    """Rows of pairs: the source, the target, and the source whose layers read the target."""
    run = Generations(pipeline, asked.steps, asked.guidance, asked.start_step, settings=asked.settings)
    rows = []
    for number, pair in enumerate(pairs):
        target, source, *others = run.together([pair], [asked.seed + number], [(), *sets])
        rows += [source, target, *others]
    pixels = eight_bits(torch.cat(rows)).permute(0, 2, 3, 1).numpy()
    return grid([Image.fromarray(picture) for picture in pixels], 2 + len(sets))
