"""From the run folders of a comparison to its record."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from peft_kernels.registry import Method, methods
from peft_runs.compare_columns import columns_of
from peft_runs.compare_examine import read_examined
from peft_runs.compare_machine import machine, versions
from peft_runs.compare_plan import Plan, PlannedRun, settings_of
from peft_runs.compare_results import FORMAT, Curve, Results, Row, RunResult, Spread
from peft_runs.compare_samples import BASE, figures_of
from peft_runs.compare_timing import read_times
from peft_runs.families import Family
from peft_runs.find import load_recipe
from peft_runs.metrics import read_metrics
from peft_runs.recipe import Recipe


def gather(
    plan: Plan,
    out: Path,
    family: Family,
    recipes: Mapping[str, Recipe],
    failures: Mapping[PlannedRun, str],
    unmeasured: Mapping[str, str | None],
    created: str,
) -> Results:
    """Read all run folders; rows in the order of the number of trained parameters, failed ones last."""
    metric = family.tasks()[next(iter(recipes.values())).task].metric
    base = dict(figures_of(out / BASE)) or None
    settings = {name: settings_of(recipe) for name, recipe in recipes.items()}
    shared = _shared(list(settings.values()))
    del shared["run.seed"]  # that of the first runs
    rows = []
    for name in plan.methods:
        runs = [run for run in plan.runs if run.method == name]
        about = methods()[name]
        own = _own(settings[name], shared, about, runs[0].recipe)
        blank = Row(name, about.summary, about.paper, runs[0].recipe, own)
        failed = [(run.seed, failures[run]) for run in runs if run in failures]
        if failed:
            said = failed[0][1] if len(plan.seeds) == 1 else f"seed {failed[0][0]}: {failed[0][1]}"
            kept = [read_run(run, out, family.program, metric) for run in runs if run not in failures]
            rows.append(dataclasses.replace(blank, failure=said, runs=kept))
        else:
            rows.append(_row(blank, runs, out, family, metric))
    names = {name for row in rows for name in row.figures}
    rows.sort(key=lambda row: (row.failure is not None, row.trainable_parameters or 0, row.method))
    done = [run for run in plan.runs if run not in failures]
    times = [time for run in done if (time := read_times(run.folder(out))) is not None]
    timing = {key: times[0][key] for key in ("threads", "device")} if times else {}
    if times:
        timing["steps"] = min(len(time["seconds"]) for time in times)
    samples = {examined["samples"] for run in done if (examined := read_examined(run.folder(out)))}
    return Results(
        format=FORMAT,
        program=family.program,
        created=created,
        recipe=plan.recipe,
        command=compare_command(plan, family),
        metric=metric,
        columns=columns_of(metric, names),
        base=base,
        seeds=plan.seeds,
        ranked=len(plan.seeds) > 1,
        test_samples=samples.pop() if len(samples) == 1 else None,
        jobs=plan.jobs,
        timing=timing,
        unmeasured={what: why for what, why in unmeasured.items() if why is not None},
        shared=shared,
        machine=machine(plan.threads),
        versions=versions(),
        rows=rows,
    )


def compare_command(plan: Plan, family: Family) -> str:
    """The command line that repeats the comparison."""
    words = [family.program, "compare", "--recipe", plan.recipe, "--methods", ",".join(plan.methods)]
    words += ["--seeds", str(len(plan.seeds)), "--jobs", str(plan.jobs), *plan.words]
    return shlex.join(words)


def _row(blank: Row, runs: Sequence[PlannedRun], out: Path, family: Family, metric: str) -> Row:
    read = [read_run(run, out, family.program, metric) for run in runs]
    first = runs[0].folder(out)
    result, times = first.read_result(), read_times(first)
    differences = [run.merged_difference for run in read if run.merged_difference is not None]
    peaks = [run.peak_bytes for run in read if run.peak_bytes is not None]
    examined = read_examined(first) or {}
    return dataclasses.replace(
        blank,
        trainable_parameters=result["trainable_parameters"],
        trainable_parameters_without_head=result["trainable_parameters_without_head"],
        figures={
            name: _spread([run.figures[name] for run in read])
            for name in read[0].figures
            if all(name in run.figures for run in read)
        },
        step_seconds=times["median"] if times else None,
        peak_bytes=max(peaks, default=None),
        adapter_bytes=max(run.adapter_bytes for run in read),
        merged_difference=max(differences, default=None),
        merged_reason=examined.get("merged_reason"),
        runs=read,
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(mean(values), stdev(values) if len(values) > 1 else None)


def read_run(run: PlannedRun, out: Path, program: str, metric: str) -> RunResult:
    """One finished run, from its folder."""
    folder = run.folder(out)
    result, examined = folder.read_result(), read_examined(folder)
    assert examined is not None
    lines = read_metrics(folder.metrics)
    return RunResult(
        seed=run.seed,
        place=run.place,
        command=shlex.join([program, "train", *run.train_words()]),
        figures={**examined["figures"], **figures_of(folder.path)},
        reloaded_difference=examined["reloaded_difference"],
        merged_difference=examined["merged_difference"],
        peak_bytes=result["peak_bytes"],
        adapter_bytes=result["adapter_bytes"],
        predictions=examined["predictions"],
        curve=_curve(lines, metric),
    )


def _curve(lines: Sequence[Mapping[str, Any]], metric: str) -> Curve:
    by_epoch: dict[int, list[float]] = {}
    for line in lines:
        if line["kind"] == "step":
            by_epoch.setdefault(line["epoch"], []).append(line["loss"])
    per_epoch = len(by_epoch.get(0, [0]))
    judged = [line for line in lines if line["kind"] == "evaluation"]
    return Curve(
        [mean(losses) for _, losses in sorted(by_epoch.items())],
        [line["step"] / per_epoch for line in judged],
        [line[metric] for line in judged],
    )


def _own(settings: Mapping[str, Any], shared: Mapping[str, Any], method: Method, recipe: str) -> dict[str, Any]:
    """The recipe's fields that are not shared, without the method's name and the defaults that no recipe names."""
    named = {f"method.{key}" for key in load_recipe(recipe).get("method") or {}}
    default: dict[str, Any] = {"method.name": method.name}
    for field in method.fields():
        value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        default[f"method.{field.name}"] = value
    other = {key: value for key, value in settings.items() if key not in shared}
    other.pop("method.name", None)
    return {key: value for key, value in other.items() if key in named or key not in default or default[key] != value}


def _shared(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = settings[0]
    same = {key for key in first if all(key in other and other[key] == first[key] for other in settings)}
    if len(settings) == 1:
        same = {key for key in same if not key.startswith("method.")}
    return {key: value for key, value in first.items() if key in same}
