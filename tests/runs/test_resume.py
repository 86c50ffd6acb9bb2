"""A run that was killed and resumed ends as the run that was not."""

import random
from pathlib import Path

import pytest

from tests.runs.command import SMALL, killed_at, lines, process, result

VARIED = (
    *("--model.drop_path_rate", "0.1", "--data.variation.crop_padding", "2", "--data.variation.random_erase", "0.5"),
    *("--run.workers", "2", "--run.epochs", "4", "--run.checkpoint_steps", "2", "--run.evaluate_epochs", "2"),
)
METHODS = {
    "model itself": (),
    "snella sharing out its budget": ("--method.name", "snella", "--method.r", "4"),
    "snell with dropout": ("--method.name", "snell", "--method.dropout", "0.1", "--method.drop_path", "0.1"),
    "spt, which looks at data first": (
        *("--method.name", "spt", "--method.budget", "3000", "--method.budget_rule", "at_most"),
        *("--method.num_batches", "2", "--method.batch_size", "10"),
    ),
    "sara selecting twice": ("--method.name", "sara", "--method.density", "0.1", "--method.rank_every", "2"),
}


@pytest.mark.parametrize("method", METHODS)
def test_killed_run_ends_bit_equal(method: str, tmp_path: Path) -> None:
    words = (*SMALL, *VARIED, *METHODS[method])
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert process("train", *words, "--out", unbroken).returncode == 0

    first, second = sorted(random.Random(method).sample(range(3, 11), 2))
    killed_at(first, "train", *words, "--out", broken)
    (broken / "checkpoint" / ".writing-step-00000099").mkdir()  # as a kill inside a checkpoint leaves it
    killed_at(second, "train", "--resume", "--out", broken)
    last = process("train", "--resume", "--out", broken)

    assert last.returncode == 0, last.stderr
    gone_on = int(last.stdout.partition("going on after step ")[2].split()[0])
    assert 0 < gone_on <= second + 1
    assert lines(broken) == lines(unbroken)
    for name in ("accuracy", "loss"):
        assert result(broken)[name] == result(unbroken)[name]
    files = sorted(path.relative_to(unbroken) for path in (unbroken / "adapter").rglob("*.safetensors"))
    assert files
    for file in files:
        assert (broken / file).read_bytes() == (unbroken / file).read_bytes()
    assert [path.name for path in (broken / "checkpoint").iterdir()] == ["step-00000012"]
