"""How far a comparison is, read from the files that its processes write."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from peft_compare.runs import Run
from peft_runs.compare_examine import read_examined
from peft_runs.compare_plan import Plan, PlannedRun, read_plan
from peft_runs.compare_timing import read_times
from peft_runs.errors import UsageError
from peft_runs.metrics import read_metrics

Stage = Literal["waiting", "starting", "training", "checking", "done", "stopped"]
RECENT = 20  # steps that the time left is told by


@dataclass(frozen=True)
class Lane:
    """One method with one seed.

    Attributes:
        step: optimiser steps done, of `steps`; none where the number is not known.
        judged: epochs done and the metric, wherever it was judged.
        losses: mean training loss of each epoch that has begun.
        seconds_left: of its training.
    """

    method: str
    seed: int
    stage: Stage
    step: int = 0
    steps: int | None = None
    epoch: int = 0
    metric: float | None = None
    judged: list[tuple[float, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    step_seconds: float | None = None

    @property
    def share(self) -> float:
        """Of its steps, in [0, 1]."""
        if self.stage in ("checking", "done"):
            return 1.0
        return min(1.0, self.step / self.steps) if self.steps else 0.0

    @property
    def seconds_left(self) -> float | None:
        if self.stage != "training" or self.step_seconds is None or self.steps is None:
            return None
        return (self.steps - self.step) * self.step_seconds


@dataclass(frozen=True)
class Course:
    """The whole comparison.

    Attributes:
        phase: what it does besides training.
        seconds_left: of all training that is left; none while nothing has been timed.
    """

    lanes: list[Lane]
    metric: str
    epochs: int | None
    phase: str
    seconds_left: float | None


def course_of(run: Run) -> Course:
    """The comparison as it stands on the disk."""
    try:
        plan = read_plan(run.out)
    except UsageError:
        stage: Stage = "waiting" if run.state in ("queued", "running") else "stopped"
        return Course([Lane(name, 0, stage) for name in methods_of(run)], "accuracy", None, "starting", None)
    known = _json(run.out / "course.json")
    going = run.state == "running"
    lanes = [_lane(planned, run.out, known.get("steps"), known.get("metric", ""), going) for planned in plan.runs]
    trained = all(lane.stage == "done" for lane in lanes)
    untimed = [planned for planned in plan.runs if read_times(planned.folder(run.out)) is None]
    phase = "training"
    if trained:
        phase = "measuring step times" if untimed else "writing the report"
    return Course(lanes, known.get("metric", "accuracy"), _epochs(plan, run.out), phase, _left(lanes, plan.jobs))


def methods_of(run: Run) -> list[str]:
    """The methods that its command line names."""
    words = list(run.request.words)
    return words[words.index("--methods") + 1].split(",") if "--methods" in words else []


def _lane(planned: PlannedRun, out: Path, steps: int | None, metric: str, going: bool) -> Lane:
    folder = planned.folder(out)
    if not folder.path.exists():
        return Lane(planned.method, planned.seed, "waiting" if going else "stopped", steps=steps)
    try:
        lines = read_metrics(folder.metrics)
    except OSError:
        lines = []
    trained = [line for line in lines if line["kind"] == "step"]
    if read_examined(folder) is not None:
        stage: Stage = "done"
    elif not going:
        stage = "stopped"
    else:
        stage = "checking" if folder.result.exists() else "training" if trained else "starting"
    by_epoch: dict[int, list[float]] = {}
    for line in trained:
        by_epoch.setdefault(line["epoch"], []).append(line["loss"])
    judged = [(line["step"], line[metric]) for line in lines if line["kind"] == "evaluation" and metric in line]
    per_epoch = len(by_epoch.get(0, [])) or 1
    seconds = [line["seconds"] for line in trained if "seconds" in line][-RECENT:]
    return Lane(
        planned.method,
        planned.seed,
        stage,
        step=trained[-1]["step"] if trained else 0,
        steps=steps,
        epoch=trained[-1]["epoch"] + 1 if trained else 0,
        metric=judged[-1][1] if judged else None,
        judged=[(step / per_epoch, value) for step, value in judged],
        losses=[sum(losses) / len(losses) for _, losses in sorted(by_epoch.items())],
        step_seconds=median(seconds) if seconds else None,
    )


def _left(lanes: list[Lane], jobs: int) -> float | None:
    """The time of the lane that takes longest, or of all together where more wait than can go on."""
    timed = [lane.step_seconds for lane in lanes if lane.step_seconds is not None]
    if not timed or any(lane.steps is None for lane in lanes):
        return None
    typical = median(timed)
    to_do = [
        ((lane.steps or 0) - lane.step) * (lane.step_seconds or typical)
        for lane in lanes
        if lane.stage in ("waiting", "starting", "training")
    ]
    return max([sum(to_do) / max(1, jobs), *to_do]) if to_do else 0.0


def _epochs(plan: Plan, out: Path) -> int | None:
    words = list(plan.runs[0].words)
    if "--run.epochs" in words:
        return int(words[words.index("--run.epochs") + 1])
    from peft_runs.find import load_recipe

    try:
        return (load_recipe(plan.runs[0].recipe).get("run") or {}).get("epochs")
    except UsageError:
        return None


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
