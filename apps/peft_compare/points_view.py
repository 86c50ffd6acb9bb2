"""What the Points page shows: clouds, what models make of them, and their spectra, from what lies on the disk."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from typing import Any

import numpy as np
import torch

import vision_peft as vp
from peft_compare.look import glyph, notice
from peft_compare.parts.chart import Axis, Series, chart
from peft_compare.runs import Run
from peft_compare.viewing import COUNT, PLAIN, POINTS, UNKNOWN, VIEWS
from peft_kernels.ops import farthest_points
from vision_peft import CloudSpectrum
from vision_peft.data.shapes import Scans

COMPONENTS = 512  # vertices of the graph that is taken apart
BINS = 16
TOP = 3  # classes that are named of a method


@dataclass(frozen=True)
class Views:
    """Clouds and what models make of them.

    Attributes:
        points: [clouds, points, 3].
        classes: names; empty without models.
        labels: class of every cloud; `UNKNOWN` of a stranger's.
        methods: for every method and cloud the fields of `viewing.Seen`.
    """

    points: np.ndarray
    classes: list[str]
    labels: list[int]
    methods: Mapping[str, list[Mapping[str, Any]]]

    def name(self, index: int) -> str:
        """What a list calls the cloud."""
        label = self.labels[index]
        return "Your cloud" if label == UNKNOWN else f"{self.classes[label]} ({index + 1})"

    @property
    def fullest(self) -> int:
        """The cloud that fills most of the space, which shows best what this is about."""
        return max(range(len(self.points)), key=lambda index: np.linalg.det(np.cov(self.points[index].T)))


def views_of(run: Run | None) -> Views | None:
    """Those of a run, once it has some; without a run, generated clouds alone."""
    if run is None:
        return _samples()
    path = run.out / VIEWS
    try:
        return _read(str(run.out), path.stat().st_mtime_ns)
    except (OSError, ValueError, KeyError):
        return None


@lru_cache(maxsize=16)
def _read(out: str, _changed: int) -> Views:
    with open(f"{out}/{VIEWS}", encoding="utf-8") as file:
        told = json.load(file)
    with np.load(f"{out}/{POINTS}", allow_pickle=False) as held:
        return Views(held["points"], told["classes"], told["labels"], told["methods"])


@lru_cache(maxsize=1)
def _samples() -> Views:
    scans = Scans("test", COUNT, PLAIN)
    points = np.stack([scans.cloud(index) for index in range(COUNT)])
    return Views(points, list(scans.classes), [int(label) for label in scans.labels], {})


@lru_cache(maxsize=64)
def _spectrum(points: bytes) -> tuple[CloudSpectrum, torch.Tensor]:
    """Of a cloud's farthest points, and their share of energy by component."""
    cloud = torch.from_numpy(np.frombuffer(points, dtype=np.float32).reshape(-1, 3).copy())
    cloud = torch.unique(cloud, dim=0)
    if len(cloud) > COMPONENTS:
        cloud = cloud[farthest_points(cloud[None], COMPONENTS)[0]]
    spectrum = vp.cloud_spectrum(cloud)
    return spectrum, spectrum.energy(cloud)


def spectrum_of(views: Views, index: int) -> tuple[CloudSpectrum, torch.Tensor]:
    """The cloud's graph taken apart, and the share that each component has in it."""
    return _spectrum(views.points[index].astype(np.float32).tobytes())


def cloud_figure(views: Views, index: int, k: int) -> Any:
    """The cloud in grey, and what its `k` lowest components make of it, coloured by height; one camera for all."""
    import plotly.graph_objects as go  # late: it takes a second to import

    spectrum, _ = spectrum_of(views, index)
    whole, count = views.points[index], len(spectrum.points)
    low = spectrum.rebuilt(max(1, min(k, count))).numpy()

    def dots(points: np.ndarray, name: str, **marker: Any) -> Any:
        x, depth, y = points.T  # the second axis of a cloud is vertical
        return go.Scatter3d(x=x, y=-y, z=depth, mode="markers", name=name, marker=marker, hoverinfo="skip")

    height = spectrum.points[:, 1].numpy()
    traces = [dots(low, f"{min(k, count)} components", size=3.2, color=height, colorscale="Viridis")]
    if k < count:
        traces.insert(0, dots(whole, "the cloud", size=1.6, color="#8a929c", opacity=0.55))
    hidden = {"visible": False, "showspikes": False, "range": [-1.05, 1.05]}
    camera = {"eye": {"x": 0.95, "y": 0.95, "z": 0.5}}
    return go.Figure(
        traces,
        {
            "scene": {"xaxis": hidden, "yaxis": hidden, "zaxis": hidden, "aspectmode": "cube", "camera": camera},
            "uirevision": "one camera for all clouds",
            "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
            "height": 420,
            "showlegend": False,
            "paper_bgcolor": "rgba(0,0,0,0)",
        },
    )


def predictions(views: Views, index: int) -> str:
    """The likeliest classes by each method."""
    label = views.labels[index]
    true = views.classes[label] if label != UNKNOWN else None
    if not views.methods:
        return notice("empty", "No predictions yet.", "Start a comparison: its models name each cloud.")
    cards = []
    for method, seen in views.methods.items():
        scores = seen[index]["scores"]
        best = sorted(range(len(scores)), key=lambda place: -scores[place])[:TOP]
        rows = "".join(
            f'<li style="--share:{100 * scores[place]:.1f}%"><span>{escape(views.classes[place])}'
            f"{' ✓' if views.classes[place] == true else ''}</span><span>{100 * scores[place]:.0f} %</span></li>"
            for place in best
        )
        cards.append(f"<div><h3>{glyph(method)}{escape(method)}</h3><ol>{rows}</ol></div>")
    said = f'<p class="quiet">It is labelled <strong>{escape(true)}</strong>.</p>' if true else ""
    return f'{said}<div class="guess">{"".join(cards)}</div>'


def spectra(views: Views, index: int, k: int) -> str:
    """Spectra of the cloud and of what each adapter changes, from low to high, and what of them the `k` lowest hold."""
    _, energy = spectrum_of(views, index)
    share = min(k, len(energy)) / len(energy)
    x = Axis("graph frequency, low to high (% of the components)", lambda value: f"{value:.3g}")
    y = Axis("share of the energy", lambda value: f"{100 * value:.3g} %", logarithmic=True)
    changes = {name: torch.tensor(seen[index]["change"]) for name, seen in views.methods.items() if seen[index]["size"]}
    series = [Series(name, *_binned(change)) for name, change in changes.items()]
    held = f"The first {100 * share:.3g} % of the components hold {_held(energy, share)} of the cloud"
    kept = [f"{_held(change, share)} of what {name} changes" for name, change in changes.items()]
    said = f'<p class="quiet" role="status">{escape("; ".join([held, *kept]))}.</p>'
    sizes = "".join(
        f"<li>{glyph(name)}{escape(name)} changes the features by {100 * views.methods[name][index]['size']:.3g} %</li>"
        for name in changes
    )
    own = chart("Spectrum of the cloud", held, [Series("", *_binned(energy))], x, y, key="cloud")
    of_change = chart("Spectrum of what each adapter changes", "; ".join(kept), series, x, y, key="change")
    return f'{said}{own}{of_change}<ul class="notes">{sizes}</ul>'


def _binned(energy: torch.Tensor) -> tuple[list[float], list[float]]:
    """Middle of each bin in percent, and the energy in it."""
    parts = [part for part in energy.tensor_split(BINS) if len(part)]
    return [100 * (place + 0.5) / len(parts) for place in range(len(parts))], [float(part.sum()) for part in parts]


def _held(energy: torch.Tensor, share: float) -> str:
    return f"{100 * float(energy[: max(1, round(share * len(energy)))].sum()):.3g} %"
