"""Tasks on point clouds, through the commands: masked modelling, and what it leaves adapted to scans."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.runs.command import here
from vision_peft.data.clouds import CloudVariation
from vision_peft.tasks.cloud_task import CloudDataSpec, CloudModelSpec
from vision_peft.tasks.clouds import CloudClassification

TINY = ("--run.epochs", "1", "--optim.batch_size", "15", "--optim.warmup_epochs", "0", "--run.evaluate_epochs", "1")
GROUPS = ("--model.num_groups", "8", "--model.group_size", "4")
CLOUDS = ("--data.points", "64", "--data.train_size", "45", "--data.test_size", "15")


def test_pretrained_by_masks_then_adapted_to_scans(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pretrained, adapted = tmp_path / "pretrained", tmp_path / "adapted"
    code, _, error = here(capsys, "train", "--recipe", "point_mini", *TINY, *GROUPS, *CLOUDS, "--out", pretrained)
    assert code == 0, error
    weights = pretrained / "adapter" / "model.safetensors"
    words = ("--model.weights", weights, "--method.local_size", "4", *TINY, *GROUPS, *CLOUDS, "--out", adapted)
    code, _, error = here(capsys, "train", "--recipe", "scans_pointgst", *words)
    assert code == 0, error
    kept = load_file(adapted / "adapter" / "adapter_model.safetensors")
    assert any("pcsa_adapter" in name for name in kept)
    assert not any("qkv" in name for name in kept)
    with Image.open(sorted((adapted / "samples").glob("*.png"))[-1]) as picture:
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 100
    report = html.unescape((adapted / "report.html").read_text())
    assert "vision-peft train --recipe" in report
    assert ('href="clouds.html"' in report) == (adapted / "clouds.html").is_file()
    assert "create_model('point_mini', pretrained=True, num_groups=8, group_size=4, num_classes=15)" in report


def scanobjectnn(root: Path, data: np.ndarray) -> None:
    h5py = pytest.importorskip("h5py")
    (root / "main_split").mkdir()
    for part in ("training", "test"):
        with h5py.File(root / "main_split" / f"{part}_objectdataset_augmentedrot_scale75.h5", "w") as file:
            file["data"], file["label"] = data, np.arange(len(data)) % 15


def modelnet40(root: Path, data: np.ndarray) -> None:
    names = [f"night_stand_{index:04}" for index in range(len(data))]
    (root / "night_stand").mkdir()
    for name, points in zip(names, data, strict=True):
        np.savetxt(root / "night_stand" / f"{name}.txt", np.concatenate([points, points], 1), delimiter=",")
    (root / "modelnet40_shape_names.txt").write_text("chair\nnight_stand\n")
    for part in ("train", "test"):
        (root / f"modelnet40_{part}.txt").write_text("\n".join(names))


@pytest.mark.parametrize(("name", "write"), [("scanobjectnn", scanobjectnn), ("modelnet40", modelnet40)])
def test_recipes_of_the_field(name: str, write: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = tmp_path / "data"
    root.mkdir()
    write(root, np.random.default_rng(0).normal(size=(15, 70, 3)).astype(np.float32))
    small = ("--model.name", "point_mini", *TINY, *GROUPS, "--data.points", "64", "--method.local_size", "4")
    words = ("--data.root", root, *small, "--out", tmp_path / "out")
    code, _, error = here(capsys, "train", "--recipe", f"{name}_pointgst", *words)
    assert code == 0, error
    kept = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    classes = {"scanobjectnn": 15, "modelnet40": 2}[name]
    assert classes in [len(tensor) for key, tensor in kept.items() if key.endswith("cls_head_finetune.8.weight")]


def test_point_peft_remembers_the_training_clouds(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ("--model.pretrained", "false", "--method.num_batches", "2", "--method.batch_size", "15")
    code, _, error = here(
        capsys, "train", "--recipe", "scans_point_peft", *words, *TINY, *GROUPS, *CLOUDS, "--out", tmp_path
    )
    assert code == 0, error
    kept = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    (memory,) = (tensor for name, tensor in kept.items() if name.endswith("shared.memory"))
    assert memory.shape == (30, 96)
    assert len(memory.unique(dim=0)) == 30
    torch.testing.assert_close(memory.norm(dim=-1), torch.ones(30))


def test_copies_of_a_cloud_vote() -> None:
    variation, generator = CloudVariation(scale=0.3), torch.Generator().manual_seed(0)
    data = CloudDataSpec(train_size=15, test_size=15, points=64, votes=4, variation=variation)
    task = CloudClassification(CloudModelSpec(name="point_mini"), data, seed=3)
    seen: list[torch.Tensor] = []

    def model(points: torch.Tensor) -> torch.Tensor:
        seen.append(points)
        return torch.rand(len(points), 15, generator=generator)

    batch = {"points": torch.rand(5, 64, 3), "label": torch.arange(5)}
    sums = task.evaluate(model, [batch])
    torch.testing.assert_close(seen[0], batch["points"], rtol=0, atol=0)
    factors = [copy / batch["points"] for copy in seen[1:]]
    assert len(factors) == 3
    for factor in factors:
        torch.testing.assert_close(factor, factor[:, :1].expand_as(factor))
    assert not torch.allclose(factors[0][0], factors[1][0])
    drawn = torch.Generator().manual_seed(0)
    mean = torch.stack([torch.rand(5, 15, generator=drawn) for _ in range(4)]).mean(0)
    loss = torch.nn.functional.cross_entropy(mean, batch["label"], reduction="sum")
    assert sums["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    first, again = (task.evaluate(lambda x: x[:, :15, 0], [batch])["loss"] for _ in range(2))
    assert first == again


def test_clouds_painted_for_a_model_of_pictures(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ("--model.name", "p2p_vit_mini", *TINY, *CLOUDS, "--method.name", "ln_tuning", "--out", tmp_path / "out")
    code, _, error = here(capsys, "train", "--recipe", "scans", *words)
    assert code == 0, error
    kept = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert any(".painter." in name for name in kept)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model.name", "point_may"), "unknown model of points 'point_may' (did you mean 'point_mae'"),
        (("--model.weights", "nowhere.safetensors"), "nowhere.safetensors is no readable file of safetensors"),
        (("--data.name", "scan"), "unknown clouds 'scan' (did you mean 'scans'"),
        (("--data.name", "modelnet40"), "add --data.root FOLDER"),
        (("--data.votes", "0"), "data.votes must be at least 1, found 0"),
    ],
)
def test_what_is_not_there_is_one_sentence(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    code, _, error = here(capsys, "train", "--recipe", "scans_pointgst", *CLOUDS, *words, "--out", tmp_path / "out")
    assert code != 0
    assert "\n" not in error
    assert message in error
