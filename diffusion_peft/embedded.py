"""The small pretrained pipelines that the package carries, as folders that diffusers loads without a network."""

from pathlib import Path

from peft_kernels.data_errors import DataError, unknown

ASSETS = Path(__file__).resolve().parent / "assets"
NAMES = ("mini_sd", "mini_dit")


def pretrained(name: str) -> Path:
    """The folder of an embedded pipeline, for `DiffusionPipeline.from_pretrained`.

    Raises:
        UnknownNameError: there is none of this name; the nearest is told.
        DataError: its weights are not part of this copy of the package.
    """
    if name not in NAMES:
        raise unknown("embedded pipeline", name, NAMES)
    if not (ASSETS / name / "model_index.json").is_file():
        raise DataError(f"this copy of the package has no weights of {name}: it is trained with the recipe {name!r}")
    return ASSETS / name
