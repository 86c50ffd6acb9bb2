"""`inspect` tells method, ranks, size, norms, fit and readers of adapters from anywhere."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from peft_kernels.adapter_formats import recognise
from tests.kernels.saved_adapters import GENERAL, WEIGHTS, edit, saved, setting
from tests.runs.command import here
from tests.runs.saved import MODEL, base, save_all

PEFTS_OWN = ("dora", "ln_tuning", "loha", "lokr", "lora")
DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int32: "I32"}


def report(capsys: pytest.CaptureFixture, path: Path, *words: object) -> dict[str, Any]:
    code, said, error = here(capsys, "inspect", path, "--json", *words)
    assert (code, error) == (0, "")
    return json.loads(said)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter of each method."""
    root = tmp_path_factory.mktemp("adapters")
    save_all(root)
    return root


@pytest.mark.parametrize("name", GENERAL)
def test_own_adapters_are_named_counted_and_fit(name: str, adapters: Path, capsys: pytest.CaptureFixture) -> None:
    told = report(capsys, adapters / name)
    tensors = load_file(adapters / name / WEIGHTS)
    assert told["method"] == name
    assert told["base_model"] == MODEL
    assert told["naming"] == "PEFT"
    trained = [tensor for tensor in tensors.values() if tensor.is_floating_point()]  # indices of entries are not
    assert told["parameters"] == sum(tensor.numel() for tensor in trained)
    assert told["parameters"] == sum(layer["parameters"] for layer in told["layers"])
    assert told["bytes"] == (adapters / name / WEIGHTS).stat().st_size
    assert told["dtypes"] == Counter(DTYPES[tensor.dtype] for tensor in tensors.values())
    norms = [layer["norm"] for layer in told["layers"]]
    assert math.isclose(math.hypot(*norms), math.sqrt(sum(t.double().square().sum() for t in trained)))
    assert told["fit"] == {
        "model": MODEL,
        "matched": len(tensors),
        "share": 1.0,
        "misfits": [],
        "missing": [],
        "unexpected": [],
        "text": [],
    }
    assert told["problems"] == []
    assert told["readers"]["vision-peft"].startswith("yes")
    assert told["readers"]["ComfyUI"].startswith("no")
    assert ("import vision_peft" in told["readers"]["PEFT"]) == (name not in PEFTS_OWN)


def test_ranks_alpha_and_norm_of_the_change(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    saved(tmp_path, "lora", model=base(), r=4, lora_alpha=16)
    told = report(capsys, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    assert told["ranks"] == {"4": 20}
    assert told["alphas"] == [16.0]
    assert told["settings"] == {"r": 4, "lora_alpha": 16}
    assert told["trained_in_full"] == ["head"]
    for layer in told["layers"]:
        if layer["name"] != "head":
            A, B = (tensors[f"base_model.model.{layer['name']}.lora_{part}.weight"] for part in "AB")
            assert math.isclose(layer["change"], (16 / 4 * B @ A).norm(), rel_tol=1e-4)


def test_another_model_shows_what_does_not_fit(adapters: Path, capsys: pytest.CaptureFixture) -> None:
    told = report(capsys, adapters / "lora", "--model", "test_vit")["fit"]
    assert told["model"] == "test_vit"
    assert 0 < told["share"] < 1
    shape = "base_model.model.blocks.0.attn.qkv.lora_A.weight: shape (8, 128) of F32, expected (8, 64)"
    assert shape in told["misfits"]
    assert told["missing"]  # it has more blocks
    code, _, error = here(capsys, "inspect", adapters / "lora", "--model", "test_vot")
    assert (code, "'test_vit'" in error) == (2, True)


def low_rank(layer: str, down: str, up: str, rank: int = 4) -> dict[str, Tensor]:
    return {f"{layer}.{down}": torch.ones(rank, 8), f"{layer}.{up}": torch.ones(6, rank)}


UNET, BLOCK = "lora_unet_down_blocks_0_attentions_0_to_q", "down_blocks.0.attentions.0.to_q"
KOHYA = {**low_rank(UNET, "lora_down.weight", "lora_up.weight"), f"{UNET}.alpha": torch.tensor(2.0)}
# Key pattern -> tensors, what is told of naming and method, ranks, and how some programs' answers begin.
FOREIGN: dict[str, tuple[dict[str, Tensor], str, str, dict[str, int], dict[str, str]]] = {
    "kohya LoRA": (KOHYA, "kohya", "LoRA", {"4": 1}, {"diffusers": "in part", "ComfyUI": "yes", "sd-scripts": "yes"}),
    "kohya DoRA": (
        {**KOHYA, f"{UNET}.dora_scale": torch.ones(6, 1)},
        *(
            "kohya",
            "LoRA + DoRA",
            {"4": 1},
            {"diffusers": "no: it leaves", "ComfyUI": "in part", "diffusion-peft": "yes"},
        ),
    ),
    "kohya text encoder": (
        low_rank("lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_down.weight", "lora_up.weight", 2),
        *("kohya", "LoRA", {"2": 1}, {"diffusers": "in part"}),
    ),
    "LoCon": (
        {**KOHYA, f"{UNET}.lora_mid.weight": torch.ones(4, 4, 3, 3)},
        *("kohya", "LoRA + LoRA, Tucker", {"4": 1}, {"diffusers": "no", "LyCORIS": "yes"}),
    ),
    "LoHa": (
        {f"{UNET}.hada_{w}_{x}": torch.ones((6, 3) if x == "a" else (3, 8)) for w in ("w1", "w2") for x in "ab"},
        *("kohya", "LoHa", {"3": 1}, {"diffusers": "no", "ComfyUI": "yes", "sd-scripts": "in part"}),
    ),
    "LoKr": (
        {"lycoris_blocks_0_to_q.lokr_w1": torch.ones(2, 2), "lycoris_blocks_0_to_q.lokr_w2_b": torch.ones(5, 4)},
        *("LyCORIS", "LoKr", {"5": 1}, {"diffusers": "in part", "ComfyUI": "yes"}),
    ),
    "OFT": ({f"{UNET}.oft_blocks": torch.ones(2, 3, 3)}, "kohya", "OFT", {}, {"diffusers": "no", "ComfyUI": "yes"}),
    "IA3": (
        {f"{UNET}.on_input": torch.tensor(1.0)},
        "kohya",
        "IA3",
        {},
        {"ComfyUI": "no", "diffusion-peft": "no", "LyCORIS": "yes"},
    ),
    "GLoRA": ({f"{UNET}.a1.weight": torch.ones(4, 4)}, "kohya", "GLoRA", {}, {"ComfyUI": "yes"}),
    "full difference": ({f"{UNET}.diff": torch.ones(6, 8)}, "kohya", "full difference", {}, {"ComfyUI": "yes"}),
    "diffusers": (
        low_rank(f"unet.{BLOCK}", "lora_A.weight", "lora_B.weight"),
        *("diffusers", "LoRA", {"4": 1}, {"diffusers": "yes", "PEFT": "no", "ComfyUI": "in part"}),
    ),
    "diffusers, transformer": (
        low_rank("transformer.blocks.0.to_q", "lora_A.weight", "lora_B.weight"),
        *("diffusers", "LoRA", {"4": 1}, {"diffusers": "yes"}),
    ),
    "diffusers, older": (
        low_rank("unet.down_blocks.0.attn1.processor.to_q", "_lora.down.weight", "_lora.up.weight"),
        *("diffusers", "LoRA", {"4": 1}, {"diffusers": "yes"}),
    ),
    "ComfyUI": (
        low_rank("diffusion_model.double_blocks.0.img_attn.qkv", "lora_A.weight", "lora_B.weight"),
        *("ComfyUI", "LoRA", {"4": 1}, {"diffusers": "in part", "ComfyUI": "yes"}),
    ),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_files_of_other_programs_are_recognised(case: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tensors, naming, method, ranks, answers = FOREIGN[case]
    fixed = {key.replace("._lora", "_lora"): tensor for key, tensor in tensors.items()}
    save_file(fixed, tmp_path / "file.safetensors", {"ss_network_dim": "4", "ss_sd_model_name": "sd.safetensors"})
    told = report(capsys, tmp_path / "file.safetensors")
    assert (told["naming"], told["method"], told["ranks"]) == (naming, method, ranks)
    assert told["base_model"] == "sd.safetensors"
    assert told["metadata"]["ss_network_dim"] == "4"
    assert told["fit"] is None
    for program, start in answers.items():
        assert told["readers"][program].startswith(start), told["readers"]


def test_alpha_of_a_kohya_file_scales_the_change(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_file(KOHYA, tmp_path / "file.safetensors")
    told = report(capsys, tmp_path)  # the only file of the folder
    assert told["alphas"] == [2.0]
    assert math.isclose(told["layers"][0]["change"], 2 / 4 * 4 * math.sqrt(6 * 8))


def test_layers_of_a_foreign_file_are_looked_up_by_name(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tensors = {
        **low_rank("lora_unet_blocks_0_attn_qkv", "lora_down.weight", "lora_up.weight"),
        **low_rank("lora_unet_blocks_0_attn_to_q", "lora_down.weight", "lora_up.weight"),
    }
    save_file(tensors, tmp_path / "file.safetensors")
    fit = report(capsys, tmp_path / "file.safetensors", "--model", MODEL)["fit"]
    assert (fit["matched"], fit["share"], fit["unexpected"]) == (1, 0.5, ["lora_unet_blocks_0_attn_to_q"])


def test_plain_weights_are_no_adapter() -> None:
    found = recognise(["blocks.0.attn.qkv.weight", "logit.alpha"])
    assert (found.naming, found.kinds, len(found.others)) == ("unknown", [], 2)


def test_problems_are_told_and_the_rest_is_still_read(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    saved(tmp_path, "lora", model=base())
    edit(tmp_path, lambda t: t["base_model.model.head.bias"].fill_(torch.nan))
    setting(tmp_path, lora_alfa=1)
    told = report(capsys, tmp_path)
    assert len(told["problems"]) == 2
    assert "'lora_alpha'" in told["problems"][0]
    assert "head holds NaN" in told["problems"][1]
    assert told["method"] == "LORA"
    assert told["ranks"] == {"8": 20}
    (tmp_path / "adapter_config.json").unlink()
    assert report(capsys, tmp_path / WEIGHTS)["readers"]["PEFT"].startswith("no: adapter_config.json is missing")


def test_tables_show_the_same(adapters: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, said, _ = here(capsys, "inspect", adapters / "snell")
    assert code == 0
    for part in ("snell", "72,970 parameters", "8 in 20 layers", "62 match, 100% of all", "blocks.4.mlp.fc2", "head"):
        assert part in said
    code, said, error = here(capsys, "inspect", adapters / "none")
    assert (code, "none" in error) == (2, True)
    code, said, error = here(capsys, "inspect", adapters / "base.safetensors")
    assert (code, "none that is known" in said) == (0, True)


def test_folder_of_a_run_means_the_adapter_in_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    saved(tmp_path / "adapter", "ssf", model=base())
    told = report(capsys, tmp_path)
    assert (told["method"], told["file"]) == ("ssf", str(tmp_path / "adapter" / WEIGHTS))


def test_long_settings_are_shown_by_their_first_entry(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "2000")
    saved(tmp_path, "sara", model=base(), density=0.05)
    plan = report(capsys, tmp_path)["settings"]["plan"]["entries"]
    first, count = next(iter(plan.items()))
    _, said, _ = here(capsys, "inspect", tmp_path)
    settings = next(line for line in said.splitlines() if line.startswith("settings"))
    assert f"plan={{'entries': {{'{first}': {count}, ... {len(plan)} in all}}}}" in settings
    assert settings.count("'dtype'") == 1
