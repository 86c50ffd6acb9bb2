"""An export is read by the other program with the same outputs, or refused with the reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.kernels.saved_adapters import CONFIG, WEIGHTS, saved
from tests.runs.command import here, one_thread
from tests.runs.export_table import PAGE, table
from tests.runs.saved import base, outputs, save_all
from vision_peft import load_adapter

# A model that timm has without this project, for processes that do not import it.
PLAIN = "test_vit.r160_in1k"
# Saved adapter -> method and settings that have an exact form in PEFT.
EXACT = {
    "lora": ("lora", {}),
    "dora": ("dora", {}),
    "ln_tuning": ("ln_tuning", {}),
    "linear_probe": ("linear_probe", {}),
    "q and v": ("sliced_lora", {}),
    "only k, scaled": ("sliced_lora", {"slices": ["k"], "r": 3, "lora_alpha": 7.5}),
    "blocks by name": ("sliced_lora", {"target_modules": ["attn.qkv[q,k]"]}),
    "ranks that differ": ("sliced_lora", {"target_modules": ["attn.qkv", "mlp.fc1"], "lora_alpha": 4}),
}
# PEFT and timm alone: every adapter on the same plain model.
READ = """
import sys
from pathlib import Path
import timm, torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
root = Path(sys.argv[1])
found, x = {}, load_file(root / "x")["x"]
for folder in sorted(root.glob("*-peft")):
    model = timm.create_model(sys.argv[2], num_classes=10, checkpoint_path=str(root / "base.safetensors"))
    with torch.no_grad():
        found[folder.name.removesuffix("-peft")] = PeftModel.from_pretrained(model, folder).eval()(x)
assert not [name for name in sys.modules if name.startswith(("peft_kernels", "vision_peft", "peft_runs"))]
save_file(found, root / "found")
"""


def plain(root: Path) -> torch.nn.Module:
    return timm.create_model(PLAIN, num_classes=10, checkpoint_path=str(root / "base.safetensors")).eval()


def test_peft_alone_reads_exports_with_the_same_outputs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_file(timm.create_model(PLAIN, num_classes=10).state_dict(), tmp_path / "base.safetensors")
    x = torch.randn(2, 3, 160, 160)
    save_file({"x": x}, tmp_path / "x")
    expected: dict[str, Tensor] = {}
    for name, (method, fields) in EXACT.items():
        saved(tmp_path / name, method, model=plain(tmp_path), x=x, **fields)
        with torch.no_grad():
            expected[name] = load_adapter(plain(tmp_path), tmp_path / name)(x)
        code, said, error = here(capsys, "export", tmp_path / name, "--to", "peft", "--out", tmp_path / f"{name}-peft")
        assert (code, error) == (0, "")
        assert "PEFT alone" in said
        torch.testing.assert_close(load_adapter(plain(tmp_path), tmp_path / f"{name}-peft")(x), expected[name])
    environment = {**one_thread(), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path), PLAIN], capture_output=True, text=True, env=environment, cwd=os.sep
    )
    assert run.returncode == 0, run.stderr
    found = load_file(tmp_path / "found")
    assert found.keys() == expected.keys()
    for name, logits in found.items():
        assert not torch.allclose(logits, plain(tmp_path)(x)), name
        torch.testing.assert_close(logits, expected[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter of each method and the base model."""
    root = tmp_path_factory.mktemp("adapters")
    save_all(root)
    return root


def test_block_structure_keeps_rank_and_zeros(adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    code, _, _ = here(capsys, "export", adapters / "sliced_lora", "--to", "peft", "--out", tmp_path / "out")
    assert code == 0
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 16, 16)
    up = load_file(tmp_path / "out" / WEIGHTS)["base_model.model.blocks.0.attn.qkv.lora_B.weight"]
    assert up.shape == (384, 16)
    for rows, columns in (
        (slice(0, 128), slice(8, 16)),
        (slice(128, 256), slice(0, 16)),
        (slice(256, 384), slice(0, 8)),
    ):
        assert not up[rows, columns].any()


def test_merged_export_is_a_merge(adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "merged.safetensors"
    words = ("export", adapters / "ssf", "--to", "merged", "--out", out, "--checkpoint", adapters / "base.safetensors")
    code, said, _ = here(capsys, *words)
    assert code == 0
    assert "largest difference" in said
    merged = base()
    merged.load_state_dict(load_file(out))
    torch.testing.assert_close(outputs(merged), outputs(load_adapter(base(), adapters / "ssf")), rtol=0, atol=1e-4)


def test_what_has_no_exact_form_says_why_and_writes_nothing(
    adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    saved(
        tmp_path / "eva",
        "sliced_lora",
        model=timm.create_model("eva02_tiny_patch14_224", num_classes=10),
        x=torch.randn(1, 3, 224, 224),
    )
    saved(tmp_path / "token", "sliced_lora", model=base(), modules_to_save=["head", "pos_embed"])
    (tmp_path / "full").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for adapter, to, expected, parts in (
        (adapters / "snell", "peft", 1, ("kernel", "--to merged")),
        (adapters / "bitfit", "peft", 1, ("overwriting the base model", "--to merged")),
        (adapters / "lora", "kohya", 1, ("kohya", "diffusion models")),
        (adapters / "lora", "diffusers", 1, ("diffusers", "diffusion models")),
        (adapters / "lora", "comfy", 1, ("comfy", "diffusion models")),
        (adapters / "lora", "pefd", 2, ("'pefd'", "'peft'")),
        (adapters / "none", "peft", 1, ("no adapter",)),
        (tmp_path / "eva", "peft", 1, ("reads its weight",)),
        (tmp_path / "token", "peft", 1, ("pos_embed", "whole modules")),
    ):
        code, said, error = here(capsys, "export", adapter, "--to", to, "--out", tmp_path / "out")
        assert (code, said, error.count("\n")) == (expected, "", 0), error
        for part in parts:
            assert part in error
        assert sorted(tmp_path.rglob("*")) == before
    code, _, error = here(capsys, "export", adapters / "lora", "--to", "peft", "--out", tmp_path / "full")
    assert (code, "exists already" in error) == (2, True)


def test_adapter_of_a_nameless_model_needs_its_name(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = base()
    del model.pretrained_cfg
    saved(tmp_path / "adapter", "sliced_lora", model=model, modules_to_save=[])
    words = ("export", tmp_path / "adapter", "--to", "peft", "--out", tmp_path / "out")
    code, _, error = here(capsys, *words)
    assert (code, "--model NAME" in error) == (2, True)
    assert here(capsys, *words, "--model", "vit_mini")[0] == 0


def test_the_tables_in_the_documentation_are_what_happens(adapters: Path, tmp_path: Path) -> None:
    assert PAGE.read_text(encoding="utf-8") == table(adapters, tmp_path), "run `python -m tests.runs.export_table`"
