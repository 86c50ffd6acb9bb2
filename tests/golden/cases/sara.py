"""SaRA: training runs with their masks, the nuclear norm, and the selection by dtype."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_peft import SaraAllocator, SaraConfig
from peft_kernels.entries import Entries
from peft_kernels.magnitude import below
from peft_kernels.ops import nuclear_subgradient
from peft_kernels.ops.nuclear import reference

from ..comparison import Tolerance
from ..harness import Results
from ..vectors import Vectors
from .attached import Attached
from .timm_modules import with_tensors


def training_tolerance(name: str, dtype: torch.dtype) -> Tolerance:
    """1e-12 absolute in float64, 2e-6 in float32."""
    return Tolerance(1e-12 if dtype == torch.float64 else 2e-6, absolute=True)


def norm_tolerance(name: str, dtype: torch.dtype) -> Tolerance:
    """1e-11 in float64, 1e-5 in float32."""
    return Tolerance(1e-11 if dtype == torch.float64 else 1e-5)


def exact(name: str, dtype: torch.dtype) -> Tolerance:
    """Bitwise."""
    return Tolerance(0.0)


class Net(nn.Module):
    """Two linear layers with a norm and GELU between them, and maybe a convolution along the channels."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        (hidden, inputs), outputs = tensors["fc1.weight"].shape, len(tensors["fc2.weight"])
        self.fc1 = nn.Linear(inputs, hidden, bias="fc1.bias" in tensors)
        self.norm = nn.LayerNorm(hidden, eps=1e-5)
        self.fc2 = nn.Linear(hidden, outputs, bias="fc2.bias" in tensors)
        self.conv = None
        if "conv.weight" in tensors:
            channels, _, kernel = tensors["conv.weight"].shape
            self.conv = nn.Conv1d(1, channels, kernel, padding=kernel // 2, bias="conv.bias" in tensors)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc2(F.gelu(self.norm(self.fc1(x))))
        return h if self.conv is None else self.conv(h[:, None, :]).mean(1)


class Run:
    """The net of a file with SaRA on it, the optimiser, and who makes the calls around its steps."""

    def __init__(self, case: Vectors, **fields: Any) -> None:
        self.options, self.start = case.options, case.below("param")
        dtype = getattr(torch, self.options["dtype"])
        base = with_tensors(Net(self.start).to(dtype), self.start)
        self.base_output = base(case["input.x.0"])
        config = SaraConfig(
            threshold=self.options["threshold"], rank_weight=self.options["lambda_rank"], modules_to_save=[], **fields
        )
        self.attached = Attached(base, config)
        trained = [p for p in self.attached.model.parameters() if p.requires_grad]
        o = self.options
        self.optimizer = torch.optim.AdamW(trained, o["lr"], tuple(o["betas"]), o["eps"], o["weight_decay"])
        self.allocator = SaraAllocator(self.attached.model, optimizer=self.optimizer)
        picks = o.get("rank_matrix_picks", [])
        self.allocator.draw = lambda: [picks[self.allocator.turn]] if self.allocator.turn < len(picks) else []
        self.entries: dict[str, Entries] = self.allocator.entries
        self.found: dict[str, Tensor] = {}
        found, expected = sum(len(part.values) for part in self.entries.values()), o["n_trainable_initial"]
        if found != expected:
            raise ValueError(f"{found} entries are trained, the file expects {expected}")

    def step(self, case: Vectors, i: int, unsigned: bool = False) -> None:
        """One step; ``unsigned`` as the authors' first one, whose forward pass takes magnitudes."""
        with self.signs_lost() if unsigned else nullcontext():
            y = self.attached.model(case[f"input.x.{i}"])
            loss = (y - case[f"target.y.{i}"]).square().mean()
            loss.backward()
        if i == 0:
            self.found["output.y_pred.0"] = y.detach()
            for name, tensor in self.start.items():
                part = self.entries.get(name)
                self.found[f"grad.sparse.0.{name}"] = (
                    tensor.new_zeros(0) if part is None or part.values.grad is None else part.values.grad.clone()
                )
        if not math.isclose(loss.item(), self.options["losses"][i], rel_tol=1e-5):
            raise ValueError(f"the loss of step {i + 1} is {loss.item()}, the file's {self.options['losses'][i]}")
        self.optimizer.step()
        decided = self.allocator.update_and_allocate(i)
        self.optimizer.zero_grad(set_to_none=True)
        expected = self.options.get("n_trainable_reselected")
        if decided is not None and expected is not None and decided["trained"] != expected:
            raise ValueError(f"{decided} after step {i + 1}, expected {expected}")
        self.found |= {f"param_after.{i + 1}.{name}": tensor for name, tensor in self.tensors().items()}

    @contextmanager
    def signs_lost(self) -> Iterator[None]:
        """Magnitudes in the place of the values still trained; gradients of a pass within it become the values' own."""
        signs = [part.values.detach().sign() for part in self.entries.values()]
        for part, sign in zip(self.entries.values(), signs, strict=True):
            if part.frozen is not None:
                sign.masked_fill_(part.frozen, 1)
            part.values.data.mul_(sign)
        yield
        for part, sign in zip(self.entries.values(), signs, strict=True):
            part.values.data.mul_(sign)
            if part.values.grad is not None:
                part.values.grad.mul_(sign)

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """All tensors as they are in force."""
        full = {name: tensor.clone() for name, tensor in self.start.items()}
        return full | {name: self.entries[name].effective(full[name]) for name in self.entries}

    def masks(self, which: str) -> dict[str, Tensor]:
        """What is trained, of every tensor."""
        masks = {}
        for name, tensor in self.start.items():
            mask = torch.zeros(tensor.numel(), dtype=torch.bool)
            if (part := self.entries.get(name)) is not None:
                mask[part.places().long()] = True if part.frozen is None else ~part.frozen
            masks[f"mask.{which}.{name}"] = mask.view(tensor.shape)
        return masks

    def merged(self) -> dict[str, Tensor]:
        """The plain model's tensors, as after the last step."""
        last = self.options["steps"]
        return {f"param_after.{last}.{n}": p.detach() for n, p in self.attached.merged().named_parameters()}


def masked_training(case: Vectors) -> Results:
    """AdamW on the entries, with the penalty and the second selection where the file has them."""
    run = Run(case, reselect_step=case.options["progressive_step"])
    found = run.masks("initial")
    for i in range(case.options["steps"]):
        run.step(case, i)
    return {"SaraConfig": {**found, **run.masks("reselected"), **run.found}, "merged": run.merged()}


def official_unstructured(case: Vectors) -> Results:
    """The second variant, ``keep_moments=False``, with the authors' loss of signs put in by hand.

    Without that hand the file must not come out: the first output is the base model's, and theirs is not.
    """
    t1 = case.options["progressive_step"]
    run = Run(case, reselect_step=t1, keep_moments=False)
    with torch.no_grad():
        y = run.attached.model(case["input.x.0"])
    if not torch.equal(y, run.base_output) or torch.equal(y, case["output.y_pred.0"]):
        raise ValueError("attached, SaRA must give the base model's output, unlike the authors' code")
    found = run.masks("initial")
    for i in range(case.options["steps"]):
        run.step(case, i, unsigned=i in (0, t1 + 1))
        if i == t1:  # their second selection leaves magnitudes in the model
            with run.signs_lost():
                run.found |= {f"param_after.{i + 1}.{name}": tensor for name, tensor in run.tensors().items()}
    return {"SaraConfig": {**found, **run.masks("reselected"), **run.found}, "merged": run.merged()}


def nuclear_norm(case: Vectors) -> Results:
    """The norm of a masked matrix, its singular values, and the masked subgradient."""
    matrix, index = case["param.W"], case["mask"].flatten().nonzero().squeeze(1).int()
    values, results = matrix.flatten()[index.long()], {}
    for way, run in (("singular values", reference), ("operation", nuclear_subgradient)):
        gradient, found = run(values, index, tuple(matrix.shape))  # type: ignore[arg-type]
        full = torch.zeros(matrix.numel(), dtype=matrix.dtype).index_copy(0, index.long(), gradient)
        results[way] = {"output.nuclear_norm": found.sum()[None], "grad.W": full.view(matrix.shape)}
        if run is reference:
            results[way]["output.singular_values"] = found
    return results


def selection_dtype(case: Vectors) -> Results:
    """Which entries lie below a threshold in each dtype."""
    found = {}
    for name in case.expected(r"mask\..*"):
        threshold, _, dtype = name.removeprefix("mask.").rpartition(".")
        weight = case["param.W.float32"].to(getattr(torch, dtype))
        mask = torch.zeros(weight.numel(), dtype=torch.bool)
        mask[below(weight, float(threshold)).long()] = True
        found[name] = mask.view(weight.shape)
        if int(mask.sum()) != case.options["counts"][name]:
            raise ValueError(f"{name}: {int(mask.sum())} entries, the file expects {case.options['counts'][name]}")
    return {"below": found}
