"""A benchmark: every method on every task, searched on the validation part, trained anew, tested once.

TASK/METHOD/...     the cells (see benchmark_plan)
table.json          every figure; the tables are drawn from it, again after each task
table.md, table.tex
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from peft_runs.benchmark_plan import BenchmarkPlan, Cell, best_point, result_of
from peft_runs.benchmark_progress import BenchmarkProgress
from peft_runs.benchmark_recipe import Point
from peft_runs.benchmark_results import FORMAT, BenchmarkResults, TaskResult, make_row
from peft_runs.benchmark_table import write_tables
from peft_runs.compare_jobs import train_all
from peft_runs.compare_machine import machine, versions
from peft_runs.compare_plan import Plan
from peft_runs.errors import RunError
from peft_runs.run_folder import RunFolder

# As the training loop says that a number has become none: such a point of the grid is not chosen. Any other failure of
# a search leaves the choice open.
DIVERGED = re.compile(r"became (nan|-?inf) at step")


class Benchmark:
    """What is done and what failed; everything else is on the disk."""

    def __init__(self, plan: BenchmarkPlan, out: Path, console: Console, command: str, budget: int | None):
        self.plan, self.out, self.console = plan, out, console
        self.command, self.budget = command, budget
        first = plan.cell_recipe(plan.first_final(plan.tasks[0], next(iter(plan.methods))))
        self.shared = first.as_dict()
        self.metric = plan.family.tasks()[first.task].metric
        self.results: dict[str, dict[str, TaskResult]] = {method: {} for method in plan.methods}

    def carry_out(self) -> BenchmarkResults:
        """Do what is not done yet, task by task, and write the tables after each.

        Raises:
            RunError: a cell failed; the others are in the tables.
        """
        plan = self.plan
        searches = sum(len(plan.searched(task, method)) for task in plan.tasks for method in plan.methods)
        total = searches + len(plan.tasks) * len(plan.methods) * len(plan.seeds)
        self.console.print(
            f"{len(plan.tasks)} tasks, {len(plan.methods)} methods: {searches} cells to choose settings, "
            f"{total - searches} to test them; {plan.jobs} side by side; results in {self.out}",
            highlight=False,
            soft_wrap=True,
        )
        with BenchmarkProgress(self.console, total, self.shared["run"]["epochs"], self.metric) as progress:
            for task in plan.tasks:
                self._carry_out_task(task, progress)
                write_tables(self.gather(), self.out)
        failed = [f"{task}/{m}" for m, tasks in self.results.items() for task, r in tasks.items() if r.failure]
        if failed:
            raise RunError(f"failed: {', '.join(failed)}; reasons and logs in {self.out}. The same command tries again")
        return self.gather()

    def _carry_out_task(self, task: str, progress: BenchmarkProgress) -> None:
        plan = self.plan
        searches = {method: plan.searched(task, method) for method in plan.methods}
        failures = self._train([cell for cells in searches.values() for cell in cells], progress)
        finals: dict[str, list[Cell]] = {}
        found: dict[str, tuple[Point, list[dict[str, Any]]]] = {}
        for method, cells in searches.items():
            undecided = [reason for cell in cells if (reason := failures.get(cell)) and not DIVERGED.search(reason)]
            scores = {cell.point: result[self.metric] for cell in cells if (result := result_of(cell, self.out))}
            if undecided or (cells and not scores):
                reason = (undecided or [failures[cells[0]]])[0]
                self.results[method][task] = TaskResult(failure=reason)
                progress.skipped(len(plan.seeds))
                continue
            point = best_point(scores) if cells else next(plan.methods[method].points())
            searched = [{**dict(cell.point), self.metric: scores.get(cell.point)} for cell in cells]
            found[method] = point, searched
            finals[method] = [Cell(task, method, point, seed, False) for seed in plan.seeds]
        failures = self._train([cell for cells in finals.values() for cell in cells], progress)
        for method, cells in finals.items():
            results = {cell.seed: result for cell in cells if (result := result_of(cell, self.out))}
            point, searched = found[method]
            first = next(iter(results.values()), {})
            self.results[method][task] = TaskResult(
                values={seed: result[self.metric] for seed, result in results.items()},
                chosen=dict(point),
                searched=searched,
                trainable_parameters=first.get("trainable_parameters"),
                trainable_parameters_without_head=first.get("trainable_parameters_without_head"),
                failure=next((failures[cell] for cell in cells if cell in failures), None),
            )

    def _train(self, cells: Sequence[Cell], progress: BenchmarkProgress) -> dict[Cell, str]:
        """Carry out what has no result yet; cell → reason for those that failed."""
        plan = self.plan
        for cell in cells:
            plan.prepare(cell, self.out)
        runs = {cell.run(self.out): cell for cell in cells}
        jobs = Plan(plan.family.name, plan.recipe.title, plan.words, tuple(runs), plan.jobs, plan.threads)
        failures = train_all(jobs, self.out, plan.family, progress, "benchmark_cell", _figures)
        return {runs[run]: reason for run, reason in failures.items()}

    def gather(self) -> BenchmarkResults:
        """The record of what is done."""
        plan, tasks = self.plan, self.plan.tasks
        names = list(dict.fromkeys(plan.recipe.task(task).group for task in tasks))
        groups = {name: [task for task in tasks if plan.recipe.task(task).group == name] for name in names if name}
        rows = []
        for method, entry in plan.methods.items():
            results = {task: self.results[method].get(task, TaskResult()) for task in tasks}
            settings = {key: value for key, value in entry.sections["method"].items() if key != "name"}
            rows.append(make_row(method, settings, results, groups, plan.seeds))
        return BenchmarkResults(
            format=FORMAT,
            title=plan.recipe.title,
            command=self.command,
            metric=self.metric,
            seeds=list(plan.seeds),
            ranked=len(plan.seeds) > 1,
            tasks=list(tasks),
            tasks_in_all=len(plan.recipe.tasks),
            groups=groups,
            budget=self.budget,
            shared=self.shared,
            machine=machine(plan.threads),
            versions=versions(),
            rows=rows,
        )


def _figures(folder: RunFolder) -> dict[str, Any] | None:
    return folder.read_result() if folder.result.is_file() else None
