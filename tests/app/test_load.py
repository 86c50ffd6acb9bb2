"""Several programs at once: nothing is lost and nothing mixed up, as the benchmark of the app counts it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from peft_compare.frame import EXAMPLES
from peft_compare.settings import Limits
from tests.app.conftest import serving

SCRIPTS = Path(__file__).resolve().parents[2] / "apps" / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import load  # pyright: ignore[reportMissingImports]

    yield load
    del sys.modules["load"]


def test_no_run_of_five_programs_is_lost_or_mixed_up(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peft_compare.server.SESSIONS", 3)
    command = (*load.STAND_IN, str(EXAMPLES / "digits" / "out" / "results.json"))
    with serving(tmp_path, command, limits=Limits(waiting=1)) as served:
        found = load.measured(served.url, psutil.Process(), tmp_path, 5, 300.0, "linear_probe", "", 2)
    assert len(served.app.frame.blocks.state_holder.session_data) <= 3  # type: ignore[attr-defined]
    runs = found["runs"]
    assert (runs["lost"], runs["made by nobody"], runs["mixed up"], found["errors"]) == ([], [], [], {})
    assert runs["accepted"] == runs["finished"] == runs["read"] == 10
    assert runs["owners"] == 5
    assert runs["refused by a full queue"] > 0
    assert found["requests"]["result"]["count"] == runs["read"]


def test_what_is_lost_or_nobodys_is_counted(load: Any) -> None:
    tally = load.Tally(accepted={"a": "1", "b": "2", "c": "3"})
    runs = load.counted(tally, {"a": ("done", "me"), "b": ("failed", "me"), "d": ("done", "you")})
    assert (runs["lost"], runs["made by nobody"], runs["finished"], runs["owners"]) == (["b", "c"], ["d"], 2, 2)
