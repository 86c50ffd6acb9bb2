"""One step against many, end to end: captions in, pictures out, by ordinary calls of a pipeline.

Process CPU time of a batch of pictures, text encoder and decoder included, least of several: the pipeline with its own
scheduler, many steps and guidance, and the same pipeline after `dp.one_step`, with an adapter if one is given (merged
or not, an adapter changes little of it). Asked of mini_sd: 20 times the pictures.

    python kernels/benchmarks/one_step.py [--pipeline mini_sd] [--adapter FOLDER] [--steps 50] [--guidance 4]
"""

import argparse

import torch
from measure import Step, cpu_seconds, write_results

import diffusion_peft as dp
from diffusion_peft.pipelines.opening import open_pipeline

ASKED = 20


def call_of(settings: argparse.Namespace, steps: int) -> Step:
    """One call of a freshly loaded pipeline."""
    pipe = open_pipeline(settings.pipeline)
    if settings.adapter is not None:
        dp.load_adapter(pipe, settings.adapter)
    if steps == 1:
        dp.one_step(pipe, settings.adapter)
    prompts = ["a red apple"] * settings.batch
    asked = {"num_inference_steps": steps, "guidance_scale": 1.0 if steps == 1 else settings.guidance}
    return lambda: pipe(prompts, **asked, generator=torch.Generator().manual_seed(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default="mini_sd")
    parser.add_argument("--adapter")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    many = f"{settings.steps} steps"
    calls = {many: [call_of(settings, settings.steps)], "1 step": [call_of(settings, 1)]}
    seconds = {name: row[0] / settings.batch for name, row in cpu_seconds(calls, settings.repeats).items()}
    rows = {
        name: {
            "ms_per_picture": round(1000 * found, 2),
            "pictures_per_second": round(1 / found, 2),
            "over_many_steps": round(seconds[many] / found, 2),
        }
        for name, found in seconds.items()
    }
    print(f"{'':<12}{'ms a picture':>14}{'pictures/s':>12}{'× ' + many:>12}")
    for name, row in rows.items():
        print(f"{name:<12}" + "".join(f"{value:>{w}}" for value, w in zip(row.values(), (14, 12, 12), strict=True)))
    print(f"asked of mini_sd: {ASKED} ×")
    print(write_results("one_step", vars(settings), rows))


if __name__ == "__main__":
    main()
