"""What SaRA may train in the published denoisers, to the unit."""

from __future__ import annotations

import pytest
from torch import nn

from diffusion_peft import SaraConfig
from diffusion_peft.methods.sara.selection import eligible, owners

from .true_configs import published

# weights of linear layers, of convolutions, biases, weights of norms; tensors; matrices of the penalty, their entries
COUNTS = {
    "sd15": (270_049_280, 589_027_840, 343_684, 100_160, 686, 184, 270_049_280),
    "sd2": (301_219_840, 564_247_040, 343_684, 100_160, 686, 216, 301_219_840),
    "sdxl": (2_232_647_680, 333_232_640, 1_289_284, 294_080, 1680, 743, 2_232_647_680),
    "sd3": (2_027_126_784, 98_304, 1_102_912, 0, 682, 339, 2_027_028_480),
}


@pytest.mark.parametrize("name", COUNTS)
def test_eligible_tensors_are_all_of_the_denoiser(name: str) -> None:
    model, config = published(name), SaraConfig()
    linear = conv = bias = norm = tensors = 0
    matrices = []
    for module in owners(config, model).values():
        for leaf, tensor in eligible(config, module).items():
            tensors += 1
            if leaf == "bias":
                bias += tensor.numel()
            elif isinstance(module, nn.Linear):
                linear += tensor.numel()
            elif isinstance(module, nn.Conv2d):
                conv += tensor.numel()
            else:
                norm += tensor.numel()
            if tensor.ndim == 2 and min(tensor.shape) > config.rank_min_dim:
                matrices.append(tensor.numel())
    assert (linear, conv, bias, norm, tensors, len(matrices), sum(matrices)) == COUNTS[name]
    assert linear + conv + bias + norm == sum(p.numel() for p in model.parameters())
