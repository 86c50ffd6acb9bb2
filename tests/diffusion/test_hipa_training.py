"""Runs of the task one_step: what they leave, the teacher's files, and what is refused."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

import diffusion_peft as dp
from diffusion_peft.tasks.one_step import OneStepTuning
from diffusion_peft.tasks.one_step_spec import OneStepData, OneStepSpec, TeacherSpec
from tests.diffusion.command import here
from tests.diffusion.tiny_pipelines import SIZE, save

EXAMPLES = Path(__file__).parents[2] / "examples" / "one_step"


def words(pipeline: Path, *more: object) -> tuple[str, ...]:
    """Four steps on eight pictures, as words of the command line."""
    return (
        *("train", "--recipe", "hipa", "--model.pipeline", str(pipeline), "--data.size", str(SIZE)),
        *("--model.loss.spatial", "mse", "--data.count", "8", "--data.test_size", "3", "--data.teacher.steps", "2"),
        *("--model.samples.prompts", "[star]", "--model.encode_batch", "4", "--method.r", "2"),
        *("--optim.batch_size", "4", "--run.epochs", "2", "--run.evaluate_epochs", "1", *map(str, more)),
    )


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bases")
    for kind in ("sd1", "sd2", "sdxl", "sd3", "dit"):
        save(kind, root / kind)
    return root


@pytest.fixture(scope="module")
def run(bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on a pipeline that predicts velocity."""
    from peft_runs.commands import main
    from peft_runs.families import DIFFUSION

    folder = tmp_path_factory.mktemp("hipa") / "run"
    assert main(DIFFUSION, [*words(bases / "sd2", "--model.t_min", 200), "--out", str(folder)]) == 0
    return folder


def test_run_leaves_a_lora_and_what_it_was_trained_for(run: Path, bases: Path):
    assert json.loads((run / "adapter" / "one_step.json").read_text())["timestep"] == 999
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    assert all(tensor.abs().sum() > 0 for name, tensor in tensors.items() if "lora_B" in name)
    result = json.loads((run / "result.json").read_text())
    assert -1 <= result["ssim"] <= 1
    assert result["sharpness"] > 0
    assert (run / "samples" / "step-00000004.png").is_file()
    assert "dp.one_step(pipeline" in (run / "report.html").read_text(encoding="utf-8")
    pipeline: Any = DiffusionPipeline.from_pretrained(bases / "sd2")
    dp.load_adapter(pipeline, run / "adapter")
    assert dp.one_step(pipeline, run / "adapter").scheduler.config.timestep_spacing == "trailing"


def test_sample_takes_one_step_unless_more_are_asked_for(run: Path, bases: Path, tmp_path: Path, capsys):
    asked = ("sample", "--adapter", run, "--prompt", "star", "--size", SIZE)
    for more, steps, guidance in (((), 1, 1.0), (("--steps", 2), 2, 4.0)):
        out = tmp_path / f"steps_{steps}"
        assert here(capsys, *asked, *more, "--out", out)[0] == 0
        found = json.loads((out / "samples.json").read_text())
        assert (found["steps"], found["guidance"]) == (steps, guidance)
    code, _, error = here(capsys, *asked, "--pipeline", bases / "sd1", "--out", tmp_path / "other")
    assert code != 0
    assert "was trained for another schedule (prediction_type: v_prediction, not epsilon" in " ".join(error.split())


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("sd1", ("--model.decoder_chunk", 2, "--model.guidance", 2.0)),
        ("sdxl", ("--data.teacher.solver", "dpm", "--model.ema_decay", 0)),
        ("sd3", ("--run.gradient_checkpointing", "true")),
    ],
)
def test_other_kinds_and_settings_train(kind, more, bases, tmp_path, capsys):
    code, _, error = here(capsys, *words(bases / kind, *more), "--out", tmp_path / "run")
    assert code == 0, error
    assert "warning: no gradient" not in error
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["loss"] < 100 for line in lines)


def task_of(pipeline: Path, folder: Path, told: Any = None, **spec: Any) -> OneStepTuning:
    data = OneStepData(
        prompts=("star", "circle"), count=5, test_size=2, size=SIZE, teacher=TeacherSpec(steps=2), cache=str(folder)
    )
    model = OneStepSpec(str(pipeline), loss=dp.HipaLossSpec(spatial="mse"), encode_batch=2, **spec)
    return OneStepTuning(model, data, 0, told)


def test_teacher_draws_once_and_again_what_is_missing(bases, tmp_path, monkeypatch):
    task = task_of(bases / "sd1", tmp_path)
    model = task.build_model()
    first = task.training_data(model)
    files = sorted((tmp_path / "train").glob("*.safetensors"))
    assert [path.name for path in files] == ["00000000.safetensors", "00000002.safetensors", "00000004.safetensors"]
    files[1].unlink()
    calls: list[Any] = []
    original = type(task.kind.pipeline).__call__
    monkeypatch.setattr(type(task.kind.pipeline), "__call__", lambda *a, **k: calls.append(k) or original(*a, **k))
    again = task_of(bases / "sd1", tmp_path)
    second = again.training_data(again.build_model())
    assert len(calls) == 1
    assert torch.equal(first.latents, second.latents)  # type: ignore[attr-defined]
    assert not list(tmp_path.rglob(".*"))


def test_teacher_begins_with_the_noise_of_the_sample(bases, tmp_path):
    task = task_of(bases / "sd2", tmp_path)
    data = task.training_data(task.build_model())
    sample, pipeline = data[0, 3], task.kind.pipeline
    pipeline.register_modules(scheduler=dp.one_step_scheduler(pipeline.scheduler))
    asked: dict[str, Any] = {"height": SIZE, "width": SIZE, "num_inference_steps": 2, "guidance_scale": 7.5}
    found = pipeline("circle", latents=sample["noise"][None], **asked, output_type="latent").images[0]
    torch.testing.assert_close(sample["latents"], found, rtol=2e-3, atol=2e-3)


def test_other_captions_judge(bases, tmp_path):
    task = task_of(bases / "sd2", tmp_path)
    task.data = replace(task.data, test_prompts=("square", "triangle"))
    sample, pipeline = task.test_data(task.build_model())[0, 1], task.kind.pipeline
    assert task.compared().prompts == {"own": ["square", "triangle"]}
    pipeline.register_modules(scheduler=dp.one_step_scheduler(pipeline.scheduler))
    asked: dict[str, Any] = {"height": SIZE, "width": SIZE, "num_inference_steps": 2, "guidance_scale": 7.5}
    found = pipeline("triangle", latents=sample["noise"][None], **asked, output_type="latent").images[0]
    torch.testing.assert_close(sample["latents"], found, rtol=2e-3, atol=2e-3)
    batch = {name: value[None] for name, value in sample.items()}
    given = task.given("test", batch["caption"], batch)
    wanted = task.captions.rows(["triangle"])
    assert all(torch.equal(given[name], rows) for name, rows in wanted.items())


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_loss_is_that_of_an_ordinary_call_of_one_step(kind, bases, tmp_path):
    """What is trained is what the pipeline draws afterwards."""
    task = task_of(bases / kind, tmp_path)
    model = task.build_model()
    sample = task.training_data(model)[0, 1]
    batch = {name: value[None] for name, value in sample.items()}
    with torch.no_grad():
        loss = task.loss(model, batch)
        found = task.decoded(task.one_step(model, "train", batch, task.timesteps(batch["noise"])))
        wanted = task.decoded(batch["latents"])
    torch.testing.assert_close(loss, dp.HipaLoss(dp.HipaLossSpec(spatial="mse"))(found, wanted)["loss"])
    asked: dict[str, Any] = {"height": SIZE, "width": SIZE, "num_inference_steps": 1, "guidance_scale": 1.0}
    drawn = dp.one_step(task.kind.pipeline)("circle", latents=batch["noise"], **asked, output_type="pt").images
    torch.testing.assert_close(found.clamp(0, 1), drawn, rtol=1e-3, atol=1e-3)


def test_autocast_gives_a_finite_loss_and_gradients_near_those_without(bases, tmp_path):
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        task = task_of(bases / "sd2", tmp_path)
        model: Any = task.build_model()
        batch = {name: value[None] for name, value in task.training_data(model)[0, 1].items()}
        model = dp.add_adapter(model, dp.HipaConfig(r=2))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            losses[dtype] = task.loss(model, batch)
        losses[dtype].backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    torch.testing.assert_close(losses[torch.bfloat16], losses[torch.float32], rtol=0.1, atol=0)


def test_decoding_in_chunks_changes_no_gradient(bases, tmp_path):
    found = []
    for chunk in (None, 1, 2):
        task = task_of(bases / "sd1", tmp_path, decoder_chunk=chunk)
        task.build_model()
        latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
        task.decoded(latents).square().sum().backward()
        found.append(latents.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0], found[2], rtol=1e-4, atol=1e-4)


def test_other_teacher_in_the_folder_and_damaged_files_are_told(bases, tmp_path):
    task = task_of(bases / "sd1", tmp_path)
    task.training_data(task.build_model())
    other = task_of(bases / "sd2", tmp_path)
    model = other.build_model()
    with pytest.raises(dp.DataError, match="latents of another teacher"):
        other.training_data(model)
    (tmp_path / "train" / "00000002.safetensors").write_bytes(b"damaged")
    again = task_of(bases / "sd1", tmp_path)
    model = again.build_model()
    with pytest.raises(dp.DataError, match=r"00000002.safetensors is no file of latents"):
        again.training_data(model)


def test_captions_come_from_a_file_too(bases, tmp_path):
    (tmp_path / "captions.txt").write_text("a fish\n\na tree\nstar\n")
    from diffusion_peft.tasks.teacher import captions_of

    data = OneStepData(prompts=("star",), root=str(tmp_path / "captions.txt"))
    assert captions_of(data, "train") == captions_of(data, "test") == ["star", "a fish", "a tree"]


@pytest.mark.parametrize(
    ("kind", "more", "told"),
    [
        ("dit", (), "a DiTPipeline hands out no latents"),
        ("sd1", ("--model.t_min", 1000), "model.t_min is 1000, but the last timestep is 999"),
        ("sd1", ("--data.prompts", "[]"), "there are no captions"),
        ("sd1", ("--model.prediction_type", "velocity"), "unknown prediction type 'velocity'"),
        ("sd1", ("--model.loss.cutoff", 0), "cutoff must be above 0"),
        ("sd1", ("--model.loss.spatial", "vit_mimi"), "did you mean 'vit_mini'"),
        ("sd1", ("--data.teacher.steps", 1), "data.teacher.steps must be at least 2"),
    ],
)
def test_what_does_not_fit_is_told(kind, more, told, bases, tmp_path, capsys):
    code, _, error = here(capsys, *words(bases / kind, *more), "--out", tmp_path / "run")
    assert code != 0
    assert told in " ".join(error.split())


def test_scheduler_that_cannot_do_one_step_is_told(bases, tmp_path, capsys):
    shutil.copytree(bases / "sd1", tmp_path / "edm")
    from diffusers import EDMEulerScheduler

    EDMEulerScheduler().save_pretrained(tmp_path / "edm" / "scheduler")
    index = json.loads((tmp_path / "edm" / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "EDMEulerScheduler"]
    (tmp_path / "edm" / "model_index.json").write_text(json.dumps(index))
    code, _, error = here(capsys, *words(tmp_path / "edm"), "--out", tmp_path / "run")
    assert code != 0
    assert "a EDMEulerScheduler cannot do one step" in " ".join(error.split())


def test_examples_draw_edit_inpaint_and_enlarge(run: Path, bases: Path, tmp_path: Path):
    picture, mask = tmp_path / "picture.png", tmp_path / "mask.png"
    Image.linear_gradient("L").resize((SIZE, SIZE)).convert("RGB").save(picture)
    hole = Image.new("L", (SIZE, SIZE), "black")
    hole.paste("white", (4, 4, 12, 12))
    hole.save(mask)
    asked = {
        "text_to_image": ["star"],
        "edit": [picture, "star", "600"],
        "inpaint": [picture, mask, "star"],
        "super_resolution": [picture, "2", "star"],
    }
    calls = [
        (
            str(EXAMPLES / f"{name}.py"),
            str(bases / "sd2"),
            str(run / "adapter"),
            *map(str, more),
            f"{tmp_path}/{name}.png",
        )
        for name, more in asked.items()
    ]
    adapter, sheet = str(run / "adapter"), tmp_path / "gallery.png"
    calls.append((str(EXAMPLES / "gallery.py"), str(bases / "sd2"), adapter, adapter, str(sheet)))
    code = "import runpy, sys\nfor call in CALLS:\n    sys.argv = list(call)\n    runpy.run_path(call[0])"
    done = subprocess.run(
        [sys.executable, "-c", code.replace("CALLS", repr(calls))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    sizes = {name: Image.open(tmp_path / f"{name}.png").size for name in asked}
    assert sizes == {name: (2 * SIZE,) * 2 if name == "super_resolution" else (SIZE,) * 2 for name in asked}
    before, after = (Image.open(path).convert("RGB") for path in (picture, tmp_path / "inpaint.png"))
    around = [(x, y) for x in range(SIZE) for y in range(SIZE) if hole.getpixel((x, y)) == 0]
    assert all(before.getpixel(place) == after.getpixel(place) for place in around)
    assert before.tobytes() != after.tobytes()
    panels = Image.open(sheet).convert("RGB")
    assert panels.size == (7 * 196 + 3 * 24, 44 + 192)
    lefts = [196 * number + 24 * gaps for number, gaps in enumerate((0, 1, 1, 2, 2, 3, 3))]
    shown = [panels.crop((left, 44, left + 192, 236)) for left in lefts]
    assert all(len(picture.getcolors(192**2) or ()) > 1 for picture in shown)
    assert len({picture.tobytes() for picture in shown}) == 7
