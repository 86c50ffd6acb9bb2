"""How long a comparison will take, told from what earlier ones on this machine have left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from peft_compare.frame import EXAMPLES
from peft_compare.pages.start_button import told
from peft_compare.plans import planned
from peft_compare.step_times import FILE, Estimate, estimate, main, remember
from peft_runs.families import VISION

OUT = EXAMPLES / "digits" / "out"
SPENT = 3600.0  # more than all their steps
TINY = ("--model.pretrained", "false", "--data.train_size", "60", "--optim.batch_size", "20")


def words(methods: str, epochs: int = 7, *more: str) -> list[str]:
    shared = ["--run.epochs", str(epochs), "--run.evaluate_epochs", "1"]
    return ["compare", "--recipe", "digits", "--methods", methods, "--seeds", "1", *shared, *more]


def step(method: str) -> float:
    return json.loads((OUT / method / "seed-0" / "result.json").read_text(encoding="utf-8"))["step_seconds_median"]


@pytest.fixture(autouse=True, scope="module")
def one_at_a_time() -> Iterator[None]:
    """As the comparison that comes with the app was made, whatever machine this is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peft_compare.plans.shares", lambda jobs: (1, None))
        planned.cache_clear()
        yield
    planned.cache_clear()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs where the comparison that comes with the app was carried out."""
    folder = tmp_path_factory.mktemp("runs")
    remember(folder, OUT, VISION, SPENT)
    return folder


def test_nothing_is_said_where_nothing_is_known(tmp_path: Path) -> None:
    assert estimate(tmp_path, VISION, words("lora")) == Estimate(None)
    assert "is not known" in told(Estimate(None))


def test_the_same_comparison_takes_as_long_again(runs: Path) -> None:
    names = json.loads((OUT / "plan.json").read_text(encoding="utf-8"))["runs"]
    found = estimate(runs, VISION, words(",".join(run["method"] for run in names)))
    assert (found.seconds, found.guessed, found.whole) == (pytest.approx(SPENT), (), True)
    assert "≈ 60\u00a0min 0\u00a0s, by steps measured on this machine" in told(found)


def test_more_epochs_and_methods_never_seen_are_counted(runs: Path) -> None:
    seven, ten = (estimate(runs, VISION, words("lora", epochs)).seconds or 0 for epochs in (7, 10))
    assert ten - seven == pytest.approx(3 * 20 * step("lora"))
    both = estimate(runs, VISION, words("lora,ssf,snell"))
    alone = [estimate(runs, VISION, words(name)).seconds or 0 for name in ("lora", "ssf")]
    beside = alone[0] - 140 * step("lora")
    assert both.guessed == ("snell",)
    assert both.seconds == pytest.approx(sum(alone) + beside + 140 * median([step("lora"), step("ssf")]))


def test_other_data_and_models_are_not_known(runs: Path) -> None:
    assert estimate(runs, VISION, words("lora", 7, "--data.train_size", "600")).seconds is None
    assert estimate(runs, VISION, words("lora", 7, "--model.name", "vit_base_patch16_224")).seconds is None


def test_no_name_or_folder_of_a_visitor_is_kept(runs: Path) -> None:
    assert "digits" not in (runs / FILE).read_text(encoding="utf-8")


def test_steps_are_timed_where_nothing_has_run(tmp_path: Path) -> None:
    main(tmp_path, VISION, words("linear_probe", 4, *TINY))
    found = estimate(tmp_path, VISION, words("linear_probe", 4, *TINY))
    [seconds] = json.loads((tmp_path / FILE).read_text(encoding="utf-8"))["step"].values()
    assert found.seconds == pytest.approx(4 * 3 * seconds)
    assert not found.whole
