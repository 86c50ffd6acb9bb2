"""A recipe's section `benchmark`: the tasks, the methods, and what is searched for each.

benchmark:
  suite: vtab                       the tasks that the family knows under this name
  tasks:                            or tasks of one's own; each lies over the recipe, `data.root` below --data-root
    cifar10: {group: Photographs, data: {root: cifar}}
  grid: {optim.lr: [0.001, 0.01]}   searched for every method that has no grid of its own
  methods:                          each lies over the recipe, too
    lora: {method: {r: 8}, grid: {...}, scale: {fields: [r, lora_alpha]}}
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from peft_kernels.registry import methods
from peft_runs.errors import UsageError, unknown
from peft_runs.find import laid_over
from peft_runs.read import SECTIONS

Point = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class BenchmarkTask:
    """One task: what lies over the recipe, and the mean it counts into, if any."""

    group: str | None
    sections: Mapping[str, Any]


@dataclass(frozen=True)
class BenchmarkMethod:
    """One method.

    Attributes:
        sections: what lies over the recipe.
        grid: dotted field → the values searched, all with all.
        scaled: fields that grow together with the number of trained parameters.
        step: what they are multiples of.
    """

    sections: Mapping[str, Any]
    grid: Mapping[str, list[Any]]
    scaled: tuple[str, ...] = ()
    step: int = 1

    def points(self) -> Iterator[Point]:
        """Every combination of the grid's values; one empty point where there is no grid."""
        for values in product(*self.grid.values()):
            yield tuple(zip(self.grid, values, strict=True))


@dataclass(frozen=True)
class BenchmarkRecipe:
    """The section, read; `base` is the recipe without it."""

    title: str
    base: Mapping[str, Any]
    tasks: Mapping[str, BenchmarkTask]
    methods: Mapping[str, BenchmarkMethod]
    grid: Mapping[str, list[Any]] = field(default_factory=dict)

    def task(self, name: str) -> BenchmarkTask:
        """The task of this name.

        Raises:
            UsageError: there is none; the nearest is told.
        """
        if name not in self.tasks:
            raise unknown("task", name, self.tasks)
        return self.tasks[name]

    def method(self, name: str) -> BenchmarkMethod:
        """The method of this name, also one that the recipe does not list.

        Raises:
            UsageError: there is none; the nearest is told.
        """
        if name not in methods():
            raise unknown("method", name, methods())
        return self.methods.get(name) or BenchmarkMethod({"method": {"name": name}}, self.grid)


def read_benchmark(name: str, data: Mapping[str, Any], suites: Mapping[str, Any]) -> BenchmarkRecipe:
    """The benchmark that the recipe `data` describes.

    Args:
        name: the recipe's name.
        suites: the benchmarks that the family knows, each with a title and tasks that have a group.

    Raises:
        UsageError: there is none, or a key or value that does not fit (the nearest known one is told).
    """
    section = data.get("benchmark")
    if not isinstance(section, Mapping):
        raise UsageError(f"the recipe {name!r} describes no benchmark: it has no section 'benchmark'")
    _check(section, "benchmark", ("suite", "tasks", "grid", "methods"))
    grid = _grid(section.get("grid") or {}, "benchmark")
    tasks: dict[str, BenchmarkTask] = {}
    suite = section.get("suite")
    if suite is not None:
        if suite not in suites:
            raise unknown("suite", str(suite), suites)
        for task, known in suites[suite].tasks.items():
            tasks[task] = BenchmarkTask(known.group, {"data": {"name": f"{suite}/{task}"}})
    for task, entry in _mapping(section.get("tasks"), "benchmark.tasks").items():
        _check(entry, f"benchmark.tasks.{task}", ("group", *SECTIONS))
        below = tasks.get(task, BenchmarkTask(None, {}))
        sections = {key: value for key, value in entry.items() if key != "group"}
        tasks[str(task)] = BenchmarkTask(entry.get("group", below.group), laid_over(below.sections, sections))
    if not tasks:
        raise UsageError(f"the recipe {name!r} describes no tasks: benchmark.suite or benchmark.tasks names them")
    entries = _mapping(section.get("methods"), "benchmark.methods").items()
    listed = {str(method): _method(str(method), entry or {}, grid) for method, entry in entries}
    base = {key: value for key, value in data.items() if key != "benchmark"}
    return BenchmarkRecipe(suites[suite].title if suite else name, base, tasks, listed, grid)


def _method(name: str, entry: Mapping[str, Any], grid: Mapping[str, list[Any]]) -> BenchmarkMethod:
    where = f"benchmark.methods.{name}"
    _check(entry, where, ("grid", "scale", *SECTIONS))
    sections = {key: value for key, value in entry.items() if key in SECTIONS}
    sections["method"] = {**(sections.get("method") or {}), "name": name}
    scale = _mapping(entry.get("scale"), f"{where}.scale")
    _check(scale, f"{where}.scale", ("fields", "step"))
    own = _grid(entry["grid"], where) if entry.get("grid") is not None else grid
    return BenchmarkMethod(sections, own, tuple(scale.get("fields", ())), int(scale.get("step", 1)))


def _grid(grid: Any, where: str) -> dict[str, list[Any]]:
    for key, values in _mapping(grid, f"{where}.grid").items():
        if not isinstance(values, list) or not values or str(key).partition(".")[0] not in ("method", "optim", "model"):
            raise UsageError(
                f"{where}.grid.{key} must be a list of values of a field of method, optim or model, found {values!r}"
            )
    return dict(grid)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value or {}, Mapping):
        raise UsageError(f"the recipe's {where} must be a mapping, found {value!r}")
    return value or {}


def _check(entry: Any, where: str, known: tuple[str, ...]) -> None:
    for key in _mapping(entry, where):
        if key not in known:
            raise unknown(f"key of {where}", str(key), known)
