"""The four uses of one step in one picture, by the scripts beside this one, on pictures the pipeline draws itself.

diffusion-peft train --recipe hipa --out runs/hipa
diffusion-peft train --recipe hipa --model.t_min 200 --out runs/hipa_pictures
python examples/one_step/gallery.py mini_sd runs/hipa/adapter runs/hipa_pictures/adapter OUT.png

The second adapter begins at any timestep from 200 on, for pictures that are changed or made larger.
"""

import runpy
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image, ImageDraw, ImageFont

from diffusion_peft.pipelines.opening import open_pipeline

SIDE, TOP, GAP = 192, 44, 24  # pixels of a picture, of what is said above it, and between the uses


def use(script: str, *words: object) -> None:
    """Run one of the scripts as from the command line."""
    sys.argv = [script, *map(str, words)]
    runpy.run_path(str(Path(__file__).with_name(script)))


def drawn(name: str, prompt: str, seed: int) -> Image.Image:
    """A picture by the pipeline itself, in 50 steps."""
    pipe = open_pipeline(name)
    return pipe(prompt, num_inference_steps=50, generator=torch.Generator().manual_seed(seed)).images[0]


def sheet(groups: list[list[tuple[str, Image.Image]]]) -> Image.Image:
    """Pictures side by side, each with words above it, and a gap after each group."""
    width = sum(len(group) for group in groups) * (SIDE + 4) + GAP * (len(groups) - 1)
    made = Image.new("RGB", (width, TOP + SIDE), "white")
    pen, font, left = ImageDraw.Draw(made), ImageFont.load_default(14), 0
    for group in groups:
        for words, picture in group:
            pen.multiline_text((left, 4), words, "black", font)
            made.paste(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, TOP))
            left += SIDE + 4
        left += GAP
    return made


if len(sys.argv) != 5:
    sys.exit(__doc__)
name, from_noise, from_pictures, out = sys.argv[1:]
with TemporaryDirectory() as folder:
    place = {
        key: Path(folder) / f"{key}.png" for key in ("text", "picture", "edited", "mask", "filled", "small", "large")
    }
    use("text_to_image.py", name, from_noise, "frog face on purple", place["text"])
    picture = drawn(name, "red apple", 1)
    picture.save(place["picture"])
    use("edit.py", name, from_pictures, place["picture"], "strawberry on green", 800, place["edited"])
    mask = Image.new("L", picture.size, "black")
    mask.paste("white", (0, 0, picture.width, picture.height // 2))
    mask.save(place["mask"])
    use("inpaint.py", name, from_noise, place["picture"], place["mask"], "red apple", place["filled"])
    picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX).save(place["small"])
    use("super_resolution.py", name, from_pictures, place["small"], 2, "red apple", place["large"])
    shown = {key: Image.open(path).convert("RGB") for key, path in place.items()}
    hidden = Image.composite(Image.new("RGB", picture.size, "grey"), picture, mask)
    groups = [
        [("text to image:\nfrog face on purple", shown["text"])],
        [("a picture", picture), ("changed to\nstrawberry on green", shown["edited"])],
        [("upper half masked", hidden), ("filled: red apple", shown["filled"])],
        [("half the pixels", shown["small"]), ("enlarged: red apple", shown["large"])],
    ]
    sheet(groups).save(out)
