"""What a comparison of pipelines looks at: what they draw, base model and adapted ones from the same noise.

Tuned ones draw for the captions of their data, and for unrelated prompts; picture n of either kind has seed n. Those of
one step draw for the captions and noises that judge them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from diffusion_peft.data.framing import Framing
from diffusion_peft.data.unrelated import unrelated_prompts
from diffusion_peft.pipelines.one_step import one_step_scheduler
from diffusion_peft.pipelines.sampling import with_scheduler
from diffusion_peft.tasks.encoded import modules_of, on_device
from diffusion_peft.tasks.teacher import captions_of, teacher_scheduler

if TYPE_CHECKING:
    from diffusion_peft.tasks.one_step import OneStepTuning
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
        wanted: what the pictures are compared with.
    """

    wanted = "data"

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


class OneStepPictures:
    """The pictures that judge a pipeline of one step, which is open.

    Args:
        task: draws them.

    Attributes:
        prompts: the `own` captions, a picture each.
        wanted: what the pictures are compared with, picture by picture: what the teacher draws from the same noise.
    """

    wanted = "teacher"

    def __init__(self, task: OneStepTuning):
        self.task, self.judging = task, task.part("test")
        known = ["", *captions_of(task.data, "test")]
        self.prompts = {"own": [known[number] for number in self.judging.captions]}

    def real(self) -> Tensor:
        """The teacher's pictures, uint8 `[N, 3, S, S]`."""
        with torch.no_grad(), on_device(self.task.vae) as device:
            parts = self.judging.latents.split(self.task.model_settings.encode_batch)
            found = torch.cat([self.task.decoded(some.to(device)).cpu() for some in parts]).contiguous()
        return (255 * found.clamp(0, 1)).round().to(torch.uint8)

    def draw(self, model: nn.Module, kind: str) -> Tensor:
        """What one step makes of the same captions and noises with `model` as the denoiser, uint8 `[N, 3, S, S]`."""
        return stacked(self.task.sampled(model, self.prompts[kind], self.judging.seeds))

    def calls(self, count: int) -> dict[str, Callable[[], Any]]:
        """Ordinary calls, from captions to pictures, that draw `count` of them: by the `teacher`, and in `one` step."""
        task, teacher = self.task, self.task.data.teacher
        pipeline, size = task.kind.pipeline, {"height": task.size, "width": task.size}
        prompts = [self.prompts["own"][number % len(self.judging)] for number in range(count)]

        def call(scheduler: Any, steps: int, guidance: float) -> Any:
            with with_scheduler(pipeline, scheduler), on_device(*modules_of(pipeline)):
                return pipeline(prompts, num_inference_steps=steps, guidance_scale=guidance, **size)

        many = teacher_scheduler(pipeline.scheduler, teacher)
        one = one_step_scheduler(pipeline.scheduler)
        return {
            "teacher": lambda: call(many, teacher.steps, teacher.guidance),
            "one": lambda: call(one, 1, task.step.guidance),
        }


def stacked(pictures: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size as uint8 `[N, 3, S, S]`."""
    return torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])
