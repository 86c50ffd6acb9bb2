"""What a comparison of tuned pipelines looks at: pictures for the captions of their data, and for unrelated prompts.

Picture n of either kind has seed n, so that base model and adapted ones start from the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from diffusion_peft.data.framing import Framing
from diffusion_peft.data.unrelated import unrelated_prompts

if TYPE_CHECKING:
    from diffusion_peft.tasks.tuning import PipelineTuning

VARIATION = 1  # of sets that are drawn: the same subjects as in the pictures trained on, in other pictures


class ComparedPictures:
    """The pictures of one task, whose pipeline is open.

    Args:
        task: draws them.
        count: pictures of either kind; of the data at most as many as there are, from first to last in equal steps.
        unrelated: prompts, instead of the classes of the pipeline, or emoji and words.

    Attributes:
        prompts: `own` captions of the data, and those that are `unrelated` to them.
    """

    def __init__(self, task: PipelineTuning, count: int, unrelated: Sequence[str] = ()):
        self.task = task
        parts = [task.pictures(part) for part in (("train", "test") if task.data.test_size else ("train",))]
        keys = [(part, index) for part in parts for index in range(len(part))]
        chosen = [keys[place] for place in np.linspace(0, len(keys) - 1, min(count, len(keys))).round().astype(int)]
        self.references = [part.drawn((VARIATION, index)) for part, index in chosen]
        usual = [*(getattr(task.kind.pipeline, "labels", None) or unrelated_prompts(count))][:count]
        self.prompts = {"own": [drawn.caption for drawn in self.references], "unrelated": list(unrelated or usual)}

    def real(self) -> Tensor:
        """Pictures of the data that the own captions belong to, uint8 `[N, 3, S, S]`."""
        framing, rng = Framing(self.task.size), np.random.default_rng(0)
        return stacked([framing.framed(drawn.image, rng)[0] for drawn in self.references])

    def draw(self, model: nn.Module, kind: str) -> Tensor:
        """What the pipeline makes of the prompts of a kind with `model` as its denoiser, uint8 `[N, 3, S, S]`."""
        prompts = self.prompts[kind]
        return stacked(self.task.sampled(model, prompts, range(len(prompts))))


def stacked(pictures: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size as uint8 `[N, 3, S, S]`."""
    return torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])
