"""The FDConv models as timm's: what timm's own tests ask of a model, plain weights converted, sizes to the unit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import get_notrace_functions, get_notrace_modules
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import vision_peft  # noqa: F401 (registers the models)
from vision_peft import FdconvConfig
from vision_peft.methods.fdconv.module import FdConv2d, FdLinear

# Each with what makes it small, the picture's size and the plain model.
_RESNET: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": (20, 24, 28, 32)}
_NARROW: dict[str, Any] = {"dims": (18, 20, 24, 28), "depths": (1, 1, 2, 1)}
_SWIN: dict[str, Any] = {"img_size": 64, "embed_dim": 24, "depths": (1, 1, 1), "num_heads": (2, 2, 2), "window_size": 4}
MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "fdconv_resnet18": (_RESNET, "resnet18"),
    "fdconv_resnet50": (_RESNET, "resnet50"),
    "fdconv_resnet101": (_RESNET, "resnet101"),
    "fdconv_convnext_tiny": (_NARROW, "convnext_tiny"),
    "fdconv_swin_tiny": (_SWIN, "swin_tiny_patch4_window7_224"),
}
KINDS = [name for name in MODELS if name != "fdconv_resnet101"]  # which differs from resnet50 in its depth
CLASSES = 5


def small(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    settings = {"fdconv": {"kernel_num": 4}, "num_classes": CLASSES, **MODELS[name][0], **changes}
    return timm.create_model(name, **settings).eval()


def plain(name: str, **changes: Any) -> Any:
    settings, architecture = MODELS[name]
    torch.manual_seed(1)
    return timm.create_model(architecture, **{"num_classes": CLASSES, **settings, **changes}).eval()


def pictures(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def rebuilt_layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, (FdConv2d, FdLinear))]


def test_models_are_listed() -> None:
    assert set(timm.list_models("*fdconv*")) == set(MODELS)
    assert all(timm.is_model_pretrained(name) for name in MODELS)


@pytest.mark.parametrize("name", KINDS)
def test_forward_and_backward_reach_every_parameter(name: str) -> None:
    model = small(name, fdconv={"kernel_num": 4, "init_weights": False}).train()
    y = model(pictures())
    y.square().sum().backward()
    assert y.shape == (2, CLASSES)
    assert y.isfinite().all()
    assert not [key for key, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("name", KINDS)
def test_default_configuration_tells_where_things_are(name: str) -> None:
    model = small(name)
    cfg = model.default_cfg
    classifier = cfg["classifier"]
    assert f"{classifier}.weight" in model.state_dict()
    assert f"{cfg['first_conv']}.weight" in model.state_dict()
    assert model.get_classifier() is model.get_submodule(classifier)
    assert cfg["hf_hub_id"].startswith(f"timm/{MODELS[name][1]}.")


@pytest.mark.parametrize("name", KINDS)
def test_classifier_can_be_reset(name: str) -> None:
    model = small(name)
    model.reset_classifier(3)
    assert model(pictures()).shape == (2, 3)
    features = model.forward_features(pictures())
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    model.reset_classifier(0)
    assert model(pictures()).shape == (2, model.num_features)


@pytest.mark.parametrize("name", KINDS)
def test_features_of_every_stage(name: str) -> None:
    model = small(name, features_only=True)
    found = model(pictures())
    assert [f.shape[3 if "swin" in name else 1] for f in found] == model.feature_info.channels()
    assert [64 // f.shape[2] for f in found] == model.feature_info.reduction()


@pytest.mark.parametrize("name", KINDS)
def test_intermediates_are_the_stages_outputs(name: str) -> None:
    model = small(name)
    final, between = model.forward_intermediates(pictures())
    torch.testing.assert_close(final, model.forward_features(pictures()))
    assert len(between) == len(model.feature_info)


@pytest.mark.parametrize("name", KINDS)
def test_groups_of_layers_and_checkpointing(name: str) -> None:
    model = small(name)
    groups = timm.models.group_parameters(model, model.group_matcher(coarse=False))
    assert sorted(key for group in groups.values() for key in group) == sorted(k for k, _ in model.named_parameters())
    x = pictures()
    expected = model(x)
    model.set_grad_checkpointing(True)
    model.train()(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.get_classifier().parameters())
    torch.testing.assert_close(small(name)(x), expected)


@pytest.mark.parametrize("mode", ["spectral", "frozen_base"])
@pytest.mark.parametrize("name", KINDS)
def test_plain_weights_load_and_give_the_plain_outputs(name: str, mode: str, tmp_path: Path) -> None:
    source = plain(name)
    path = tmp_path / "plain.safetensors"
    save_file(source.state_dict(), path)
    x = pictures()
    model = small(name, fdconv={"kernel_num": 4, "mode": mode})
    timm.models.load_checkpoint(model, str(path))  # strict
    torch.testing.assert_close(model(x), source(x), rtol=1e-3, atol=1e-4)
    overlay = {"file": str(path), "num_classes": CLASSES}
    made = small(name, fdconv={"kernel_num": 4, "mode": mode}, pretrained=True, pretrained_cfg_overlay=overlay)
    assert rebuilt_layers(made)
    torch.testing.assert_close(made(x), source(x), rtol=1e-3, atol=1e-4)


def test_state_of_one_mode_loads_into_the_other() -> None:
    spectral = small("fdconv_resnet18", fdconv={"kernel_num": 4, "init_weights": False})
    kept = small("fdconv_resnet18", fdconv={"kernel_num": 4, "mode": "frozen_base"})
    kept.load_state_dict(spectral.state_dict())
    torch.testing.assert_close(kept(pictures()), spectral(pictures()), rtol=1e-3, atol=1e-4)
    again = small("fdconv_resnet18")
    again.load_state_dict(kept.state_dict())
    torch.testing.assert_close(again(pictures()), spectral(pictures()), rtol=1e-3, atol=1e-4)


def test_state_of_another_size_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"size mismatch for layer1\.0\.conv1\.dynamic\.dft_weight"):
        small("fdconv_resnet18").load_state_dict(plain("fdconv_resnet18", channels=(24, 24, 28, 32)).state_dict())


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"kernel_num": 9999}, "'layer1.0.conv1' has a spectrum of .* entries, in from 2 to .* groups; .* 9999"),
        ({"fbm_spatial_group": 7}, "does not divide the 64 channels of 'layer1.0.conv1': the nearest that does is 8"),
        ({"kernel_nums": 4}, "no setting 'kernel_nums' .did you mean 'kernel_num'"),
        ("spectral", "must be a dict of FdconvConfig's settings; found 'spectral'"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_the_nearest(settings: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        small("fdconv_resnet18", fdconv=settings)


def test_weight_decay_leaves_out_norms_scalars_and_biases() -> None:
    model = small("fdconv_resnet18")
    decayed, *_ = [group["params"] for group in param_groups_weight_decay(model, 0.1) if group["weight_decay"]]
    left = {name for name, p in model.named_parameters() if not any(p is other for other in decayed)}
    assert {n for n, _ in model.named_parameters() if ".norm." in n or ".star." in n or n.endswith("bias")} <= left
    assert not {n for n in left if "dft_weight" in n}


def test_exported_program_gives_the_models_outputs() -> None:
    model, x = small("fdconv_resnet18", fdconv={"kernel_num": 4, "init_weights": False}), pictures()
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))
    assert not [node for node in program.graph.nodes if "peft_kernels" in str(node.target)]  # what other programs lack


def test_onnx_gives_the_models_outputs(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs onnxscript, which torch.onnx.export stands on")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x = small("fdconv_resnet18", fdconv={"kernel_num": 4, "init_weights": False}), pictures()
    program: Any = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x).detach())


@pytest.mark.parametrize("name", KINDS)
def test_traced_symbolically_the_model_is_the_same(name: str) -> None:
    model, x = small(name, fdconv={"kernel_num": 4, "init_weights": False}), pictures()
    leaves: dict[str, Any] = {
        "leaf_modules": get_notrace_modules(),
        "autowrap_functions": get_notrace_functions(),
        "param_shapes_constant": True,
    }
    *_, last = get_graph_node_names(model, tracer_kwargs=leaves)[1]
    traced = create_feature_extractor(model.train(), {last: "y"}, tracer_kwargs=leaves).eval()
    assert torch.equal(traced(x)["y"], model.eval()(x))
    traced.train()(x)["y"].square().sum().backward()
    assert not [key for key, parameter in traced.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("name", KINDS)
def test_without_pooling_there_is_a_map(name: str) -> None:
    model = small(name, num_classes=0, global_pool="")
    assert model.num_classes == 0
    assert model.head_hidden_size == model.num_features
    assert model(pictures()).shape == model.forward_features(pictures()).shape
    assert small(name, in_chans=1)(pictures()[:, :1]).shape == (2, CLASSES)


@pytest.mark.parametrize("name", ["fdconv_resnet50", "fdconv_swin_tiny"])
def test_shapes_are_known_without_memory(name: str) -> None:
    with torch.device("meta"):
        model: Any = timm.create_model(name)
        assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)


@pytest.mark.parametrize("reentrant", [False, True])
def test_statistics_move_once_under_checkpointing(reentrant: bool) -> None:
    layer = FdConv2d(torch.nn.Conv2d(18, 20, 3), FdconvConfig(kernel_num=4, ksm_norm="batch"))
    x = torch.randn(3, 18, 8, 8, generator=torch.Generator().manual_seed(3)).requires_grad_()
    again = copy.deepcopy(layer)
    y = layer(x)
    found = checkpoint(again, x, use_reentrant=reentrant)
    assert isinstance(found, Tensor)
    for each in (y, found):
        each.square().sum().backward()
    for (key, one), other in zip(layer.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(one, other), key
    for one, other in zip(layer.parameters(), again.parameters(), strict=True):
        assert one.grad is other.grad is None or torch.equal(one.grad, other.grad)  # type: ignore[arg-type]
    assert layer.dynamic.ksm_global.norm.running_mean.abs().max() > 0  # type: ignore[union-attr]


def test_no_samples_give_no_outputs() -> None:
    assert small("fdconv_resnet18")(pictures(0)).shape == (0, CLASSES)


@pytest.mark.parametrize(
    ("name", "count"),
    [("fdconv_resnet18", 11_689_512 + 569_200), ("fdconv_resnet50", 29_204_152)],
)
def test_parameters_to_the_unit(name: str, count: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
