"""One kernel per sample from one spectrum: groups of frequencies, entries, channels and taps scaled for each sample.

FDConv (Chen et al., CVPR 2025, arXiv 2503.18783), sections 3.2 and 3.3. With ``θ`` the spectrum (`spectrum`), ``G`` its
groups, ``O = Co k1 k2`` and ``o = (co k1 + u) k2 + v``:

    K_b = fold(irfft2(Σ_i θ_i g_b[i, G])) · m σ(conv1d(h_b, w)) · filters_b[co] · taps_b[u, v] · columns_b[ci]

The authors' ``1 + tanh(t)`` is ``2 σ(2 t)``: m = 2 and the double of w.
FLOPs per sample: ``2.5 P log₂ P`` of the transform and some ``2 k2 κ + 6`` for each of ``P = Co Ci k1 k2`` entries, and
twice that for backward. Bytes kept for the backward pass: those of the inputs, and the kernels themselves, which
the convolution after them keeps anyway: all gradients of factors follow from ``K ⊙ dL/dK``, so that the transform is
not computed again. On the CPU samples are taken in blocks that fit the cache; factors are made in the layout of the
unfolded kernels, which are folded at the end.
"""

import torch
from jaxtyping import Float, Int16
from torch import Tensor
from torch.nn import functional as F

from . import exported, reference
from .spectrum import folded, hermitian_

BLOCK_ENTRIES = 2**20  # of kernels that are made at once on the CPU


def sample_kernels(
    spectrum: Float[Tensor, "copies P1 Q 2"],
    gains: Float[Tensor, "B copies n"],
    groups: Int16[Tensor, "P1 Q"],
    size: tuple[int, int, int],
    filters: Float[Tensor, "B Co"] | None = None,
    taps: Float[Tensor, "B k1 k2"] | None = None,
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
        filters: factor of every output channel; not 0.
        taps: factor of every tap; not 0.
        columns: factor of every input channel; not 0.
        pooled: h; with it comes ``local``.
        local: w, of odd width κ.
        multiplier: m.
    """
    if torch.compiler.is_exporting():
        kernels = exported.plain_kernels(spectrum, gains, groups, size)
        return reference.scaled(kernels, filters, taps, columns, pooled, local, multiplier)
    return _kernels(spectrum, gains, groups, filters, taps, columns, pooled, local, list(size), multiplier)


def _blocks(kernels: Tensor) -> list[slice]:
    """Samples that are taken together."""
    step = max(1, BLOCK_ENTRIES // max(1, kernels[0].numel())) if kernels.is_cpu else len(kernels)
    return [slice(start, start + step) for start in range(0, len(kernels), step)]


def _parts(part: slice, *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor[part] for tensor in tensors]


def _windows(pooled: Tensor, reach: int, taps: int) -> Float[Tensor, "B taps*kappa Ci*taps"]:
    """``h[b, ci + t - (κ-1)/2]`` in row ``(v, t)`` and column ``(ci, v)``, 0 where the two v differ.

    ``w [Co k1, taps κ]`` times it is the convolution in the layout of unfolded kernels.
    """
    slid = F.pad(pooled, (reach // 2, reach // 2)).unfold(1, pooled.shape[1], 1)
    return slid[..., None].expand(*slid.shape, taps).diag_embed(0, 1, -1).flatten(1, 2).flatten(2)


def _windows_gradient(gwindows: Tensor, pooled: Tensor, reach: int, taps: int) -> Float[Tensor, "B Ci"]:
    """That of h."""
    samples, channels = pooled.shape
    slid = gwindows.view(samples, taps, reach, channels, taps).diagonal(0, 1, 4).sum(-1)
    sizes = [samples, channels + 2 * (reach // 2)]
    return torch.ops.aten.unfold_backward(slid, sizes, 1, channels, 1)[:, reach // 2 : reach // 2 + channels]


def _every(local: Tensor, taps: int, samples: int) -> Float[Tensor, "B P1 taps*kappa"]:
    return local.reshape(1, -1, taps * local.shape[1]).expand(samples, -1, -1)


def _scale_(matrices: Tensor, filters: Tensor | None, taps: Tensor | None, columns: Tensor | None) -> Tensor:
    """Unfolded kernels ``[B, P1, P2]`` times the factors, in place."""
    samples, _, width = matrices.shape
    if filters is not None:
        matrices.view(samples, filters.shape[1], -1).mul_(filters[..., None])
    if taps is None:
        if columns is not None:
            matrices.mul_(columns.repeat_interleave(width // columns.shape[1], 1)[:, None])
        return matrices
    across = taps[:, :, None] if columns is None else taps[:, :, None] * columns[:, None, :, None]
    across = across.expand(-1, -1, width // taps.shape[2], -1).flatten(2)
    matrices.view(samples, -1, *across.shape[1:]).mul_(across[:, None])
    return matrices


@torch.library.custom_op("peft_kernels::sample_kernels", mutates_args=())
def _kernels(
    spectrum: Tensor, gains: Tensor, groups: Tensor, filters: Tensor | None, taps: Tensor | None,
    columns: Tensor | None, pooled: Tensor | None, local: Tensor | None, size: list[int], multiplier: float,
) -> Tensor:  # fmt: skip
    channels, k1, k2 = size
    kernels = spectrum.new_empty(len(gains), len(groups) // k1, channels, k1, k2)
    with torch.autocast(spectrum.device.type, enabled=False):
        for part in _blocks(kernels):
            levels = gains[part] if local is None else multiplier * gains[part]
            modulated = hermitian_(reference.modulated_spectrum(spectrum, levels, groups), channels * k2)
            matrices = torch.fft.irfft2(modulated, s=(len(groups), channels * k2))
            *scales, slid = _parts(part, filters, taps, columns, pooled)
            if slid is not None and local is not None:
                windows = _windows(slid, local.shape[1], k2)
                matrices.mul_(_every(local, k2, len(slid)).bmm(windows).sigmoid_())
            kernels[part] = folded(_scale_(matrices, *scales), k1, k2)
    return kernels


@_kernels.register_fake
def _(spectrum, gains, groups, filters, taps, columns, pooled, local, size, multiplier):
    channels, k1, k2 = size
    return spectrum.new_empty(len(gains), len(groups) // k1, channels, k1, k2)


@torch.library.custom_op("peft_kernels::sample_kernels_backward", mutates_args=())
def _kernels_backward(
    gkernels: Tensor, kernels: Tensor, spectrum: Tensor, gains: Tensor, groups: Tensor, filters: Tensor | None,
    taps: Tensor | None, columns: Tensor | None, pooled: Tensor | None, local: Tensor | None, multiplier: float,
    need_spectrum: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    gfilters, gtaps, gcolumns, gpooled, glocal = (
        spectrum.new_zeros(0 if t is None else t.shape) for t in (filters, taps, columns, pooled, local)
    )
    gspectrum = torch.zeros_like(spectrum) if need_spectrum else spectrum.new_empty(0)
    ggains = torch.empty_like(gains)
    k2 = kernels.shape[-1]
    with torch.autocast(spectrum.device.type, enabled=False):
        places = groups.flatten().int()
        outside = 1.0 if local is None else multiplier  # of the sigmoids
        for part in _blocks(kernels):
            outer, *scales, slid = _parts(part, gkernels, filters, taps, columns, pooled)
            assert outer is not None
            matrices = _unfolded(outer)
            if slid is not None or any(scale is not None for scale in scales):
                share = matrices.view(len(matrices), -1, kernels.shape[3], kernels.shape[2], k2)
                share = share * kernels[part].movedim(3, 2)  # dL/d(log of each entry's factor)
                share = share.reshape(matrices.shape)
                for found, scale, gradient in zip(
                    (gfilters, gtaps, gcolumns), scales, _sums(share, kernels.shape), strict=True
                ):
                    if scale is not None:
                        # where a sigmoid is 0 in its precision the kernel is too, and its own derivative
                        found[part] = gradient / scale.where(scale != 0, 1)
                if slid is not None and local is not None:
                    windows, every = _windows(slid, local.shape[1], k2), _every(local, k2, len(slid))
                    sigmoids = every.bmm(windows).sigmoid_()
                    share.addcmul_(share, sigmoids, value=-1)  # σ' = σ (1 - σ)
                    glocal += share.bmm(windows.mT).sum(0).view_as(local)
                    gpooled[part] = _windows_gradient(every.mT.bmm(share), slid, local.shape[1], k2)
                    matrices.mul_(sigmoids)
                _scale_(matrices, *scales)
            ggains[part] = _spectral_gradients(matrices, spectrum, gains[part], places, gspectrum, outside)
    return gspectrum, ggains, gfilters, gtaps, gcolumns, gpooled, glocal


def _unfolded(kernels: Tensor) -> Float[Tensor, "B P1 P2"]:
    """A copy, also where a view would do: it is written into."""
    moved = kernels.movedim(3, 2).clone(memory_format=torch.contiguous_format)
    return moved.view(len(kernels), kernels.shape[1] * kernels.shape[3], -1)


def _sums(share: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of unfolded kernels over all but their output channels, taps, input channels."""
    _, out, channels, k1, k2 = shape
    parts = share.view(len(share), out, k1, channels * k2)
    across = parts.sum(1).view(len(share), k1, channels, k2)
    return parts.sum((2, 3)), across.sum(2), across.sum((1, 3))


def _spectral_gradients(
    matrices: Tensor, spectrum: Tensor, gains: Tensor, places: Tensor, gspectrum: Tensor, outside: float
) -> Float[Tensor, "B copies n"]:
    """The gradient of g from that of the unfolded kernels over `outside`; that of θ is added to `gspectrum`, if any."""
    height, width = matrices.shape[1:]
    found = torch.fft.rfft2(matrices)[:, None]
    scale = 2 * outside / (height * width)
    for end in {0, width // 2} if width % 2 == 0 else {0}:
        found[..., end] *= 0.5  # the inner columns stand for two
    samples, copies, count = gains.shape
    if gspectrum.numel():
        chosen = gains.flatten(0, 1).index_select(1, places).view(samples, copies, *found.shape[2:])
        gspectrum.add_(torch.view_as_real((found * chosen).sum(0)), alpha=scale)
    pairs = torch.view_as_real(found) * spectrum  # their sums: Re(conj(θ) R)
    products = (pairs[..., 0] + pairs[..., 1]).flatten()
    bins = torch.arange(0, samples * copies * count, count, dtype=torch.int32, device=gains.device)[:, None] + places
    ggains = torch.bincount(bins.flatten(), products, samples * copies * count).to(gains.dtype)
    return ggains.mul_(scale).view_as(gains)


@_kernels_backward.register_fake
def _(gkernels, kernels, spectrum, gains, groups, filters, taps, columns, pooled, local, multiplier, need_spectrum):
    def like(tensor):
        return spectrum.new_empty(0 if tensor is None else tensor.shape)

    given = (spectrum if need_spectrum else None, gains, filters, taps, columns, pooled, local)
    return tuple(like(tensor) for tensor in given)


def _context(ctx, inputs, output):
    *tensors, _, ctx.multiplier = inputs
    ctx.save_for_backward(output, *tensors)


def _gradients(ctx, gkernels):
    need = ctx.needs_input_grad
    found = _kernels_backward(gkernels, *ctx.saved_tensors, ctx.multiplier, need[0])
    gspectrum, ggains, *others = found
    wanted = [g if needed else None for g, needed in zip(others, need[3:8], strict=True)]
    return gspectrum if need[0] else None, ggains if need[1] else None, None, *wanted, None, None


_kernels.register_autograd(_gradients, setup_context=_context)
