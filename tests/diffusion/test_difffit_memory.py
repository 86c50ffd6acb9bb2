"""What a block with DiffFit keeps for the backward pass, and that no weight's gradient is formed."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import diffusion_peft as dp
from diffusion_peft.methods.difffit.perceptron import remember_hidden
from tests.golden.cases.dit_modules import DiTBlock

from .difffit_models import attach, move

WIDTH, HEADS, TOKENS, BATCH = 64, 4, 100, 2
OUTPUTS = {
    "DiT": {"attn_out": r"attn\.proj", "ffn_out": r"mlp\.fc2"},
    "diffusers": {"attn_out": r"attn1\.to_out\.0", "ffn_out": r"ff\.net\.2"},
}
HEADS_OF = {
    "DiT": {"q": "attn.qkv[q]", "k": "attn.qkv[k]", "v": "attn.qkv[v]", "ffn_hidden": r"mlp\.fc1"},
    "diffusers": {"q": r"attn1\.to_q", "k": r"attn1\.to_k", "v": r"attn1\.to_v", "ffn_hidden": r"ff\.net\.0\.proj"},
}


def block(form: str) -> nn.Module:
    torch.manual_seed(0)
    if form == "DiT":
        return DiTBlock(WIDTH, HEADS, 4 * WIDTH)
    return BasicTransformerBlock(
        WIDTH, HEADS, WIDTH // HEADS, num_embeds_ada_norm=10, attention_bias=True, norm_elementwise_affine=False,
        norm_type="ada_norm_zero", activation_fn="gelu-approximate",
    )  # fmt: skip


def inputs(form: str) -> dict[str, Any]:
    x = torch.randn(BATCH, TOKENS, WIDTH, requires_grad=True)
    if form == "DiT":
        return {"x": x, "c": torch.randn(BATCH, WIDTH)}
    return {"hidden_states": x, "timestep": torch.tensor([3, 7]), "class_labels": torch.tensor([1, 2])}


def adapted(form: str, **fields: Any) -> nn.Module:
    model = attach(block(form), dp.DiffFitConfig(**fields))
    move(model)
    return model.train()


def kept(model: nn.Module, call: Callable[[], Tensor]) -> int:
    """Bytes of activations that a forward pass leaves for the backward pass, each memory counted once."""
    standing = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in standing:
            saved[memory.data_ptr()] = memory.nbytes()
        return tensor

    alive = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive.append(call())
    return sum(saved.values())


def kept_by(form: str, **fields: Any) -> int:
    model, given = adapted(form, **fields), inputs(form)
    return kept(model, lambda: model(**given))


@pytest.mark.parametrize("form", ["DiT", "diffusers"])
def test_factors_of_the_branches_cost_no_memory(form: str) -> None:
    biases = kept_by(form, gamma_sites=[])
    with_factors = kept_by(form, gamma_modules=OUTPUTS[form])
    assert biases > 10 * 4 * BATCH * TOKENS * WIDTH  # both are counted
    assert with_factors <= 1.01 * biases


@pytest.mark.parametrize("form", ["DiT", "diffusers"])
def test_factors_of_projections_cost_no_memory(form: str) -> None:
    biases = kept_by(form, gamma_sites=[])
    assert kept_by(form, gamma_modules={**OUTPUTS[form], **HEADS_OF[form]}) <= 1.02 * biases


@pytest.mark.parametrize(
    "fields", [{"gamma_sites": []}, {"gamma_modules": {**OUTPUTS["diffusers"], **HEADS_OF["diffusers"]}}]
)
def test_nothing_of_a_perceptrons_hidden_width_is_kept(fields: dict[str, Any]) -> None:
    model, given = adapted("diffusers", **fields), inputs("diffusers")
    without = kept(model, lambda: model(**given))
    remember_hidden(model.base_model.model.ff)  # type: ignore[union-attr,arg-type]
    stock = kept(model, lambda: model(**given))
    width = 4 * BATCH * TOKENS * WIDTH
    assert stock - without > 2.9 * width  # four of them, for the perceptron's input and its bias


@pytest.mark.parametrize("how", ["merged", "deleted", "dropped"])
def test_perceptrons_are_stock_ones_once_the_adapter_is_off(how: str) -> None:
    model: Any = block("diffusers")
    perceptron: Any = model.ff
    config = dp.DiffFitConfig(gamma_modules=OUTPUTS["diffusers"])
    adapted_model: Any = attach(model, config) if how == "merged" else dp.add_adapter(model, config)
    assert type(perceptron) is not FeedForward
    assert issubclass(type(perceptron), FeedForward)
    if how == "merged":
        adapted_model.merge_and_unload()
    elif how == "deleted":
        dp.delete_adapters(model, "default")
    else:  # as diffusers' `unload_lora` does, which tells no layer
        perceptron.net[0].proj, perceptron.net[2] = perceptron.net[0].proj.base_layer, perceptron.net[2].base_layer
        gc.collect()
    assert type(perceptron) is FeedForward


@pytest.mark.parametrize("form", ["DiT", "diffusers"])
def test_full_fine_tuning_keeps_more(form: str) -> None:
    model, given = block(form).train(), inputs(form)
    assert kept(model, lambda: model(**given)) > 1.3 * kept_by(form, gamma_modules=OUTPUTS[form])


class _Shapes(TorchDispatchMode):
    """Shapes of the tensors that are made, views of the parameters left out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.made: set[tuple[int, ...]] = set()
        self.standing = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.standing:
                self.made.add(tuple(tensor.shape))
        return found


@pytest.mark.parametrize("form", ["DiT", "diffusers"])
def test_no_tensor_of_a_weights_shape_is_made(form: str) -> None:
    model, given = adapted(form, gamma_modules={**OUTPUTS[form], **HEADS_OF[form]}), inputs(form)
    with _Shapes(model) as shapes:
        model(**given).square().sum().backward()
    weights = {tuple(p.shape) for p in block(form).parameters() if p.ndim == 2 and 11 not in p.shape}
    assert (BATCH, TOKENS, WIDTH) in shapes.made
    assert shapes.made & {*weights, *(shape[::-1] for shape in weights)} == set()
