"""Recipes by name: `configs/**/NAME.yaml` of the checkout, or the same files inside an installed wheel."""

from pathlib import Path

from peft_runs.errors import UsageError, unknown

HERE = Path(__file__).resolve().parent


def recipe_folder() -> Path:
    """The folder that holds the recipes: packaged, or that of the checkout."""
    packaged = HERE / "configs"
    return packaged if packaged.is_dir() else HERE.parent.parent / "configs"


def recipe_names() -> dict[str, Path]:
    """Every recipe's name and file."""
    return {path.stem: path for path in sorted(recipe_folder().rglob("*.yaml"))}


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
