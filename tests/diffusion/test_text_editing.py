"""Another text in the same scene: what holds whatever the pipeline was trained on."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

import diffusion_peft as dp
from diffusion_peft.localization.editing import replaced
from diffusion_peft.pipelines.sampling import with_scheduler
from tests.diffusion.tiny_pipelines import BETAS, SIZE, stable_diffusion

PAIRS = [("a circle in red", "a star"), ("a star in blue", "a square"), ("a square", "a circle")]
ALL = [0, 1, 2, 3]
ASKED: dict[str, Any] = {"steps": 3, "settings": {"height": SIZE, "width": SIZE}}


@pytest.fixture(scope="module")
def pipe() -> Any:
    torch.manual_seed(0)
    made: Any = stable_diffusion(DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1, **BETAS))
    for module in made.components.values():
        if isinstance(module, nn.Module):
            module.eval()
    made.vae.register_to_config(scaling_factor=9.0)  # latents as large as noise, or a step back has no one answer
    return made


def plain(pipe: Any, prompts: list[str], seeds: list[int]) -> Tensor:
    """As the pipeline draws them, each with its seed."""
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    called = {"num_inference_steps": 3, "guidance_scale": 5.0, **ASKED["settings"]}
    return torch.from_numpy(pipe(prompts, generator=generators, output_type="np", **called).images).permute(0, 3, 1, 2)


def test_all_layers_draw_the_target_and_none_the_source(pipe: Any) -> None:
    sources, targets = ([pair[place] for pair in PAIRS] for place in (0, 1))
    found = dp.edit_text(pipe, PAIRS, ALL, seeds=[5, 6, 7], batch=2, **ASKED)
    for pictures, wanted in ((found.source, sources), (found.target, targets), (found.edited, targets)):
        torch.testing.assert_close(pictures, plain(pipe, wanted, [5, 6, 7]), atol=1e-4, rtol=0)
    late = dp.edit_text(pipe, PAIRS, ALL, start_step=3, **ASKED)
    torch.testing.assert_close(late.edited, late.source)


def test_a_negative_prompt_is_for_all(pipe: Any) -> None:
    asked = {**ASKED, "settings": {**ASKED["settings"], "negative_prompt": "a square"}}
    found = dp.edit_text(pipe, PAIRS, ALL, **asked)
    one = dp.edit_text(pipe, PAIRS[1:2], ALL, seeds=[43], **asked)
    torch.testing.assert_close(found.edited[1:2], one.edited, atol=1e-4, rtol=0)
    assert not torch.allclose(found.edited, dp.edit_text(pipe, PAIRS, ALL, **ASKED).edited, atol=1e-3)


def test_windows_lie_between_source_and_target(pipe: Any) -> None:
    far = []
    for start in (0, 1, 2):
        found = dp.edit_text(pipe, PAIRS, ALL, start_step=start, **ASKED)
        far.append(float((found.edited - found.source).abs().mean()))
    assert far[0] > far[1] > far[2] > 0


def test_unwanted_words_are_not_drawn(pipe: Any) -> None:
    asked = ["a circle in red", "a square"]
    pictures, drawn = dp.replace_words(pipe, asked, {"Circle": "star"}, ALL, seeds=[5, 6], **ASKED)
    assert drawn == ["a star in red", "a square"]
    torch.testing.assert_close(pictures, plain(pipe, drawn, [5, 6]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("prompt", "replace", "wanted"),
    [
        ('a sign "DARN"', {"darn": "LOVE"}, 'a sign "LOVE"'),
        ('a sign "DARNED"', {"darn": "LOVE"}, 'a sign "DARNED"'),
        ("darn it, darn", {"darn": "oh", "darn it": "well"}, "well, oh"),
        ('a sign "A+"', {"a+": "B"}, 'a sign "B"'),
        ("a sign", {}, "a sign"),
        ("a sign", str.upper, "A SIGN"),
    ],
)
def test_whole_words_are_replaced(prompt: str, replace: Any, wanted: str) -> None:
    assert replaced(prompt, replace) == wanted


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_pictures_are_drawn_again_from_their_noise(prediction: str, pipe: Any) -> None:
    captions = [source for source, _ in PAIRS]
    pictures = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = pipe.vae.encode(2 * pictures - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
    called = {"num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "latent", **ASKED["settings"]}
    with with_scheduler(pipe, DDIMScheduler.from_config(pipe.scheduler.config, prediction_type=prediction)):
        latents = dp.invert_pictures(pipe, pictures, captions, steps=4, rounds=30)
        found = pipe(captions, latents=latents, **called).images
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


def test_edits_start_from_given_latents(pipe: Any) -> None:
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    found = dp.edit_text(pipe, PAIRS, ALL, latents=latents, batch=2, **ASKED)
    called = {"num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "np", **ASKED["settings"]}
    wanted = pipe([target for _, target in PAIRS], latents=latents, **called).images
    torch.testing.assert_close(found.edited, torch.from_numpy(wanted).permute(0, 3, 1, 2), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": [1]}, "`seeds` must be one for each of 3 prompts; found 1"),
        ({"latents": torch.zeros(2, 4, 8, 8)}, "`latents` must be one for each of 3 prompts; found 2"),
        ({"layers": "auto"}, "no text layers are published"),
        ({"layers": [4]}, "there is no text layer 4"),
        ({"start_step": 2, "end_step": 1}, "counted from 0"),
        ({"start_step": 4}, "`start_step` must be at most 3, the number of steps; found 4"),
        ({"steps": 0}, "`steps` must be at least 1; found 0"),
        ({"batch": 0}, "`batch` must be at least 1; found 0"),
        ({"heads": {1: [9]}}, "has the heads 0 to"),
    ],
)
def test_unusable_settings_are_refused(given: dict[str, Any], message: str, pipe: Any) -> None:
    with pytest.raises(ValueError, match=message):
        dp.edit_text(pipe, PAIRS, **{"layers": [1], **ASKED, **given})


def test_prompts_that_differ_beyond_what_is_read_are_refused(pipe: Any) -> None:
    start = "a star " * 60
    with pytest.raises(ValueError, match=r"are the same text to this pipeline: .* beyond the \d+ tokens"):
        dp.edit_text(pipe, [(start + "circle", start + "square")], [1], **ASKED)


def test_a_word_to_replace_needs_another(pipe: Any) -> None:
    with pytest.raises(ValueError, match="`replace` must map words to others, or be a function of a prompt; found 'x'"):
        dp.replace_words(pipe, ["a star"], "x", [1], **ASKED)  # type: ignore[arg-type]


def test_pictures_are_inverted_with_ddim_alone() -> None:
    with pytest.raises(ValueError, match=r"with DDIM; found PNDMScheduler: set `pipe.scheduler = DDIMScheduler"):
        dp.invert_pictures(stable_diffusion(), torch.zeros(1, 3, SIZE, SIZE), ["a star"])
