"""Tune the denoiser of a pipeline to captioned pictures, with any method or all of it.

Autoencoder and text encoders are frozen: pictures and captions are encoded once, before training.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import PartialState
from torch import Tensor, nn

from diffusion_peft.data.framing import Framed, Framing, Pictures, Some
from diffusion_peft.data.latents import LatentPictures
from diffusion_peft.data.open import open_pictures
from diffusion_peft.tasks.compared import ComparedPictures
from diffusion_peft.tasks.denoising import explained, fixed_draws
from diffusion_peft.tasks.encoded import fingerprint, latent_moments, modules_of, on_device, upcast
from diffusion_peft.tasks.objectives import Objective, objective_of
from diffusion_peft.tasks.pipeline_task import PipelineTask, pieces
from diffusion_peft.tasks.prior import class_pictures
from diffusion_peft.tasks.tuning_spec import TuningData, TuningSpec
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

    def build_model(self) -> nn.Module:
        """The denoiser with its pretrained weights.

        Raises:
            DataError: the pipeline cannot be had, or cannot be tuned; a wrong prediction type.
        """
        spec, pipeline = self.model_settings, self.open()
        self.objective = objective_of(
            pipeline.scheduler, spec.prediction_type, spec.snr_gamma, spec.flow_sampling, spec.pipeline
        )
        return self.kind.denoiser

    # --- data ----------------------------------------------------------------------------------------------------
    def part(self, part: str) -> LatentPictures:
        """The latents of one part, and the table of its captions."""
        if part not in self.encoded:
            words = [""]
            with PartialState().main_process_first():  # others read what the first has written
                self.encoded[part] = self.latents_of(part, words)
            self.tables[part] = self.captions.rows(words)
        return self.encoded[part]

    def latents_of(self, part: str, words: list[str]) -> LatentPictures:
        spec, data = self.model_settings, self.data
        training = part == "train"
        framing = Framing(self.size, data.crop, data.flip) if training else Framing(self.size)
        prior = self.prior() if training and data.prior.prompt else None
        pictures = Framed(self.pictures(part), framing, words, self.seed, prior, data.prior.weight)
        vae, cache, about = self.kind.pipeline.vae, None, {}
        if data.cache is not None:
            settings = asdict(replace(data, root=None, cache=None, prior=replace(data.prior, root=None)))
            about = {**settings, "size": self.size, "part": part, "seed": self.seed, "vae": fingerprint(vae)}
            cache = self.cache(f"tuning_{part}")
        with on_device(vae), upcast(vae):
            return LatentPictures(
                pictures,
                lambda images: latent_moments(vae, images),
                data.pool if training else 1,
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
        least = 1 if data.enlarge else self.size
        found = open_pictures(data.name, data.root, data.column, data.prompt, least, self.size)
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
                    with fixed_draws(self.seed, number, shift):
                        timesteps = self.objective.spread(latents, shift, times)
                        errors, squares = self.objective.errors(predict, latents, timesteps)
                    sums["error"] += errors.double().sum().cpu()
                    sums["target"] += squares.double().sum().cpu()
                    sums["count"] += len(latents)
        return sums

    def figures(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """`explained` share of the target's squares, and `loss`, the mean squared error over all levels of noise."""
        return explained(sums)

    def about(self) -> dict[str, str]:
        """What was tuned to what, in words."""
        data, train = self.data, self.encoded["train"]
        judged = f"the last {data.test_size} judge" if data.test_size else "they judge, too"
        return {
            "Pipeline": f"{self.model_settings.pipeline}, its {self.kind.part} ({type(self.kind.denoiser).__name__})",
            "Pictures": f"{len(train):,} of {data.name}, {self.size} pixels; {judged}",
        }

    def compared(self) -> ComparedPictures | None:
        """What a comparison draws with the task's models, once one is built; None where it is to draw nothing."""
        spec = self.model_settings.compared
        return ComparedPictures(self, spec.count, spec.unrelated) if spec.count else None
