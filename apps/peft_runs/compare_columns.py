"""The figures that a comparison sets side by side, what each is called and how it was measured."""

from collections.abc import Collection
from dataclasses import dataclass

from peft_runs.compare_words import is_share


@dataclass(frozen=True)
class Column:
    """A figure that methods are compared by.

    Attributes:
        name: among the figures of a run.
        heading: what it is called.
        better: `more`, `less` or `near 1`.
        share: of 1, written in percent.
        about: how it was measured.
    """

    name: str
    heading: str
    better: str
    share: bool
    about: str


FEATURES = (
    "by the features of vit_mini, as in the model cards; comparable only with as many pictures and these features"
)
# Of methods whose models draw pictures.
DRAWN = (
    Column("loss", "loss", "less", False, "Mean squared error on held-out pictures, over all levels of noise."),
    Column(
        "frechet",
        "Fréchet",
        "less",
        False,
        f"Distance of the pictures drawn for captions of the data from the data's own, {FEATURES}.",
    ),
    Column(
        "fidelity",
        "spelling",
        "more",
        True,
        "Letters that stand right in these pictures where the caption asks for a word, read by matching the font.",
    ),
    Column(
        "kept",
        "kept",
        "more",
        False,
        "Structural similarity (SSIM) of the pictures drawn for unrelated prompts to the base model's from the same "
        "seeds; 1 is no change.",
    ),
    Column(
        "drift", "drift", "less", False, f"Fréchet distance of the same pictures from the base model's, {FEATURES}."
    ),
    Column(
        "kept_spelling", "kept spelling", "more", True, "Letters that stand right in pictures for unrelated prompts."
    ),
)
# Of methods whose models draw in one step.
ONE_STEP = (
    Column(
        "frechet",
        "Fréchet",
        "less",
        False,
        f"Distance of the pictures of one step from those the teacher draws from the same noises, {FEATURES}.",
    ),
    Column(
        "sharpness",
        "high frequencies",
        "near 1",
        False,
        "Energy of the pictures' high frequencies (Gaussian high-pass, cutoff 0.25) over that of the teacher's.",
    ),
    Column("ssim", "SSIM", "more", False, "Structural similarity to the teacher's pictures from the same noises."),
    Column(
        "milliseconds",
        "ms a picture",
        "less",
        False,
        "Captions in, pictures out, by an ordinary call of the pipeline in one step for 8 pictures, the adapter not "
        "merged: the least of 3 calls, on a CPU the process's own time; alone, after all training.",
    ),
    Column(
        "speedup",
        "× teacher",
        "more",
        False,
        "Pictures a second over those of the teacher: the base model with the teacher's steps and guidance, measured "
        "alike.",
    ),
)


def columns_of(metric: str, figures: Collection[str]) -> list[Column]:
    """The columns for runs that have these figures: those of drawn pictures, or the task's metric alone."""
    if "frechet" in figures:
        drawn = ONE_STEP if "teacher_milliseconds" in figures else DRAWN
        return [column for column in drawn if column.name in figures]
    about = "Share of the test samples that are classified right." if metric == "accuracy" else "The task's own figure."
    return [Column(metric, metric, "more", is_share(metric), about)]
