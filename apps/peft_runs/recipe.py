"""A recipe: all that decides a run, as plain data in sections `model`, `data`, `method`, `optim` and `run`."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal


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
        method = {"name": self.method.name, **self.method.fields}
        sections = {name: asdict(getattr(self, name)) for name in ("model", "data", "optim", "run")}
        return {"task": self.task, "model": sections["model"], "data": sections["data"], "method": method} | {
            name: sections[name] for name in ("optim", "run")
        }
