"""Tune the denoiser of a pipeline to captioned pictures, with any method or all of it.

The model of the run is the UNet or transformer itself, so that an adapter's keys are those that diffusers and PEFT
expect. Autoencoder and text encoders are frozen: pictures and captions are encoded once, before training.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor, nn

from diffusion_peft.data.framing import Framed, Framing, Pictures, Some
from diffusion_peft.data.latents import LatentPictures
from diffusion_peft.data.open import open_pictures
from diffusion_peft.pipelines.kinds import Given, Kind, kind_of
from diffusion_peft.pipelines.opening import open_pipeline, part_of, picture_size
from diffusion_peft.pipelines.sampling import Sampling, grid, sample
from diffusion_peft.tasks.compared import ComparedPictures
from diffusion_peft.tasks.denoising import Averaged, explained, fixed_draws
from diffusion_peft.tasks.encoded import Captions, fingerprint, latent_moments, modules_of, on_device, upcast
from diffusion_peft.tasks.objectives import Objective, objective_of
from diffusion_peft.tasks.prior import class_pictures
from diffusion_peft.tasks.tuning_spec import TuningData, TuningSpec
from diffusion_peft.tasks.usage import usage
from peft_kernels.data_errors import DataError

JUDGED = 64  # errors that a judgement stands on at least, whatever the number of test pictures
TOGETHER = 16  # pictures judged at once


class PipelineTuning:
    """Judged by the share of its target that the denoiser explains, over all levels of noise."""

    model_spec: ClassVar[type] = TuningSpec
    data_spec: ClassVar[type] = TuningData
    metric: ClassVar[str] = "explained"

    def __init__(
        self, model: TuningSpec, data: TuningData, seed: int, told: Callable[[str, int, int], None] | None = None
    ):
        self.model_settings, self.data, self.seed, self.told = model, data, seed, told
        self.folder: Path | None = None
        self.kind: Kind
        self.objective: Objective
        self.size = 0
        self.encoded: dict[str, LatentPictures] = {}
        self.captions: Captions
        self.tables: dict[str, Given] = {}  # the captions of each part, by number

    def use_folder(self, folder: Path) -> None:
        """Where the run may leave files."""
        self.folder = folder

    def build_model(self) -> nn.Module:
        """The denoiser with its pretrained weights.

        Raises:
            DataError: the pipeline cannot be had, or cannot be tuned; a wrong prediction type.
        """
        spec = self.model_settings
        pipeline = open_pipeline(spec.pipeline, spec.dtype)
        self.kind = kind_of(pipeline, spec.max_tokens)
        self.captions = Captions(self.kind, spec.encode_batch, self.told, self.cache("captions"))
        self.objective = objective_of(
            pipeline.scheduler, spec.prediction_type, spec.snr_gamma, spec.flow_sampling, spec.pipeline
        )
        self.size = self.data.size or picture_size(pipeline)
        self.kind.check_size(self.size)
        return self.kind.denoiser

    # --- data ----------------------------------------------------------------------------------------------------
    def training_data(self, model: nn.Module) -> LatentPictures:
        return self.part("train")

    def test_data(self, model: nn.Module) -> LatentPictures:
        return self.part("test")

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

    def cache(self, name: str) -> Path | None:
        """The file that keeps what was encoded, if it is to be kept."""
        return None if self.data.cache is None else Path(self.data.cache).expanduser() / f"{name}.safetensors"

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
    def attached(self, model: nn.Module) -> None:
        """The method is on the model and the data are ready: what encodes them is of no more use.

        Raises:
            DataError: weights are trained in half precision.
        """
        half = [name for name, p in model.named_parameters() if p.requires_grad and p.dtype != torch.float32]
        if half:
            raise DataError(
                f"{half[0]} would be trained in {self.model_settings.dtype}, where small steps round to nothing: "
                "set model.dtype float32, or run.precision bf16 beside it"
            )
        spec = self.model_settings
        self.captions.rows(spec.samples.prompts)
        self.kind.release_text()
        if not spec.samples.prompts:
            self.kind.pipeline.register_modules(vae=None)
        if spec.ema_decay:
            model.average = Averaged((p for p in model.parameters() if p.requires_grad), spec.ema_decay, False)

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

    def head(self, model: nn.Module) -> list[str]:
        """Nothing that every adaptation trains anew."""
        return []

    def prompts(self) -> tuple[str, ...]:
        return self.model_settings.samples.prompts

    def about(self) -> dict[str, str]:
        """What was tuned to what, in words."""
        data, train = self.data, self.encoded["train"]
        judged = f"the last {data.test_size} judge" if data.test_size else "they judge, too"
        return {
            "Pipeline": f"{self.model_settings.pipeline}, its {self.kind.part} ({type(self.kind.denoiser).__name__})",
            "Pictures": f"{len(train):,} of {data.name}, {self.size} pixels; {judged}",
        }

    def usage(self, method: str | None) -> str:
        """Python that puts the run's `adapter` folder, named FOLDER, on the pipeline."""
        name = self.model_settings.pipeline
        return usage(name, part_of(name), method)

    def draw(self, model: nn.Module) -> Image.Image | None:
        """The prompts of the recipe, a row each, with its seeds; None where there are none."""
        spec = self.model_settings.samples
        if not spec.prompts:
            return None
        prompts = [prompt for prompt in spec.prompts for _ in spec.seeds]
        return grid(self.sampled(model, prompts, [*spec.seeds] * len(spec.prompts)), len(spec.seeds))

    def sampled(self, model: nn.Module, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """A picture for each prompt and its seed, drawn with what is kept of the model; the model is left as it is."""
        spec, found = self.model_settings, []
        rows, absent = self.captions.rows(prompts), self.captions.rows([""])
        how = Sampling(spec.samples.steps, spec.samples.guidance, self.size)
        with self.kept(model), on_device(self.kind.pipeline.vae):
            for begin in range(0, len(prompts), spec.encode_batch):
                some = slice(begin, begin + spec.encode_batch)
                given = {name: row[some] for name, row in rows.items()}
                found += sample(self.kind, given, absent, seeds[some], how)
                if self.told is not None:
                    self.told("draw", len(found), len(prompts))
        return found

    def compared(self) -> ComparedPictures | None:
        """What a comparison draws with the task's models, once one is built; None where it is to draw nothing."""
        spec = self.model_settings.compared
        return ComparedPictures(self, spec.count, spec.unrelated) if spec.count else None


def pieces(batches: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """The batches in pieces of at most `TOGETHER` samples."""
    for batch in batches:
        for begin in range(0, len(batch["latents"]), TOGETHER):
            yield {name: values[begin : begin + TOGETHER] for name, values in batch.items()}
