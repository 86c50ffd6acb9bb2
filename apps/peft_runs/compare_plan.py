"""What a comparison carries out: one run per method and seed, all on the same model, data and budget.

The recipe of a method is `<recipe>_<method>`, where there is one beside `<recipe>`; otherwise `<recipe>` itself with
the method put into it. `--lora.method.r 4` changes LoRA's alone. `plan.json` in the comparison's folder keeps the plan,
so that it can be gone on with.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_kernels.registry import methods
from peft_runs.durable import write_json
from peft_runs.errors import UsageError, unknown
from peft_runs.families import Family
from peft_runs.find import find_recipe, load_recipe
from peft_runs.read import SECTIONS, differences, read_recipe, split_words
from peft_runs.recipe import Recipe
from peft_runs.run_folder import RunFolder

FORMAT = 1
# Fields in which the runs of a comparison may differ: the method, how it is optimised, and a task's `of_method`.
OWN = ("method.", "optim.")
SHARED_ALL_THE_SAME = ("optim.batch_size",)


@dataclass(frozen=True)
class PlannedRun:
    """One method with one seed.

    Attributes:
        recipe: name or file of the recipe it starts from.
        words: what is put over that recipe, as on the command line.
        place: its folder, below the comparison's.
    """

    method: str
    seed: int
    recipe: str
    words: tuple[str, ...]
    place: str

    def folder(self, out: Path) -> RunFolder:
        return RunFolder(out / self.place)

    def train_words(self) -> list[str]:
        """The words after `train` that carry out this run anywhere."""
        return ["--recipe", self.recipe, *self.words]


@dataclass(frozen=True)
class Plan:
    """One comparison.

    Attributes:
        family: the family's name.
        recipe: the recipe all methods share, as it was named.
        words: the user's own changes to it.
        runs: seed by seed, each with all methods.
        jobs: how many run side by side.
        threads: of each of them on a CPU; null leaves it to torch.
    """

    family: str
    recipe: str
    words: tuple[str, ...]
    runs: tuple[PlannedRun, ...]
    jobs: int
    threads: int | None

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(run.method for run in self.runs))

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs})

    def write(self, out: Path) -> None:
        """Keep the plan in the comparison's folder."""
        write_json(out / "plan.json", {"format": FORMAT, **dataclasses.asdict(self)})


def read_plan(out: Path) -> Plan:
    """The plan of a comparison that was begun in `out`.

    Raises:
        UsageError: there is none.
    """
    try:
        data = json.loads((out / "plan.json").read_text(encoding="utf-8"))
        runs = tuple(PlannedRun(**{**run, "words": tuple(run["words"])}) for run in data["runs"])
        return Plan(data["family"], data["recipe"], tuple(data["words"]), runs, data["jobs"], data["threads"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"nothing to resume in {out}: it holds no comparison (plan.json)") from None


def make_plan(
    family: Family, recipe: str, names: list[str] | None, seeds: int, words: list[str], jobs: int, threads: int | None
) -> Plan:
    """The plan for `names`, or for all methods that have a recipe beside `recipe`.

    Raises:
        UsageError: there is no such recipe or method, or no method is given.
    """
    own = method_recipes(recipe)
    if names is None:
        names = list(own)
        if not names:
            raise UsageError(
                f"no methods are given, and there are no recipes {Path(recipe).stem}_<method> that would name some: "
                f"add --methods A,B,...; known are {', '.join(methods())}"
            )
    for name in names:
        if name not in methods():
            raise unknown("method", name, methods())
    given, of_one = _for_all_and_for_one(words, names)
    for key, instead in {
        "method.name": "--methods A,B,...",
        "run.threads": "--jobs N",
        "run.seed": "--seeds N",
    }.items():
        if (key in given and key != "run.seed") or any(key in alone for alone in of_one.values()):
            raise UsageError(f"--{key} is set for each run by the comparison: use {instead}")
    first = _first_seed(recipe, given)
    runs = []
    for seed in range(first, first + seeds):
        for name in names:
            chosen = () if name in own else ("--method.name", name)
            own_words = {**given, **of_one.get(name, {})}
            shared = tuple(
                word for key, value in own_words.items() if key != "run.seed" for word in (f"--{key}", value)
            )
            threaded = () if threads is None else ("--run.threads", str(threads))
            settings = (*chosen, *shared, "--run.seed", str(seed), *threaded)
            runs.append(PlannedRun(name, seed, own.get(name, recipe), settings, f"{name}/seed-{seed}"))
    return Plan(family.name, recipe, tuple(words), tuple(runs), jobs, threads)


def method_recipes(recipe: str) -> dict[str, str]:
    """Method → recipe, for the recipes `<recipe>_<method>` that lie beside `recipe`, in the order of the methods."""
    path = find_recipe(recipe)
    found = {}
    for name in methods():
        beside = path.with_name(f"{path.stem}_{name}{path.suffix}")
        if beside.is_file():
            found[name] = beside.stem if recipe == path.stem else str(beside)
    return found


def _for_all_and_for_one(words: list[str], names: list[str]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """The changes to all recipes, and method → those to its own (`--lora.method.r 4`)."""
    for_all: dict[str, str] = {}
    for_one: dict[str, dict[str, str]] = {}
    for key, value in split_words(words):
        name, dot, rest = key.partition(".")
        if dot and name in methods():
            if name not in names:
                raise UsageError(f"--{key} changes {name}, which is not compared: the methods are {', '.join(names)}")
            for_one.setdefault(name, {})[rest] = value
        else:
            for_all[key] = value
    return for_all, for_one


def _first_seed(recipe: str, given: Mapping[str, str]) -> int:
    seed = given.get("run.seed", (load_recipe(recipe).get("run") or {}).get("seed", 0))
    try:
        return int(seed)
    except (TypeError, ValueError):
        raise UsageError(f"run.seed must be a whole number, found {seed!r}") from None


def read_recipes(plan: Plan, family: Family) -> dict[str, Recipe]:
    """Method → its recipe with the first seed, once all are known to be comparable.

    Raises:
        UsageError: a recipe is wrong (the method is named), or two differ in what all must share.
    """
    read: dict[str, Recipe] = {}
    tasks = family.tasks()
    for run in plan.runs:
        if run.method in read:
            continue
        try:
            read[run.method] = read_recipe(load_recipe(run.recipe), list(run.words), tasks)
        except UsageError as error:
            raise UsageError(f"{run.method}: {error}") from None
    first = next(iter(read))
    own = (*OWN, *getattr(tasks.get(read[first].task), "of_method", ()))
    for name, recipe in read.items():
        for key, one, other in differences(read[first], recipe):
            if not key.startswith(own) or key in SHARED_ALL_THE_SAME:
                raise UsageError(
                    f"the recipes of {first} and {name} cannot be compared: {key} is {one!r} for {first} and {other!r} "
                    f"for {name}; the same for all with --{key} VALUE"
                )
    return read


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """The recipe as dotted names and values; mappings that are one field of a method are kept whole."""
    settings: dict[str, Any] = {"task": recipe.task}
    for section in SECTIONS:
        for key, value in recipe.as_dict()[section].items():
            if isinstance(value, Mapping) and section != "method":
                settings |= {f"{section}.{key}.{name}": inner for name, inner in value.items()}
            else:
                settings[f"{section}.{key}"] = value
    return settings
