"""A search for text layers: pictures × layers per second, and what is stored meanwhile.

Every text layer of a pipeline reads another text by itself, for a few pairs of prompts. Process CPU time, least of
several: with the target's states put in (UNets), and with source and target beside each other in one batch (any model),
one layer or more at once, against the way that the authors describe: run the target and keep keys and values of every
layer and step, then run the source once a layer and put them in. The plain pictures of both are part of all.

    python kernels/benchmarks/localization.py [--pipeline mini_sd] [--pairs 2] [--steps 6] [--repeats 2]
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from measure import Step, cpu_seconds, write_results
from torch import Tensor

import diffusion_peft as dp
from diffusion_peft.localization.generations import Generations, encoded_once
from diffusion_peft.localization.pairs import pairs_of
from diffusion_peft.pipelines.opening import open_pipeline

WORDS = ("CAT", "SUN", "MAP", "DOG", "KEY", "BOX", "JAM", "FIG")
Kept = dict[str, list[Tensor]]


@contextmanager
def hooked(pipe: Any, names: list[str], made: Callable[[str], Callable[..., Any]]) -> Iterator[None]:
    """Within the block these projections have a forward hook."""
    with ExitStack() as stack:
        for name in names:
            module = pipe.unet.get_submodule(name)
            stack.callback(module.register_forward_hook(made(name)).remove)
        yield


def replay(run: Generations, pairs: list[Any], seeds: list[int], stored: list[int]) -> None:
    """Keep all of the target's keys and values, then put them in layer by layer."""
    layers = dp.text_layers(run.pipeline)
    kept: Kept = {name: [] for layer in layers for name in layer.projection_names}

    def keeping(name: str) -> Callable[..., None]:
        return lambda module, args, output: kept[name].append(output.cpu())

    with hooked(run.pipeline, list(kept), keeping):
        run.pictures([pair.target for pair in pairs], seeds)
    stored[:] = [sum(tensor.nbytes for rows in kept.values() for tensor in rows)]
    sources = [pair.source for pair in pairs]
    run.pictures(sources, seeds)
    for layer in layers:
        steps = {name: iter(kept[name]) for name in layer.projection_names}

        def putting(name: str, steps: dict[str, Iterator[Tensor]] = steps) -> Callable[..., Tensor]:
            return lambda module, args, output: next(steps[name]).to(output.device)

        with hooked(run.pipeline, layer.projection_names, putting):
            run.pictures(sources, seeds)


def search(run: Generations, pairs: list[Any], seeds: list[int], at_once: int, beside: bool) -> None:
    """``at_once`` layers a call, the target in the same batch or its states put in."""
    layers = [layer.index for layer in dp.text_layers(run.pipeline)]
    with encoded_once(run.pipeline):
        states = run.plain(pairs, seeds)[-1]
        for place in range(0, len(layers), at_once):
            sets = [(layer,) for layer in layers[place : place + at_once]]
            if beside or states is None:
                run.together(pairs, seeds, sets)
            else:
                run.injected(pairs, seeds, sets, states)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default="mini_sd")
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--at-once", type=int, nargs="*", default=[1, 5])
    parser.add_argument("--repeats", type=int, default=2)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    pipe = open_pipeline(settings.pipeline)
    count = len(dp.text_layers(pipe))
    pairs = pairs_of([f'the word "{word}" in red on white' for word in WORDS[: settings.pairs]])
    seeds = list(range(settings.pairs))
    run = Generations(pipe, settings.steps, 4.0)
    stored: list[int] = []
    ways: dict[str, Step] = {"cache and replay": lambda: replay(run, pairs, seeds, stored)}
    for way, beside in (("beside", True), ("put in", False)):
        ways |= {
            f"{way}, {n} at once": lambda n=n, beside=beside: search(run, pairs, seeds, n, beside)
            for n in settings.at_once
        }
    seconds = {
        name: row[0] for name, row in cpu_seconds({name: [way] for name, way in ways.items()}, settings.repeats).items()
    }
    rows = {
        name: {
            "pictures_layers_per_second": round(settings.pairs * count / found, 3),
            "over_replay": round(seconds["cache and replay"] / found, 3),
            "stored_bytes": stored[0] if name == "cache and replay" else 0,
        }
        for name, found in seconds.items()
    }
    print(f"{count} layers, {settings.pairs} pairs, {settings.steps} steps")
    print(f"{'':<20}{'pictures × layers / s':>24}{'× replay':>12}{'stored':>14}")
    for name, row in rows.items():
        print(f"{name:<20}" + "".join(f"{value:>{w},}" for value, w in zip(row.values(), (24, 12, 14), strict=True)))
    print(write_results("localization", vars(settings), rows))


if __name__ == "__main__":
    main()
