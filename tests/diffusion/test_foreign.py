"""LoRA, LoHa and LoKr files of other programs become adapters of a denoiser, or one clear error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import diffusion_peft as dp
from diffusion_peft.formats.names import flat
from peft_kernels.adapter_formats import PEFT_ROOT
from tests.diffusion.low_rank_adapters import output, saved, tiny
from tests.kernels.saved_adapters import structure

Tensors = dict[str, Tensor]
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-5}
KOHYA = {"lora_A": "lora_down.weight", "lora_B": "lora_up.weight"}


def layers(tensors: Tensors) -> dict[str, Tensors]:
    """Tensors by layer and by part."""
    found: dict[str, Tensors] = {}
    for key, tensor in tensors.items():
        layer, _, part = key.removeprefix(PEFT_ROOT).removesuffix(".weight").rpartition(".")
        found.setdefault(layer, {})[part] = tensor
    return found


def flattened(start: str, tensors: Tensors, alpha: float | None = 6.0) -> Tensors:
    """Names with underscores, as kohya's, LyCORIS's and OneTrainer's files have them."""
    made: Tensors = {}
    for layer, parts in layers(tensors).items():
        made |= {f"{start}{flat(layer)}.{KOHYA.get(part, part)}": tensor for part, tensor in parts.items()}
        if alpha is not None:
            made[f"{start}{flat(layer)}.alpha"] = torch.tensor(alpha)
    return made


def processors(tensors: Tensors) -> Tensors:
    """As diffusers named attention weights at first, in files of attention weights alone; scaled as alpha would."""
    made = {}
    for layer, parts in layers(tensors).items():
        module, _, leaf = layer.removesuffix(".0").rpartition(".")
        made[f"{module}.processor.{leaf}_lora.down.weight"] = parts["lora_A"]
        made[f"{module}.processor.{leaf}_lora.up.weight"] = 6 / 4 * parts["lora_B"]
    return made


def dotted(start: str, ends: tuple[str, str], tensors: Tensors) -> Tensors:
    """As diffusers has them, scaled as alpha would."""
    made = {}
    for layer, parts in layers(tensors).items():
        made[f"{start}{layer}{ends[0]}"] = parts["lora_A"]
        made[f"{start}{layer}{ends[1]}"] = 6 / 4 * parts["lora_B"]
    return made


def as_convolutions(tensors: Tensors) -> Tensors:
    """Factors of matrices as 1 × 1 convolutions."""
    return {key: t[..., None, None] if t.ndim == 2 else t for key, t in flattened("lora_unet_", tensors).items()}


ATTENTION = ["to_q", "to_k", "to_out.0"]
# How a file names a LoRA -> the model, the layers and the renaming.
SPELLINGS: dict[str, tuple[str, list[str] | None, Callable[[Tensors], Tensors]]] = {
    "kohya": ("sd15", None, lambda t: flattened("lora_unet_", t)),
    "kohya, SDXL's blocks counted by diffusers": ("sdxl", None, lambda t: flattened("lora_unet_", t)),
    "matrices as convolutions": ("sd15", None, as_convolutions),
    "LyCORIS on diffusers": ("sd15", None, lambda t: flattened("lycoris_", t)),
    "OneTrainer": ("sd3", None, lambda t: flattened("lora_transformer_", t)),
    "diffusers": ("sd15", None, lambda t: dotted("unet.", (".lora_A.weight", ".lora_B.weight"), t)),
    "diffusers, older": ("sd15", None, lambda t: dotted("unet.", (".lora.down.weight", ".lora.up.weight"), t)),
    "diffusers, processors": ("sd15", ATTENTION, processors),
    "diffusers, transformer": ("flux", None, lambda t: dotted("transformer.", (".lora_A.weight", ".lora_B.weight"), t)),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_lora_of_any_spelling_gives_the_same_outputs(case: str, tmp_path: Path) -> None:
    architecture, targets, rename = SPELLINGS[case]
    base = tiny(architecture)
    _, tensors, adapted = saved("lora", base, targets)
    save_file(rename(tensors), tmp_path / "file.safetensors")
    dp.load_adapter(base, tmp_path / "file.safetensors", "style")
    torch.testing.assert_close(output(architecture, base), output(architecture, adapted), **CLOSE)


def test_missing_alpha_means_scale_1(tmp_path: Path) -> None:
    base = tiny("sd15")
    _, tensors, _ = saved("lora", base, ATTENTION)
    outputs = []
    for alpha in (None, 4.0):
        save_file(flattened("lora_unet_", tensors, alpha), tmp_path / "file.safetensors")
        dp.load_adapter(base, tmp_path / "file.safetensors")
        outputs.append(output("sd15", base))
        dp.delete_adapters(base, "default")
    assert torch.equal(*outputs)


def test_lycoris_convolution_of_three_factors_is_their_product(tmp_path: Path) -> None:
    """Down is 1 × 1, the middle one has the kernel's size."""
    base = tiny("sd15")
    name, generator = "mid_block.resnets.0.conv1", torch.Generator().manual_seed(4)
    weight = base.get_submodule(name).weight
    down, mid, up = (
        torch.randn(*shape, generator=generator)
        for shape in ((3, weight.shape[1], 1, 1), (3, 3, 3, 3), (weight.shape[0], 3, 1, 1))
    )
    delta = 2 / 3 * torch.einsum("or,rskl,si->oikl", up[..., 0, 0], mid, down[..., 0, 0])
    plain = tiny("sd15")
    with torch.no_grad():
        plain.get_submodule(name).weight += delta
    parts = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(2.0)}
    save_file({f"lora_unet_{flat(name)}.{part}": t for part, t in parts.items()}, tmp_path / "file.safetensors")
    dp.load_adapter(base, tmp_path / "file.safetensors")
    torch.testing.assert_close(output("sd15", base), output("sd15", plain), rtol=1e-4, atol=1e-4)


def test_alpha_of_lokr_counts_only_where_a_factor_is_a_product(tmp_path: Path) -> None:
    """ai-toolkit writes an alpha of 1e10 beside whole factors."""
    base, plain = tiny("sd15"), tiny("sd15")
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    weight = plain.get_submodule(name).weight
    one, two = torch.randn(2, 2), torch.randn(weight.shape[0] // 2, weight.shape[1] // 2)
    with torch.no_grad():
        weight += torch.kron(one, two)
    file = {f"unet.{name}.lokr_w1": one, f"unet.{name}.lokr_w2": two, f"unet.{name}.alpha": torch.tensor(1e10)}
    save_file(file, tmp_path / "file.safetensors")
    dp.load_adapter(base, tmp_path / "file.safetensors")
    torch.testing.assert_close(output("sd15", base), output("sd15", plain), rtol=1e-4, atol=1e-4)


TE = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 8)}
TE["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"] = torch.ones(8, 2)
Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def with_nan(tensors: Tensors) -> Tensors:
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    tensors[f"{Q}.lora_up.weight"][0, 0] = torch.nan
    return tensors


# What is wrong -> how it comes about from a good file, and what is told.
WRONG: dict[str, tuple[Callable[[Tensors], Tensors], tuple[str, ...]]] = {
    "for text encoders too": (lambda t: t | TE, ("1 layers for text encoders", "lora_te_", "--part unet")),
    "another architecture": (
        lambda t: {key.replace("mid_block", "transformer_blocks_0"): v for key, v in t.items()},
        ("does not fit UNet2DConditionModel", "6 of its layers", "transformer_blocks_0_attentions", "18 match, 75%"),
    ),
    "another width": (lambda t: t | {f"{Q}.lora_down.weight": torch.ones(4, 99)}, ("(4, 99)", "(4, 16)")),
    "mixed": (
        lambda t: t | {f"{Q}x.hada_w1_a": torch.ones(2, 2)},
        ("mixes LoRA and LoHa",),
    ),
    "NaN": (with_nan, (f"{Q}.lora_up.weight", "NaN")),
    "half a layer": (lambda t: {key: v for key, v in t.items() if key != f"{Q}.lora_up.weight"}, ("no lora_up",)),
    "magnitudes of inputs": (
        lambda t: t | {f"{Q}.dora_scale": torch.ones(1, 16)},
        ("(1, 16)", "one for every input"),
    ),
    "magnitudes here and there": (lambda t: t | {f"{Q}.dora_scale": torch.ones(16, 1)}, ("has none",)),
    "alpha of every row": (lambda t: t | {f"{Q}.alpha": torch.ones(4)}, ("alpha of shape (4,)", "one number")),
    "flat": (lambda t: t | {f"{Q}.lora_up.weight": torch.ones(64)}, ("lora_up of shape (64,)", "2 dimensions")),
    "middle that does not fit": (
        lambda t: t | {f"{Q}.lora_mid.weight": torch.ones(4, 5)},
        ("lora_mid of shape (4, 5) and lora_down of shape (4, 16)",),
    ),
    "half of LoKr": (
        lambda t: {f"{Q}.lokr_w1": torch.ones(2, 2), f"{Q}.lokr_w2_a": torch.ones(8, 1)},
        ("needs lokr_w2, or lokr_w2_a and lokr_w2_b; found lokr_w2_a",),
    ),
    "LoKr's factor twice": (
        lambda t: {f"{Q}.{part}": torch.ones(2, 2) for part in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2")},
        ("needs lokr_w1,", "found lokr_w1, lokr_w1_a, lokr_w1_b"),
    ),
    "another method": (lambda t: {f"{Q}.on_input": torch.tensor(1.0)}, ("IA3", "LoRA, LoHa, LoKr and SCEdit")),
    "no adapter": (lambda t: {"x.weight": torch.ones(2)}, ("no adapter that is known",)),
    "twice": (
        lambda t: t | {key.replace("lora_unet_", "lycoris_"): v.clone() for key, v in t.items() if key.startswith(Q)},
        ("two names",),
    ),
    "PEFT's without its configuration": (
        lambda t: {f"{PEFT_ROOT}x.lora_A.weight": torch.ones(2, 2)},
        ("adapter_config.json", "give the folder"),
    ),
}


@pytest.fixture(scope="module")
def good() -> Tensors:
    return flattened("lora_unet_", saved("lora", tiny("sd15"), ATTENTION)[1])


@pytest.mark.parametrize("case", WRONG)
def test_wrong_file_is_one_sentence_and_the_model_as_it_was(case: str, good: Tensors, tmp_path: Path) -> None:
    change, parts = WRONG[case]
    base, path = tiny("sd15"), tmp_path / "file.safetensors"
    before = structure(base)
    save_file(change(good), path)
    with pytest.raises(dp.AdapterError) as told:
        dp.load_adapter(base, path)
    assert str(told.value).startswith(str(path))
    assert "\n" not in str(told.value)
    for part in parts:
        assert part in str(told.value)
    assert structure(base) == before


def test_part_leaves_text_encoders_out_and_must_be_the_models(good: Tensors, tmp_path: Path) -> None:
    base, path = tiny("sd15"), tmp_path / "file.safetensors"
    save_file(good | TE, path)
    with pytest.raises(dp.AdapterError, match="expected 'unet'"):
        dp.load_adapter(base, path, part="transformer")
    dp.load_adapter(base, path, part="unet")
    found = output("sd15", base)
    dp.delete_adapters(base, "default")
    save_file(good, path)
    assert torch.equal(output("sd15", dp.load_adapter(base, path)), found)


def test_float8_is_read_and_held_in_float32(good: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    outputs = []
    for change in (lambda t: t, lambda t: t.float()):
        save_file({k: change(t if k.endswith("alpha") else t.to(torch.float8_e4m3fn)) for k, t in good.items()}, path)
        adapted = dp.load_adapter(tiny("sd15"), path)
        assert {p.dtype for name, p in adapted.named_parameters() if "lora_" in name} == {torch.float32}
        outputs.append(output("sd15", adapted))
    assert torch.equal(*outputs)


def test_header_with_patterns_that_are_none_is_passed_over(tmp_path: Path) -> None:
    base = tiny("sd15")
    _, tensors, _ = saved("lora", base, ATTENTION)
    path, named = tmp_path / "file.safetensors", dotted("unet.", (".lora_A.weight", ".lora_B.weight"), tensors)
    header = {"unet.r": 4, "unet.lora_alpha": 4, "unet.rank_pattern": {"(": 2}}
    outputs = []
    for more in ({}, {"lora_adapter_metadata": json.dumps(header)}):
        save_file(named, path, {"format": "pt", **more})
        outputs.append(output("sd15", dp.load_adapter(base, path)))
        dp.delete_adapters(base, "default")
    assert torch.equal(*outputs)


def test_damaged_files_and_pickles(good: Tensors, tmp_path: Path) -> None:
    base, path = tiny("sd15"), tmp_path / "file.safetensors"
    save_file(good, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(dp.AdapterError, match="not a whole safetensors file: expected"):
        dp.load_adapter(base, path)
    with pytest.raises(dp.AdapterError, match=r"there is no file .*none.safetensors$"):
        dp.load_adapter(base, "none.safetensors")
    torch.save(good, tmp_path / "file.bin")
    with pytest.raises(dp.AdapterError, match=r"pickle.*convert"):
        dp.load_adapter(base, tmp_path / "file.bin")
