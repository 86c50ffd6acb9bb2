"""Adapter files of diffusers, kohya's programs and ComfyUI: written, read back and read by diffusers' own loader."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    FluxPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from diffusion_peft.formats.low_rank import NoFormError
from diffusion_peft.formats.names import flat_names, sgm_names
from diffusion_peft.formats.reading import read_foreign
from diffusion_peft.formats.writing import WRITERS, written
from peft_kernels.adapter_formats import PEFT_ROOT
from tests.diffusion.low_rank_adapters import CONFIGS, loaded, output, saved, tiny
from tests.diffusion.true_configs import published

# Every kind of adapter on a UNet with linear and convolutional projections, one of each method on the others.
CASES = [
    *((name, "sd15") for name in CONFIGS),
    *((name, architecture) for name in ("lora", "dora", "loha", "lokr") for architecture in ("sdxl", "sd3")),
    *(("lora", architecture) for architecture in ("flux", "dit", "pixart")),
]
# float32, on outputs of size 1: a scale that was written into a factor rounds it.
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-5}
# Of these kohya's files hold the very factors; in the others alpha does not say all of the scale.
BIT_EQUAL = ("lora", "rank patterns", "rslora", "dora", "loha", "loha, Tucker", "lokr, all products")
TRANSFORMERS = "as its authors' code does"
PIPELINES: dict[str, Any] = {
    "sd15": StableDiffusionPipeline,
    "sdxl": StableDiffusionXLPipeline,
    "sd3": StableDiffusion3Pipeline,
    "flux": FluxPipeline,
}


def reason(architecture: str, name: str, to: str) -> str | None:
    """Why an adapter is not written in a format; ``None`` where it is."""
    unet = architecture in ("sd15", "sdxl")
    if to == "kohya":
        return None if unet else "no name for 'proj_out'" if architecture == "flux" else TRANSFORMERS
    if to == "diffusers":
        if architecture in ("dit", "pixart"):
            return "loads no adapters"
        return "LoRA and LoKr alone" if name.startswith("loha") else None
    if name == "dora":
        return "norm of the plain weight"
    return "no names for the layers" if architecture == "dit" else None


@pytest.mark.parametrize(("name", "architecture"), CASES)
def test_written_and_read_back_gives_the_same(name: str, architecture: str, tmp_path: Path) -> None:
    base = tiny(architecture)
    config, tensors, adapted = saved(name, base)
    wanted = output(architecture, adapted)
    assert (wanted - output(architecture, base)).abs().max() > 1e-3
    earlier: list[dict[str, Tensor]] = []
    for to in WRITERS:
        why = reason(architecture, name, to)
        if why is not None:
            with pytest.raises(NoFormError, match=why):
                written(config, tensors, base, to)
            continue
        made, header = written(config, tensors, base, to)
        if any(made.keys() == other.keys() and all(torch.equal(made[k], other[k]) for k in made) for other in earlier):
            continue  # kohya's names are ComfyUI's
        earlier.append(made)
        save_file(made, tmp_path / "file.safetensors", header)
        found, read = read_foreign(tmp_path / "file.safetensors", base)
        torch.testing.assert_close(output(architecture, loaded(found, read, base)), wanted, **CLOSE)
        assert read.keys() == tensors.keys()
        if to == "diffusers" or (to == "kohya" and name in BIT_EQUAL):
            assert all(torch.equal(read[key], tensors[key]) for key in read)


def pipeline(architecture: str) -> Any:
    """A pipeline of diffusers' with the small denoiser and nothing else."""
    cls, base = PIPELINES[architecture], tiny(architecture)
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    given = dict.fromkeys(each.name for each in parameters if each.default is each.empty)
    return cls(**given | {"unet" if hasattr(base, "conv_in") else "transformer": base})


@pytest.mark.parametrize(
    ("name", "architecture"),
    [(name, "sd15") for name in ("rank patterns", "alpha patterns", "rslora", "dora")]
    + [("lora", architecture) for architecture in PIPELINES],
)
def test_diffusers_loads_what_was_written(name: str, architecture: str, tmp_path: Path) -> None:
    pipe = pipeline(architecture)
    base = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    plain = output(architecture, base)
    config, tensors, adapted = saved(name, base)
    for to in WRITERS:
        if reason(architecture, name, to) is not None or (name == "dora" and to == "kohya"):  # it drops magnitudes
            continue
        made, header = written(config, tensors, base, to)
        save_file(made, tmp_path / "file.safetensors", header)
        pipe.load_lora_weights(str(tmp_path), weight_name="file.safetensors")
        torch.testing.assert_close(output(architecture, base), output(architecture, adapted), **CLOSE)
        pipe.unload_lora_weights()
        assert torch.equal(output(architecture, base), plain)


# Flux's layers that sd-scripts has in one matrix with others, and those that it has by themselves.
FUSED = [
    "attn.to_q",
    "attn.to_v",
    "add_k_proj",
    "add_v_proj",
    "ff_context.net.2",
    "norm1.linear",
    "proj_mlp",
    "0.proj_out",
]


@pytest.mark.parametrize("name", ["lora", "rank patterns", "alpha patterns"])
def test_flux_is_fused_for_kohya_and_taken_apart_again(name: str, tmp_path: Path) -> None:
    base = tiny("flux")
    config, tensors, adapted = saved(name, base, FUSED)
    made, header = written(config, tensors, base, "kohya")
    assert made["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"].shape[0] == 3 * 16
    assert made["lora_unet_single_blocks_0_linear1.lora_down.weight"].shape[0] > 4
    save_file(made, tmp_path / "file.safetensors", header)
    found, read = read_foreign(tmp_path / "file.safetensors", base)
    torch.testing.assert_close(output("flux", loaded(found, read, base)), output("flux", adapted), **CLOSE)
    assert {key: tensor.shape for key, tensor in read.items()} == {key: t.shape for key, t in tensors.items()}


def test_diffusers_takes_fluxs_double_blocks_apart_alike(tmp_path: Path) -> None:
    """Of single blocks its reader takes the published widths for granted."""
    pipe = pipeline("flux")
    targets = "transformer_blocks.*(to_q|to_v|add_k_proj|ff.net.2)"
    config, tensors, adapted = saved("lora", pipe.transformer, targets)
    made, header = written(config, tensors, pipe.transformer, "kohya")
    save_file(made, tmp_path / "file.safetensors", header)
    pipe.load_lora_weights(str(tmp_path), weight_name="file.safetensors")
    torch.testing.assert_close(output("flux", pipe.transformer), output("flux", adapted), **CLOSE)


@pytest.mark.parametrize("name", ["lokr", "lokr, whole factors"])
def test_diffusers_models_load_lokr_themselves(name: str, tmp_path: Path) -> None:
    base = tiny("sd15")
    config, tensors, adapted = saved(name, base)
    made, header = written(config, tensors, base, "diffusers")
    save_file(made, tmp_path / "file.safetensors", header)
    base.load_lora_adapter(str(tmp_path), weight_name="file.safetensors", prefix="unet", use_safetensors=True)
    torch.testing.assert_close(output("sd15", base), output("sd15", adapted), **CLOSE)


def test_kohya_names_are_those_of_diffusers_converter() -> None:
    base = tiny("sd15")
    config, tensors, _ = saved("lora", base)
    made, _ = written(config, tensors, base, "kohya")
    expected = convert_state_dict_to_kohya({f"unet.{key.removeprefix(PEFT_ROOT)}": t for key, t in tensors.items()})
    assert made.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(made[key], torch.tensor(6.0) if key.endswith(".alpha") else tensor)


def test_sdxl_is_named_as_in_its_authors_code() -> None:
    """As in the files of sd-scripts; every projection and convolution has one name."""
    model = published("sdxl")
    names = sgm_names(model)
    for name, path in {
        "input_blocks_0_0": "conv_in",
        "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
        "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
        "input_blocks_4_1_transformer_blocks_1_ff_net_2": "down_blocks.1.attentions.0.transformer_blocks.1.ff.net.2",
        "input_blocks_8_1_proj_in": "down_blocks.2.attentions.1.proj_in",
        "middle_block_2_out_layers_3": "mid_block.resnets.1.conv2",
        "output_blocks_0_0_skip_connection": "up_blocks.0.resnets.0.conv_shortcut",
        "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
        "output_blocks_5_0_emb_layers_1": "up_blocks.1.resnets.2.time_emb_proj",
        "label_emb_0_2": "add_embedding.linear_2",
        "out_2": "conv_out",
    }.items():
        assert names[name] == path
    weighty = [p for p in flat_names(model).values() if model.get_submodule(p).weight.ndim > 1]
    assert sorted(p for p in names.values() if p in weighty) == sorted(weighty)
    assert sgm_names(published("flux")) == {}


FIELDS = {
    "pissa": ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
    "biases": ({"lora_bias": True}, "lora_B.bias"),
    "modules in full": ({"modules_to_save": ["conv_norm_out"]}, "'conv_norm_out' in full"),
}


@pytest.mark.parametrize("case", FIELDS)
def test_what_no_format_has_a_place_for_is_refused(case: str) -> None:
    fields, why = FIELDS[case]
    config = LoraConfig(r=4, target_modules=["to_out.0"], **fields)
    CONFIGS[case] = lambda targets: config
    try:
        _, tensors, _ = saved(case, tiny("sd15"))
    finally:
        del CONFIGS[case]
    with pytest.raises(NoFormError, match=why):
        written(config, tensors, tiny("sd15"), "kohya")
