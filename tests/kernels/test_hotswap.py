"""A hot swap writes a saved adapter over an attached one in place, or changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch._dynamo.testing import CompileCounter

from peft_kernels.adapter_files import AdapterError
from peft_kernels.hotswap import hotswap_adapter
from peft_kernels.loading import load_adapter
from vision_peft import SnellConfig

from .saved_adapters import GENERAL, pictures, saved, small_model, structure


@pytest.mark.parametrize("name", GENERAL)
def test_swapped_adapter_has_the_outputs_of_the_new_one_in_the_same_parameters(name: str, tmp_path: Path) -> None:
    saved(tmp_path / "old", name, seed=3)
    expected = saved(tmp_path / "new", name, seed=4)
    adapted = load_adapter(small_model(), tmp_path / "old", "mine", is_trainable=True).eval()
    parameters = {key: (id(p), p.data_ptr(), p.requires_grad) for key, p in adapted.named_parameters()}
    assert not torch.allclose(adapted(pictures()), expected)
    hotswap_adapter(adapted, tmp_path / "new", "mine")
    torch.testing.assert_close(adapted(pictures()), expected, rtol=0, atol=2e-6)
    assert parameters == {key: (id(p), p.data_ptr(), p.requires_grad) for key, p in adapted.named_parameters()}


def test_compiled_model_is_not_compiled_again(tmp_path: Path) -> None:
    def base() -> Any:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 3))

    x, config = torch.randn(4, 8), {"target_modules": ["0"], "modules_to_save": ["2"], "init_weights": False}
    for name in ("old", "new"):
        model = base()
        torch.manual_seed(3 if name == "old" else 4)
        adapted = get_peft_model(model, SnellConfig(r=2, dropout=0, drop_path=0, **config)).eval()
        adapted.save_pretrained(str(tmp_path / name), save_embedding_layers=False)
    expected = adapted(x)
    counter = CompileCounter()
    compiled: Any = torch.compile(load_adapter(base(), tmp_path / "old"), backend=counter)
    with torch.no_grad():
        assert not torch.allclose(compiled(x), expected)
        frames = counter.frame_count
        hotswap_adapter(compiled, tmp_path / "new")
        torch.testing.assert_close(compiled(x), expected)
    assert counter.frame_count == frames > 0


def test_swap_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    saved(tmp_path / "old", "snell")
    saved(tmp_path / "rank", "snell", r=4)
    saved(tmp_path / "gate", "snell", sparsity=0.5)
    saved(tmp_path / "other", "ssf")
    saved(tmp_path / "fewer", "snell", target_modules=["mlp.fc1"])
    adapted = load_adapter(small_model(), tmp_path / "old")
    before = structure(adapted)
    for path, reason in {
        "rank": r"r is 4, expected 8",
        "gate": r"sparsity is 0.5, expected 0.0",
        "other": r"peft_type is 'SSF', expected 'SNELL'",
        "fewer": r"expected tensors are missing",
        "none": r"there is no adapter",
    }.items():
        with pytest.raises(AdapterError, match=reason):
            hotswap_adapter(adapted, tmp_path / path)
    with pytest.raises(AdapterError, match=r"no adapter called 'defualt' \(did you mean 'default'"):
        hotswap_adapter(adapted, tmp_path / "old", "defualt")
    assert structure(adapted) == before


def test_merged_adapter_and_plain_model_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, "snell")
    with pytest.raises(AdapterError, match="use `load_adapter`"):
        hotswap_adapter(small_model(), tmp_path)
    adapted = load_adapter(small_model(), tmp_path)
    adapted.merge_adapter()  # type: ignore[operator]
    with pytest.raises(AdapterError, match="is merged"):
        hotswap_adapter(adapted, tmp_path)
