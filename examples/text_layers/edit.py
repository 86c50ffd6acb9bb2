"""Text edited in the layers that draw it, words replaced that nobody should read, and both measured.

    diffusion-peft localize --pipeline mini_sd --prompts examples/text_layers/prompts.txt --reader letters --out FOUND
    python examples/text_layers/edit.py FOUND OUT [--pairs 24] [--steps 25] [--guidance 4]

Every source, such as `the word "CAT" in red on white`, is drawn with another word of the same length: once as the
target alone would be (prompt swap), and in the found layers, all of them, and later and later windows of the steps.
`other scene` asks the target in other colours as well, so that the scene has to come from the source. Pictures that the
pipeline has not drawn are edited from the noise that gives them. Measured are the letters of the target and of the
source at their places, the target's whole words, the ground in the source's colour, and the change outside the word's
box, all against the source's picture. OUT gets edit.json, edit.png and given.png.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

import diffusion_peft as dp
from diffusion_peft.data.reading import around, ground_of, letters_right, read_letters
from diffusion_peft.data.words import LETTERS, Word, draw_word
from diffusion_peft.pipelines.opening import open_pipeline
from diffusion_peft.pipelines.sampling import grid

LENGTH = 3


def asked(pairs: int, seed: int) -> list[tuple[Word, Word, Word]]:
    """Sources, the same with another word, and other words in other colours."""
    rng = np.random.default_rng(seed)

    def scene() -> Word:
        return draw_word(rng)

    def spelled(word: Word) -> Word:
        return Word("".join(rng.choice(list(LETTERS), LENGTH)), word.ink, word.ground)

    made = []
    while len(made) < pairs:
        source, other = scene(), scene()
        if source.ground != other.ground:
            source = spelled(source)
            made.append((source, spelled(source), spelled(other)))
    return made


def measured(found: Tensor, source: Tensor, sources: list[Word], targets: list[Word]) -> dict[str, float]:
    """What is read in pictures, and how far they are from the sources' outside of the word."""
    read = read_letters(found, LENGTH)
    wanted, before = ([word.text for word in words] for words in (targets, sources))
    outside = around(found.shape[-1], LENGTH)
    change = 255 * (found - source)[..., outside]
    return {
        "target_letters": letters_right(read, wanted),
        "target_words": sum(map(str.__eq__, read, wanted)) / len(read),
        "source_letters": letters_right(read, before),
        "ground_kept": sum(map(str.__eq__, ground_of(found), [word.ground for word in sources])) / len(sources),
        "outside_rmse": float(change.square().mean().sqrt()),
    }


def edited(settings: argparse.Namespace, pipe: object, best: list[int], out: Path) -> dict[str, dict[str, float]]:
    """All ways of editing, a line each; the first rows of pictures."""
    every = [layer.index for layer in dp.text_layers(pipe)]
    words = asked(settings.pairs, settings.seed)
    sources, same, other = (list(column) for column in zip(*words, strict=True))
    common = {"steps": settings.steps, "guidance": settings.guidance, "batch": 8}
    rows: dict[str, dict[str, float]] = {}
    shown: list[Tensor] = []
    for scene, targets in (("", same), (", other scene", other)):
        pairs = [(source.caption, target.caption) for source, target in zip(sources, targets, strict=True)]
        ways = {"found layers": (best, 0), "all layers": (every, 0)}
        if not scene:
            ways |= {f"found layers from step {start}": (best, start) for start in settings.windows}
        for name, (layers, start) in ways.items():
            drawn = dp.edit_text(pipe, pairs, layers, start_step=start, **common)
            if name == "found layers":
                shown += [drawn.source, drawn.target] if not scene else [drawn.target]
                if not scene:
                    rows["source as it is"] = measured(drawn.source, drawn.source, sources, targets)
                rows[f"prompt swap{scene}"] = measured(drawn.target, drawn.source, sources, targets)
            if not (scene and name == "all layers"):
                shown.append(drawn.edited)
            rows[f"{name}{scene}"] = measured(drawn.edited, drawn.source, sources, targets)
    save(shown, out / "edit.png")
    return rows


def save(shown: list[Tensor], path: Path) -> None:
    """The first rows of pictures, one column for each way."""
    pixels = (255 * torch.stack(shown, 1)[:6].flatten(0, 1)).round().byte().permute(0, 2, 3, 1).numpy()
    grid([Image.fromarray(picture) for picture in pixels], len(shown)).save(path)


def replaced(settings: argparse.Namespace, pipe: object, best: list[int]) -> dict[str, dict[str, float]]:
    """Unwanted words, drawn as asked, with a negative prompt, and never read by the layers that write."""
    words = asked(settings.pairs, settings.seed + 1)
    unwanted, wanted = ([row[place] for row in words] for place in (0, 1))
    prompts = [word.caption for word in unwanted]
    common = {"steps": settings.steps, "guidance": settings.guidance}
    lexicon = {one.text: other.text for one, other in zip(unwanted, wanted, strict=True)}
    starts = {start: f"replaced from step {start}" if start else "replaced" for start in (0, *settings.windows)}
    clean = {
        name: dp.replace_words(pipe, prompts, lexicon, best, start_step=start, **common)[0]
        for start, name in starts.items()
    }
    plain, _ = dp.replace_words(pipe, prompts, {}, best, **common)
    negative = [
        dp.replace_words(
            pipe, [prompt], {}, best, seeds=[42 + number], settings={"negative_prompt": word.text}, **common
        )[0]
        for number, (prompt, word) in enumerate(zip(prompts, unwanted, strict=True))
    ]
    found = {"as asked": plain, "negative prompt": torch.cat(negative), **clean}
    return {name: measured(pictures, plain, unwanted, wanted) for name, pictures in found.items()}


def given(settings: argparse.Namespace, pipe: Any, best: list[int], out: Path) -> dict[str, dict[str, float]]:
    """Pictures that the pipeline has not drawn, without guidance from the noise that gives them."""
    words = asked(settings.pairs, settings.seed + 2)
    sources, targets = ([row[place] for row in words] for place in (0, 1))
    pairs = [(source.caption, target.caption) for source, target in zip(sources, targets, strict=True)]
    size = pipe.vae_scale_factor * pipe.unet.config.sample_size
    pictures = torch.stack([to_tensor(word.picture(size)) for word in sources])
    latents = dp.invert_pictures(pipe, pictures, [source for source, _ in pairs], steps=settings.steps)
    drawn = dp.edit_text(pipe, pairs, best, steps=settings.steps, guidance=1.0, latents=latents, batch=8)
    found = {
        "picture as it is": pictures,
        "drawn again": drawn.source,
        "prompt swap": drawn.target,
        "found layers": drawn.edited,
    }
    save(list(found.values()), out / "given.png")
    return {name: measured(some, pictures, sources, targets) for name, some in found.items()}


def table(rows: dict[str, dict[str, float]]) -> str:
    """Lines of columns."""
    names = list(next(iter(rows.values())))
    lines = [f"{'':<30}" + "".join(f"{name:>16}" for name in names)]
    lines += [f"{name:<30}" + "".join(f"{row[column]:>16.3f}" for column in names) for name, row in rows.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("found", type=Path, help="the folder of `diffusion-peft localize`")
    parser.add_argument("out", type=Path)
    parser.add_argument("--pipeline", default="mini_sd")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--windows", type=int, nargs="*", default=[2, 6, 12], help="further first steps")
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    settings.out.mkdir(parents=True, exist_ok=True)
    best = dp.Localization.load(settings.found / "localization.json").best_set()
    pipe = open_pipeline(settings.pipeline)
    rows = {
        "editing": edited(settings, pipe, best, settings.out),
        "replacing": replaced(settings, pipe, best),
        "given pictures": given(settings, pipe, best, settings.out),
    }
    for name, found in rows.items():
        print(f"{name}, layers {best}:\n{table(found)}\n")
    (settings.out / "edit.json").write_text(json.dumps({"layers": best, **rows}, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {settings.out / 'edit.json'} and pictures")


if __name__ == "__main__":
    main()
