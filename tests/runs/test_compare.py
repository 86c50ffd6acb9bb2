"""A comparison of three methods, one of which cannot work: stopped by Ctrl-C, finished by --resume, and looked at."""

import json
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from PIL import Image
from safetensors import safe_open
from sklearn.datasets import load_digits

from tests.runs.command import PROGRAM, here, one_thread, process

METHODS = {"adapter_plus": {}, "bitfit": {}, "lora": {"target_modules": ["nowhere"]}}


@dataclass
class Comparison:
    """The folder, and what the two commands said."""

    out: Path
    labels: list[int]
    stopped: tuple[int, str]
    left_running: list[str]
    kept: bool
    resumed: subprocess.CompletedProcess[str]

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.out / "results.json").read_text(encoding="utf-8"))

    def row(self, method: str) -> dict[str, Any]:
        return next(row for row in self.results["rows"] if row["method"] == method)


def pictures(root: Path) -> list[int]:
    """Real scans of 0 and 1 in class folders, 40 to train and 20 to test; the labels of the test pictures."""
    scans: Any = load_digits()
    for digit in (0, 1):
        found = [scan for scan, label in zip(scans["images"], scans["target"], strict=True) if label == digit]
        for part, chosen in {"train": found[:20], "test": found[20:30]}.items():
            folder = root / part / str(digit)
            folder.mkdir(parents=True)
            for place, scan in enumerate(chosen):
                Image.fromarray((scan * 15.9375).astype("uint8")).save(folder / f"{place:02}.png")
    return [0] * 10 + [1] * 10


def recipes(root: Path, data: Path) -> Path:
    """A recipe `tiny` and one for each method; that of LoRA names a target that does not exist."""
    shared = {
        "base": "digits",
        "model": {"pretrained": False},
        "data": {"name": "folder", "root": str(data)},
        "optim": {"batch_size": 10},
        "run": {"epochs": 2, "evaluate_epochs": 1},
    }
    (root / "tiny.yaml").write_text(yaml.safe_dump(shared))
    for name, fields in METHODS.items():
        own = {"base": str(root / "tiny.yaml"), "method": {"name": name, **fields}}
        (root / f"tiny_{name}.yaml").write_text(yaml.safe_dump(own))
    return root / "tiny.yaml"


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    root = tmp_path_factory.mktemp("compare")
    labels, out = pictures(root / "data"), root / "out"
    words = ["compare", "--recipe", str(recipes(root, root / "data")), "--jobs", "1", "--out", str(out)]
    begun = subprocess.Popen(
        [str(PROGRAM), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=one_thread(),
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores Ctrl-C
    )
    deadline = time.monotonic() + 300
    while not (out / "bitfit" / "seed-0" / "log.txt").exists() and begun.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    begun.send_signal(signal.SIGINT)
    said, _ = begun.communicate(timeout=120)
    left = [" ".join(words) for words in command_lines() if str(out) in " ".join(words)]
    finished = out / "adapter_plus" / "seed-0" / "examined.json"
    before = finished.stat().st_mtime_ns
    resumed = process("compare", "--resume", "--out", out)
    return Comparison(out, labels, (begun.returncode, said), left, finished.stat().st_mtime_ns == before, resumed)


def command_lines() -> Sequence[list[str]]:
    """Those of all running processes."""
    return [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]


def test_interruption_ends_every_process_and_says_how_to_go_on(comparison: Comparison) -> None:
    code, said = comparison.stopped
    assert code == 130
    assert "1 of 3 runs are finished" in said
    assert f"vision-peft compare --resume --out {comparison.out}" in said
    assert comparison.left_running == []


def test_resume_keeps_finished_runs(comparison: Comparison) -> None:
    assert comparison.kept
    assert "adapter_plus: done before" in comparison.resumed.stdout


def test_failed_method_is_a_row_with_its_reason_and_the_others_go_on(comparison: Comparison) -> None:
    assert comparison.resumed.returncode == 1
    assert "failed: lora" in comparison.resumed.stderr
    assert "nowhere" in comparison.row("lora")["failure"]
    assert "lora failed: unknown target of VisionTransformer 'nowhere'" in comparison.resumed.stdout
    assert [row["failure"] for row in comparison.results["rows"]][:2] == [None, None]


def test_counts_are_those_of_the_saved_tensors(comparison: Comparison) -> None:
    for method in ("adapter_plus", "bitfit"):
        row, total, head = comparison.row(method), 0, 0
        file = comparison.out / method / "seed-0" / "adapter" / "adapter_model.safetensors"
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (no mapping)
                size = opened.get_tensor(name).numel()
                total, head = total + size, head + (size if ".head." in name else 0)
        assert row["trainable_parameters"] == total
        assert row["trainable_parameters_without_head"] == total - head
        assert row["adapter_bytes"] == file.stat().st_size


def test_figures_are_those_of_the_reloaded_adapter(comparison: Comparison) -> None:
    for method in ("adapter_plus", "bitfit"):
        row = comparison.row(method)
        [run] = row["runs"]
        right = sum(a == b for a, b in zip(run["predictions"], comparison.labels, strict=True))
        assert row["figures"]["accuracy"]["mean"] == run["figures"]["accuracy"] == right / 20
        assert run["reloaded_difference"] == 0
        assert row["peak_bytes"] > 0
        assert row["step_seconds"] > 0


def test_merging_is_exact_or_refused_with_the_reason(comparison: Comparison) -> None:
    assert comparison.row("bitfit")["merged_difference"] < 1e-4
    refused = comparison.row("adapter_plus")
    assert refused["merged_difference"] is None
    assert "activation" in refused["merged_reason"]
    assert f"adapter_plus does not merge: {refused['merged_reason']}" in comparison.resumed.stdout


def test_one_seed_is_not_ranked(comparison: Comparison) -> None:
    assert comparison.results["ranked"] is False
    assert "nothing is ranked" in comparison.resumed.stdout
    rows = comparison.results["rows"]
    assert [row["figures"]["accuracy"]["deviation"] for row in rows[:2]] == [None] * 2
    assert rows[2]["figures"] == {}
    assert [row["method"] for row in rows] == ["bitfit", "adapter_plus", "lora"]  # by parameters; failed ones last


def test_every_run_leaves_recipe_curves_adapter_and_card(comparison: Comparison) -> None:
    for method in ("adapter_plus", "bitfit"):
        folder = comparison.out / method / "seed-0"
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
        assert recipe["method"]["name"] == method
        assert (folder / "adapter" / "adapter_config.json").is_file()
        _, head, text = (folder / "adapter" / "README.md").read_text(encoding="utf-8").split("---\n", 2)
        card = yaml.safe_load(head)
        [measured] = card["model-index"][0]["results"]
        assert measured["metrics"][0] == {
            "type": "accuracy",
            "value": comparison.row(method)["figures"]["accuracy"]["mean"],
        }
        assert comparison.row(method)["runs"][0]["command"] in text
    for name in ("report.html", "figures/accuracy_parameters.png", "figures/curves.png"):
        assert (comparison.out / name).stat().st_size > 1000
    assert not list(comparison.out.rglob(".writing-*"))


REFUSED = {
    "no recipe": ((), ("--recipe",)),
    "unknown recipe": (("--recipe", "digitz"), ("'digitz'", "'digits'")),
    "unknown method": (("--recipe", "digits", "--methods", "lora,snel"), ("'snel'", "'snell'")),
    "method named twice": (("--recipe", "digits", "--methods", "lora,lora"), ("'lora'", "twice")),
    "no seeds": (("--recipe", "digits", "--seeds", "0"), ("--seeds", "at least 1")),
    "seeds in words": (("--recipe", "digits", "--seeds", "three"), ("--seeds", "three")),
    "unknown key": (("--recipe", "digits", "--optim.lrr", "1"), ("'optim.lrr'", "'optim.lr'")),
    "field that one method lacks": (("--recipe", "digits", "--method.r", "4"), ("bitfit: ", "'method.r'")),
    "method by key": (("--recipe", "digits", "--method.name", "lora"), ("--methods",)),
    "methods missing": (("--recipe", "vit_mini"), ("--methods",)),
    "nothing to resume": (("--resume", "--out", "none"), ("nothing to resume", "none")),
    "resume another": (("--resume", "--out", "none", "--recipe", "digits"), ("--resume",)),
    "folder in use": (("--recipe", "digits", "--methods", "lora", "--out", "used"), ("used", "--resume")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusal(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    words, said = REFUSED[case]
    code, _, error = here(capsys, "compare", *words)
    assert code == 2
    assert error.startswith("vision-peft: ")
    assert all(part in error for part in said), error
    assert [path.name for path in tmp_path.iterdir()] == ["used"]


def test_unequal_budgets_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    recipes(tmp_path, tmp_path)
    longer = {"base": str(tmp_path / "tiny.yaml"), "method": {"name": "bitfit"}, "run": {"epochs": 7}}
    (tmp_path / "tiny_bitfit.yaml").write_text(yaml.safe_dump(longer))
    code, _, error = here(capsys, "compare", "--recipe", tmp_path / "tiny.yaml", "--out", tmp_path / "out")
    assert code == 2
    assert "run.epochs is 2 for adapter_plus and 7 for bitfit" in error
    assert not (tmp_path / "out").exists()
