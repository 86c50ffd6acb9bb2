"""The plan and the recipes of a command line, read once for all who ask: a form asks with every change of a field."""

from functools import lru_cache

from peft_runs.command_compare import shares
from peft_runs.compare_child import FAMILIES
from peft_runs.compare_plan import Plan, make_plan, read_recipes
from peft_runs.recipe import Recipe


@lru_cache(maxsize=256)
def planned(family: str, words: tuple[str, ...]) -> tuple[Plan, dict[str, Recipe]]:
    """The plan of `compare --recipe R --methods A,B --seeds N CHANGES...` on this machine, and each method's recipe.

    Raises:
        UsageError: it cannot be carried out.
    """
    _, _, recipe, _, names, _, seeds, *changes = words
    chosen = FAMILIES[family]
    plan = make_plan(chosen, recipe, names.split(","), int(seeds), changes, *shares(None))
    return plan, read_recipes(plan, chosen)
