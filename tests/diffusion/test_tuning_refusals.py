"""What cannot be tuned is refused with one sentence that says what to do, and nothing is left behind."""

import json
import shutil
from pathlib import Path

import pytest
from diffusers import EDMEulerScheduler

from tests.diffusion.command import here, tuned
from tests.diffusion.tiny_pipelines import save_without_latents

REFUSED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "unknown pipeline": (("--model.pipeline", "mini_sdd"), ("'mini_sdd'", "'mini_sd'")),
    "folder without pipeline": (("--model.pipeline", "{captioned}"), ("model_index.json is missing",)),
    "no such folder": (("--model.pipeline", "/nowhere/at/all"), ("there is no pipeline at /nowhere/at/all",)),
    "unknown prediction type": (("--model.prediction_type", "epsilom"), ("'epsilom'", "'epsilon'")),
    "flow for a noise schedule": (("--model.prediction_type", "flow"), ("PNDMScheduler", "not for flow matching")),
    "unknown column": (("--data.column", "sayd"), ("line 1", "'sayd'", "'said'")),
    "unknown key": (("--model.snr_gama", "5"), ("'model.snr_gama'", "'model.snr_gamma'")),
    "unknown data": (("--data.name", "foldr"), ("'foldr'", "'folder'")),
    "nothing to train on": (("--data.test_size", "8"), ("data.test_size is 8", "only 8 pictures")),
    "pictures too small": (("--data.size", "64"), ("0.png", "24 x 20", "64", "--data.enlarge")),
    "unknown target": (("--method.target_modules", "[to_qq]"), ("'to_qq'", "'to_q'")),
    "half precision for all weights": (
        ("--method.name", "null", "--model.dtype", "bfloat16"),
        ("would be trained in bfloat16", "model.dtype float32"),
    ),
    "tokens of CLIP": (("--model.max_tokens", "8"), ("no choice of tokens", "model.max_tokens")),
    "size between the latents": (("--data.size", "17"), ("multiple of 2 pixels", "17")),
    "steps of the samples": (
        ("--model.samples.prompts", "[x]", "--model.samples.steps", "1001"),
        ("1000 timesteps", "1001 steps"),
    ),
    "dropout": (("--model.caption_dropout", "1"), ("model.caption_dropout", "[0, 1)")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_tuned_is_one_sentence(
    case: str, pipelines: Path, captioned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, parts = REFUSED[case]
    changed = [word.format(captioned=captioned) for word in changes]
    start = tuned(pipelines / "sd1", captioned)
    dropped = {name for name in changed if name.startswith("--")}
    kept = [pair for pair in zip(start[::2], start[1::2], strict=True) if pair[0] not in dropped]
    if "null" in changed:
        kept = [pair for pair in kept if not pair[0].startswith("--method.")]
    given = [word for pair in kept for word in pair]
    code, _, said = here(capsys, "train", *given, *changed, "--out", tmp_path / "run")
    assert code in (1, 2)
    assert len(said.splitlines()) == 1, said
    for part in parts:
        assert part in said
    assert not list(tmp_path.rglob("*.safetensors"))


def test_pipeline_without_denoiser_is_told(tmp_path: Path, captioned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = save_without_latents(tmp_path / "bare")
    code, _, said = here(capsys, "train", *tuned(bare, captioned), "--out", tmp_path / "run")
    assert (code, len(said.splitlines())) == (1, 1)
    assert "DDPMPipeline" in said
    index = json.loads((bare / "model_index.json").read_text(encoding="utf-8"))
    del index["unet"]
    (bare / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    code, _, said = here(capsys, "train", *tuned(bare, captioned), "--out", tmp_path / "run")
    assert (code, len(said.splitlines())) == (1, 1)
    assert "without a UNet or transformer" in said


@pytest.mark.parametrize(("how", "told"), [("broken", "is not a readable picture"), ("gone", "cannot be read")])
def test_broken_and_missing_pictures_are_named(
    how: str, told: str, pipelines: Path, captioned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(captioned, tmp_path / "data")
    (root / "3.png").write_bytes(b"no picture") if how == "broken" else (root / "3.png").unlink()
    code, _, said = here(capsys, "train", *tuned(pipelines / "sd1", root), "--out", tmp_path / "run")
    assert (code, len(said.splitlines())) == (1, 1)
    assert f"3.png {told}" in said


def test_missing_captions_say_how_to_give_them(
    pipelines: Path, captioned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(captioned, tmp_path / "data")
    (root / "metadata.jsonl").unlink()
    given = ("train", *tuned(pipelines / "sd1", root), "--data.column", "said", "--out", tmp_path / "run")
    code, _, said = here(capsys, *given)
    assert (code, len(said.splitlines())) == (1, 1)
    for part in ("metadata.jsonl", '"said"', "--data.prompt"):
        assert part in said


def test_unknown_classes_name_the_nearest(
    pipelines: Path, captioned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (*tuned(pipelines / "dit", captioned), "--data.prompt", "sqare")
    code, _, said = here(capsys, "train", *given, "--out", tmp_path / "run")
    assert code == 2
    assert "'sqare'" in said
    assert "'square'" in said


def test_schedulers_without_a_noise_schedule_are_told(
    pipelines: Path, captioned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = shutil.copytree(pipelines / "sd1", tmp_path / "odd")
    EDMEulerScheduler().save_pretrained(odd / "scheduler")
    index = json.loads((odd / "model_index.json").read_text(encoding="utf-8"))
    index["scheduler"] = ["diffusers", "EDMEulerScheduler"]
    (odd / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    code, _, said = here(capsys, "train", *tuned(odd, captioned), "--out", tmp_path / "run")
    assert (code, len(said.splitlines())) == (1, 1)
    assert "EDMEulerScheduler" in said
