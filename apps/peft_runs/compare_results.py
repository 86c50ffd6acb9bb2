"""The record of a comparison, `results.json`: table, figures, report and model cards are drawn from it alone."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peft_runs.compare_columns import Column

FORMAT = 2


@dataclass(frozen=True)
class Spread:
    """Mean over seeds, and the sample standard deviation, null for one seed."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Curve:
    """How a run went: mean training loss of every epoch, and the metric wherever it was judged (in epochs done)."""

    losses: list[float]
    judged_epochs: list[float]
    judged: list[float]


@dataclass(frozen=True)
class RunResult:
    """One finished run.

    Attributes:
        place: its folder, below the comparison's.
        command: what carries it out again.
        figures: the task's figures on the test part, of the adapter reloaded from the disk.
        reloaded_difference: between these and the figures of the model as it was trained.
        predictions: class index for every test sample, if the task has classes.
    """

    seed: int
    place: str
    command: str
    figures: dict[str, float]
    reloaded_difference: float
    merged_difference: float | None
    peak_bytes: int | None
    adapter_bytes: int
    predictions: list[int] | None
    curve: Curve


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        figures: by the columns' names.
        step_seconds: median of a step, of the first seed.
        peak_bytes: the highest of all seeds. So are `merged_difference` and `adapter_bytes`.
        merged_reason: why the method does not merge, if it does not.
        failure: why there are no figures, if a run failed.
        settings: the fields that not all methods share; of the method's own those that the recipe names or changes.
    """

    method: str
    summary: str
    paper: str
    recipe: str
    settings: dict[str, Any]
    failure: str | None = None
    trainable_parameters: int | None = None
    trainable_parameters_without_head: int | None = None
    figures: dict[str, Spread] = dataclasses.field(default_factory=dict)
    step_seconds: float | None = None
    peak_bytes: int | None = None
    adapter_bytes: int | None = None
    merged_difference: float | None = None
    merged_reason: str | None = None
    runs: list[RunResult] = dataclasses.field(default_factory=list)


@dataclass(frozen=True)
class Results:
    """The whole comparison.

    Attributes:
        metric: name of the figure that runs are judged by while they train (more is better).
        columns: what methods are compared by.
        base: figures of the model that all began with, if there are any.
        ranked: whether figures may be ranked: only with several seeds is their spread known.
        shared: the recipe fields that all methods have in common.
        command: what repeats the comparison.
        timing: steps, threads and device of the measured step times.
        unmeasured: what could not be measured, and why.
    """

    format: int
    program: str
    created: str
    recipe: str
    command: str
    metric: str
    columns: list[Column]
    base: dict[str, float] | None
    seeds: list[int]
    ranked: bool
    test_samples: int | None
    jobs: int
    timing: dict[str, Any]
    unmeasured: dict[str, str]
    shared: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    rows: list[Row]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as it stands in `results.json`."""
        return dataclasses.asdict(self)

    @property
    def finished(self) -> list[Row]:
        return [row for row in self.rows if row.failure is None]

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row.failure is not None]

    @property
    def has_head(self) -> bool:
        """Whether there is a part that every method trains anew, beside its own."""
        return any(row.trainable_parameters != row.trainable_parameters_without_head for row in self.finished)

    @property
    def model(self) -> str:
        """What the methods were put on."""
        return str(self.shared.get("model.name") or self.shared.get("model.pipeline") or self.program)

    @property
    def data(self) -> str:
        """What it was adapted to."""
        return str(self.shared.get("data.name", self.recipe))


def read_results(data: Mapping[str, Any]) -> Results:
    """The record again, from the plain data of `results.json`."""
    rows = []
    for row in data["rows"]:
        runs = [RunResult(**{**run, "curve": Curve(**run["curve"])}) for run in row["runs"]]
        figures = {name: Spread(**spread) for name, spread in row["figures"].items()}
        rows.append(Row(**{**row, "figures": figures, "runs": runs}))
    return Results(**{**data, "columns": [Column(**column) for column in data["columns"]], "rows": rows})
