"""One kernel per sample from one spectrum: groups of frequencies, entries, rows and columns scaled for each sample.

FDConv (Chen et al., CVPR 2025, arXiv 2503.18783), sections 3.2 and 3.3. With ``θ`` the spectrum (`spectrum`), ``G`` its
groups, ``O = Co k1 k2`` and ``o = (co k1 + u) k2 + v``:

    K_b = fold(irfft2(Σ_i θ_i g_b[i, G])) · m σ(conv1d(h_b, w)) · rows_b[o] · columns_b[ci]

The authors' ``1 + tanh(t)`` is ``2 σ(2 t)``: m = 2 and the double of w.
FLOPs per sample: ``2.5 P log₂ P`` of the transform and about ``2 κ + 6`` for each of the ``P = Co Ci k1 k2`` entries;
about twice that for backward. Bytes kept for the backward pass: those of the inputs, and the kernels themselves, which
the convolution after them keeps anyway: all gradients of factors follow from ``K ⊙ dL/dK``, so that the transform is
not computed again. On the CPU samples are taken in blocks that fit the cache.
"""

import torch
from jaxtyping import Float, Int16
from torch import Tensor
from torch.nn import functional as F

from . import reference
from .spectrum import folded, hermitian_

BLOCK_ENTRIES = 2**20  # of kernels that are made at once on the CPU


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
        rows: factor of every output channel and tap; not 0.
        columns: factor of every input channel; not 0.
        pooled: h; with it comes ``local``.
        local: w, of odd width κ.
        multiplier: m.
    """
    return _kernels(spectrum, gains, groups, rows, columns, pooled, local, list(size), multiplier)


def _blocks(kernels: Tensor) -> list[slice]:
    """Samples that are taken together."""
    step = max(1, BLOCK_ENTRIES // max(1, kernels[0].numel())) if kernels.is_cpu else len(kernels)
    return [slice(start, start + step) for start in range(0, len(kernels), step)]


def _windows(pooled: Tensor, reach: int) -> Float[Tensor, "B kappa Ci"]:
    """``h[b, ci + t - (κ-1)/2]``, a view of a padded copy."""
    return F.pad(pooled, (reach // 2, reach // 2)).unfold(1, pooled.shape[1], 1)


def _sigmoids(pooled: Tensor | None, local: Tensor | None) -> Float[Tensor, "B O Ci"] | None:
    """Of the local branch."""
    if pooled is None or local is None:
        return None
    return torch.matmul(local, _windows(pooled, local.shape[1])).sigmoid_()


def _factors(
    sigmoids: Tensor | None, rows: Tensor | None, columns: Tensor | None, multiplier: float
) -> Float[Tensor, "B #O #Ci"] | None:
    """All factors of the kernels together; the sigmoids are not written into."""
    rows = None if rows is None else rows[..., None]
    columns = None if columns is None else columns[:, None]
    if sigmoids is None:
        return columns if rows is None else rows if columns is None else rows * columns
    factors = sigmoids * (multiplier if rows is None else multiplier * rows)
    return factors if columns is None else factors.mul_(columns)


def _as_kernels(factors: Tensor, shape: torch.Size) -> Float[Tensor, "B Co Ci k1 k2"]:
    """A view of ``[B, O, Ci]``."""
    samples, out, channels, k1, k2 = shape
    return factors.expand(samples, out * k1 * k2, channels).unflatten(1, (out, k1, k2)).movedim(-1, 2)


def _parts(part: slice, *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor[part] for tensor in tensors]


@torch.library.custom_op("peft_kernels::sample_kernels", mutates_args=())
def _kernels(
    spectrum: Tensor, gains: Tensor, groups: Tensor, rows: Tensor | None, columns: Tensor | None,
    pooled: Tensor | None, local: Tensor | None, size: list[int], multiplier: float,
) -> Tensor:  # fmt: skip
    channels, k1, k2 = size
    kernels = spectrum.new_empty(len(gains), len(groups) // k1, channels, k1, k2)
    with torch.autocast(spectrum.device.type, enabled=False):
        for part in _blocks(kernels):
            modulated = hermitian_(reference.modulated_spectrum(spectrum, gains[part], groups), channels * k2)
            plain = folded(torch.fft.irfft2(modulated, s=(len(groups), channels * k2)), k1, k2)
            sampled_rows, sampled_columns, slid = _parts(part, rows, columns, pooled)
            factors = _factors(_sigmoids(slid, local), sampled_rows, sampled_columns, multiplier)
            if factors is None:
                kernels[part] = plain
            else:
                torch.mul(plain, _as_kernels(factors, plain.shape), out=kernels[part])
    return kernels


@_kernels.register_fake
def _(spectrum, gains, groups, rows, columns, pooled, local, size, multiplier):
    channels, k1, k2 = size
    return spectrum.new_empty(len(gains), len(groups) // k1, channels, k1, k2)


@torch.library.custom_op("peft_kernels::sample_kernels_backward", mutates_args=())
def _kernels_backward(
    gkernels: Tensor, kernels: Tensor, spectrum: Tensor, gains: Tensor, groups: Tensor, rows: Tensor | None,
    columns: Tensor | None, pooled: Tensor | None, local: Tensor | None, multiplier: float, need_spectrum: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    grows, gcolumns, gpooled, glocal = (
        spectrum.new_zeros(0 if t is None else t.shape) for t in (rows, columns, pooled, local)
    )
    gspectrum = torch.zeros_like(spectrum) if need_spectrum else spectrum.new_empty(0)
    ggains = torch.empty_like(gains)
    with torch.autocast(spectrum.device.type, enabled=False):
        conjugate = torch.view_as_complex(spectrum).conj_physical()
        for part in _blocks(kernels):
            outer, sampled_rows, sampled_columns, slid = _parts(part, gkernels, rows, columns, pooled)
            assert outer is not None
            sigmoids = _sigmoids(slid, local)
            factors = _factors(sigmoids, sampled_rows, sampled_columns, multiplier)
            ggains[part] = _spectral_gradients(_matrices(outer, factors), conjugate, gains[part], groups, gspectrum)
            if factors is None:
                continue
            share = _with_channels_last(outer, kernels[part])  # dL/d(log of each entry's factor)
            if sampled_rows is not None:
                grows[part] = share.sum(-1) / _nonzero(sampled_rows)
            if sampled_columns is not None:
                gcolumns[part] = share.sum(1) / _nonzero(sampled_columns)
            if sigmoids is not None and slid is not None and local is not None:
                share.addcmul_(share, sigmoids, value=-1)  # σ' = σ (1 - σ)
                reach, channels = local.shape[1], slid.shape[1]
                glocal += torch.matmul(share, _windows(slid, reach).mT).sum(0)
                sizes = [len(slid), channels + 2 * (reach // 2)]
                padded = torch.ops.aten.unfold_backward(torch.matmul(local.T, share), sizes, 1, channels, 1)
                gpooled[part] = padded[:, reach // 2 : reach // 2 + channels]
    return gspectrum, ggains, grows, gcolumns, gpooled, glocal


def _nonzero(factors: Tensor) -> Tensor:
    """Where a sigmoid is 0 in its precision its kernel entries are too, and its own derivative."""
    return factors.where(factors != 0, 1)


def _with_channels_last(one: Tensor, other: Tensor) -> Float[Tensor, "B O Ci"]:
    samples, out, channels, k1, k2 = one.shape
    product = one.new_empty(samples, out, k1, k2, channels)
    torch.mul(one.movedim(2, -1), other.movedim(2, -1), out=product)
    return product.flatten(1, 3)


def _matrices(outer: Tensor, factors: Tensor | None) -> Float[Tensor, "B P1 P2"]:
    """``dL/dK`` times the factors, unfolded: the gradients of the inverse transforms."""
    samples, out, channels, k1, k2 = outer.shape
    found = outer.new_empty(samples, out, k1, channels, k2)
    view = found.movedim(3, 2)
    if factors is None:
        view.copy_(outer)
    else:
        torch.mul(outer, _as_kernels(factors, outer.shape), out=view)
    return found.view(samples, out * k1, channels * k2)


def _spectral_gradients(
    matrices: Tensor, conjugate: Tensor, gains: Tensor, groups: Tensor, gspectrum: Tensor
) -> Float[Tensor, "B copies n"]:
    """The gradient of g; that of θ is added to `gspectrum`, where it has entries."""
    height, width = matrices.shape[1:]
    found = torch.fft.rfft2(matrices)[:, None]
    scale = 2 / (height * width)
    for end in {0, width // 2} if width % 2 == 0 else {0}:
        found[..., end] *= 0.5  # the inner columns stand for two
    places = groups.flatten().int()
    samples, copies, count = gains.shape
    bins = torch.arange(0, samples * copies * count, count, dtype=torch.int32, device=gains.device)[:, None] + places
    products = (conjugate * found).real.flatten()
    ggains = torch.bincount(bins.flatten(), products, samples * copies * count).to(gains.dtype)
    if gspectrum.numel():
        chosen = gains.index_select(-1, places).unflatten(-1, groups.shape)
        gspectrum.add_(torch.view_as_real((found * chosen).sum(0)), alpha=scale)
    return ggains.mul_(scale).view_as(gains)


@_kernels_backward.register_fake
def _(gkernels, kernels, spectrum, gains, groups, rows, columns, pooled, local, multiplier, need_spectrum):
    def like(tensor):
        return spectrum.new_empty(0 if tensor is None else tensor.shape)

    return like(spectrum if need_spectrum else None), like(gains), like(rows), like(columns), like(pooled), like(local)


def _context(ctx, inputs, output):
    *tensors, _, ctx.multiplier = inputs
    ctx.save_for_backward(output, *tensors)


def _gradients(ctx, gkernels):
    need = ctx.needs_input_grad
    found = _kernels_backward(gkernels, *ctx.saved_tensors, ctx.multiplier, need[0])
    gspectrum, ggains, *others = found
    wanted = [g if needed else None for g, needed in zip(others, need[3:7], strict=True)]
    return gspectrum if need[0] else None, ggains if need[1] else None, None, *wanted, None, None


_kernels.register_autograd(_gradients, setup_context=_context)
