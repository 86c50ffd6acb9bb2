"""The command of one run, as a person would give it, and then what the page shows beside its results.

    python -m peft_compare.carry_out RUN

It ends with the worker that started it: that one holds the other end of this one's standard input.
"""

import os
import sys
import time
from pathlib import Path

from peft_compare.looks import LOOKS, look
from peft_runs.commands import main as command
from peft_runs.compare_child import follow_parent
from peft_runs.families import DIFFUSION, VISION


def main(path: Path) -> int:
    """Carry out the request in the run's folder; the exit code is the command's."""
    from peft_compare.runs import Runs

    run = Runs(path.parent).find(path.name)
    if run is None:
        print(f"there is no run in {path}", file=sys.stderr)
        return 2
    if run.request.words[:1] in LOOKS:
        return look(run)
    family = next(family for family in (VISION, DIFFUSION) if family.program == run.request.program)
    resume = (run.out / "plan.json").exists()
    words = ["compare", "--resume"] if resume else list(run.request.words)
    begun = time.monotonic()
    code = command(family, [*words, "--out", str(run.out)])
    if code == 0 and not resume:
        from peft_compare.step_times import remember

        remember(run.path.parent, run.out, family, time.monotonic() - begun)
    if (run.out / "results.json").exists():
        from peft_compare.shown import write_shown

        write_shown(run.out, family)
        if family is DIFFUSION:
            from peft_compare.diffusion_kept import write_kept

            write_kept(run.out)
    return code


if __name__ == "__main__":
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    follow_parent()
    sys.exit(main(Path(sys.argv[1])))
