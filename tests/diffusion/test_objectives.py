"""What a pipeline's scheduler asks of its denoiser, told from its configuration."""

from typing import Any

import pytest
import torch

from diffusion_peft.tasks.objectives import objective_of
from tests.diffusion.tiny_pipelines import KINDS


def perfect(kind: str, latents: torch.Tensor) -> tuple[Any, Any]:
    """The kind's objective, and a prediction that knows the latents."""
    pipeline = KINDS[kind]()
    objective: Any = objective_of(pipeline.scheduler, None, None, "logit_normal", kind)  # type: ignore[attr-defined]

    def predict(noised: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        if kind in ("sd3", "flux"):
            level = at.view(-1, 1, 1, 1) / 1000
            return (noised - latents) / level
        alpha = objective.scheduler.alphas_cumprod[at].view(-1, 1, 1, 1)
        noise = (noised - alpha.sqrt() * latents) / (1 - alpha).sqrt()
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents if kind == "sd2" else noise

    return objective, predict


@pytest.mark.parametrize("kind", KINDS)
def test_perfect_prediction_has_no_error(kind: str) -> None:
    latents = torch.randn(32, 2, 3, 3)
    objective, predict = perfect(kind, latents)
    for timesteps in (objective.random(latents), objective.spread(latents, 1, 3)):
        assert len(set(timesteps.tolist())) > 16
        errors, squares = objective.errors(predict, latents, timesteps)
        assert errors.max() < 1e-5
        assert squares.min() > 0.1
    assert torch.equal(objective.weights(timesteps), torch.ones(32))


def test_levels_of_the_flow_are_the_schedulers_own() -> None:
    objective, _ = perfect("sd3", torch.zeros(1))
    scheduler: Any = KINDS["sd3"]().scheduler  # type: ignore[attr-defined]
    known = set((scheduler.sigmas[:-1] * 1000).tolist())
    assert {round(value, 3) for value in objective.random(torch.zeros(99, 1)).tolist()} <= {round(v, 3) for v in known}


@pytest.mark.parametrize("kind", ["sd1", "sd2", "dit"])
def test_sample_prediction_is_of_the_latents(kind: str) -> None:
    scheduler: Any = KINDS[kind]().scheduler  # type: ignore[attr-defined]
    objective: Any = objective_of(scheduler, "sample", 5.0, "uniform", kind)
    latents = torch.randn(8, 2, 3, 3)
    errors, squares = objective.errors(lambda noised, at: latents, latents, objective.random(latents))
    assert errors.max() == 0
    torch.testing.assert_close(squares, latents.square().flatten(1).mean(1))
    timesteps = torch.tensor([0, 500, 999])
    ratio = (alpha := objective.scheduler.alphas_cumprod[timesteps]) / (1 - alpha)
    torch.testing.assert_close(objective.weights(timesteps), ratio.clamp(max=5.0), rtol=1e-4, atol=1e-8)
