"""The gated delta as a matrix, and a convolution on W0 + S: opaque operators that recompute S in the backward pass."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .blocks import block_rows, groups_of
from .fused import assemble
from .passes import SlicePass
from .spec import DeltaSlice, check_slices, encode


def delta_sparse(slices: Sequence[DeltaSlice], out_features: int, in_features: int) -> Float[Tensor, "out in"]:
    """S = sum of `scale * delta * g(delta)` over the slices, each on its rows; 0 on rows without a slice.

    For merging, and for layers that need the matrix itself. An operator that keeps its weight for the backward pass
    keeps S; `gated_linear` and `gated_conv` do not.
    Cost: some 2 (r + 5) N FLOPs in each pass, N = out * in. Bytes: S and a scratch of its size; A, B, thresholds kept.

    Raises:
        ValueError: a slice does not fit the shape.
    """
    check_slices(slices, out_features, in_features)
    A, B, scalars = columns(slices)
    size = block_rows(in_features, slices[0].A.is_cpu)
    return _dense(A, B, scalars, encode(slices), out_features, size)[0]


def columns(slices: Sequence[DeltaSlice]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Tensors of the slices as an operator takes them."""
    return [s.A for s in slices], [s.B for s in slices], [s.scalars for s in slices if s.scalars is not None]


def add_deltas(weight: Float[Tensor, "out in"], slices: Sequence[DeltaSlice], size: int) -> Float[Tensor, "slices"]:
    """Add the gated deltas to `weight` in place and give their thresholds."""
    passes = [SlicePass(part) for part in slices]
    groups = groups_of(slices, len(weight), size)
    for one in passes:
        for rows, _ in one.sweep(groups, one.scratch()):
            one.put(weight[rows], weight[rows], one.spec.scale)
    return torch.stack([one.t for one in passes if one.t is not None])


def restore_deltas(
    weight: Float[Tensor, "out in"], slices: Sequence[DeltaSlice], thresholds: Float[Tensor, "slices"], size: int
) -> None:
    """Add the gated deltas to `weight` in place by the thresholds that `add_deltas` gave."""
    passes = [SlicePass(part, t) for part, t in zip(slices, thresholds, strict=True)]
    for group in groups_of(slices, len(weight), size):
        for one in (one for one in passes if one.covers(group)):
            for rows in group.blocks:
                one.restore(rows)
                one.put(weight[rows], weight[rows], one.spec.scale)


def recompute(
    grad: Float[Tensor, "out in"], slices: Sequence[DeltaSlice], thresholds: Float[Tensor, "slices"], size: int
) -> list[Tensor]:
    """Gradients of all A, B and scalars from the gradient of the weight the deltas were added to."""
    passes = [SlicePass(part, t) for part, t in zip(slices, thresholds, strict=True)]
    for group in groups_of(slices, len(grad), size):
        for one in (one for one in passes if one.covers(group)):
            for rows in group.blocks:
                one.restore(rows)
                one.accumulate(rows, grad[rows])
    return [g for column in zip(*(one.gradients() for one in passes), strict=True) for g in column if g is not None]


@torch.library.custom_op("peft_kernels::delta_sparse", mutates_args=())
def _dense(
    A: list[Tensor], B: list[Tensor], scalars: list[Tensor], codes: str, out_features: int, size: int
) -> tuple[Tensor, Tensor]:
    dtype = delta_dtype(A)
    S = A[0].new_zeros(out_features, A[0].shape[1], dtype=dtype)
    with torch.autocast(S.device.type, enabled=False):
        return S, add_deltas(S, assemble(A, B, scalars, codes), size)


@_dense.register_fake
def _(A, B, scalars, codes, out_features, size):
    dtype = delta_dtype(A)
    return A[0].new_empty(out_features, A[0].shape[1], dtype=dtype), A[0].new_empty(len(A), dtype=dtype)


@torch.library.custom_op("peft_kernels::delta_sparse_backward", mutates_args=())
def _dense_backward(
    grad: Tensor, A: list[Tensor], B: list[Tensor], scalars: list[Tensor], thresholds: Tensor, codes: str, size: int
) -> list[Tensor]:
    with torch.autocast(grad.device.type, enabled=False):
        return recompute(grad, assemble(A, B, scalars, codes), thresholds, size)


@_dense_backward.register_fake
def _(grad, A, B, scalars, thresholds, codes, size):
    return [torch.empty_like(t) for t in (*A, *B, *scalars)]


def delta_dtype(A: list[Tensor]) -> torch.dtype:
    return torch.float64 if torch.float64 in [a.dtype for a in A] else torch.float32


def _setup_context(ctx, inputs, output):
    A, B, scalars, ctx.codes, _, ctx.size = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.number = len(A)
    ctx.save_for_backward(output[1], *A, *B, *scalars)


def _gradients(ctx, grad, _):
    thresholds, *points = ctx.saved_tensors
    A, B, scalars = split(points, ctx.number)
    return *split(_dense_backward(grad, A, B, scalars, thresholds, ctx.codes, ctx.size), ctx.number), None, None, None


def split(points: Sequence[Tensor], number: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """A, B and scalars of `number` slices from one row of tensors."""
    return list(points[:number]), list(points[number : 2 * number]), list(points[2 * number :])


_dense.register_autograd(_gradients, setup_context=_setup_context)
