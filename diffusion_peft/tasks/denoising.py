"""Learning to remove noise from latents: the loss that every diffusion task here shares, and the averaged weights.

With latents x, noise ε and the schedule's ᾱ_t, a model sees x_t = √ᾱ_t x + √(1-ᾱ_t) ε and predicts ε, or the velocity
v = √ᾱ_t ε - √(1-ᾱ_t) x (Salimans & Ho, *Progressive Distillation*, ICLR 2022), or x, as its scheduler says.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from diffusers import DDIMScheduler
from diffusers.training_utils import EMAModel, compute_snr
from torch import Tensor, nn

from peft_kernels.draws import draw_seed

STEPS = 1000
Predict = Callable[[Tensor, Tensor], Tensor]


def make_scheduler(prediction_type: Literal["epsilon", "v_prediction"]) -> DDIMScheduler:
    """The noise schedule of the embedded pipelines: the cosine one, made for small pictures, sampled by DDIM."""
    return DDIMScheduler(
        num_train_timesteps=STEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction_type,
        clip_sample=False,
        steps_offset=1,  # asked for by StableDiffusionPipeline; without effect where steps are counted from the end
        timestep_spacing="trailing",
    )


def target_of(scheduler: DDIMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the model should predict, by the scheduler's `prediction_type`."""
    kind = scheduler.config["prediction_type"]
    if kind in ("epsilon", "sample"):
        return noise if kind == "epsilon" else latents
    return scheduler.get_velocity(latents, noise, timesteps)  # type: ignore[arg-type]


def step_weights(scheduler: DDIMScheduler, timesteps: Tensor, gamma: float | None) -> Tensor:
    """Weights of the squared errors, `[N]`; 1 where `gamma` is None.

    Min-SNR (Hang et al., ICCV 2023) cuts the weight that a loss gives to the error of x at γ. For ε this weight is the
    ratio of signal to noise, SNR = ᾱ/(1-ᾱ), for v it is SNR + 1: the weights are min(SNR, γ)/SNR and
    min(SNR + 1, γ)/(SNR + 1). (Theirs for v is min(SNR, γ)/(SNR + 1), which all but ignores the noisiest steps.)
    For x itself it is min(SNR, γ).
    """
    if gamma is None:
        return torch.ones(len(timesteps), device=timesteps.device)
    kind, ratio = scheduler.config["prediction_type"], compute_snr(scheduler, timesteps)
    if kind == "sample":
        return ratio.clamp(max=gamma)
    own = ratio + (kind == "v_prediction")
    return own.clamp(max=gamma) / own


def squared_errors(
    predict: Predict, scheduler: DDIMScheduler, latents: Tensor, timesteps: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean squared error of the prediction for noised latents, and mean square of its target; float32 `[N]` each.

    The noise is drawn from torch's global generator.
    """
    noise = torch.randn_like(latents)
    noised = scheduler.add_noise(latents, noise, timesteps)  # type: ignore[arg-type]
    target = target_of(scheduler, latents, noise, timesteps)
    found = predict(noised, timesteps)
    return (found.float() - target).square().flatten(1).mean(1), target.square().flatten(1).mean(1)


def denoising_loss(predict: Predict, scheduler: DDIMScheduler, latents: Tensor, gamma: float | None) -> Tensor:
    """The batch's weighted mean squared error at random timesteps, float32 `[]`."""
    timesteps = torch.randint(0, STEPS, (len(latents),), device=latents.device)
    errors, _ = squared_errors(predict, scheduler, latents, timesteps)
    return (errors * step_weights(scheduler, timesteps, gamma)).mean()


def explained(sums: dict[str, Tensor]) -> dict[str, float]:
    """From sums of `error`, `target` (squares) and `count`: the explained share of the squares, and the loss."""
    error, target = sums["error"].item(), sums["target"].item()
    return {"explained": 1 - error / target, "loss": error / sums["count"].item()}


@contextmanager
def fixed_draws(*words: int) -> Iterator[None]:
    """Random numbers that depend on the words alone; the generators go on afterwards as if nothing had been drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(draw_seed(*words))
        yield


def spread_timesteps(latents: Tensor) -> Tensor:
    """Timesteps spread evenly over the schedule, `[N]`: a batch that is judged sees all levels of noise."""
    return (torch.arange(len(latents), device=latents.device) * STEPS + STEPS // 2) // len(latents)


class Averaged(nn.Module):
    """A moving average of parameters, kept as buffers, so that it is saved and loaded with the module that holds it.

    diffusers' `EMAModel` has the rule: after n steps the average forgets with 1 - (1 + n)^-0.75, at most with `decay`.
    Not `persistent`, it is part of checkpoints alone and of no saved model.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float, persistent: bool = True):
        super().__init__()
        self.rule = EMAModel(list(parameters), decay=decay, use_ema_warmup=True, power=0.75, foreach=True)
        for position, tensor in enumerate(self.rule.shadow_params):
            self.register_buffer(f"p{position}", tensor, persistent)

    def step(self, parameters: Iterable[nn.Parameter], steps: int) -> None:
        """Take in the parameters as they are after `steps` optimiser steps."""
        self.rule.shadow_params = list(self.buffers())
        self.rule.optimization_step = steps - 1
        self.rule.step(list(parameters))

    @contextmanager
    def in_place_of(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Within the block the parameters hold the averages."""
        parameters = list(parameters)
        self.swap(parameters)
        try:
            yield
        finally:
            self.swap(parameters)

    def swap(self, parameters: list[nn.Parameter]) -> None:
        """Exchange averages and parameters."""
        with torch.no_grad():
            for buffer, parameter in zip(self.buffers(), parameters, strict=True):
                held = parameter.clone()
                parameter.copy_(buffer)
                buffer.copy_(held)
