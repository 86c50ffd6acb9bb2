"""Half precision, autocast, checkpointing, compilation, and what is kept for the backward pass."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from .capability import capability
from .case import Case, close, differs, gradients, run, same


def _half(case: Case, dtype: torch.dtype) -> None:
    model = case.base().to(dtype)
    x = case.x.to(dtype) if case.x.is_floating_point() else case.x
    base, adapted = run(model, x), case.trained(model=model)
    output = run(adapted, x)
    assert output.dtype == dtype
    differs(output, base, by=0.02)
    reference = run(case.trained(), case.x)
    close(output, reference, rtol=0.05, atol=0.05 * reference.abs().max().item())
    found = gradients(adapted, x)
    if case.method.name not in ("linear_probe", "ln_tuning"):  # PEFT's copies of whole modules keep their dtype
        assert all(gradient.dtype == torch.float32 for gradient in found.values())
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in found.values())


@capability("float16")
def float16(case: Case) -> None:
    """A float16 model: float16 out, close to float32; the adapter and its gradients stay float32."""
    _half(case, torch.float16)


@capability("bfloat16")
def bfloat16(case: Case) -> None:
    """The same in bfloat16."""
    _half(case, torch.bfloat16)


@capability("autocast")
def autocast(case: Case) -> None:
    """Under autocast a float32 model gives close outputs and float32 gradients, none of them zero."""
    adapted = case.trained()
    output, expected = run(adapted, case.x), gradients(adapted, case.x)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            close(run(adapted, case.x), output, rtol=0.05, atol=0.05 * output.abs().max().item())
            found = gradients(adapted, case.x)
        for name, gradient in found.items():
            assert gradient.dtype == torch.float32
            reference = expected[name]
            close(gradient, reference, rtol=0.1, atol=0.1 * reference.abs().max().item())
            assert gradient.abs().sum() > 0


@capability("gradient checkpointing")
def gradient_checkpointing(case: Case) -> None:
    """Non-reentrant checkpointing of the whole model gives the same gradients."""
    adapted = case.trained()
    expected = gradients(adapted, case.x)
    calls: list[int] = []

    def forward(x: Tensor) -> Tensor:
        calls.append(1)
        return adapted(x)

    found = gradients(adapted, case.x, lambda x: checkpoint(forward, x, use_reentrant=False))
    assert len(calls) == 2
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        same(gradient, expected[name])


class _Step(NamedTuple):
    output: Tensor
    gradients: dict[str, Tensor]
    kept: list[torch.Size]
    seen: int


def _step(model: Any, owner: nn.Module, x: Tensor) -> _Step:
    """A training step of ``model``: what it keeps for backward, and the shapes of that beside parameters and inputs."""
    standing = {tensor.untyped_storage().data_ptr() for tensor in (*owner.parameters(), *owner.buffers(), x)}
    saved: list[Tensor] = []
    output: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    def forward(x: Tensor) -> Tensor:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            output.append(model(x))
        return output[0]

    found = gradients(owner, x, forward)
    kept = [tensor.shape for tensor in saved if tensor.untyped_storage().data_ptr() not in standing]
    return _Step(output[0].detach(), found, kept, len(saved))


@cache
def _compiled(case: Case) -> _Step:
    adapted = case.trained()
    torch._dynamo.reset()
    return _step(torch.compile(adapted, backend="aot_eager", fullgraph=True), adapted, case.x)


@capability("compile")
def compiles(case: Case) -> None:
    """`torch.compile` makes one graph of the model and gives equal outputs and gradients (backend `aot_eager`)."""
    compiled, adapted = _compiled(case), case.trained()
    close(compiled.output, run(adapted, case.x))
    expected = gradients(adapted, case.x)
    assert compiled.gradients.keys() == expected.keys()
    for name, gradient in compiled.gradients.items():
        close(gradient, expected[name], rtol=1e-4, atol=1e-5 * expected[name].abs().max().item())


@capability("recompute")
def recompute(case: Case) -> None:
    """No tensor of the weight's size is kept for the backward pass, neither in eager mode nor compiled."""
    adapted = case.trained()
    weights = [parameter.numel() for parameter in case.base().layer.parameters() if parameter.ndim > 1]
    assert weights
    for step in (_step(adapted, adapted, case.x), _compiled(case)):
        assert step.seen, "nothing was counted"
        large = [tuple(shape) for shape in step.kept if any(shape.numel() % weight == 0 for weight in weights)]
        assert not large, f"kept {large}"
