"""Linear layer on W0 + S as two opaque operators, forward and backward, that keep x, A, B and one threshold a slice.

    y = x (W0 + S)^T + b                                   `merged`: one product forward, two backward
    y = x W0^T + b + keep * ((x * drop) S^T) * gain        `apart`: dropout, drop-path, half precision, or no W0

Opaque, because torch.compile traces through an autograd.Function and keeps what it was to recompute.
SNELL (arXiv 2411.01800), Sec. 3.3: recompute the delta instead of keeping it; the merged form is ours.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from . import apart, merged
from .blocks import block_rows, groups_of
from .passes import SlicePass
from .spec import KERNEL_SCALARS, DeltaSlice, check_slices, decode, encode


def gated_linear(
    x: Float[Tensor, "*batch in"],
    weight: Float[Tensor, "out in"] | None,
    bias: Float[Tensor, "out"] | None,
    slices: Sequence[DeltaSlice],
    *,
    drop: Bool[Tensor, "*batch in"] | None = None,
    keep: Bool[Tensor, "slices batch"] | None = None,
    gain: float = 1.0,
    out_features: int | None = None,
    chunk_rows: int = 0,
) -> Float[Tensor, "*batch out"]:
    """x (W0 + S)^T + b, where S is recomputed in the backward pass instead of kept.

    Cost for T rows of x and N = out * in: 6 T N FLOPs merged and 10 T N apart, forward and backward, and 2 (r + 10) N
    for the delta in each pass. Bytes kept: x, A, B, the masks, 8 a slice; scratch: N entries forward, some blocks
    backward.

    Args:
        weight: W0; None leaves x W0^T out and needs `out_features`.
        slices: deltas and the rows they cover; those that share rows add up, rows without one keep W0.
        drop: entries of x the deltas see (True: kept), shared by all slices.
        keep: samples (first dimension of x) the delta of each slice acts on.
        gain: factor on the deltas' part of y, to make up for `drop` and `keep`.
        chunk_rows: rows of delta computed together; 0 chooses by cache size.

    Gradients reach x, weight, bias, A, B and scalars, once: there is no second derivative. The delta is computed in
    float32 at least; under autocast the products run in autocast's dtype.

    Raises:
        ValueError: a slice does not fit the weight.
    """
    if weight is not None:
        out_features = weight.shape[0]
    if out_features is None:
        raise ValueError("out_features is needed where weight is None")
    check_slices(slices, out_features, x.shape[-1])
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    y, _ = _forward(
        x, weight, bias, [s.A for s in slices], [s.B for s in slices],
        [s.scalars for s in slices if s.scalars is not None], drop, keep, encode(slices), gain, out_features,
        chunk_rows or block_rows(x.shape[-1], x.device.type == "cpu"),
    )  # fmt: skip
    return y


def assemble(A: list[Tensor], B: list[Tensor], scalars: list[Tensor], codes: str) -> list[DeltaSlice]:
    """Slices from the arguments of an operator; a kernel without scalars has no tensor among `scalars`."""
    rest = iter(scalars)
    return [
        DeltaSlice(a, b, spec, next(rest) if KERNEL_SCALARS[spec.kernel] else None)
        for a, b, spec in zip(A, B, decode(codes), strict=True)
    ]


def _merges(dtype: torch.dtype, weight: Tensor | None, drop: Tensor | None, keep: Tensor | None) -> bool:
    return weight is not None and weight.dtype == dtype and drop is None and keep is None and dtype.itemsize >= 4


@torch.library.custom_op("peft_kernels::gated_linear", mutates_args=())
def _forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, A: list[Tensor], B: list[Tensor], scalars: list[Tensor],
    drop: Tensor | None, keep: Tensor | None, codes: str, gain: float, out_features: int, size: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    slices = assemble(A, B, scalars, codes)
    passes = [SlicePass(part) for part in slices]
    groups = groups_of(slices, out_features, size)
    with torch.autocast(x.device.type, enabled=False):
        if _merges(x.dtype, weight, drop, keep):
            assert weight is not None
            y = merged.forward(x, weight, bias, passes, groups, gain)
        else:
            y = apart.forward(x, weight, bias, drop, keep, passes, groups, gain)
    return y, torch.stack([one.t for one in passes if one.t is not None])


@_forward.register_fake
def _(x, weight, bias, A, B, scalars, drop, keep, codes, gain, out_features, size):
    dtype = torch.float64 if torch.float64 in [a.dtype for a in A] else torch.float32
    return x.new_empty(*x.shape[:-1], out_features), x.new_empty(len(A), dtype=dtype)


@torch.library.custom_op("peft_kernels::gated_linear_backward", mutates_args=())
def _backward(
    gy: Tensor, x: Tensor | None, weight: Tensor | None, A: list[Tensor], B: list[Tensor], scalars: list[Tensor],
    drop: Tensor | None, keep: Tensor | None, thresholds: Tensor, codes: str, gain: float, size: int,
    need_x: bool, need_weight: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of x and weight where needed, then of A, B and scalars where x is given."""
    slices = assemble(A, B, scalars, codes)
    passes = [SlicePass(part, t) for part, t in zip(slices, thresholds, strict=True)]
    groups = groups_of(slices, gy.shape[-1], size)
    rows_gy = gy.reshape(-1, gy.shape[-1])
    rows_x = None if x is None else apart.dropped(x, None)
    gweight = torch.empty_like(weight) if need_weight and weight is not None else None
    with torch.autocast(gy.device.type, enabled=False):
        if _merges(gy.dtype, weight, drop, keep):
            assert weight is not None
            gx = gy.new_empty(len(rows_gy), weight.shape[1]) if need_x else None
            merged.backward(rows_gy, rows_x, weight, passes, groups, gain, gx, gweight)
        else:
            gx = apart.backward(rows_gy, x, weight, drop, keep, passes, groups, gain, need_x)
            if gweight is not None:
                assert rows_x is not None
                gweight.copy_(rows_gy.T @ rows_x)
    grads = [g for g in (None if gx is None else gx.view(*gy.shape[:-1], gx.shape[1]), gweight) if g is not None]
    if x is not None:
        columns = list(zip(*(one.gradients(gain) for one in passes), strict=True))
        grads += [g for column in columns for g in column if g is not None]
    return grads


@_backward.register_fake
def _(gy, x, weight, A, B, scalars, drop, keep, thresholds, codes, gain, size, need_x, need_weight):
    grads = [gy.new_empty(*gy.shape[:-1], A[0].shape[1])] if need_x else []
    grads += [torch.empty_like(weight)] if need_weight else []
    return grads if x is None else [*grads, *(torch.empty_like(t) for t in (*A, *B, *scalars))]


def _setup_context(ctx, inputs, output):
    x, weight, bias, A, B, scalars, drop, keep, ctx.codes, ctx.gain, _, ctx.size = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.counts = len(A), len(scalars)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.need_points = any(t.requires_grad for t in (*A, *B, *scalars))
    ctx.need_weight = weight is not None and weight.requires_grad
    kept_x = x if ctx.need_points or ctx.need_weight else None
    ctx.save_for_backward(kept_x, weight, drop, keep, output[1], *A, *B, *scalars)


def _gradients(ctx, gy, _):
    x, weight, drop, keep, thresholds, *points = ctx.saved_tensors
    number, scalar_number = ctx.counts
    A, B, scalars = points[:number], points[number : 2 * number], points[2 * number :]
    need_x, _, need_bias = ctx.needs_input_grad[:3]
    grads = iter(
        _backward(
            gy, x, weight, A, B, scalars, drop, keep, thresholds, ctx.codes, ctx.gain, ctx.size,
            need_x, ctx.need_weight,
        )
    )  # fmt: skip
    gx = next(grads) if need_x else None
    gweight = next(grads) if ctx.need_weight else None
    gbias = gy.reshape(-1, gy.shape[-1]).sum(0).to(ctx.bias_dtype) if need_bias else None
    gA, gB, gscalars = ([next(grads, None) for _ in range(n)] for n in (number, number, scalar_number))
    return gx, gweight, gbias, gA, gB, gscalars, None, None, None, None, None, None


def _no_second_derivative(ctx, *grads):
    raise RuntimeError("gated_linear has no second derivative: call backward without create_graph")


_forward.register_autograd(_gradients, setup_context=_setup_context)
_backward.register_autograd(_no_second_derivative)
