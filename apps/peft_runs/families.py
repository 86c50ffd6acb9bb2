"""The families of models that the commands serve, each with its program's name and its tasks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from peft_runs.task import Task


@dataclass(frozen=True)
class Family:
    """One program.

    Attributes:
        program: its name on the command line.
        name: the family's name in the table of methods.
        tasks: loads the tasks by name, the usual one first (late, since it imports the family).
        commands: the commands that it has.
        own: commands that another module than `command_<name>` carries out for it: name -> `command_<module>`.
    """

    program: str
    name: str
    tasks: Callable[[], Mapping[str, type[Task]]]
    commands: tuple[str, ...]
    own: Mapping[str, str] = field(default_factory=dict)


def _vision_tasks() -> Mapping[str, type[Task]]:
    from vision_peft.tasks import Classification, CloudClassification, MaskedClouds, PartSegmentation, Segmentation

    return {
        "classification": Classification,
        "clouds": CloudClassification,
        "masked_clouds": MaskedClouds,
        "parts": PartSegmentation,
        "segmentation": Segmentation,
    }


_VISION_COMMANDS = (
    *("train", "evaluate", "methods", "compare", "benchmark", "sensitivity", "inspect", "merge", "export", "convert"),
)
VISION = Family("vision-peft", "vision", _vision_tasks, _VISION_COMMANDS)


def _diffusion_tasks() -> Mapping[str, type[Task]]:
    from diffusion_peft.tasks import Autoencoding, ClassToImage, OneStepTuning, PipelineTuning, TextToImage

    return {
        "tune": PipelineTuning,
        "one_step": OneStepTuning,
        "text_to_image": TextToImage,
        "class_to_image": ClassToImage,
        "autoencoder": Autoencoding,
    }


_DIFFUSION_COMMANDS = (
    *("train", "evaluate", "sample", "localize", "methods", "compare", "inspect", "merge", "export", "convert"),
)
_DIFFUSION_OWN = {"merge": "merge_pipeline", "export": "export_denoiser"}
DIFFUSION = Family("diffusion-peft", "diffusion", _diffusion_tasks, _DIFFUSION_COMMANDS, _DIFFUSION_OWN)
