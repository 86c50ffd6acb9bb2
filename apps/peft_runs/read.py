"""From a recipe's file and the command line to a `Recipe`, in two steps.

First the task's and the method's names, then the fields that these two have: a recipe is data, so names are looked up
in tables and no value ever names code. Unknown keys are refused with the nearest known one before anything is parsed.
"""

import types
import typing
from argparse import SUPPRESS
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, field, fields, is_dataclass, make_dataclass
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser

from peft_kernels.registry import methods
from peft_runs.errors import UsageError, unknown
from peft_runs.recipe import MethodSpec, OptimSpec, Recipe, RunSpec
from peft_runs.task import Task

SECTIONS = ("model", "data", "method", "optim", "run")
# PEFT imports the module that the second names as soon as the first is set.
REFUSED = ("megatron_config", "megatron_core")
PLAIN = (bool, int, float, str, type(None), Any)


def read_recipe(data: Mapping[str, Any], words: list[str], tasks: Mapping[str, type[Task]]) -> Recipe:
    """The recipe that `data` gives once the command line's `--section.field value` are put over it.

    Raises:
        UsageError: an unknown task, method, section or field (the nearest is told), or a value that does not fit.
    """
    given = dict(split_words(words))
    task, method = task_and_method(data, given, tasks)
    sections = section_types(tasks[task], method)
    merged = merge(data, given, method)
    check_keys(merged, sections)
    try:
        parser = recipe_parser(sections)
        built = parser.instantiate(parser.parse_object({key: merged[key] for key in SECTIONS if key in merged}))
    except ArgumentError as error:
        raise UsageError("the recipe does not fit: " + " ".join(str(error).split())) from None
    except (TypeError, ValueError) as error:
        raise UsageError(f"the recipe does not fit: {error}") from None
    chosen = {f.name: getattr(built.method, f.name) for f in fields(built.method) if f.name != "name"}
    return Recipe(task, built.model, built.data, MethodSpec(method, chosen), built.optim, built.run)


def help_text(data: Mapping[str, Any], words: list[str], tasks: Mapping[str, type[Task]], usage: str) -> str:
    """Every field of every section, with the recipe's values as defaults."""
    given = dict(split_words(words))
    task, method = task_and_method(data, given, tasks)
    sections = section_types(tasks[task], method)
    merged = merge(data, given, method)
    check_keys(merged, sections)
    parser = recipe_parser(sections, usage=usage)
    named = {key: value for key, value in flat(merged, sections) if key != "task"}
    parser.set_defaults(named)
    return parser.format_help()


def task_and_method(
    data: Mapping[str, Any], given: Mapping[str, str], tasks: Mapping[str, type[Task]]
) -> tuple[str, str | None]:
    """The two names that decide which fields there are."""
    task = str(given.get("task", data.get("task", next(iter(tasks)))))
    if task not in tasks:
        raise unknown("task", task, tasks)
    for section in SECTIONS:
        if not isinstance(data.get(section) or {}, Mapping):
            raise UsageError(f"the recipe's section {section!r} must be a mapping, found {data[section]!r}")
    name = given.get("method.name", (data.get("method") or {}).get("name"))
    if name in (None, "null", "none"):
        return task, None
    if name not in methods():
        raise unknown("method", str(name), methods())
    return task, str(name)


def section_types(task: type[Task], method: str | None) -> dict[str, type]:
    """The dataclass of every section."""
    return dict(
        zip(SECTIONS, (task.model_spec, task.data_spec, method_fields(method), OptimSpec, RunSpec), strict=True)
    )


def method_fields(name: str | None) -> type:
    """A plain dataclass of the fields that a recipe may set for this method: those whose values are plain data."""
    about = "Name in the table of methods; null trains the model itself."
    entries: list[tuple[str, Any, Any]] = [("name", str | None, field(default=name, metadata={"help": about}))]
    if name is not None:
        hints = typing.get_type_hints(methods()[name].config_class)
        known = [f for f in methods()[name].fields() if is_plain(hints[f.name]) and f.name not in REFUSED]
        entries += [(f.name, hints[f.name], _copy(f)) for f in known]
    made = make_dataclass("method", entries, frozen=True)
    lines = [f"    {f.name}: {meaning(f)}" for f in fields(made)]
    made.__doc__ = "\n".join([f"Settings of {name or 'the model itself'}.", "", "Args:", *lines])
    return made


def meaning(known: Field) -> str:
    """The first sentence of a field's own help."""
    words = " ".join(known.metadata.get("help", "").split())
    return words.partition(". ")[0].rstrip(".")


def is_plain(hint: Any) -> bool:
    """Whether all values of a type are plain data (numbers, words, lists and mappings of these)."""
    origin = typing.get_origin(hint)
    if origin is None:
        return hint in PLAIN or hint in (list, dict, set, tuple)
    if origin is Literal:
        return True
    if origin in (typing.Union, types.UnionType, list, dict, set, tuple):
        return all(part is Ellipsis or is_plain(part) for part in typing.get_args(hint))
    return False


def _copy(known: Field) -> Any:
    if known.default_factory is not MISSING:
        return field(default_factory=known.default_factory, metadata=known.metadata)
    return field(default=None if known.default is MISSING else known.default, metadata=known.metadata)


def recipe_parser(sections: Mapping[str, type], usage: str | None = None) -> ArgumentParser:
    """A parser of all fields of all sections."""
    parser = ArgumentParser(exit_on_error=False, default_env=False, usage=usage)
    for name, section in sections.items():
        parser.add_class_arguments(section, name)
    for action in parser._actions:
        if (action.help or "").startswith("Path to a configuration file"):
            action.help = SUPPRESS  # whole sections from other files are not taken
    return parser


def split_words(words: list[str]) -> Iterator[tuple[str, str]]:
    """`--a.b value` and `--a.b=value` as pairs."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise UsageError(f"{word!r} is not understood: settings are written --section.field value")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UsageError(f"--{key} needs a value: write --{key} VALUE")
            value = rest.pop(0)
        yield key, value


def merge(data: Mapping[str, Any], given: Mapping[str, str], method: str | None) -> dict[str, Any]:
    """The file's data with the command line's values over them; another method drops the file's fields for its own."""
    own = {key: value for key, value in data.items() if key != "benchmark"}  # read by that command alone
    merged = {key: dict(value) if isinstance(value, Mapping) else value for key, value in own.items()}
    old = merged.get("method") or {}
    merged["method"] = {**(old if old.get("name") == method else {}), "name": method}
    for key, value in given.items():
        if key == "method.name":
            continue
        *path, last = key.split(".")
        place = merged
        for name in path:
            inner = place.get(name)
            place[name] = dict(inner) if isinstance(inner, Mapping) else {}
            place = place[name]
        place[last] = value
    return {key: value for key, value in merged.items() if value is not None}


def check_keys(merged: Mapping[str, Any], sections: Mapping[str, type]) -> None:
    """Refuse what is no section and no field of one."""
    known = [*known_keys(sections), "task"]
    for key, _ in flat(merged, sections):
        if key not in known:
            raise unknown("recipe key", key, known)


def known_keys(sections: Mapping[str, type], prefix: str = "") -> Iterator[str]:
    """The dotted names of all fields; a field that is a dataclass counts by its own fields."""
    for name, section in sections.items():
        for known in fields(section):
            inner = typing.get_type_hints(section)[known.name] if not prefix else None
            if is_dataclass(inner) and isinstance(inner, type):
                yield from known_keys({known.name: inner}, f"{name}.")
            else:
                yield f"{prefix}{name}.{known.name}"


def flat(merged: Mapping[str, Any], sections: Mapping[str, type]) -> Iterator[tuple[str, Any]]:
    """Dotted names and values; a mapping that is the value of one field stays whole."""
    whole = set(known_keys(sections))
    stack = [(str(key), value) for key, value in reversed(list(merged.items()))]
    while stack:
        name, value = stack.pop()
        if isinstance(value, Mapping) and value and name not in whole:
            stack += [(f"{name}.{key}", inner) for key, inner in reversed(list(value.items()))]
        else:
            yield name, value


def differences(left: Recipe, right: Recipe) -> Iterator[tuple[str, Any, Any]]:
    """Dotted names of the fields in which two recipes differ, and both values."""
    one, other = left.as_dict(), right.as_dict()
    for section in ("task", *SECTIONS):
        if not isinstance(one[section], Mapping):
            if one[section] != other[section]:
                yield section, one[section], other[section]
            continue
        for key in {**one[section], **other[section]}:
            if one[section].get(key) != other[section].get(key):
                yield f"{section}.{key}", one[section].get(key), other[section].get(key)
