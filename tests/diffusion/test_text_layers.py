"""Numbers, names and sizes of the layers that read text."""

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

import diffusion_peft as dp
from diffusion_peft.localization import published_layers
from tests.diffusion.true_configs import published, small

SHAPES = {  # number of layers, some of them by number
    "sd15": (16, {0: "down_blocks.0.attentions.0", 6: "mid_block.attentions.0", 7: "up_blocks.1.attentions.0"}),
    "sdxl": (
        70,
        {
            3: "down_blocks.1.attentions.1.transformer_blocks.1.attn2",
            4: "down_blocks.2.attentions.0.transformer_blocks.0.attn2",
            24: "mid_block.attentions.0.transformer_blocks.0.attn2",
            34: "up_blocks.0.attentions.0.transformer_blocks.0.attn2",
            55: "up_blocks.0.attentions.2.transformer_blocks.1.attn2",
            57: "up_blocks.0.attentions.2.transformer_blocks.3.attn2",
            69: "up_blocks.1.attentions.2.transformer_blocks.1.attn2",
        },
    ),
    "sd3": (24, {10: "transformer_blocks.10.attn", 23: "transformer_blocks.23.attn"}),
    "flux": (57, {18: "transformer_blocks.18.attn", 19: "single_transformer_blocks.0.attn"}),
    "pixart": (28, {27: "transformer_blocks.27.attn2"}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_layers_are_numbered_as_they_run(name: str) -> None:
    count, some = SHAPES[name]
    layers = dp.text_layers(published(name))
    assert [layer.index for layer in layers] == list(range(count))
    assert all(layers[index].name.startswith(module) for index, module in some.items())


@pytest.fixture
def deepfloyd() -> UNet2DConditionModel:
    """The first stage of DeepFloyd IF, size XL, on the meta device."""
    crossing = ("SimpleCrossAttnDownBlock2D",) * 3, ("SimpleCrossAttnUpBlock2D",) * 3
    settings: dict[str, Any] = {
        "sample_size": 64,
        "in_channels": 3,
        "out_channels": 6,
        "layers_per_block": 3,
        "block_out_channels": (704, 1408, 2112, 2816),
        "down_block_types": ("ResnetDownsampleBlock2D", *crossing[0]),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": (*crossing[1], "ResnetUpsampleBlock2D"),
        "attention_head_dim": 64,
        "cross_attention_dim": 2816,
        "cross_attention_norm": "group_norm",
        "encoder_hid_dim": 4096,
        "addition_embed_type": "text",
        "resnet_time_scale_shift": "scale_shift",
        "resnet_skip_time_act": True,
        "act_fn": "gelu",
    }
    with torch.device("meta"):
        return UNet2DConditionModel(**settings)


def test_added_keys_and_values_are_numbered_as_they_run(deepfloyd: UNet2DConditionModel) -> None:
    layers = dp.text_layers(deepfloyd)
    assert len(layers) == 22
    assert [layers[number].name for number in (0, 8, 9, 10, 17)] == [
        "down_blocks.1.attentions.0",
        "down_blocks.3.attentions.2",
        "mid_block.attentions.0",
        "up_blocks.0.attentions.0",
        "up_blocks.1.attentions.3",
    ]
    assert not layers[17].joint


def test_published_layers_have_the_papers_parameters(deepfloyd: UNet2DConditionModel) -> None:
    models = {"sdxl": published("sdxl"), "sd3": published("sd3"), "if": deepfloyd}
    found = {name: dp.projection_parameters(model) for name, model in models.items()}
    assert found == {"sdxl": 15_728_640, "sd3": 4_721_664, "if": 11_899_008}
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    assert sizes == {"sdxl": 2_567_463_684, "sd3": 2_028_328_000, "if": 4_304_695_110}
    shares = {name: round(100 * found[name] / size, 4) for name, size in sizes.items()}
    assert shares == {"sdxl": 0.6126, "sd3": 0.2328, "if": 0.2764}


@pytest.mark.parametrize(
    ("name", "targets", "r", "count"),
    [
        ("sdxl", "qkvo", 4, 141_312),
        ("sdxl", "qkvo", 64, 2_260_992),
        ("sd3", "qkvo", 4, 49_152),
        ("sd3", "qkvo", 64, 786_432),
        ("sd3", "text_kv", 4, 24_576),
        ("flux", "qkvo", 4, 4 * (3072 + 3072) * (4 + 3)),
    ],
)
def test_lora_on_published_layers_has_this_many_parameters(name: str, targets: str, r: int, count: int) -> None:
    model = published(name)
    layers = [18, 19] if name == "flux" else "auto"
    dp.add_adapter(model, dp.localized_lora(model, layers, r=r, targets=targets))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


def test_nothing_is_published_for_other_models() -> None:
    assert published_layers(published("sd15")) is None
    with pytest.raises(ValueError, match=r"16 of them: search with `dp.localize_text_layers"):
        dp.projection_parameters(published("sd15"))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([10], "no text layer 10: they have the numbers 0 to 9"),
        ([-1], "no text layer -1"),
        (["down_blocks.0.attentions.0.transformer_blocks.0.attn"], r"did you mean 'down_blocks.0.*attn2'"),
        ([], "not empty"),
    ],
)
def test_unknown_layers_are_refused(layers: list[int | str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dp.projection_parameters(small("sd15"), layers)


def test_a_model_without_text_is_refused() -> None:
    with pytest.raises(ValueError, match="no attention layer that reads text"):
        dp.text_layers(small("dit"))
