"""A comparison from its plan to its report: train all, time all, gather, draw, tell.

plan.json               what is compared; --resume goes by it
course.json             how many steps each run has, and by which figure it is judged
METHOD/seed-N/          a run folder, as `train` leaves it, with log.txt (what its process said),
                        examined.json (what the saved adapter does) and step_times.json; where models draw, also
                        drawn.safetensors (their pictures) and drawn.json (what was measured on these)
base/                   the same two of the model that all began with, where models draw
METHOD/seed-N/adapter/  the adapter in PEFT's format, with its model card
results.json            all figures; everything below is drawn from it
figures/                PNG
report.html             the whole, in one file
"""

import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from peft_runs.compare_after import measure_all, time_all
from peft_runs.compare_gather import gather
from peft_runs.compare_jobs import finished, train_all
from peft_runs.compare_plan import Plan
from peft_runs.compare_progress import CompareProgress
from peft_runs.compare_results import Results
from peft_runs.compare_table import show
from peft_runs.compare_words import duration
from peft_runs.durable import write_json
from peft_runs.errors import RunError
from peft_runs.families import Family
from peft_runs.figure import write_figures
from peft_runs.recipe import Recipe
from peft_runs.report import write_report
from peft_runs.report_card import write_cards
from peft_runs.report_pictures import part_sizes
from peft_runs.report_samples import samples


def carry_out(
    plan: Plan, out: Path, family: Family, recipes: Mapping[str, Recipe], task: object, console: Console
) -> Results:
    """Do what the plan's runs still lack, then write the record, the figures, the cards and the report.

    Raises:
        RunError: a method failed; the others are in the report.
    """
    begun = time.monotonic()
    first = next(iter(recipes.values()))
    metric = family.tasks()[first.task].metric
    console.print(
        f"{len(plan.methods)} methods, {len(plan.seeds)} {'seed' if len(plan.seeds) == 1 else 'seeds'}, "
        f"{plan.jobs} side by side; results in {out}",
        highlight=False,
        soft_wrap=True,
    )
    steps = _steps(first, task)
    write_json(out / "course.json", {"steps": steps, "metric": metric})
    try:
        with CompareProgress(console, plan.methods, len(plan.seeds), steps, metric) as progress:
            failures = train_all(plan, out, family, progress)
            done = [run for run in plan.runs if finished(run, out)]
            first_seed = [run for run in done if run.seed == plan.seeds[0]]
            unmeasured = {
                "the pictures": measure_all(plan, out, family, done, progress),
                "the step times": time_all(plan, out, family, first_seed, progress),
            }
    except KeyboardInterrupt:
        done = sum(finished(run, out) for run in plan.runs)
        console.print(f"stopped; {done} of {len(plan.runs)} runs are finished and kept. To go on:", soft_wrap=True)
        console.print(f"  {family.program} compare --resume --out {out}", highlight=False, soft_wrap=True)
        raise
    results = gather(plan, out, family, recipes, failures, unmeasured, time.strftime("%Y-%m-%d %H:%M"))
    write_json(out / "results.json", results.as_dict())
    if results.finished:
        write_figures(results, out / "figures", samples(results, out))
        write_cards(results, task, out)
    write_report(results, task, out / "report.html")
    console.print()
    show(results, console)
    console.print(
        f"\n{duration(time.monotonic() - begun)}; report: {out / 'report.html'}", highlight=False, soft_wrap=True
    )
    if results.failed or any(unmeasured.values()):
        names = ", ".join([*(row.method for row in results.failed), *(what for what, why in unmeasured.items() if why)])
        raise RunError(f"failed: {names}; reasons above, logs in {out}. To try these again: --resume --out {out}")
    return results


def _steps(recipe: Recipe, task: object) -> int | None:
    """Training steps of one run, where the task tells how many samples it has."""
    sizes = part_sizes(task)
    return None if sizes is None else sizes[0] // recipe.optim.batch_size * recipe.run.epochs
