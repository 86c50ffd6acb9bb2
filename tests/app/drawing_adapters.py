"""Adapters of mini_sd with random values, and a finished comparison of them, without any training."""

import shutil
from pathlib import Path

import torch
from peft import LoraConfig
from torch import nn

import diffusion_peft as dp
from diffusion_peft.pipelines.opening import open_pipeline
from peft_compare.runs import Run, Runs
from peft_runs.compare_columns import DRAWN
from peft_runs.compare_results import FORMAT, Curve, Results, Row, RunResult, Spread
from peft_runs.durable import write_json
from vision_peft import BitFitConfig

SEED = "seed-0"


def make(root: Path) -> dict[str, str]:
    """Run folders by name, each with an `adapter`."""
    torch.manual_seed(0)
    made = {
        "lora": LoraConfig(r=2),
        "other": LoraConfig(r=2),
        "bitfit": BitFitConfig(),
        "scedit": dp.SceditConfig(control=True, pre_dim_ratio=0.5, pre_out_channels=64),
    }
    for name, config in made.items():
        pipe = open_pipeline("mini_sd")
        model: nn.Module = dp.add_adapter(pipe, config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.1)
        dp.save_adapter(pipe, root / name / "adapter")
    dp.Condition("edges").save(root / "scedit" / "adapter")
    return {name: str(root / name) for name in made}


def finished(runs: Runs, adapters: dict[str, str], names: tuple[str, ...]) -> Run:
    """A comparison of these methods as it lies on the disk when it is done."""
    words = ["compare", "--recipe", "style", "--methods", ",".join(names)]
    run = runs.create("diffusion", "mini_sd: a style (style)", "diffusion-peft", words, "")
    rows = []
    for name in names:
        place = f"{name}/{SEED}"
        shutil.copytree(adapters[name], run.out / place)
        result = RunResult(0, place, "", {"loss": 0.5}, 0.0, None, None, 1000, None, Curve([1.0, 0.5], [2.0], [0.4]))
        figures = {"loss": Spread(0.5, None)}
        rows.append(Row(name, "", "", "style", {}, None, 1000, 1000, figures, 0.1, 1000, 1000, runs=[result]))
    results = Results(
        format=FORMAT,
        program="diffusion-peft",
        created="2026-01-01 00:00",
        recipe="style",
        command="",
        metric="explained",
        columns=[DRAWN[0]],
        base=None,
        seeds=[0],
        ranked=False,
        test_samples=None,
        jobs=1,
        timing={"steps": 10, "threads": 1, "device": "cpu"},
        unmeasured={},
        shared={"model.pipeline": "mini_sd", "data.name": "style"},
        machine={"processor": "", "accelerator": None},
        versions={},
        rows=rows,
    )
    write_json(run.out / "results.json", results.as_dict())
    run.finish("done")
    return run
