"""What tasks share that train the denoiser of a pipeline: the pipeline, captions, averages, pictures on the way.

The model of a run is the UNet or transformer itself, so that an adapter's keys are those that diffusers and PEFT
expect.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from diffusion_peft.pipelines.kinds import Given, Kind, kind_of
from diffusion_peft.pipelines.opening import open_pipeline, part_of, picture_size
from diffusion_peft.pipelines.sampling import Sampling, check_sampling, grid, sample
from diffusion_peft.tasks.denoising import Averaged
from diffusion_peft.tasks.encoded import Captions, on_device
from diffusion_peft.tasks.steered import steered
from diffusion_peft.tasks.usage import usage
from peft_kernels.data_errors import DataError

TOGETHER = 16  # pictures judged at once


class PipelineTask:
    """Its settings have `pipeline`, `dtype`, `max_tokens`, `encode_batch`, `ema_decay` and `samples`; its data `size`
    and `cache`. A task fills `encoded` and `tables` in `part`."""

    def __init__(self, model: Any, data: Any, seed: int, told: Callable[[str, int, int], None] | None = None):
        self.model_settings, self.data, self.seed, self.told = model, data, seed, told
        self.folder: Path | None = None
        self.kind: Kind
        self.size = 0
        self.encoded: dict[str, Any] = {}
        self.captions: Captions
        self.tables: dict[str, Given] = {}  # the captions of each part, by number

    def use_folder(self, folder: Path) -> None:
        """Where the run may leave files."""
        self.folder = folder

    def open(self) -> Any:
        """The pipeline; what is known of its kind."""
        spec = self.model_settings
        pipeline = open_pipeline(spec.pipeline, spec.dtype)
        self.kind = kind_of(pipeline, spec.max_tokens)
        self.captions = Captions(self.kind, spec.encode_batch, self.told, self.cache("captions"))
        self.size = self.data.size or picture_size(pipeline)
        self.kind.check_size(self.size)
        return pipeline

    def training_data(self, model: nn.Module) -> Any:
        return self.part("train")

    def test_data(self, model: nn.Module) -> Any:
        return self.part("test")

    def part(self, part: str) -> Any:
        """The samples of one part (`train` or `test`), prepared once."""
        raise NotImplementedError

    def cache(self, name: str) -> Path | None:
        """The file that keeps what was encoded, if it is to be kept."""
        return None if self.data.cache is None else Path(self.data.cache).expanduser() / f"{name}.safetensors"

    def attached(self, model: nn.Module) -> None:
        """The method is on the model and the data are ready: what encodes them is of no more use.

        Raises:
            DataError: weights are trained in half precision, or the samples cannot be drawn.
        """
        half = [name for name, p in model.named_parameters() if p.requires_grad and p.dtype != torch.float32]
        if half:
            raise DataError(
                f"{half[0]} would be trained in {self.model_settings.dtype}, where small steps round to nothing: "
                "set model.dtype float32, or run.precision bf16 beside it"
            )
        spec = self.model_settings
        if self.prompts():
            check_sampling(self.kind, spec.samples.seeds, self.how())
        self.captions.rows(self.prompts())
        self.kind.release_text()
        if not self.prompts():
            self.kind.pipeline.register_modules(vae=None)
        if spec.ema_decay:
            model.average = Averaged((p for p in model.parameters() if p.requires_grad), spec.ema_decay, False)

    def given(self, part: str, captions: Tensor, batch: dict[str, Tensor]) -> Given:
        """What the denoiser is told beside latents and timesteps."""
        numbers, place = captions.cpu(), captions.device
        rows = {name: rows[numbers].to(place) for name, rows in self.tables[part].items()}
        return self.cast({**rows, "framing": batch["framing"]})

    def cast(self, rows: Given) -> Given:
        dtype = self.kind.dtype
        return {name: row.to(dtype) if row.is_floating_point() else row for name, row in rows.items()}

    def predictor(self, model: Callable[..., Any], given: Given) -> Callable[[Tensor, Tensor], Tensor]:
        """The prediction alone, where the denoiser also predicts a variance."""
        dtype = self.kind.dtype

        def predict(noised: Tensor, timesteps: Tensor) -> Tensor:
            return self.kind.predict(model, noised.to(dtype), timesteps, given)[:, : noised.shape[1]]

        return predict

    def after_step(self, model: Any, steps: int) -> None:
        """Renew the averaged weights; `steps` optimiser steps are done."""
        if self.model_settings.ema_decay:
            model.average.step([p for p in model.parameters() if p.requires_grad], steps)

    def kept(self, model: Any) -> AbstractContextManager[None]:
        """Within the block the model holds what is judged and kept: the averages, where there are some."""
        average = getattr(model, "average", None)
        if average is None:
            return nullcontext()
        return average.in_place_of([p for p in model.parameters() if p.requires_grad])

    def head(self, model: nn.Module) -> list[str]:
        """Nothing that every adaptation trains anew."""
        return []

    def prompts(self) -> tuple[str, ...]:
        return self.model_settings.samples.prompts

    def usage(self, method: str | None) -> str:
        """Python that puts the run's `adapter` folder, named FOLDER, on the pipeline."""
        name = self.model_settings.pipeline
        return usage(name, part_of(name), method)

    def how(self) -> Sampling:
        """How pictures are drawn that show the training."""
        spec = self.model_settings.samples
        return Sampling(spec.steps, spec.guidance, self.size)

    def draw(self, model: nn.Module) -> Image.Image | None:
        """The prompts of the recipe, a row each, with its seeds; None where there are none."""
        spec = self.model_settings.samples
        if not spec.prompts:
            return None
        prompts = [prompt for prompt in spec.prompts for _ in spec.seeds]
        return grid(self.sampled(model, prompts, [*spec.seeds] * len(spec.prompts)), len(spec.seeds))

    def sampled(
        self, model: nn.Module, prompts: Sequence[str], seeds: Sequence[int], images: Tensor | None = None
    ) -> list[Image.Image]:
        """A picture for each prompt and its seed, drawn with what is kept of the model; the model is left as it is.

        `images` `[N, 3, S, S]` in [0, 1] are the condition images of a model that pictures steer.
        """
        batch, how, found = self.model_settings.encode_batch, self.how(), []
        rows, absent = self.captions.rows(prompts), self.captions.rows([""])
        with self.kept(model), on_device(self.kind.pipeline.vae):
            for begin in range(0, len(prompts), batch):
                some = slice(begin, begin + batch)
                given = {name: row[some] for name, row in rows.items()}
                with steered(self.kind.denoiser, None if images is None else images[some], guided=True):
                    found += sample(self.kind, given, absent, seeds[some], how)
                if self.told is not None:
                    self.told("draw", len(found), len(prompts))
        return found


def pieces(batches: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """The batches in pieces of at most `TOGETHER` samples."""
    for batch in batches:
        for begin in range(0, len(batch["latents"]), TOGETHER):
            yield {name: values[begin : begin + TOGETHER] for name, values in batch.items()}
