"""The sections `model` and `data` of a recipe that trains a pipeline to draw in one step."""

from dataclasses import dataclass, field
from typing import Literal

from diffusion_peft.methods.hipa import HipaLossSpec
from diffusion_peft.tasks.tuning_spec import at_least


@dataclass(frozen=True)
class OneStepSamples:
    """Pictures of one step that show how far the training is: the same prompts and seeds each time.

    Attributes:
        prompts: captions; none draws nothing.
        seeds: each prompt is drawn with every one of them.
    """

    prompts: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2, 3)

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("model.samples.seeds must name at least one seed")


@dataclass(frozen=True)
class OneStepSpec:
    """The pipeline whose denoiser learns to draw in one step.

    Attributes:
        pipeline: an embedded one (`mini_sd`), a folder in diffusers' format, or a name of the hub.
        dtype: of the frozen weights; what is trained is kept in float32, and so is the decoder.
        prediction_type: what the denoiser predicts; null is what the pipeline's scheduler says.
        guidance: strength of the guidance in the one step; above 1 it costs a second evaluation, and takes negative
            prompts.
        t_min: train at random timesteps from this one to the last, for editing and super-resolution; null trains at the
            last alone, from noise.
        loss: what the pictures are compared by.
        decoder_chunk: pictures that are decoded at once, and again for the gradient, which saves memory; null decodes
            all of them together, once.
        ema_decay: of averaged weights, which are then judged and kept; 0 keeps the weights as they are.
        max_tokens: of a caption, for T5 encoders; null is the pipeline's own limit.
        encode_batch: captions that are encoded, and pictures that the teacher draws, at once.
        samples: pictures drawn in the course of the training.
    """

    pipeline: str = "mini_sd"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    prediction_type: str | None = None
    guidance: float = 1.0
    t_min: int | None = None
    loss: HipaLossSpec = field(default_factory=HipaLossSpec)
    decoder_chunk: int | None = 1
    ema_decay: float = 0.0
    max_tokens: int | None = None
    encode_batch: int = 16
    samples: OneStepSamples = field(default_factory=OneStepSamples)

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"model.ema_decay must be in [0, 1), found {self.ema_decay!r}")
        at_least("model.t_min", self.t_min, 0)
        for name in ("guidance", "decoder_chunk", "max_tokens", "encode_batch"):
            at_least(f"model.{name}", getattr(self, name), 1)

    @property
    def name(self) -> str:
        return self.pipeline


@dataclass(frozen=True)
class TeacherSpec:
    """How the same model, frozen, draws the pictures that one step is to reach.

    Attributes:
        solver: `ddim`, or `dpm` (DPM-Solver++, good with half the steps); flows have their own.
        steps: of the solver.
        guidance: strength of the guidance, which the one step learns.
    """

    solver: Literal["ddim", "dpm"] = "ddim"
    steps: int = 50
    guidance: float = 7.5

    def __post_init__(self) -> None:
        at_least("data.teacher.steps", self.steps, 2)
        at_least("data.teacher.guidance", self.guidance, 1)


@dataclass(frozen=True)
class OneStepData:
    """Captions, each drawn by the teacher from noises of its own.

    Attributes:
        prompts: captions.
        root: more of them: a text file with one a line, or a folder or zip of captioned pictures.
        column: of the captions there.
        test_prompts: captions of the pictures that judge; none takes those that are trained on.
        count: pictures to train on; they go through the captions in turn, picture n with seed n.
        test_size: pictures that judge, with seeds of their own.
        size: pixels along a side; null is what the pipeline makes by itself.
        cache: folder that keeps the teacher's latents, for this run when it goes on and for others; null is a folder of
            the run.
        teacher: how they are drawn.
    """

    prompts: tuple[str, ...] = ()
    root: str | None = None
    column: str = "text"
    test_prompts: tuple[str, ...] = ()
    count: int = 512
    test_size: int = 32
    size: int | None = None
    cache: str | None = None
    teacher: TeacherSpec = field(default_factory=TeacherSpec)

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("test_size", 1), ("size", 8)):
            at_least(f"data.{name}", getattr(self, name), least)
