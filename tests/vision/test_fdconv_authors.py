"""States of the authors' FDConv layers: their names as they write them, their values, and the way back."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vision_peft.methods.fdconv import FdconvConfig, from_authors, to_authors
from vision_peft.methods.fdconv.module import FdConv2d, FdLinear

GOLDEN = Path(__file__).parents[1] / "golden" / "fdconv"
# What `state_dict()` of the authors' convolution names and shapes, 18 to 20 channels, 3 x 3, 4 groups.
CONVOLUTION = {
    "dft_weight": (1, 60, 28, 2),
    "bias": (20,),
    "KSM_Global.fc.weight": (16, 18, 1, 1),
    "KSM_Global.bn.weight": (16,),
    "KSM_Global.bn.bias": (16,),
    "KSM_Global.bn.running_mean": (16,),
    "KSM_Global.bn.running_var": (16,),
    "KSM_Global.bn.num_batches_tracked": (),
    "KSM_Global.relu.scale": (1,),
    "KSM_Global.relu.bias": (1,),
    "KSM_Global.channel_fc.weight": (18, 16, 1, 1),
    "KSM_Global.channel_fc.bias": (18,),
    "KSM_Global.filter_fc.weight": (20, 16, 1, 1),
    "KSM_Global.filter_fc.bias": (20,),
    "KSM_Global.spatial_fc.weight": (9, 16, 1, 1),
    "KSM_Global.spatial_fc.bias": (9,),
    "KSM_Global.kernel_fc.weight": (4, 16, 1, 1),
    "KSM_Global.kernel_fc.bias": (4,),
    "FBM.freq_weight_conv_list.0.weight": (1, 18, 3, 3),
    "FBM.freq_weight_conv_list.0.bias": (1,),
    "FBM.freq_weight_conv_list.1.weight": (1, 18, 3, 3),
    "FBM.freq_weight_conv_list.1.bias": (1,),
    "FBM.freq_weight_conv_list.2.weight": (1, 18, 3, 3),
    "FBM.freq_weight_conv_list.2.bias": (1,),
    "KSM_Local.conv.weight": (180, 1, 3),
    "KSM_Local.norm.weight": (18,),
    "KSM_Local.norm.bias": (18,),
}
# And of their linear layer, 24 to 20 features.
LINEAR = {
    "dft_weight": (1, 20, 13, 2),
    "bias": (20,),
    "KSM_Global.fc.weight": (16, 24),
    "KSM_Global.norm.weight": (16,),
    "KSM_Global.channel_fc.weight": (24, 16),
    "KSM_Global.channel_fc.bias": (24,),
    "KSM_Global.filter_fc.weight": (20, 16),
    "KSM_Global.filter_fc.bias": (20,),
    "KSM_Global.kernel_fc.weight": (4, 16),
    "KSM_Global.kernel_fc.bias": (4,),
    "local_conv.weight": (20, 1, 3),
}
# How the golden files, which are of no naming, call the parts.
GOLDEN_NAMES = (
    (r"KSM_Global\.bn\.running", "buffer.ksm_global.bn.running"),
    (r"KSM_Global\.relu", "param.ksm_global.star"),
    (r"KSM_Global\.(\w+)_fc", r"param.ksm_global.\1"),
    (r"KSM_Global", "param.ksm_global"),
    (r"KSM_Local|local(?=_conv)", "param.ksm_local"),
    (r"(?<=ksm_local)_conv", ".conv"),
    (r"FBM\.freq_weight_conv_list\.", "param.fbm.band"),
    (r"^(?=dft_weight|bias)", "param."),
)


def authors_state(names: dict[str, tuple[int, ...]], case: dict[str, Tensor]) -> dict[str, Tensor]:
    """The golden file's values by the authors' names."""
    state = {}
    for key, shape in names.items():
        place = key
        for pattern, name in GOLDEN_NAMES:
            place = re.sub(pattern, name, place)
        state[key] = torch.tensor(0) if key.endswith("tracked") else case[place].reshape(shape)
    return state


def layer(kind: str, **fields: Any) -> tuple[Any, dict[str, tuple[int, ...]], dict[str, Tensor]]:
    """A fresh layer of the golden file's sizes, the authors' names, and the file."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"mode": "spectral", "kernel_num": 4, "freq_order": "official", **fields}
    if kind == "linear":
        config = FdconvConfig(**{"ksm_norm": "rms", **settings})
        made: Any = FdLinear(nn.Linear(24, 20, dtype=torch.float64), config)
        return made.eval(), LINEAR, load_file(GOLDEN / "linear_variant_f64.safetensors")
    made = FdConv2d(nn.Conv2d(18, 20, 3, padding=1, dtype=torch.float64), FdconvConfig(**settings))
    return made.eval(), CONVOLUTION, load_file(GOLDEN / "conv3x3_eval_f64.safetensors")


@pytest.mark.parametrize("mode", ["spectral", "frozen_base"])
@pytest.mark.parametrize("kind", ["convolution", "linear"])
def test_authors_state_gives_the_authors_output(kind: str, mode: str) -> None:
    made, names, case = layer(kind, mode=mode)
    made.load_state_dict(authors_state(names, case))
    made.dynamic.groups.copy_(case["buffer.group_id"])  # theirs is not saved, and unstable between machines
    torch.testing.assert_close(made(case["input.x"]), case["output.y"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["convolution", "linear"])
def test_way_back_has_the_authors_names_shapes_and_values(kind: str) -> None:
    made, names, case = layer(kind)
    theirs = authors_state(names, case)
    made.load_state_dict(theirs)
    back = to_authors(made.state_dict())
    assert {key: tuple(tensor.shape) for key, tensor in back.items()} == names
    assert all(torch.equal(back[key], theirs[key]) for key in names)


def test_a_model_goes_to_the_authors_and_back(tmp_path: Path) -> None:
    def small(seed: int) -> Any:
        torch.manual_seed(seed)
        settings = {"kernel_num": 4, "freq_order": "official", "init_weights": False}
        sizes: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": (20, 24, 28, 32)}
        return timm.create_model("fdconv_resnet50", num_classes=5, fdconv=settings, **sizes).eval()

    source, again = small(0), small(1)
    theirs = to_authors(source.state_dict())
    assert not [key for key in theirs if "dynamic" in key]
    assert "layer4.0.conv2.FBM.freq_weight_conv_list.2.weight" in theirs
    torch.save({"state_dict": theirs}, tmp_path / "detector.pth")
    timm.models.load_checkpoint(again, str(tmp_path / "detector.pth"))  # strict
    for key, tensor in source.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    ours = {key: tensor for key, tensor in source.state_dict().items() if not key.endswith("groups")}
    assert from_authors(theirs).keys() == ours.keys()


def test_their_converted_plain_weights_load() -> None:
    made, _, case = layer("convolution")
    theirs = {"dft_weight": case["param.dft_weight"], "bias": case["param.bias"]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.load_state_dict(theirs)
    expected = nn.functional.conv2d(case["input.x"], made.dynamic.plain_weight(), case["param.bias"], padding=1)
    torch.testing.assert_close(made(case["input.x"]), expected)


def test_gains_for_groups_in_another_order_are_told() -> None:
    made, names, case = layer("convolution", freq_order="exact")
    with pytest.warns(UserWarning, match='freq_order="official"'):
        made.load_state_dict(authors_state(names, case))


@pytest.mark.parametrize(
    ("fields", "match"),
    [({"freq_order": "exact"}, 'freq_order="official"'), ({"ksm_norm": "layer"}, "'frozen', 'batch' or 'rms'")],
)
def test_layers_that_the_authors_do_not_have(fields: dict[str, Any], match: str) -> None:
    made, *_ = layer("convolution", **fields)
    with pytest.raises(ValueError, match=match):
        to_authors(made.state_dict())
