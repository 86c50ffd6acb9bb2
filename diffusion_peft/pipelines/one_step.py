"""One step from noise to picture through an ordinary call of a pipeline, whatever its scheduler was made for.

Asked for one step, diffusers' schedulers differ: with `leading` spacing DDIM evaluates t = 0 or 1, with `linspace` 0;
Euler scales the noise by 0.03 or by σ_max; PNDM fails. DDIM with `trailing` spacing evaluates the last timestep on pure
noise and ends at the clean latents: that scheduler is made here from the betas of any other.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from peft_kernels.data_errors import DataError, unknown
from peft_kernels.ops import signal_powers
from peft_kernels.ops.one_step import PREDICTIONS

FILE = "one_step.json"
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
# What a noise schedule consists of, as diffusers' schedulers call it.
SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")


def one_step_scheduler(scheduler: Any, timestep: int | None = None) -> Any:
    """A scheduler with the same noise schedule that takes one step (or few) to the clean latents.

    `pipe.scheduler = one_step_scheduler(pipe.scheduler)`, then `pipe(..., num_inference_steps=1, guidance_scale=1.0)`.
    With `timestep` it begins there instead of at the last one: image-to-image pipelines, at strength 1, then add that
    much noise to the picture and take it off in one step.

    Raises:
        DataError: this kind of scheduler cannot do it, or what the denoiser predicts does not allow it.
    """
    name = type(scheduler).__name__
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        if timestep is not None:
            raise DataError("a timestep to begin at is for noise schedules; this pipeline matches flows")
        return FlowMatchEulerDiscreteScheduler.from_config(scheduler.config, invert_sigmas=False)
    kind = scheduler.config.get("prediction_type", "epsilon")
    if "beta_schedule" not in scheduler.config or kind not in PREDICTIONS:
        raise DataError(
            f"a {name} cannot do one step: expected the noise schedule of a denoiser that predicts noise, velocity or "
            "sample (DDIM, DDPM, PNDM, Euler, DPM-Solver, UniPC, ...) or FlowMatchEulerDiscreteScheduler"
        )
    asked: dict[str, Any] = {
        "timestep_spacing": "trailing",
        "set_alpha_to_one": True,
        "clip_sample": False,
        "thresholding": False,
        "prediction_type": kind,
    }
    try:
        made: Any = DDIMScheduler.from_config(scheduler.config, **asked)
    except NotImplementedError as error:
        raise DataError(f"a {name} with these betas cannot do one step: {error}") from None
    own = getattr(scheduler, "alphas_cumprod", None)
    if own is None or not torch.allclose(own.float().cpu(), made.alphas_cumprod, atol=1e-6):
        raise DataError(f"a {name} cannot do one step: its noise levels are not those of its betas")
    last = len(made.alphas_cumprod) - 1
    if timestep is not None and not 0 <= timestep <= last:
        raise DataError(f"timestep must be between 0 and {last}, the last of this schedule; found {timestep}")
    if timestep is not None and timestep < last:
        cut = made.betas[: timestep + 1].tolist()
        more = {"num_train_timesteps": timestep + 1, "trained_betas": cut, "rescale_betas_zero_snr": False}
        made = DDIMScheduler.from_config(scheduler.config, **asked, **more)
    if kind == "epsilon" and made.alphas_cumprod[-1] == 0:
        raise DataError(
            "one step is impossible here: the last timestep of this schedule holds no signal (rescale_betas_zero_snr), "
            "and what the denoiser predicts is the noise; it has to predict velocity or sample"
        )
    return made


def betas_of(config: Mapping[str, Any]) -> Tensor:
    """β of every timestep, float64 `[T]`, as a scheduler's configuration gives them.

    Raises:
        UnknownNameError: an unknown schedule of betas; the nearest is told.
    """
    if config.get("trained_betas") is not None:
        return torch.tensor(config["trained_betas"], dtype=torch.float64)
    steps, schedule = config["num_train_timesteps"], config["beta_schedule"]
    if schedule not in BETAS:
        raise unknown("schedule of betas", schedule, BETAS)
    if schedule == "squaredcos_cap_v2":
        places = torch.arange(steps + 1, dtype=torch.float64) / steps
        powers = torch.cos((places + 0.008) / 1.008 * torch.pi / 2).square()
        return (1 - powers[1:] / powers[:-1]).clamp(max=0.999)
    power = 2 if schedule == "scaled_linear" else 1
    begin, end = (config[name] ** (1 / power) for name in ("beta_start", "beta_end"))
    return torch.linspace(begin, end, steps, dtype=torch.float64) ** power


@dataclass(frozen=True)
class OneStep:
    """What one step depends on beside the weights, kept as `one_step.json` with an adapter that was trained for it.

    Attributes:
        prediction_type: what the denoiser predicts: `epsilon`, `v_prediction`, `sample` or `flow`.
        timestep: where it is evaluated (flows: the level of noise in thousandths).
        schedule: the settings that the noise schedule comes from; none for flows.
        guidance: strength of the guidance that it was trained with; 1 is a single evaluation.
    """

    prediction_type: str
    timestep: int
    schedule: dict[str, Any]
    guidance: float = 1.0

    @classmethod
    def of(cls, scheduler: Any, guidance: float = 1.0) -> "OneStep":
        """That of a scheduler, as `one_step_scheduler` makes them.

        Raises:
            DataError: it cannot do one step.
        """
        made = one_step_scheduler(scheduler)
        config = made.config
        if isinstance(made, FlowMatchEulerDiscreteScheduler):
            return cls("flow", config["num_train_timesteps"], {}, guidance)
        schedule = {name: config[name] for name in SCHEDULE}
        return cls(config["prediction_type"], config["num_train_timesteps"] - 1, schedule, guidance)

    @cached_property
    def powers(self) -> Tensor:
        """ᾱ of every timestep, float64 `[T]`; flows have none."""
        return signal_powers(betas_of(self.schedule), bool(self.schedule["rescale_betas_zero_snr"]))

    def levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise at timesteps `[N]`, float64 `[N, 1, 1, 1]`."""
        if self.prediction_type == "flow":
            noise = timesteps.double() / self.timestep
            signal = 1 - noise
        else:
            power = self.powers.to(timesteps.device)[timesteps]
            signal, noise = power.sqrt(), (1 - power).sqrt()
        return signal.view(-1, 1, 1, 1), noise.view(-1, 1, 1, 1)

    def save(self, folder: Path) -> None:
        """Write `one_step.json` into an adapter's folder."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "OneStep":
        """Read it from an adapter's folder.

        Raises:
            DataError: it is not there or damaged.
        """
        path = folder / FILE
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise DataError(f"{folder} was not trained for one step: it holds no {FILE}") from None
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path} is damaged: {error}") from None

    def differences(self, other: "OneStep") -> list[str]:
        """What differs from the schedule of another, as `name: own, not the other's`."""
        ours, theirs = ({**asdict(one), **one.schedule} for one in (self, other))
        names = [name for name in {**ours, **theirs} if name not in ("schedule", "guidance")]
        return [
            f"{name}: {ours.get(name)}, not {theirs.get(name)}" for name in names if ours.get(name) != theirs.get(name)
        ]


def one_step(pipeline: Any, adapter: str | Path | None = None, timestep: int | None = None, force: bool = False) -> Any:
    """Give a pipeline the scheduler of one step; `pipe(..., num_inference_steps=1, guidance_scale=1.0)` then is one.

    Args:
        pipeline: any latents pipeline of diffusers.
        adapter: folder of an adapter trained for one step (`dp.load_adapter` puts it on): whether the pipeline has the
            schedule that it was trained with is checked.
        timestep: where to begin instead of at the last timestep, for image-to-image pipelines at strength 1.
        force: take another schedule all the same.

    Returns:
        The pipeline.

    Raises:
        DataError: its scheduler cannot do one step, or the adapter was trained with another schedule; the pipeline is
            as it was.
    """
    made = one_step_scheduler(pipeline.scheduler, timestep)
    if adapter is not None and not force:
        folder = Path(adapter).expanduser()
        differences = OneStep.load(folder).differences(OneStep.of(pipeline.scheduler))
        if differences:
            raise DataError(f"{folder} was trained for another schedule ({'; '.join(differences)})")
    pipeline.register_modules(scheduler=made)
    return pipeline
