"""From a recipe's file and the command line to a `Recipe`, in two steps.

First the task's and the method's names, then the fields that these two have: a recipe is data, so names are looked up
in tables and no value ever names code. Unknown keys are refused with the nearest known one before anything is parsed.
"""

import dataclasses
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from peft_runs.errors import UsageError, unknown
from peft_runs.recipe import MethodSpec, OptimSpec, Recipe, RunSpec
from peft_runs.task import Task

SECTIONS = ("model", "data", "method", "optim", "run")


def load_file(path: Path) -> dict[str, Any]:
    """The recipe's file as plain data."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"the recipe {path} cannot be read: {reason}") from None
    if not isinstance(data, dict):
        raise UsageError(f"the recipe {path} is no mapping of sections ({', '.join(SECTIONS)})")
    return data


def read_recipe(data: Mapping[str, Any], arguments: list[str], tasks: Mapping[str, type[Task]]) -> Recipe:
    """The recipe that `data` gives once the command line's `--section.field value` are put over it.

    Raises:
        UsageError: an unknown task, method, section or field (the nearest is told), or a value of the wrong type.
    """
    given = dict(split_arguments(arguments))
    task_name = given.get("task", data.get("task", next(iter(tasks))))
    if task_name not in tasks:
        raise unknown("task", str(task_name), tasks)
    data, method = settle_method(data, given)
    parser = recipe_parser(tasks[task_name], method)
    known = leaves(parser)
    for key in [*flat(data), *given]:
        if key not in known and key != "method.name":
            raise unknown("recipe key", key, [*known, "method.name"])
    try:
        values = parser.parse_object(without_method_name(data))
        values = parser.parse_args(as_options(given), namespace=values)
        built = parser.instantiate_classes(values)
    except (ArgumentError, TypeError, ValueError) as error:
        raise UsageError(one_sentence(error)) from None
    fields = as_plain(built.method) if method else {}
    return Recipe(task_name, built.model, built.data, MethodSpec(method, fields), built.optim, built.run)


def settle_method(data: Mapping[str, Any], given: dict[str, str]) -> tuple[dict[str, Any], str | None]:
    """The method's name; the file's fields for another method are dropped."""
    section = data.get("method") or {}
    if not isinstance(section, Mapping):
        raise UsageError(f"the recipe's section 'method' must be a mapping with a name, found {section!r}")
    name = section.get("name")
    chosen = given.get("method.name", name)
    chosen = None if chosen in (None, "null", "None", "none") else str(chosen)
    kept = dict(section) if chosen == name else {}
    return {**data, "method": {**kept, "name": chosen}}, chosen


def method_fields(name: str | None) -> type:
    """A plain dataclass of the fields that a recipe may set for this method."""
    if name is None:
        return dataclasses.make_dataclass("NoMethod", [], frozen=True)
    from peft_kernels.registry import methods

    known = methods()
    if name not in known:
        raise unknown("method", name, known)
    hints = typing.get_type_hints(known[name].config_class)
    fields = [(field.name, hints[field.name], _default(field)) for field in known[name].fields()]
    made = dataclasses.make_dataclass(f"{name}_settings", fields, frozen=True)
    made.__doc__ = known[name].config_class.__doc__
    return made


def recipe_parser(task: type[Task], method: str | None) -> ArgumentParser:
    """A parser of all fields of all sections."""
    parser = ArgumentParser(exit_on_error=False, default_env=False, prog="vision-peft train --recipe NAME")
    parser.add_argument("--task", type=str, default=None, help="what is learned")
    sections = (task.model_spec, task.data_spec, method_fields(method), OptimSpec, RunSpec)
    for name, section in zip(SECTIONS, sections, strict=True):
        parser.add_class_arguments(section, name, fail_untyped=False)
    return parser


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return dataclasses.field(default=field.default)
    factory = field.default_factory
    return dataclasses.field() if factory is dataclasses.MISSING else dataclasses.field(default_factory=factory)


def split_arguments(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """`--a.b value` and `--a.b=value` as pairs."""
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise UsageError(f"{word!r} is not understood: settings are written --section.field value")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not rest or (rest[0].startswith("--") and len(rest[0]) > 2):
                raise UsageError(f"--{key} needs a value: write --{key} VALUE")
            value = rest.pop(0)
        yield key, value


def as_options(given: Mapping[str, str]) -> list[str]:
    return [f"--{key}={value}" for key, value in given.items() if key != "method.name"]


def without_method_name(data: Mapping[str, Any]) -> dict[str, Any]:
    method = {key: value for key, value in data["method"].items() if key != "name"}
    rest = {key: value for key, value in data.items() if key != "method"}
    return {**rest, "method": method} if method else rest


def leaves(parser: ArgumentParser) -> list[str]:
    """The dotted names of all fields."""
    defaults = parser.get_defaults()
    return [key for key in flat(defaults.as_dict())]


def flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of all values below the sections; a field's own mapping counts as one value."""
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and name.split(".")[0] in SECTIONS and name.count(".") < 2:
            yield from flat(value, name + ".")
        elif not (isinstance(value, Mapping) and name in SECTIONS):
            yield name


def as_plain(fields: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(fields) and not isinstance(fields, type):
        return dataclasses.asdict(fields)
    return fields.as_dict() if isinstance(fields, Namespace) else dict(fields)


def one_sentence(error: BaseException) -> str:
    """The first line of what the parser says."""
    lines: Iterable[str] = (line.strip() for line in str(error).splitlines() if line.strip())
    return " ".join(list(lines)[:2])
