"""Tune the denoiser of a pipeline to captioned pictures, with any method or all of it.

Autoencoder and text encoders are frozen: pictures and captions are encoded once, before training.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor, nn

from diffusion_peft.data.conditions import ConditionedLatents
from diffusion_peft.data.drawn import Key
from diffusion_peft.data.framing import Framed, Framing, Pictures, Some
from diffusion_peft.data.latents import LatentPictures
from diffusion_peft.data.open import open_pictures
from diffusion_peft.methods.scedit import condition_sizes
from diffusion_peft.pipelines.sampling import grid
from diffusion_peft.pipelines.scedit import STEERED
from diffusion_peft.tasks.compared import ComparedPictures
from diffusion_peft.tasks.denoising import explained, fixed_draws
from diffusion_peft.tasks.encoded import fingerprint, latent_moments, modules_of, on_device, upcast
from diffusion_peft.tasks.objectives import Objective, objective_of
from diffusion_peft.tasks.pipeline_task import PipelineTask, pieces
from diffusion_peft.tasks.prior import class_pictures
from diffusion_peft.tasks.steered import check_samples, check_steering, steered
from diffusion_peft.tasks.tuning_spec import TuningData, TuningSpec
from diffusion_peft.tasks.usage import steered_usage
from peft_kernels.data_errors import DataError

JUDGED = 64  # errors that a judgement stands on at least, whatever the number of test pictures


class PipelineTuning(PipelineTask):
    """Judged by the share of its target that the denoiser explains, over all levels of noise."""

    model_spec: ClassVar[type] = TuningSpec
    data_spec: ClassVar[type] = TuningData
    metric: ClassVar[str] = "explained"
    model_settings: TuningSpec
    data: TuningData
    objective: Objective
    opened: Pictures | None = None  # all pictures, once they are asked for

    def build_model(self) -> nn.Module:
        """The denoiser with its pretrained weights.

        Raises:
            DataError: the pipeline cannot be had, or cannot be tuned; a wrong prediction type.
        """
        check_samples(self.model_settings.samples, self.data.condition)
        spec, pipeline = self.model_settings, self.open()
        self.objective = objective_of(
            pipeline.scheduler, spec.prediction_type, spec.snr_gamma, spec.flow_sampling, spec.pipeline
        )
        return self.kind.denoiser

    # --- data ----------------------------------------------------------------------------------------------------
    def part(self, part: str) -> LatentPictures | ConditionedLatents:
        """The latents of one part, with the condition images of their pictures, and the table of its captions."""
        if part not in self.encoded:
            words, condition = [""], self.data.condition
            with PartialState().main_process_first():  # others read what the first has written
                pictures = self.framed(part, words)
                latents = self.latents_of(part, pictures, words)
            self.encoded[part] = ConditionedLatents(latents, pictures, condition) if condition.name else latents
            self.tables[part] = self.captions.rows(words)
        return self.encoded[part]

    def framed(self, part: str, words: list[str]) -> Framed:
        data, training = self.data, part == "train"
        framing = Framing(self.size, data.crop, data.flip) if training else Framing(self.size)
        prior = self.prior() if training and data.prior.prompt else None
        return Framed(self.pictures(part), framing, words, self.seed, prior, data.prior.weight)

    def latents_of(self, part: str, pictures: Framed, words: list[str]) -> LatentPictures:
        spec, data = self.model_settings, self.data
        vae, cache, about = self.kind.pipeline.vae, None, {}
        if data.cache is not None:
            settings = asdict(replace(data, root=None, cache=None, prior=replace(data.prior, root=None)))
            del settings["condition"]  # the latents are those of the pictures
            about = {**settings, "size": self.size, "part": part, "seed": self.seed, "vae": fingerprint(vae)}
            cache = self.cache(f"tuning_{part}")
        with on_device(vae), upcast(vae):
            return LatentPictures(
                pictures,
                lambda images: latent_moments(vae, images),
                data.pool if part == "train" else 1,
                about,
                cache,
                self.told,
                words,
                spec.encode_batch,
            )

    def pictures(self, part: str) -> Pictures:
        """The pictures of one part.

        Raises:
            DataError: there are none left to train on.
        """
        data = self.data
        if self.opened is None:
            least = 1 if data.enlarge else self.size
            self.opened = open_pictures(data.name, data.root, data.column, data.prompt, least, self.size)
        found = self.opened
        kept = len(found) - data.test_size
        if kept < 1:
            raise DataError(f"data.test_size is {data.test_size}, and there are only {len(found)} pictures in all")
        return Some(found, range(kept, len(found)) if part == "test" and data.test_size else range(kept))

    def sizes(self) -> tuple[int, int]:
        """Samples to train on and to judge by, before any is read."""
        own, prior = len(self.pictures("train")), self.data.prior
        return 2 * max(own, prior.count) if prior.prompt else own, len(self.pictures("test"))

    def prior(self) -> Pictures:
        """The base model's own pictures of the subject's class."""
        spec, model = self.data.prior, self.model_settings
        if spec.root is None and self.folder is None:
            raise DataError("pictures of the class need a place: add --data.prior.root FOLDER")
        folder = Path(spec.root).expanduser() if spec.root else Path(self.folder or "") / "class_pictures"
        wanted = {key: value for key, value in asdict(spec).items() if key not in ("root", "count", "weight")}
        about = json.dumps({"pipeline": model.pipeline, "size": self.size, **wanted}, indent=2)
        with on_device(*modules_of(self.kind.pipeline)):
            return class_pictures(self.kind, spec, folder, self.size, about, model.encode_batch, self.told)

    # --- training ------------------------------------------------------------------------------------------------
    def loss(self, model: Callable[..., Any], batch: dict[str, Tensor]) -> Tensor:
        """The batch's weighted mean squared error, float32 `[]`."""
        mean, deviation = batch["latents"].chunk(2, 1)
        latents = mean + deviation * torch.randn_like(mean)
        captions = batch["caption"]
        left_out = torch.rand(len(captions), device=captions.device) < self.model_settings.caption_dropout
        given = self.given("train", captions.masked_fill(left_out, 0), batch)
        timesteps = self.objective.random(latents)
        with steered(self.kind.denoiser, batch.get("condition")):
            errors, _ = self.objective.errors(self.predictor(model, given), latents, timesteps)
        return (errors * self.objective.weights(timesteps) * batch["weight"]).mean()

    # --- judging -------------------------------------------------------------------------------------------------
    def evaluate(self, model: Any, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Sums over the samples, with what is kept: `error`, `target` (squares) and `count`, float64 `[]`."""
        sums = {name: torch.zeros((), dtype=torch.float64) for name in ("error", "target", "count")}
        times = -(-JUDGED // len(self.encoded["test"]))
        with self.kept(model):
            for number, part in enumerate(pieces(batches)):
                latents, _ = part["latents"].chunk(2, 1)
                predict = self.predictor(model, self.given("test", part["caption"], part))
                for shift in range(times):
                    with fixed_draws(self.seed, number, shift), steered(self.kind.denoiser, part.get("condition")):
                        timesteps = self.objective.spread(latents, shift, times)
                        errors, squares = self.objective.errors(predict, latents, timesteps)
                    sums["error"] += errors.double().sum().cpu()
                    sums["target"] += squares.double().sum().cpu()
                    sums["count"] += len(latents)
        return sums

    def figures(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """`explained` share of the target's squares, and `loss`, the mean squared error over all levels of noise."""
        return explained(sums)

    # --- what is shown -------------------------------------------------------------------------------------------
    def attached(self, model: nn.Module) -> None:
        """As for any training of a pipeline.

        Raises:
            DataError: likewise; or the method and the condition images do not fit.
        """
        if self.data.condition.name or condition_sizes(model):
            pixels = 2 ** (len(self.kind.pipeline.vae.config.block_out_channels) - 1)
            check_steering(model, self.data.condition, pixels)
        super().attached(model)

    def examples(self) -> list[Key]:
        """Which of the pictures that judge are drawn from their condition images: from first to last in equal steps."""
        count = min(self.model_settings.samples.pictures, len(self.encoded["test"]))
        return [(0, int(place)) for place in np.linspace(0, len(self.encoded["test"]) - 1, count).round()]

    def prompts(self) -> tuple[str, ...]:
        """What is drawn on the way: the recipe's prompts, or the captions of the pictures that steer."""
        if not self.data.condition.name:
            return super().prompts()
        pictures = self.encoded["test"].pictures
        return tuple(pictures.drawn(key)[0].caption for key in self.examples())

    def draw(self, model: nn.Module) -> Image.Image | None:
        """As for any training; where pictures steer, a row has picture, condition image, and what is made of it."""
        prompts, seeds = self.prompts(), self.model_settings.samples.seeds
        if not self.data.condition.name or not prompts:
            return super().draw(model)
        data, condition = self.encoded["test"], self.data.condition
        squares = [data.picture(key) for key in self.examples()]
        images = torch.stack([condition.tensor(square) for square in squares]).repeat_interleave(len(seeds), 0)
        asked = [prompt for prompt in prompts for _ in seeds]
        drawn = iter(self.sampled(model, asked, [*seeds] * len(prompts), images))
        rows = [[square, condition(square), *(next(drawn) for _ in seeds)] for square in squares]
        return grid([picture for row in rows for picture in row], 2 + len(seeds))

    def usage(self, method: str | None) -> str:
        """Python that puts the run's `adapter` folder, named FOLDER, on the pipeline."""
        if not self.data.condition.name:
            return super().usage(method)
        return steered_usage(self.model_settings.pipeline, STEERED[type(self.kind.pipeline).__name__].__name__)

    def leave(self, folder: Path) -> None:
        """What steers the adapter, beside it."""
        if self.data.condition.name:
            self.data.condition.save(folder)

    def about(self) -> dict[str, str]:
        """What was tuned to what, in words."""
        data, train = self.data, self.encoded["train"]
        judged = f"the last {data.test_size} judge" if data.test_size else "they judge, too"
        facts = {
            "Pipeline": f"{self.model_settings.pipeline}, its {self.kind.part} ({type(self.kind.denoiser).__name__})",
            "Pictures": f"{len(train):,} of {data.name}, {self.size} pixels; {judged}",
        }
        if data.condition.name:
            facts["Steered by"] = f"{data.condition.name} of each picture; grids show picture, condition, samples"
        return facts

    def compared(self) -> ComparedPictures | None:
        """What a comparison draws with the task's models, once one is built; None where it is to draw nothing.

        Nothing is drawn where pictures steer: other prompts have none.
        """
        spec = self.model_settings.compared
        draws = spec.count and not self.data.condition.name
        return ComparedPictures(self, spec.count, spec.unrelated) if draws else None
