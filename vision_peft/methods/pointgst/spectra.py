"""The spectra of the clouds of one forward pass: computed once from the patches' centres, read by every layer.

Data workers may compute them before, so that no training step waits for eigenvectors:

    spectra = cloud_spectra(centers, config.basis)
    with bound_spectra(model, spectra):
        logits = model(points)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from peft_kernels.ops.graph_basis import graph_basis
from peft_kernels.ops.graph_fourier import Spectra
from peft_kernels.ops.point_sets import gathered, inverse_order, z_order
from peft_kernels.ops.point_sets.clouds import check_clouds
from peft_kernels.tap import TapLayer
from vision_peft.methods.patches import CLOUD, PatchSource

_GIVEN = "given spectra"
MOST_PATCHES = 1024  # of one graph: 0.2 s a cloud for its eigenvectors


class Basis(NamedTuple):
    """How spectra are made of centres: fields of `PointGstConfig`, whose meanings they have."""

    local_sizes: tuple[int, ...] = (32,)
    whole: bool = True
    scale_scope: str = "cloud"
    laplacian: str = "normalized"
    canonical: bool = True
    degree_eps: float = 1e-6
    grid_per_unit: float = 100.0
    expanded: bool = False
    dtype: torch.dtype = torch.float32


@torch.no_grad()
def cloud_spectra(centers: Tensor, basis: Basis = Basis()) -> Spectra:  # noqa: B008 (a tuple, which nothing changes)
    """The bases and orders of clouds with these centres ``[B, G, 3]``.

    Raises:
        ValueError: centres of another shape or not finite, a local size that does not divide their number, or a graph
            of too many.
    """
    check_clouds(centers, "centers")
    batch, count, _ = centers.shape
    if basis.whole and count > MOST_PATCHES:
        raise ValueError(
            f"the graph of all {count} patches of a cloud is too dear: up to {MOST_PATCHES} are taken apart. Take "
            "PointGstConfig(branches='local'), whose graphs have local_size patches each"
        )
    options: dict[str, Any] = {
        "laplacian": basis.laplacian,
        "degree_eps": basis.degree_eps,
        "canonical": basis.canonical,
        "expanded": basis.expanded,
        "dtype": basis.dtype,
    }
    order = z_order(centers, basis.grid_per_unit)
    whole = graph_basis(centers, order, basis.scale_scope, **options) if basis.whole else None
    if not basis.local_sizes:
        return Spectra(whole, (), None, None)
    check_local_sizes(basis.local_sizes, count)
    local = []
    for size in basis.local_sizes:
        runs = gathered(centers, order).view(-1, size, 3)
        found = graph_basis(runs, None, basis.scale_scope, **options)
        local.append(found.view(batch, count // size, size, size))
    return Spectra(whole, local, order, inverse_order(order))


def check_local_sizes(sizes: Sequence[int], count: int) -> None:
    """Raise a ValueError, with the sizes that do, unless each of ``sizes`` divides ``count``."""
    wrong = next((size for size in sizes if count % size), None)
    if wrong is not None:
        fit = [l for l in range(2, count + 1) if count % l == 0]  # noqa: E741 (the paper's symbol)
        raise ValueError(
            f"PointGstConfig.local_size must divide the number of patches, {count}; found {wrong}. "
            f"These do: {', '.join(map(str, fit))}"
        )


class _Cloud:
    """The centres of one forward pass, and the spectra already made of them."""

    def __init__(self, centers: Tensor | None, given: Spectra | None) -> None:
        self.centers, self.given = centers, given
        self.found: dict[Basis, Spectra] = {}

    def spectra(self, basis: Basis) -> Spectra:
        if self.given is not None:
            return self.given
        if basis not in self.found:
            assert self.centers is not None
            self.found[basis] = cloud_spectra(self.centers, basis)
        return self.found[basis]


class SpectraSource(PatchSource):
    """Takes the centres from a model's patches in every forward pass."""

    def value(self, patches: Tensor, centers: Tensor) -> _Cloud:
        try:
            given = self.side.get(_GIVEN)
        except LookupError:
            given = None
        return _Cloud(centers.detach(), given)

    def spectra(self, basis: Basis) -> Spectra:
        """Those of the forward pass that runs, or is computed again."""
        return self.cloud().spectra(basis)


class SpectralLayer(TapLayer):
    """The norm before a block's MLP, with PointGST adapters beside the MLP."""

    source: SpectraSource

    def branch(self, adapter: Any, z: Tensor) -> Tensor:
        return adapter.branch(z, self.source.spectra(adapter.basis))

    def detach(self) -> None:
        super().detach()
        self.source.detach()


@contextmanager
def bound_spectra(model: nn.Module, spectra: Spectra) -> Iterator[None]:
    """Let forward passes of ``model`` inside use these spectra instead of computing them.

    Raises:
        ValueError: the model has no PointGST adapter.
    """
    layer = next((module for module in model.modules() if isinstance(module, SpectralLayer)), None)
    if layer is None:
        raise ValueError(f"{type(model).__name__} has no PointGST adapter, so nothing reads spectra")
    with layer.source.side.bind(**{_GIVEN: spectra, CLOUD: _Cloud(None, spectra)}):
        yield


def warn_of_expanded() -> None:
    """Say what the released code's distances are worth."""
    warnings.warn(
        "distance='gemm' takes the smallest distance from rounding errors, as the released code does: results depend "
        "on device and library. It is for released checkpoints alone",
        stacklevel=4,
    )
