"""Short looks at what a visitor gave, each in a confined process of its own: an adapter, or a cloud.

The words of such a run are `inspect given [--model NAME]` and `view [COMPARISON]`.
"""

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from peft_compare.aside import MEMORY
from peft_compare.refusals import RefusedError
from peft_compare.runs import GIVEN, Run, Runs
from peft_compare.settings import Limits

SECONDS = 300  # that a look may take by the clock; then the system ends it
LARGEST_FILE = 2 * 2**30  # bytes of a file that it writes


def look(run: Run) -> int:
    """Carry out a look; 0, or 1 after a sentence on the error stream."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    signal.alarm(SECONDS)
    run.out.mkdir(exist_ok=True)
    os.chdir(run.path)  # names in messages are the visitor's
    try:
        LOOKS[run.request.words[:1]](run)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        return _told(run, f"it needs more than the {MEMORY // 2**30} GiB of memory that a look may take")
    except Exception as error:
        if not isinstance(error, RefusedError) and not hasattr(error, "exit_code"):
            raise
        from peft_runs.errors import sentence  # late: it loads PEFT, which workers and queues have no use for

        return _told(run, sentence(error))
    return 0


def _told(run: Run, said: str) -> int:
    print(f"{run.request.program}: {said}", file=sys.stderr)
    return 1


def _adapter(run: Run) -> None:
    from peft_compare.inspecting import look_at

    words = list(run.request.words)
    model = words[words.index("--model") + 1] if "--model" in words else None
    look_at(Path(GIVEN), Path("out"), model, Limits().unpacked_bytes)


def _cloud(run: Run) -> None:
    from peft_compare.files import find_example
    from peft_compare.frame import EXAMPLES
    from peft_compare.viewing import view_file

    name = (*run.request.words[1:], "")[0]
    comparison = find_example(EXAMPLES, name) or Runs(run.path.parent).find(name)
    [given] = Path(GIVEN).iterdir()
    view_file(given, comparison and comparison.out, Path("out"))


LOOKS: dict[tuple[str, ...], Callable[[Run], None]] = {("inspect",): _adapter, ("view",): _cloud}
