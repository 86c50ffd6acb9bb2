"""The diffusion program, carried out in this process."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from peft_runs.commands import main
from peft_runs.families import DIFFUSION
from tests.diffusion.tiny_pipelines import SIZE

CAPTIONED = 8  # pictures
FLOWS = ("sd3", "flux")


def here(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, output and error output of a command."""
    capsys.readouterr()
    code = main(DIFFUSION, [str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err.strip()


def small(task: str, emoji: Path, parts: Path, recipe: str | None = None) -> tuple[str, ...]:
    """A recipe of six steps on few pictures of 32 pixels, as words of the command line; `task` names its sizes."""
    sizes = {
        "mini_vae": ("--model.widths", "[8, 8, 8]", "--model.latent_channels", "4"),
        "mini_sd": (
            *("--model.parts", str(parts), "--model.widths", "[16, 16]", "--model.groups", "8"),
            *("--model.text_width", "16", "--model.text_layers", "1", "--model.text_heads", "2"),
        ),
        "mini_dit": ("--model.parts", str(parts), "--model.layers", "2", "--model.head_width", "8"),
    }
    pool = () if task == "mini_vae" else ("--data.pool", "2")
    return (
        *("--recipe", recipe or task, *sizes[task], "--data.root", str(emoji / "folder"), "--data.size", "32", *pool),
        *("--data.words", "22", "--optim.batch_size", "20", "--run.epochs", "2", "--run.evaluate_epochs", "1"),
        *("--run.checkpoint_steps", "2"),
    )


def picture(number: int) -> Image.Image:
    """Noise, a little larger than what tiny pipelines make, and no square."""
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 255, (SIZE + 4, SIZE + 8, 3), np.uint8))


def tuned(pipeline: Path, root: Path) -> tuple[str, ...]:
    """Four steps of LoRA, as words of the command line."""
    return (
        *("--recipe", "domain", "--model.pipeline", str(pipeline), "--data.root", str(root), "--data.size", str(SIZE)),
        *("--model.samples.prompts", "[star]", "--model.samples.steps", "2", "--data.test_size", "2"),
        *("--method.r", "2", "--method.target_modules", "[to_q, to_v]", "--optim.batch_size", "3"),
        *("--run.epochs", "2", "--run.evaluate_epochs", "1", "--data.pool", "2"),
        *("--model.snr_gamma", "null" if pipeline.name in FLOWS else "5"),
    )
