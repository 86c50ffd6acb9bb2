"""Runs on the disk: whose they are, deleting with a way back, and the limit of their size."""

from pathlib import Path

import pytest

from peft_compare.runs import Runs


def finished(runs: Runs, owner: str = "me", size: int = 0):
    run = runs.create("vision", "a run", "vision-peft", ["compare"], owner)
    (run.path / "data").write_bytes(b"x" * size)
    run.finish("done")
    return run


def test_ids_are_secrets_of_128_bits(tmp_path: Path) -> None:
    ids = {finished(Runs(tmp_path)).id for _ in range(20)}
    assert len(ids) == 20
    assert all(len(bytes.fromhex(one)) == 16 for one in ids)


@pytest.mark.parametrize("asked", ["", "..", ".deleted", "/etc", "0" * 31, "0" * 32, "0" * 31 + "/", "A" * 32])
def test_what_is_no_id_finds_nothing(tmp_path: Path, asked: str) -> None:
    assert Runs(tmp_path).find(asked) is None


def test_a_browser_lists_its_own_runs_the_newest_first(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    mine = [finished(runs, "me") for _ in range(2)]
    finished(runs, "another")
    finished(runs, "")
    assert [run.id for run in runs.of("me")] == [run.id for run in reversed(mine)]
    assert runs.of("") == []


def test_a_deleted_run_comes_back_to_its_owner_alone(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    run = finished(runs, "me")
    runs.delete(run)
    assert runs.find(run.id) is None
    assert runs.restore(run.id, "another") is None
    assert runs.restore(run.id, "me") == run
    assert runs.of("me") == [run]


def test_the_oldest_ended_runs_make_room(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    old, middle = finished(runs, size=5000), finished(runs, size=5000)
    waiting = runs.create("vision", "a run", "vision-peft", [], "me")
    new = finished(runs, size=5000)
    assert runs.sweep(11_500) == [old.id]
    assert {run.id for run in runs.all()} == {middle.id, waiting.id, new.id}
    assert runs.sweep(0) == [middle.id, new.id]
    assert [run.id for run in runs.all()] == [waiting.id]


def test_a_torn_request_is_no_run(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    run = finished(runs)
    (run.path / "request.json").write_text("{", encoding="utf-8")
    assert runs.all() == []
