"""The example that edits text runs on the embedded pipeline and leaves its figures and pictures."""

import json
import runpy
from pathlib import Path

import pytest
from PIL import Image

import diffusion_peft as dp

EXAMPLES = Path(__file__).parents[2] / "examples" / "text_layers"


def test_text_is_edited_replaced_and_found_in_given_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = dp.Localization(names=["x"], indices=[7], score="ssim", settings={})
    report.add((7,), {"ssim": [1.0]})
    report.save(tmp_path / "localization.json")
    words = (tmp_path, tmp_path / "out", "--pairs", 1, "--steps", 2, "--windows", 1)
    monkeypatch.setattr("sys.argv", ["edit.py", *map(str, words)])
    runpy.run_path(str(EXAMPLES / "edit.py"), run_name="__main__")
    found = json.loads((tmp_path / "out" / "edit.json").read_text())
    assert found["layers"] == [7]
    assert set(found["replacing"]) == {"as asked", "negative prompt", "replaced", "replaced from step 1"}
    assert set(found["given pictures"]) == {"picture as it is", "drawn again", "prompt swap", "found layers"}
    for rows in (found["editing"], found["replacing"], found["given pictures"]):
        assert next(iter(rows.values()))["outside_rmse"] == 0
    assert [Image.open(tmp_path / "out" / name).width for name in ("edit.png", "given.png")] == [64 * 7, 64 * 4]
