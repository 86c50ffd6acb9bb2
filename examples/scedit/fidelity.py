"""How well samples keep to their condition images: no condition, SCEdit and ControlNet.

python examples/scedit/fidelity.py OUT RUN [RUN] [--control CONTROL [CONTROL]] [--pictures 48]

A RUN is a finished run of the recipe `edges`, `colors` or `depth`, its CONTROL what `controlnet.py` made of it, in the
same order; two of them also steer together. Conditions and captions are those of the pictures that judge the first run,
picture n is drawn from seed n in every way. OUT gets `figures.json`, `figures.md` and `samples.png`, a row a way.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from PIL import Image
from torch import Tensor

import diffusion_peft as dp
from diffusion_peft.data.drawn import to_tensor
from diffusion_peft.data.fidelity import color_distance, edge_agreement
from diffusion_peft.pipelines.opening import open_pipeline, without_noise
from diffusion_peft.pipelines.scedit import STEERED
from diffusion_peft.tasks.tuning import PipelineTuning
from peft_kernels.ops import edge_lines
from peft_runs.families import DIFFUSION
from peft_runs.figure_samples import draw_samples
from peft_runs.figure_style import LIGHT
from peft_runs.find import load_recipe
from peft_runs.read import read_recipe
from peft_runs.report_samples import Samples, spread

TOGETHER, SHOWN, STEPS, GUIDANCE = 16, 12, 25, 4.0
BOTH = (1.0, 0.7)  # weights of the first and the second condition together
THRESHOLD, PATCHES = 0.1, 4  # of the edges and the colours that are measured
Drawing = Callable[[slice], list[Image.Image]]


def main() -> None:
    """Draw in every way, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--control", type=Path, nargs="*", default=[])
    parser.add_argument("--pictures", type=int, default=48)
    settings = parser.parse_args()
    runs, controls, out = settings.runs, settings.control, settings.out
    if not len(controls) <= len(runs) <= len(BOTH):
        parser.error(f"one or two runs are compared, each with a ControlNet or without; found {len(runs)}")
    recipe = read_recipe(load_recipe(runs[0] / "recipe.yaml"), [], DIFFUSION.tasks())
    task = PipelineTuning(recipe.model, recipe.data, recipe.run.seed)
    task.build_model()
    count = min(settings.pictures, len(task.pictures("test")))
    framed = [task.framed("test", []).framed((0, index)) for index in range(count)]
    squares, prompts = [square for square, *_ in framed], [drawn.caption for *_, drawn, _ in framed]
    made = [dp.Condition.load(run / "adapter") for run in runs]
    names = [str(condition.name) for condition in made]
    images = [torch.stack([condition.tensor(square) for square in squares]) for condition in made]

    def asked(part: slice) -> dict[str, Any]:
        seeds = range(*part.indices(len(squares)))
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "generator": generators}

    stock: Any = open_pipeline(recipe.model.pipeline)
    ways: dict[str, Drawing] = {"no condition": lambda part: stock(prompts[part], **asked(part)).images}
    kind: Any = STEERED[type(stock).__name__]
    with without_noise():
        steered = kind.from_pipe(open_pipeline(recipe.model.pipeline))
    steered.set_progress_bar_config(disable=True)
    for run, name in zip(runs, names, strict=True):
        dp.load_adapter(steered, run / "adapter", name)
    nets = [ControlNetModel.from_pretrained(folder / "controlnet") for folder in controls]

    def scedit(*weights: float) -> Drawing:
        def draw(part: slice) -> list[Image.Image]:
            dp.set_adapters(steered, names, list(weights))
            given = {name: some[part] for name, some, weight in zip(names, images, weights, strict=True) if weight}
            return steered(prompts[part], image=given, **asked(part)).images

        return draw

    def controlnet(*weights: float) -> Drawing:
        used = [number for number, weight in enumerate(weights) if weight]
        parts = {name: part for name, part in stock.components.items() if name != "image_encoder"}
        chosen = [nets[number] for number in used]
        pipe: Any = StableDiffusionControlNetPipeline(**parts, controlnet=chosen, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        scales = [weights[number] for number in used]

        def draw(part: slice) -> list[Image.Image]:
            given = [images[number][part] for number in used]
            return pipe(prompts[part], image=given, controlnet_conditioning_scale=scales, **asked(part)).images

        return draw

    alone = [(name, [float(name == other) for other in names]) for name in names]
    for name, weights in [*alone, *([("both", BOTH)] if len(names) > 1 else [])]:
        ways[f"SCEdit, {name}"] = scedit(*weights)
        if not any(weights[len(nets) :]):
            ways[f"ControlNet, {name}"] = controlnet(*weights)

    wanted = torch.stack([(to_tensor(square) + 1) / 2 for square in squares])
    lines = edge_lines(wanted, THRESHOLD)

    def measured(pictures: list[Image.Image]) -> dict[str, float]:
        found = torch.stack([(to_tensor(picture) + 1) / 2 for picture in pictures])
        agreement = edge_agreement(edge_lines(found, THRESHOLD), lines)
        distance = color_distance(found, wanted, PATCHES)
        return {"edges_f1": agreement.mean().item(), "color_distance": distance.mean().item()}

    rows = [("picture", squares), *((c.name or "", [c(square) for square in squares]) for c in made)]
    rows.append(("autoencoder", through_autoencoder(stock, wanted)))
    for name, draw in ways.items():
        pictures = [p for begin in range(0, len(squares), TOGETHER) for p in draw(slice(begin, begin + TOGETHER))]
        rows.append((name, pictures))
        print(name, measured(pictures), flush=True)
    trained = {"SCEdit": runs, "ControlNet": controls}
    before = 1 + len(made)
    figures = {
        "pictures": len(squares),
        "weights_of_both": BOTH if len(names) > 1 else None,
        "ways": {name: measured(pictures) for name, pictures in rows[before:]},
        "trained": {
            name: [json.loads((run / "result.json").read_text()) for run in some] for name, some in trained.items()
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    table = "".join(f"| {n} | {f['edges_f1']:.3f} | {f['color_distance']:.3f} |\n" for n, f in figures["ways"].items())
    (out / "figures.md").write_text(f"| | edges, F1 | colours, distance |\n|---|---:|---:|\n{table}", encoding="utf-8")
    shown = spread(len(squares), SHOWN)
    columns: list[tuple[str, list[Image.Image | None]]] = [
        (name.replace(", ", ",\n"), [some[n] for n in shown]) for name, some in rows
    ]
    samples = Samples([prompts[n] for n in shown], len(shown), "picture", columns)
    draw_samples(samples, LIGHT).savefig(out / "samples.png", dpi=160)


@torch.no_grad()
def through_autoencoder(pipeline: Any, pictures: Tensor) -> list[Image.Image]:
    """Pictures in [0, 1], encoded and decoded: as near to them as any sample can come."""
    latents = pipeline.vae.encode(2 * pictures - 1).latent_dist.mode()
    return pipeline.image_processor.postprocess(pipeline.vae.decode(latents).sample, output_type="pil")


if __name__ == "__main__":
    main()
