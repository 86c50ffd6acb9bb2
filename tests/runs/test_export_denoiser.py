"""`diffusion-peft export`: what it writes is read with the same outputs; files of other programs go in as well."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

import diffusion_peft as dp
from diffusion_peft.pipelines.opening import open_pipeline
from tests.diffusion import tiny_pipelines
from tests.diffusion.command import here
from tests.kernels.saved_adapters import CONFIG, WEIGHTS, edit
from tests.runs.command import one_thread
from tests.runs.saved_denoisers import BASE, outputs

TARGETS = {
    "sd1": ["to_q", "to_out.0", "conv1"],
    "sdxl": ["to_q", "conv1"],
    "sd3": ["to_q"],
    "flux": ["to_q", "proj_mlp"],
    "dit": ["to_q"],
}
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def make(root: Path, kind: str) -> tuple[Path, Tensor]:
    """A pipeline in ``root/base``, a LoRA for it in ``root/lora``, and what it makes."""
    tiny_pipelines.save(kind, root / BASE)
    pipeline = open_pipeline(str(root / BASE))
    config = LoraConfig(r=3, lora_alpha=5, init_lora_weights=False, target_modules=TARGETS[kind])
    torch.manual_seed(2)
    dp.add_adapter(pipeline, config)
    dp.save_adapter(pipeline, root / "lora")
    return root, outputs(pipeline)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    return make(tmp_path_factory.mktemp("sd1"), "sd1")


def test_a_kohya_file_goes_out_and_comes_back_as_any_other_format(
    adapter: tuple[Path, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root, wanted = adapter
    file, base = tmp_path / "style.safetensors", root / BASE
    shutil.copytree(root / "lora", tmp_path / "run" / "adapter")
    code, said, error = here(capsys, "export", tmp_path / "run", "--to", "kohya", "--out", file)
    assert (code, error) == (0, "")
    assert "sd-scripts" in said
    for to, out in (("peft", "folder"), ("comfy", "comfy.safetensors"), ("diffusers", "diffusers.safetensors")):
        code, _, error = here(capsys, "export", file, "--to", to, "--out", tmp_path / out, "--pipeline", base)
        assert (code, error) == (0, "")
        pipeline = open_pipeline(str(base))
        dp.load_adapter(pipeline, tmp_path / out)
        torch.testing.assert_close(outputs(pipeline), wanted, rtol=0, atol=1e-5)
    folder, ours = load_file(tmp_path / "folder" / WEIGHTS), load_file(root / "lora" / WEIGHTS)
    assert folder.keys() == ours.keys()
    assert all(torch.equal(folder[key], ours[key]) for key in ours)
    assert json.loads((tmp_path / "folder" / CONFIG).read_text())["base_model_name_or_path"] == str(base)


def test_a_file_of_another_program_is_merged(
    adapter: tuple[Path, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root, wanted = adapter
    file = tmp_path / "style.safetensors"
    assert here(capsys, "export", root / "lora", "--to", "kohya", "--out", file)[0] == 0
    words = ("--to", "merged", "--pipeline", root / BASE, "--out", tmp_path / "plain")
    code, said, _ = here(capsys, "export", file, *words)
    assert code == 0
    assert "largest difference of the unet's outputs" in said
    torch.testing.assert_close(outputs(open_pipeline(str(tmp_path / "plain"))), wanted, rtol=0, atol=1e-5)


READ = """
import sys, torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], local_files_only=True)
pipe.load_lora_weights(sys.argv[2], weight_name=sys.argv[3], local_files_only=True)
noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
with torch.no_grad():
    found = pipe.unet(noise, 7, torch.ones(1, 4, 16)).sample
assert not [name for name in sys.modules if name.startswith(("peft_kernels", "diffusion_peft", "peft_runs"))]
torch.save(found, sys.argv[4])
"""


def test_diffusers_alone_reads_the_export(
    adapter: tuple[Path, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """In a process of its own."""
    root, _ = adapter
    out = tmp_path / "style.safetensors"
    assert here(capsys, "export", root / "lora", "--to", "kohya", "--out", out)[0] == 0
    words = [sys.executable, "-c", READ, str(root / BASE), str(tmp_path), out.name, str(tmp_path / "found")]
    environment = {**one_thread(), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=os.sep)
    assert run.returncode == 0, run.stderr
    pipeline = open_pipeline(str(root / BASE))
    dp.load_adapter(pipeline, root / "lora")
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        wanted = pipeline.unet(noise, 7, torch.ones(1, 4, 16)).sample
    torch.testing.assert_close(torch.load(tmp_path / "found"), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "to", "why"),
    [
        ("flux", "comfy", None),
        ("flux", "kohya", None),
        ("sd3", "kohya", "as its authors' code does"),
        ("dit", "diffusers", "loads no adapters"),
        ("dit", "comfy", "no names for the layers"),
        ("dit", "peft", None),
        ("sdxl", "kohya", None),
    ],
)
def test_other_denoisers(kind: str, to: str, why: str | None, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root, wanted = make(tmp_path / "made", kind)
    out = tmp_path / ("out" if to == "peft" else "out.safetensors")
    code, _, error = here(capsys, "export", root / "lora", "--to", to, "--out", out)
    if why is not None:
        assert (code, out.exists()) == (1, False)
        assert why in error
        assert "--to merged" in error
        return
    assert (code, error) == (0, "")
    pipeline = open_pipeline(str(root / BASE))
    dp.load_adapter(pipeline, out)
    torch.testing.assert_close(outputs(pipeline), wanted, rtol=0, atol=1e-5)


def test_wrong_words_and_files_are_one_sentence_and_write_nothing(
    adapter: tuple[Path, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root, _ = adapter
    base, good, text = root / BASE, tmp_path / "good.safetensors", tmp_path / "text.safetensors"
    assert here(capsys, "export", root / "lora", "--to", "kohya", "--out", good)[0] == 0
    encoder = {f"{TEXT}.lora_down.weight": torch.ones(2, 16), f"{TEXT}.lora_up.weight": torch.ones(16, 2)}
    save_file(load_file(good) | encoder, text)
    tiny_pipelines.save("dit", tmp_path / "dit")
    nan = make(tmp_path / "nan", "sd1")[0] / "lora"
    edit(nan, lambda tensors: next(iter(tensors.values())).fill_(torch.nan))
    (tmp_path / "full").mkdir()
    before = sorted(path for path in tmp_path.iterdir())
    out = tmp_path / "out.safetensors"
    for words, code, parts in (
        ((root / "lora", "--to", "koyha", "--out", out), 2, ("'koyha'", "'kohya'")),
        ((root / "lora", "--to", "kohya", "--out", tmp_path / "out.bin"), 2, (".safetensors",)),
        ((root / "lora", "--to", "peft", "--out", tmp_path / "full"), 2, ("exists already",)),
        ((good, "--to", "peft", "--out", tmp_path / "out"), 2, ("does not name its base", "--pipeline")),
        ((text, "--to", "diffusers", "--out", out, "--pipeline", base), 1, (TEXT, "--part unet")),
        ((good, "--to", "diffusers", "--out", out, "--pipeline", tmp_path / "dit"), 1, ("does not fit", "0%")),
        ((root / "lora", "--to", "kohya", "--out", out, "--pipeline", tmp_path / "dit"), 1, ("does not fit",)),
        ((root / "lora", "--to", "kohya", "--out", out, "--pipeline", tmp_path / "none"), 1, ("no pipeline at",)),
        ((nan, "--to", "kohya", "--out", out), 1, ("NaN",)),
        ((tmp_path / "none", "--to", "kohya", "--out", out), 1, ("no adapter",)),
    ):
        found, said, error = here(capsys, "export", *words)
        assert (found, said, error.count("\n")) == (code, "", 0), error
        for part in parts:
            assert part in error
        assert sorted(tmp_path.iterdir()) == before
    words = ("--to", "diffusers", "--out", out, "--pipeline", base, "--part", "unet")
    assert here(capsys, "export", text, *words)[0] == 0


def test_inspect_counts_the_layers_of_a_foreign_file(
    adapter: tuple[Path, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root, _ = adapter
    file = tmp_path / "style.safetensors"
    assert here(capsys, "export", root / "lora", "--to", "kohya", "--out", file)[0] == 0
    tensors = load_file(file)
    strange = {f"lora_unet_nowhere.{part}": torch.ones(2, 2) for part in ("lora_down.weight", "lora_up.weight")}
    encoder = {f"{TEXT}.lora_down.weight": torch.ones(2, 16), f"{TEXT}.lora_up.weight": torch.ones(16, 2)}
    save_file(tensors | strange | encoder, file)
    code, said, error = here(capsys, "inspect", file, "--model", root / BASE, "--json")
    assert (code, error) == (0, "")
    told = json.loads(said)
    layers = len(tensors) // 3
    assert (told["method"], told["ranks"], told["alphas"]) == ("LoRA", {"2": 2, "3": layers}, [5.0])
    assert told["readers"]["diffusion-peft"].startswith("yes")
    assert told["fit"] == {
        "model": str(root / BASE),
        "matched": layers,
        "share": layers / (layers + 1),
        "misfits": [],
        "missing": [],
        "unexpected": ["lora_unet_nowhere"],
        "text": [TEXT],
    }
    code, said, _ = here(capsys, "inspect", root / "lora", "--json")
    assert json.loads(said)["fit"]["share"] == 1
