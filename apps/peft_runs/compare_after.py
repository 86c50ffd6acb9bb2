"""What is found out about the runs of a comparison once all are trained, by one process with none beside it."""

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from peft_runs.compare_jobs import LOOK_EVERY, end, interruption_waits, reason, start
from peft_runs.compare_plan import Plan, PlannedRun
from peft_runs.compare_progress import CompareProgress
from peft_runs.compare_samples import DRAWN, MEASURED
from peft_runs.compare_timing import NAME
from peft_runs.families import Family


def time_all(
    plan: Plan, out: Path, family: Family, runs: Sequence[PlannedRun], progress: CompareProgress
) -> str | None:
    """Time the steps of `runs`; the reason if that failed."""
    return _complete("compare_timing", [plan.family], NAME, runs, out, family, progress.timing)


def measure_all(
    plan: Plan, out: Path, family: Family, runs: Sequence[PlannedRun], progress: CompareProgress
) -> str | None:
    """Measure what the models of `runs` drew, where they drew; the reason if that failed."""
    drawn = [run for run in runs if (run.folder(out).path / DRAWN).is_file()]
    return _complete("compare_samples", [plan.family, str(out)], MEASURED, drawn, out, family, progress.measuring)


def _complete(
    module: str,
    words: Sequence[str],
    leaves: str,
    runs: Sequence[PlannedRun],
    out: Path,
    family: Family,
    tell: Callable[[int, int, str], None],
) -> str | None:
    """Have `module` leave its file in the folders of the runs that lack it."""
    places = {run: run.folder(out).path for run in runs if not (run.folder(out).path / leaves).is_file()}
    if not places:
        return None
    log = out / f"{module}.txt"
    running: list[subprocess.Popen[bytes]] = []
    try:
        with interruption_waits():
            running.append(start(module, [*words, *map(str, places.values())], log, None))
        [process] = running
        while process.poll() is None:
            waiting = [run.method for run, place in places.items() if not (place / leaves).is_file()]
            if waiting:
                tell(len(places) - len(waiting), len(places), waiting[0])
            time.sleep(LOOK_EVERY)
    finally:
        end(running)
    if process.returncode:
        return reason(log, process.returncode, family)
    log.unlink()
    return None
