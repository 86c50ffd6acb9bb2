"""The sections `model` and `data` of a recipe that tunes a pipeline."""

from dataclasses import dataclass, field
from typing import Literal

from diffusion_peft.data.conditions import Condition
from diffusion_peft.tasks.objectives import FlowSampling


def at_least(name: str, value: float | None, least: float) -> None:
    """Raise a ValueError where a number is too small."""
    if value is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, found {value!r}")


@dataclass(frozen=True)
class SamplesSpec:
    """Pictures that show how far the training is: the same prompts and seeds before it and at every evaluation.

    Attributes:
        prompts: captions (classes, for a class-conditional model); none draws nothing.
        pictures: how many of the pictures that judge are drawn from their condition images and captions, instead of
            prompts, where pictures steer.
        seeds: each prompt is drawn with every one of them.
        steps: of the pipeline's own scheduler.
        guidance: strength of the guidance.
    """

    prompts: tuple[str, ...] = ()
    pictures: int = 0
    seeds: tuple[int, ...] = (0, 1)
    steps: int = 25
    guidance: float = 4.0

    def __post_init__(self) -> None:
        at_least("model.samples.steps", self.steps, 1)
        at_least("model.samples.pictures", self.pictures, 0)
        if not self.seeds:
            raise ValueError("model.samples.seeds must name at least one seed")


@dataclass(frozen=True)
class ComparedSpec:
    """Pictures that a comparison draws with every adapted model, by `samples.steps` and `samples.guidance`.

    Attributes:
        count: for captions of the data, and as many for other prompts; 0 draws none.
        unrelated: prompts that have nothing to do with the data; none are emoji and words as mini_sd knows them, or the
            classes of a class-conditional model.
    """

    count: int = 64
    unrelated: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, number in (("count", self.count), ("unrelated", len(self.unrelated))):
            if number < 0 or number == 1:
                raise ValueError(f"model.compared.{name} must be 0 or at least 2, found {number}: one has no spread")


@dataclass(frozen=True)
class TuningSpec:
    """The pipeline whose denoiser is tuned.

    Attributes:
        pipeline: an embedded one (`mini_sd`, `mini_dit`), a folder in diffusers' format, or a name of the hub.
        dtype: of the frozen weights; what is trained is kept in float32.
        prediction_type: what the denoiser predicts; null is what the pipeline's scheduler says.
        snr_gamma: cut of the Min-SNR weights (Hang et al., ICCV 2023); null leaves the loss unweighted.
        flow_sampling: which levels of noise are trained how often, for flow matching.
        caption_dropout: share of the samples whose caption is left out, so that guidance keeps working.
        ema_decay: of averaged weights, which are then judged and kept; 0 keeps the weights as they are.
        max_tokens: of a caption, for T5 encoders; null is the pipeline's own limit.
        encode_batch: pictures or captions that are encoded at once.
        samples: pictures drawn in the course of the training.
        compared: pictures drawn by a comparison.
    """

    pipeline: str = "mini_sd"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    prediction_type: str | None = None
    snr_gamma: float | None = None
    flow_sampling: FlowSampling = "logit_normal"
    caption_dropout: float = 0.0
    ema_decay: float = 0.0
    max_tokens: int | None = None
    encode_batch: int = 16
    samples: SamplesSpec = field(default_factory=SamplesSpec)
    compared: ComparedSpec = field(default_factory=ComparedSpec)

    def __post_init__(self) -> None:
        for name in ("caption_dropout", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be in [0, 1), found {getattr(self, name)!r}")
        if self.snr_gamma is not None and self.snr_gamma <= 0:
            raise ValueError(f"model.snr_gamma must be above 0 or null, found {self.snr_gamma!r}")
        at_least("model.max_tokens", self.max_tokens, 1)
        at_least("model.encode_batch", self.encode_batch, 1)

    @property
    def name(self) -> str:
        return self.pipeline


@dataclass(frozen=True)
class PriorSpec:
    """Pictures of the subject's class by the base model itself, trained beside the subject so that it is not forgotten
    (Ruiz et al., *DreamBooth*, CVPR 2023, Sec. 3.3).

    Attributes:
        prompt: what the base model is asked for (`a cat`); null preserves nothing.
        count: number of pictures.
        weight: of their error.
        steps: of the pipeline's own scheduler.
        guidance: strength of the guidance.
        root: folder that keeps them; those that are missing are made. Null is a folder of the run.
    """

    prompt: str | None = None
    count: int = 50
    weight: float = 1.0
    steps: int = 25
    guidance: float = 4.0
    root: str | None = None

    def __post_init__(self) -> None:
        at_least("data.prior.count", self.count, 1)
        at_least("data.prior.weight", self.weight, 0)
        at_least("data.prior.steps", self.steps, 1)


@dataclass(frozen=True)
class TuningData:
    """Captioned pictures.

    Attributes:
        name: `folder` (at `root`), `emoji` (at `root`, on coloured grounds, as the embedded pipelines know them),
            `hfds/NAME` (a dataset of the hub, `root` its `data_dir`), or a set that the project draws itself: `style`,
            `subject`, `spelling`.
        root: folder or zip of pictures, with captions in its `metadata.jsonl` or in a text file beside each.
        column: of the captions there.
        prompt: one caption for all pictures, instead of theirs.
        size: pixels along a side; null is what the pipeline makes by itself.
        enlarge: take pictures that are smaller, too.
        crop: which part of a picture that is no square.
        flip: share of the pictures that are mirrored.
        test_size: pictures, the last ones, that are not trained on but judged by; with 0 those trained on are judged.
        pool: epochs whose crops and flips differ; then they come again.
        cache: folder that keeps latents and encoded captions for when the run goes on; null encodes them again.
        prior: pictures of the subject's class.
        condition: what of each picture steers the denoiser (SCEdit with `control`).
    """

    name: str = "folder"
    root: str | None = None
    column: str = "text"
    prompt: str | None = None
    size: int | None = None
    enlarge: bool = False
    crop: Literal["center", "random"] = "center"
    flip: float = 0.0
    test_size: int = 0
    pool: int = 1
    cache: str | None = None
    prior: PriorSpec = field(default_factory=PriorSpec)
    condition: Condition = field(default_factory=Condition)

    def __post_init__(self) -> None:
        at_least("data.size", self.size, 8)
        at_least("data.test_size", self.test_size, 0)
        at_least("data.pool", self.pool, 1)
        if not 0 <= self.flip <= 1:
            raise ValueError(f"data.flip must be in [0, 1], found {self.flip!r}")
