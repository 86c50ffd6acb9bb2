"""The pictures that a comparison drew at its end, as the page shows them; written once by the run's own process.

side.json      `prompts` and `rows`, each a name and the addresses of its pictures; the base model first, the data last
"""

import json
from pathlib import Path
from typing import Any

from peft_compare.diffusion_sets import as_address
from peft_runs.compare_results import read_results
from peft_runs.durable import write_json
from peft_runs.report_samples import samples

KEPT = "side.json"


def write_kept(out: Path) -> None:
    """Write them for the comparison in `out`; nothing where its models draw none."""
    found = samples(read_results(json.loads((out / "results.json").read_text(encoding="utf-8"))), out)
    if found is None:
        return
    rows = [(name, [as_address(one) for one in pictures if one is not None]) for name, pictures in found.rows]
    write_json(out / KEPT, {"prompts": found.prompts, "rows": [*rows[1:], rows[0]]})


def read_kept(out: Path) -> dict[str, Any] | None:
    """What was written, if it was."""
    try:
        return json.loads((out / KEPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
