"""A benchmark of two tasks and two methods: killed in the middle of a training, finished by the same command."""

import json
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from peft_runs.benchmark_budget import at_budget, read_budget, trained_without_head
from peft_runs.benchmark_plan import BenchmarkPlan, Cell
from peft_runs.benchmark_recipe import BenchmarkMethod, read_benchmark
from peft_runs.families import VISION
from peft_runs.find import load_recipe
from peft_runs.recipe import Recipe
from tests.runs.command import PROGRAM, here, one_thread, process, result
from tests.vision.listed import vtab_task

RECIPE = {
    "base": "vtab1k",
    "model": {"name": "vit_mini", "drop_path_rate": 0.0, "fresh_head": True},
    "optim": {"batch_size": 200, "warmup_epochs": 0},
    "run": {"epochs": 2, "workers": 0},
    "benchmark": {"grid": {"optim.lr": [1e30, 0.01]}, "methods": {"linear_probe": {"grid": {"optim.lr": [0.01]}}}},
}
CHOSEN = 0.01


@dataclass
class Done:
    """The folders, and what the second command said."""

    data: Path
    out: Path
    recipe: Path
    finished_before: list[str]
    words: list[str]
    again: subprocess.CompletedProcess[str]

    @property
    def table(self) -> dict[str, Any]:
        return json.loads((self.out / "table.json").read_text(encoding="utf-8"))

    def task(self, method: str, task: str) -> dict[str, Any]:
        return next(row for row in self.table["rows"] if row["method"] == method)["tasks"][task]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    root = tmp_path_factory.mktemp("benchmark")
    for task, classes, test in (("kitti", 4, 711), ("dtd", 47, 1880)):
        vtab_task(root / "data" / task, classes, test)
    (root / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    words = ["benchmark", "--recipe", str(root / "tiny.yaml"), "--tasks", "kitti", "dtd", "--methods", "lora"]
    words += ["linear_probe", "--seeds", "1", "--data-root", str(root / "data"), "--out", str(root / "out")]
    begun = subprocess.Popen([str(PROGRAM), *words], stdout=subprocess.DEVNULL, env=one_thread())
    killed = root / "out" / "kitti" / "lora" / "seed-0" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (killed.exists() and killed.stat().st_size) and begun.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for running in [*psutil.Process(begun.pid).children(recursive=True), psutil.Process(begun.pid)]:
        running.send_signal(signal.SIGKILL)
    begun.wait()
    finished = [str(path.parent.relative_to(root / "out")) for path in (root / "out").rglob("result.json")]
    return Done(root / "data", root / "out", root / "tiny.yaml", finished, words, process(*words))


def test_same_command_finishes_what_was_killed(done: Done) -> None:
    assert done.finished_before == ["kitti/lora/search/lr=0.01"]
    assert done.again.returncode == 0, done.again.stderr
    assert "kitti, lora, lr=0.01: accuracy" not in done.again.stdout
    cells = sorted(str(path.parent.relative_to(done.out)) for path in done.out.rglob("result.json"))
    assert cells == sorted(
        f"{task}/{cell}"
        for task in ("kitti", "dtd")
        for cell in ("lora/search/lr=0.01", "lora/seed-0", "linear_probe/seed-0")
    )
    assert not list(done.out.rglob("seed-0/checkpoint"))


def test_table_is_that_of_trainings_without_interruption(
    done: Done, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for method in ("lora", "linear_probe"):
        cell = done.out / "kitti" / method / "seed-0" / "cell.yaml"
        code, _, error = here(capsys, "train", "--recipe", cell, "--out", tmp_path / method)
        assert (code, error) == (0, "")
        assert done.task(method, "kitti")["values"] == {"0": result(tmp_path / method)["accuracy"]}
    assert "kitti" in (done.out / "table.md").read_text(encoding="utf-8")
    assert r"\toprule" in (done.out / "table.tex").read_text(encoding="utf-8")


def test_search_neither_needs_nor_reads_the_test_part(
    done: Done, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    without = tmp_path / "kitti"
    without.symlink_to(done.data / "kitti")
    hidden = done.data / "kitti" / "test.txt"
    text = hidden.read_text()
    hidden.unlink()
    try:
        cell = done.out / "kitti" / "lora" / "search" / "lr=0.01" / "cell.yaml"
        code, said, _ = here(capsys, "train", "--recipe", cell, "--out", tmp_path / "search")
    finally:
        hidden.write_text(text)
    assert code == 0, said
    accuracy = result(tmp_path / "search")["accuracy"]
    assert (accuracy * 200) == pytest.approx(round(accuracy * 200))
    searched = done.task("lora", "kitti")["searched"]
    assert searched == [{"optim.lr": 1e30, "accuracy": None}, {"optim.lr": CHOSEN, "accuracy": accuracy}]


def test_chosen_settings_are_trained_on_all_and_tested(done: Done) -> None:
    for task, tested in (("kitti", 711), ("dtd", 1880)):
        assert done.task("lora", task)["chosen"] == {"optim.lr": CHOSEN}
        recipe = yaml.safe_load((done.out / task / "lora" / "seed-0" / "recipe.yaml").read_text())
        assert recipe["optim"]["lr"] == CHOSEN
        assert (recipe["data"]["train_split"], recipe["data"]["test_split"]) == ("trainval", "test")
        accuracy = done.task("lora", task)["values"]["0"]
        assert accuracy * tested == pytest.approx(round(accuracy * tested))
        lines = (done.out / task / "lora" / "seed-0" / "metrics.jsonl").read_text().splitlines()
        assert sum('"evaluation"' in line for line in lines) == 1


def test_other_settings_in_the_same_folder_are_refused(done: Done, capsys: pytest.CaptureFixture) -> None:
    code, _, error = here(capsys, *done.words, "--run.epochs", "3")
    assert code == 2
    assert "was begun with run.epochs 2, now it is 3" in error


REFUSED = {
    "unknown task": (("--recipe", "vtab1k", "--tasks", "cifarr"), "'cifarr' (did you mean 'cifar'?)"),
    "unknown method": (("--recipe", "vtab1k", "--methods", "snel"), "'snel' (did you mean 'snell'?)"),
    "no benchmark": (("--recipe", "digits"), "describes no benchmark"),
    "no data": (("--recipe", "vtab1k", "--data-root", "nowhere"), "looked for nowhere/cifar, nowhere/vtab-1k/cifar"),
    "no root": (("--recipe", "fgvc"), "fgvc/cub is read from a folder"),
    "no seeds": (("--recipe", "vtab1k", "--seeds", "0"), "at least 1"),
    "twice": (("--recipe", "vtab1k", "--tasks", "cifar", "dtd", "cifar"), "'cifar' is named twice"),
    "wrong key": (("--recipe", "few_shot", "--tasks", "digits", "--run.epoch", "1"), "'run.epochs'"),
    "budget": (("--recipe", "few_shot", "--tasks", "digits", "--budget", "much"), "20000, 20k or 0.02M"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusal(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    words, said = REFUSED[case]
    code, _, error = here(capsys, "benchmark", *words)
    assert code in (1, 2)
    assert said in error
    assert list(tmp_path.iterdir()) == []


def test_budget_sets_the_rank_that_comes_nearest() -> None:
    """Parameters of `vit_mini`: LoRA and SNELL 7,680 r, Adapter+ 1,285 r + 1,280; SNELL's r is even."""
    task_type = VISION.tasks()["classification"]
    recipe = read_benchmark("few_shot", load_recipe("few_shot"), {})

    def recipe_of(entry: BenchmarkMethod) -> Recipe:
        plan = BenchmarkPlan(VISION, recipe, ["digits"], {"any": entry}, range(1), (), None, 1, None)
        return plan.cell_recipe(Cell("digits", "any", (), 0, False))

    assert [read_budget(text) for text in ("0.02M", "20k", "20000")] == [20_000] * 3
    for name, r, parameters in (("lora", 3, 23_040), ("snell", 2, 15_360), ("adapter_plus", 15, 20_555)):
        found = recipe_of(at_budget(recipe.method(name), 20_000, recipe_of, task_type))
        assert (found.method.fields["r"], trained_without_head(found, task_type)) == (r, parameters)
        assert found.method.fields.get("lora_alpha", r) == r
