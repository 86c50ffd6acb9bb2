"""The training loop, on accelerate: one process or several, any precision, killed and resumed without a trace."""

import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from peft_runs.attach import attach, freeze_running_statistics, trainable, without_gradient
from peft_runs.checkpoint import State, latest_checkpoint, load_checkpoint, save_checkpoint
from peft_runs.errors import RunError, UsageError
from peft_runs.evaluate import evaluate, to_device
from peft_runs.metrics import Metrics
from peft_runs.optim import build_optimizer, build_schedule
from peft_runs.order import TrainingOrder, seed_from, seed_generators
from peft_runs.progress import RunProgress
from peft_runs.recipe import Recipe, RunSpec
from peft_runs.result import write_result
from peft_runs.task import Task


def start_accelerator(spec: RunSpec, folder: Path) -> Accelerator:
    """Processes, device and precision as the recipe says."""
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    return Accelerator(
        mixed_precision=spec.precision,
        cpu=spec.device == "cpu",
        log_with=spec.tracker,
        project_dir=str(folder) if spec.tracker else None,
    )


def train(recipe: Recipe, make_task: Any, folder: Path, resume: bool) -> dict[str, Any]:
    """Carry out a recipe in `folder` and return its result.

    Raises:
        UsageError: the recipe does not fit its data or the number of processes.
        RunError: the loss is no longer a number, or the files of the run are not usable.
    """
    accelerator = start_accelerator(recipe.run, folder)
    with RunProgress(shown=accelerator.is_main_process) as progress:
        seed_generators(recipe.run.seed)
        task: Task = make_task(recipe.model, recipe.data, recipe.run.seed, progress.show)
        return Training(recipe, task, accelerator, folder, progress).carry_out(resume)


class Training:
    """One run: what it holds between steps."""

    def __init__(self, recipe: Recipe, task: Task, accelerator: Accelerator, folder: Path, progress: RunProgress):
        self.recipe, self.task, self.accelerator = recipe, task, accelerator
        self.folder, self.progress = folder, progress
        base = task.build_model()
        self.training_data, self.test_data = task.training_data(base), task.test_data(base)
        self.plan_steps(len(self.training_data))  # type: ignore[arg-type]
        if recipe.run.gradient_checkpointing:
            if not hasattr(base, "set_grad_checkpointing"):
                raise UsageError(
                    f"{recipe.model.name} offers no gradient checkpointing: set run.gradient_checkpointing false"
                )
            base.set_grad_checkpointing(True)  # type: ignore[operator]
        self.model = attach(base, recipe.method)
        if recipe.run.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = build_optimizer(self.model, base, recipe.optim)
        self.schedule = build_schedule(optimizer, recipe.optim, self.steps, self.steps_per_epoch)
        self.wrapped, self.optimizer = accelerator.prepare(self.model, optimizer)
        tuner = getattr(self.model, "base_model", None)
        self.regularizer = getattr(tuner, "regularizer", None) if recipe.method.name else None
        self.allocate = getattr(tuner, "update_and_allocate", None) if recipe.method.name else None

    def plan_steps(self, samples: int) -> None:
        """Fix the number of steps, and check that batches can be cut as asked."""
        batch, pieces = self.recipe.optim.batch_size, self.recipe.run.accumulate * self.accelerator.num_processes
        if batch % pieces:
            raise UsageError(
                f"optim.batch_size is {batch}, which {self.recipe.run.accumulate} parts on "
                f"{self.accelerator.num_processes} processes cannot share equally"
            )
        if samples < batch:
            raise UsageError(f"optim.batch_size is {batch}, but there are only {samples} training samples")
        self.steps_per_epoch = samples // batch
        self.steps = self.steps_per_epoch * self.recipe.run.epochs

    def carry_out(self, resume: bool) -> dict[str, Any]:
        """Train from the start or from the last checkpoint, then save and judge."""
        state = self.restore() if resume else State()
        self.main = self.accelerator.is_main_process
        self.metrics = Metrics(self.folder / "metrics.jsonl", state.metrics_bytes) if self.main else None
        if self.recipe.run.tracker:
            self.accelerator.init_trackers(self.folder.name)
        trained = trainable(self.model, self.task.head(self.model))
        self.progress.say(
            f"{self.recipe.method.name or 'the model itself'}: {trained['trainable_parameters']:,} trainable parameters, "
            f"{self.steps} steps of {self.recipe.optim.batch_size}, from step {state.step}"
        )
        started = time.monotonic()
        self.run_steps(state)
        figures = self.judge(self.steps)
        self.accelerator.end_training()
        if self.metrics:
            self.metrics.close()
        seconds = time.monotonic() - started
        result = {**figures, **trained, "steps": self.steps, "seconds_since_start": round(seconds, 2), **state.memory}
        if self.main:
            result = write_result(self.folder, self.recipe, self.model, result)
        self.accelerator.wait_for_everyone()
        return result

    def restore(self) -> State:
        """The last checkpoint of this run, put into model and optimiser."""
        checkpoint = latest_checkpoint(self.folder / "checkpoint")
        if checkpoint is None:
            return State()
        state = load_checkpoint(checkpoint, self.model, self.optimizer.optimizer)
        if state.scaler and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state.scaler)
        self.schedule.step_update(state.step)
        return state

    def run_steps(self, state: State) -> None:
        """All steps after `state.step`."""
        run, optim = self.recipe.run, self.recipe.optim
        processes = self.accelerator.num_processes
        order = TrainingOrder(
            samples=len(self.training_data),  # type: ignore[arg-type]
            batch_size=optim.batch_size,
            start=state.step,
            stop=self.steps,
            seed=run.seed,
            parts=run.accumulate,
            process=self.accelerator.process_index,
            processes=processes,
        )
        loader = iter(DataLoader(self.training_data, batch_sampler=order, num_workers=run.workers))
        self.model.train()
        if self.recipe.method.name:
            freeze_running_statistics(self.model)
        first = state.step
        for step in range(state.step, self.steps):
            begun = time.monotonic()
            loss, rate = self.one_step(step, loader, named=step == first)
            state.step = step + 1
            epoch = step // self.steps_per_epoch
            self.record("step", step=state.step, epoch=epoch, loss=loss, lr=rate, seconds=time.monotonic() - begun)
            self.progress.show("train", state.step, self.steps, f"epoch {epoch + 1}/{run.epochs} loss {loss:.4f}")
            self.finish_step(state, epoch)

    def finish_step(self, state: State, epoch: int) -> None:
        """Evaluation and checkpoint, where they are due."""
        run = self.recipe.run
        ends_epoch = state.step % self.steps_per_epoch == 0
        if ends_epoch and state.step < self.steps and (epoch + 1) % run.evaluate_epochs == 0:
            self.judge(state.step)
        if (
            ends_epoch
            if run.checkpoint_steps is None
            else state.step % run.checkpoint_steps == 0 or state.step == self.steps
        ):
            self.checkpoint(state)

    def one_step(self, step: int, loader: Any, named: bool) -> tuple[float, float]:
        """One optimiser step: mean loss over all processes, and the learning rate used."""
        run = self.recipe.run
        seed_generators(run.seed, step, self.accelerator.process_index)
        self.schedule.step_update(step + 1)
        total, value = torch.zeros((), device=self.accelerator.device), math.nan
        for part in range(run.accumulate):
            batch = to_device(next(loader), self.accelerator, run.channels_last)
            last = part == run.accumulate - 1
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                with self.accelerator.autocast():
                    loss = self.task.loss(self.wrapped, batch)
                    if self.regularizer is not None:
                        loss = loss + self.regularizer()
                loss = loss / run.accumulate
                total += loss.detach()
                if last:
                    value = self.mean(total)
                    self.check(value, step)
                self.accelerator.backward(loss)
        if named and (unreached := without_gradient(self.model)):
            self.progress.say(
                f"warning: no gradient reaches {len(unreached)} trainable parameters: {', '.join(unreached)}"
            )
        norm = None
        if self.recipe.optim.clip_grad is not None:
            norm = self.accelerator.clip_grad_norm_(self.parameters, self.recipe.optim.clip_grad)
        if norm is not None and run.precision != "fp16":
            self.check(float(norm), step, "gradient's norm")
        self.optimizer.step()
        if self.allocate is not None:
            self.allocate(step)
        self.optimizer.zero_grad(set_to_none=True)
        return value, self.optimizer.param_groups[0]["lr"]

    def mean(self, value: torch.Tensor) -> float:
        """Mean over the processes."""
        return float(self.accelerator.reduce(value, reduction="mean"))  # type: ignore[arg-type]

    def check(self, value: float, step: int, what: str = "loss") -> None:
        """Stop before the optimiser step when a number has become none."""
        if not math.isfinite(value):
            kept = latest_checkpoint(self.folder / "checkpoint")
            last = f"the last good checkpoint is {kept}" if kept else "there is no checkpoint yet"
            raise RunError(f"the {what} became {value} at step {step + 1}: stopped before the optimiser step; {last}")

    def judge(self, step: int) -> dict[str, float]:
        """Evaluate, record and say the figures."""
        run = self.recipe.run
        figures = evaluate(
            self.task, self.model, self.test_data, self.accelerator, self.progress, 256, run.workers, run.channels_last
        )
        if self.recipe.method.name:
            freeze_running_statistics(self.model)
        self.record("evaluation", step=step, epoch=(step - 1) // self.steps_per_epoch, **figures)
        said = " ".join(f"{name} {value:.4f}" for name, value in figures.items())
        self.progress.say(f"epoch {(step - 1) // self.steps_per_epoch + 1}/{run.epochs} step {step}: test {said}")
        return figures

    def record(self, kind: str, **values: Any) -> None:
        """One line of metrics.jsonl, and the tracker's."""
        if self.metrics:
            self.metrics.add(kind, **values)
        if self.recipe.run.tracker:
            numbers = {f"{kind}/{name}": value for name, value in values.items() if name not in ("step", "epoch")}
            self.accelerator.log(numbers, step=values["step"])

    def checkpoint(self, state: State) -> None:
        """Write the state; the other processes wait."""
        if self.metrics:
            state.metrics_bytes = self.metrics.settle()
            scaler = self.accelerator.scaler
            state.scaler = scaler.state_dict() if scaler else None
            save_checkpoint(self.folder / "checkpoint", state, self.model, self.optimizer.optimizer)
        self.accelerator.wait_for_everyone()


def base_of(model: nn.Module) -> nn.Module:
    """The model under a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


__all__ = ["base_of", "seed_from", "train"]
