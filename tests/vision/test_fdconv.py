"""FDConv on layers and models: identity, samples apart, sizes, refusals, saving."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from vision_peft import FdconvConfig, load_adapter
from vision_peft.methods.fdconv.module import FdLinear


def adapted(layer: nn.Module, seed: int = 0, **fields: Any) -> tuple[PeftModel, Any]:
    """A model of this one layer, and the layer around it."""
    torch.manual_seed(seed)
    config = FdconvConfig(target_modules=["0"], modules_to_save=[], **{"kernel_num": 4, **fields})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the .* adapter of .* more than the")
        model = get_peft_model(nn.Sequential(layer), config)  # type: ignore[arg-type]
    return model, model.get_submodule("base_model.model.0")  # type: ignore[return-value]


def features(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(shape, dtype=dtype).relu()


LAYERS = {
    "3x3": lambda: nn.Conv2d(20, 18, 3, padding=1),
    "1x1": lambda: nn.Conv2d(20, 24, 1, bias=False),
    "stride": lambda: nn.Conv2d(18, 20, 3, stride=2, padding=2, dilation=2),
    "same": lambda: nn.Conv2d(18, 20, 3, padding="same"),
    "reflect": lambda: nn.Conv2d(18, 20, 3, padding=1, padding_mode="reflect"),
    "odd": lambda: nn.Conv2d(17, 19, 3, padding=1),
}


@pytest.mark.parametrize("mode", ["frozen_base", "spectral"])
@pytest.mark.parametrize("size", [(4, 5), (24, 25)])
@pytest.mark.parametrize("name", LAYERS)
def test_start_is_the_identity(name: str, size: tuple[int, int], mode: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]()
    x = features(2, layer.in_channels, *size)
    expected = layer(x)
    model, _ = adapted(layer, mode=mode)
    assert (model(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("shape", [(20,), (3, 20), (2, 7, 20), (2, 3, 5, 20)])
def test_start_of_a_linear_layer_is_the_identity(shape: tuple[int, ...]) -> None:
    layer = nn.Linear(20, 24)
    x = features(*shape)
    expected = layer(x)
    model, _ = adapted(layer, ksm_norm="rms")
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_copies_of_the_spectrum_start_with_their_share() -> None:
    layer = nn.Conv2d(20, 18, 3, padding=1)
    x = features(2, 20, 6, 6)
    expected = layer(x)
    model, _ = adapted(layer, mode="spectral", param_ratio=2)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_another_largest_factor_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"every factor starts at 1\.5 instead of 1"):
        FdconvConfig(att_multi=3.0)


def test_official_start_changes_the_function() -> None:
    layer = nn.Conv2d(256, 256, 3, padding=1)
    x = features(1, 256, 5, 5)
    expected = layer(x)
    model, _ = adapted(layer, init="official")
    assert (model(x) - expected).norm() > 0.1 * expected.norm()


@pytest.mark.parametrize("name", ["3x3", "stride"])
def test_samples_do_not_see_each_other(name: str) -> None:
    layer = LAYERS[name]()
    model, _ = adapted(layer, init_weights=False)
    x = features(3, layer.in_channels, 9, 10)
    apart = torch.cat([model(sample[None]) for sample in x])
    torch.testing.assert_close(model(x), apart, rtol=1e-4, atol=1e-5)


def test_factors_on_kernels_and_on_features_agree() -> None:
    model, layer = adapted(nn.Conv2d(18, 20, 1).double(), init_weights=False)
    x = features(2, 18, 3, 4, dtype=torch.float64)  # a small map: factors on the features
    adapter = layer.adapters["default"]
    kernels = layer.kernels(x)
    expected = torch.einsum("boc,bchw->bohw", kernels[..., 0, 0], x) + layer.base_layer.bias[:, None, None]
    torch.testing.assert_close(model(x), expected)
    assert adapter.kernels(x.mean((2, 3)), layer._base_spectrum(adapter), whole=False)[1] is not None


def test_tokens_are_pooled_as_pixels_are() -> None:
    conv = nn.Conv2d(18, 20, 1)
    linear = nn.Linear(18, 20)
    with torch.no_grad():
        linear.weight.copy_(conv.weight[..., 0, 0])
        linear.bias.copy_(conv.bias)  # type: ignore[arg-type]
    of_conv, _ = adapted(conv, init_weights=False)
    of_linear, _ = adapted(linear, init_weights=False)
    of_linear.load_state_dict(
        {k: v for k, v in of_conv.state_dict().items() if not k.endswith("base_layer.weight")}, strict=False
    )
    x = features(2, 18, 4, 5)
    expected = of_conv(x).permute(0, 2, 3, 1)
    torch.testing.assert_close(of_linear(x.permute(0, 2, 3, 1)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lengths", [[3, 5, 1], [4, 0, 5], [40, 2]])
def test_packed_sequences_are_as_separate_ones(lengths: list[int]) -> None:
    torch.manual_seed(0)
    layer = FdLinear(nn.Linear(18, 20), FdconvConfig(kernel_num=4, mode="spectral", init_weights=False))
    tokens = features(sum(lengths), 18)
    found = layer(tokens, lengths)
    apart = [layer(part[None])[0] for part in tokens.split(lengths) if len(part)]
    torch.testing.assert_close(found, torch.cat(apart), rtol=1e-4, atol=1e-5)
    assert torch.equal(layer(tokens[None], lengths)[0], found)
    found.sum().backward()
    with pytest.raises(ValueError, match=rf"sequences of {len(tokens)} tokens; found \[7\]"):
        layer(tokens, [7])


def test_frozen_weight_stays_and_its_spectrum_is_computed_once() -> None:
    model, layer = adapted(nn.Conv2d(18, 20, 3, padding=1), init_weights=False)
    before = layer.base_layer.weight.clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    spectra = set()
    for _ in range(3):
        model(features(2, 18, 6, 6)).square().mean().backward()
        spectra.add(id(layer._spectrum.kept[1]))
        optimizer.step()
    assert torch.equal(layer.base_layer.weight, before)
    assert len(spectra) == 1
    assert all("fdconv_" in name for name, p in model.named_parameters() if p.requires_grad)
    with torch.no_grad():
        layer.base_layer.weight.mul_(2)
    assert layer._base_spectrum(layer.adapters["default"]) is not None
    assert id(layer._spectrum.kept[1]) not in spectra


def test_every_part_is_trained_from_the_identity() -> None:
    model, _ = adapted(nn.Conv2d(18, 20, 3, padding=1), mode="spectral")
    model(features(2, 18, 6, 6)).square().mean().backward()
    still = {n.split("default.")[1] for n, p in model.named_parameters() if p.requires_grad and not p.grad.any()}  # type: ignore[union-attr]
    # below heads that start at 0; the local branch's norm likewise
    assert still == {
        "ksm_global.squeeze.weight", "ksm_global.norm.weight", "ksm_global.norm.bias", "ksm_global.star.scale",
        "ksm_global.star.bias", "ksm_local.norm.weight", "ksm_local.norm.bias",
    }  # fmt: skip


def test_scale_interpolates() -> None:
    model, layer = adapted(nn.Conv2d(18, 20, 3, padding=1), init_weights=False)
    x = features(2, 18, 6, 6)
    whole, base = model(x), layer.base_layer(x)
    layer.set_scale("default", 0.25)
    torch.testing.assert_close(model(x), 0.75 * base + 0.25 * whole, rtol=1e-4, atol=1e-4)


def test_saved_adapter_is_the_same_on_a_new_model(tmp_path: Path) -> None:
    torch.manual_seed(3)
    base = nn.Conv2d(18, 20, 3, padding=1)
    again = nn.Conv2d(18, 20, 3, padding=1)
    again.load_state_dict(base.state_dict())
    model, _ = adapted(base, init_weights=False, freq_order="official")
    model.save_pretrained(str(tmp_path))
    torch.manual_seed(4)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the .* adapter of .* more than the")
        loaded = PeftModel.from_pretrained(nn.Sequential(again), tmp_path)
    x = features(2, 18, 6, 6)
    assert torch.equal(model.eval()(x), loaded.eval()(x))


def test_a_head_of_the_usual_name_is_saved_beside_the_adapter(tmp_path: Path) -> None:
    def base() -> Any:
        torch.manual_seed(3)
        return timm.create_model("test_resnet", num_classes=4)

    config = FdconvConfig(target_modules=["layer1.0.conv1"], kernel_num=4, init_weights=False)
    model = get_peft_model(base(), config)  # type: ignore[arg-type]
    heads = [name for name, _ in model.named_modules() if name.endswith("modules_to_save")]
    assert heads == ["base_model.model.fc.modules_to_save"]
    model.save_pretrained(str(tmp_path))
    loaded = load_adapter(base(), tmp_path)
    x = features(1, 3, 32, 32)
    assert torch.equal(model.eval()(x), loaded.eval()(x))


def test_nothing_merges() -> None:
    model, _ = adapted(nn.Conv2d(18, 20, 3))
    with pytest.raises(NotImplementedError, match="depends on the input"):
        model.merge_adapter()


def test_batch_norm_of_one_sample_is_refused() -> None:
    model, _ = adapted(nn.Conv2d(18, 20, 1), ksm_norm="batch")
    with pytest.raises(ValueError, match="at least 2 samples"):
        model.train()(features(1, 18, 4, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["3x3", "1x1"])
def test_half_precision_keeps_its_dtype(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]()
    x = features(2, layer.in_channels, 8, 8)
    expected = layer(x)
    model, _ = adapted(layer.to(dtype))
    y = model(x.to(dtype))
    assert y.dtype == dtype
    assert (y.float() - expected).norm() <= 2e-2 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["3x3", "1x1"])
def test_autocast_transforms_in_float32(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]()
    model, _ = adapted(layer, init_weights=False)
    x = features(2, layer.in_channels, 7, 9)  # no powers of two
    with torch.autocast("cpu", dtype=dtype):
        y = model(x)
        y.float().square().mean().backward()
    assert y.dtype == dtype
    assert (y.float() - model(x)).norm() <= 2e-2 * y.float().norm()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (lambda: nn.Conv2d(32, 32, 3, groups=2), "'0' has 2 groups"),
        (lambda: nn.Conv2d(32, 32, (3, 1)), "square kernels"),
        (lambda: nn.Conv1d(32, 32, 3), "'0' is a Conv1d"),
        (lambda: nn.Conv2d(32, 32, 7), "kernel size 7"),
        (lambda: nn.Conv2d(16, 32, 3), "16 channels, not more than 16"),
    ],
)
def test_layers_that_cannot_be_adapted(layer: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        adapted(layer())


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"kernel_num": 1}, "kernel_num"),
        ({"kernel_num": 2.5}, "kernel_num must be an integer of at least 2, or None; found 2.5"),
        ({"kernel_temp": 0.0}, "kernel_temp"),
        ({"att_multi": -1.0}, "att_multi"),
        ({"ksm_global_act": "softmax"}, "ksm_global_act"),
        ({"param_ratio": 2}, "param_ratio"),
        ({"fbm_k_list": [4, 2]}, "fbm_k_list"),
        ({"mode": "spectrum"}, "did you mean 'spectral'"),
    ],
)
def test_settings_out_of_range(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        FdconvConfig(**fields)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 546_160),
        ("resnet50", 3_586_704),
        ("resnet101", 7_369_170),
        ("convnext_tiny", 8_973_864),
        ("swin_tiny_patch4_window7_224", 5_982_576),
        ("vit_base_patch16_224", 19_204_272),
    ],
)
def test_parameters_to_the_unit(name: str, count: int) -> None:
    with torch.device("meta"):
        base = timm.create_model(name)
    model = get_peft_model(base, FdconvConfig(modules_to_save=[]))  # type: ignore[arg-type]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count
