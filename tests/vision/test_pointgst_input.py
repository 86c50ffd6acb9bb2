"""PointGST on bad settings and on clouds of few points, of one point, without extent: refused, or given a meaning."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from peft import get_peft_model
from torch import Tensor

from vision_peft import PointGstConfig, cloud_spectra
from vision_peft.methods.pointgst.spectra import Basis

from .tiny_clouds import adapted, clouds, tiny


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 0}, "r must be an integer >= 1"),
        ({"local_size": 0}, "local_size must be an integer >= 1"),
        ({"local_sizes": []}, "local_sizes must be different integers >= 1, at least one"),
        ({"local_sizes": [16, 16]}, r"different integers >= 1, at least one; found \[16, 16\]"),
        ({"local_sizes": 16}, "different integers >= 1, at least one; found 16"),
        ({"branches": "globl"}, "global"),
        ({"frozen_norm": "trian"}, "did you mean 'train'"),
        ({"degree_eps": 0.0}, "degree_eps must be above 0"),
    ],
)
def test_wrong_fields_are_told(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PointGstConfig(**fields)


def test_a_graph_of_too_many_patches_suggests_local_ones() -> None:
    centers = clouds(1, 1056)
    with pytest.raises(ValueError, match=r"all 1056 patches .* PointGstConfig\(branches='local'\)"):
        cloud_spectra(centers)
    assert cloud_spectra(centers, Basis(whole=False)).local[0].shape == (1, 33, 32, 32)


@pytest.mark.parametrize(
    "cloud",
    [
        torch.zeros(40, 3),
        torch.rand(5, 3, generator=torch.Generator().manual_seed(3)).repeat(8, 1),
        torch.linspace(-1, 1, 40)[:, None] * torch.tensor([1.0, 0.0, 0.0]),
        torch.cat([torch.rand(40, 2, generator=torch.Generator().manual_seed(4)), torch.zeros(40, 1)], 1),
    ],
    ids=["one point", "duplicates", "line", "plane"],
)
def test_degenerate_clouds_give_finite_logits(cloud: Tensor) -> None:
    model, x = adapted(), cloud[None]
    assert torch.isfinite(model(x)).all()
    torch.testing.assert_close(model(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.rand(1, 7, 3), "number of points, 7; found 8"),
        (torch.rand(1, 40, 2), r"\[B, N, 3\]; found \[1, 40, 2\]"),
        (torch.full((2, 40, 3), torch.nan), "finite; cloud 0 has 40 points"),
        (torch.rand(1, 0, 3), "at least one point"),
    ],
    ids=["too few", "wrong dimensions", "NaN", "empty"],
)
def test_bad_clouds_are_refused(points: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapted()(points)


def test_a_size_that_does_not_divide_is_refused_before_anything_changes() -> None:
    model = tiny()
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(
        ValueError, match=r"local_size must divide the number of patches, 8; found 3\. These do: 2, 4, 8"
    ):
        get_peft_model(model, PointGstConfig(local_size=3))  # type: ignore[arg-type]
    assert [name for name, _ in model.named_modules()] == before


def test_a_block_called_by_itself_has_no_cloud() -> None:
    model: Any = adapted().get_base_model()
    with pytest.raises(ValueError, match=r"found none: expected a call of the model or its `forward_features`"):
        model.blocks(*model.embed(clouds()))


def test_models_of_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="centres of a point transformer's patches"):
        get_peft_model(timm.create_model("vit_mini"), PointGstConfig())  # type: ignore[arg-type]
