"""HiPA's adapter is PEFT's LoRA of the paper's size, and diffusers' own calls know it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

import diffusion_peft as dp
from peft_kernels.registry import method
from tests.diffusion.tiny_pipelines import stable_diffusion
from tests.diffusion.true_configs import predict, published, small

QKVO = ["to_q", "to_k", "to_v", "to_out.0"]


def trained(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def wrapped(model: nn.Module) -> int:
    return sum(name.endswith("lora_A") for name, _ in model.named_modules())


@pytest.mark.parametrize(
    ("name", "fields", "expected", "layers"),
    [
        ("sd2", {}, 3_319_808, 128),
        ("sd2", {"r": 4}, 829_952, 128),
        ("sd2", {"target_modules": [f"attn2.{name}" for name in QKVO]}, 1_722_368, 64),
        ("sd2", {"r": 32, "target_modules": ["to_q", "to_v"]}, 3_319_808, 64),
        ("sd2", {"target_modules": [*QKVO, "ff.net.0.proj", "ff.net.2"]}, 6_115_328, 160),
        ("sd15", {}, 3_188_736, 128),
        ("sdxl", {}, 23_224_320, 560),
    ],
)
def test_trains_as_many_parameters_as_published(name, fields, expected, layers):
    model = get_peft_model(published(name), dp.HipaConfig(**fields))
    assert (trained(model), wrapped(model)) == (expected, layers)


@pytest.mark.parametrize("name", ["dit", "sd3"])
def test_every_projection_of_an_attention_that_acts_is_adapted(name):
    model = small(name)
    attentions = [module for module in model.modules() if hasattr(module, "to_q")]
    names = ("to_q", "to_k", "to_v", "to_out", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    there = sum(getattr(module, part, None) is not None for module in attentions for part in names)
    idle = sum(module.context_pre_only is True for module in attentions)  # the last: nothing reads what the text asks
    adapted = method("hipa").attach(model, r=2)
    assert wrapped(adapted) == there - idle
    predict(name, adapted).square().sum().backward()
    assert not [n for n, p in adapted.named_parameters() if p.requires_grad and p.grad is None]


def test_start_is_the_base_and_only_b_moves_at_first():
    expected = predict("sd2", small("sd2"))
    model = dp.add_adapter(small("sd2"), dp.HipaConfig(r=2))
    layer: Any = next(module for module in model.modules() if isinstance(module, LoraLayer))
    x = torch.randn(2, 5, layer.in_features)
    assert torch.equal(layer(x), layer.base_layer(x))
    output = predict("sd2", model)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    output.square().sum().backward()
    moved = {
        name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    assert moved == {name for name, _ in model.named_parameters() if "lora_B" in name}


def test_saved_adapter_is_a_plain_lora(tmp_path: Path):
    model = get_peft_model(small("sd2"), dp.HipaConfig(r=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02)
    expected = predict("sd2", model)
    model.save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 16)
    loaded = PeftModel.from_pretrained(small("sd2"), tmp_path)  # type: ignore[arg-type]
    assert type(loaded.active_peft_config) is LoraConfig
    torch.testing.assert_close(predict("sd2", loaded), expected, rtol=1e-5, atol=1e-5)
    merged = loaded.merge_and_unload()  # type: ignore[operator]
    torch.testing.assert_close(predict("sd2", merged), expected, rtol=1e-3, atol=1e-4)


def test_diffusers_own_calls_save_and_load_it(tmp_path: Path):
    torch.manual_seed(0)
    pipeline: Any = stable_diffusion()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.add_adapter(dp.HipaConfig(r=2))
    for name, parameter in pipeline.unet.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    asked: dict[str, Any] = {"height": 16, "width": 16, "num_inference_steps": 1, "guidance_scale": 1.0}

    def picture(pipe: Any) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return dp.one_step(pipe)("star", **asked, generator=generator, output_type="pt").images

    expected = picture(pipeline)
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipeline.unet))
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    pipeline.unet.delete_adapters("default")
    assert not torch.equal(picture(pipeline), expected)
    pipeline.load_lora_weights(tmp_path)
    # Their format has no alpha by default: alpha = r, and the update is an eighth of ours.
    pipeline.set_adapters(pipeline.get_active_adapters(), [16 / 2])
    torch.testing.assert_close(picture(pipeline), expected, rtol=0, atol=1e-5)


def test_bad_rank_is_told():
    with pytest.raises(ValueError, match=r"HipaConfig\.r must be at least 1; found 0"):
        dp.HipaConfig(r=0)
    with pytest.raises(ValueError, match="did you mean 'lora_alpha'"):
        method("hipa").config(lora_alfa=3)
