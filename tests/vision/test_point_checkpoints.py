"""Public checkpoints of point transformers: their names, what may start anew, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from peft import get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

import vision_peft as vp
from peft_kernels.adapter_files import AdapterError
from peft_kernels.data_errors import DataError

from .tiny_clouds import clouds, tiny

State = dict[str, Tensor]
SIZE: dict[str, Any] = {"num_groups": 8, "group_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}


def other(name: str = "point_mae") -> Any:
    """A model of the same size with other weights."""
    model = tiny(name)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape, generator=torch.Generator().manual_seed(7)).to(tensor.dtype))
    return model


def pretrained(name: str, prefix: str) -> State:
    """The encoder under its prefix, with what else files of pretraining hold."""
    state = other(name).state_dict()
    fresh = ("cls_head_finetune", "blocks.cls_head_finetune", "cls_token", "cls_pos", "blocks.cls_norm")
    kept = {f"{prefix}{key}": tensor for key, tensor in state.items() if not key.startswith(fresh)}
    beside = {"mask_token": torch.ones(1, 1, 24), "MAE_decoder.blocks.0.norm1.weight": torch.ones(24)}
    return {**kept, **beside, "increase_dim.0.weight": torch.ones(12, 24, 1)}


FILES: dict[str, tuple[str, str]] = {
    "Point-MAE": ("point_mae", "MAE_encoder."),
    "ACT": ("point_act", "ACT_encoder."),
    "Point-BERT": ("point_bert", "transformer_q."),
    "PointGPT": ("point_gpt_s", "GPT_Transformer."),
    "parts from Point-MAE": ("point_mae", "MAE_encoder."),
}


@pytest.mark.parametrize("wrapper", ["", "module."])
@pytest.mark.parametrize("kind", FILES)
def test_pretraining(kind: str, wrapper: str) -> None:
    name, prefix = FILES[kind]
    state = pretrained(name, prefix)
    model = _parts() if "parts" in kind else tiny(name)
    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    report = vp.load_point_checkpoint(model, {wrapper + key: tensor for key, tensor in state.items()})
    after = model.state_dict()
    for key, tensor in after.items():
        expected = start[key] if key in report.fresh else state[prefix + key]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0)
    assert report.loaded == sum(key.startswith(prefix) for key in state) == len(after) - len(report.fresh)
    assert set(report.dropped) == {key for key in state if not key.startswith(prefix)}
    assert str(report).startswith(f"{report.loaded} tensors loaded; {len(report.fresh)} start anew (")


def _parts() -> Any:
    return timm.create_model("point_mae_parts", **SIZE, levels=(0,))


@pytest.mark.parametrize("wrapper", ["", "base_model.", "module."])
def test_fine_tuned(wrapper: str) -> None:
    state = {wrapper + key: tensor for key, tensor in other().state_dict().items()}
    report = vp.load_point_checkpoint(model := tiny(), state)
    assert (report.fresh, report.dropped) == ((), ())
    torch.testing.assert_close(model.eval()(clouds()), other()(clouds()), rtol=0, atol=0)


def test_a_head_of_other_classes_is_dropped_as_a_whole() -> None:
    model = tiny()
    model.reset_classifier(7)  # type: ignore[operator]
    report = vp.load_point_checkpoint(model, other().state_dict())
    assert report.fresh == report.dropped
    assert all(name.startswith("cls_head_finetune.") for name in report.fresh)


def test_timm_loads_a_file(tmp_path: Path) -> None:
    save_file(pretrained("point_mae", "MAE_encoder."), tmp_path / "pretrain.safetensors")
    overlay = {"file": str(tmp_path / "pretrain.safetensors")}
    model: Any = timm.create_model("point_mae", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3, **SIZE)
    torch.testing.assert_close(model.norm.weight, other().norm.weight, rtol=0, atol=0)


def without(count: int) -> Callable[[State], State]:
    return lambda state: dict(list(state.items())[count:])


DAMAGE: dict[str, tuple[Callable[[State], State], str]] = {
    "a tenth missing": (without(6), r"6 of its \d+ tensors are missing \(encoder\.first_conv\.0\.weight, "),
    "another model's": (lambda s: s | {"blocks.blocks.9.norm1.weight": torch.ones(24)}, "1 are not the model's"),
    "another width": (
        lambda s: s | {"norm.weight": torch.ones(9)},
        r"norm\.weight has the shape \[9\], expected \[24\]",
    ),
    "NaN": (lambda s: s | {"norm.weight": torch.full((24,), torch.nan)}, r"1 hold NaN or infinity \(norm\.weight\)"),
    "a prefix that nobody knows": (lambda s: {f"net.{k}": t for k, t in s.items()}, "are missing .* not the model's"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_refused_with_the_model_as_it_was(damage: str) -> None:
    change, message = DAMAGE[damage]
    state = {key: tensor for key, tensor in other().state_dict().items() if not key.startswith("cls_")}
    model = tiny()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(DataError, match=message):
        vp.load_point_checkpoint(model, change(state))
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[key], rtol=0, atol=0)


def test_pickles_are_refused(tmp_path: Path) -> None:
    torch.save({"base_model": {}}, tmp_path / "pretrain.pth")
    with pytest.raises(AdapterError, match=r"is a pickle.*convert"):
        vp.load_point_checkpoint(tiny(), tmp_path / "pretrain.pth")


# --- the authors' PointGST ------------------------------------------------------------------------------------------
def released(name: str = "point_mae") -> tuple[nn.Module, State]:
    """An adapted model as the authors compute it, and its tensors under their names."""
    fields: dict[str, Any] = {
        "basis_orientation": "vertex",
        "scale_scope": "batch",
        "eigenvector_sign": "raw",
        "distance": "gemm",
    }
    torch.manual_seed(3)
    with pytest.warns(UserWarning, match="rounding errors"):
        config = vp.PointGstConfig(r=4, local_size=4, init_weights=False, **fields)
    model = get_peft_model(other(name), config).eval()
    base: Any = model.get_base_model()
    state = {**other(name).state_dict(), "cls_token": base.cls_token.detach(), "cls_pos": base.cls_pos.detach()}
    for key, tensor in model.named_parameters():
        path, found, leaf = key.removeprefix("base_model.model.").partition(".pcsa_adapter.default.")
        if found and path.endswith(("norm2", "ln_2")):
            state[f"{path.rpartition('.')[0]}.gft_adapter.{leaf}"] = tensor.detach()
    return model, state


@pytest.mark.filterwarnings("ignore:distance='gemm'")
@pytest.mark.parametrize("name", ["point_mae", "point_gpt_s"])
def test_released_adapters(name: str, tmp_path: Path) -> None:
    model, state = released(name)
    file = tmp_path / "released.safetensors"
    save_file({f"module.{key}": tensor.contiguous() for key, tensor in state.items()}, file)
    loaded = vp.load_pointgst(tiny(name), file, local_size=4).eval()
    torch.testing.assert_close(loaded(clouds()), model(clouds()), rtol=0, atol=0)


def one_less(state: State) -> State:
    return {key: tensor for key, tensor in state.items() if key != "blocks.blocks.1.gft_adapter.adapt1.bias"}


def one_block(state: State) -> State:
    return {key: tensor for key, tensor in state.items() if not key.startswith("blocks.blocks.1.gft")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {k: t for k, t in state.items() if "gft" not in k}, "no PointGST adapters of one rank"),
        (one_less, r"blocks\.blocks\.1\.gft_adapter\.adapt1\.bias has the shape missing, expected \[4\]"),
        (one_block, r"adapters in 1 blocks, PointTransformer has 2 blocks; not in both: blocks\.blocks\.1"),
    ],
    ids=["none", "a tensor less", "a block less"],
)
@pytest.mark.filterwarnings("ignore:distance='gemm'")
def test_damaged_releases_are_refused(change: Callable[[State], State], message: str, tmp_path: Path) -> None:
    save_file(change(released()[1]), tmp_path / "released.safetensors")
    model = tiny()
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(DataError, match=message):
        vp.load_pointgst(model, tmp_path / "released.safetensors", local_size=4)
    assert [name for name, _ in model.named_modules()] == before
