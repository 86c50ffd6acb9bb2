"""A comparison of what methods do to a pipeline: stopped, finished by --resume, with one method that cannot work."""

import io
import json
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from peft_runs.commands import main
from peft_runs.compare_columns import DRAWN
from peft_runs.families import DIFFUSION
from peft_runs.find import load_recipe, recipe_names
from peft_runs.read import differences, read_recipe
from tests.diffusion.tiny_pipelines import SIZE, save
from tests.runs.command import one_thread

PROGRAM = Path(sys.executable).with_name("diffusion-peft")
METHODS = {"bitfit": {}, "full": {}, "lora": {"target_modules": ["nowhere"]}}
COUNT = 6
# What the models of finished methods are compared by.
COLUMNS = ["loss", "frechet", "fidelity", "kept", "drift", "kept_spelling"]


@dataclass
class Comparison:
    """The folder, and what the two commands said; `stopped` and `resumed` are exit codes."""

    out: Path
    stopped: int
    before: str
    kept: bool
    resumed: int
    said: str
    complained: str

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.out / "results.json").read_text(encoding="utf-8"))

    def row(self, method: str) -> dict[str, Any]:
        return next(row for row in self.results["rows"] if row["method"] == method)

    def drawn(self, place: str) -> dict[str, torch.Tensor]:
        return load_file(self.out / place / "drawn.safetensors")


def recipes(root: Path) -> Path:
    """A recipe `tiny` for a random pipeline and the drawn style, and one for each method; LoRA's cannot work."""
    shared = {
        "task": "tune",
        "model": {
            "pipeline": str(save("sd2", root / "pipeline")),
            "samples": {"steps": 2},
            "compared": {"count": COUNT},
            "encode_batch": 8,
        },
        "data": {"name": "style", "test_size": 48},
        "optim": {"batch_size": 20, "lr": 0.001},
        "run": {"epochs": 2, "evaluate_epochs": 2},
    }
    (root / "tiny.yaml").write_text(yaml.safe_dump(shared))
    for name, fields in METHODS.items():
        own = {"base": str(root / "tiny.yaml"), "method": {"name": name, **fields}}
        (root / f"tiny_{name}.yaml").write_text(yaml.safe_dump(own))
    return root / "tiny.yaml"


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    root = tmp_path_factory.mktemp("compare")
    out = root / "out"
    words = ["compare", "--recipe", str(recipes(root)), "--jobs", "1", "--out", str(out)]
    begun = subprocess.Popen(
        [str(PROGRAM), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=one_thread(),
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores Ctrl-C
    )
    deadline = time.monotonic() + 600
    while not (out / "full" / "seed-0" / "log.txt").exists() and begun.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    begun.send_signal(signal.SIGINT)
    before, _ = begun.communicate(timeout=300)
    finished = out / "bitfit" / "seed-0" / "examined.json"
    at = finished.stat().st_mtime_ns
    said, complained = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(complained):
        patch.setenv("OMP_WAIT_POLICY", "passive")  # as the program sets it for its processes
        code = main(DIFFUSION, ["compare", "--resume", "--out", str(out)])
    kept = finished.stat().st_mtime_ns == at
    return Comparison(out, begun.returncode, before, kept, code, said.getvalue(), complained.getvalue())


def test_stopped_comparison_goes_on(comparison: Comparison) -> None:
    assert comparison.stopped == 130
    assert "1 of 3 runs are finished" in comparison.before
    assert f"diffusion-peft compare --resume --out {comparison.out}" in comparison.before
    assert comparison.kept
    assert "bitfit: done before" in comparison.said


def test_failed_method_is_told_and_the_others_are_compared(comparison: Comparison) -> None:
    assert comparison.resumed == 1
    assert "failed: lora" in comparison.complained
    assert "unknown target of UNet2DConditionModel 'nowhere'" in comparison.row("lora")["failure"]
    assert [row["method"] for row in comparison.results["rows"]] == ["bitfit", "full", "lora"]


def test_methods_are_compared_by_what_they_draw(comparison: Comparison) -> None:
    results = comparison.results
    assert [column["name"] for column in results["columns"]] == COLUMNS == [column.name for column in DRAWN]
    for method in ("bitfit", "full"):
        row = comparison.row(method)
        assert set(COLUMNS) <= set(row["figures"])
        assert 0 < row["figures"]["kept"]["mean"] < 1
        assert row["figures"]["drift"]["mean"] > 0
        assert row["runs"][0]["reloaded_difference"] < 1e-6
        assert row["merged_difference"] < 1e-4
        assert row["step_seconds"] > 0
        assert row["peak_bytes"] > 0
    assert set(results["base"]) == {"frechet", "fidelity", "kept_spelling"}
    assert results["ranked"] is False
    assert "nothing is ranked" in comparison.said
    assert "Less is better of loss, Fréchet, drift" in comparison.said


def test_all_draw_for_the_same_prompts_from_the_same_seeds(comparison: Comparison) -> None:
    base = comparison.drawn("base")
    prompts = json.loads((comparison.out / "base" / "drawn.json").read_text(encoding="utf-8"))["prompts"]
    assert [len(prompts[kind]) for kind in ("own", "unrelated")] == [COUNT, COUNT]
    assert all(prompt.startswith("neon style, ") for prompt in prompts["own"])
    for method in ("bitfit", "full"):
        drawn = comparison.drawn(f"{method}/seed-0")
        for kind in prompts:
            assert drawn[kind].shape == base[kind].shape == (COUNT, 3, SIZE, SIZE)
            assert drawn[kind].dtype == torch.uint8
            near = (drawn[kind].float() - base[kind].float()).abs().mean()
            other_seeds = (drawn[kind].float() - base[kind].float().roll(1, 0)).abs().mean()
            assert near < 0.5 * other_seeds
    assert base["real"].shape == (COUNT, 3, SIZE, SIZE)


def test_figures_are_those_of_the_kept_pictures(comparison: Comparison) -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure

    base, drawn = comparison.drawn("base"), comparison.drawn("full/seed-0")
    pair = (drawn["unrelated"] / 255, base["unrelated"] / 255)
    similarity: Any = structural_similarity_index_measure(*pair, data_range=1.0)
    assert comparison.row("full")["figures"]["kept"]["mean"] == pytest.approx(float(similarity), rel=1e-6)


def test_report_shows_everything_in_one_file(comparison: Comparison) -> None:
    text = (comparison.out / "report.html").read_text(encoding="utf-8")
    for said in ("What the models draw", "base model", "What is kept against", "Fréchet"):
        assert said in text
    [table] = re.findall(r'<table class="pictures samples">.*?</table>', text, re.DOTALL)
    assert table.count("<img") == COUNT + 3 * 2 * COUNT  # the data's own, and three models for both kinds of prompts
    assert "with head" not in text
    assert "classifier" not in text
    for name in ("samples", "kept", "curves"):
        with Image.open(comparison.out / "figures" / f"{name}.png") as picture:
            assert picture.width > 1000


def test_adapters_have_a_card_that_says_how_to_load(comparison: Comparison) -> None:
    text = (comparison.out / "bitfit" / "seed-0" / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "dp.load_adapter(pipeline, " in text
    assert "| kept |" in text
    assert "| Fréchet |" in text


def test_recipes_of_the_style_share_all_but_the_method() -> None:
    base = read_recipe(load_recipe("style"), [], DIFFUSION.tasks())
    named = [name for name in recipe_names() if name.startswith("style_")]
    assert len(named) >= 6
    for name in named:
        recipe = read_recipe(load_recipe(name), [], DIFFUSION.tasks())
        assert name == f"style_{recipe.method.name}"
        assert all(key.startswith(("method.", "optim.")) for key, _, _ in differences(base, recipe))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--data.root", "x"), "data.root and data.prompt are for name folder"),
        (("--data.name", "stile"), "did you mean 'style'"),
        (("--model.compared.count", "1"), "model.compared.count must be 0 or at least 2"),
    ],
)
def test_wrong_settings_are_one_sentence(
    words: tuple[str, ...], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipes(tmp_path)
    code = main(DIFFUSION, ["train", "--recipe", str(recipe), *words, "--out", str(tmp_path / "run")])
    error = capsys.readouterr().err.strip()
    assert code in (1, 2)
    assert told in error
