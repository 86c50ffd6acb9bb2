"""From what a visitor chose on the Vision page to the command line that does it, checked before it waits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import timm

import vision_peft  # noqa: F401 (registers its models)
from peft_compare.budget import Share, size_field, solve
from peft_compare.plans import planned
from peft_compare.refusals import RefusedError
from peft_kernels.config import nearest
from peft_kernels.registry import methods
from peft_runs.compare_plan import method_recipes
from peft_runs.errors import UsageError
from peft_runs.families import VISION
from peft_runs.find import load_recipe

RECIPE = "digits"
MOST_SEEDS, MOST_EPOCHS = 10, 500


@dataclass(frozen=True)
class Choice:
    """What is asked for.

    Attributes:
        data: folder of an upload; none stands for the embedded digits.
        budget: trainable parameters that all methods are brought to; none leaves each its own size.
        sizes: method → value of its size; left out where the recipe's holds.
        rates: method → learning rate; left out where the recipe's holds.
        extra: further words of the command line, for all methods.
    """

    methods: tuple[str, ...]
    model: str = "vit_mini"
    data: Path | None = None
    epochs: int = 7
    seeds: int = 1
    budget: int | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    extra: tuple[str, ...] = ()


@cache
def offered() -> dict[str, str]:
    """Methods for pictures and what each trains, those with a recipe of their own first."""
    known = methods()
    own = [name for name in method_recipes(RECIPE) if name in known]
    others = [name for name, method in known.items() if method.family == "vision" and not method.needs]
    return {name: known[name].summary for name in dict.fromkeys([*own, *others])}


@cache
def own_settings(method: str) -> tuple[str | None, int | None, float]:
    """The method's size, what the recipe sets it to, and the recipe's learning rate."""
    recipe = load_recipe(method_recipes(RECIPE).get(method, RECIPE))
    name = size_field(method)
    value = None
    if name is not None:
        default = next(known.default for known in methods()[method].fields() if known.name == name)
        value = int((recipe.get("method") or {}).get(name, default))
    return name, value, float(recipe["optim"]["lr"])


def shares(choice: Choice) -> list[Share]:
    """What each method gets of the budget.

    Raises:
        RefusedError: a method does not fit the model.
    """
    assert choice.budget is not None
    return solve(VISION, RECIPE, _shared(choice), choice.methods, choice.budget)


def words_of(choice: Choice) -> list[str]:
    """The command line, once it is known that it can be carried out.

    Raises:
        RefusedError: something is missing or does not fit; the sentence says what.
    """
    _check(choice)
    words = ["compare", "--recipe", RECIPE, "--methods", ",".join(choice.methods), "--seeds", str(choice.seeds)]
    changes = _shared(choice)
    sizes = dict(choice.sizes)
    if choice.budget is not None:
        sizes = {share.method: share.value for share in shares(choice) if share.value is not None}
    for name in choice.methods:
        size, usual, rate = own_settings(name)
        if size is not None and sizes.get(name, usual) != usual:
            changes += [f"--{name}.method.{size}", str(sizes[name])]
        if choice.rates.get(name, rate) != rate:
            changes += [f"--{name}.optim.lr", repr(float(choice.rates[name]))]
    line = [*words, *changes]
    try:
        planned(VISION.name, tuple(line))
    except UsageError as error:
        raise RefusedError(str(error)) from None
    return line


def _shared(choice: Choice) -> list[str]:
    """The words that hold for all methods."""
    words = ["--run.epochs", str(choice.epochs), "--run.evaluate_epochs", "1"]
    if choice.model != "vit_mini":
        words += ["--model.name", choice.model]
    if choice.data is not None:
        words += ["--data.name", "folder", "--data.root", str(choice.data)]
    return [*words, *choice.extra]


def _check(choice: Choice) -> None:
    if not choice.model.startswith(("hf-hub:", "local-dir:")) and not timm.is_model(choice.model):
        raise RefusedError(f"there is no model {choice.model!r}{nearest(choice.model, timm.list_models())}")
    if not choice.methods:
        raise RefusedError("no method is chosen: tick at least one")
    for name in choice.methods:
        if name not in offered():
            raise RefusedError(f"there is no method {name!r} for pictures; known are {', '.join(offered())}")
    for name, value in choice.sizes.items():
        if value < 1:
            raise RefusedError(f"{name}: {own_settings(name)[0]} must be at least 1, found {value}")
    if not 1 <= choice.epochs <= MOST_EPOCHS:
        raise RefusedError(f"epochs must be from 1 to {MOST_EPOCHS}, found {choice.epochs}")
    if not 1 <= choice.seeds <= MOST_SEEDS:
        raise RefusedError(f"seeds must be from 1 to {MOST_SEEDS}, found {choice.seeds}")
    if choice.budget is not None and choice.budget < 1:
        raise RefusedError(f"the budget must be at least 1 parameter, found {choice.budget}")


def name_of(choice: Choice) -> str:
    """What the list of runs calls it."""
    data = "digits" if choice.data is None else "my pictures"
    return f"{choice.model} on {data}"
