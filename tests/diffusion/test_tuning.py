"""Pipelines of every kind are tuned by the one loop: what a run leaves, what is cached, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from diffusion_peft.data.folder import FolderPictures
from diffusion_peft.data.framing import Framed, Framing
from diffusion_peft.pipelines.unet_kinds import StableDiffusion
from diffusion_peft.tasks.tuning import PipelineTuning
from diffusion_peft.tasks.tuning_spec import PriorSpec, SamplesSpec, TuningData, TuningSpec
from peft_kernels.data_errors import DataError
from peft_kernels.loading import load_adapter
from tests.diffusion.command import CAPTIONED, here, picture, tuned
from tests.diffusion.tiny_pipelines import KINDS, SIZE

UNETS = ("sd1", "sd2", "sdxl")


def opened(folder: Path) -> Any:
    pipeline: Any = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def runs(pipelines: Path, captioned: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of every kind."""
    from peft_runs.commands import main
    from peft_runs.families import DIFFUSION

    found = {kind: tmp_path_factory.mktemp(kind) / "run" for kind in KINDS}
    for kind, folder in found.items():
        assert main(DIFFUSION, ["train", *tuned(pipelines / kind, captioned), "--out", str(folder)]) == 0
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_run_leaves_all_that_is_looked_for(kind: str, runs: dict[str, Path], pipelines: Path) -> None:
    run = runs[kind]
    config = json.loads((run / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(pipelines / kind)
    assert sorted(path.name for path in (run / "samples").iterdir()) == [
        f"step-0000000{step}.png" for step in (0, 2, 4)
    ]
    for name in ("curves.png", "report.html", "recipe.yaml", "adapter/README.md"):
        assert (run / name).is_file()
    assert (run / "report.html").read_text(encoding="utf-8").count("data:image/png") == 4
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(0.1 < line["loss"] < 10 for line in lines)


@pytest.mark.parametrize("kind", KINDS)
def test_adapter_has_the_denoisers_own_keys_and_moves_it(kind: str, runs: dict[str, Path], pipelines: Path) -> None:
    pipeline = opened(pipelines / kind)
    denoiser = pipeline.unet if kind in UNETS else pipeline.transformer
    plain = {name for name, _ in denoiser.named_modules()}
    tensors = load_file(runs[kind] / "adapter" / "adapter_model.safetensors")
    layers = {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in tensors}
    assert layers <= plain
    assert all(tensor.abs().sum() > 0 for key, tensor in tensors.items() if "lora_B" in key)
    load_adapter(denoiser, runs[kind] / "adapter")


@pytest.mark.parametrize("kind", ["sd1", "dit", "flux"])
def test_evaluation_repeats_the_figures_of_the_averaged_weights(
    kind: str, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, _ = here(capsys, "evaluate", runs[kind])
    assert code == 0
    again, first = json.loads(said.splitlines()[-1]), result(runs[kind])
    assert again["samples"] == 2
    assert (again["explained"], again["loss"]) == (first["explained"], first["loss"])


def test_samples_are_those_that_the_pipeline_draws_by_itself(runs: dict[str, Path], pipelines: Path) -> None:
    pipeline = opened(pipelines / "sd1")
    asked = {"num_inference_steps": 2, "guidance_scale": 4.0, "height": SIZE, "width": SIZE}
    seeds = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    wanted = pipeline(["star", "star"], generator=seeds, **asked).images
    with Image.open(runs["sd1"] / "samples" / "step-00000000.png") as sheet:
        for number, image in enumerate(wanted):
            found = np.asarray(sheet.crop((number * SIZE, 0, (number + 1) * SIZE, SIZE))).astype(int)
            assert np.abs(found - np.asarray(image)).max() <= 1


def task(pipeline: Path, root: Path, model: dict[str, Any] | None = None, **data: Any) -> Any:
    """The task with its model built and its data encoded."""
    spec = TuningSpec(pipeline=str(pipeline), samples=SamplesSpec(), **(model or {}))
    made: Any = PipelineTuning(spec, TuningData(root=str(root), size=SIZE, **data), seed=0)
    built = made.build_model()
    for part in (made.training_data, made.test_data):
        part(built)
    return made


def test_captions_that_are_left_out_are_the_empty_one(pipelines: Path, captioned: Path) -> None:
    made = task(pipelines / "sd1", captioned)
    rows = made.captions.rows(["", "star"])["text"]
    batch = {"framing": torch.zeros(2, 6)}
    given = made.given("train", torch.tensor([0, 3]), batch)["text"]
    assert torch.equal(given[0], rows[0])
    assert torch.equal(given[1], rows[1])


def test_latents_are_the_posterior_in_the_denoisers_scale(pipelines: Path, captioned: Path) -> None:
    made = task(pipelines / "sd3", captioned)
    vae = opened(pipelines / "sd3").vae
    sample = made.encoded["test"][(0, 0)]
    mean, deviation = sample["latents"].chunk(2)
    resized = picture(0).resize((19, 16), Image.Resampling.LANCZOS).crop((1, 0, 17, 16))
    pixels = torch.from_numpy(np.asarray(resized, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    with torch.no_grad():
        wanted = vae.encode(pixels).latent_dist
    factor, shift = vae.config.scaling_factor, vae.config.shift_factor
    torch.testing.assert_close(mean, (wanted.mean[0] - shift) * factor, rtol=2e-3, atol=2e-3)  # kept in float16
    torch.testing.assert_close(deviation, wanted.std[0] * factor, rtol=2e-3, atol=2e-3)
    assert sample["framing"].tolist() == [20, 24, 0, 1, 16, 16]


def test_predicted_variance_is_left_out(pipelines: Path, captioned: Path) -> None:
    made = task(pipelines / "pixart", captioned)
    batch = {"framing": torch.zeros(2, 6)}
    predict = made.predictor(made.kind.denoiser, made.given("train", torch.tensor([0, 1]), batch))
    latents = torch.randn(2, 4, 8, 8)
    whole = made.kind.predict(
        made.kind.denoiser, latents, torch.tensor([3, 7]), made.given("train", torch.tensor([0, 1]), batch)
    )
    assert whole.shape == (2, 8, 8, 8)
    assert torch.equal(predict(latents, torch.tensor([3, 7])), whole[:, :4])


def test_cache_holds_latents_and_captions_and_refuses_those_of_others(
    pipelines: Path,
    captioned: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = task(pipelines / "sd1", captioned, cache=str(tmp_path))
    moved = shutil.copytree(captioned, tmp_path / "moved")
    for path in moved.glob("*.png"):
        Image.new("RGB", (SIZE, SIZE)).save(path)  # what is cached is not read again
    monkeypatch.setattr(StableDiffusion, "encode", None)  # nor is a caption encoded
    again = task(pipelines / "sd1", moved, cache=str(tmp_path))
    for key in ((0, 0), (0, 5)):
        for name, tensor in first.encoded["train"][key].items():
            assert torch.equal(tensor, again.encoded["train"][key][name])
    assert torch.equal(first.tables["train"]["text"], again.tables["train"]["text"])
    monkeypatch.undo()
    for part, others in {"vae": "another autoencoder", "text_encoder": "as another text encoder has them"}.items():
        changed = shutil.copytree(pipelines / "sd1", tmp_path / part)
        (file,) = (changed / part).glob("*.safetensors")
        tensors = load_file(file)
        save_file({name: tensor + 1e-3 for name, tensor in tensors.items()}, file, {"format": "pt"})
        with pytest.raises(DataError, match=others):
            task(changed, captioned, cache=str(tmp_path))


def test_class_is_drawn_once_and_only_what_is_missing_again(
    pipelines: Path, captioned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "class"
    recipe = (
        *("--recipe", "subject", "--model.pipeline", pipelines / "sd1", "--data.root", captioned, "--data.size", SIZE),
        *("--data.prompt", "a zq star", "--data.prior.prompt", "a star", "--data.prior.count", "6"),
        *(
            "--data.prior.steps",
            "2",
            "--data.prior.root",
            kept,
            "--method.target_modules",
            "[to_q]",
            "--run.epochs",
            "1",
        ),
        *("--model.samples.prompts", "[]"),
    )
    assert here(capsys, "train", *recipe, "--out", tmp_path / "one")[0] == 0
    drawn = {path.name: path.read_bytes() for path in kept.glob("*.png")}
    assert len(drawn) == 6
    (kept / "00003.png").unlink()
    stamp = (kept / "00002.png").stat().st_mtime_ns
    assert here(capsys, "train", *recipe, "--out", tmp_path / "two")[0] == 0
    assert {path.name: path.read_bytes() for path in kept.glob("*.png")} == drawn
    assert (kept / "00002.png").stat().st_mtime_ns == stamp
    assert result(tmp_path / "one")["loss"] == result(tmp_path / "two")["loss"]
    fewer = PriorSpec("a star", count=4, steps=2, root=str(kept))
    assert len(task(pipelines / "sd1", captioned, prompt="a zq star", prior=fewer).prior()) == 4
    code, _, said = here(capsys, "train", *recipe, "--data.prior.prompt", "a cat", "--out", tmp_path / "three")
    assert code == 1
    assert "other pictures of a class" in said


def test_half_of_the_samples_preserve_the_class(pipelines: Path, captioned: Path, tmp_path: Path) -> None:
    made = PipelineTuning(
        TuningSpec(pipeline=str(pipelines / "sd1")), TuningData(root=str(captioned), size=SIZE, prompt="zq"), seed=0
    )
    made.build_model()
    (tmp_path / "class").mkdir()
    for number in range(3):
        picture(number).save(tmp_path / "class" / f"{number}.png")
    prior, said = FolderPictures(tmp_path / "class", prompt="a star"), [""]
    framed = Framed(made.pictures("train"), Framing(SIZE), said, 0, prior, prior_weight=0.25)
    samples = [framed[(0, index)] for index in range(len(framed))]
    assert len(samples) == 2 * CAPTIONED
    assert [sample["weight"].item() for sample in samples] == [1.0, 0.25] * CAPTIONED
    assert [said[sample["caption"]] for sample in samples] == ["zq", "a star"] * CAPTIONED


def test_recomputed_and_half_precision_steps_end_alike(
    runs: dict[str, Path], pipelines: Path, captioned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, more in {
        "recomputed": ("--run.gradient_checkpointing", "true"),
        "half": ("--model.dtype", "bfloat16"),
    }.items():
        given = (*tuned(pipelines / "sd1", captioned), "--model.samples.prompts", "[]", *more)
        assert here(capsys, "train", *given, "--out", tmp_path / name)[0] == 0
    whole = result(runs["sd1"])
    assert result(tmp_path / "recomputed")["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert result(tmp_path / "half")["loss"] == pytest.approx(whole["loss"], rel=0.02)
    saved = load_file(tmp_path / "half" / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
