"""A search for text layers as one HTML file that needs nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from diffusion_peft.localization import Localization
from diffusion_peft.localization.pairs import Pair
from peft_runs.durable import write_text
from peft_runs.families import DIFFUSION
from peft_runs.localize_figure import measures, number
from peft_runs.report_pictures import as_address
from peft_runs.run_page import LARGEST, PAGE, template


@dataclass(frozen=True)
class Row:
    """A line of the table: the layers' numbers, their measures, the module's name."""

    layers: str
    figures: list[str]
    name: str


def write_page(
    report: Localization,
    out: Path,
    pipeline: str,
    files: Sequence[str],
    pairs: Sequence[Pair],
    sets: Sequence[Sequence[int]],
    repeat: str,
) -> None:
    """Write `report.html`; ``files`` are the PNGs of layers and pictures, ``sets`` the grid's further columns."""
    settings = report.settings
    facts = {
        "Pipeline": pipeline,
        "Layers": f"{len(report.indices)} that read the text",
        "Pairs of prompts": str(report.pictures()),
        "Generation": f"{settings['steps']} steps, guidance {settings['guidance']}, seeds from {settings['seed']}, "
        f"another text from step {settings['start_step']}",
        "Best set": f"{', '.join(map(str, report.best_set()))} by {report.score}",
    }
    with Image.open(out / files[0]) as layers, Image.open(out / files[1]) as grid:
        pictures = {
            "layers": as_address(layers, 4 * LARGEST),
            "grid": as_address(grid, LARGEST),
            "width": min(2 * grid.width, 1000),
        }
    text = template("localize.html.j2").render(
        **pictures,
        title=f"The layers of {pipeline} that draw text",
        program=DIFFUSION.program,
        facts=facts,
        columns=["source", "target", *("source, reading the target in " + "+".join(map(str, one)) for one in sets)],
        rows=[f"{pair.source} → {pair.target}" for pair in pairs],
        score=report.score,
        count=report.pictures(),
        measures=measures(report),
        table=table(report),
        usage=usage(pipeline, report),
        repeat=repeat,
    )
    write_text(out / PAGE, text)


def table(report: Localization) -> list[Row]:
    """The sources, sets, and layers in order of merit."""
    names = dict(zip(report.indices, report.names, strict=True))
    sets = [layers for layers in report.sets() if len(layers) > 1]
    rows = []
    for layers in [(), *sets, *((index,) for index in report.ranking())]:
        found = report.of(*layers)
        figures = [number(found[name]) for name in measures(report)]
        rows.append(Row("+".join(map(str, layers)) or "none", figures, names[layers[0]] if len(layers) == 1 else ""))
    return rows


def usage(pipeline: str, report: Localization) -> str:
    """Python that edits text with what was found, and trains a LoRA there."""
    best = report.best_set()
    source, target = report.settings["prompts"][0]  # type: ignore[index]
    return (
        "import diffusion_peft as dp\nfrom diffusion_peft.pipelines.opening import open_pipeline\n\n"
        f"pipe = open_pipeline({pipeline!r})\n"
        f"pictures = dp.edit_text(pipe, [({source!r}, {target!r})], {best}).edited\n"
        f"dp.add_adapter(pipe, dp.localized_lora(pipe, {best}, r=4))\n"
    )
