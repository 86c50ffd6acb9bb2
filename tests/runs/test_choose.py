"""Methods that look at data before they are attached: once for a run, and `vision-peft sensitivity`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.runs.command import SMALL, here, result

SPT = (
    *("--method.name", "spt", "--method.budget", "3000", "--method.budget_rule", "at_most"),
    *("--method.num_batches", "2", "--method.batch_size", "10"),
)


def test_plan_is_kept_with_the_run_and_the_budget(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "run"
    code, _, error = here(capsys, "train", *SMALL, *SPT, "--run.epochs", "1", "--out", out)
    assert code == 0, error
    chosen = json.loads((out / "chosen.json").read_text())
    assert list(chosen) == ["plan"]
    assert json.loads((out / "adapter" / "adapter_config.json").read_text())["plan"] == chosen["plan"]
    assert 2000 < result(out)["trainable_parameters_without_head"] <= 3000
    code, said, error = here(capsys, "evaluate", out)
    assert code == 0, error
    assert json.loads(said)["accuracy"] == result(out)["accuracy"]


def test_sensitivity_writes_scores_and_plan(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "scores"
    code, said, error = here(capsys, "sensitivity", *SMALL, *SPT, "--budget", "2000", "--out", out)
    assert code == 0, error
    assert "parameters for a budget of 2,000: lora of rank 8 on" in said
    written = json.loads((out / "plan.json").read_text())
    assert 1000 < written["parameters"] <= 2000
    scores = load_file(out / "scores.safetensors")
    assert scores["blocks.0.attn.qkv.weight"].shape == (384, 128)
    assert not [name for name in scores if name.startswith(("head", "patch_embed", "pos_embed"))]
    assert sorted(path.name for path in out.iterdir()) == ["plan.json", "plan.png", "scores.safetensors"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--method.name", "snell"), "the recipe trains snell, which needs no plan: take a recipe of spt, or add"),
        ((*SPT, "--budget", "0"), "SptConfig.budget must be above 0; found 0.0"),
        ((*SPT, "--budget", "1e9"), "the budget of 1,000,000,000 is above"),
        ((*SPT, "--method.rank", "500"), "rank 500 exceeds the smaller side of"),
        ((*SPT, "--method.ranks", "3"), "'method.ranks'"),
    ],
)
def test_sensitivity_refuses_in_one_sentence(
    words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    code, _, error = here(capsys, "sensitivity", *SMALL, *words, "--out", tmp_path / "scores")
    assert code == 2
    assert said in error
    assert error.count("\n") == 0
    assert not (tmp_path / "scores").exists()


def test_budget_that_fits_no_model_stops_a_run_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = (*SMALL, *SPT, "--method.budget", "1e9", "--out", tmp_path / "run")
    code, _, error = here(capsys, "train", *words)
    assert code == 2
    assert "method 'spt' cannot choose what to train: the budget of 1,000,000,000 is above" in error
