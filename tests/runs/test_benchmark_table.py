"""The papers' table: means, deviations, counts, and what is not said with one seed."""

import pytest

from peft_runs.benchmark_plan import best_point
from peft_runs.benchmark_results import FORMAT, BenchmarkResults, BenchmarkRow, TaskResult, make_row
from peft_runs.benchmark_table import latex, markdown
from vision_peft.data.benchmarks import VTAB

TASKS = list(VTAB.tasks)
GROUPS = {
    group: [name for name, task in VTAB.tasks.items() if task.group == group]
    for group in ("Natural", "Specialized", "Structured")
}
# Published per task, in the order of TASKS (V-PETL Bench), with the means that papers print of them.
PUBLISHED = {
    "full": (
        "68.9 87.7 64.3 97.2 86.9 87.4 38.8 79.7 95.7 84.2 73.9 56.3 58.6 41.7 65.5 57.5 46.7 25.7 29.1",
        68.97,
        65.57,
    ),
    "lora": (
        "67.1 91.4 69.4 98.8 90.4 85.3 54.0 84.9 95.3 84.4 73.6 82.9 69.2 49.8 78.5 75.7 47.1 31.0 44.0",
        74.6,
        72.3,
    ),
    "ssf": (
        "69.0 92.6 75.1 99.4 91.8 90.2 52.9 87.4 95.9 87.4 75.5 75.9 62.3 53.3 80.6 77.3 54.9 29.5 37.9",
        75.7,
        73.1,
    ),
}


def row(method: str, by_seed: dict[int, list[float]], seeds: range) -> BenchmarkRow:
    results = {
        task: TaskResult(
            {seed: values[place] / 100 for seed, values in by_seed.items()}, {"optim.lr": 0.01}, [], 769, 100
        )
        for place, task in enumerate(TASKS)
    }
    return make_row(method, {}, results, GROUPS, seeds)


def table(rows: list[BenchmarkRow], seeds: range) -> BenchmarkResults:
    shared = {"model": {"name": "vit", "pretrained": True}, "optim": {"batch_size": 64}, "run": {"epochs": 100}}
    return BenchmarkResults(
        *(FORMAT, "VTAB-1k", "vision-peft benchmark", "accuracy", list(seeds), len(seeds) > 1, TASKS, 19, GROUPS, None),
        *(shared, {}, {}, rows),
    )


def figures(method: str) -> list[float]:
    return [float(word) for word in PUBLISHED[method][0].split()]


@pytest.mark.parametrize("method", PUBLISHED)
def test_both_means_of_the_published_rows(method: str) -> None:
    _, of_groups, of_tasks = PUBLISHED[method]
    found = row(method, {0: figures(method)}, range(1))
    assert found.mean_of_groups is not None
    assert found.mean_of_tasks is not None
    assert 100 * found.mean_of_groups.mean == pytest.approx(of_groups, abs=0.05)
    assert 100 * found.mean_of_tasks.mean == pytest.approx(of_tasks, abs=0.05)


def test_group_means_of_full_fine_tuning() -> None:
    groups = row("full", {0: figures("full")}, range(1)).groups
    found = {name: round(100 * figure.mean, 1) for name, figure in groups.items() if figure}
    assert found == {"Natural": 75.9, "Specialized": 83.4, "Structured": 47.6}


def test_deviation_of_a_mean_is_that_of_the_seeds_means() -> None:
    values = {seed: [50.0 + shift] * 19 for seed, shift in ((0, -1.0), (1, 0.0), (2, 1.0))}
    opposed = {
        seed: [50.0 + (shift if place % 2 else -shift) for place in range(19)] for seed, shift in ((0, -1), (1, 1))
    }
    together, apart = row("lora", values, range(3)), row("ssf", opposed, range(2))
    assert together.mean_of_tasks is not None
    assert apart.mean_of_tasks is not None
    assert together.mean_of_tasks.deviation == pytest.approx(0.01)
    assert together.figures["dtd"] is not None
    assert together.figures["dtd"].deviation == pytest.approx(0.01)
    assert apart.mean_of_tasks.deviation == pytest.approx(2**0.5 / 100 / 19)


def test_mean_needs_every_task_and_seed() -> None:
    results = {task: TaskResult({0: 0.5, 1: 0.5}) for task in TASKS} | {"kitti": TaskResult({0: 0.5})}
    found = make_row("lora", {}, results, GROUPS, range(2))
    assert found.groups["Natural"] is not None
    assert (found.groups["Structured"], found.mean_of_groups, found.mean_of_tasks) == (None, None, None)
    assert "—" in markdown(table([found], range(2)))


def test_nothing_is_ranked_with_one_seed() -> None:
    one = table([row(method, {0: figures(method)}, range(1)) for method in PUBLISHED], range(1))
    assert "**" not in markdown(one)
    assert r"\textbf" not in latex(one)
    assert "not ranked" in markdown(one)
    assert "±" not in markdown(one).partition("## Chosen")[0]


def test_highest_mean_of_every_column_is_bold_with_several_seeds() -> None:
    several = table([row(m, {0: figures(m), 1: figures(m)}, range(2)) for m in ("full", "lora")], range(2))
    full, lora = (line for line in markdown(several).splitlines() if line.startswith(("| full | 0", "| lora | 0")))
    assert full.startswith("| full | 0.000 | 0.001 | **68.9 ± 0.0** | 87.7 ± 0.0 |")
    assert lora.endswith("| **59.8 ± 0.0** | **74.6 ± 0.0** | **72.3 ± 0.0** |")
    assert r"\textbf{68.9{\tiny$\,\pm\,$0.0}}" in latex(several)
    assert r"oxford\_iiit\_pet" in latex(several)


def test_choice_goes_by_validation_and_then_the_smaller_rate() -> None:
    points = {lr: (("optim.lr", lr), ("method.r", 8)) for lr in (0.1, 0.001, 0.01)}
    assert best_point({points[0.1]: 0.7, points[0.001]: 0.6, points[0.01]: 0.7}) == points[0.01]
    assert best_point({points[0.1]: 0.8, points[0.001]: 0.6, points[0.01]: 0.7}) == points[0.1]
