"""A recipe: all that decides a run, as plain data in sections `model`, `data`, `method`, `optim` and `run`."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal


def require(holds: bool, name: str, found: Any, expected: str) -> None:
    """Raise a ValueError that names the field, what it holds and what it should."""
    if not holds:
        raise ValueError(f"{name} must be {expected}, found {found!r}")


@dataclass(frozen=True)
class OptimSpec:
    """AdamW with a cosine schedule.

    Attributes:
        lr: peak learning rate.
        min_lr: learning rate of the last step.
        weight_decay: applied to parameters of two or more dimensions only.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        batch_size: samples per optimiser step, over all processes and accumulated parts.
        warmup_epochs: epochs of linear warm-up, in fractions of an epoch.
        clip_grad: largest norm of the gradient; null does not clip.
    """

    lr: float = 1e-3
    min_lr: float = 0.0
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    batch_size: int = 64
    warmup_epochs: float = 1.0
    clip_grad: float | None = 1.0

    def __post_init__(self) -> None:
        require(self.lr > 0, "optim.lr", self.lr, "above 0")
        require(0 <= self.min_lr <= self.lr, "optim.min_lr", self.min_lr, "between 0 and optim.lr")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "at least 0")
        require(0 <= self.beta1 < 1, "optim.beta1", self.beta1, "in [0, 1)")
        require(0 <= self.beta2 < 1, "optim.beta2", self.beta2, "in [0, 1)")
        require(self.batch_size >= 1, "optim.batch_size", self.batch_size, "at least 1")
        require(self.warmup_epochs >= 0, "optim.warmup_epochs", self.warmup_epochs, "at least 0")
        require(self.clip_grad is None or self.clip_grad > 0, "optim.clip_grad", self.clip_grad, "above 0 or null")


@dataclass(frozen=True)
class RunSpec:
    """How a run is carried out.

    Attributes:
        epochs: passes over the training data.
        seed: of initial values, order, variation and dropout.
        precision: `no` (float32), `bf16` or `fp16` autocast.
        accumulate: parts a batch is split into, one after another, to save memory.
        gradient_checkpointing: recompute activations in the backward pass (for models that offer it).
        workers: processes that prepare data; 0 prepares in the training process.
        checkpoint_steps: steps between checkpoints; null writes one after each epoch.
        evaluate_epochs: epochs between evaluations; the last epoch is always evaluated.
        threads: of one process on a CPU; null leaves it to torch.
        device: `auto` takes an accelerator if there is one.
        channels_last: keep pictures and convolutions in channels-last order, faster on most processors.
        tracker: also send the figures to this tracker of accelerate's (for example `tensorboard`).
    """

    epochs: int = 10
    seed: int = 0
    precision: Literal["no", "bf16", "fp16"] = "no"
    accumulate: int = 1
    gradient_checkpointing: bool = False
    workers: int = 0
    checkpoint_steps: int | None = None
    evaluate_epochs: int = 1
    threads: int | None = None
    device: Literal["auto", "cpu"] = "auto"
    channels_last: bool = False
    tracker: str | None = None

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "run.epochs", self.epochs, "at least 1")
        require(self.seed >= 0, "run.seed", self.seed, "at least 0")
        require(self.accumulate >= 1, "run.accumulate", self.accumulate, "at least 1")
        require(self.workers >= 0, "run.workers", self.workers, "at least 0")
        require(self.evaluate_epochs >= 1, "run.evaluate_epochs", self.evaluate_epochs, "at least 1")
        for name in ("checkpoint_steps", "threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"run.{name}", value, "at least 1 or null")


@dataclass(frozen=True)
class MethodSpec:
    """The method's name in the registry and the fields given for it; no name trains the model itself."""

    name: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """One run. `model` and `data` are the task's own dataclasses."""

    task: str
    model: Any
    data: Any
    method: MethodSpec
    optim: OptimSpec
    run: RunSpec

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as it stands in the recipe's file."""
        return {
            "task": self.task,
            "model": asdict(self.model),
            "data": asdict(self.data),
            "method": {"name": self.method.name, **self.method.fields},
            "optim": asdict(self.optim),
            "run": asdict(self.run),
        }
