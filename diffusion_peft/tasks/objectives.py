"""What a pipeline's scheduler asks of its denoiser: noise or velocity removed step by step, or the flow from noise.

With flows, a model sees x_σ = (1-σ) x + σ ε and predicts ε - x (Lipman et al., *Flow Matching*, ICLR 2023); which σ is
trained how often follows Esser et al., *Scaling Rectified Flow Transformers*, ICML 2024, Sec. 3.1.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling
from torch import Tensor

from diffusion_peft.tasks.denoising import Predict, squared_errors, step_weights
from peft_kernels.data_errors import DataError, unknown

PREDICTIONS = ("epsilon", "v_prediction", "sample")
FLOW = "flow"
FlowSampling = Literal["uniform", "logit_normal", "mode"]


class Objective(Protocol):
    """How latents are noised and what is to be predicted; timesteps are what the denoiser is told, `[N]`."""

    def random(self, latents: Tensor) -> Tensor:
        """Timesteps of a training batch, from torch's global generator."""
        ...

    def spread(self, latents: Tensor, shift: int, of: int) -> Tensor:
        """Timesteps evenly over all levels of noise; `of` calls, shifted by 0, 1, ..., fill each other's gaps."""
        ...

    def errors(self, predict: Predict, latents: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared error of the prediction, and mean square of its target; float32 `[N]` each."""
        ...

    def weights(self, timesteps: Tensor) -> Tensor:
        """Weights of the errors, `[N]`."""
        ...


@dataclass(frozen=True)
class Denoising:
    """Steps of a noise schedule with signal √ᾱ; Min-SNR weights with `gamma`."""

    scheduler: Any
    gamma: float | None = None

    @property
    def steps(self) -> int:
        return len(self.scheduler.alphas_cumprod)

    def random(self, latents: Tensor) -> Tensor:
        return torch.randint(0, self.steps, (len(latents),), device=latents.device)

    def spread(self, latents: Tensor, shift: int, of: int) -> Tensor:
        return spread_numbers(latents, self.steps, shift, of)

    def errors(self, predict: Predict, latents: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        return squared_errors(predict, self.scheduler, latents, timesteps)

    def weights(self, timesteps: Tensor) -> Tensor:
        return step_weights(self.scheduler, timesteps, self.gamma)


@dataclass(frozen=True)
class FlowMatching:
    """Levels σ of the scheduler, shifted as it has them."""

    scheduler: Any
    sampling: FlowSampling = "logit_normal"

    def random(self, latents: Tensor) -> Tensor:
        places = compute_density_for_timestep_sampling(
            self.sampling, len(latents), logit_mean=0.0, logit_std=1.0, mode_scale=1.29, device=latents.device
        )
        return self.at((places * len(self.scheduler.timesteps)).long())

    def spread(self, latents: Tensor, shift: int, of: int) -> Tensor:
        return self.at(spread_numbers(latents, len(self.scheduler.timesteps), shift, of))

    def at(self, places: Tensor) -> Tensor:
        """The timesteps at places of the scheduler's table."""
        return self.scheduler.timesteps.to(places.device)[places.clamp(max=len(self.scheduler.timesteps) - 1)]

    def errors(self, predict: Predict, latents: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.randn_like(latents)
        level = (timesteps.float() / self.scheduler.config["num_train_timesteps"]).view(-1, 1, 1, 1)
        target = noise - latents
        found = predict((1 - level) * latents + level * noise, timesteps)
        return (found.float() - target).square().flatten(1).mean(1), target.square().flatten(1).mean(1)

    def weights(self, timesteps: Tensor) -> Tensor:
        return torch.ones(len(timesteps), device=timesteps.device)


def spread_numbers(latents: Tensor, steps: int, shift: int, of: int) -> Tensor:
    """Numbers below `steps`, evenly: the `shift`-th of `of` interleaved sets, `[N]`."""
    count = len(latents) * of
    return ((torch.arange(len(latents), device=latents.device) * of + shift) * steps + steps // 2) // count


def objective_of(
    scheduler: Any, prediction_type: str | None, gamma: float | None, sampling: FlowSampling, source: str
) -> Objective:
    """What the scheduler of a pipeline asks for; `prediction_type` is taken instead of its own.

    Raises:
        UnknownNameError: the prediction type is none that is known.
        DataError: it does not suit the scheduler.
    """
    flows = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    own = FLOW if flows else scheduler.config.get("prediction_type", "epsilon")
    wanted = prediction_type or own
    if wanted not in (*PREDICTIONS, FLOW):
        raise unknown("prediction type", wanted, (*PREDICTIONS, FLOW))
    if flows != (wanted == FLOW):
        raise DataError(
            f"the prediction type {wanted!r} does not suit the {type(scheduler).__name__} of {source}, which is "
            f"{'for flow matching' if flows else 'not for flow matching'}: leave model.prediction_type null"
        )
    if not flows and "beta_schedule" not in scheduler.config:
        raise DataError(f"the {type(scheduler).__name__} of {source} has no noise schedule that could be trained on")
    if flows:
        if gamma is not None:
            raise DataError(f"model.snr_gamma is for noise schedules, and {source} matches flows: leave it null")
        return FlowMatching(FlowMatchEulerDiscreteScheduler.from_config(scheduler.config), sampling)
    return Denoising(DDPMScheduler.from_config(scheduler.config, prediction_type=wanted), gamma)
