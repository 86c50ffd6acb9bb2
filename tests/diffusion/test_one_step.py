"""One step through ordinary pipeline calls: the right timestep whatever the scheduler, and what cannot do it."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoPipelineForImage2Image, DDIMScheduler, DiffusionPipeline
from PIL import Image
from torch import Tensor

import diffusion_peft as dp
from diffusion_peft.pipelines.kinds import kind_of
from diffusion_peft.pipelines.one_step import OneStep, betas_of
from diffusion_peft.pipelines.sampling import Sampling, sample, starting_noise
from peft_kernels.ops import clean_from, signal_powers
from tests.diffusion.tiny_pipelines import BETAS, KINDS, SIZE

SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"steps_offset": 1, "set_alpha_to_one": False},
    "DDPMScheduler": {"timestep_spacing": "linspace"},
    "PNDMScheduler": {"skip_prk_steps": True, "steps_offset": 1},
    "EulerDiscreteScheduler": {"timestep_spacing": "linspace"},
    "EulerAncestralDiscreteScheduler": {"timestep_spacing": "leading"},
    "HeunDiscreteScheduler": {},
    "LMSDiscreteScheduler": {},
    "KDPM2DiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {"timestep_spacing": "leading", "use_karras_sigmas": True},
    "DPMSolverSinglestepScheduler": {},
    "DEISMultistepScheduler": {},
    "UniPCMultistepScheduler": {},
    "LCMScheduler": {},
}


def loaded(kind: str) -> Any:
    torch.manual_seed(0)
    pipeline: Any = KINDS[kind]()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def evaluations(pipeline: Any) -> list[tuple[Tensor, float]]:
    """The noised latents and the timestep of every call of the UNet from now on."""
    seen: list[tuple[Tensor, float]] = []
    pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append((args[0].clone(), float(args[1]))))
    return seen


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_one_step_of_any_scheduler_ends_at_the_clean_latents(name, prediction_type):
    given = getattr(diffusers, name)(**BETAS, **SCHEDULERS[name], prediction_type=prediction_type)
    before = dict(given.config)
    made = dp.one_step_scheduler(given)
    made.set_timesteps(1)
    assert made.timesteps.tolist() == [999]
    assert made.init_noise_sigma == 1
    noise, output = torch.randn(2, 1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    power = signal_powers(torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2)[-1]
    expected = clean_from(noise, output, power.sqrt().item(), (1 - power).sqrt().item(), prediction_type)
    found = made.step(output, 999, made.scale_model_input(noise, 999)).prev_sample
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert dict(given.config) == before


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("rescale", [False, True])
def test_own_table_of_a_schedule_is_the_schedulers(schedule, rescale):
    scheduler = DDIMScheduler(
        beta_schedule=schedule, rescale_betas_zero_snr=rescale, prediction_type="v_prediction", num_train_timesteps=100
    )
    powers = signal_powers(betas_of(scheduler.config), zero_terminal_snr=rescale)
    torch.testing.assert_close(powers.float(), scheduler.alphas_cumprod, rtol=1e-4, atol=1e-6)


def test_velocity_without_signal_is_the_picture_turned_round_and_noise_is_refused():
    settings = {**BETAS, "rescale_betas_zero_snr": True}
    made = dp.one_step_scheduler(diffusers.EulerDiscreteScheduler(**settings, prediction_type="v_prediction"))
    made.set_timesteps(1)
    noise, output = torch.randn(2, 1, 4, 3, 3)
    torch.testing.assert_close(made.step(output, 999, noise).prev_sample, -output)
    with pytest.raises(dp.DataError, match="holds no signal"):
        dp.one_step_scheduler(DDIMScheduler(**settings))


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.EDMEulerScheduler(),
        diffusers.ScoreSdeVeScheduler(),
        diffusers.CogVideoXDDIMScheduler(),
        diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        diffusers.DDPMScheduler(beta_schedule="sigmoid"),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_scheduler_that_cannot_do_one_step_is_told(scheduler):
    with pytest.raises(dp.DataError, match=rf"a {type(scheduler).__name__} .*cannot do one step"):
        dp.one_step_scheduler(scheduler)


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_ordinary_call_is_one_evaluation_at_the_last_timestep(kind):
    pipeline = dp.one_step(loaded(kind))
    seen = evaluations(pipeline)
    outputs: list[Tensor] = []
    pipeline.unet.register_forward_hook(lambda module, args, result: outputs.append(result[0]))
    generator = torch.Generator().manual_seed(5)
    asked: dict[str, Any] = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent"}
    latents = pipeline("star", height=SIZE, width=SIZE, generator=generator, **asked).images
    ((noised, timestep),) = seen
    assert timestep == 999
    torch.testing.assert_close(noised[0], starting_noise(noised.shape[1:], 5, torch.float32), rtol=0, atol=0)
    signal, level = OneStep.of(pipeline.scheduler).levels(torch.tensor([999]))
    predicts = {"sd1": "epsilon", "sd2": "v_prediction", "sdxl": "epsilon"}[kind]
    expected = clean_from(noised, outputs[0], signal.float(), level.float(), predicts)
    torch.testing.assert_close(latents, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_image_to_image_begins_at_the_timestep_asked_for(kind):
    pipeline = dp.one_step(AutoPipelineForImage2Image.from_pipe(loaded(kind)), timestep=600)
    pipeline.set_progress_bar_config(disable=True)
    seen = evaluations(pipeline)
    noises: list[Tensor] = []
    add, plain = pipeline.scheduler.add_noise, DDIMScheduler(**BETAS)

    def noted(latents: Tensor, noise: Tensor, timestep: Any) -> Tensor:
        torch.testing.assert_close(add(latents, noise, timestep), plain.add_noise(latents, noise, timestep))
        noises.append(noise)
        return add(latents, noise, timestep)

    pipeline.scheduler.add_noise = noted
    picture = Image.new("RGB", (SIZE, SIZE), "red")
    pipeline("star", image=picture, strength=1.0, num_inference_steps=1, guidance_scale=1.0)
    assert [timestep for _, timestep in seen] == [600]
    assert len(noises) == 1


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "flux"])
def test_pictures_of_one_step_leave_the_pipelines_scheduler(kind):
    pipeline = loaded(kind)
    before, chosen = pipeline.scheduler, kind_of(pipeline)
    given = chosen.encode(["star"], torch.device("cpu"))
    (picture,) = sample(chosen, given, chosen.encode([""], torch.device("cpu")), [0], Sampling(1, 1.0, SIZE))
    assert picture.size == (SIZE, SIZE)
    assert pipeline.scheduler is before


def test_timestep_out_of_the_schedule_is_told():
    with pytest.raises(dp.DataError, match="between 0 and 999, the last of this schedule; found 1000"):
        dp.one_step_scheduler(DDIMScheduler(**BETAS), 1000)
    with pytest.raises(dp.DataError, match="matches flows"):
        dp.one_step_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(), 500)


def test_adapter_of_another_schedule_is_refused_unless_forced(tmp_path: Path):
    pipeline = loaded("sd2")
    OneStep.of(pipeline.scheduler).save(tmp_path)
    assert OneStep.load(tmp_path) == OneStep.of(pipeline.scheduler)
    assert dp.one_step(pipeline, tmp_path) is pipeline
    assert dp.one_step(pipeline, tmp_path) is pipeline  # a second time changes nothing
    other: DiffusionPipeline = loaded("sd1")
    before = other.scheduler  # type: ignore[attr-defined]
    with pytest.raises(dp.DataError, match="prediction_type: v_prediction, not epsilon"):
        dp.one_step(other, tmp_path)
    assert other.scheduler is before  # type: ignore[attr-defined]
    assert dp.one_step(other, tmp_path, force=True).scheduler.config.timestep_spacing == "trailing"


def test_adapter_that_was_not_trained_for_one_step_is_told(tmp_path: Path):
    with pytest.raises(dp.DataError, match="not trained for one step"):
        dp.one_step(loaded("sd1"), tmp_path)
    (tmp_path / "one_step.json").write_text(json.dumps({"when": 3}))
    with pytest.raises(dp.DataError, match="is damaged"):
        dp.one_step(loaded("sd1"), tmp_path)
