"""The table of methods and export formats, made by exporting: `python -m tests.runs.export_table` writes it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from peft_kernels.registry import methods
from peft_runs.errors import RunError
from peft_runs.exporting import FORMATS, export_adapter
from tests.runs.saved import save_all

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tables" / "export.md"
HEAD = """<!-- Written by `python -m tests.runs.export_table`; a test compares it. -->

`vision-peft export ADAPTER --to FORMAT --out PATH` writes what is exact and refuses the rest with the reason.
"""
DIFFUSION = "the format holds adapters of diffusion models"


def cell(root: Path, name: str, to: str) -> str:
    """``yes``, or the reason why not."""
    out = root / f"{name}-{to}{'.safetensors' if to == 'merged' else ''}"
    try:
        export_adapter(root / name, to, out, checkpoint=root / "base.safetensors")
    except RunError as error:
        assert not out.exists()
        reason = str(error)
        if DIFFUSION.removeprefix("the format ") in reason:
            return DIFFUSION
        reason = reason.partition("; --to merged")[0].removeprefix("no exact form in PEFT: ")
        return reason.partition("cannot be merged: ")[2].partition(" (only")[0].partition(". Keep")[0] or reason
    assert out.exists()
    return "yes"


def table(root: Path) -> str:
    """The page, from the adapters that `save_all` wrote to ``root``."""
    cells = {name: {to: cell(root, name, to) for to in FORMATS} for name in sorted(methods())}
    reasons = list(dict.fromkeys(text for row in cells.values() for text in row.values() if text != "yes"))
    lines = [HEAD, "| method | " + " | ".join(FORMATS) + " |", "|---" * (len(FORMATS) + 1) + "|"]
    for name, row in cells.items():
        answers = ["yes" if text == "yes" else f"no ({reasons.index(text) + 1})" for text in row.values()]
        lines.append(f"| {name} | " + " | ".join(answers) + " |")
    return "\n".join([*lines, "", *(f"{i}. {text}." for i, text in enumerate(reasons, 1)), ""])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        save_all(Path(folder))
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(table(Path(folder)), encoding="utf-8")
