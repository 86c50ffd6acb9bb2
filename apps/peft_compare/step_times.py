"""How long a comparison will take here, by the steps that earlier ones took on this machine, or that are timed for it.

    python -m peft_compare.step_times RUNS PROGRAM WORDS...        times a few steps of each method

step_times.json in the folder of runs holds, and nothing else of any run:
    step      seconds of a step, by model, pictures a step and method
    epoch     steps of an epoch, by the data and pictures a step
    beside    seconds of a method beside its steps, by model: loading, judging, checking what was saved
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from peft_compare.plans import planned
from peft_compare.refusals import RefusedError
from peft_runs.compare_child import FAMILIES
from peft_runs.compare_plan import read_plan, read_recipes
from peft_runs.compare_timing import time_steps
from peft_runs.durable import write_json
from peft_runs.families import Family
from peft_runs.recipe import Recipe

FILE = "step_times.json"
PATIENCE = 180.0  # seconds that timing may take
KINDS = ("step", "epoch", "beside")
_timing = threading.Lock()


@dataclass(frozen=True)
class Estimate:
    """What is known before the start.

    Attributes:
        seconds: of the whole; none where no method's step is known.
        guessed: methods whose step is taken to be like the others'.
        whole: whether what a method takes beside its steps is counted too.
    """

    seconds: float | None
    guessed: tuple[str, ...] = ()
    whole: bool = True


def estimate(runs: Path, family: Family, words: Sequence[str]) -> Estimate:
    """How long the command `compare` with these words will take.

    Raises:
        UsageError: the words are wrong.
    """
    plan, recipes = planned(family.name, tuple(words))
    known = _read(runs)
    steps = {name: known["step"].get(_step(recipe, name)) for name, recipe in recipes.items()}
    epochs = {name: known["epoch"].get(_epoch(recipe), 0.0) for name, recipe in recipes.items()}
    timed = [seconds for seconds in steps.values() if seconds is not None]
    if not timed or not all(epochs.values()):
        return Estimate(None)
    lanes = []
    for run in plan.runs:
        recipe, seconds = recipes[run.method], steps[run.method]
        trained = epochs[run.method] * recipe.run.epochs * (median(timed) if seconds is None else seconds)
        lanes.append(trained + known["beside"].get(_model(recipe), 0.0))
    guessed = tuple(name for name, seconds in steps.items() if seconds is None)
    whole = all(_model(recipe) in known["beside"] for recipe in recipes.values())
    return Estimate(max(sum(lanes) / plan.jobs, *lanes, 0.0), guessed, whole)


def remember(runs: Path, out: Path, family: Family, seconds: float) -> None:
    """Keep what a comparison that is done has shown; it took `seconds` in all."""
    plan = read_plan(out)
    recipes = read_recipes(plan, family)
    known, spent = _read(runs), 0.0
    total = json.loads((out / "course.json").read_text(encoding="utf-8"))["steps"]
    for run in plan.runs:
        result, recipe = run.folder(out).read_result(), recipes[run.method]
        took = result.get("step_seconds_median")
        if took is None or not total:
            return
        known["step"][_step(recipe, run.method)] = took
        known["epoch"][_epoch(recipe)] = total / recipe.run.epochs
        spent += took * total
    beside = max(0.0, seconds * plan.jobs - spent) / len(plan.runs)
    known["beside"] |= {_model(recipe): beside for recipe in recipes.values()}
    write_json(runs / FILE, known)


def timed(runs: Path, family: Family, words: Sequence[str]) -> None:
    """Time a few steps of each method in a process of its own, and keep what came of it.

    Raises:
        RefusedError: somebody else's are being timed, or these cannot be.
    """
    if not _timing.acquire(blocking=False):
        raise RefusedError("other steps are being timed: try again in a minute")
    command = [sys.executable, "-P", "-m", "peft_compare.step_times", str(runs), family.name, *words]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, start_new_session=True
        )
    except subprocess.TimeoutExpired:
        raise RefusedError(f"a few steps take longer than {PATIENCE:g} s here") from None
    finally:
        _timing.release()
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise RefusedError(f"the steps could not be timed: {said[-1].strip() if said else 'no reason was given'}")


def main(runs: Path, family: Family, words: Sequence[str]) -> None:
    """Time the steps in this process."""
    from peft_runs.report_pictures import part_sizes
    from peft_runs.start import start_accelerator

    _, recipes = planned(family.name, tuple(words))
    accelerator, tasks, known = start_accelerator(next(iter(recipes.values())).run), family.tasks(), _read(runs)
    for name, recipe in recipes.items():
        if _step(recipe, name) not in known["step"]:
            known["step"][_step(recipe, name)] = time_steps(family, recipe, accelerator)["median"]
            accelerator.free_memory()
        if _epoch(recipe) not in known["epoch"]:
            sizes = part_sizes(tasks[recipe.task](recipe.model, recipe.data, recipe.run.seed))
            if sizes is not None:
                known["epoch"][_epoch(recipe)] = sizes[0] // recipe.optim.batch_size
    write_json(runs / FILE, known)


def _read(runs: Path) -> dict[str, dict[str, float]]:
    try:
        found = json.loads((runs / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    return {kind: found.get(kind, {}) for kind in KINDS}


def _model(recipe: Recipe) -> str:
    return f"{recipe.task} {_digest(getattr(recipe.model, 'name', None) or getattr(recipe.model, 'pipeline', ''))}"


def _step(recipe: Recipe, method: str) -> str:
    return f"{_model(recipe)} {recipe.optim.batch_size} {method}"


def _epoch(recipe: Recipe) -> str:
    return f"{recipe.task} {_digest(recipe.as_dict()['data'])} {recipe.optim.batch_size}"


def _digest(value: Any) -> str:
    """Names and folders are visitors' own."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


if __name__ == "__main__":
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    main(Path(sys.argv[1]), FAMILIES[sys.argv[2]], sys.argv[3:])
