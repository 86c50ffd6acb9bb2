"""Saved adapters on pipelines: drawn with, merged into plain pipelines, and told about."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from diffusion_peft.pipelines.opening import open_pipeline, part_of
from peft_kernels.registry import method
from tests.diffusion.command import here, tuned
from tests.diffusion.tiny_pipelines import KINDS, SIZE

PROMPTS = {"dit": ("star", "2")}
Adapter = Callable[..., Path]


@pytest.fixture(scope="module")
def adapter(pipelines: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """Makes a trained adapter of a method on a kind of pipeline, once."""
    made: dict[str, Path] = {}

    def make(kind: str, name: str = "lora", **values: Any) -> Path:
        mark = f"{kind} {name} {values}"
        if mark not in made:
            base = str(pipelines / kind)
            values = {"target_modules": ["to_q", "to_v"], **values}
            denoiser = getattr(open_pipeline(base), part_of(base))
            adapted = method(name).attach(denoiser, **values)
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for parameter in adapted.parameters():
                    if parameter.requires_grad:
                        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            made[mark] = tmp_path_factory.mktemp(name)
            adapted.save_pretrained(str(made[mark]), save_embedding_layers=False)
        return made[mark]

    return make


def drawn(capsys: pytest.CaptureFixture[str], out: Path, kind: str, *words: object) -> dict[str, np.ndarray]:
    """The pictures of `sample`, by file."""
    prompts = [word for prompt in PROMPTS.get(kind, ("a star", "a red square")) for word in ("--prompt", prompt)]
    size = () if kind == "dit" else ("--size", SIZE)
    given = ("sample", *prompts, *size, "--seeds", 3, 5, "--steps", 2, *words, "--out", out)
    code, said, error = here(capsys, *given)
    assert code == 0, error
    assert str(out / "grid.png") in said
    return {path.name: np.asarray(Image.open(path)).astype(int) for path in sorted(out.glob("*_seed*.png"))}


@pytest.mark.parametrize("kind", KINDS)
def test_base_stands_beside_the_adapted(
    kind: str, adapter: Adapter, pipelines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = drawn(capsys, tmp_path / "both", kind, "--adapter", adapter(kind), "--compare-base")
    base = drawn(capsys, tmp_path / "base", kind, "--pipeline", pipelines / kind, "--batch", 1)
    assert len(both) == 8
    for name, image in base.items():
        assert np.abs(image - both[name.replace(".png", "_base.png")]).max() <= 1  # other batches round otherwise
        assert np.abs(image - both[name]).max() > 1
    told = json.loads((tmp_path / "both" / "samples.json").read_text(encoding="utf-8"))
    assert told["pipeline"] == str(pipelines / kind)
    assert {picture["file"] for picture in told["pictures"]} == set(both)
    with Image.open(tmp_path / "both" / "grid.png") as sheet:
        assert sheet.size == (4 * SIZE, 2 * SIZE)


def test_two_halves_are_a_whole_and_nothing_is_the_base(
    adapter: Adapter, pipelines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = adapter("sd1")
    ways = {
        "whole": ("--adapter", folder),
        "halves": ("--adapter", f"{folder}:0.5", "--adapter", f"{folder}:0.5"),
        "nothing": ("--adapter", f"{folder}:0"),
        "base": ("--pipeline", pipelines / "sd1"),
    }
    found = {name: drawn(capsys, tmp_path / name, "sd1", *words) for name, words in ways.items()}
    for name in found["base"]:
        assert np.abs(found["whole"][name] - found["halves"][name]).max() <= 1
        assert np.array_equal(found["nothing"][name], found["base"][name])
        assert np.abs(found["whole"][name] - found["base"][name]).max() > 1


def test_adapters_of_two_methods_act_together(
    adapter: Adapter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora, ssf = adapter("sd1"), adapter("sd1", "ssf", target_modules=["conv1"])
    found = [
        drawn(capsys, tmp_path / name, "sd1", *(word for folder in folders for word in ("--adapter", folder)))
        for name, folders in {"lora": [lora], "ssf": [ssf], "both": [lora, ssf]}.items()
    ]
    for name, image in found[2].items():
        assert all(np.abs(image - alone[name]).max() > 1 for alone in found[:2])


@pytest.mark.parametrize("kind", KINDS)
def test_merged_pipeline_draws_what_the_adapted_does(
    kind: str, adapter: Adapter, pipelines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    code, said, error = here(capsys, "merge", f"{adapter(kind)}:0.5", "--out", out)
    assert (code, error) == (0, "")
    assert float(said.partition("adapted to merged: ")[2].split()[0]) < 1e-4
    index = [json.loads((folder / "model_index.json").read_text()) for folder in (out, pipelines / kind)]
    assert index[0] == index[1]
    adapted = drawn(capsys, tmp_path / "adapted", kind, "--adapter", f"{adapter(kind)}:0.5")
    merged = drawn(capsys, tmp_path / "plain", kind, "--pipeline", out)
    for name, image in merged.items():
        assert np.abs(image - adapted[name]).max() <= 1


def test_merged_in_half_precision_loads(adapter: Adapter, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "merged"
    code, _, warned = here(capsys, "merge", adapter("pixart"), "--dtype", "float16", "--out", out)
    assert code == 0
    assert "float16 rounds every weight" in warned
    pipeline: Any = DiffusionPipeline.from_pretrained(out, dtype=torch.float16)
    assert {part.dtype for part in (pipeline.transformer, pipeline.vae)} == {torch.float16}


def test_inspect_compares_with_the_pipeline(
    adapter: Adapter, pipelines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, _ = here(capsys, "inspect", adapter("sd1"), "--json")
    assert code == 0
    report = json.loads(said)
    assert (report["method"], report["base_model"]) == ("lora", str(pipelines / "sd1"))
    assert report["fit"]["share"] == 1.0
    assert not report["fit"]["missing"]
    other = json.loads(here(capsys, "inspect", adapter("sd1"), "--model", pipelines / "pixart", "--json")[1])
    assert other["fit"]["share"] < 1
    assert other["fit"]["missing"]


REFUSED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "no prompt": (("sample", "--pipeline", "{base}"), ("--prompt",)),
    "nothing to draw with": (("sample", "--prompt", "x"), ("--pipeline", "--adapter")),
    "adapter of another kind": (
        ("sample", "--prompt", "x", "--adapter", "{adapter}", "--pipeline", "{other}"),
        ("PixArtTransformer2DModel", "adapter_model.safetensors"),
    ),
    "no adapter": (("sample", "--prompt", "x", "--adapter", "nowhere"), ("nowhere",)),
    "weight": (("sample", "--prompt", "x", "--adapter", "{adapter}:much"), ("much", "FOLDER:WEIGHT")),
    "unknown pipeline": (("sample", "--prompt", "x", "--pipeline", "mini_st"), ("'mini_st'", "'mini_sd'")),
    "class": (("sample", "--prompt", "cirle", "--pipeline", "{dit}"), ("'cirle'", "'circle'")),
    "size of a DiT": (("sample", "--prompt", "1", "--pipeline", "{dit}", "--size", "32"), ("16 pixels only",)),
    "odd size": (("sample", "--prompt", "x", "--pipeline", "{base}", "--size", "15"), ("multiple of 2", "not 15")),
    "no size": (("sample", "--prompt", "x", "--pipeline", "{base}", "--size", "0"), ("multiple of 2", "not 0")),
    "steps": (("sample", "--prompt", "x", "--pipeline", "{base}", "--steps", "1001"), ("1000 timesteps", "1001")),
    "seed": (("sample", "--prompt", "x", "--pipeline", "{base}", "--seeds", f"{2**64}"), (str(2**64), "seed")),
    "guidance": (("sample", "--prompt", "x", "--pipeline", "{base}", "--guidance", "nan"), ("--guidance", "nan")),
    "weight of NaN": (("sample", "--prompt", "x", "--adapter", "{adapter}:nan"), ("finite", "nan")),
    "merge into another kind": (("merge", "{adapter}", "--pipeline", "{other}"), ("PixArtTransformer2DModel",)),
    "merge what cannot be": (("merge", "{unmergeable}"), ("adapter_plus",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_one_sentence(
    case: str, adapter: Adapter, pipelines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, parts = REFUSED[case]
    places = {
        "base": pipelines / "sd1",
        "other": pipelines / "pixart",
        "dit": pipelines / "dit",
        "adapter": adapter("sd1"),
    }
    if "{unmergeable}" in words:
        places["unmergeable"] = adapter("sd1", "adapter_plus", target_modules=["attn1"])
    code, _, said = here(capsys, *(word.format(**places) for word in words), "--out", tmp_path / "out")
    assert code in (1, 2)
    assert len(said.splitlines()) == 1, said
    for part in parts:
        assert part in said
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_is_not_written_into(
    adapter: Adapter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (("sample", "--prompt", "x", "--adapter"), ("merge",)):
        code, _, said = here(capsys, *words, adapter("sd1"), "--out", tmp_path)
        assert code == 2
        assert "exists already" in said


def test_whole_trained_denoisers_are_drawn_with_and_written(
    pipelines: Path, captioned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    start = tuned(pipelines / "sd1", captioned)
    given = [word for word in zip(start[::2], start[1::2], strict=True) if not word[0].startswith("--method.")]
    words = [word for pair in given for word in pair]
    assert here(capsys, "train", *words, "--method.name", "null", "--out", run)[0] == 0
    assert here(capsys, "merge", run, "--out", tmp_path / "merged")[0] == 0
    adapted = drawn(capsys, tmp_path / "adapted", "sd1", "--adapter", run)
    merged = drawn(capsys, tmp_path / "plain", "sd1", "--pipeline", tmp_path / "merged")
    base = drawn(capsys, tmp_path / "base", "sd1", "--pipeline", pipelines / "sd1")
    for name, image in merged.items():
        assert np.abs(image - adapted[name]).max() <= 1
        assert np.abs(image - base[name]).max() > 1
    code, _, said = here(capsys, "sample", "--prompt", "x", "--adapter", f"{run}:0.5", "--out", tmp_path / "none")
    assert code == 2
    assert "whole model" in said
