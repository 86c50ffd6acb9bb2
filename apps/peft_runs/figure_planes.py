"""Which two columns of models that draw stand against each other in a figure."""

from dataclasses import dataclass

from peft_runs.compare_results import Results


@dataclass(frozen=True)
class Plane:
    """The Fréchet distance and another column.

    Attributes:
        second: the other column.
        heading: of the figure.
        across: label of the distance.
        up: labels of the second, in a wide and in a narrow figure.
        base: the base model's second, where it has none of its own.
    """

    second: str
    heading: str
    across: str
    up: tuple[str, str]
    base: float | None = None


PLANES = (
    Plane(
        "kept",
        "What is kept against the distance to the data",
        "Fréchet distance from the data",
        ("kept for other prompts (SSIM), 1 is all", "kept for other prompts"),
        1.0,
    ),
    Plane(
        "sharpness",
        "High frequencies against the distance to the teacher",
        "Fréchet distance from the teacher",
        ("energy of high frequencies, 1 is the teacher's", "energy of high frequencies"),
    ),
)


def plane_of(results: Results) -> Plane | None:
    """The figure of models that draw; None where they do not."""
    names = {column.name for column in results.columns}
    return next((plane for plane in PLANES if {"frechet", plane.second} <= names), None)
