"""The text of the card of a pipeline that the package carries."""

from typing import Any

HEAD = """\
---
license: apache-2.0
library_name: diffusers
tags: [{tag}, diffusers]
---
# {name}

{about}

    pipeline = DiffusionPipeline.from_pretrained(diffusion_peft.pretrained("{name}"))
    {example}

![samples](samples.png)

{shown}

| | |
|---|---|
"""
TEXT = {
    "tag": "text-to-image",
    "about": """\
A `StableDiffusionPipeline` for 64×64 pictures of emoji and of words of up to four capital letters: small, so that
methods for diffusion models can be tried, compared and tested on two processor cores, without a network. Prompts are
lower-case Unicode names of emoji (`cat face on purple`) or `the word "CAT" in red on white`; capitals are spelled.""",
    "example": "image = pipeline('the word \"CAT\" in red on white', num_inference_steps=25).images[0]",
    "shown": "The samples' prompts are `PROMPTS` in `peft_runs/pipeline_card.py`, with one seed; nothing was chosen.",
}
CLASSES = {
    "tag": "unconditional-image-generation",
    "about": """\
A `DiTPipeline` for 64×64 pictures of emoji by group, on the latents of mini_sd's autoencoder: small, so that methods
for diffusion transformers can be tried, compared and tested on two processor cores, without a network.
`pipeline.labels` names the groups.""",
    "example": "image = pipeline(pipeline.get_label_ids(['animal']), num_inference_steps=25).images[0]",
    "shown": "The samples are one of each group, in their order, with one seed; nothing was chosen.",
}
DATA = """\
3,545 captioned Noto emoji (Google; SIL OFL 1.1 / Apache-2.0) on coloured grounds, without the 5 % that are held out, \
and words drawn with DejaVu Sans Mono Bold"""


def recipes(name: str, worded: bool) -> str:
    """The recipes that made a pipeline, the last first."""
    found = [f"{name}_words", name, "mini_vae"] if worded else [name, "mini_vae"]
    return "`configs/pretrain`: " + ", ".join(f"`{one}`" for one in found)


def card(name: str, measured: dict[str, Any], trained: str, worded: bool) -> str:
    """The whole card in Markdown."""
    rows = {"Trained on": DATA, "Training": trained, "Recipe": recipes(name, worded)}
    for place, error in measured["reconstruction"].items():
        rows[f"Autoencoder, {place.replace('_', ' ')}"] = (
            f"mean absolute error {error['absolute_error']:.4f} of [0, 1], {error['psnr']:.1f} dB"
        )
    distance = measured["frechet_distance"]
    rows["Fréchet distance, features of vit_mini"] = (
        f"**{distance['samples']:.2f}** between {measured['emoji']} samples and the training emoji whose "
        f"{'captions' if worded else 'groups'} they were made for (the same emoji through the autoencoder "
        f"{distance['reconstructions']:.2f}, on other grounds {distance['same_emoji_on_other_grounds']:.2f}); not "
        "comparable with distances of other features or numbers of pictures"
    )
    if worded:
        rows |= spelling_rows(measured["spelling"])
    rows["Sampling"] = f"DDIM, {measured['sampling_steps']} steps, guidance {measured['guidance_scale']:g}"
    rows["Parameters"] = ", ".join(f"{part} {count:,}" for part, count in measured["parameters"].items())
    rows["Files"] = f"{measured['bytes']:,} bytes of float16 safetensors"
    rows["Date"] = measured["date"]
    table = "\n".join(f"| {what} | {value} |" for what, value in rows.items())
    return HEAD.format(name=name, **(TEXT if worded else CLASSES)) + table + "\n"


def spelling_rows(spelling: dict[str, dict[str, float]]) -> dict[str, str]:
    """How well words are spelled, read by matching the font's letters (`diffusion_peft/data/reading.py`)."""
    found, limits = spelling["samples"], [spelling[name]["letters"] for name in ("reconstructions", "drawings")]
    by_length = {name.rpartition("_")[2]: share for name, share in found.items() if name.startswith("letters_of_")}
    lengths = ", ".join(f"{length}: {100 * share:.0f} %" for length, share in by_length.items())
    return {
        "Letters right at their places": (
            f"**{100 * found['letters']:.1f} %** of random words (by length {lengths}); the reader finds "
            f"{100 * limits[1]:.1f} % in drawn words and {100 * limits[0]:.1f} % after the autoencoder; chance is 3.8 %"
        ),
        "Whole words right": f"{100 * found['words']:.1f} %",
        "Ground in the colour asked for": f"{100 * found['grounds']:.1f} %",
    }
