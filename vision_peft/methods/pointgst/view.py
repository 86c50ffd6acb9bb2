"""What a person can look at in a cloud: its graph's spectrum, the cloud rebuilt from a part of it, and a model's view.

view = view_cloud(model, points)                 # any adapted or plain point transformer with a head
view.logits, view.energy                         # [classes]; [G], the features' share in each component
cloud_spectrum(points).rebuilt(k)                # the cloud from its k lowest components
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from peft_kernels.ops.graph_basis import graph_spectrum
from peft_kernels.ops.point_sets import z_order
from peft_kernels.ops.point_sets.clouds import check_clouds, check_count
from peft_kernels.targets import find_backbone
from vision_peft.methods.pointgst.spectra import Basis, SpectralLayer

MOST_POINTS = 2048  # of a graph that is taken apart: 2 s and 50 MB


class CloudSpectrum(NamedTuple):
    """The graph of one cloud, taken apart.

    Attributes:
        points: [N, 3], its vertices.
        frequencies: [N], ascending.
        basis: [N, N], a component in each column.
    """

    points: Tensor
    frequencies: Tensor
    basis: Tensor

    def energy(self, signal: Tensor) -> Tensor:
        """The share ``[N]`` that each component has in how a signal ``[N, channels]`` differs from its mean."""
        signal = signal.detach().to(self.basis.dtype)
        part = (self.basis.mT @ (signal - signal.mean(0))).square().sum(-1)
        return part / part.sum().clamp_min(torch.finfo(part.dtype).tiny)

    def rebuilt(self, k: int) -> Tensor:
        """The points ``[N, 3]`` from their ``k`` lowest components; all of them give the points themselves.

        Raises:
            ValueError: more components than there are, or none.
        """
        check_count("k", k, len(self.points), "components")
        low = self.basis[:, :k]
        middle = self.points.mean(0)
        return (low @ (low.mT @ (self.points - middle).to(low.dtype))).to(self.points.dtype) + middle


class CloudView(NamedTuple):
    """What a model makes of one cloud.

    Attributes:
        logits: [classes].
        spectrum: that of its patches' centres.
        features: [G, C], one row a patch, behind the last norm.
        energy: [G], the share of each component in ``features``, from low to high frequency.
    """

    logits: Tensor
    spectrum: CloudSpectrum
    features: Tensor
    energy: Tensor


def cloud_spectrum(points: Tensor, basis: Basis = Basis()) -> CloudSpectrum:  # noqa: B008 (a tuple)
    """The spectrum of a cloud ``[N, 3]``, all of whose points are vertices.

    Raises:
        ValueError: no finite cloud, or one of more than 2,048 points.
    """
    check_clouds(points[None])
    if len(points) > MOST_POINTS:
        raise ValueError(
            f"the spectrum of {len(points)} points is too dear: take at most {MOST_POINTS}, such as "
            "points[farthest_points(points[None], 512)[0]]"
        )
    order = z_order(points[None], basis.grid_per_unit)
    options = (basis.laplacian, basis.degree_eps, basis.canonical, basis.expanded, basis.dtype)
    values, vectors = graph_spectrum(points[None], order, basis.scale_scope, *options)
    return CloudSpectrum(points, values[0], vectors[0])


@torch.no_grad()
def view_cloud(model: nn.Module, points: Tensor) -> CloudView:
    """What ``model``, with or without adapters, makes of a cloud ``[N, 3]``; its mode is left as it was.

    The spectrum is the one its PointGST adapters read, and that of `PointGstConfig`'s defaults without any.

    Raises:
        ValueError: no finite cloud, too few points, or a model that does not classify clouds by patches.
    """
    found: Any = find_backbone(model)
    backbone = None if found is None else found[1]
    if backbone is None or not all(hasattr(backbone, name) for name in ("group_divider", "forward_head")):
        raise ValueError(f"{type(model).__name__} is no classifier of clouds such as point_mae or point_gpt_l")
    layer = next((module for module in model.modules() if isinstance(module, SpectralLayer)), None)
    active: list[Any] = [] if layer is None else [adapter for adapter, _ in layer.running]
    centers: list[Tensor] = []
    handle = backbone.group_divider.register_forward_hook(lambda module, args, output: centers.append(output[1][0]))
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        tokens = backbone.forward_features(points[None])
        logits = backbone.forward_head(tokens)[0]
    finally:
        handle.remove()
        for module, training in modes:
            module.training = training
    spectrum = cloud_spectrum(centers[0], active[0].basis if active else Basis())
    features = tokens[0, -len(centers[0]) :]
    return CloudView(logits, spectrum, features, spectrum.energy(features))
