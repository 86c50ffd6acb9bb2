"""Pipelines steered by pictures: called as ControlNet's, right for every prompt, saved with their adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import diffusion_peft as dp

from ..kernels.tiny_unet import move
from .tiny_pipelines import KINDS, SIZE

KIND = {"sd1": dp.StableDiffusionSCEditPipeline, "sdxl": dp.StableDiffusionXLSCEditPipeline}
SMALL: dict[str, Any] = {"control": True, "pre_dim_ratio": 0.25, "pre_out_channels": 5}
TWO_PIXELS = [1, 1, 2, 1, 1, 1, 1]  # the tiny autoencoder makes one latent of 2 × 2 pixels


def pipeline(kind: str = "sd1", *names: str) -> Any:
    """A steered pipeline with a moved controllable adapter per name, all active."""
    torch.manual_seed(0)
    made = KIND[kind].from_pipe(KINDS[kind]())
    made.set_progress_bar_config(disable=True)
    for name in names:
        dp.add_adapter(made, dp.SceditConfig(pre_strides=TWO_PIXELS, **SMALL), name)
        move(made.unet, name)
    if names:
        dp.set_adapters(made, names)
    return made


def picture(seed: int = 0, size: int = SIZE) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def draw(made: Any, prompt: Any = "a circle", **settings: Any) -> Tensor:
    count = (1 if isinstance(prompt, str) else len(prompt)) * settings.get("num_images_per_prompt", 1)
    more = {"num_inference_steps": 2, "output_type": "latent", **settings}
    if "generator" not in more:
        more["generator"] = [torch.Generator().manual_seed(7) for _ in range(count)]
    return made(prompt, **more).images


@pytest.mark.parametrize("kind", sorted(KIND))
def test_without_adapter_and_at_scale_0_it_is_the_stock_pipeline(kind: str) -> None:
    torch.manual_seed(0)
    stock = KINDS[kind]()
    stock.set_progress_bar_config(disable=True)
    expected = draw(stock, height=SIZE, width=SIZE)
    assert torch.equal(draw(pipeline(kind), height=SIZE, width=SIZE), expected)
    steered = pipeline(kind, "edges")
    assert torch.equal(draw(steered, image=picture(), conditioning_scale=0.0), expected)
    assert (draw(steered, image=picture()) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("kind", sorted(KIND))
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_each_picture_of_each_prompt_is_steered_by_its_prompts_image(kind: str, guidance: float) -> None:
    made, prompts, images = pipeline(kind, "edges"), ["a circle", "a star"], [picture(1), picture(2)]
    settings: dict[str, Any] = {"guidance_scale": guidance}
    together = draw(made, prompts, image=images, num_images_per_prompt=2, **settings)
    for number in range(4):
        alone = draw(made, prompts[number // 2], image=images[number // 2], **settings)
        torch.testing.assert_close(together[number : number + 1], alone, rtol=1e-3, atol=1e-4)
    assert (together[0] - together[2]).abs().max() > 1e-3


def test_several_conditions_by_order_and_by_name() -> None:
    made = pipeline("sd1", "edges", "colours")
    expected = draw(made, image=[picture(1), picture(2)], conditioning_scale=[0.5, 1.5])
    by_name = {"colours": picture(2), "edges": picture(1)}
    assert torch.equal(draw(made, image=by_name, conditioning_scale={"colours": 1.5, "edges": 0.5}), expected)
    alone = draw(made, image=by_name, conditioning_scale=[0.5, 0.0])
    dp.set_adapters(made, ["edges", "colours"], [0.5, 0.0])
    torch.testing.assert_close(draw(made, image=picture(1)), alone, rtol=1e-4, atol=1e-5)


def test_guidance_may_end_on_the_way() -> None:
    """diffusers' own way to drop guidance in a callback leaves one half of the batch."""
    made = pipeline("sd1", "edges")

    def end(pipe: Any, step: int, time: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe._guidance_scale = 1.0
        return {"prompt_embeds": values["prompt_embeds"].chunk(2)[-1]} if step == 0 else {}

    more = {"callback_on_step_end": end, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    out = draw(made, ["a circle", "a star"], image=[picture(1), picture(2)], **more)
    alone = draw(made, "a star", image=picture(2), **more)
    torch.testing.assert_close(out[1:], alone, rtol=1e-3, atol=1e-4)


def test_pictures_and_tensors_are_the_same() -> None:
    made = pipeline("sd1", "edges")
    tensor = torch.from_numpy(np.asarray(picture())).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(draw(made, image=tensor), draw(made, image=picture()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(draw(made, image=[picture()]), draw(made, image=picture()), rtol=0, atol=0)


@pytest.mark.parametrize("kind", sorted(KIND))
def test_saved_with_its_adapters_and_loaded_again(kind: str, tmp_path: Path) -> None:
    made = pipeline(kind, "edges")
    dp.add_adapter(made, dp.SceditConfig(), "style")
    move(made.unet, "style")
    dp.set_adapters(made, ["style", "edges"], [0.5, 1.0])
    expected = draw(made, image=picture())
    made.save_pretrained(tmp_path)
    assert torch.equal(draw(made, image=picture()), expected)
    loaded = KIND[kind].from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(draw(loaded, image=picture()), expected, rtol=1e-5, atol=1e-6)
    plain = type(loaded.unet).from_pretrained(tmp_path, subfolder="unet")
    assert not any("scedit" in name for name, _ in plain.named_parameters())


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({}, "the condition image of 'edges' is missing"),
        ({"image": picture(size=12)}, r"is 12 × 12 \(height × width\), the picture is to be 16 × 16"),
        ({"image": picture().convert("L")}, "has mode L, expected RGB .*convert"),
        ({"image": picture().convert("RGBA")}, "has mode RGBA, expected RGB"),
        ({"image": [picture(), picture(1)]}, "2 condition images of 'edges' for 1 prompts"),
        ({"image": [picture(), picture(1, 12)]}, "differ in size"),
        ({"image": {"edge": picture()}}, r"names 'edge' \(did you mean 'edges'\?\)"),
        ({"image": "edges.png"}, "must be a PIL image, a tensor, or a list of them; found str"),
        ({"image": torch.full((1, 3, 16, 16), 2.0)}, "must lie in 0 to 1"),
        ({"image": picture(), "conditioning_scale": [1.0, 2.0]}, "an entry for each of the 1 active"),
    ],
)
def test_images_that_do_not_suit_are_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        draw(pipeline("sd1", "edges"), height=16, width=16, **settings)


def test_an_image_without_a_controllable_adapter_is_refused() -> None:
    with pytest.raises(ValueError, match="no controllable adapter is active"):
        draw(pipeline("sd1"), image=picture())


def test_a_stem_for_another_autoencoder_says_so() -> None:
    made = pipeline("sd1")
    dp.add_adapter(made, dp.SceditConfig(**SMALL), "edges")
    with pytest.raises(ValueError, match="expected 64 × 64: 8 times the latents' 8 × 8"):
        draw(made, image=picture())
