"""No method's prefix is part of another's, or of a name in a base model: PEFT would save and delete the wrong ones."""

from __future__ import annotations

from functools import cache
from itertools import permutations

import diffusers
import pytest
import timm
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
from torch import nn

from peft_kernels.config import MethodConfig
from peft_kernels.registry import methods
from peft_kernels.tensors import CHILD

methods()  # registers them
OURS = {
    str(kind.value): PEFT_TYPE_TO_PREFIX_MAPPING[kind]
    for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    if issubclass(config, MethodConfig)
}
TIMM = [  # one of each family
    "bat_resnext26ts",
    "beit_base_patch16_224",
    "botnet26t_256",
    "caformer_s18",
    "cait_xxs24_224",
    "coat_lite_tiny",
    "coatnet_0_rw_224",
    "convformer_s18",
    "convit_tiny",
    "convmixer_768_32",
    "convnext_atto",
    "convnextv2_atto",
    "crossvit_9_240",
    "cs3darknet_s",
    "cspresnet50",
    "davit_tiny",
    "deit3_small_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "densenet121",
    "dla34",
    "dm_nfnet_f0",
    "dpn68",
    "eca_nfnet_l0",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "efficientnet_b0",
    "efficientvit_b0",
    "eva02_tiny_patch14_224",
    "fastvit_t8",
    "focalnet_tiny_srf",
    "gcvit_xxtiny",
    "ghostnet_100",
    "halonet26t",
    "hgnet_tiny",
    "hiera_tiny_224",
    "hrnet_w18_small",
    "inception_v3",
    "lambda_resnet26t",
    "levit_128s",
    "maxvit_rmlp_pico_rw_256",
    "mixer_s32_224",
    "mobilenetv3_small_050",
    "mobileone_s0",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "mvitv2_tiny",
    "nest_tiny",
    "pit_ti_224",
    "poolformer_s12",
    "pvt_v2_b0",
    "regnetx_002",
    "repghostnet_050",
    "repvgg_a0",
    "resmlp_12_224",
    "resnet18",
    "resnetv2_50",
    "rexnet_100",
    "sequencer2d_s",
    "seresnet50",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "tnt_s_patch16_224",
    "twins_pcpvt_small",
    "vgg11",
    "visformer_tiny",
    "vit_base_patch16_siglip_224",
    "vit_relpos_small_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3",
    "volo_d1_224",
    "xcit_nano_12_p16_224",
]
# The published configurations, with fewer layers of each kind; names count their layers, so that no kind is missing.
SMALLER = {"num_layers": 1}
DIFFUSERS = {
    "UNet2DConditionModel": {"cross_attention_dim": 768, "attention_head_dim": 8},  # Stable Diffusion 1.5
    "UNet2DModel": {},
    "AutoencoderKL": {},
    "DiTTransformer2DModel": SMALLER,
    "PixArtTransformer2DModel": SMALLER,
    "SD3Transformer2DModel": SMALLER,
    "FluxTransformer2DModel": {**SMALLER, "num_single_layers": 1},
}


@cache
def names(model: str) -> frozenset[str]:
    """The names of all modules, parameters and buffers, built without memory."""
    with torch.device("meta"):
        if model in DIFFUSERS:
            net: nn.Module = getattr(diffusers, model)(**DIFFUSERS[model])
        else:
            net = timm.create_model(model, num_classes=3)
    tensors = [name for name, _ in (*net.named_parameters(), *net.named_buffers())]
    return frozenset([*tensors, *(name for name, _ in net.named_modules())])


def test_there_are_methods_and_models() -> None:
    assert len(OURS) >= 7
    assert len(TIMM) >= 60


@pytest.mark.parametrize("method", OURS)
def test_prefix_is_part_of_no_other(method: str) -> None:
    for one, other in permutations([(method, OURS[method]), *PEFT_TYPE_TO_PREFIX_MAPPING.items()], 2):
        if method in (one[0], other[0]) and one[0] != other[0]:
            assert one[1] not in other[1], f"the prefix of {one[0]} is part of that of {other[0]}"


@pytest.mark.parametrize("model", [*TIMM, *DIFFUSERS])
def test_prefix_is_part_of_no_name_in_a_model(model: str) -> None:
    found = {(word, name) for name in names(model) for word in (*OURS.values(), CHILD) if word in name}
    assert not found


def test_a_prefix_that_collides_is_noticed() -> None:
    assert any("attn." in name for name in names("vit_small_patch16_dinov3"))
    assert any("to_q" in name for name in names("FluxTransformer2DModel"))
