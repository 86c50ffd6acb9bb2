"""A comparison of pipelines of one step: each method with its own loss, all against one teacher, drawn once."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from peft_runs import compare_child, compare_samples, compare_timing
from peft_runs.commands import main
from peft_runs.compare import carry_out
from peft_runs.compare_plan import make_plan, read_recipes
from peft_runs.errors import UsageError
from peft_runs.families import DIFFUSION
from peft_runs.find import load_recipe
from tests.diffusion.tiny_pipelines import SIZE, save

COUNT = 4
FIGURES = {"frechet", "sharpness", "ssim", "milliseconds", "speedup"}


@dataclass
class Comparison:
    out: Path
    said: str

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.out / "results.json").read_text(encoding="utf-8"))

    def drawn(self, place: str) -> dict[str, torch.Tensor]:
        return load_file(self.out / place / "drawn.safetensors")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """The recipe `one_step` and its methods, on a random pipeline: one step of training."""
    root = tmp_path_factory.mktemp("compare")
    out, said = root / "out", io.StringIO()
    out.mkdir()
    words = [
        *("--model.pipeline", str(save("sd2", root / "pipeline")), "--data.cache", str(root / "teacher")),
        *("--data.size", str(SIZE), "--data.count", "16", "--data.test_size", str(COUNT), "--data.teacher.steps", "2"),
        *("--model.samples.prompts", "[]", "--optim.warmup_epochs", "0", "--run.epochs", "1"),
    ]
    plan = make_plan(DIFFUSION, "one_step", None, 1, words, 1, 1)
    recipes = read_recipes(plan, DIFFUSION)
    # What the command has processes of their own do, here without starting any.
    for run in plan.runs:
        assert compare_child.main("diffusion", str(run.folder(out).path), run.train_words()) == 0
    folders = [run.folder(out) for run in plan.runs]
    compare_samples.main(DIFFUSION, out, folders)
    compare_timing.main(DIFFUSION, folders)
    recipe = recipes["hipa"]
    task = DIFFUSION.tasks()[recipe.task](recipe.model, recipe.data, 0)
    carry_out(plan, out, DIFFUSION, recipes, task, Console(file=said, width=200))
    return Comparison(out, said.getvalue())


def test_methods_are_compared_by_likeness_to_the_teacher_and_time(comparison: Comparison) -> None:
    results = comparison.results
    assert {column["name"] for column in results["columns"]} == FIGURES
    assert [row["method"] for row in results["rows"]] == ["hipa", "lora"]
    for figures in (results["base"], *({k: v["mean"] for k, v in row["figures"].items()} for row in results["rows"])):
        assert set(figures) >= FIGURES
        assert figures["speedup"] == results["base"]["teacher_milliseconds"] / figures["milliseconds"]
    assert "Less is better of Fréchet, ms a picture; near 1 of high frequencies; more of SSIM, × teacher." in (
        " ".join(comparison.said.split())
    )


def test_each_method_keeps_its_own_loss(comparison: Comparison) -> None:
    rows = {row["method"]: row["settings"] for row in comparison.results["rows"]}
    assert (rows["hipa"]["model.loss.spatial"], rows["lora"]["model.loss.spatial"]) == ("vit_mini", "mse")
    assert rows["lora"]["model.loss.lam_high"] == 0.0
    assert comparison.results["shared"]["model.loss.cutoff"] == 0.25


def test_figures_are_those_of_the_kept_pictures(comparison: Comparison) -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure

    teacher = comparison.drawn("base")["real"]
    for place, figures in (
        ("base", comparison.results["base"]),
        ("hipa/seed-0", {k: v["mean"] for k, v in comparison.results["rows"][0]["figures"].items()}),
    ):
        found = comparison.drawn(place)["own"]
        assert found.shape == teacher.shape == (COUNT, 3, SIZE, SIZE)
        likeness: Any = structural_similarity_index_measure(found / 255, teacher / 255, data_range=1.0)
        assert figures["ssim"] == pytest.approx(float(likeness), rel=1e-6)


def test_report_shows_the_teacher_beside_one_step(comparison: Comparison) -> None:
    text = (comparison.out / "report.html").read_text(encoding="utf-8")
    for said in ("The teacher is the base model with all its steps", "High frequencies against the distance"):
        assert said in text
    assert (comparison.out / "figures" / "samples.png").is_file()
    assert "dp.one_step(pipeline" in (comparison.out / "hipa/seed-0/adapter/README.md").read_text(encoding="utf-8")


def test_what_is_no_methods_own_is_the_same_for_all(tmp_path: Path) -> None:
    for method, teacher in (("hipa", 2), ("lora", 3)):
        own = load_recipe(f"one_step_{method}") | {"base": "one_step"}
        own["data"] = {"teacher": {"steps": teacher}}
        (tmp_path / f"mine_{method}.yaml").write_text(yaml.safe_dump(own))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"base": "one_step"}))
    plan = make_plan(DIFFUSION, str(tmp_path / "mine.yaml"), None, 1, [], 1, 1)
    with pytest.raises(UsageError, match=r"cannot be compared: data\.teacher is"):
        read_recipes(plan, DIFFUSION)


def test_run_is_evaluated_against_its_teacher_and_no_other(
    comparison: Comparison, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = comparison.out / "hipa" / "seed-0"
    assert main(DIFFUSION, ["evaluate", str(folder)]) == 0
    found, kept = json.loads(capsys.readouterr().out), json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert found["ssim"] == pytest.approx(kept["ssim"], abs=1e-6)
    assert main(DIFFUSION, ["evaluate", str(folder), "--data.cache", str(tmp_path)]) == 1
    assert "the denoiser cannot draw them: name the --data.cache of the training" in capsys.readouterr().err
