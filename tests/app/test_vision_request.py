"""From a choice on the page to a command line: what it says, what the equal budget chooses, and what is refused."""

import pytest

from peft_compare.budget import count
from peft_compare.refusals import RefusedError
from peft_compare.vision_request import Choice, offered, own_settings, shares, words_of
from peft_kernels.registry import methods
from peft_runs.compare_plan import make_plan, read_recipes
from peft_runs.families import VISION

BUDGET = 40_000


def recipes(choice: Choice):
    words = words_of(choice)
    rest = words[words.index("--seeds") + 2 :]
    return read_recipes(make_plan(VISION, "digits", list(choice.methods), choice.seeds, rest, 1, None), VISION)


def test_the_words_are_those_of_a_command_line() -> None:
    choice = Choice(("lora", "snell"), epochs=3, sizes={"lora": 4}, rates={"snell": 0.01}, extra=("--optim.lr", "0.02"))
    assert words_of(choice) == [
        *("compare", "--recipe", "digits", "--methods", "lora,snell", "--seeds", "1"),
        *("--run.epochs", "3", "--run.evaluate_epochs", "1", "--optim.lr", "0.02"),
        *("--lora.method.r", "4", "--snell.optim.lr", "0.01"),
    ]
    read = recipes(choice)
    assert read["lora"].method.fields["r"] == 4
    assert [read[name].optim.lr for name in ("lora", "snell")] == [0.02, 0.01]


def test_equal_budget_brings_every_method_as_near_as_its_size_allows() -> None:
    names = ("adapter_plus", "lora", "snell", "vpt", "spt", "bitfit")
    found = {share.method: share for share in shares(Choice(names, budget=BUDGET))}
    assert found["bitfit"].field is None
    assert found["spt"].value == BUDGET
    for name in ("adapter_plus", "lora", "snell", "vpt"):
        share, step = found[name], 2 if name == "snell" else 1
        assert share.value
        for other in (share.value - step, share.value + step):
            apart = count(
                "vision", "digits", ("--run.epochs", "7", "--run.evaluate_epochs", "1"), name, share.field, other
            )
            assert abs(share.parameters - BUDGET) <= abs(apart - BUDGET), name
    read = recipes(Choice(names, budget=BUDGET))
    assert {name: read[name].method.fields[found[name].field or ""] for name in names[:-1]} == {
        name: found[name].value for name in names[:-1]
    }


@pytest.mark.parametrize("name", ["lora", "snell", "spt", "linear_probe"])
def test_own_settings_are_the_recipes(name: str) -> None:
    field, value, rate = own_settings(name)
    recipe = recipes(Choice((name,)))[name]
    assert recipe.optim.lr == rate
    assert value == (None if field is None else recipe.method.fields[field])


def test_every_method_offered_is_known() -> None:
    assert set(offered()) <= set(methods())
    assert {"lora", "snell", "spt", "full", "dora"} <= set(offered())


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (Choice(()), "no method is chosen"),
        (Choice(("lorra",)), "there is no method 'lorra'"),
        (Choice(("pointgst",)), "there is no method 'pointgst' for pictures"),
        (Choice(("lora",), model="vit_minni"), r"there is no model 'vit_minni' \(did you mean 'vit_mini'\?\)"),
        (Choice(("lora",), epochs=0), "epochs must be from 1 to 500, found 0"),
        (Choice(("lora",), seeds=11), "seeds must be from 1 to 10, found 11"),
        (Choice(("lora",), budget=0), "the budget must be at least 1 parameter"),
        (Choice(("lora",), sizes={"lora": -1}), "lora: r must be at least 1, found -1"),
        (Choice(("lora",), rates={"lora": -1.0}), "optim.lr must be above 0, found -1"),
    ],
)
def test_what_can_not_be_done_is_refused_in_a_sentence(choice: Choice, said: str) -> None:
    with pytest.raises(RefusedError, match=said):
        words_of(choice)
