"""What a search for text layers found: every measure of every picture, the layers in order of merit, the best sets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path

from diffusion_peft.localization.texts import F1_PARTS, f1_of_means

PLAIN = "none"  # the row of the sources, nothing replaced


@dataclass
class Localization:
    """Scores of layers.

    Attributes:
        names: of the layers' modules.
        indices: their numbers in the order of execution.
        score: the measure that they are ranked by, higher first.
        values: by layers (``55``, ``55+56``, or ``none`` for the sources themselves) and measure one number a picture.
        settings: what the search was made with.
    """

    names: list[str]
    indices: list[int]
    score: str
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    settings: dict[str, object] = field(default_factory=dict)

    def add(self, layers: Sequence[int], measured: Mapping[str, Sequence[float]]) -> None:
        """Take the measures of some more pictures of a set of layers; an empty one is the sources themselves."""
        kept = self.values.setdefault(key(layers), {})
        for name, numbers in measured.items():
            kept.setdefault(name, []).extend(float(number) for number in numbers)

    def pictures(self, *layers: int) -> int:
        """How many pictures of these layers are measured."""
        return len(next(iter(self.values.get(key(layers), {}).values()), ()))

    @property
    def done(self) -> int:
        """How many pictures are measured, those of the sources not counted."""
        return sum(self.pictures(*layers) for layers in self.sets())

    def of(self, *layers: int) -> dict[str, float]:
        """The measures of these layers together, or of the sources: means, and F1 of mean precision and recall."""
        kept = self.values[key(layers)]
        means = {name: sum(numbers) / len(numbers) for name, numbers in kept.items()}
        for name, (precision, recall) in F1_PARTS.items():
            if precision in means:
                means[name] = f1_of_means(means[precision], means[recall])
        return means

    def ranking(self, score: str | None = None) -> list[int]:
        """Numbers of the layers, best first; among equals the one whose pictures are nearer to the sources."""
        by = score or self.score
        scored = {index: self.of(index) for index in self.indices}
        if by not in next(iter(scored.values())):
            raise ValueError(f"there is no measure {by!r}; there are {', '.join(next(iter(scored.values())))}")
        return sorted(scored, key=lambda index: (-scored[index][by], -scored[index]["ssim"], index))

    def best(self, count: int = 1) -> list[int]:
        """Numbers of the best layers, in order of execution."""
        if not 1 <= count <= len(self.indices):
            raise ValueError(f"`count` must be 1 to {len(self.indices)}; found {count}")
        return sorted(self.ranking()[:count])

    def sets(self) -> list[tuple[int, ...]]:
        """The sets of layers that are measured, small ones first."""
        found = [tuple(map(int, name.split("+"))) for name in self.values if name != PLAIN]
        return sorted(found, key=lambda layers: (len(layers), layers))

    def best_set(self, gain: float = 0.0) -> list[int]:
        """The best layer, and the best two, three, ... for as long as each scores higher by more than ``gain``."""
        best = self.best()
        for layers in (layers for layers in self.sets() if len(layers) > 1):
            if self.of(*layers)[self.score] <= self.of(*best)[self.score] + gain:
                break
            best = list(layers)
        return best

    def go_on_from(self, other: Localization) -> None:
        """Take over what the same search had found before it was stopped.

        Raises:
            ValueError: it was another search; what differs is told.
        """
        for name, (now, before) in {
            **{name: (getattr(self, name), getattr(other, name)) for name in ("names", "indices", "score")},
            **{name: (value, other.settings.get(name)) for name, value in self.settings.items()},
        }.items():
            if now != before:
                raise ValueError(f"the report is of another search: its {name} are {before!r:.80}, now {now!r:.80}")
        self.values = deepcopy(other.values)

    def save(self, path: str | Path) -> None:
        """Write all of it as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Localization:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is none.
        """
        try:
            return cls(**json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{path} is no report of a localisation: {error}") from None


def key(layers: Sequence[int]) -> str:
    """How a set of layers is called in a report."""
    return "+".join(map(str, sorted(layers))) or PLAIN
