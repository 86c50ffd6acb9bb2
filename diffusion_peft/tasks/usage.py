"""How a tuned pipeline is used, as Python for a run's page and card."""

from diffusion_peft.embedded import NAMES


def usage(pipeline: str, part: str, method: str | None) -> str:
    """Put what a run saved, here called FOLDER, on the `part` of a pipeline; without a method that is all of it."""
    lines = ["from diffusers import DiffusionPipeline", ""]
    if method or pipeline in NAMES:
        lines.insert(0, "import diffusion_peft as dp")
    if not method:
        lines.insert(-1, "from safetensors.torch import load_file")
    lines.append(f"pipeline = DiffusionPipeline.from_pretrained({_place(pipeline)})")
    if method:
        lines.append('dp.load_adapter(pipeline, "FOLDER")')
    else:
        lines.append(f'pipeline.{part}.load_state_dict(load_file("FOLDER/model.safetensors"))')
    return "\n".join(lines) + "\n"


def steered_usage(pipeline: str, steered: str) -> str:
    """Draw with an adapter, here called FOLDER, that a picture steers; `steered` is the pipeline's class for it."""
    return (
        "import diffusion_peft as dp\nfrom PIL import Image\n\n"
        f"pipeline = dp.{steered}.from_pretrained({_place(pipeline)})\n"
        'dp.load_adapter(pipeline, "FOLDER")\n'
        'condition = dp.Condition.load("FOLDER")(Image.open("PICTURE"))\n'
        'image = pipeline("PROMPT", image=condition).images[0]\n'
    )


def _place(pipeline: str) -> str:
    return f'dp.pretrained("{pipeline}")' if pipeline in NAMES else f'"{pipeline}"'
