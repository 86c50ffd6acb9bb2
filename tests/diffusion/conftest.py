"""A few made-up emoji, and an untrained autoencoder with its tokenizer: what a diffusion run needs, in miniature."""

import json
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

from tests.diffusion.command import CAPTIONED, picture
from tests.diffusion.tiny_pipelines import KINDS, LABELS, save

FAMILIES = 40
TONED = 3  # the last families come in three tones


@pytest.fixture(scope="session")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty families of emoji of 32 pixels as an imagefolder, `folder`, and the same as `zipped/x.zip`."""
    root = tmp_path_factory.mktemp("emoji")
    rng = np.random.default_rng(0)
    (root / "folder").mkdir()
    rows = []
    for number in range(FAMILIES):
        tones = ["", "1f3fb", "1f3ff"] if number >= FAMILIES - TONED else [""]
        for tone in tones:
            points = [f"{0x1F600 + number:x}", *([tone] if tone else [])]
            name = "emoji_u" + "_".join(points) + ".png"
            text = f"thing number {number}" + {"": "", "1f3fb": " with skin tone type-1-2"}.get(tone, " with tone")
            pixels = rng.integers(0, 255, (32, 32, 4), np.uint8)
            pixels[:8, :, 3] = 0
            Image.fromarray(pixels, "RGBA").save(root / "folder" / name)
            rows.append({"file_name": name, "text": text, "codepoints": points})
    (root / "folder" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (root / "zipped").mkdir()
    with ZipFile(root / "zipped" / "x.zip", "w") as file:
        for path in sorted((root / "folder").iterdir()):
            file.write(path, f"inner/{path.name}")
    return root


@pytest.fixture(scope="session")
def parts(emoji: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`vae` and `tokenizer` as a run of the autoencoder leaves them, untrained: 32 pixels to 8 x 8 latents."""
    from diffusion_peft.tasks.autoencoder import AutoencoderSpec, Autoencoding
    from diffusion_peft.tasks.drawing import DataSpec

    folder = tmp_path_factory.mktemp("parts")
    spec = AutoencoderSpec(widths=(8, 8, 8), latent_channels=4)
    task = Autoencoding(spec, DataSpec(root=str(emoji / "folder"), size=32, words=8), seed=0)
    task.write(task.build_model(), folder)
    return folder


@pytest.fixture(scope="session")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures with captions that also are classes."""
    root = tmp_path_factory.mktemp("captioned")
    rows = [{"file_name": f"{number}.png", "text": LABELS[number % 3], "said": "a star"} for number in range(CAPTIONED)]
    for number, row in enumerate(rows):
        picture(number).save(root / row["file_name"])
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline of every kind."""
    root = tmp_path_factory.mktemp("pipelines")
    for kind in KINDS:
        save(kind, root / kind)
    return root
