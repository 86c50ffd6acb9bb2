"""A training step with SaRA against full fine-tuning, frozen weights, PEFT's LoRA and the authors' two optimisers.

A stack of three residual pairs 768 -> 3072 -> 768 on 512 tokens in float32, forward, backward and AdamW, one thread:
process CPU time and peak bytes above the loaded model, with what the method and its optimiser keep. Weights are
Gaussian with σ = 0.0274, as in Stable Diffusion 1.5, so that θ = 2e-3 trains 5.8 % and θ = 2e-4 0.58 % of them.

The authors' optimisers are rebuilt from their description: "memory-saving" keeps v and its moments, scatters v into
every weight before the forward pass and gathers from all dense gradients after the backward pass (its penalty is
computed from the dense weights, and reaches nothing); "dense-mask" keeps dense weights, gradients and moments, and a
mask each. Both take a singular value decomposition a step for the penalty.

    python kernels/benchmarks/sara.py [--repeats 4] [--tokens 512]
"""

import argparse
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from measure import Step, cpu_seconds, peak_bytes, write_results
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from diffusion_peft import SaraAllocator, SaraConfig

WIDTHS, PAIRS, SIGMA = (768, 3072, 768), 3, 0.0274
BUDGETS = {"5.8%": 2e-3, "0.58%": 2e-4}
Contestant = tuple[Step, Callable[[], int]]


class Stack(nn.Module):
    """Residual pairs of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        linear = ([nn.Linear(*sizes, bias=False) for sizes in pairwise(WIDTHS)] for _ in range(PAIRS))
        self.pairs = nn.ModuleList(nn.Sequential(up, nn.ReLU(), down) for up, down in linear)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=SIGMA)

    def forward(self, x: Tensor) -> Tensor:
        for pair in self.pairs:
            x = x + pair(x)
        return x


def tensor_bytes(tensors: Any) -> int:
    return sum(t.nbytes for t in tensors if isinstance(t, Tensor))


def optimised(model: nn.Module, tokens: int, around: Callable[[Any], Any] | None = None) -> Contestant:
    """A step of AdamW on what is trained in ``model``; ``around`` makes what acts around it."""
    x, target = torch.randn(1, tokens, WIDTHS[0], requires_grad=True), torch.randn(1, tokens, WIDTHS[0])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-5, foreach=False) if trained else None
    allocator = around(optimiser) if around else None
    count = 0

    def step() -> None:
        nonlocal count
        x.grad = None
        F.mse_loss(model(x), target).backward()
        if optimiser is not None:
            optimiser.step()
        if allocator is not None:
            allocator.update_and_allocate(count)
            count += 1
        if optimiser is not None:
            optimiser.zero_grad(set_to_none=True)

    loaded = {p.data_ptr() for p in Stack.parameters(model)} if isinstance(model, Stack) else set()

    def held() -> int:
        states = optimiser.state.values() if optimiser is not None else ()
        added = [t for t in (*model.parameters(), *model.buffers()) if t.numel() and t.data_ptr() not in loaded]
        own = tensor_bytes(added) - (0 if loaded else 4 * PAIRS * 2 * WIDTHS[0] * WIDTHS[1])
        return own + tensor_bytes(t for state in states for t in state.values())

    return step, held


def sara(tokens: int, **fields: Any) -> Contestant:
    model = get_peft_model(Stack(), SaraConfig(modules_to_save=[], reselect_step=0, **fields))  # type: ignore[arg-type]
    return optimised(model, tokens, lambda optimiser: SaraAllocator(model, optimizer=optimiser))


def lora(tokens: int) -> Contestant:
    config = LoraConfig(r=8, target_modules=r"pairs\.\d\.[02]")
    return optimised(get_peft_model(Stack(), config), tokens)  # type: ignore[arg-type]


class AdamW:
    """The update that both of the authors' optimisers write out."""

    def __init__(self, tensors: list[Tensor], lr: float = 1e-5) -> None:
        self.lr, self.count = lr, 0
        self.m, self.s = [torch.zeros_like(t) for t in tensors], [torch.zeros_like(t) for t in tensors]

    def update(self, tensors: list[Tensor], gradients: list[Tensor | None], masks: list[Tensor] | None = None) -> None:
        self.count += 1
        for i, (v, g, m, s) in enumerate(zip(tensors, gradients, self.m, self.s, strict=True)):
            assert g is not None
            kept = None if masks is None else v.clone()
            v.mul_(1 - self.lr * 0.01)
            m.mul_(0.9).add_(g, alpha=0.1)
            s.mul_(0.999).addcmul_(g, g, value=0.001)
            bottom = (s.sqrt() / (1 - 0.999**self.count) ** 0.5).add_(1e-8)
            v.addcdiv_(m, bottom, value=-self.lr / (1 - 0.9**self.count))
            if masks is not None and kept is not None:
                v.copy_(torch.where(masks[i], v, kept))


def memory_saving(tokens: int, threshold: float, penalty: bool) -> Contestant:
    stack = Stack().requires_grad_(False)
    dense = dict(stack.named_parameters())
    masks = {name: w.abs() < threshold for name, w in dense.items()}
    values = {name: w[masks[name]].requires_grad_() for name, w in dense.items()}
    adam = AdamW([v.data for v in values.values()])
    x, target = torch.randn(1, tokens, WIDTHS[0], requires_grad=True), torch.randn(1, tokens, WIDTHS[0])
    count = 0

    def step() -> None:
        nonlocal count
        x.grad = None
        # Scattered before the forward pass, so that the gradients of all dense weights exist before one is gathered.
        weights = {name: w.masked_scatter(masks[name], values[name]) for name, w in dense.items()}
        loss = F.mse_loss(functional_call(stack, weights, (x,)), target)
        loss.backward()
        if penalty:
            weight = list(dense.values())[count % len(dense)]
            leaf = (weight * list(masks.values())[count % len(dense)]).requires_grad_()
            U, _, Vh = torch.linalg.svd(leaf.detach(), full_matrices=False)
            (leaf * (U @ Vh)).sum().backward()
            count += 1
        with torch.no_grad():
            adam.update([v.data for v in values.values()], [v.grad for v in values.values()])
            for name, w in dense.items():
                w[masks[name]] = values[name]
        for v in values.values():
            v.grad = None

    return step, lambda: tensor_bytes([*masks.values(), *values.values(), *adam.m, *adam.s])


def dense_mask(tokens: int, threshold: float, penalty: bool) -> Contestant:
    stack = Stack()
    dense = list(stack.parameters())
    masks = [w.abs() < threshold for w in dense]
    adam = AdamW([w.data for w in dense])
    x, target = torch.randn(1, tokens, WIDTHS[0], requires_grad=True), torch.randn(1, tokens, WIDTHS[0])
    count = 0

    def step() -> None:
        nonlocal count
        x.grad = None
        F.mse_loss(stack(x), target).backward()
        with torch.no_grad():
            if penalty:
                weight, mask = dense[count % len(dense)], masks[count % len(dense)]
                U, _, Vh = torch.linalg.svd(weight * mask, full_matrices=False)
                weight.grad.add_(U @ Vh, alpha=5e-4)  # type: ignore[union-attr]
                count += 1
            adam.update([w.data for w in dense], [w.grad for w in dense], masks)
        for w in dense:
            w.grad = None

    return step, lambda: tensor_bytes([*masks, *adam.m, *adam.s])


def contestants(tokens: int) -> dict[str, Callable[[], Contestant]]:
    made: dict[str, Callable[[], Contestant]] = {
        "full": lambda: optimised(Stack(), tokens),
        "floor": lambda: optimised(Stack().requires_grad_(False), tokens),
        "lora r=8": lambda: lora(tokens),
    }
    for share, threshold in BUDGETS.items():
        for penalty in (False, True):
            label = f"{share}{' + rank' if penalty else ''}"
            fields = {"threshold": threshold, "rank_weight": 5e-4 if penalty else 0.0}
            made |= {
                f"memory-saving {label}": lambda t=threshold, p=penalty: memory_saving(tokens, t, p),
                f"sara {label}": lambda fields=fields: sara(tokens, **fields),
            }
        made[f"sara {share} + rank every 2"] = lambda t=threshold: sara(tokens, threshold=t, rank_every=2)
    for penalty in (False, True):
        label = f"5.8%{' + rank' if penalty else ''}"
        made[f"dense-mask {label}"] = lambda p=penalty: dense_mask(tokens, 2e-3, p)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = {name: make() for name, make in contestants(settings.tokens).items()}
    # Two steps at a time: of a penalty that is computed every second one, both are counted.
    pairs: dict[str, list[Step]] = {name: [step, step] for name, (step, _) in made.items()}
    seconds = {name: sum(two) / 2 for name, two in cpu_seconds(pairs, settings.repeats).items()}
    rows = {}
    print(f"{'':<30}{'ms':>8}{'÷ full':>9}{'peak MiB':>10}{'÷ full':>9}")
    peaks = {name: max(peak_bytes(step), peak_bytes(step)) + held() for name, (step, held) in made.items()}
    for name in made:
        rows[name] = {
            "ms": round(1e3 * seconds[name], 1),
            "time_over_full": round(seconds[name] / seconds["full"], 3),
            "peak_mib": round(peaks[name] / 2**20, 1),
            "peak_over_full": round(peaks[name] / peaks["full"], 3),
        }
        print(f"{name:<30}" + "".join(f"{v:>{w}}" for v, w in zip(rows[name].values(), (8, 9, 10, 9), strict=True)))
    print(write_results("sara", {**vars(settings), "widths": WIDTHS, "pairs": PAIRS, "sigma": SIGMA}, rows))


if __name__ == "__main__":
    main()
