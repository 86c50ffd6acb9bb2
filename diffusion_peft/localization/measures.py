"""What is measured of the pictures of a search: their likeness to source and target, and the text that is read."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from diffusion_peft.localization.changes import psnr, squared_error
from diffusion_peft.localization.pairs import Pair
from diffusion_peft.localization.texts import F1_PARTS, characters, words
from peft_kernels.config import nearest

Reader = Callable[[Tensor], Sequence[str]]
Metric = Callable[[Tensor, Tensor, Tensor, Sequence[Pair]], Sequence[float] | Tensor]
LIKENESS = ("ssim", "mse", "psnr", "ssim_target")


class Measures:
    """All measures of a search.

    Args:
        reader: what stands in pictures ``[N, 3, H, W]`` in 0 to 1.
        metrics: further ones by name; one number a picture.

    Raises:
        ValueError: a metric has the name of another measure.
    """

    def __init__(self, reader: Reader | None, metrics: Mapping[str, Metric]) -> None:
        self.reader, self.metrics = reader, dict(metrics)
        for name in self.metrics:
            if self.names.count(name) > 1:
                raise ValueError(f"a metric needs a name of its own: {name!r} is measured already")

    @property
    def names(self) -> list[str]:
        """Of all measures."""
        read = [] if self.reader is None else [name for one, parts in F1_PARTS.items() for name in (one, *parts)]
        return [*LIKENESS, *self.metrics, *read]

    def ranked_by(self, score: str | None) -> str:
        """The name of the measure to rank by.

        Raises:
            ValueError: there is none of this name.
        """
        if score is None:
            return "f1_target" if self.reader is not None else "ssim_target"
        if score not in self.names:
            raise ValueError(
                f"`score` must be one of {', '.join(self.names)}; found {score!r}{nearest(score, self.names)}"
            )
        return score

    def __call__(self, found: Tensor, source: Tensor, target: Tensor, pairs: Sequence[Pair]) -> dict[str, list[float]]:
        """One number a picture for every measure; pictures ``[N, 3, H, W]`` in 0 to 1."""
        error = squared_error(eight_bits(found), eight_bits(source))
        values: dict[str, list[float]] = {
            "ssim": likeness(found, source),
            "mse": error.tolist(),
            "psnr": psnr(error).tolist(),
            "ssim_target": likeness(found, target),
        }
        if self.reader is not None:
            texts = list(self.reader(found))
            for name, wanted in (
                ("target", [pair.target_text for pair in pairs]),
                ("source", [pair.source_text for pair in pairs]),
            ):
                for kind, agreement in (("", words), ("letters_", characters)):
                    agreed = [agreement(text, one) for text, one in zip(texts, wanted, strict=True)]
                    values[f"{kind}precision_{name}"] = [one.precision for one in agreed]
                    values[f"{kind}recall_{name}"] = [one.recall for one in agreed]
        for name, metric in self.metrics.items():
            numbers = [float(number) for number in metric(found, source, target, pairs)]
            if len(numbers) != len(pairs):
                raise ValueError(f"the metric {name!r} gave {len(numbers)} numbers for {len(pairs)} pictures")
            values[name] = numbers
        return values


def likeness(found: Tensor, wanted: Tensor) -> list[float]:
    """Structural similarity (SSIM) of pictures in 0 to 1, one number each."""
    from torchmetrics.functional.image import structural_similarity_index_measure  # late: it takes long to import

    numbers = structural_similarity_index_measure(found, wanted, data_range=1.0, reduction="none")
    assert isinstance(numbers, Tensor)
    return numbers.flatten().tolist()


def eight_bits(pictures: Tensor) -> Tensor:
    """Pictures in 0 to 1 in levels of eight bits, as they are saved."""
    return (pictures * 255).round().to(torch.uint8)
