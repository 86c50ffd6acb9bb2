"""Pretraining by the project's own loop: it learns, it stops and goes on, and leaves what diffusers loads."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DiTPipeline, StableDiffusionPipeline
from safetensors.torch import load_file

from diffusion_peft.tasks.denoising import Averaged, make_scheduler, squared_errors, step_weights
from peft_runs.embed_pipeline import embed
from peft_runs.pipeline_card import write_card
from peft_runs.run_folder import RunFolder
from peft_runs.train import Training
from tests.diffusion.command import here, small

RECIPES = ("mini_vae", "mini_sd", "mini_dit")


@pytest.fixture(scope="module")
def runs(emoji: Path, parts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each recipe."""
    from peft_runs.commands import main
    from peft_runs.families import DIFFUSION

    found = {name: tmp_path_factory.mktemp(name) / "run" for name in RECIPES}
    for name, folder in found.items():
        assert main(DIFFUSION, ["train", *small(name, emoji, parts), "--out", str(folder)]) == 0
    return found


def untimed(folder: Path) -> list[dict[str, Any]]:
    """A run's metrics without the times."""
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in text.splitlines()]


@pytest.mark.parametrize("name", RECIPES)
def test_stopped_run_ends_bit_equal(
    name: str,
    runs: dict[str, Path],
    emoji: Path,
    parts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = Training.one_step

    def stops(self: Training, step: int, *rest: Any, **named: Any) -> tuple[float, float]:
        if step == 3:
            raise KeyboardInterrupt
        return whole(self, step, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "one_step", stops)
        assert here(capsys, "train", *small(name, emoji, parts), "--out", tmp_path / "run")[0] == 130
    code, said, _ = here(capsys, "train", "--resume", "--out", tmp_path / "run")
    assert code == 0
    assert "going on after step 2" in said
    assert untimed(tmp_path / "run") == untimed(runs[name])
    saved = "adapter/model.safetensors"
    assert (tmp_path / "run" / saved).read_bytes() == (runs[name] / saved).read_bytes()


@pytest.mark.parametrize("name", RECIPES)
def test_every_weight_is_reached(name: str, runs: dict[str, Path]) -> None:
    lines = untimed(runs[name])
    losses = [line["loss"] for line in lines if line["kind"] == "step"]
    assert len(losses) >= 4
    assert all(0 < loss < 20 for loss in losses)
    assert len([line for line in lines if line["kind"] == "evaluation"]) == 2


def test_parts_are_diffusers_own(runs: dict[str, Path], tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    embed(RunFolder(runs["mini_vae"]), tmp_path / "parts")
    vae = AutoencoderKL.from_pretrained(tmp_path / "parts" / "vae")
    assert vae.config["scaling_factor"] > 0
    assert (tmp_path / "parts" / "tokenizer").is_dir()
    assert vae(torch.zeros(1, 3, 32, 32)).sample.shape == (1, 3, 32, 32)


def test_text_pipeline_samples(runs: dict[str, Path], tmp_path: Path) -> None:
    embed(RunFolder(runs["mini_sd"]), tmp_path / "mini_sd")
    pipeline: Any = DiffusionPipeline.from_pretrained(tmp_path / "mini_sd")
    assert pipeline.__class__ is StableDiffusionPipeline
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "output_type": "np"}

    def sample(prompt: str, **more: Any) -> torch.Tensor:
        found = pipeline(prompt, generator=torch.Generator().manual_seed(0), **settings, **more).images
        return torch.from_numpy(found)

    assert sample("thing on red").shape == (1, 32, 32, 3)
    assert torch.equal(sample("thing on red"), sample("thing on red"))
    assert not torch.equal(sample("thing on red"), sample('the word "AB" in red on white'))
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.float32}
    weights = tmp_path / "mini_sd" / "unet" / "diffusion_pytorch_model.safetensors"
    assert weights.stat().st_size < 2.5 * sum(tensor.numel() for tensor in pipeline.unet.state_dict().values())


def test_words_go_on_from_a_pipeline(runs: dict[str, Path], emoji: Path, parts: Path, tmp_path: Path) -> None:
    from peft_runs.commands import main
    from peft_runs.families import DIFFUSION

    start = tmp_path / "start"
    embed(RunFolder(runs["mini_sd"]), start)
    words = small("mini_sd", emoji, parts, "mini_sd_words")
    still = ("--model.start", str(start), "--optim.lr", "1e-30", "--optim.min_lr", "0")  # too small for any weight
    assert main(DIFFUSION, ["train", *words, *still, "--out", str(tmp_path / "run")]) == 0
    embed(RunFolder(tmp_path / "run"), tmp_path / "again")
    for part in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        before, after = (load_file(folder / part) for folder in (start, tmp_path / "again"))
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_class_pipeline_samples(runs: dict[str, Path], tmp_path: Path) -> None:
    embed(RunFolder(runs["mini_dit"]), tmp_path / "mini_dit", checkpoint=True)
    pipeline: Any = DiffusionPipeline.from_pretrained(tmp_path / "mini_dit")
    assert pipeline.__class__ is DiTPipeline
    pipeline.set_progress_bar_config(disable=True)
    labels = pipeline.get_label_ids(["animal", "word"])
    found = pipeline(labels, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np")
    assert found.images.shape == (2, 32, 32, 3)


def test_averages_follow_the_rule() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    average = Averaged([weight], decay=0.9)
    expected = torch.zeros(3)
    for steps in range(1, 30):
        weight.data += 1
        keep = min(0.9, 1 - steps**-0.75) if steps > 1 else 0.0
        expected = keep * expected + (1 - keep) * weight.data
        average.step([weight], steps)
    torch.testing.assert_close(next(average.buffers()), expected)
    with average.in_place_of([weight]):
        torch.testing.assert_close(weight.data, expected)
    assert torch.equal(weight.data, torch.full((3,), 29.0))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_perfect_prediction_has_no_error(kind: Literal["epsilon", "v_prediction"]) -> None:
    scheduler = make_scheduler(kind)
    latents, timesteps = torch.randn(4, 2, 3, 3), torch.tensor([1, 300, 600, 900])
    alpha = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)

    def predict(noised: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        noise = (noised - alpha.sqrt() * latents) / (1 - alpha).sqrt()
        return noise if kind == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * latents

    errors, squares = squared_errors(predict, scheduler, latents, timesteps)
    assert errors.max() < 1e-6
    assert squares.min() > 0.1


@pytest.mark.parametrize(("kind", "added"), [("epsilon", 0), ("v_prediction", 1)])
def test_weights_cut_the_ratio_at_gamma(kind: Literal["epsilon", "v_prediction"], added: int) -> None:
    scheduler: DDIMScheduler = make_scheduler(kind)
    timesteps = torch.tensor([10, 500, 950])
    alpha = scheduler.alphas_cumprod[timesteps].double()
    on_x = alpha / (1 - alpha) + added  # what the unweighted loss gives to the error of x
    found = step_weights(scheduler, timesteps, 5.0) * on_x
    torch.testing.assert_close(found, on_x.clamp(max=5.0), rtol=1e-4, atol=1e-8)
    assert torch.equal(step_weights(scheduler, timesteps, None), torch.ones(3))


@pytest.mark.parametrize("name", ["mini_sd", "mini_dit"])
def test_card_tells_what_was_measured(name: str, runs: dict[str, Path], emoji: Path, tmp_path: Path) -> None:
    folder = tmp_path / name
    embed(RunFolder(runs[name]), folder)
    measured = write_card(folder, str(emoji / "folder"), "4 steps on two cores", samples=20, steps=2)
    assert json.loads((folder / "measured.json").read_text(encoding="utf-8")) == measured
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert f"**{measured['frechet_distance']['samples']:.2f}**" in text
    distances = measured["frechet_distance"]
    assert 0 < distances["same_emoji_on_other_grounds"] < distances["samples"]
    assert (folder / "samples.png").is_file()
    if name == "mini_sd":
        assert measured["spelling"]["samples"]["letters"] < measured["spelling"]["drawings"]["letters"]
        assert "4 steps on two cores" in text
