"""DiffFit's class tables, shared copies and position tables in diffusers' DiT and PixArt."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor

import diffusion_peft as dp
from peft_kernels.adapter_files import AdapterError
from peft_kernels.loading import load_adapter

from .difffit_models import attach, base, gradients, move, run
from .true_configs import ARCHITECTURES, small

EMBEDDER = "transformer_blocks.{}.norm1.emb.class_embedder"


def labels(model: Any, *classes: int) -> Tensor:
    """The output for one picture under each label."""
    inputs = ARCHITECTURES["dit"].inputs()
    latents = inputs["hidden_states"][:1].expand(len(classes), -1, -1, -1)
    return model(latents, torch.full((len(classes),), 3), torch.tensor(classes)).sample


def test_rows_of_labels_that_do_not_occur_get_exactly_0() -> None:
    model = attach(base("dit"), dp.DiffFitConfig())
    (key,) = [
        key
        for key, _ in model.named_parameters()
        if key.endswith("embedding_table.difffit_adapter.default.delta_weight")
    ]
    found = gradients(model.eval(), lambda: run("dit", model))[key]  # of the labels 1 and 2
    assert found[1:3].abs().sum(1).min() > 0
    assert not found[0].any()
    assert not found[3:].any()


def copies_made_equal(blocks: int = 4) -> Any:
    """A DiT whose blocks have equal copies of timestep MLP and class table, as a converted one has."""
    model = small("dit", num_layers=blocks)
    for block in model.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    return model


def test_gradients_of_the_shared_copy_are_the_sums_over_copies() -> None:
    untied = attach(copies_made_equal(), dp.DiffFitConfig(tie_replicated=False)).eval()
    tied = attach(copies_made_equal(), dp.DiffFitConfig()).eval()
    apart, shared = (gradients(model, lambda model=model: run("dit", model)) for model in (untied, tied))
    inside = [key for key in shared if ".norm1.emb." in key]
    assert len(inside) == 3  # table, and two biases of the timestep MLP
    for key in inside:
        each = [apart[key.replace("transformer_blocks.0.", f"transformer_blocks.{i}.")] for i in range(4)]
        torch.testing.assert_close(shared[key], torch.stack(each).sum(0), rtol=1e-4, atol=1e-6)
    assert set(shared) < set(apart)


def test_new_classes_keep_the_null_row_last_and_leave_with_the_adapter() -> None:
    plain, model = base("dit"), base("dit")
    old = plain.get_submodule(EMBEDDER.format(0)).embedding_table.weight
    expected = labels(plain, 0, 10)
    adapted = attach(model, dp.DiffFitConfig(num_classes=3)).eval()
    embedder = model.get_submodule(EMBEDDER.format(1))
    assert embedder.num_classes == 3
    (table,) = [p for key, p in adapted.named_parameters() if key.endswith(".table")]
    assert table.shape == (4, old.shape[1])
    assert torch.equal(table[3], old[10])
    assert 0.01 < table[:3].std() < 0.03
    new = labels(adapted, 2, 3)
    with adapted.disable_adapter():
        assert torch.equal(labels(adapted, 0, 10), expected)
        assert embedder.num_classes == 10
    assert torch.equal(labels(adapted, 2, 3), new)
    with pytest.raises(IndexError):
        labels(adapted, 4)
    adapted.train()
    torch.manual_seed(0)
    dropped = [embedder.token_drop(torch.zeros(200, dtype=torch.long)).max().item() for _ in range(3)]
    assert dropped == [3, 3, 3]
    for layer in adapted.modules():
        if hasattr(layer, "set_scale"):
            layer.set_scale("default", 0.0)  # type: ignore[operator]
    assert torch.equal(labels(adapted.eval(), 0, 10), expected)
    adapted.delete_adapter("default")
    assert torch.equal(labels(model, 0, 10), expected)


def test_new_classes_merge_into_a_model_that_saves_and_loads(tmp_path: Path) -> None:
    model = base("dit")
    adapted = attach(model, dp.DiffFitConfig(num_classes=14)).eval()
    move(adapted)
    expected = labels(adapted, 13, 14)
    plain = adapted.merge_and_unload()  # type: ignore[operator]
    torch.testing.assert_close(labels(plain, 13, 14), expected, rtol=1e-5, atol=1e-5)
    plain.save_pretrained(tmp_path)
    again = DiTTransformer2DModel.from_pretrained(tmp_path).eval()
    assert torch.equal(labels(again, 13, 14), labels(plain, 13, 14))
    assert again.get_submodule(EMBEDDER.format(0)).num_classes == 14


def test_saved_classes_load_with_their_number(tmp_path: Path) -> None:
    adapted = attach(base("dit"), dp.DiffFitConfig(num_classes=3)).eval()
    move(adapted)
    adapted.save_pretrained(str(tmp_path))
    assert torch.equal(labels(load_adapter(base("dit"), tmp_path).eval(), 0, 3), labels(adapted, 0, 3))


@pytest.mark.parametrize(
    ("settings", "found", "expected"),
    [({"num_embeds_ada_norm": 7}, "11", "8"), ({"attention_head_dim": 12}, "16", "24")],
    ids=["classes", "width"],
)
def test_another_class_count_or_width_is_refused_with_both_numbers(
    settings: dict[str, int], found: str, expected: str, tmp_path: Path
) -> None:
    attach(base("dit"), dp.DiffFitConfig(train_bias="num_embeds_ada_norm" not in settings)).save_pretrained(
        str(tmp_path)
    )
    other = small("dit", **settings)
    before = {name: id(module) for name, module in other.named_modules()}
    with pytest.raises(AdapterError, match=rf"shape \(.*{found}.*\), expected \(.*{expected}.*\)"):
        load_adapter(other, tmp_path)
    assert {name: id(module) for name, module in other.named_modules()} == before


def test_two_class_tables_are_not_in_force_at_once() -> None:
    adapted = attach(base("dit"), dp.DiffFitConfig(num_classes=3)).eval()
    adapted.add_adapter("second", dp.DiffFitConfig(num_classes=5))
    adapted.set_adapter("second")
    assert labels(adapted, 5).isfinite().all()
    adapted.base_model.set_adapter(["default", "second"])  # type: ignore[operator]
    with pytest.raises(ValueError, match="3 classes and 5 classes cannot be in force at once"):
        labels(adapted, 1)


def test_an_adapter_of_the_old_table_and_one_with_its_own_do_not_share_a_model() -> None:
    adapted = attach(base("dit"), dp.DiffFitConfig())
    with pytest.raises(ValueError, match=r"class_embedder.*delete that adapter first"):
        adapted.add_adapter("second", dp.DiffFitConfig(num_classes=5))
    assert list(adapted.peft_config) == ["default"]


def grid(table: Tensor) -> Tensor:
    """A position table `[1, N, D]` as `[side, side, D]`."""
    side = round(table.shape[1] ** 0.5)
    return table[0].unflatten(0, (side, side))


def test_positions_of_a_model_for_64_are_those_of_32_in_even_places() -> None:
    large, expected = small("dit", sample_size=64), small("dit", sample_size=32).pos_embed.pos_embed
    before = large.pos_embed.pos_embed.clone()
    adapted = attach(large, dp.DiffFitConfig(pos_scale=0.5))
    assert torch.equal(grid(large.pos_embed.pos_embed)[::2, ::2], grid(expected))
    # what a model for 32 computes for latents of 64 by itself
    latents, t, y = torch.randn(1, 4, 64, 64), torch.tensor([3]), torch.tensor([1])
    found = adapted(latents, t, y).sample
    torch.testing.assert_close(found, small("dit", sample_size=32)(latents, t, y).sample)
    with adapted.disable_adapter():
        assert torch.equal(large.pos_embed.pos_embed, before)
    adapted.delete_adapter("default")
    assert torch.equal(large.pos_embed.pos_embed, before)


@pytest.mark.parametrize("name", ["dit", "pixart"])
def test_merged_positions_save_and_load(name: str, tmp_path: Path) -> None:
    model = small(name, sample_size=16)
    adapted = attach(model, dp.DiffFitConfig(pos_scale=0.5)).eval()
    move(adapted)
    inputs = {**ARCHITECTURES[name].inputs(), "hidden_states": torch.randn(2, 4, 16, 16)}
    expected = adapted(**inputs).sample
    assert (expected - attach(small(name, sample_size=16), dp.DiffFitConfig())(**inputs).sample).abs().max() > 1e-3
    says = pytest.warns(UserWarning, match="configured for latents of 8, .* takes those of 16")
    with says if name == "dit" else nullcontext():
        plain = adapted.merge_and_unload()  # type: ignore[operator]
    plain.save_pretrained(tmp_path)
    again = type(plain).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(**inputs).sample, expected, rtol=1e-4, atol=1e-5)


def test_positions_that_a_configuration_cannot_say_are_not_merged() -> None:
    adapted: Any = attach(small("dit", sample_size=16), dp.DiffFitConfig(pos_scale=0.7))
    with pytest.raises(ValueError, match=r"are whole at 11\.2, which is no multiple of its patches of 2"):
        adapted.merge_and_unload()


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("sd3", {"pos_scale": 0.5}, "asks for a computed sin-cos position table"),
        ("sd15", {"num_classes": 3}, "asks for a class table, which UNet2DConditionModel does not have"),
    ],
)
def test_what_a_model_does_not_have_is_refused(name: str, fields: dict[str, Any], message: str) -> None:
    model = base(name)
    with pytest.raises(ValueError, match=message):
        attach(model, dp.DiffFitConfig(**fields))
    assert not any(hasattr(module, "adapter_layer_names") for module in model.modules())
