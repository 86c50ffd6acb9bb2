"""What the bridge leans on inside PEFT, timm, diffusers, transformers and torch, beyond what they document.

After an upgrade this file fails first, and each failure says what breaks.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import peft
import pytest
import torch
from peft import PeftConfig, get_peft_model
from peft.tuners import tuners_utils
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn

import vision_peft as vp

# module: {name: what breaks without it}
NAMES = {
    "peft.mapping": {
        "PEFT_TYPE_TO_CONFIG_MAPPING": "registry.register: saved adapters are not recognised",
        "PEFT_TYPE_TO_TUNER_MAPPING": "registry.register: get_peft_model does not know our methods",
        "PEFT_TYPE_TO_PREFIX_MAPPING": "registry.register: our tensors are not saved",
    },
    "peft": {
        "MODEL_TYPE_TO_PEFT_MODEL_MAPPING": "attaching.attach: models with a task type",
        "get_peft_model_state_dict": "adapter_state: the keys a file must have",
        "set_peft_model_state_dict": "adapter_state: writing tensors into adapters",
        "inject_adapter_in_model": "attaching.attach and diffusers' add_adapter",
    },
    "peft.utils": {
        "CONFIG_NAME": "adapter_files: the name of the configuration's file",
        "SAFETENSORS_WEIGHTS_NAME": "adapter_files: the name of the tensors' file",
        "WEIGHTS_NAME": "adapter_files: the pickle that is refused by name",
    },
    "peft.utils.constants": {"DUMMY_TARGET_MODULES": "LinearProbeConfig: an adapter without layers"},
    "peft.utils.integrations": {"init_empty_weights": "tuner.inject_adapter: low_cpu_mem_usage of raw parameters"},
    "peft.utils.other": {
        "AuxiliaryTrainingWrapper": "targets.plain_modules: the head inside its wrapper",
        "ModulesToSaveWrapper": "LinearProbeConfig: a random start of the head",
    },
    "peft.tuners.boft.layer": {"BOFTLayer": "switching: a layer whose strength is always 1"},
    "peft.tuners.oft.layer": {"OFTLayer": "switching: a layer whose strength is always 1"},
    "peft.tuners.ln_tuning.layer": {"LNTuningLayer": "switching: a layer that runs one adapter at a time"},
    "peft.tuners.shira.mask_functions": {"random_mask": "peft_own: SHiRA's own draw, which takes minutes"},
    "peft.tuners.tuners_utils": {
        "cast_adapter_dtype": "attaching and loading: half-precision adapters in float32",
        "_ExcludedModule": "tuner._targets: exclude_modules",
        "check_adapters_to_merge": "reparam and tensors: merge",
        "check_target_module_exists": "tuner: PEFT's rule for target_modules",
    },
    "timm.models": {"build_model_with_cfg": "vit_mini", "register_model": "vit_mini", "load_state_dict": "merging"},
    "timm.models._registry": {"generate_default_cfgs": "vit_mini's pretrained_cfg"},
    "timm.data.dataset_factory": {"_TORCH_BASIC_DS": "data.timm_names: which data sets download themselves"},
    "diffusers.utils": {
        "scale_lora_layers": "cross_attention_kwargs={'scale': s}",
        "unscale_lora_layers": "cross_attention_kwargs={'scale': s}",
        "set_weights_and_activate_adapters": "set_adapters(names, weights)",
    },
    "torch.compiler": {"disable": "context.SideInputs under torch.compile"},
    "torch._C": {"_current_graph_task_id": "context.SideInputs: which backward pass recomputes"},
    "torch.utils.weak": {"WeakTensorKeyDictionary": "context.SideInputs: what a segment was called with"},
}
TUNER = {
    "_prepare_adapter_config": ["peft_config", "model_config"],
    "_check_target_module_exists": ["peft_config", "key"],
    "_create_and_replace": ["peft_config", "adapter_name", "target", "target_name", "parent", "current_key"],
    "_post_injection_hook": ["model", "config", "adapter_name"],
    "_replace_module": ["parent", "child_name", "new_module", "child"],
    "inject_adapter": ["model", "adapter_name", "autocast_adapter_dtype", "low_cpu_mem_usage", "state_dict"],
    "_check_merge_allowed": [],
    "_unload_and_optionally_merge": ["merge", "progressbar", "safe_merge", "adapter_names"],
    "merge_adapter": ["adapter_names", "safe_merge"],
    "delete_adapter": ["adapter_name"],
    "_cast_adapter_dtype": ["adapter_name", "autocast_adapter_dtype"],
    "_remove_adapter_name_from_key": ["key", "adapter_name"],
}
LAYER = {
    "set_adapter": ["adapter_names", "inference_mode"],
    "enable_adapters": ["enabled"],
    "delete_adapter": ["adapter_name"],
    "merge": ["safe_merge", "adapter_names"],
    "unmerge": [],
    "get_base_layer": [],
}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in NAMES.items() for name in names])
def test_name_is_there(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name), f"{module}.{name} is gone; breaks {NAMES[module][name]}"


def _parameters(owner: type, method: str) -> list[str]:
    return [name for name in inspect.signature(getattr(owner, method)).parameters if name not in ("self", "cls")]


@pytest.mark.parametrize(("owner", "method"), [(BaseTuner, m) for m in TUNER] + [(BaseTunerLayer, m) for m in LAYER])
def test_overridden_method_has_the_parameters_it_had(owner: type, method: str) -> None:
    expected = (TUNER if owner is BaseTuner else LAYER)[method]
    assert hasattr(owner, method), f"PEFT no longer calls {owner.__name__}.{method}: ours is dead code"
    found = _parameters(owner, method)
    assert found[: len(expected)] == expected, f"PEFT calls {owner.__name__}.{method} in another way"


def test_peft_is_the_release_this_was_written_for() -> None:
    assert peft.__version__.startswith("0.21."), "read PEFT's changes to tuners_utils before the pin moves"


def test_tuner_prepares_the_configuration_before_it_looks_for_targets() -> None:
    order = inspect.getsource(BaseTuner.inject_adapter)
    prepared, named = order.index("_prepare_adapter_config("), order.index("model.named_modules()")
    assert prepared < named, "default targets would be resolved too late"


def test_tuner_shares_the_dictionary_of_configurations_and_writes_it_before_the_model() -> None:
    source = inspect.getsource(BaseTuner.__init__)
    written, injected = (
        source.index("self.peft_config[adapter_name] = peft_config"),
        source.index("self.inject_adapter("),
    )
    assert written < injected, "collisions.GuardedConfigs would refuse too late"
    assert "self.peft_config.update(peft_config)" in source, "collisions.GuardedConfigs: get_peft_model on a PeftModel"
    assert "self.model.peft_config = self.peft_config" in source, "the model would not carry the guarded dictionary"


def test_tuner_skips_what_lies_inside_an_adapter_layer() -> None:
    source = inspect.getsource(BaseTuner.inject_adapter)
    assert "existing_adapter_prefixes" in source, "a second adapter would be put on the internals of the first"


def test_peft_asks_the_types_of_enumerations_by_value() -> None:
    config = vp.SsfConfig()
    assert config.peft_type.value == "SSF", "registry.register: peft_type as one-member enumeration"  # type: ignore[union-attr]
    assert isinstance(config, PeftConfig)


def test_layers_are_found_by_these_attributes() -> None:
    assert BaseTunerLayer.adapter_layer_names == (), "layer.AdapterLayer names its adapters here"
    assert "other_param_names" in vars(BaseTunerLayer), "scales would survive delete_adapter"
    for name in ("active_adapters", "merged", "disable_adapters", "weight", "bias"):
        assert isinstance(getattr(BaseTunerLayer, name), property), f"AdapterLayer reads the property {name}"
    for name in ("_disable_adapters", "_active_adapter", "merged_adapters"):
        assert name in inspect.getsource(BaseTunerLayer), f"AdapterLayer sets {name}, which PEFT reads no more"


def test_trained_modules_keep_the_original_beside_the_copies() -> None:
    wrapper = ModulesToSaveWrapper(nn.Linear(2, 2), "one")
    assert set(wrapper._modules) == {"original_module", "modules_to_save"}, "targets.plain_modules: the head's place"
    assert isinstance(wrapper._adapters, set), "attaching.all_or_nothing: undoing a head"
    assert isinstance(wrapper, AuxiliaryTrainingWrapper)


def test_model_with_adapters_is_wrapped_under_these_names() -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(2, 2)), vp.SsfConfig(target_modules=["0"]))
    keys = list(model.state_dict())
    assert all(key.startswith("base_model.model.0.") for key in keys), "loading: keys of saved files"
    assert isinstance(model.base_model, BaseTuner), "loading: the tuner under a PeftModel"


def test_rule_for_targets_takes_suffixes_and_whole_regular_expressions() -> None:
    check: Any = tuners_utils.check_target_module_exists
    config = vp.SsfConfig(target_modules=["qkv"])
    assert check(config, "blocks.0.attn.qkv"), "a name is a suffix"
    assert not check(config, "blocks.0.attn.xqkv")
    assert not check(vp.SsfConfig(target_modules="qkv"), "attn.qkv"), "a string is a whole regular expression"


@pytest.mark.parametrize("names", [("in_proj_weight", "_qkv_same_embed_dim"), ("out_proj",)])
def test_attention_module_has_these_parts(names: tuple[str, ...]) -> None:
    attention = nn.MultiheadAttention(4, 2)
    assert all(hasattr(attention, name) for name in names), "reparam: nn.MultiheadAttention as a target"


def test_fused_encoder_layer_is_left_for_these_reasons() -> None:
    source = inspect.getsource(nn.TransformerEncoderLayer.forward)
    assert "self.self_attn._qkv_same_embed_dim" in source, "reparam: adapted attention inside an encoder layer"
    assert '"_forward_pre_hooks"' in source, "feature: adapters inside an encoder layer would be passed over"


def test_hooks_are_found_by_these_attributes() -> None:
    module = nn.Linear(1, 1)
    module.register_forward_hook(lambda *_: None, always_call=True)
    assert list(module._forward_hooks) == list(module._forward_hooks_always_called), "tensors.detach, TapLayer.detach"
    assert isinstance(module._forward_pre_hooks, dict), "tensors.detach, feature"


def test_frozen_ops_find_the_stock_convolution() -> None:
    assert hasattr(nn.Conv2d, "_conv_forward"), "calls: a convolution with another weight"


def test_compiler_takes_a_marked_function_for_a_constant() -> None:
    before = {name for name in vars(_constant) if name.startswith("_dynamo")}
    torch.compiler.assume_constant_result(_constant)
    added = {name for name in vars(_constant) if name.startswith("_dynamo")} - before
    assert added == {"_dynamo_marked_constant"}, "ops.kernel_delta.passes: the graph breaks at the number of threads"


def _constant() -> int:
    return 1


def test_timm_tells_classifier_and_family() -> None:
    timm = importlib.import_module("timm")
    model = timm.create_model("vit_tiny_patch16_224", embed_dim=12, num_heads=2, depth=1)
    assert model.pretrained_cfg["classifier"] == "head", "targets.head_names"
    assert model.pretrained_cfg["architecture"] == "vit_tiny_patch16_224", "targets.model_name"
    assert {"norm2", "drop_path2", "attn", "mlp"} <= set(model.blocks[0]._modules), "AdapterPlusConfig(position='pre')"
    for name in ("forward_features", "forward_head", "forward_intermediates"):
        assert hasattr(type(model), name), f"tensors: raw parameters where {name} is called by itself"


def test_diffusers_weighs_layers_by_these_calls() -> None:
    utils = importlib.import_module("diffusers.utils.peft_utils")
    source = inspect.getsource(utils)
    for name in ("set_scale", "scale_layer", "unscale_layer"):
        assert f".{name}(" in source, f"diffusers weighs adapters in another way than by {name}"


def test_transformers_wraps_timm_under_this_name() -> None:
    wrapper = importlib.import_module("transformers").TimmWrapperForImageClassification
    assert "self.timm_model" in inspect.getsource(wrapper.__init__), "default targets inside transformers' wrapper"
