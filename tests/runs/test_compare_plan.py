"""Words of a comparison that hold for all methods, and those of one alone."""

import pytest

from peft_runs.compare_plan import make_plan, read_recipes
from peft_runs.errors import UsageError
from peft_runs.families import VISION


def recipes(*words: str):
    plan = make_plan(VISION, "digits", ["lora", "snell"], 1, list(words), 1, None)
    return plan, read_recipes(plan, VISION)


def test_a_method_before_the_section_changes_that_method_alone() -> None:
    plan, read = recipes("--optim.lr", "0.02", "--lora.method.r", "4", "--snell.optim.lr", "0.01", "--run.epochs", "3")
    assert (read["lora"].method.fields["r"], read["snell"].method.fields["r"]) == (4, 8)
    assert (read["lora"].optim.lr, read["snell"].optim.lr) == (0.02, 0.01)
    assert {recipe.run.epochs for recipe in read.values()} == {3}
    assert plan.words[2:4] == ("--lora.method.r", "4")
    [lora, _] = plan.runs
    assert lora.train_words()[-6:] == ["--run.epochs", "3", "--method.r", "4", "--run.seed", "0"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--ssf.optim.lr", "0.1"), "changes ssf, which is not compared: the methods are lora, snell"),
        (("--lora.run.seed", "3"), "--run.seed is set for each run by the comparison: use --seeds N"),
        (("--lora.method.name", "ssf"), "--method.name is set for each run"),
        (("--lora.run.epochs", "3"), "cannot be compared: run.epochs is 3 for lora and 7 for snell"),
        (("--lorra.method.r", "3"), "unknown recipe key"),
        (("--lora.method.rr", "3"), "unknown recipe key 'method.rr'"),
    ],
)
def test_words_of_one_method_that_can_not_be_done(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        recipes(*words)
