"""A ControlNet of diffusers trained as a run of `diffusion-peft train` was: its pictures, conditions, order and steps.

python examples/scedit/controlnet.py RUN OUT [LEARNING_RATE]

RUN is a finished run that pictures steer (recipe `edges`, ...); OUT/controlnet is what diffusers loads. Loss, averaged
weights, warm-up and cosine are the run's, too; the learning rate as well unless it is given.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from diffusers import ControlNetModel
from torch import Tensor, nn
from torch.utils.data import DataLoader

from diffusion_peft.tasks.denoising import Averaged
from diffusion_peft.tasks.tuning import PipelineTuning
from peft_runs.families import DIFFUSION
from peft_runs.find import load_recipe
from peft_runs.optim import build_optimizer, build_schedule
from peft_runs.order import TrainingOrder, seed_generators
from peft_runs.read import read_recipe


class Controlled(nn.Module):
    """A UNet with its ControlNet, called as the UNet alone; `image` `[N, 3, H, W]` steers it."""

    def __init__(self, unet: Any, controlnet: Any):
        super().__init__()
        self.unet, self.controlnet = unet, controlnet
        self.image: Tensor | None = None

    def forward(self, noised: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> Any:
        down, middle = self.controlnet(noised, timesteps, encoder_hidden_states, self.image, return_dict=False)
        return self.unet(
            noised,
            timesteps,
            encoder_hidden_states,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        )


def main(run: Path, out: Path, *rate: str) -> None:
    """Train and save."""
    recipe = read_recipe(load_recipe(run / "recipe.yaml"), [], DIFFUSION.tasks())
    optim, seed = (replace(recipe.optim, lr=float(rate[0])) if rate else recipe.optim), recipe.run.seed
    seed_generators(seed)
    task = PipelineTuning(recipe.model, recipe.data, seed)
    unet: Any = task.build_model()
    data = task.training_data(unet)
    controlnet: Any = ControlNetModel.from_unet(unet).train()
    model = Controlled(unet, controlnet)
    per_epoch = len(data) // optim.batch_size
    steps = per_epoch * recipe.run.epochs
    optimizer = build_optimizer(controlnet, controlnet, optim)
    schedule = build_schedule(optimizer, optim, steps, per_epoch)
    average = Averaged(controlnet.parameters(), recipe.model.ema_decay, False)
    order = TrainingOrder(len(data), optim.batch_size, 0, steps, seed, parts=1, process=0, processes=1)
    losses: list[float] = []
    begun = time.process_time()
    for step, batch in enumerate(DataLoader(data, batch_sampler=order)):
        seed_generators(seed, step, 0)
        schedule.step_update(step + 1)
        model.image = batch["condition"]
        loss = task.loss(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(controlnet.parameters(), optim.clip_grad or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        average.step(controlnet.parameters(), step + 1)
        losses.append(loss.item())
        if step % 20 == 0:
            print(f"step {step + 1} of {steps}: loss {losses[-1]:.4f}", flush=True)
    spent = SimpleNamespace(steps=steps, cpu_seconds=time.process_time() - begun, lr=optim.lr)
    spent.loss = sum(losses[-per_epoch:]) / per_epoch  # of the last epoch, while training
    spent.trainable_parameters = sum(parameter.numel() for parameter in controlnet.parameters())
    with average.in_place_of(controlnet.parameters()):
        controlnet.save_pretrained(out / "controlnet")
    (out / "result.json").write_text(json.dumps(vars(spent), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
