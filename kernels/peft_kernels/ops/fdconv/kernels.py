"""One kernel per sample from one spectrum: groups of frequencies, entries, rows and columns scaled for each sample.

FDConv (Chen et al., CVPR 2025, arXiv 2503.18783), sections 3.2 and 3.3. With ``θ`` the spectrum (`spectrum`), ``G`` its
groups, ``O = Co k1 k2`` and ``o = (co k1 + u) k2 + v``:

    K_b = fold(irfft2(Σ_i θ_i g_b[i, G])) · m σ(conv1d(h_b, w)) · rows_b[o] · columns_b[ci]

The authors' ``1 + tanh(t)`` is ``2 σ(2 t)``: m = 2 and the double of w.
FLOPs per sample: ``2.5 P log₂ P`` of the transform and about ``2 κ + 6`` for each of the ``P = Co Ci k1 k2`` entries;
three times that for backward. Bytes kept for the backward pass: those of the inputs; transform and factors are computed
again. The kernels lie channels last.
"""

import torch
from jaxtyping import Float, Int16
from torch import Tensor
from torch.nn import functional as F

from . import reference
from .spectrum import folded, inverse


def sample_kernels(
    spectrum: Float[Tensor, "copies P1 Q 2"],
    gains: Float[Tensor, "B copies n"],
    groups: Int16[Tensor, "P1 Q"],
    size: tuple[int, int, int],
    rows: Float[Tensor, "B O"] | None = None,
    columns: Float[Tensor, "B Ci"] | None = None,
    pooled: Float[Tensor, "B Ci"] | None = None,
    local: Float[Tensor, "O kappa"] | None = None,
    multiplier: float = 2.0,
) -> Float[Tensor, "B Co Ci k1 k2"]:
    """K_b of every sample, with gradients for all but the groups; in the dtype of the spectrum.

    Args:
        spectrum: θ, real and imaginary parts.
        gains: g.
        groups: G, of `frequency_groups`.
        size: ``(Ci, k1, k2)``.
        rows: factor of every output channel and tap.
        columns: factor of every input channel.
        pooled: h; with it comes ``local``.
        local: w, of odd width κ.
        multiplier: m.
    """
    found = _kernels(spectrum, gains, groups, rows, columns, pooled, local, list(size), multiplier)
    return found.movedim(-1, 2)


def _plain(spectrum: Tensor, gains: Tensor, groups: Tensor, size: list[int]) -> Tensor:
    """The kernels before their factors, a view of shape ``[B, Co, k1, k2, Ci]``."""
    channels, k1, k2 = size
    found = inverse(reference.modulated_spectrum(spectrum, gains, groups), channels * k2)
    return folded(found, k1, k2).movedim(2, -1)


def _factors(pooled: Tensor, local: Tensor, multiplier: float, size: list[int]) -> Tensor:
    """Those of the local branch, ``[B, Co, k1, k2, Ci]``."""
    logits = F.conv1d(pooled[:, None], local[:, None], padding=local.shape[1] // 2)
    return logits.sigmoid_().mul_(multiplier).unflatten(1, (-1, size[1], size[2]))


def _scale(kernels: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """``kernels [B, Co, k1, k2, Ci]`` times both factors, in place."""
    if rows is not None:
        kernels.mul_(rows.view(*kernels.shape[:-1], 1))
    return kernels if columns is None else kernels.mul_(columns[:, None, None, None])


@torch.library.custom_op("peft_kernels::sample_kernels", mutates_args=())
def _kernels(
    spectrum: Tensor, gains: Tensor, groups: Tensor, rows: Tensor | None, columns: Tensor | None,
    pooled: Tensor | None, local: Tensor | None, size: list[int], multiplier: float,
) -> Tensor:  # fmt: skip
    with torch.autocast(spectrum.device.type, enabled=False):
        plain = _plain(spectrum, gains, groups, size)
        if pooled is None or local is None:
            kernels = plain.contiguous()  # of the transform's own memory, where it is no copy
        else:
            kernels = _factors(pooled, local, multiplier, size).mul_(plain)
        return _scale(kernels, rows, columns)


@_kernels.register_fake
def _(spectrum, gains, groups, rows, columns, pooled, local, size, multiplier):
    channels, k1, k2 = size
    return spectrum.new_empty(len(gains), len(groups) // k1, k1, k2, channels)


@torch.library.custom_op("peft_kernels::sample_kernels_backward", mutates_args=())
def _kernels_backward(
    gkernels: Tensor, spectrum: Tensor, gains: Tensor, groups: Tensor, rows: Tensor | None, columns: Tensor | None,
    pooled: Tensor | None, local: Tensor | None, size: list[int], multiplier: float, need_spectrum: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    with torch.autocast(spectrum.device.type, enabled=False):
        grows, gcolumns, gpooled, glocal = (spectrum.new_empty(0) for _ in range(4))
        inner = gkernels.clone(memory_format=torch.contiguous_format)
        factors = None
        if pooled is not None and local is not None:
            factors = _factors(pooled, local, multiplier, size)
        if factors is not None or rows is not None or columns is not None:
            share = inner.clone().mul_(_plain(spectrum, gains, groups, size))  # dL/d(factors), all but the others
            if factors is not None:
                share.mul_(factors)
            flat = share.flatten(1, 3)
            if rows is not None:
                grows = flat.sum(-1) if columns is None else torch.bmm(flat, columns[..., None])[..., 0]
            if columns is not None:
                gcolumns = flat.sum(1) if rows is None else torch.bmm(rows[:, None], flat)[:, 0]
            if factors is not None and pooled is not None and local is not None:
                _scale(share, rows, columns).mul_(1 - factors / multiplier)  # σ' = σ (1 - σ)
                gpooled, glocal, _ = torch.ops.aten.convolution_backward(
                    flat, pooled[:, None], local[:, None], None,
                    [1], [local.shape[1] // 2], [1], False, [0], 1, [True, True, False],
                )  # fmt: skip
                gpooled, glocal = gpooled[:, 0], glocal[:, 0]
                inner.mul_(factors)
        _scale(inner, rows, columns)
        gspectrum, ggains = _spectral_gradients(inner, spectrum, gains, groups, size, need_spectrum)
        return gspectrum, ggains, grows, gcolumns, gpooled, glocal


def _spectral_gradients(
    gplain: Tensor, spectrum: Tensor, gains: Tensor, groups: Tensor, size: list[int], need_spectrum: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of θ and g from that of the plain kernels ``[B, Co, k1, k2, Ci]``."""
    height, width = len(groups), size[0] * size[2]
    matrix = gplain.movedim(-1, 3).reshape(len(gains), height, width)
    found = torch.view_as_real(torch.fft.rfft2(matrix)).mul_(2 / (height * width))
    found[:, :, 0].mul_(0.5)  # the inner columns stand for two
    if width % 2 == 0:
        found[:, :, -1].mul_(0.5)
    places = groups.flatten().int()
    products = (spectrum * found[:, None]).sum(-1).flatten(2)
    ggains = torch.zeros_like(gains).index_add_(-1, places, products)
    if not need_spectrum:
        return spectrum.new_empty(0), ggains
    chosen = gains.index_select(-1, places).view(*gains.shape[:2], *groups.shape)
    return torch.einsum("bpqc,bipq->ipqc", found, chosen), ggains


@_kernels_backward.register_fake
def _(gkernels, spectrum, gains, groups, rows, columns, pooled, local, size, multiplier, need_spectrum):
    def like(tensor):
        return spectrum.new_empty(0) if tensor is None else torch.empty_like(tensor)

    gspectrum = torch.empty_like(spectrum) if need_spectrum else spectrum.new_empty(0)
    return gspectrum, torch.empty_like(gains), like(rows), like(columns), like(pooled), like(local)


def _context(ctx, inputs, output):
    *tensors, ctx.size, ctx.multiplier = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, gkernels):
    tensors = ctx.saved_tensors
    need = ctx.needs_input_grad
    found = _kernels_backward(gkernels, *tensors, ctx.size, ctx.multiplier, need[0])
    gspectrum, ggains, *others = found
    wanted = [g if needed else None for g, needed in zip(others, need[3:7], strict=True)]
    return gspectrum if need[0] else None, ggains if need[1] else None, None, *wanted, None, None


_kernels.register_autograd(_gradients, setup_context=_context)
