"""Operations on clouds against what they stand beside, and a training step of PointGST against full fine-tuning.

Sampling and neighbours: 1,024 points to 128 patches of 32, against the loops and sorts that their definitions ask for.
Spectra: the graphs of 128 centres and of their runs, against `torch.linalg.eigh` alone of the same Laplacians.
Adapters: the spectra and the twelve adapters together, against a frozen pass of `point_mae` behind its sampling. Step:
forward, backward and AdamW of `point_mae`. One thread, float32; process CPU time, least of several, contestants taking
turns; peak bytes above the standing tensors.

    python kernels/benchmarks/points.py [--repeats 4] [--clouds 32] [--batch 4]
"""

import argparse
from typing import Any

import timm
import torch
from measure import Step, cpu_seconds, peak_bytes, write_results
from torch import Tensor
from torch.nn import functional as F

from peft_kernels.ops import farthest_points, nearest_neighbours
from peft_kernels.ops.graph_basis import graph_laplacian, graph_weights, least_distance, pair_distances
from peft_kernels.ops.point_sets import farthest_points_reference, gathered, z_order
from peft_kernels.registry import method
from vision_peft import PointGstConfig, cloud_spectra
from vision_peft.methods.pointgst.adapter import Pcsa

POINTS, GROUPS, SIZE = 1024, 128, 32
BOUNDS = {"sampling": "at most 0.33", "neighbours": "at most 0.33", "spectra": "at most 2", "adapters": "at most 0.05"}
BOUNDS |= {"step": "at most 0.75", "peak": "at most 0.6"}


def operations(clouds: int) -> dict[str, tuple[Step, Step]]:
    """Each operation and its peer."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(clouds, POINTS, 3, generator=generator) * 2 - 1
    centers = points[:, :GROUPS]
    basis = PointGstConfig().basis
    distances = [pair_distances(c) for c in (centers, gathered(centers, z_order(centers)).view(-1, SIZE, 3))]
    laplacians = [graph_laplacian(graph_weights(d, least_distance(d))) for d in distances]

    def sorted_distances() -> Tensor:
        return (centers[:, :, None] - points[:, None]).square().sum(-1).topk(SIZE, largest=False).indices

    def bare() -> None:
        for laplacian in laplacians:
            torch.linalg.eigh(laplacian)

    return {
        "sampling": (lambda: farthest_points(points, GROUPS), lambda: farthest_points_reference(points, GROUPS)),
        "neighbours": (lambda: nearest_neighbours(points, centers, SIZE), sorted_distances),
        "spectra": (lambda: cloud_spectra(centers, basis), bare),
    }


def adapters(batch: int) -> tuple[Step, Step]:
    """Spectra and twelve adapters, and the frozen model behind its sampling."""
    model: Any = timm.create_model("point_mae").eval()
    points, tokens = torch.randn(batch, POINTS, 3), torch.randn(batch, 1 + GROUPS, 384)
    patches = model.group_divider(points)
    config = PointGstConfig()
    own = [Pcsa(384, config.r, config.basis) for _ in range(12)]

    @torch.no_grad()
    def added() -> None:
        spectra = cloud_spectra(patches[1], config.basis)
        for adapter in own:
            adapter.branch(tokens, spectra)

    @torch.no_grad()
    def frozen() -> None:
        x = model.encoder(patches[0])
        model.blocks(torch.cat([model.cls_token.expand(batch, -1, -1), x], 1), tokens)

    return added, frozen


def training(name: str, batch: int) -> Step:
    """A training step of `point_mae` with the method."""
    torch.manual_seed(0)
    model = method(name).attach(timm.create_model("point_mae"))
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    points, labels = torch.randn(batch, POINTS, 3), torch.randint(15, (batch,))
    model.train()

    def step() -> None:
        F.cross_entropy(model(points), labels).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def compared(pair: tuple[Step, Step], repeats: int) -> dict[str, float]:
    """Milliseconds of both and their ratio."""
    found = cpu_seconds({"own": [pair[0]], "peer": [pair[1]]}, repeats)
    own, peer = (1000 * found[name][0] for name in ("own", "peer"))
    return {"ms": round(own, 1), "peer_ms": round(peer, 1), "ratio": round(own / peer, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--clouds", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, dict[str, Any]] = {}
    for name, pair in operations(settings.clouds).items():
        rows[name] = compared(pair, settings.repeats)
    rows["adapters"] = compared(adapters(settings.batch), settings.repeats)
    steps = training("pointgst", settings.batch), training("full", settings.batch)
    rows["step"] = compared(steps, settings.repeats)
    own, peer = (peak_bytes(step) / 2**20 for step in steps)
    rows["peak"] = {"mib": round(own, 1), "peer_mib": round(peer, 1), "ratio": round(own / peer, 3)}
    for name, row in rows.items():
        own, peer, ratio = row.values()
        print(f"{name:<12}{own:>10}{peer:>10}{ratio:>8}   {BOUNDS[name]}")
    print(write_results("points", vars(settings), rows))


if __name__ == "__main__":
    main()
