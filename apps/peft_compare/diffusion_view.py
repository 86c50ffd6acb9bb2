"""What the Diffusion page shows of a run, drawn from what lies on the disk."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from diffusion_peft.data.conditions import FILE as STEERED
from diffusion_peft.pipelines.one_step import FILE as ONE_STEP
from peft_compare.diffusion_kept import read_kept
from peft_compare.drawing.requests import Line, Worn
from peft_compare.parts.chart import Axis, Series, chart
from peft_compare.parts.downloads import of_run
from peft_compare.parts.grid import Column, GridRow, grid
from peft_compare.parts.heat import heat
from peft_compare.parts.pictures import strips
from peft_compare.parts.tables import table
from peft_compare.runs import Run
from peft_compare.vision_view import results_of, shown_of
from peft_runs.compare_plan import read_plan
from peft_runs.compare_results import Results
from peft_runs.compare_samples import BASE, read_measured
from peft_runs.errors import UsageError
from peft_runs.find import load_recipe
from peft_runs.put_on import WHOLE
from peft_runs.run_folder import RunFolder

MOST_PICTURES = 24  # of a strip


@dataclass(frozen=True)
class Adapter:
    """The trained adapter of a method's first seed.

    Attributes:
        folder: of its run.
        one_step: whether it was trained for one step.
        steered: by what, if pictures steer it.
        whole: a whole model, which has no strength.
    """

    method: str
    folder: Path
    one_step: bool
    steered: bool
    whole: bool

    def line(self, weight: float = 1.0, **how: float) -> Line:
        """A row of this adapter alone."""
        return Line(self.method, (Worn(str(self.folder), weight),), **how)  # type: ignore[arg-type]


def adapters_of(run: Run) -> list[Adapter]:
    """Those of a comparison's finished methods."""
    results = results_of(run)
    found = []
    for row in results.finished if results is not None else ():
        folder = RunFolder(run.out / row.runs[0].place)
        held = folder.adapter
        found.append(
            Adapter(
                row.method,
                folder.path,
                (held / ONE_STEP).is_file(),
                (held / STEERED).is_file(),
                (held / WHOLE).is_file(),
            )
        )
    return found


def pipeline_of(run: Run) -> str:
    """What its adapters were trained on."""
    results = results_of(run)
    return "mini_sd" if results is None else results.model


def compared(run: Run) -> str:
    """Table, figure, heat maps and downloads of a finished comparison."""
    results = results_of(run)
    if results is None:
        return ""
    parts = [
        table(results, run),
        plane(results),
        where(run, [row.method for row in results.finished]),
        of_run(run.id, run.out, run.request.program, run.request.words),
    ]
    return "".join(parts)


def where(run: Run, names: list[str]) -> str:
    """Where the parameters went, folded: a denoiser has many blocks."""
    maps = heat(shown_of(run).get("where", {}), names)
    return f'<details data-key="where"><summary>Where the parameters went</summary>{maps}</details>' if maps else ""


def plane(results: Results) -> str:
    """What was taken on against what was kept, where both are known; otherwise the first figure against parameters."""
    known = {column.name: column for column in results.columns}
    rows = results.finished
    if {"frechet", "kept"} <= known.keys():
        x = Axis("distance to the data (Fréchet; less is nearer)", lambda value: f"{value:.3g}")
        y = Axis("kept of other prompts (SSIM)", lambda value: f"{value:.2f}")
        series = [Series(row.method, [row.figures["frechet"].mean], [row.figures["kept"].mean]) for row in rows]
        near = min(rows, key=lambda row: row.figures["frechet"].mean, default=None)
        most = max(rows, key=lambda row: row.figures["kept"].mean, default=None)
        finding = f"Nearest to the data: {near.method}; keeps most: {most.method}" if near and most else ""
        title = "What was taken on, and what was kept"
    else:
        column = results.columns[0]
        rows = [row for row in rows if column.name in row.figures]
        x = Axis("trainable parameters", lambda value: f"{value:,.0f}", logarithmic=True)
        y = Axis(column.heading, lambda value: f"{value:.4g}")
        series = [Series(r.method, [float(r.trainable_parameters or 0)], [r.figures[column.name].mean]) for r in rows]
        finding = "; ".join(f"{row.method} {row.figures[column.name].mean:.4g}" for row in rows)
        title = f"{column.heading.capitalize()} against parameters"
    return chart(title, finding, series, x, y, lines=False, named=True, key="plane", size=(620, 280))


def strips_of(run: Run) -> str:
    """What each method drew in the course of its training."""
    try:
        plan = read_plan(run.out)
    except UsageError:
        return ""
    found: dict[str, list[tuple[int, str]]] = {}
    for planned in plan.runs:
        if planned.method in found:
            continue
        pictures = sorted(planned.folder(run.out).samples.glob("step-*.png"))
        chosen = pictures if len(pictures) <= MOST_PICTURES else [*pictures[: MOST_PICTURES - 1], pictures[-1]]
        address = f"/runs/{run.id}/files/out/{quote(planned.place)}/samples"
        steps = [(int(path.stem.removeprefix("step-")), f"{address}/{path.name}") for path in chosen]
        if steps:
            found[planned.method] = steps
    return strips(found, prompts_of(run), f"strips-{run.id}")


def prompts_of(run: Run) -> list[str]:
    """The prompts of the samples, as the runs' recipes have them; none where pictures of the data steer."""
    for path in sorted(run.out.glob("*/seed-*/recipe.yaml")):
        try:
            model = load_recipe(path).get("model") or {}
        except UsageError:
            continue
        return [str(prompt) for prompt in (model.get("samples") or {}).get("prompts") or ()]
    return []


def asked_first(run: Run) -> str:
    """Prompts to begin with: one of the data's, and one that has nothing to do with them."""
    measured = read_measured(run.out / BASE) or {}
    prompts = measured.get("prompts") or {}
    chosen = [prompts[kind][0] for kind in ("own", "unrelated") if prompts.get(kind)]
    return "\n".join(chosen or prompts_of(run)[:2] or ["cat face on purple"])


def kept_grid(run: Run) -> str:
    """The pictures that the comparison drew at its end, side by side."""
    kept = read_kept(run.out)
    if kept is None:
        return ""
    known = {adapter.method for adapter in adapters_of(run)}
    rows = [GridRow(name, name if name in known else None, pictures) for name, pictures in kept["rows"]]
    return grid(rows, [Column(prompt) for prompt in kept["prompts"]], "Pictures drawn at the end of the training")
