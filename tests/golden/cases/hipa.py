"""HiPA: one-step pictures, high-pass masks and spectra, edges, the perceptual statistic, a whole training step."""

from __future__ import annotations

import re
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import get_peft_model
from torch import Tensor
from torch.nn import functional as F

from diffusion_peft import HipaConfig, HipaLoss, HipaLossSpec
from diffusion_peft.pipelines.one_step import betas_of
from peft_kernels.ops import (
    clean_from,
    edge_distance,
    guided,
    highpass,
    highpass_mask,
    radial_frequency,
    signal_powers,
    sobel,
    spectral_distance,
    structure_texture_distance,
)
from peft_kernels.ops.spectra import spectral_distance_reference

from ..comparison import Tolerance
from ..harness import Results
from ..vectors import Vectors, load

SCHEDULE, LINES = r"schedule\..*", r"buffer\.(rho|mask\..*)"  # compared beside the usual names
ZEROS = ("output.distance_identical", "grad.pred_magnitude_flat_pred")  # the files hold some 1e-16 of rounding


def tolerance(name: str, dtype: torch.dtype) -> Tolerance:
    """1e-8 in float64, 1e-4 in float32; what is 0 but for rounding, 1e-12 absolute."""
    if name in ZEROS:
        return Tolerance(1e-12, absolute=True)
    return Tolerance(1e-8 if dtype == torch.float64 else 1e-4)


def training_tolerance(name: str, dtype: torch.dtype) -> Tolerance:
    """1e-6 for the UNet."""
    return Tolerance(1e-6 if dtype == torch.float64 else 1e-4)


def onestep_x0(case: Vectors) -> Results:
    """The clean latents of every prediction type and timestep that the file has."""
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
    betas = betas_of({name: case.options[name] for name in names})
    tables = {"": signal_powers(betas), "_zero_terminal_snr": signal_powers(betas, zero_terminal_snr=True)}
    output = guided(case["input.model_output"], case["input.model_output_uncond"], case.options["guidance_scale"])
    found = {f"schedule.alphas_cumprod{end}": table for end, table in tables.items()}
    found["output.guided_model_output"] = output
    for name in case.below("output.x0"):
        kind, _, place = name.partition(".")
        of = output if kind.endswith("_guided") else case["input.model_output"]
        prediction = kind.removesuffix("_guided").removesuffix("_zero_snr")
        if prediction == "flow":
            noise = float(place.removeprefix("sigma"))
            signal = 1 - noise
        else:
            power = tables["_zero_terminal_snr" if "_zero_snr" in kind else ""][int(place.removeprefix("t"))]
            signal, noise = power.sqrt().item(), (1 - power).sqrt().item()
        found[f"output.x0.{name}"] = clean_from(case["input.noise"], of, signal, noise, prediction)
    return {"clean_from": found}


def highpass_case(case: Vectors) -> Results:
    """Masks, high-pass pictures, and both distances with their gradients, by half spectra and as the formulas stand."""
    height, width = case["input.pred"].shape[-2:]
    found: dict[str, Tensor] = {"buffer.rho": radial_frequency(height, width)}
    plain: dict[str, Tensor] = {}
    for name in case.below("output.highpass_pred"):
        shape, _, cutoff = name.partition("_c")
        mask = highpass_mask(shape, height, width, float(cutoff), case.options["butterworth_order"])
        found[f"buffer.mask.{name}"] = mask
        found[f"output.highpass_pred.{name}"] = highpass(case["input.pred"], mask)
        for which in ("l1", "l2"):
            for results, distance in ((found, spectral_distance), (plain, spectral_distance_reference)):
                pred = case["input.pred"].clone().requires_grad_()
                loss = distance(pred, case["input.target"], mask, which)
                results[f"output.loss_{which}.{name}"] = loss
                (results[f"grad.pred_{which}.{name}"],) = torch.autograd.grad(loss, pred)
    return {"spectral_distance": found, "reference": plain}


def edge(case: Vectors) -> Results:
    """Slopes, both distances of edges with their gradients, and those of a flat picture."""
    across, down = sobel(case["input.pred"])
    found = {"output.grad_x_pred": across, "output.grad_y_pred": down}
    for name, form in (("gradient", "gradient"), ("magnitude", "magnitude"), ("magnitude_flat_pred", "magnitude")):
        pred = case["input.pred"].clone() if "flat" not in name else torch.full_like(case["input.pred"], 0.5)
        loss = edge_distance(pred.requires_grad_(), case["input.target"], form)
        found[f"output.loss_{name}"] = loss
        (found[f"grad.pred_{name}"],) = torch.autograd.grad(loss, pred)
    return {"edge_distance": found}


def dists_statistic(case: Vectors) -> Results:
    """The distance of given features, with the gradients of its mean, and of features to themselves."""
    pred, target, alpha, beta = (
        stages(case, role) for role in ("input.pred_features", "input.target_features", "param.alpha", "param.beta")
    )
    pred = [features.clone().requires_grad_() for features in pred]
    constants = case.options["c1"], case.options["c2"]
    distance = structure_texture_distance(pred, target, alpha, beta, *constants)
    gradients = torch.autograd.grad(distance.mean(), pred)
    same = structure_texture_distance(target, target, alpha, beta, *constants)
    return {
        "structure_texture_distance": {
            "output.distance": distance,
            "output.distance_identical": same,
            **{f"grad.pred_features.{number}": gradient for number, gradient in enumerate(gradients)},
        }
    }


def stages(case: Vectors, role: str) -> list[Tensor]:
    """The tensors ``role.0``, ``role.1``, ... in order."""
    found = case.below(role)
    return [found[str(number)] for number in range(len(found))]


def train_step(case: Vectors) -> Results:
    """One step: UNet with LoRA at the last timestep, clean latents, decoding, loss, gradients of every A and B."""
    options = case.options
    weights = load(case.path.with_name(options["weights"]))
    base: Any = UNet2DConditionModel.from_config(weights.options["config"])
    base.load_state_dict(weights.tensors)
    base.double().eval()
    config = HipaConfig(r=options["rank"], lora_alpha=options["lora_alpha"], target_modules=options["modules"])
    model: Any = get_peft_model(base, config)  # type: ignore[arg-type]
    model.double().eval()
    parameters = lora_parameters(model)
    given = case.below("param")
    if set(parameters) != set(given):
        raise ValueError(f"the adapter has {sorted(parameters)}, the file {sorted(given)}")
    if sum(p.numel() for p in parameters.values()) != options["num_lora_parameters"]:
        raise ValueError(f"the file's adapter has {options['num_lora_parameters']} parameters")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(given[name])
    noise, text, timestep = case["input.noise"], case["input.encoder_hidden_states"], options["timestep"]
    with model.disable_adapter(), torch.no_grad():
        plain = model(noise, timestep, text).sample
    output = model(noise, timestep, text).sample
    power = options["alphas_cumprod_t"]
    start = clean_from(noise, output, power**0.5, (1 - power) ** 0.5, options["prediction_type"])
    (stride,) = numbers(options["decoder"], "stride")
    image = F.conv_transpose2d(start / options["vae_scaling_factor"], case["buffer.decoder_weight"], stride=stride)
    spec = HipaLossSpec(
        lam_spatial=options["lambda_spatial"],
        lam_high=options["lambda_high"],
        highpass=options["highpass"],
        cutoff=options["cutoff"],
        order=options["butterworth_order"],
        resize_loss_to=None,
    )
    terms = HipaLoss(spec, Spatial(case))((image + 1) / 2, case["input.target_image"])
    gradients = torch.autograd.grad(terms["loss"], list(parameters.values()))
    return {
        "HipaConfig": {
            "output.unet_base": plain,
            "output.unet": output,
            "output.latent_x0": start,
            "output.image": image,
            "output.loss": terms["loss"],
            **{f"output.loss_{name}": terms[name] for name in ("spatial", "fourier", "edge")},
            **{f"grad.{name}": gradient for name, gradient in zip(parameters, gradients, strict=True)},
        }
    }


class Spatial:
    """The file's perceptual distance: the picture and one convolution of it."""

    def __init__(self, case: Vectors) -> None:
        self.weight = case["buffer.feature_weight"]
        self.alpha, self.beta = stages(case, "buffer.alpha"), stages(case, "buffer.beta")
        self.stride, self.padding = numbers(case.options["features"], "stride", "padding")

    def __call__(self, found: Tensor, wanted: Tensor) -> Tensor:
        return structure_texture_distance(self.features(found), self.features(wanted), self.alpha, self.beta)

    def features(self, pictures: Tensor) -> list[Tensor]:
        return [pictures, F.relu(F.conv2d(pictures, self.weight, stride=self.stride, padding=self.padding))]


def numbers(text: str, *names: str) -> list[int]:
    """The values of ``name=1`` in a sentence."""
    return [int(re.findall(rf"{name}=(\d+)", text)[0]) for name in names]


def lora_parameters(model: Any) -> dict[str, Any]:
    """A and B of every layer under the file's names."""
    found = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            found[name.removeprefix("base_model.model.").removesuffix(".default.weight")] = parameter
    return found
