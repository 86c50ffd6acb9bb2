"""How a tuned pipeline is used, as Python for a run's page and card."""

from diffusion_peft.embedded import NAMES


def usage(pipeline: str, part: str, method: str | None) -> str:
    """Put what a run saved, here called FOLDER, on the `part` of a pipeline; without a method that is all of it."""
    lines = ["from diffusers import DiffusionPipeline", ""]
    if method or pipeline in NAMES:
        lines.insert(0, "import diffusion_peft as dp")
    if not method:
        lines.insert(-1, "from safetensors.torch import load_file")
    place = f'dp.pretrained("{pipeline}")' if pipeline in NAMES else f'"{pipeline}"'
    lines.append(f"pipeline = DiffusionPipeline.from_pretrained({place})")
    if method:
        lines.append('dp.load_adapter(pipeline, "FOLDER")')
    else:
        lines.append(f'pipeline.{part}.load_state_dict(load_file("FOLDER/model.safetensors"))')
    return "\n".join(lines) + "\n"
