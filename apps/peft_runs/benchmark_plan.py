"""The cells of a benchmark: one training each, in a folder of its own, named by what it is.

TASK/METHOD/search/lr=0.001    one point of the grid, trained on `train`, judged on `val`, with the first seed
TASK/METHOD/seed-N             the chosen point, trained on `trainval`, judged on `test` after the last epoch

A cell's folder holds `cell.yaml`, all that decides it; a cell with a result is never carried out again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from peft_runs.benchmark_recipe import BenchmarkMethod, BenchmarkRecipe, Point
from peft_runs.compare_plan import PlannedRun
from peft_runs.durable import write_text
from peft_runs.errors import UsageError
from peft_runs.families import Family
from peft_runs.find import laid_over, load_recipe
from peft_runs.read import differences, read_recipe, split_words
from peft_runs.recipe import Recipe
from peft_runs.run_folder import FREE, RunFolder


@dataclass(frozen=True)
class Cell:
    """One training."""

    task: str
    method: str
    point: Point
    seed: int
    search: bool

    @property
    def place(self) -> str:
        last = f"search/{point_name(self.point)}" if self.search else f"seed-{self.seed}"
        return f"{self.task}/{self.method}/{last}"

    @property
    def label(self) -> str:
        return f"{self.task}, {self.method}, " + (point_name(self.point) if self.search else f"seed {self.seed}")

    def folder(self, out: Path) -> RunFolder:
        return RunFolder(out / self.place)

    def run(self, out: Path) -> PlannedRun:
        """What its process is given."""
        return PlannedRun(self.label, self.seed, str(out / self.place / "cell.yaml"), (), self.place)


def point_name(point: Point) -> str:
    """`lr=0.001,r=8`."""
    return ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in point)


@dataclass(frozen=True)
class BenchmarkPlan:
    """What is carried out.

    Attributes:
        methods: with the fields that the budget set, and without the grid's fields that the command line fixed.
        words: the user's own changes to all cells.
        threads: of one cell on a CPU; null leaves it to torch.
    """

    family: Family
    recipe: BenchmarkRecipe
    tasks: Sequence[str]
    methods: Mapping[str, BenchmarkMethod]
    seeds: Sequence[int]
    words: tuple[str, ...]
    data_root: Path | None
    jobs: int
    threads: int | None

    def searched(self, task: str, method: str) -> list[Cell]:
        """A cell for every point of the grid; none where there is nothing to choose."""
        points = list(self.methods[method].points())
        return [Cell(task, method, point, self.seeds[0], True) for point in points] if len(points) > 1 else []

    def first_final(self, task: str, method: str) -> Cell:
        """A tested cell with the first point of the grid, whichever will be chosen."""
        return Cell(task, method, next(self.methods[method].points()), self.seeds[0], False)

    def cell_recipe(self, cell: Cell) -> Recipe:
        """All that decides a cell.

        Raises:
            UsageError: the recipe, the grid or the command line does not fit; the cell is named.
        """
        entry = self.recipe.task(cell.task)
        data = laid_over(laid_over(self.recipe.base, entry.sections), self.methods[cell.method].sections)
        for key, value in cell.point:
            section, _, name = key.partition(".")
            data = laid_over(data, {section: {name: value}})
        words = [*self.words, "--run.seed", str(cell.seed)]
        words += [] if self.threads is None else ["--run.threads", str(self.threads)]
        try:
            recipe = read_recipe(data, words, self.family.tasks())
        except UsageError as error:
            raise UsageError(f"{cell.label}: {error}") from None
        root = recipe.data.root
        if self.data_root is not None and "data.root" not in dict(split_words(list(self.words))):
            root = str(self.data_root / (root or ""))
        parts = ("train", "val") if cell.search else ("trainval", recipe.data.test_split)
        pictures = replace(recipe.data, root=root, train_split=parts[0], test_split=parts[1])
        return replace(recipe, data=pictures, run=replace(recipe.run, evaluate_epochs=recipe.run.epochs))

    def prepare(self, cell: Cell, out: Path) -> None:
        """Write the cell's recipe into its folder.

        Raises:
            UsageError: what lies there was begun with other settings.
        """
        recipe, folder = self.cell_recipe(cell), cell.folder(out)
        if folder.recipe.is_file():
            before = read_recipe(load_recipe(folder.recipe), [], self.family.tasks())
            for key, old, new in differences(before, recipe):
                if key not in (*FREE, "run.threads"):
                    raise UsageError(
                        f"{folder.path} was begun with {key} {old!r}, now it is {new!r}: choose another --out, "
                        "or remove that folder"
                    )
        folder.path.mkdir(parents=True, exist_ok=True)
        write_text(folder.path / "cell.yaml", yaml.safe_dump(recipe.as_dict(), sort_keys=False))


def best_point(figures: Mapping[Point, float]) -> Point:
    """The point of the highest figure; of equal ones that of the smaller learning rate, then the first."""

    def order(point: Point) -> tuple[float, float]:
        return figures[point], -float(dict(point).get("optim.lr", 0.0))

    return max(figures, key=order)


def result_of(cell: Cell, out: Path) -> dict[str, Any] | None:
    """The result of a finished cell."""
    folder = cell.folder(out)
    return folder.read_result() if folder.result.is_file() else None
