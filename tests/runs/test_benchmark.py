"""A benchmark of two tasks and two methods: killed in the middle of a training, finished by the same command."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from peft_runs import benchmark, benchmark_cell
from peft_runs.benchmark_budget import at_budget, read_budget, trained_without_head
from peft_runs.benchmark_plan import BenchmarkPlan, Cell
from peft_runs.benchmark_recipe import BenchmarkMethod, read_benchmark
from peft_runs.compare_plan import Plan, PlannedRun
from peft_runs.families import VISION
from peft_runs.find import load_recipe
from peft_runs.recipe import Recipe
from tests.runs.command import PROGRAM, here, one_thread, process, result
from tests.vision.listed import digit_labels, digit_pictures, vtab_task

RECIPE: dict[str, Any] = {
    "base": "vtab1k",
    "model": {"name": "vit_mini", "drop_path_rate": 0.0, "fresh_head": True},
    "optim": {"batch_size": 200, "warmup_epochs": 0},
    "run": {"epochs": 1, "workers": 0},
    "benchmark": {
        "grid": {"optim.lr": [1e30, 0.0001, 0.01]},
        "tasks": {"own": {"group": "Own", "data": {"name": "vtab/kitti", "root": "second"}}},
    },
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


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for above in (root, root / "second"):
        vtab_task(above / "kitti", 4, 711)
    return root


@pytest.fixture(scope="module")
def recipe(data: Path) -> Path:
    path = data / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def figures(out: Path, method: str, task: str) -> dict[str, Any]:
    """What the record says of a method on a task."""
    table = json.loads((out / "table.json").read_text(encoding="utf-8"))
    return next(row for row in table["rows"] if row["method"] == method)["tasks"][task]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, data: Path, recipe: Path) -> Done:
    out = tmp_path_factory.mktemp("benchmark") / "out"
    words = ["benchmark", "--recipe", str(recipe), "--tasks", "kitti", "own", "--methods", "linear_probe", "bitfit"]
    words += ["--seeds", "1", "--data-root", str(data), "--out", str(out), "--optim.lr", str(CHOSEN)]
    begun = subprocess.Popen([str(PROGRAM), *words], stdout=subprocess.DEVNULL, env=one_thread())
    killed = out / "kitti" / "bitfit" / "seed-0" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (killed.exists() and killed.stat().st_size) and begun.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for running in [*psutil.Process(begun.pid).children(recursive=True), psutil.Process(begun.pid)]:
        running.send_signal(signal.SIGKILL)
    begun.wait()
    finished = [str(path.parent.relative_to(out)) for path in out.rglob("result.json")]
    return Done(data, out, recipe, finished, words, process(*words))


def test_same_command_finishes_what_was_killed(done: Done) -> None:
    assert done.finished_before == ["kitti/linear_probe/seed-0"]
    assert done.again.returncode == 0, done.again.stderr
    assert "kitti, linear_probe, seed 0: accuracy" not in done.again.stdout
    assert "kitti, bitfit, seed 0: accuracy" in done.again.stdout
    cells = sorted(str(path.parent.relative_to(done.out)) for path in done.out.rglob("result.json"))
    assert cells == [f"{task}/{m}/seed-0" for task in ("kitti", "own") for m in ("bitfit", "linear_probe")]
    assert not list(done.out.rglob("checkpoint"))


def test_table_is_that_of_trainings_without_interruption(
    done: Done, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cell = done.out / "kitti" / "bitfit" / "seed-0" / "cell.yaml"  # the one that was killed
    code, _, error = here(capsys, "train", "--recipe", cell, "--out", tmp_path / "run")
    assert (code, error) == (0, "")
    assert figures(done.out, "bitfit", "kitti")["values"] == {"0": result(tmp_path / "run")["accuracy"]}
    assert "| linear_probe | 0.000 |" in (done.out / "table.md").read_text(encoding="utf-8")
    assert r"\toprule" in (done.out / "table.tex").read_text(encoding="utf-8")


def test_everything_is_trained_on_all_and_tested_once(done: Done) -> None:
    for task in ("kitti", "own"):
        folder = done.out / task / "bitfit" / "seed-0"
        stored = yaml.safe_load((folder / "recipe.yaml").read_text())
        assert (stored["data"]["train_split"], stored["data"]["test_split"]) == ("trainval", "test")
        accuracy = figures(done.out, "bitfit", task)["values"]["0"]
        assert accuracy * 711 == pytest.approx(round(accuracy * 711))
        assert (folder / "metrics.jsonl").read_text().count('"evaluation"') == 1


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """Ten digits a class to train and three to test, in folders, and a recipe that cuts validation out of them."""
    root = tmp_path / "pictures"
    for label, picture in zip(digit_labels(), digit_pictures(), strict=True):
        for part, most in (("train", 10), ("test", 3)):
            folder = root / part / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            if len(list(folder.iterdir())) < most:
                picture.save(folder / f"{len(list(folder.iterdir()))}.png")
                break
    task = {"group": "Own", "data": {"name": "folder", "val_size": 20}}
    data = {**RECIPE, "benchmark": {**RECIPE["benchmark"], "tasks": {"own": task}}, "optim": {"batch_size": 40}}
    (root / "own.yaml").write_text(yaml.safe_dump(data))
    return root


def in_this_process(test_part: Path) -> Callable[..., dict[PlannedRun, str]]:
    """In the place of `train_all`: the cells one after the other, the searching ones while there is no test part."""

    def train_all(plan: Plan, out: Path, *_: Any) -> dict[PlannedRun, str]:
        hidden, failures = test_part.with_name("hidden"), {}
        for run in plan.runs:
            if "search" in run.place:
                test_part.rename(hidden)
            if benchmark_cell.main("vision", str(run.folder(out).path), run.train_words()):
                failures[run] = "the loss became nan at step 2: stopped before the optimiser step"
            if hidden.exists():
                hidden.rename(test_part)
        return failures

    return train_all


def test_search_needs_no_test_part_and_the_best_point_is_trained_anew(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(benchmark, "train_all", in_this_process(class_folders / "test"))
    out = tmp_path / "out"
    words = ["--tasks", "own", "--methods", "bitfit", "--seeds", "2", "--data-root", class_folders, "--out", out]
    code, said, error = here(capsys, "benchmark", "--recipe", class_folders / "own.yaml", *words)
    assert code == 0, error
    assert "became" in error  # the point that diverges is passed over
    found = figures(out, "bitfit", "own")
    validated = {point["optim.lr"]: point["accuracy"] for point in found["searched"]}
    assert validated.pop(1e30) is None
    for lr, accuracy in validated.items():
        cell = out / "own" / "bitfit" / "search" / f"lr={lr}"
        assert result(cell)["accuracy"] == accuracy == pytest.approx(round(accuracy * 20) / 20)
    best = min(lr for lr, accuracy in validated.items() if accuracy == max(validated.values()))
    assert found["chosen"] == {"optim.lr": best}
    assert set(found["values"]) == {"0", "1"}
    for seed in (0, 1):
        stored = yaml.safe_load((out / "own" / "bitfit" / f"seed-{seed}" / "recipe.yaml").read_text())
        assert (stored["optim"]["lr"], stored["run"]["seed"]) == (best, seed)
    assert "±" in said


def test_other_settings_in_the_same_folder_are_refused(done: Done, capsys: pytest.CaptureFixture) -> None:
    code, _, error = here(capsys, *done.words, "--run.epochs", "3")
    assert code == 2
    assert "was begun with run.epochs 1, now it is 3" in error


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
    """Of `vit_mini`: LoRA 7,680 r; SNELL, on the slices of qkv, 8,960 r with even r; Adapter+ 1,285 r + 1,280."""
    task_type = VISION.tasks()["classification"]
    recipe = read_benchmark("few_shot", load_recipe("few_shot"), {})

    def recipe_of(entry: BenchmarkMethod) -> Recipe:
        plan = BenchmarkPlan(VISION, recipe, ["digits"], {"any": entry}, range(1), (), None, 1, None)
        return plan.cell_recipe(Cell("digits", "any", (), 0, False))

    assert [read_budget(text) for text in ("0.02M", "20k", "20000")] == [20_000] * 3
    for name, r, parameters in (("lora", 3, 23_040), ("snell", 2, 17_920), ("adapter_plus", 15, 20_555)):
        found = recipe_of(at_budget(recipe.method(name), 20_000, recipe_of, task_type))
        assert (found.method.fields["r"], trained_without_head(found, task_type)) == (r, parameters)
        assert found.method.fields.get("lora_alpha", r) == r
