"""Small point transformers and clouds, and what is asked of every method on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from vision_peft import PointGstConfig

TINY: dict[str, Any] = {"num_groups": 8, "group_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 3}


def clouds(count: int = 3, points: int = 40, seed: int = 0) -> Tensor:
    return torch.rand(count, points, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def tiny(name: str = "point_mae") -> Any:
    torch.manual_seed(1)
    return timm.create_model(name, **TINY).eval()


def adapted(name: str = "point_mae", start: bool = False, **fields: Any) -> PeftModel:
    torch.manual_seed(2)
    config = PointGstConfig(**{"r": 4, "local_size": 4, "init_weights": start, **fields})
    return get_peft_model(tiny(name), config).eval()  # type: ignore[arg-type,return-value]


def parts() -> Any:
    torch.manual_seed(1)
    return timm.create_model("point_mae_parts", **{**TINY, "num_classes": 50}, levels=(0, 1)).eval()


def checkpointing_changes_no_gradient(make: Callable[[], Any]) -> None:
    """Assert it of two passes on other clouds and one backward pass of the model that ``make`` makes."""

    def gradients(checkpointed: bool) -> list[Tensor]:
        model = make()
        model.get_base_model().set_grad_checkpointing(checkpointed)
        (model(clouds(seed=1)).square().sum() + model(clouds(seed=2)).sum()).backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    plain, again = gradients(False), gradients(True)
    assert len(plain) == len(again) > 0
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other)


def after_a_step(model: Any) -> Any:
    """The model after a step of training, in evaluation."""
    optimizer = torch.optim.SGD([p for p in model.train().parameters() if p.requires_grad], lr=0.1)
    model(clouds()).square().sum().backward()
    optimizer.step()
    return model.eval()
