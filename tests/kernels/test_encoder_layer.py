"""`nn.TransformerEncoderLayer` in evaluation reads its children's tensors instead of calling them (a fused kernel)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from vision_peft.methods.snell import SnellConfig

from .capabilities.layers import LAYERS
from .capabilities.methods import METHODS

TARGETS = {"Linear": ["linear1", "linear2"], "LayerNorm": ["norm1", "norm2"], "MultiheadAttention": ["self_attn"]}
OWN = [method for method in METHODS.values() if method.own and method.name != "linear_probe"]
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
    with torch.no_grad():
        before = base(x())
        model = get_peft_model(base, method.config_class(**{"target_modules": TARGETS[layer], **fields}))
        evaluated, trained = model.eval()(x()), model.train()(x())
        torch.testing.assert_close(evaluated, trained, rtol=1e-4, atol=1e-5)
        assert (evaluated - before).abs().max() > 0.01
        with model.eval().disable_adapter():
            assert torch.equal(model(x()), before)
        assert torch.equal(model(x()), evaluated)


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
