"""What an adapter does to the weights of its model, and everything that it can be written as."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import timm
import torch
from peft import PeftConfig
from safetensors.torch import save_file

from peft_kernels.adapter_files import AdapterError, read_config
from peft_kernels.adapter_formats import recognise
from peft_kernels.adapter_tensors import read_header
from peft_runs.adapter_changes import WeightChange, changes_in_file, changes_of_weights
from peft_runs.adapter_exports import changes_by_merging, export_all
from peft_runs.adapter_layers import read_layers
from peft_runs.adapter_readers import TIMM
from tests.kernels.saved_adapters import CONFIG, WEIGHTS, saved
from tests.runs.saved import MODEL


def in_file(weights: Path, config: PeftConfig | None = None) -> dict[str, WeightChange]:
    found = recognise(read_header(weights)[0])
    return {change.name: change for change in changes_in_file(weights, found, config)}


def pretrained() -> torch.nn.Module:
    return timm.create_model(MODEL, pretrained=True)


def test_singular_values_of_a_file_are_those_of_the_product(tmp_path: Path) -> None:
    A, B = torch.randn(3, 8, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    name = "lora_unet_mid_block_attentions_0_proj_in"
    alpha = {f"{name}.alpha": torch.tensor(1.5)}
    save_file({f"{name}.lora_down.weight": A, f"{name}.lora_up.weight": B, **alpha}, tmp_path / "file.safetensors")
    change = in_file(tmp_path / "file.safetensors")[name]
    whole = 1.5 / 3 * B @ A
    assert change.singular == pytest.approx(torch.linalg.svdvals(whole)[:3].tolist())
    assert (change.shape, change.norm, change.relative) == ((6, 8), pytest.approx(whole.norm().item()), None)


def test_effective_rank_counts_equal_values_and_passes_over_small_ones() -> None:
    def of(*values: float) -> float | None:
        return WeightChange("w", (9, 9), 1.0, None, list(values)).effective_rank

    assert of(2.0, 2.0, 2.0, 2.0) == pytest.approx(4)
    assert of(5.0) == pytest.approx(1)
    assert of() is None
    assert 1 < (of(1.0, 0.01) or 0) < 1.1


def test_file_and_merging_tell_the_same_of_lora(tmp_path: Path) -> None:
    saved(tmp_path / "lora", "lora", model=pretrained(), r=4, lora_alpha=16)
    (tmp_path / "out").mkdir()
    exports = {export.format: export for export in export_all(tmp_path / "lora", tmp_path / "out", TIMM, MODEL)}
    written = {name for name, export in exports.items() if export.path is not None and export.path.exists()}
    assert written == {"peft", "merged"}
    assert all(exports[name].reason for name in exports.keys() - written)
    merged = exports["merged"].merged
    assert merged is not None
    assert merged.difference < 1e-4 * merged.largest
    weights = tmp_path / "lora" / WEIGHTS
    by_merging = {change.name: change for change in changes_by_merging(weights, exports["merged"])}
    by_file = in_file(weights, read_config(tmp_path / "lora" / CONFIG))
    assert by_merging.keys() == {f"{name}.weight" for name in by_file}
    base = pretrained().state_dict()
    for name, told in by_file.items():
        found = by_merging[f"{name}.weight"]
        assert len(told.singular) == 4
        assert found.shape == told.shape == tuple(base[found.name].shape)
        assert found.singular[:4] == pytest.approx(told.singular, rel=1e-3)
        assert found.relative == pytest.approx(told.norm / base[found.name].norm().item(), rel=1e-3)


def test_vectors_have_a_norm_and_no_spectrum() -> None:
    before = {"w": torch.zeros(2, 2), "b": torch.ones(2), "same": torch.ones(3), "head.b": torch.ones(1)}
    after = {"w": torch.eye(2), "b": torch.ones(2) * 2, "same": torch.ones(3), "head.b": torch.zeros(1)}
    w, b = changes_of_weights(before, after, ["head"])
    assert (w.name, w.singular, w.relative) == ("w", [1.0, 1.0], None)
    assert (b.name, b.singular, b.effective_rank, b.relative) == ("b", [], None, 1.0)


def test_what_does_not_merge_says_why(tmp_path: Path) -> None:
    saved(tmp_path / "vpt", "vpt", model=pretrained())
    (tmp_path / "out").mkdir()
    exports = list(export_all(tmp_path / "vpt", tmp_path / "out", TIMM, MODEL))
    assert all(export.path is None and export.reason for export in exports)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("shape", [(), (0, 8), (8,)])
def test_factors_of_strange_shapes_are_no_change(shape: tuple[int, ...], tmp_path: Path) -> None:
    tensors = {"lora_unet_x.lora_down.weight": torch.ones(shape), "lora_unet_x.lora_up.weight": torch.ones(6, 0)}
    save_file(tensors, tmp_path / "file.safetensors")
    weights = tmp_path / "file.safetensors"
    layers, _ = read_layers(weights, recognise(tensors), None)
    assert layers[0].change in (None, 0.0)
    assert all(math.isfinite(change.norm) for change in in_file(weights).values())


def test_an_alpha_must_be_one_number(tmp_path: Path) -> None:
    tensors = {"lora_unet_x.lora_down.weight": torch.ones(2, 8), "lora_unet_x.alpha": torch.ones(2)}
    save_file(tensors, tmp_path / "file.safetensors")
    with pytest.raises(AdapterError, match=r"'lora_unet_x.alpha' must hold one number, found shape \(2,\)"):
        read_layers(tmp_path / "file.safetensors", recognise(tensors), None)
