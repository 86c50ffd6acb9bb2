"""`inspect --figure` draws what FDConv does to a picture, and `respond` tells it in numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from peft import get_peft_model
from PIL import Image
from safetensors.torch import save_file

from tests.runs.command import here
from vision_peft import FdconvConfig, SsfConfig
from vision_peft.methods.fdconv.inspection import respond

MODEL = "test_resnet"
LAYER = "layer2.0.conv1"
TARGETS = ["layer1.0.conv1", LAYER]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model, a picture, and adapters of two methods."""
    root = tmp_path_factory.mktemp("fdconv")
    torch.manual_seed(0)
    base = timm.create_model(MODEL, num_classes=4)
    save_file(base.state_dict(), root / "base.safetensors")
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "picture.png")
    config = FdconvConfig(target_modules=TARGETS, kernel_num=8, init_weights=False)
    model = get_peft_model(base, config)  # type: ignore[arg-type]
    model.save_pretrained(str(root / "adapter"))
    other = get_peft_model(timm.create_model(MODEL, num_classes=4), SsfConfig())  # type: ignore[arg-type]
    other.save_pretrained(str(root / "ssf"))
    return root


def test_figure_of_a_picture(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--image", adapter / "picture.png", "--model", MODEL, "--checkpoint", adapter / "base.safetensors")
    drawn = []
    for layer in TARGETS:
        out = tmp_path / f"{layer}.png"
        code, said, error = here(capsys, "inspect", adapter / "adapter", "--figure", out, "--layer", layer, *words)
        assert (code, error) == (0, "")
        assert said == f"wrote {out} (maps of {layer})\n"
        drawn.append(np.asarray(Image.open(out).convert("RGB")))
    assert min(drawn[0].shape[:2]) > 300
    assert drawn[0].std() > 5  # not an empty sheet
    assert not np.array_equal(*drawn)
    code, _, error = here(capsys, "inspect", adapter / "adapter", "--figure", out, "--layer", "layer2.0.conv", *words)
    assert code != 0
    assert f"did you mean {LAYER!r}" in error


@pytest.mark.parametrize(
    ("folder", "words", "message"),
    [
        ("adapter", ("--figure", "figure.png"), "add --image"),
        ("adapter", ("--figure", "figure.svg", "--image", __file__), "must name a .png file; found figure.svg"),
        ("adapter", ("--figure", "figure.png", "--image", "none.png"), "there is no picture none.png"),
        ("adapter", ("--image", __file__), "add --figure"),
        ("ssf", ("--figure", "figure.png", "--image", __file__), "draws the frequencies of FDConv"),
    ],
)
def test_figures_that_cannot_be_drawn(
    folder: str, words: tuple[str, ...], message: str, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, error = here(capsys, "inspect", adapter / folder, *words)
    assert code != 0
    assert message in error
    assert not Path("figure.png").exists()


def test_gains_and_maps_are_the_ones_of_the_forward_pass() -> None:
    torch.manual_seed(0)
    settings = {"kernel_num": 4, "mode": "spectral"}
    model = timm.create_model("fdconv_resnet18", fdconv=settings, layers=(1, 1, 1, 1), channels=(20, 24, 28, 32)).eval()
    layers = dict(model.named_modules())
    pictures = torch.randn(2, 3, 32, 32)
    at_start = respond(model, pictures)
    assert list(at_start.gains) == [f"layer{i}.0.conv{j}" for i in (1, 2, 3, 4) for j in (1, 2)]
    assert all((gains == 1).all() and gains.shape == (2, 4) for gains in at_start.gains.values())
    assert all((maps == 1).all() for maps in at_start.maps.values())
    assert at_start.maps["layer1.0.conv2"].shape == (2, 3, 1, 8, 8)
    assert at_start.cuts["layer1.0.conv2"] == [0.25, 0.125, 0.0625]
    with torch.no_grad():
        layers["layer1.0.conv2"].dynamic.ksm_global.kernel.bias[3] = 50  # type: ignore[union-attr, index]
        layers["layer1.0.conv2"].dynamic.fbm.bias[1] = -50  # type: ignore[union-attr, index]
    changed = respond(model, pictures)
    assert changed.gains["layer1.0.conv2"].tolist() == [[1, 1, 1, 2]] * 2
    assert changed.maps["layer1.0.conv2"].mean((0, 2, 3, 4)).tolist() == pytest.approx([1, 0, 1])
    assert not [hook for module in layers.values() for hook in module._forward_hooks]


def test_a_model_without_fdconv_is_refused() -> None:
    with pytest.raises(ValueError, match="has no FDConv layer"):
        respond(torch.nn.Linear(2, 2), torch.zeros(1, 2))
