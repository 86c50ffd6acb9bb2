"""The same budget for several methods: the setting of each that brings its trainable parameters nearest to it.

The head is left out, since every method trains it. Models are built on the meta device: no weights, no memory.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from peft_compare.refusals import RefusedError
from peft_kernels.budget import match_budget
from peft_kernels.registry import methods
from peft_runs.benchmark_budget import HIGHEST, trained_without_head
from peft_runs.compare_plan import make_plan, read_recipes
from peft_runs.errors import UsageError
from peft_runs.families import Family

# The fields that say how large an adapter is, the first that a method has; the last two count parameters themselves.
SIZES = ("r", "num_tokens", "budget", "num_trainable")
EXACT = ("budget", "num_trainable")


@dataclass(frozen=True)
class Share:
    """What a method gets: the value of its size and the parameters this makes, the head left out; no field where the
    method has one size only."""

    method: str
    field: str | None
    value: int | None
    parameters: int


def size_field(method: str) -> str | None:
    """The name of the setting that says how large this method's adapter is."""
    known = {field.name for field in methods()[method].fields()}
    return next((name for name in SIZES if name in known), None)


def solve(family: Family, recipe: str, words: Sequence[str], names: Sequence[str], budget: int) -> list[Share]:
    """The shares of all methods in a comparison with these words.

    Raises:
        RefusedError: a method does not fit the model.
    """
    return [share_of(partial(count, family.name, recipe, tuple(words), name), name, budget) for name in names]


def share_of(counted: Callable[..., int], name: str, budget: int) -> Share:
    """The share of one method, whose parameters `counted(field, value)` tells, or `counted()` if it has one size."""
    field = size_field(name)
    if field is None:
        return Share(name, None, None, counted())
    if field in EXACT:
        return Share(name, field, budget, budget)
    # SNELL's ranks come in parts of equal size.
    parts = [known.default for known in methods()[name].fields() if known.name == "num_parts"]
    step = parts[0] if parts and isinstance(parts[0], int) else 1

    def at(steps: int) -> int:
        return counted(field, step * steps)

    steps = match_budget(at, budget, 1, HIGHEST // step)
    return Share(name, field, step * steps, at(steps))


@lru_cache(maxsize=4096)
def count(
    family: str, recipe: str, words: tuple[str, ...], name: str, field: str | None = None, value: int | None = None
) -> int:
    """Trainable parameters of a method in a comparison with these words, the head left out.

    Raises:
        RefusedError: it does not fit.
    """
    from peft_runs.compare_child import FAMILIES

    own = [] if field is None else [f"--method.{field}", str(value)]
    chosen = FAMILIES[family]
    try:
        read = read_recipes(make_plan(chosen, recipe, [name], 1, [*words, *own], 1, None), chosen)[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, about layers that it knows less well
            return trained_without_head(read, chosen.tasks()[read.task])
    except (UsageError, ValueError, RuntimeError) as error:
        raise RefusedError(f"{name}: {' '.join(str(error).split())}") from None
