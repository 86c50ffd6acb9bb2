"""One process of a comparison: the `train` command as anybody would give it, then a look at what it has saved.

    python -m peft_runs.compare_child FAMILY FOLDER WORDS...     WORDS as after `train`, without --out

It ends with the process that started it: that one holds the other end of this one's standard input.
"""

import _thread
import os
import shutil
import sys
import threading
from pathlib import Path

from peft_runs.checkpoint import latest_checkpoint
from peft_runs.commands import main as command
from peft_runs.families import DIFFUSION, VISION, Family
from peft_runs.run_folder import RunFolder

FAMILIES = {family.name: family for family in (VISION, DIFFUSION)}


def follow_parent() -> None:
    """Interrupt this process when the one that started it is gone."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        _thread.interrupt_main()

    threading.Thread(target=wait, daemon=True).start()


def train_once(family: Family, folder: RunFolder, words: list[str]) -> int:
    """The `train` command, from the last checkpoint if there is one; nothing where there is a result."""
    if folder.result.exists():
        return 0
    begun = latest_checkpoint(folder.checkpoints) is not None
    return command(family, ["train", *(["--resume"] if begun else words), "--out", str(folder.path)])


def main(family_name: str, place: str, words: list[str]) -> int:
    """Train unless that is done, then examine; the exit code is the command's."""
    family, folder = FAMILIES[family_name], RunFolder(Path(place))
    code = train_once(family, folder, words)
    if code:
        return code
    from peft_runs.compare_examine import examine
    from peft_runs.errors import RunError

    try:
        examine(family, folder)
    except RunError as error:
        print(f"{family.program}: {error}", file=sys.stderr)
        return error.exit_code
    shutil.rmtree(folder.checkpoints, ignore_errors=True)  # of a finished run, they are of no more use
    return 0


if __name__ == "__main__":
    follow_parent()
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
