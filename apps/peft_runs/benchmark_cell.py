"""One process of a benchmark: the `train` command as anybody would give it.

    python -m peft_runs.benchmark_cell FAMILY FOLDER WORDS...     WORDS as after `train`, without --out

It ends with the process that started it, and waits for another one that still works in the same folder: both hold
their log, the standard output.
"""

import fcntl
import shutil
import sys
from pathlib import Path

from peft_runs.compare_child import FAMILIES, follow_parent, train_once
from peft_runs.run_folder import RunFolder


def main(family_name: str, place: str, words: list[str]) -> int:
    """Train unless that is done; the exit code is the command's."""
    folder = RunFolder(Path(place))
    code = train_once(FAMILIES[family_name], folder, words)
    if code == 0:
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
    return code


if __name__ == "__main__":
    follow_parent()
    fcntl.flock(sys.stdout.fileno(), fcntl.LOCK_EX)
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
