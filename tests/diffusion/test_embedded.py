"""The pipelines that the package carries: loaded without a network, small, and as good as their cards say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, DiTPipeline, StableDiffusionPipeline

import diffusion_peft
from diffusion_peft.data.reading import ground_of, letters_right, read_letters
from diffusion_peft.embedded import ASSETS, NAMES
from peft_kernels.data_errors import DataError, UnknownNameError
from peft_runs.commands import main
from peft_runs.families import DIFFUSION
from tests.diffusion.command import here

LIMIT = 18_000_000


def folder(name: str) -> Path:
    """An embedded pipeline's folder."""
    try:
        return diffusion_peft.pretrained(name)
    except DataError as error:
        pytest.skip(f"waits for the trained weights of {name}: {error}")


def opened(name: str) -> Any:
    pipeline: Any = DiffusionPipeline.from_pretrained(folder(name), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_together_they_are_small() -> None:
    files = [path for name in NAMES for path in folder(name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LIMIT


@pytest.mark.parametrize("name", NAMES)
def test_cards_state_what_was_measured(name: str) -> None:
    card = (folder(name) / "README.md").read_text(encoding="utf-8")
    measured = json.loads((folder(name) / "measured.json").read_text(encoding="utf-8"))
    assert f"**{measured['frechet_distance']['samples']:.2f}**" in card
    assert measured["frechet_distance"]["samples"] < 10 * measured["frechet_distance"]["reconstructions"]


@pytest.mark.parametrize("name", NAMES)
def test_configurations_name_no_place_on_a_machine(name: str) -> None:
    assert not [path for path in folder(name).rglob("*.json") if "_name_or_path" in path.read_text(encoding="utf-8")]


def words_of(pipeline: Any, words: list[str]) -> torch.Tensor:
    """Pictures of words in black on yellow, `[N, 3, 64, 64]` in [0, 1]."""
    prompts = [f'the word "{word}" in black on yellow' for word in words]
    seeded = torch.Generator().manual_seed(0)
    found = pipeline(prompts, num_inference_steps=15, guidance_scale=4, generator=seeded, output_type="np").images
    return torch.from_numpy(found).permute(0, 3, 1, 2)


def test_prompts_steer_what_is_drawn() -> None:
    pipeline = opened("mini_sd")
    assert pipeline.__class__ is StableDiffusionPipeline
    assert ground_of(words_of(pipeline, ["CAT", "DOG", "SUN", "MAP"])) == ["yellow"] * 4


def test_prompts_steer_what_is_written() -> None:
    words = ["CAT", "DOG", "SUN", "MAP"]
    assert letters_right(read_letters(words_of(opened("mini_sd"), words), 3), words) >= 0.5


def test_classes_are_sampled_by_name() -> None:
    pipeline = opened("mini_dit")
    assert pipeline.__class__ is DiTPipeline
    found = pipeline(pipeline.get_label_ids(["face", "animal"]), num_inference_steps=4, output_type="np").images
    assert found.shape == (2, 64, 64, 3)


def test_unknown_names_and_missing_weights_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'mini_sd'"):
        diffusion_peft.pretrained("mini_sdd")
    monkeypatch.setattr("diffusion_peft.embedded.ASSETS", tmp_path)
    with pytest.raises(DataError, match="no weights of mini_dit"):
        diffusion_peft.pretrained("mini_dit")
    assert tmp_path != ASSETS


def test_program_offers_what_it_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(DIFFUSION, ["--help"]) == 0
    said = capsys.readouterr().out
    assert "diffusion-peft" in said
    assert "train" in said
    assert "benchmark" not in said
    code, _, error = here(capsys, "trian")
    assert code == 2
    assert "did you mean 'train'" in error


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--recipe", "mini_vae"), "add --data.root"),
        (("--recipe", "mini_sd", "--model.parts", "nowhere"), "there is no vae at nowhere"),
        (("--recipe", "mini_sd_words", "--model.start", "nowhere"), "there is no unet at nowhere"),
        (("--recipe", "mini_dit", "--model.snr_gamma", "0"), "model.snr_gamma must be above 0"),
        (("--recipe", "mini_vae", "--model.widths", "[12, 16]"), "must divide every width"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(
    words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, error = here(capsys, "train", *words, "--out", tmp_path / "run")
    assert code in (1, 2)
    assert told in error
    assert len(error.splitlines()) == 1
