"""Clouds with what a model makes of them and what their spectra hold: a sheet of pictures, a page that turns them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from peft_kernels.ops import farthest_points
from vision_peft.methods.pointgst import CloudSpectrum, CloudView, cloud_spectrum, view_cloud

COMPONENTS, KEPT = (1, 2, 4), (4, 32)  # coloured, and from so many of which the cloud is rebuilt
SIDE, TITLE, VERTICES = 150, 16, 400  # pixels of a cell and its title; points of a cloud that is taken apart
_HEIGHTS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (230, 210, 40)])
_SIGNS = np.array([(33, 102, 172), (146, 197, 222), (225, 225, 225), (244, 165, 130), (178, 24, 43)])
_PARTS = np.array([(31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75)])
_INK, _PAPER, _WRONG = (40, 40, 40), (255, 255, 255), (178, 24, 43)


@dataclass(frozen=True)
class Shown:
    """One cloud: what the model makes of it, its own spectrum, and the names of its class and of the one predicted."""

    view: CloudView
    spectrum: CloudSpectrum
    true: str
    told: str
    share: float

    @property
    def title(self) -> str:
        """`chair` where that is right, else `chair, taken for sofa`; with the probability."""
        name = self.true if self.true == self.told else f"{self.true}: {self.told}"
        return f"{name} {100 * self.share:.0f} %"


def shown_cloud(model: nn.Module, points: Tensor, true: str, classes: Sequence[str]) -> Shown:
    """A cloud ``[N, 3]`` seen by ``model``."""
    view = view_cloud(model, points)
    share = view.logits.float().softmax(-1)
    few = points[farthest_points(points[None], min(VERTICES, len(points)))[0]].cpu()
    return Shown(view, cloud_spectrum(few), true, classes[int(share.argmax())], float(share.max()))


def sheet(clouds: Sequence[Shown]) -> Image.Image:
    """A row for each cloud: itself, some components, the cloud from its lowest ones, the energy of its features."""
    return _grid([_row(shown) for shown in clouds])


def _row(shown: Shown) -> list[Image.Image]:
    spectrum, points = shown.spectrum, shown.spectrum.points
    height = _colours(points[:, 1], _HEIGHTS)
    cells = [_cell(_plot(points, height), shown.title, _INK if shown.true == shown.told else _WRONG)]
    for number in (c for c in COMPONENTS if c < len(points)):
        component = spectrum.basis[:, number]
        colours = _colours(component, _SIGNS, float(component.abs().max()))
        cells.append(_cell(_plot(points, colours), f"component {number + 1}"))
    kept = (k for k in KEPT if k <= len(points))
    cells += [_cell(_plot(spectrum.rebuilt(k), height), f"from {k} of {len(points)}") for k in kept]
    return [*cells, _cell(_bars(shown.view.energy), "features' spectrum")]


def parts_sheet(clouds: Sequence[tuple[str, Tensor, Tensor, Tensor]]) -> Image.Image:
    """A row for each cloud, given as its category, points ``[N, 3]``, and the parts ``[N]`` it has and is told."""

    def coloured(points: Tensor, parts: Tensor, first: int) -> Image.Image:
        return _plot(points, _PARTS[(parts - first).numpy() % len(_PARTS)])

    rows = []
    for category, points, true, told in clouds:
        right = f"{100 * float((true == told).double().mean()):.0f} % of points right"
        pair = ((true, category), (told, right))
        rows.append([_cell(coloured(points, parts, int(true.min())), title) for parts, title in pair])
    return _grid(rows)


def cloud_picture(points: np.ndarray) -> Image.Image:
    """A cloud ``[N, 3]``, coloured by height."""
    found = torch.from_numpy(points)
    return _plot(found, _colours(found[:, 1], _HEIGHTS))


def _grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    width, height = SIDE * max(map(len, rows)), (SIDE + TITLE) * len(rows)
    picture = Image.new("RGB", (width, height), _PAPER)
    for row, cells in enumerate(rows):
        for column, cell in enumerate(cells):
            picture.paste(cell, (SIDE * column, (SIDE + TITLE) * row))
    return picture


def page(clouds: Sequence[Shown], title: str) -> str | None:
    """A self-contained page in which the clouds can be turned, and a slider colours them by component; None without
    plotly."""
    try:
        graphs: Any = importlib.import_module("plotly.graph_objects")
        subplots: Any = importlib.import_module("plotly.subplots")
    except ImportError:
        return None
    columns = min(3, len(clouds))
    rows = -(-len(clouds) // columns)
    figure = subplots.make_subplots(
        rows, columns, specs=[[{"type": "scene"}] * columns] * rows, subplot_titles=[shown.title for shown in clouds]
    )
    count = min(24, *(len(shown.spectrum.points) for shown in clouds))
    for number, shown in enumerate(clouds):
        x, y, z = shown.spectrum.points.T.tolist()
        marker = {"size": 3, "color": y, "colorscale": "Viridis"}
        cloud = graphs.Scatter3d(x=x, y=z, z=y, mode="markers", marker=marker, name=shown.true, showlegend=False)
        figure.add_trace(cloud, number // columns + 1, number % columns + 1)
    steps = [_step("height", [shown.spectrum.points[:, 1] for shown in clouds], "Viridis")]
    for number in range(count):
        steps.append(_step(str(number + 1), [shown.spectrum.basis[:, number] for shown in clouds], "RdBu"))
    figure.update_layout(
        title=title,
        height=420 * rows,
        sliders=[{"active": 0, "currentvalue": {"prefix": "coloured by component: "}, "steps": steps}],
    )
    figure.update_scenes(aspectmode="data", xaxis_visible=False, yaxis_visible=False, zaxis_visible=False)
    return figure.to_html(include_plotlyjs=True, full_html=True)


def _step(label: str, values: Sequence[Tensor], scale: str) -> dict[str, Any]:
    rounded = [[round(value, 4) for value in one.tolist()] for one in values]
    return {"label": label, "method": "restyle", "args": [{"marker.color": rounded, "marker.colorscale": scale}]}


def _colours(values: Tensor, scale: np.ndarray, limit: float | None = None) -> np.ndarray:
    """Colours ``[N, 3]`` of values, from the least to the greatest, or between ±limit."""
    low, high = (float(values.min()), float(values.max())) if limit is None else (-limit, limit)
    place = (values.double().numpy() - low) / max(high - low, 1e-12) * (len(scale) - 1)
    return np.stack([np.interp(place, np.arange(len(scale)), scale[:, channel]) for channel in range(3)], 1)


def _plot(points: Tensor, colours: np.ndarray) -> Image.Image:
    """Points seen from the front, a little from above and aside; nearer ones are drawn last and larger."""
    turn, tilt = 0.6, 0.35
    x, y, z = points.double().numpy().T
    across, depth = np.cos(turn) * x + np.sin(turn) * z, np.cos(turn) * z - np.sin(turn) * x
    up, depth = np.cos(tilt) * y - np.sin(tilt) * depth, np.sin(tilt) * y + np.cos(tilt) * depth
    picture = Image.new("RGB", (2 * SIDE, 2 * SIDE), _PAPER)
    pen, reach = ImageDraw.Draw(picture), 0.92 * SIDE / max(1.0, float(np.abs([across, up]).max()))
    for i in np.argsort(depth):
        size = 3.5 + 1.2 * np.clip(depth[i], -1, 1)
        left, top = SIDE + reach * across[i], SIDE - reach * up[i]
        pen.ellipse((left - size, top - size, left + size, top + size), fill=tuple(map(int, colours[i])))
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _bars(energy: Tensor) -> Image.Image:
    """Shares of energy from low to high frequency, in bars that reach to the largest one."""
    picture = Image.new("RGB", (SIDE, SIDE), _PAPER)
    pen, room = ImageDraw.Draw(picture), SIDE - 20
    heights = (energy / energy.max().clamp_min(1e-12) * room).tolist()
    for i, height in enumerate(heights):
        left, right = 10 + room * i / len(heights), 10 + room * (i + 1) / len(heights)
        pen.rectangle((left, SIDE - 10 - height, max(left, right - 1), SIDE - 10), fill=(59, 82, 139))
    return picture


def _cell(picture: Image.Image, title: str, ink: tuple[int, int, int] = _INK) -> Image.Image:
    cell = Image.new("RGB", (SIDE, SIDE + TITLE), _PAPER)
    ImageDraw.Draw(cell).text((6, 3), title, fill=ink)
    cell.paste(picture, (0, TITLE))
    return cell
