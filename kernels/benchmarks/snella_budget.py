"""What SNELLA's competition between layers costs: the running importance of every step and the division of every epoch.

ViT-B/16 with SNELLA (r = 32) in float32 on one thread: process CPU time of a training step without them, of taking in
the gradients, of one division; and the share of a run of 100 epochs that the two have.

    python kernels/benchmarks/snella_budget.py [--repeats 2] [--batch 8] [--steps-per-epoch 125]
"""

import argparse

import timm
import torch
from measure import cpu_seconds, write_results
from torch.nn import functional as F

from peft_kernels.registry import method
from vision_peft import SnellaAllocator

EPOCHS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps-per-epoch", type=int, default=125)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = method("snella").attach(
        timm.create_model("vit_base_patch16_224", num_classes=100), dropout=0.0, drop_path=0.0
    )
    allocator = SnellaAllocator(model, EPOCHS * settings.steps_per_epoch, settings.steps_per_epoch)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    images, labels = torch.randn(settings.batch, 3, 224, 224), torch.randint(100, (settings.batch,))

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimiser.step()

    def update() -> None:
        allocator.update_and_allocate(0)  # within an epoch: nothing is divided

    steps = {"step": [step], "importance": [update], "division": [lambda: allocator.allocate(50)]}
    seconds = {name: row[0] for name, row in cpu_seconds(steps, settings.repeats).items()}
    training = settings.steps_per_epoch * seconds["step"]
    added = settings.steps_per_epoch * seconds["importance"] + seconds["division"]
    rows = {name: {"ms": round(1e3 * value, 2)} for name, value in seconds.items()}
    rows["run"] = {"share_of_run": added / (training + added)}
    for name, value in seconds.items():
        print(f"{name:<12}{1e3 * value:10.2f} ms")
    print(f"importance and division: {100 * added / (training + added):.2f} % of a run")
    print(write_results("snella_budget", vars(settings), rows))


if __name__ == "__main__":
    main()
