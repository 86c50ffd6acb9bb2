"""Train a pipeline to draw in one step: HiPA's task, for any method.

The denoiser is evaluated once, on noise at the last timestep; what its output makes of that noise is decoded and
compared with what the same pipeline, frozen, draws from the same noise in many steps (`teacher`).
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchmetrics.functional.image import structural_similarity_index_measure

from diffusion_peft.methods.hipa import HipaLoss
from diffusion_peft.pipelines.kinds import Kind
from diffusion_peft.pipelines.one_step import OneStep
from diffusion_peft.pipelines.sampling import Sampling
from diffusion_peft.tasks.compared import OneStepPictures
from diffusion_peft.tasks.encoded import fingerprint, modules_of, on_device
from diffusion_peft.tasks.one_step_spec import OneStepData, OneStepSpec
from diffusion_peft.tasks.pipeline_task import PipelineTask, pieces
from diffusion_peft.tasks.teacher import TeacherPictures, captions_of, check_latents, teacher_latents
from peft_kernels.data_errors import DataError, unknown
from peft_kernels.ops import clean_from, guided, highpass, highpass_mask
from peft_kernels.ops.one_step import PREDICTIONS

TEST_SEEDS = 2**31  # far from those of the pictures that are trained on


class OneStepTuning(PipelineTask):
    """Judged by the structural similarity (SSIM) of pictures of one step to the teacher's."""

    model_spec: ClassVar[type] = OneStepSpec
    data_spec: ClassVar[type] = OneStepData
    metric: ClassVar[str] = "ssim"
    of_method: ClassVar[tuple[str, ...]] = ("model.loss",)
    model_settings: OneStepSpec
    data: OneStepData

    def build_model(self) -> nn.Module:
        """The denoiser with its pretrained weights.

        Raises:
            DataError: the pipeline cannot be had, its scheduler cannot do one step, or the perceptual model is missing.
        """
        spec, pipeline = self.model_settings, self.open()
        check_latents(self.kind)
        if spec.prediction_type is not None:
            if spec.prediction_type not in PREDICTIONS:
                raise unknown("prediction type", spec.prediction_type, PREDICTIONS)
            scheduler = pipeline.scheduler
            other = type(scheduler).from_config(scheduler.config, prediction_type=spec.prediction_type)
            pipeline.register_modules(scheduler=other)
        self.step = OneStep.of(pipeline.scheduler, spec.guidance)
        if spec.t_min is not None and spec.t_min > self.step.timestep:
            raise DataError(f"model.t_min is {spec.t_min}, but the last timestep is {self.step.timestep}")
        vae = pipeline.vae  # in half precision it overflows (SDXL), or rounds what is compared
        self.vae = vae if vae.dtype == torch.float32 else copy.deepcopy(vae).float()
        self.compare = HipaLoss(spec.loss)
        self.teacher = fingerprint(self.kind.denoiser)
        return self.kind.denoiser

    def part(self, part: str) -> TeacherPictures:
        """The teacher's latents of one part, and the table of its captions.

        Raises:
            DataError: they are not all there, and the denoiser is no longer the teacher.
        """
        if part not in self.encoded:
            data, known = self.data, ["", *captions_of(self.data, part)]
            count, first = (data.count, 0) if part == "train" else (data.test_size, TEST_SEEDS)
            seeds = range(first, first + count)
            numbers = [1 + index % (len(known) - 1) for index in range(count)]
            self.tables[part] = self.captions.rows(known)
            rows = {name: rows[numbers] for name, rows in self.tables[part].items()}
            # One process draws, and the others read what it has written.
            with PartialState().main_process_first(), on_device(*modules_of(self.kind.pipeline)):
                latents = teacher_latents(
                    self.teaching,
                    data.teacher,
                    rows,
                    self.captions.rows([""]),
                    seeds,
                    self.size,
                    self.place() / part,
                    self.drawn_by(part),
                    self.model_settings.encode_batch,
                    self.told,
                )
            self.encoded[part] = TeacherPictures(latents, numbers, seeds, self.size, self.kind.dtype)
        return self.encoded[part]

    def sizes(self) -> tuple[int, int]:
        """Samples to train on and to judge by, before any is drawn."""
        return self.data.count, self.data.test_size

    def place(self) -> Path:
        """Where the teacher's latents are kept."""
        if self.data.cache is None and self.folder is None:
            raise DataError("the teacher's latents need a place: add --data.cache FOLDER")
        return Path(self.data.cache).expanduser() if self.data.cache else Path(self.folder or "") / "teacher"

    def teaching(self) -> Kind:
        """The pipeline, to draw with as the teacher."""
        if fingerprint(self.kind.denoiser) != self.teacher:
            raise DataError(
                f"the teacher's latents in {self.place()} are not complete, and with its weights changed or an adapter "
                "on it the denoiser cannot draw them: name the --data.cache of the training"
            )
        return self.kind

    def drawn_by(self, part: str) -> dict[str, Any]:
        """What the teacher's latents depend on."""
        data, spec = self.data, self.model_settings
        return {
            "captions": captions_of(data, part),
            "count": data.count if part == "train" else data.test_size,
            "size": self.size,
            "teacher": asdict(data.teacher),
            "step": asdict(self.step),
            "dtype": spec.dtype,
            "batch": spec.encode_batch,
            "denoiser": self.teacher,
        }

    # --- training ------------------------------------------------------------------------------------------------
    def attached(self, model: nn.Module) -> None:
        """As for any tuning; decoder and perceptual model stay, on the device that computes."""
        super().attached(model)
        for frozen in (self.vae, self.compare):
            frozen.to(PartialState().device)

    def loss(self, model: Callable[..., Any], batch: dict[str, Tensor]) -> Tensor:
        """The batch's mean loss, float32 `[]`."""
        found = self.decoded(self.one_step(model, "train", batch, self.timesteps(batch["noise"])))
        with torch.no_grad():
            wanted = self.decoded(batch["latents"])
        return self.compare(found, wanted)["loss"]

    def timesteps(self, noise: Tensor) -> Tensor:
        """Where a training batch is evaluated, `[N]`."""
        last, least = self.step.timestep, self.model_settings.t_min
        return torch.randint(last if least is None else least, last + 1, (len(noise),), device=noise.device)

    def one_step(self, model: Callable[..., Any], part: str, batch: dict[str, Tensor], timesteps: Tensor) -> Tensor:
        """The latents that one evaluation at `timesteps` `[N]` finds in noise (the last) or in noised latents."""
        noise, latents = batch["noise"], batch["latents"]
        signal, level = (values.to(noise.dtype) for values in self.step.levels(timesteps))
        pure = (timesteps == self.step.timestep).view(-1, 1, 1, 1)
        noised = torch.where(pure, noise, signal * latents + level * noise)
        output = self.predictor(model, self.given(part, batch["caption"], batch))(noised, timesteps)
        if self.step.guidance > 1:
            absent = self.given(part, torch.zeros_like(batch["caption"]), batch)
            output = guided(output, self.predictor(model, absent)(noised, timesteps), self.step.guidance)
        return clean_from(noised, output, signal, level, self.step.prediction_type)

    def decoded(self, latents: Tensor) -> Tensor:
        """Pictures `[N, 3, H, W]` in [0, 1], not clamped: what is clamped has no gradient."""
        config, chunk = self.vae.config, self.model_settings.decoder_chunk

        def decode(some: Tensor) -> Tensor:
            return self.vae.decode(some, return_dict=False)[0]

        with torch.autocast(latents.device.type, enabled=False):
            scaled = latents.float() / config.scaling_factor + (config.get("shift_factor") or 0.0)
            if chunk is None:
                return (decode(scaled) + 1) / 2
            parts = scaled.split(chunk)
            again = torch.is_grad_enabled()
            found = [checkpoint(decode, some, use_reentrant=False) if again else decode(some) for some in parts]
            return (torch.cat(found) + 1) / 2  # type: ignore[arg-type]

    # --- judging -------------------------------------------------------------------------------------------------
    def evaluate(self, model: Any, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Sums over the pictures, with what is kept, float64 `[]`."""
        names = ("ssim", "squared", "sharp", "wanted_sharp", "loss", "count")
        sums = {name: torch.zeros((), dtype=torch.float64) for name in names}
        spec = self.model_settings.loss
        with self.kept(model):
            for batch in pieces(batches):
                last = torch.full_like(batch["caption"], self.step.timestep)
                found = self.decoded(self.one_step(model, "test", batch, last))
                wanted = self.decoded(batch["latents"])
                sums["loss"] += self.compare(found, wanted)["loss"].double().cpu() * len(found)
                found, wanted = found.clamp(0, 1), wanted.clamp(0, 1)
                height, width = found.shape[-2:]
                mask = highpass_mask(spec.highpass, height, width, spec.cutoff, spec.order, found.device)
                likeness: Any = structural_similarity_index_measure(found, wanted, data_range=1.0, reduction="none")
                for name, values in (
                    ("ssim", likeness),
                    ("squared", (found - wanted).square().flatten(1).mean(1)),
                    ("sharp", highpass(found, mask).square().flatten(1).mean(1)),
                    ("wanted_sharp", highpass(wanted, mask).square().flatten(1).mean(1)),
                ):
                    sums[name] += values.double().sum().cpu()
                sums["count"] += len(found)
        return sums

    def figures(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """`ssim`; `psnr` in dB; `sharpness`, the energy of high frequencies against the teacher's; the `loss`."""
        count = sums["count"]
        return {
            "ssim": (sums["ssim"] / count).item(),
            "psnr": -10 * (sums["squared"] / count).clamp(min=1e-12).log10().item(),
            "sharpness": (sums["sharp"] / sums["wanted_sharp"].clamp(min=1e-12)).item(),
            "loss": (sums["loss"] / count).item(),
        }

    def how(self) -> Sampling:
        """One step."""
        return Sampling(1, self.step.guidance, self.size)

    def about(self) -> dict[str, str]:
        """What was trained to what, in words."""
        data, teacher = self.data, self.data.teacher
        return {
            "Pipeline": f"{self.model_settings.pipeline}, its {self.kind.part} ({type(self.kind.denoiser).__name__})",
            "Pictures": f"{data.count:,} of {self.size} pixels, which it draws itself in {teacher.steps} steps with "
            f"guidance {teacher.guidance:g}; {data.test_size} more judge",
            "One step": f"at timestep {self.step.timestep}, guidance {self.step.guidance:g}",
        }

    def usage(self, method: str | None) -> str:
        """Python that draws in one step with the run's `adapter` folder, named FOLDER."""
        checked = 'pipeline, "FOLDER"' if method else "pipeline"
        call = f'pipeline("PROMPT", num_inference_steps=1, guidance_scale={self.model_settings.guidance:g}).images[0]'
        lines = super().usage(method)
        lines = lines if lines.startswith("import diffusion_peft") else f"import diffusion_peft as dp\n{lines}"
        return f"{lines}dp.one_step({checked})\npicture = {call}\n"

    def compared(self) -> OneStepPictures:
        """What a comparison draws with the task's models, once one is built."""
        return OneStepPictures(self)

    def leave(self, folder: Path) -> None:
        """What the adapter was trained for, beside it."""
        self.step.save(folder)
