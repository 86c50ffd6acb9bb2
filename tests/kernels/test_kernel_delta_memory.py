"""What the kernelised delta keeps for the backward pass, run as it is and compiled: nothing of the weight's size."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from peft_kernels.ops import DeltaSlice, DeltaSpec, delta_sparse, gated_conv, gated_linear, keep_mask
from tests.kernels.delta_cases import assert_same, random_slice, tensors_of

WEIGHT, BIAS = torch.randn(96, 64), torch.randn(96)
KERNEL = torch.randn(48, 16, 2, 2)


def linear(x: Tensor, slices: Sequence[DeltaSlice]) -> Tensor:
    return gated_linear(x, WEIGHT, BIAS, slices)


def branch(x: Tensor, slices: Sequence[DeltaSlice]) -> Tensor:
    return gated_linear(x, None, None, slices, out_features=96)


def dropped(x: Tensor, slices: Sequence[DeltaSlice]) -> Tensor:
    drop, gain = keep_mask(x.shape, 0.1, x.device)
    keep, path_gain = keep_mask((2, len(x)), 0.1, x.device)
    return gated_linear(x, WEIGHT, BIAS, slices, drop=drop, keep=keep, gain=gain * path_gain)


def autocast(x: Tensor, slices: Sequence[DeltaSlice]) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return gated_linear(x, WEIGHT, BIAS, slices)


def convolution(x: Tensor, slices: Sequence[DeltaSlice]) -> Tensor:
    return gated_conv(x.view(1, 16, 5, 8), KERNEL, None, slices[:1], padding=1)


def dense(x: Tensor, slices: Sequence[DeltaSlice]) -> Tensor:
    return delta_sparse(slices[:1], 48, 64)


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same under torch.compile; the graph must hold together, and the slices be made inside of it."""

    def called(x: Tensor, *points: Tensor) -> Tensor:
        first, second = zip(points[::2], points[1::2], strict=True)
        return function(
            x, [DeltaSlice(*first, DeltaSpec(sparsity=0.5)), DeltaSlice(*second, DeltaSpec(sparsity=0.5, start=48))]
        )

    whole = torch.compile(called, backend="aot_eager", fullgraph=True)
    return lambda x, slices: whole(x, *tensors_of(slices))


def kept_shapes(function: Callable[[], Tensor]) -> tuple[Tensor, list[tuple[int, ...]]]:
    """Output of a function, and the shape of every tensor autograd keeps for it."""
    shapes: list[tuple[int, ...]] = []

    def note(tensor: Tensor) -> Tensor:
        shapes.append(tuple(tensor.shape))
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        return function(), shapes


@pytest.mark.parametrize("function", [linear, branch, dropped, autocast, convolution, dense])
@pytest.mark.parametrize("way", ["as it is", "compiled"])
def test_nothing_of_the_weights_size_is_kept(function, way):
    slices = [random_slice(48, 64, 4, sparsity=0.5), random_slice(48, 64, 4, sparsity=0.5, start=48)]
    x = torch.randn(2, 5, 64, requires_grad=True)
    run = function if way == "as it is" else compiled(function)
    y, shapes = kept_shapes(lambda: run(x, slices))
    weights = {tuple(WEIGHT.shape), tuple(KERNEL.shape)}  # by reference: they stand anyhow
    inputs = {tuple(t.shape) for t in (x, x.view(1, 16, 5, 8), *tensors_of(slices))}
    rest = [shape for shape in shapes if shape not in weights | inputs]
    assert sum(torch.Size(shape).numel() for shape in rest) <= 8  # thresholds and drop-path's mask
    y.float().sum().backward()
    assert slices[0].A.grad is not None


@pytest.mark.parametrize("function", [linear, branch, dropped, autocast, convolution, dense])
def test_the_mixed_kernel_keeps_nothing_of_the_weights_size(function):
    constants = {"kernel": "mix", "sparsity": 0.5, "gate": "magnitude"}
    slices = [random_slice(48, 64, 4, **constants), random_slice(48, 64, 4, start=48, **constants)]
    x = torch.randn(2, 5, 64, requires_grad=True)
    y, shapes = kept_shapes(lambda: function(x, slices))
    standing = {tuple(t.shape) for t in (WEIGHT, KERNEL, x, x.view(1, 16, 5, 8), *tensors_of(slices))}
    assert sum(torch.Size(shape).numel() for shape in shapes if shape not in standing) <= 8
    y.float().sum().backward()
    assert slices[0].scalars is not None
    assert slices[0].scalars.grad is not None


@pytest.mark.parametrize("function", [linear, branch, autocast, convolution, dense])
def test_compiled_operators_give_the_same_bits(function):
    slices = [random_slice(48, 64, 4, sparsity=0.5), random_slice(48, 64, 4, sparsity=0.5, start=48)]
    x = torch.randn(2, 5, 64, requires_grad=True)
    used = slices if function in (linear, branch, autocast) else slices[:1]
    inputs = tensors_of(used) if function is dense else [x, *tensors_of(used)]
    assert_same(compiled(function)(x, slices), function(x, slices), inputs, (0.0, 0.0))


def test_batch_size_may_change_under_compile():
    slices = [random_slice(48, 64, 4, sparsity=0.5), random_slice(48, 64, 4, sparsity=0.5, start=48)]
    run = torch.compile(lambda x: linear(x, slices), backend="aot_eager", fullgraph=True, dynamic=True)
    for batch in (2, 3, 7):
        x = torch.randn(batch, 5, 64, requires_grad=True)
        assert_same(run(x), linear(x, slices), [x, *tensors_of(slices)], (0.0, 0.0))
