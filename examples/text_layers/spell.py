"""LoRA on the layers that draw the text against LoRA on all cross-attention: spelling, and what stays as it was.

    python examples/text_layers/spell.py FOUND OUT [--epochs 15] [--words 64] [--guidance 4]

FOUND is the folder of `diffusion-peft localize`. Three adapters are trained by the recipe `spelling`, with the same
data and steps: on the found layers, on all with the same rank, and on all with about the same number of parameters.
They draw words that none was trained on; `letters` and `words` are the shares that are right, `kept` is the structural
similarity (SSIM) of emoji to the base model's. OUT gets the runs and spell.json; called again, it goes on with what is
missing.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import diffusion_peft as dp
from diffusion_peft.data.reading import letters_right, read_letters
from diffusion_peft.data.spelling import SpelledPictures
from diffusion_peft.data.unrelated import EMOJI
from diffusion_peft.localization.generations import Generations
from diffusion_peft.localization.measures import likeness
from diffusion_peft.pipelines.opening import open_pipeline

PROGRAM = "from peft_runs.commands import diffusion; diffusion()"
TOGETHER = 16  # pictures in one call


def trained(out: Path, settings: argparse.Namespace, targets: list[str], r: int) -> Path:
    """The folder of a finished training."""
    if not (out / "result.json").is_file():
        words = ["train", "--recipe", "spelling", "--model.pipeline", settings.pipeline, "--out", str(out)]
        words += ["--run.epochs", str(settings.epochs), "--run.evaluate_epochs", str(settings.epochs)]
        words += ["--method.target_modules", json.dumps(targets), "--method.r", str(r), "--method.lora_alpha", str(r)]
        subprocess.run(
            [sys.executable, "-c", PROGRAM, *words, "--run.threads", str(torch.get_num_threads())], check=True
        )
    return out


def parameters(pipe: Any, targets: list[str], r: int) -> int:
    """Of LoRA on these layers."""
    linear = [pipe.unet.get_submodule(name) for name in targets]
    return sum(r * (layer.in_features + layer.out_features) for layer in linear)


def drawn(pipe: Any, prompts: list[str], settings: argparse.Namespace) -> Tensor:
    """A picture a prompt, with the same seeds for every model."""
    run = Generations(pipe, settings.steps, settings.guidance)
    parts = [range(first, min(first + TOGETHER, len(prompts))) for first in range(0, len(prompts), TOGETHER)]
    return torch.cat([run.pictures([prompts[place] for place in part], part) for part in parts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("found", type=Path, help="the folder of `diffusion-peft localize`")
    parser.add_argument("out", type=Path)
    parser.add_argument("--pipeline", default="mini_sd")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--words", type=int, default=64)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=4.0)
    settings = parser.parse_args()
    settings.out.mkdir(parents=True, exist_ok=True)
    pipe, rank = open_pipeline(settings.pipeline), settings.rank
    best = dp.Localization.load(settings.found / "localization.json").best_set()
    every = [layer.index for layer in dp.text_layers(pipe)]
    found, whole = (sorted(dp.localized_lora(pipe, some).target_modules or ()) for some in (best, every))
    small = max(1, round(rank * parameters(pipe, found, 1) / parameters(pipe, whole, 1)))
    ways = {
        f"layers {'+'.join(map(str, best))}, r = {rank}": ("found", found, rank),
        f"all, r = {rank}": ("all", whole, rank),
        f"all, r = {small}": ("all_small", whole, small),
    }
    runs = {name: trained(settings.out / folder, settings, *how) for name, (folder, *how) in ways.items()}
    words = SpelledPictures().tested[: settings.words]
    rows: dict[str, dict[str, float]] = {}
    emoji: Tensor | None = None
    for name, folder in {"base": None, **runs}.items():
        pipe = open_pipeline(settings.pipeline)
        if folder is not None:
            dp.load_adapter(pipe, folder / "adapter")
        pictures = drawn(pipe, [word.caption for word in words], settings)
        read = [read_letters(picture[None], len(word.text))[0] for picture, word in zip(pictures, words, strict=True)]
        others = drawn(pipe, list(EMOJI), settings)
        emoji = others if emoji is None else emoji
        rows[name] = {
            "parameters": sum(p.numel() for key, p in pipe.unet.named_parameters() if "lora_" in key),
            "letters": letters_right(read, [word.text for word in words]),
            "words": sum(text == word.text for text, word in zip(read, words, strict=True)) / len(words),
            "kept": sum(likeness(others, emoji)) / len(others),
        }
    asked = {name: value for name, value in vars(settings).items() if not isinstance(value, Path)}
    written = {"layers": best, "settings": asked, "rows": rows}
    (settings.out / "spell.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    for name, row in rows.items():
        print(f"{name:<20}{row['parameters']:>10,}" + "".join(f"  {key} {row[key]:.3f}" for key in list(row)[1:]))


if __name__ == "__main__":
    main()
