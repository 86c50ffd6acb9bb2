"""A saved adapter loads with its head and the same outputs; whatever fails on the way leaves no trace."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from peft_kernels import adapter_state
from peft_kernels.adapter_files import AdapterError
from peft_kernels.loading import load_adapter

from .saved_adapters import GENERAL, WEIGHTS, edit, pictures, saved, small_model, structure

A = "base_model.model.blocks.0.attn.qkv.lora_A.weight"  # [8, 128]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved adapter of each method, by name."""
    root = tmp_path_factory.mktemp("adapters")
    for name in GENERAL:
        save_file({"logits": saved(root / name, name)}, root / f"{name}.logits")
    return root


@pytest.mark.parametrize("name", GENERAL)
def test_loaded_adapter_reproduces_the_outputs_without_a_warning(name: str, folder: Path) -> None:
    model = small_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapted = load_adapter(model, folder / name)
    expected = load_file(folder / f"{name}.logits")["logits"]
    torch.testing.assert_close(adapted(pictures()), expected, rtol=0, atol=2e-6)
    assert not adapted.training
    assert not any(parameter.requires_grad for parameter in adapted.parameters())


FRESH = """
import sys
from pathlib import Path
from safetensors.torch import load_file, save_file
from peft_kernels.loading import load_adapter
from tests.kernels.saved_adapters import pictures, small_model
root = Path(sys.argv[1])
names = sys.argv[2:]
save_file({name: load_adapter(small_model(), root / name)(pictures()).detach() for name in names}, root / "fresh")
"""


def test_head_and_adapter_have_the_same_outputs_in_a_fresh_process(folder: Path) -> None:
    run = subprocess.run([sys.executable, "-c", FRESH, str(folder), *GENERAL], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for name, logits in load_file(folder / "fresh").items():
        torch.testing.assert_close(logits, load_file(folder / f"{name}.logits")["logits"], rtol=0, atol=2e-6)


def test_trainable_adapter_is_trained_further(folder: Path) -> None:
    adapted = load_adapter(small_model().train(), folder / "snell", is_trainable=True)
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("default" in name for name in trained)
    assert adapted.training


def test_second_adapter_joins_the_first(folder: Path) -> None:
    adapted = load_adapter(small_model(), folder / "ssf")
    first = adapted(pictures())
    assert load_adapter(adapted, folder / "ssf", "second") is adapted
    torch.testing.assert_close(adapted(pictures()), first)
    adapted.set_adapter("second")
    torch.testing.assert_close(adapted(pictures()), load_file(folder / "ssf.logits")["logits"], rtol=0, atol=2e-6)


def test_raw_parameters_come_back(tmp_path: Path) -> None:
    with_token = {"class_token": True, "global_pool": "token"}
    expected = saved(tmp_path, "snell", model=small_model(**with_token))
    assert any("cls_token" in key for key in load_file(tmp_path / WEIGHTS))
    adapted = load_adapter(small_model(**with_token), tmp_path)
    torch.testing.assert_close(adapted(pictures()), expected, rtol=0, atol=2e-6)


def test_failure_after_the_checks_leaves_the_model_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(adapter_state, "set_peft_model_state_dict", fail)
    for name in GENERAL:
        model = small_model().train()
        before = structure(model)
        with pytest.raises(MemoryError):
            load_adapter(model, folder / name)
        assert structure(model) == before, name


def test_second_adapter_that_fails_leaves_the_first(folder: Path, tmp_path: Path) -> None:
    adapted = load_adapter(small_model(), folder / "ssf")
    before, settings = structure(adapted), dict(adapted.peft_config)
    for path in (folder / "lora", folder / "none"):
        with pytest.raises(AdapterError):
            load_adapter(adapted, path, "second")
    with pytest.raises(AdapterError, match="'default' already"):
        load_adapter(adapted, folder / "ssf")
    assert structure(adapted) == before
    assert adapted.peft_config == settings


def test_not_strict_loads_what_matches_with_one_warning(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "lora", tmp_path / "part")
    edit(tmp_path / "part", lambda t: (t.pop(A), t.pop("base_model.model.head.bias"), t.update(x=torch.zeros(1))))
    model = small_model()
    bias = model.get_parameter("head.bias").clone()
    with pytest.warns(UserWarning, match="2 expected tensors are missing") as told:
        adapted = load_adapter(model, tmp_path / "part", strict=False)
    assert len(told) == 1
    written = load_file(folder / "lora" / WEIGHTS)
    parameter = adapted.get_parameter(f"{A.removesuffix('.weight')}.default.weight")
    assert not torch.equal(parameter, written[A])
    assert torch.equal(adapted.get_parameter("base_model.model.head.modules_to_save.default.bias"), bias)
    save_file({"a": torch.zeros(1)}, tmp_path / "part" / WEIGHTS)
    with pytest.raises(AdapterError, match="0 of 1"):
        load_adapter(small_model(), tmp_path / "part", strict=False)
