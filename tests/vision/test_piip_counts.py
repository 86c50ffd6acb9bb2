"""Parameters and multiplications of the published pyramids, to the digits, without memory."""

from typing import Any

import pytest
import timm
import torch

from vision_peft.models.piip import macs

DETECTION: dict[str, Any] = {"output": "merged", "class_token": False, "branch_args": {"init_values": 1.0}}
TSB, SBL = "piip_vit_tsb", "piip_vit_sbl_384"


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def created(name: str, **settings: Any) -> Any:
    with torch.device("meta"):
        return timm.create_model(name, **settings)


@pytest.mark.parametrize(
    ("name", "total", "branches", "interactions", "giga"),
    [
        (TSB, 144_031_416, [86_483_944, 22_039_528, 5_785_768], 29_722_176, 17.43),
        ("piip_vit_sbl_320", 488_795_832, [304_162_792, 86_493_928, 22_129_000], 76_010_112, 39.02),
        (SBL, 488_925_880, [304_191_464, 86_527_720, 22_196_584], 76_010_112, 61.19),
    ],
)
def test_classification(name, total, branches, interactions, giga):
    model = created(name)
    assert count(model) == total
    assert [count(each.model) for each in model.views()] == branches
    assert count(model.interactions) == interactions
    assert round(macs(model)["total"] / 1e9, 2) == giga


@pytest.mark.parametrize(("name", "total"), [(TSB, 143_901_931), (SBL, 488_959_723)])
def test_a_merged_head_instead_of_separate_ones(name, total):
    assert count(created(name, output="merged")) == total


@pytest.mark.parametrize(
    ("name", "sizes", "total"),
    [
        (TSB, (448, 896, 1120), 146_441_707),
        (TSB, (448, 896, 1568), 147_344_875),
        (TSB, (672, 1120, 1568), 148_774_891),
        (SBL, (448, 672, 1120), 492_674_027),
        (SBL, (448, 896, 1344), 494_555_627),
        (SBL, (672, 896, 1568), 496_537_579),
        ("piip_vit_tsbl", (448, 672, 896, 1344), 505_559_532),
        ("piip_vit_tsbl", (448, 672, 1120, 1568), 506_726_124),
        ("piip_vit_tsbl", (448, 1120, 1568, 1792), 511_505_388),
    ],
)
def test_detection(name, sizes, total):
    assert count(created(name, sizes=sizes, **DETECTION)) == total


def test_counting_leaves_a_model_as_it_was():
    model: Any = timm.create_model("resnet10t").train()
    model.layer1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert macs(model, size=(32, 32))["bn1"] == 2 * 64 * 16 * 16
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not model.layer1.training
    assert model.layer2.training
