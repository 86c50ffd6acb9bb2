"""Two methods on one module: the second is refused before anything changes, whoever comes first, by any call."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from peft import PeftConfig, get_peft_model, inject_adapter_in_model
from torch import Tensor, nn

import vision_peft as vp

from .capabilities.case import state
from .tiny_unet import CONFIGS as ON_UNET
from .tiny_unet import adapted, move, run, unet

LORA = {"r": 2, "init_lora_weights": False}


class Block(nn.Module):
    """A residual block of two layers, the whole of which can be a target too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.fc1(x).relu())


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block(), nn.Linear(6, 3)).eval()


def x() -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


OURS: dict[str, Callable[..., PeftConfig]] = {
    "snell": lambda **fields: vp.SnellConfig(r=4, **fields),
    "ssf": vp.SsfConfig,
    "bitfit": vp.BitFitConfig,
    "full": vp.FullConfig,
    "sliced_lora": vp.SlicedLoraConfig,
    "adapter_plus": lambda **fields: vp.AdapterPlusConfig(r=2, **fields),
}
THEIRS: dict[str, Callable[..., PeftConfig]] = {
    "lora": lambda **fields: peft.LoraConfig(**LORA, **fields),
    "dora": lambda **fields: peft.LoraConfig(use_dora=True, **LORA, **fields),
    "loha": lambda **fields: peft.LoHaConfig(r=2, **fields),
    "ia3": lambda **fields: peft.IA3Config(feedforward_modules=[], **fields),
    "oft": lambda **fields: peft.OFTConfig(r=0, oft_block_size=2, **fields),
}
ATTACH: dict[str, Callable[[Any, PeftConfig, str], Any]] = {
    "get_peft_model": get_peft_model,
    "inject_adapter_in_model": lambda model, config, name: inject_adapter_in_model(config, model, name),
}
PAIRS = [
    *((first, second) for first in OURS for second in OURS if first != second),
    *((first, "lora") for first in OURS),
    *(("lora", second) for second in OURS),
    *(("snell", second) for second in THEIRS if second != "lora"),
    *((first, "snell") for first in THEIRS if first != "lora"),
]


def quietly(call: Callable[..., Any], *args: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*args)


def config(name: str, **fields: Any) -> PeftConfig:
    return {**OURS, **THEIRS}[name](**fields)


@pytest.mark.parametrize("call", ATTACH)
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_second_method_on_one_module_is_refused_and_changes_nothing(first: str, second: str, call: str) -> None:
    model = quietly(ATTACH[call], plain(), config(first, target_modules=["fc1"]), "one")
    before, output, configs = state(model), model(x()), dict(model.peft_config)
    # `fc2` alone could be adapted: it comes with the other or not at all.
    with pytest.raises(ValueError, match=r"0\.fc1' already carries an adapter of another method"):
        quietly(ATTACH[call], model, config(second, target_modules=["fc1", "fc2"]), "two")
    assert state(model) == before
    assert model.peft_config == configs
    assert torch.equal(model(x()), output)


@pytest.mark.parametrize(
    ("first", "second"), [("adapter_plus", "lora"), ("adapter_plus", "ssf"), ("adapter_plus", "snell")]
)
def test_method_inside_a_wrapped_block_is_refused_and_changes_nothing(first: str, second: str) -> None:
    """PEFT skips modules inside an adapted one: part of the targets would be missing without a word."""
    model = quietly(inject_adapter_in_model, config(first, target_modules=["0"]), plain(), "one")
    before = state(model)
    with pytest.raises(ValueError, match=r"0\.fc1' already carries an adapter of another method"):
        quietly(inject_adapter_in_model, config(second, target_modules=["fc1"]), model, "two")
    assert state(model) == before
    adapted = quietly(inject_adapter_in_model, config(second, target_modules=["1.fc1"]), model, "two")
    assert any(".two." in name or name.endswith(".two") for name, _ in adapted.named_parameters())


@pytest.mark.parametrize(("first", "second"), [("lora", "adapter_plus"), ("snell", "adapter_plus"), ("snell", "ssf")])
def test_block_around_an_adapted_module_is_refused_and_changes_nothing(first: str, second: str) -> None:
    model = quietly(inject_adapter_in_model, config(first, target_modules=["0.fc1"]), plain(), "one")
    before = state(model)
    with pytest.raises(ValueError, match=r"'0' already carries an adapter of another method"):
        quietly(inject_adapter_in_model, config(second, target_modules=["0"]), model, "two")
    assert state(model) == before


def test_second_adapter_of_a_method_inside_its_wrapped_block_is_refused() -> None:
    model = get_peft_model(plain(), config("adapter_plus", target_modules=["0"]), "one")
    before = state(model)
    with pytest.raises(ValueError, match=r"'0\.fc1' lies inside a module that an adapter of the same method wraps"):
        model.add_adapter("two", config("adapter_plus", target_modules=["0.fc1", "1"]))
    assert state(model) == before
    assert list(model.peft_config) == ["one"]


def test_regular_expression_that_spells_out_pefts_wrapper_is_refused_too() -> None:
    model = get_peft_model(plain(), config("snell", target_modules=["fc1"]), "one")
    before = state(model)
    with pytest.raises(ValueError, match=r"0\.fc1' already carries an adapter of another method"):
        quietly(get_peft_model, model, config("lora", target_modules=r"base_model\.model\.\d\.fc[12]"), "two")
    assert state(model) == before


def test_two_methods_with_raw_parameters_of_one_module_are_refused() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.position, self.body = nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(6)), Block()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x + self.token) * self.position

    model = Tokens()
    first = config("snell", target_modules=["fc1"], modules_to_save=["token"])
    inject_adapter_in_model(first, model, "one")
    before = state(model)
    second = config("ssf", target_modules=["fc2"], modules_to_save=["position"])
    with pytest.raises(ValueError, match=r"raw parameters beside 'position' already \(token\)"):
        inject_adapter_in_model(second, model, "two")
    assert state(model) == before


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copy_refuses_as_the_original_does(duplicate: Callable[[Any], Any]) -> None:
    model = duplicate(get_peft_model(plain(), config("snell", target_modules=["fc1"]), "one"))
    before = state(model)
    with pytest.raises(ValueError, match="already carries an adapter of another method"):
        quietly(get_peft_model, model, config("lora", target_modules=["fc1"]), "two")
    assert state(model) == before
    assert model.peft_config is model.base_model.model.peft_config


@pytest.mark.parametrize("leave", ["unload", "merge_and_unload"])
def test_refused_method_is_taken_once_the_first_is_gone(leave: str) -> None:
    model = get_peft_model(plain(), config("snell", target_modules=["fc1"]), "one")
    left = getattr(model, leave)()
    again = quietly(get_peft_model, left, config("lora", target_modules=["fc1"]), "two")
    assert [name for name, _ in again.named_parameters() if "lora_A" in name]


@pytest.mark.parametrize("name", sorted(ON_UNET))
@pytest.mark.parametrize("lora_first", [True, False])
def test_unet_with_lora_and_one_of_ours_on_one_module_stays_as_it_was(name: str, lora_first: bool) -> None:
    targets = {"adapter_plus": ["attn1.to_q", "to_v"]}.get(name, ["to_q", "to_out.0", "conv_shortcut"])
    lora = peft.LoraConfig(target_modules=targets, **LORA)
    if lora_first:
        model, second = unet(), ON_UNET[name]()
        model.add_adapter(lora, "one")
        move(model, "one")
    else:
        model, second = adapted(name), lora
    before, output = state(model), run(model)
    with pytest.raises(ValueError, match="already carries an adapter of another method"):
        model.add_adapter(second, "two")
    assert state(model) == before
    assert list(model.peft_config) == ["one"]
    assert torch.equal(run(model), output)
    model.delete_adapters("one")
    model.unload_lora()
    assert state(model)["modules"].keys() == state(unet())["modules"].keys()
    assert torch.equal(run(model), run(unet()))


@pytest.mark.parametrize(
    ("first", "second"), [("snell", "ssf"), ("ssf", "bitfit"), ("adapter_plus", "snell"), ("snell", "adapter_plus")]
)
def test_unet_with_two_of_ours_on_one_module_stays_as_it_was(first: str, second: str) -> None:
    model = adapted(first)
    before, output = state(model), run(model)
    with pytest.raises(ValueError, match="already carries an adapter of another method"):
        model.add_adapter(ON_UNET[second](), "two")
    assert state(model) == before
    assert torch.equal(run(model), output)
