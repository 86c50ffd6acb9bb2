"""PointGST trained, saved, loaded, switched off, taken off; whose statistics move meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from vision_peft import PointGstConfig, load_adapter

from .tiny_clouds import adapted, after_a_step, clouds, tiny


def encoder_statistics(model: Any) -> dict[str, Tensor]:
    state = model.get_base_model().encoder.state_dict()
    return {name: tensor.clone() for name, tensor in state.items() if "running_" in name}


def test_the_patch_encoders_statistics_move_with_the_adapter_alone(tmp_path: Path) -> None:
    model, x = adapted(frozen_norm="train", modules_to_save=[]), clouds()
    before, plain = encoder_statistics(model), tiny()(x)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(
        p.numel() for p in adapted(modules_to_save=[]).parameters() if p.requires_grad
    )
    started = model(x)
    torch.testing.assert_close(started, adapted(modules_to_save=[])(x))
    model.train()(x)
    moved = {name for name, tensor in encoder_statistics(model).items() if not torch.equal(tensor, before[name])}
    assert len(moved) == 4
    assert all("pcsa_adapter" in name for name in moved)
    expected = model.eval()(x)
    assert not torch.allclose(expected, started, rtol=1e-3)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), plain)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(tiny(), tmp_path).eval()
    torch.testing.assert_close(loaded(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(load_adapter(tiny(), tmp_path).eval()(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(loaded.unload()(x), plain)  # type: ignore[operator]


def test_statistics_move_in_float32_beside_a_base_in_half_precision() -> None:
    config = PointGstConfig(r=4, local_size=4, frozen_norm="train")
    model: Any = get_peft_model(tiny().bfloat16(), config).train()  # type: ignore[arg-type]
    before = encoder_statistics(model)
    assert model(clouds().bfloat16()).dtype == torch.bfloat16
    own = {name: tensor for name, tensor in encoder_statistics(model).items() if "pcsa_adapter" in name}
    assert {tensor.dtype for tensor in own.values()} == {torch.float32}
    assert all((tensor != before[name]).all() for name, tensor in own.items())


def test_frozen_statistics_stay_by_default() -> None:
    model = adapted()
    before = encoder_statistics(model)
    model.train()(clouds())
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder_statistics(model).items())


def test_several_sizes_are_saved_and_loaded(tmp_path: Path) -> None:
    model, x = adapted(local_sizes=(4, 2), branches="local"), clouds()
    assert not torch.allclose(model(x), adapted(branches="local")(x), rtol=1e-3)
    model.save_pretrained(str(tmp_path))
    torch.testing.assert_close(PeftModel.from_pretrained(tiny(), tmp_path).eval()(x), model(x), rtol=0, atol=0)


def test_saved_and_loaded_bit_for_bit_after_training(tmp_path: Path) -> None:
    model, x = after_a_step(adapted()), clouds()
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(tiny(), tmp_path).eval()
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)


def test_unload_leaves_no_hook() -> None:
    model = adapted().unload()  # type: ignore[operator]
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert "forward_features" not in model.__dict__
    torch.testing.assert_close(model(clouds()), tiny()(clouds()), rtol=0, atol=0)


def test_merging_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="cannot be merged"):
        adapted().merge_and_unload()  # type: ignore[operator]
