"""FDConv on a picture: which groups of frequencies every layer's kernels keep, and where bands are scaled."""

from itertools import pairwise
from math import ceil
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure, SubFigure
from PIL import Image
from timm.data import resolve_model_data_config
from torch import Tensor

from peft_kernels.adapter_files import find_adapter, read_config
from peft_kernels.adapter_tensors import read_header
from peft_kernels.loading import load_adapter
from peft_runs.base_models import full_model
from peft_runs.errors import UsageError, unknown
from peft_runs.figure_style import LIGHT, SHADES
from peft_runs.merging import base_name
from peft_runs.selection_style import dress_scale, quiet, save, settings
from vision_peft.data.pictures import decoded
from vision_peft.data.transforms import evaluation_transform
from vision_peft.methods.fdconv import FdconvConfig
from vision_peft.methods.fdconv.inspection import Response, respond

_BOTH_WAYS = LinearSegmentedColormap.from_list("gains", [SHADES[1][0], "#f6f6f4", SHADES[0][0]])
_ACROSS = 3  # maps in a row


def draw_adapter(
    adapter: Path,
    picture: Path,
    out: Path,
    layer: str | None = None,
    name: str | None = None,
    checkpoint: Path | None = None,
) -> str | None:
    """Write a PNG of what the FDConv adapter in a folder does to a picture; the layer whose maps are drawn, if any.

    Args:
        adapter: the adapter's folder.
        picture: an image file.
        out: the PNG.
        layer: whose maps are drawn; by default the first that has some.
        name: the base model in timm; by default the one that the adapter names.
        checkpoint: the base model's weights; by default its pretrained ones.

    Raises:
        UsageError: no FDConv adapter, or no such picture, layer or model.
        AdapterError, RunError: the adapter or the base model's weights cannot be used.
    """
    if out.suffix != ".png":
        raise UsageError(f"--figure must name a .png file; found {out}")
    if not picture.is_file():
        raise UsageError(f"there is no picture {picture} (--image)")
    files = find_adapter(adapter)
    config = read_config(files.config)
    if not isinstance(config, FdconvConfig):
        method = str(getattr(config.peft_type, "value", config.peft_type))
        raise UsageError(f"--figure draws the frequencies of FDConv; the adapter in {adapter} is one of {method}")
    name = base_name(name, config.base_model_name_or_path, adapter)
    base = full_model(name, read_header(files.weights)[0], checkpoint)
    transform = evaluation_transform(resolve_model_data_config(base))
    model = load_adapter(base, adapter).eval()
    pixels = transform(decoded(picture, picture.read_bytes))
    response = respond(model, pixels[None])
    if layer is not None and layer not in response.maps:
        raise unknown("layer with bands", layer, response.maps)
    layer = layer or next(iter(response.maps), None)
    draw(response, pixels, layer, out, f"FDConv in {name}: {picture.name}")
    return layer


def draw(response: Response, pixels: Tensor, layer: str | None, out: Path, title: str) -> None:
    """The figure: gains, and beside them the picture and one layer's maps.

    Args:
        response: of one picture.
        pixels: the picture, ``[3, H, W]``, in any range.
        layer: whose maps are drawn, or ``None``.
        out: the PNG.
        title: of the figure.
    """
    rows = len(response.gains)
    maps = [] if layer is None else response.maps[layer][0].mean(1).float().cpu().unbind(0)
    with settings():
        tall = max(3.2, 0.9 + 0.17 * rows, 0.8 + 1.9 * ceil((len(maps) + 1) / _ACROSS) if maps else 0)
        figure = Figure(figsize=(10 if maps else 5.6, tall), facecolor=LIGHT.ground, layout="constrained")
        figure.suptitle(title, color=LIGHT.ink, fontsize=11, x=0.01, ha="left")
        left, *right = figure.subfigures(1, 1 + bool(maps), squeeze=False, width_ratios=[1.1, 1][: 1 + bool(maps)])[0]
        axes = left.subplots()
        _gains(axes, response)
        if layer is not None:
            _maps(right[0], pixels, list(maps), response.cuts[layer], layer)
        save(figure, out)


def _scaled(values: list[Tensor]) -> Normalize:
    """Around 1, which changes nothing, as far both ways as the values go."""
    farthest = max(0.01, *(float((value - 1).abs().max()) for value in values))
    return Normalize(1 - farthest, 1 + farthest)


def _gains(axes: Axes, response: Response) -> None:
    gains = {name: values[0].float().cpu() for name, values in response.gains.items()}
    scale = _scaled(list(gains.values()))
    for row, values in enumerate(gains.values()):
        extent = (0.0, 1.0, row + 0.46, row - 0.46)
        axes.imshow(
            values[None].numpy(), cmap=_BOTH_WAYS, norm=scale, aspect="auto", extent=extent, interpolation="nearest"
        )
    axes.set(xlim=(0, 1), ylim=(len(gains) - 0.5, -0.5), xticks=(0, 1), yticks=range(len(gains)))
    axes.set_xticklabels(["lowest", "highest"])
    axes.set_yticklabels(list(gains))
    axes.set_xlabel("groups of frequencies of the kernel, equally many in each")
    quiet(axes)
    axes.tick_params(axis="y", labelsize=6.5, length=0)
    bar = axes.figure.colorbar(ScalarMappable(scale, _BOTH_WAYS), ax=axes, pad=0.02, aspect=40)
    dress_scale(bar, "gain", lambda value: f"{value:.3g}")


def _maps(figure: SubFigure, pixels: Tensor, maps: list[Tensor], cuts: list[float], layer: str) -> None:
    figure.suptitle(f"factors of the bands, input of {layer}", color=LIGHT.quiet, fontsize=9)
    down = ceil((len(maps) + 1) / _ACROSS)
    places = np.atleast_1d(figure.subplots(down, min(_ACROSS, len(maps) + 1))).flatten()
    shown = (pixels - pixels.min()) / (pixels.max() - pixels.min()).clamp(min=1e-6)
    array = (shown.permute(1, 2, 0) * 255).to(torch.uint8).cpu().numpy()
    places[0].imshow(Image.fromarray(array))
    places[0].set_title("the picture", fontsize=8, color=LIGHT.quiet)
    scale = _scaled(maps)
    for axes, values, band in zip(places[1:], maps, _bands(cuts, len(maps)), strict=False):
        axes.imshow(values.numpy(), cmap=_BOTH_WAYS, norm=scale, interpolation="nearest")
        axes.set_title(band, fontsize=8, color=LIGHT.quiet)
    for axes in places:
        axes.set_axis_off()
    bar = figure.colorbar(ScalarMappable(scale, _BOTH_WAYS), ax=list(places), pad=0.02, aspect=40)
    dress_scale(bar, "factor", lambda value: f"{value:.3g}")


def _bands(cuts: list[float], count: int) -> list[str]:
    """`over 0.25 cycles a pixel`, `0.125 to 0.25`, ..., `under 0.0625`."""
    words = [f"over {cuts[0]:.3g} cycles a pixel"]
    words += [f"{low:.3g} to {high:.3g}" for high, low in pairwise(cuts)]
    return [*words, f"under {cuts[-1]:.3g}"][:count]
