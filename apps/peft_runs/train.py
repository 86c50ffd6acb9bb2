"""The training loop, on accelerate: one process or several, any precision, killed and resumed without a trace."""

import math
import time
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from peft_runs.attach import (
    attach,
    begin_allocation,
    checkpoint_gradients,
    trainable,
    training_mode,
    without_gradient,
)
from peft_runs.checkpoint import State, latest_checkpoint, load_checkpoint, save_checkpoint
from peft_runs.choose import choose
from peft_runs.errors import RunError
from peft_runs.evaluate import evaluate, to_device
from peft_runs.memory import bytes_of, bytes_of_model, bytes_of_optimizer, highest_level
from peft_runs.optim import build_optimizer, build_schedule
from peft_runs.order import TrainingOrder, seed_generators, whole_batches
from peft_runs.progress import RunProgress
from peft_runs.recipe import Recipe
from peft_runs.records import Records
from peft_runs.result import write_result
from peft_runs.run_folder import RunFolder
from peft_runs.start import start_accelerator
from peft_runs.task import Task

MEASURED_STEP = 1  # the second: from then on the optimiser's tensors exist


def train(recipe: Recipe, task_type: type[Task], folder: RunFolder, resume: bool) -> dict[str, Any]:
    """Carry out a recipe in `folder` and return its result.

    Raises:
        UsageError: the recipe does not fit its data, its model or the number of processes.
        RunError: the loss is no longer a number, or the files of the run are not usable.
    """
    accelerator = start_accelerator(recipe.run, folder)
    with RunProgress(shown=accelerator.is_main_process) as progress:
        seed_generators(recipe.run.seed)
        task = task_type(recipe.model, recipe.data, recipe.run.seed, progress.show)
        return Training(recipe, task, accelerator, folder, progress, resume).carry_out(resume)


class Training:
    """One run: what it holds between steps."""

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        accelerator: Accelerator,
        folder: RunFolder,
        progress: RunProgress,
        resume: bool = False,
    ):
        self.recipe, self.task, self.accelerator = recipe, task, accelerator
        self.folder, self.progress = folder, progress
        if hasattr(task, "use_folder"):
            task.use_folder(folder.path)  # type: ignore[attr-defined]
        base = task.build_model()
        loaded = bytes_of_model(base)
        self.training_data, self.test_data = task.training_data(base), task.test_data(base)
        self.steps_per_epoch = whole_batches(
            len(self.training_data),  # type: ignore[arg-type]
            recipe.optim.batch_size,
            recipe.run.accumulate,
            accelerator.num_processes,
        )
        self.steps = self.steps_per_epoch * recipe.run.epochs
        if recipe.run.gradient_checkpointing:
            checkpoint_gradients(base)
        chosen = choose(recipe, task, base, accelerator, progress, folder.chosen, resume)
        self.model = attach(base, recipe.method, chosen)
        if hasattr(task, "attached"):
            task.attached(self.model)  # type: ignore[attr-defined]
        if recipe.run.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.added_bytes = bytes_of_model(self.model) - loaded
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = build_optimizer(self.model, base, recipe.optim)
        self.schedule = build_schedule(optimizer, recipe.optim, self.steps, self.steps_per_epoch)
        self.wrapped, self.optimizer = accelerator.prepare(self.model, optimizer)
        tuner = getattr(self.model, "base_model", None) if recipe.method.name else None
        self.regularizer = getattr(tuner, "regularizer", None)
        self.allocate = getattr(tuner, "update_and_allocate", None)
        self.allocator = begin_allocation(
            tuner, recipe.method, self.steps, self.steps_per_epoch, self.optimizer.optimizer
        )
        if self.allocator is not None:
            self.added_bytes += bytes_of(t for t in self.allocator.state_dict().values() if isinstance(t, torch.Tensor))
        self.after_step = getattr(task, "after_step", None)
        self.kept = getattr(task, "kept", nullcontext)
        self.records = Records(recipe, task, accelerator, folder, progress)

    def carry_out(self, resume: bool) -> dict[str, Any]:
        """Train from the start or from the last checkpoint, then judge and save."""
        state = self.restore() if resume else State()
        self.records.open(state.metrics_bytes)
        counts = trainable(self.model, self.task.head(self.model))
        self.progress.say(
            f"{self.recipe.method.name or 'no method'}: {counts['trainable_parameters']:,} trainable parameters, "
            f"{self.steps} steps of {self.recipe.optim.batch_size} samples"
            + (f", going on after step {state.step}" if resume else "")
        )
        if not resume:
            self.records.draw_samples(self.model, 0)
            self.checkpoint(state)
        self.run_steps(state)
        figures = self.judge(self.steps)
        processes = self.accelerator.num_processes
        result = {**figures, **counts, "steps": self.steps, "processes": processes, "peak_bytes": state.peak_bytes}
        if self.records.metrics:
            self.records.metrics.close()
            self.records.draw_selection(self.model)
            with self.kept(self.model):
                model = self.accelerator.unwrap_model(self.wrapped)
                result = write_result(self.folder, self.recipe, model, result, self.records.describe)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return result

    def restore(self) -> State:
        """The last checkpoint of this run, put into model and optimiser.

        Raises:
            RunError: there is none, or it is damaged.
        """
        checkpoint = latest_checkpoint(self.folder.checkpoints)
        if checkpoint is None:
            raise RunError(f"nothing to resume in {self.folder.path}: it holds no checkpoint")
        state = load_checkpoint(checkpoint, self.model, self.optimizer.optimizer, self.allocator)
        if state.scaler and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state.scaler)
        return state

    def run_steps(self, state: State) -> None:
        """All steps after `state.step`."""
        run, device = self.recipe.run, self.accelerator.device
        order = TrainingOrder(
            samples=len(self.training_data),  # type: ignore[arg-type]
            batch_size=self.recipe.optim.batch_size,
            start=state.step,
            stop=self.steps,
            seed=run.seed,
            parts=run.accumulate,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )
        loader = iter(DataLoader(self.training_data, batch_sampler=order, num_workers=run.workers))
        training_mode(self.model, self.recipe.method.name is not None)
        begun_at = state.step
        for step in range(state.step, self.steps):
            measured = step == MEASURED_STEP
            held = self.added_bytes + bytes_of_optimizer(self.optimizer.optimizer) if measured else 0
            begun = time.monotonic()
            with highest_level(device) if measured else nullcontext([0]) as level:
                loss, rate = self.one_step(step, loader, named=step == begun_at)
            seconds = time.monotonic() - begun
            if measured:
                state.peak_bytes = held + level[0]
            state.step, epoch = step + 1, step // self.steps_per_epoch
            if self.after_step is not None:
                self.after_step(self.model, state.step)
            timed = {} if measured or step == begun_at else {"seconds": seconds}
            self.records.add("step", step=state.step, epoch=epoch, loss=loss, lr=rate, **timed)
            self.progress.show("train", state.step, self.steps, f"epoch {epoch + 1}/{run.epochs} loss {loss:.4f}")
            self.finish_step(state, epoch)

    def finish_step(self, state: State, epoch: int) -> None:
        """Evaluation and checkpoint, where they are due; the last evaluation comes after the last checkpoint."""
        run = self.recipe.run
        ends_epoch, last = state.step % self.steps_per_epoch == 0, state.step == self.steps
        if ends_epoch and not last and (epoch + 1) % run.evaluate_epochs == 0:
            self.judge(state.step)
        due = ends_epoch if run.checkpoint_steps is None else state.step % run.checkpoint_steps == 0
        if due or last:
            self.checkpoint(state)

    def one_step(self, step: int, loader: Any, named: bool) -> tuple[float, float]:
        """One optimiser step: the mean loss over all processes, and the learning rate used."""
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
                    value = float(self.accelerator.reduce(total, reduction="mean"))  # type: ignore[arg-type]
                    self.check(value, step, "loss")
                self.accelerator.backward(loss)
        if named and (unreached := without_gradient(self.model)):
            self.progress.say(f"warning: no gradient reaches the trainable parameters {', '.join(unreached)}")
        if self.recipe.optim.clip_grad is not None:
            norm = self.accelerator.clip_grad_norm_(self.parameters, self.recipe.optim.clip_grad)
            if norm is not None and run.precision != "fp16":  # float16's scaler skips such steps by itself
                self.check(float(norm), step, "gradient's norm")
        self.optimizer.step()
        decided = None if self.allocate is None else self.allocate(step)
        if decided is not None:
            self.records.add("allocation", step=step + 1, **decided)
        self.optimizer.zero_grad(set_to_none=True)
        return value, self.optimizer.param_groups[0]["lr"]

    def check(self, value: float, step: int, what: str) -> None:
        """Stop before the optimiser step when a number has become none."""
        if not math.isfinite(value):
            kept = latest_checkpoint(self.folder.checkpoints)
            raise RunError(
                f"the {what} became {value} at step {step + 1}: stopped before the optimiser step; "
                f"the last good checkpoint is {kept}"
            )

    def judge(self, step: int) -> dict[str, float]:
        """Evaluate, record and say the figures."""
        run, epoch = self.recipe.run, (step - 1) // self.steps_per_epoch
        figures = evaluate(self.task, self.model, self.test_data, self.accelerator, self.progress, run)
        training_mode(self.model, self.recipe.method.name is not None)
        self.records.draw_samples(self.model, step)
        self.records.add("evaluation", step=step, epoch=epoch, **figures)
        said = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
        self.progress.say(f"epoch {epoch + 1}/{run.epochs}, step {step}: test {said}")
        return figures

    def checkpoint(self, state: State) -> None:
        """Write the state; the other processes wait."""
        if self.records.metrics:
            state.metrics_bytes = self.records.metrics.settle()
            state.scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
            save_checkpoint(self.folder.checkpoints, state, self.model, self.optimizer.optimizer, self.allocator)
        self.accelerator.wait_for_everyone()
