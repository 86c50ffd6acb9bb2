"""From what a visitor chose on the Points page to the command line that does it, checked before it waits."""

from functools import cache

from peft_compare.plans import planned
from peft_compare.refusals import RefusedError
from peft_kernels.registry import methods
from peft_runs.compare_plan import method_recipes
from peft_runs.errors import UsageError
from peft_runs.families import VISION

RECIPE = "scans"
MOST_EPOCHS, MOST_CLOUDS = 300, 5000


@cache
def offered() -> dict[str, str]:
    """Methods that have a recipe for clouds, and what each trains."""
    known = methods()
    return {name: known[name].summary for name in method_recipes(RECIPE) if name in known}


def words_of(chosen: list[str], epochs: int, clouds: int, extra: tuple[str, ...] = ()) -> list[str]:
    """The command line, once it is known that it can be carried out.

    Args:
        clouds: to train on.
        extra: further words.

    Raises:
        RefusedError: something is missing or does not fit; the sentence says what.
    """
    if not chosen:
        raise RefusedError("no method is chosen: tick at least one")
    if not 1 <= epochs <= MOST_EPOCHS:
        raise RefusedError(f"epochs must be from 1 to {MOST_EPOCHS}, found {epochs}")
    if not 60 <= clouds <= MOST_CLOUDS:
        raise RefusedError(f"clouds to train on must be from 60 to {MOST_CLOUDS}, found {clouds}")
    changes = ["--run.epochs", str(epochs), "--data.train_size", str(clouds), "--run.evaluate_epochs", "1", *extra]
    line = ["compare", "--recipe", RECIPE, "--methods", ",".join(chosen), "--seeds", "1", *changes]
    try:
        planned(VISION.name, tuple(line))
    except UsageError as error:
        raise RefusedError(str(error)) from None
    return line
