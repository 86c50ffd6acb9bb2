"""`nn.TransformerEncoderLayer` in evaluation reads its children's tensors instead of calling them (a fused kernel)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

import vision_peft as vp
from vision_peft.methods.snell import SnellConfig

from .capabilities.layers import LAYERS
from .capabilities.methods import METHODS

TARGETS = {"Linear": ["linear1", "linear2"], "LayerNorm": ["norm1", "norm2"], "MultiheadAttention": ["self_attn"]}
# SPT's plan names the model's own tensors, not layers by type: it has a test of its own. SCEdit wants a UNet's skips.
OWN = [method for method in METHODS.values() if method.own and method.name not in ("linear_probe", "spt", "scedit")]
CASES = [(method.name, layer) for method in OWN for layer in TARGETS if method.lack("attach", LAYERS[layer]) is None]


def encoder(norm_first: bool = False) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


def x() -> Tensor:
    return torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize(("name", "layer"), CASES)
def test_evaluation_gives_what_training_gives(name: str, layer: str, norm_first: bool) -> None:
    base = encoder(norm_first)
    method = METHODS[name]
    fields: dict[str, Any] = {**method.settings, "init_weights": False, "modules_to_save": []}
    if name == "sara":
        fields["threshold"] = 0.1  # of these weights that selects some
    with torch.no_grad():
        before = base(x())
        model = get_peft_model(base, method.config_class(**{"target_modules": TARGETS[layer], **fields}))
        evaluated, trained = model.eval()(x()), model.train()(x())
        torch.testing.assert_close(evaluated, trained, rtol=1e-4, atol=1e-5)
        assert (evaluated - before).abs().max() > 0.01
        with model.eval().disable_adapter():
            assert torch.equal(model(x()), before)
        assert torch.equal(model(x()), evaluated)


def test_spt_in_evaluation_gives_what_training_gives() -> None:
    base = encoder()
    with torch.no_grad():
        before = base(x())
    plan = vp.spt_config(
        base, [x()], lambda model, batch: model(batch).square().mean(),
        budget=0.3, budget_rule="at_most", rank=2, scoring_mode="eval", module_dropout=0.0, module_drop_path=0.0,
    )  # fmt: skip
    model = get_peft_model(base, plan)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
        evaluated, trained = model.eval()(x()), model.train()(x())
        torch.testing.assert_close(evaluated, trained, rtol=1e-4, atol=1e-5)
        assert (evaluated - before).abs().max() > 0.01


def test_the_fused_kernel_runs_where_no_child_is_adapted() -> None:
    """With adapted weights the kernel still runs, on the effective tensors: the norms are read and not called."""
    called: list[int] = []
    base = encoder()
    model = get_peft_model(base, SnellConfig(r=4, target_modules=["layers.0.linear1"], modules_to_save=[]))
    forward = nn.LayerNorm.forward
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.forward = lambda input, m=module: called.append(1) or forward(m, input)
    with torch.no_grad():
        model.eval()(x())
    assert not called
