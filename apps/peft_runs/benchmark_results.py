"""The record of a benchmark, `table.json`: every figure of every cell, and the means that papers print."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean, stdev
from typing import Any

FORMAT = 1


@dataclass(frozen=True)
class Figure:
    """Mean over seeds and sample standard deviation, null for one seed."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class TaskResult:
    """One method on one task.

    Attributes:
        values: seed → the metric on the test part.
        chosen: the settings that were searched, as chosen on the validation part.
        searched: every point with its metric on the validation part, null where the training diverged.
        failure: why there are no values, if a cell failed.
    """

    values: dict[int, float] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)
    searched: list[dict[str, Any]] = field(default_factory=list)
    trainable_parameters: int | None = None
    trainable_parameters_without_head: int | None = None
    failure: str | None = None

    @property
    def figure(self) -> Figure | None:
        return over_seeds(list(self.values.values()))


@dataclass(frozen=True)
class BenchmarkRow:
    """One method; means are null where a task they need has no figure.

    Attributes:
        groups: group → mean of its tasks.
        mean_of_groups: every group counts alike (VPT, SPT, SNELL, Adapter+).
        mean_of_tasks: every task counts alike (SSF, V-PETL Bench).
        parameters: trained without the head, mean over tasks; `parameters_with_head` with it.
        settings: what the recipe and the budget set for the method.
    """

    method: str
    settings: dict[str, Any]
    tasks: dict[str, TaskResult]
    figures: dict[str, Figure | None]
    groups: dict[str, Figure | None]
    mean_of_groups: Figure | None
    mean_of_tasks: Figure | None
    parameters: float | None
    parameters_with_head: float | None


@dataclass(frozen=True)
class BenchmarkResults:
    """The whole benchmark.

    Attributes:
        groups: group → its tasks, of those that were asked for; of tasks without a group there is none.
        ranked: whether figures may be ranked: only with several seeds is their spread known.
        shared: the recipe that tasks and methods lie over.
    """

    format: int
    title: str
    command: str
    metric: str
    seeds: list[int]
    ranked: bool
    tasks: list[str]
    tasks_in_all: int
    groups: dict[str, list[str]]
    budget: int | None
    shared: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    rows: list[BenchmarkRow]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as it stands in `table.json`."""
        return asdict(self)


def over_seeds(values: Sequence[float]) -> Figure | None:
    """Mean and deviation of one value a seed."""
    if not values:
        return None
    return Figure(mean(values), stdev(values) if len(values) > 1 else None)


def make_row(
    method: str,
    settings: Mapping[str, Any],
    results: Mapping[str, TaskResult],
    groups: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
) -> BenchmarkRow:
    """The row of a method. A mean is taken for each seed first, so that its deviation is that of the mean."""

    def averaged(parts: Sequence[Sequence[str]]) -> Figure | None:
        needed = [results[task].values for tasks in parts for task in tasks]
        if not needed or not all(seed in values for values in needed for seed in seeds):
            return None
        return over_seeds(
            [mean(mean(results[task].values[seed] for task in tasks) for tasks in parts) for seed in seeds]
        )

    def parameters(kind: str) -> float | None:
        counts = [getattr(result, kind) for result in results.values()]
        return mean(counts) if counts and None not in counts else None

    return BenchmarkRow(
        method=method,
        settings=dict(settings),
        tasks=dict(results),
        figures={task: result.figure for task, result in results.items()},
        groups={group: averaged([tasks]) for group, tasks in groups.items()},
        mean_of_groups=averaged(list(groups.values())) if len(groups) > 1 else None,
        mean_of_tasks=averaged([list(results)]),
        parameters=parameters("trainable_parameters_without_head"),
        parameters_with_head=parameters("trainable_parameters"),
    )
