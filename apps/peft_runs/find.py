"""Recipes by name: `configs/**/NAME.yaml` of the checkout, or the same files inside an installed wheel.

A recipe may stand on another: `base: NAME` takes that one's fields, and its own come over them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from peft_runs.errors import UsageError, unknown

HERE = Path(__file__).resolve().parent


def recipe_names() -> dict[str, Path]:
    """Every recipe's name and file."""
    packaged = HERE / "configs"
    folder = packaged if packaged.is_dir() else HERE.parent.parent / "configs"
    return {path.stem: path for path in sorted(folder.rglob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file of a recipe given by name or by path.

    Raises:
        UsageError: there is none; the nearest name is told.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"there is no recipe file {path}")
        return path
    names = recipe_names()
    if name not in names:
        raise unknown("recipe", name, names)
    return names[name]


def load_recipe(name: str | Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe as plain data, with that of its base under it.

    Raises:
        UsageError: the file or its base is missing, unreadable, no mapping, or its own base.
    """
    path = find_recipe(str(name)).resolve()
    if path in above:
        raise UsageError(f"the recipe {path} is its own base")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"the recipe {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UsageError(f"the recipe {path} must be a mapping of sections, found {type(data).__name__}")
    base = data.pop("base", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise UsageError(f"the recipe {path} must name its base, found {base!r}")
    return laid_over(load_recipe(base, (*above, path)), data)


def laid_over(base: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` over `base`, section by section; another method's name drops the base's method fields."""
    merged = dict(base)
    for key, value in data.items():
        below = merged.get(key)
        if not isinstance(below, Mapping) or not isinstance(value, Mapping):
            merged[key] = value
        elif key == "method" and value.get("name", below.get("name")) != below.get("name"):
            merged[key] = dict(value)
        else:
            merged[key] = laid_over(below, value)
    return merged
