"""Checkpoints and the other files of a run: exact, whole or absent."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from peft_runs.checkpoint import State, latest_checkpoint, load_checkpoint, save_checkpoint
from peft_runs.durable import whole_folder, write_json
from peft_runs.errors import RunError
from peft_runs.metrics import Metrics, read_metrics


def trained(steps: int, width: int = 3) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(steps)
    model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))
    model[2].requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1 + steps)
    for _ in range(steps):
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def test_checkpoint_brings_back_model_and_optimizer(tmp_path: Path) -> None:
    model, optimizer = trained(3)
    saved = save_checkpoint(tmp_path, State(step=3, metrics_bytes=17, peak_bytes=5), model, optimizer)
    other, other_optimizer = trained(1)
    other[2].load_state_dict(model[2].state_dict())  # frozen: not part of the checkpoint
    state = load_checkpoint(saved, other, other_optimizer)
    assert state == State(step=3, metrics_bytes=17, peak_bytes=5)
    for left, right in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(left, right)
    x = torch.randn(5, 4)
    for one, its in ((model, optimizer), (other, other_optimizer)):
        one(x).square().sum().backward()
        its.step()
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    for step in (1, 2):
        save_checkpoint(tmp_path, State(step=step), model, optimizer)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000002"


def test_checkpoint_of_another_model_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path, State(step=3), *trained(3))
    model, optimizer = trained(1, width=6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RunError, match=r"'0.weight' has shape \(3, 4\), expected \(6, 4\)"):
        load_checkpoint(saved, model, optimizer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_damaged_checkpoint_is_refused(file: str, tmp_path: Path) -> None:
    model, optimizer = trained(2)
    saved = save_checkpoint(tmp_path, State(step=2), model, optimizer)
    data = (saved / file).read_bytes()
    (saved / file).write_bytes(data[: len(data) // 2])
    with pytest.raises(RunError, match="is damaged"):
        load_checkpoint(saved, model, optimizer)


def test_an_interrupted_folder_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    with whole_folder(target) as aside:
        (aside / "file").write_text("old")

    def interrupted() -> None:
        with whole_folder(target) as aside:
            (aside / "file").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.rglob("*")] == ["adapter", "file"]
    assert (target / "file").read_text() == "old"


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "result.json", {"loss": 1})
    with pytest.raises(ValueError):
        write_json(tmp_path / "result.json", {"loss": float("nan")})
    assert json.loads((tmp_path / "result.json").read_text()) == {"loss": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    metrics.add("step", step=1)
    position = metrics.settle()
    metrics.add("step", step=2)
    metrics.close()
    with path.open("a") as file:
        file.write('{"kind": "st')
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    metrics = Metrics(path, position)
    metrics.add("step", step=3)
    metrics.close()
    assert [line["step"] for line in read_metrics(path)] == [1, 3]
