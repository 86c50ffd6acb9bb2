"""The time left that is told while work goes on: at the pace of steps that were seen, not of what came before them."""

import io

import pytest
from rich.console import Console

from peft_runs import compare_progress, progress
from peft_runs.compare_plan import PlannedRun
from peft_runs.compare_progress import CompareProgress

STEPS = 100


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module) -> None:
        self.now = 1000.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


def planned(method: str) -> PlannedRun:
    return PlannedRun(method, 0, "recipe", (), method)


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def comparison(monkeypatch, said):
    clock = Clock(monkeypatch, compare_progress)
    console = Console(file=said, width=200)
    shown = CompareProgress(console, ["lora", "snell"], seeds=1, steps=STEPS, metric="accuracy")

    def at(seconds: float, step: int, method: str = "lora") -> str:
        clock.now = 1000.0 + seconds
        before = len(said.getvalue())
        shown.trained(planned(method), {"epoch": 0, "loss": 1.0, "step": step}, None)
        return said.getvalue()[before:]

    return shown, at


def test_a_comparison_tells_no_time_left_before_a_step_was_timed(comparison):
    _, at = comparison
    assert at(60, 1) == ""  # the minute in which models were loaded is no step's
    assert at(90, 1) == ""


def test_a_comparisons_time_left_is_that_of_steps_alone(comparison):
    _, at = comparison
    at(60, 1)
    assert "about 1 min 16 s of training left" in at(64, 11).replace("\u00a0", " ")  # 189 steps at 0.4 s
    assert at(70, 21) == ""  # a line every 20 s
    assert "about 1 min 0 s of training left" in at(100, 60, "snell").replace("\u00a0", " ")  # 119 steps at 0.5 s


def test_steps_of_earlier_commands_do_not_count_as_timed(comparison):
    shown, at = comparison
    shown.kept_from_before(planned("snell"), {"accuracy": 0.9})
    assert at(60, 50) == ""  # a run that goes on from its step 49
    assert "about 30 s of training left" in at(80, 70).replace("\u00a0", " ")


def test_a_runs_time_left_waits_for_a_timed_step_too(monkeypatch, capsys):
    clock = Clock(monkeypatch, progress)
    shown = progress.RunProgress()
    clock.now += 300
    shown.show("train", 1, STEPS)
    clock.now += 60
    shown.show("train", 1, STEPS)
    assert capsys.readouterr().out == ""
    clock.now += 60
    shown.show("train", 11, STEPS)
    assert "train 11/100  1068 s left" in capsys.readouterr().out
