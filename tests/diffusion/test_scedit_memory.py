"""The encoder's backward pass does not exist under SCEdit: nothing of it is in the graph, and nothing of it is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn

import diffusion_peft as dp
from peft_kernels.frozen import remember_inputs

from .true_configs import small

BLOCKS = {"block_out_channels": (16, 32, 32, 32), "layers_per_block": 2, "sample_size": 16}


def unet(**settings: Any) -> Any:
    return small("sd15", **{**BLOCKS, **settings}).train()


def loss(model: Any, text: Tensor | None = None) -> Tensor:
    text = torch.randn(2, 5, 12) if text is None else text
    return model(torch.randn(2, 4, 16, 16), torch.tensor([3, 7]), text).sample.square().mean()


def kept(run: Callable[[], Tensor], model: nn.Module) -> dict[int, int]:
    """Bytes of the storages that the graph keeps for backward, by place; those of parameters excepted."""
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = run()
    assert graph.requires_grad
    for parameter in model.parameters():
        held.pop(parameter.untyped_storage().data_ptr(), None)
    return held


@pytest.mark.parametrize("control", [False, True])
def test_no_activation_of_the_encoder_is_kept(control: bool) -> None:
    model = unet()
    dp.add_adapter(model, dp.SceditConfig(control=control, pre_dim_ratio=0.25))
    made: list[Tensor] = []  # stays alive, so that no other tensor comes to lie in the same place

    def note(module: nn.Module, args: Any, output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        made.extend(t for t in outputs if isinstance(t, Tensor))

    for part in (model.conv_in, model.down_blocks, model.mid_block):
        for module in part.modules():
            if "scedit" not in type(module).__module__ and not any(module is m for m in encoders(model)):
                module.register_forward_hook(note)
    image = torch.rand(1, 3, 128, 128)

    def run() -> Tensor:
        if not control:
            return loss(model)
        with dp.condition_on(model, image):
            return loss(model)

    held = kept(run, model)
    assert len(made) > 100
    assert not any(tensor.requires_grad for tensor in made)
    assert not held.keys() & {tensor.untyped_storage().data_ptr() for tensor in made}


def encoders(model: nn.Module) -> list[nn.Module]:
    """The modules of condition encoders: they are trained, and stand beside the first convolution."""
    return [m for name, m in model.named_modules() if ".scedit_adapter." in name]


def test_it_holds_about_half_of_what_lora_on_attention_holds() -> None:
    edited, forgetless, lora = unet(), unet(), unet()
    for model in (edited, forgetless):
        dp.add_adapter(model, dp.SceditConfig())
    remember_inputs(forgetless.modules())
    dp.add_adapter(lora, LoraConfig(r=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    held = [sum(kept(lambda model=model: loss(model), model).values()) for model in (edited, forgetless, lora)]
    assert held[0] <= 0.55 * held[2]
    assert held[1] <= 0.7 * held[2]
    assert held[0] < 0.9 * held[1]


def test_it_warns_when_something_before_the_skips_requires_a_gradient() -> None:
    model = unet()
    dp.add_adapter(model, dp.SceditConfig(skip_indices=[3, 5]))
    with pytest.warns(UserWarning, match="the encoder is part of the graph"):
        loss(model, torch.randn(2, 5, 12, requires_grad=True)).backward()


@pytest.mark.filterwarnings("error:the encoder is part of the graph")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_does_not_warn_otherwise(checkpointing: bool) -> None:
    model = unet()
    dp.add_adapter(model, dp.SceditConfig())
    if checkpointing:
        model.enable_gradient_checkpointing()
    loss(model).backward()
    loss(model).backward()
    model.eval()
    loss(model, torch.randn(2, 5, 12, requires_grad=True)).backward()


def test_convolutions_forget_their_input_only_while_they_are_frozen_and_the_tuner_stands() -> None:
    model = unet()
    kinds = [type(module) for module in model.modules()]
    dp.add_adapter(model, dp.SceditConfig())
    forgetful = [name for name, m in model.named_modules() if type(m).__mro__[1].__name__ == "Forgetful"]
    decoder = (
        n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and n.startswith(("up_blocks", "conv_out"))
    )
    assert forgetful == list(decoder)
    model.requires_grad_(True)
    loss(model).backward()
    assert all(p.grad is not None for name in forgetful for p in model.get_submodule(name).parameters())
    dp.delete_adapters(model, "default")
    assert [type(module) for module in model.modules()] == kinds
