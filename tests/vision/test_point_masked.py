"""Masked modelling of clouds: its parameters, what it hides, and that its encoder fills a classifier."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peft_kernels.ops.point_sets import chamfer_distance
from vision_peft import load_point_checkpoint
from vision_peft.models.point_masked import MaskedPoints

from .tiny_clouds import clouds, tiny

SMALL: dict[str, Any] = {"num_groups": 8, "group_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}


def masked(**settings: Any) -> MaskedPoints:
    torch.manual_seed(0)
    return MaskedPoints(decoder_depth=1, **{**SMALL, **settings}).eval()


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(4)


def test_parameters_of_the_official_model() -> None:
    with torch.device("meta"):
        model = MaskedPoints()
    assert sum(p.numel() for p in model.parameters()) == 29_006_432
    assert sum(p.numel() for p in model.MAE_encoder.parameters()) == 21_825_024
    assert len(model.state_dict()) == 209
    assert model.hidden == 38


def test_chamfer_distance_by_hand() -> None:
    x = torch.tensor([[[0.0, 0, 0], [1, 0, 0]]])
    y = torch.tensor([[[0.0, 0, 0], [3, 0, 0], [0, 1, 0]]])
    assert chamfer_distance(x, y).tolist() == pytest.approx([(0 + 1) / 2 + (0 + 4 + 1) / 3])
    assert chamfer_distance(x, x).tolist() == [0]
    with pytest.raises(ValueError, match="pairs of clouds"):
        chamfer_distance(x, y[..., :2])


def test_what_is_hidden_does_not_reach_the_encoder() -> None:
    model, x = masked(), clouds(1)
    _, hidden = model.rebuilt(x, generator())
    seen: list[torch.Tensor] = []
    model.MAE_encoder.encoder.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    model(x, generator())
    shown = {tuple(patch.flatten().tolist()) for patch in seen[0][0]}
    assert len(shown) == 4
    assert not shown & {tuple(patch.flatten().tolist()) for patch in hidden[0]}


def test_all_of_it_learns() -> None:
    model = masked().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = model(clouds(), generator()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    assert losses[-1] < 0.5 * losses[0]


def test_the_encoder_fills_a_classifier() -> None:
    state = masked().state_dict()
    report = load_point_checkpoint(model := tiny(), state)
    assert all(name.startswith("cls_") for name in report.fresh)
    torch.testing.assert_close(model.norm.weight, state["MAE_encoder.norm.weight"], rtol=0, atol=0)


@pytest.mark.parametrize("ratio", [0.05, 1.0])
def test_nothing_or_all_hidden_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=f"some of the 8 patches and leave some; found {ratio}"):
        masked(mask_ratio=ratio)
