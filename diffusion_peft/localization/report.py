"""What a search for text layers found: every measure of every picture, and the layers in order of merit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
        values: by layer (its number as text, or ``none`` for the sources themselves) and measure one number a picture.
        settings: what the search was made with.
    """

    names: list[str]
    indices: list[int]
    score: str
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    settings: dict[str, object] = field(default_factory=dict)

    def add(self, layer: int | None, measured: Mapping[str, Sequence[float]]) -> None:
        """Take the measures of some more pictures of a layer."""
        kept = self.values.setdefault(PLAIN if layer is None else str(layer), {})
        for name, numbers in measured.items():
            kept.setdefault(name, []).extend(float(number) for number in numbers)

    def of(self, layer: int | None = None) -> dict[str, float]:
        """The measures of one layer, or of the sources: means, and F1 of the means of precision and recall."""
        kept = self.values[PLAIN if layer is None else str(layer)]
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
